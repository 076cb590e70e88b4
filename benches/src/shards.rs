//! Many small shards on one disk: what they cost in memory, and how long a disk with them takes to open and to list.
//!
//! The disk is opened again by a process of its own: only there does resident memory belong to the index alone.

use crate::Result;
use crate::disk::Disk;
use crate::loads::{Shards, put_all};
use crate::sample::{Memory, Sample};
use crate::watched::Counts;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};
use storage_node::client::INVENTORY_LIMIT_MAX;
use storage_node::device::{AlignedBuf, BLOCK, Backend, open_file};
use storage_node::engine::peek_superblock;
use storage_node::format::layout::Layout;
use tokio::runtime::Runtime;

/// The argument by which the process of its own is told the disk.
pub const REOPEN: &str = "--reopen";
const SHARD_BYTES: usize = 256;
const UNITS: u64 = 16;
/// A shard of three copies.
const WIDTH: usize = 3;
/// What one takes on the disk, at most: head, tables, payload, its part of what pads a batch.
const FOOTPRINT_BYTES: u64 = 640;
const EXTENT_BYTES: u64 = 16 << 20;
const IN_FLIGHT: usize = 1024;
/// Makes the allocator give back at once what was freed, so that what is resident is in use.
const GIVE_BACK: &[(&str, &str)] = &[("MIMALLOC_PURGE_DELAY", "0")];
const GIB: u64 = 1 << 30;
/// A summary ends in a footer of so many bytes, right before the extent's last header, which starts so.
const SUMMARY_FOOTER_BYTES: usize = 128;
const SUMMARY_MAGIC: &[u8] = b"CSUM";

/// What was found.
#[derive(Debug)]
pub struct Census {
    /// How the puts went.
    pub puts: Sample,
    /// What the device saw of them.
    pub counts: Counts,
    /// What the fresh process said.
    pub reopened: Reopened,
    /// How long opening took after the summaries of extents were destroyed, if there were any.
    pub without_summaries: Option<Duration>,
}

/// What a fresh process found on the disk.
#[derive(Debug)]
pub struct Reopened {
    /// How long it took to open.
    pub open: Duration,
    /// How long to list one unit, page by page.
    pub list: Duration,
    /// Shards of that unit.
    pub listed: u64,
    /// Shards of the disk.
    pub shards: u64,
    /// How much memory the open disk took.
    pub resident: u64,
    /// How much at the most while it was opened.
    pub peak: u64,
}

/// Puts `count` small shards on a new disk at `path`, stops it cleanly, and opens it again in a fresh process.
pub fn measure(runtime: &Runtime, path: &Path, incarnation: u64, count: u64) -> Result<Census> {
    let size = (count * FOOTPRINT_BYTES + (2 * UNITS + 8) * EXTENT_BYTES).next_multiple_of(GIB / 16);
    let disk = Disk::format(path, size, EXTENT_BYTES, incarnation)?;
    let shards = Arc::new(Shards::new(count, SHARD_BYTES, UNITS, WIDTH));
    let puts = Sample::of(count, shards.bytes(), || {
        runtime.block_on(put_all(&disk, &shards, IN_FLIGHT))
    })?;
    let counts = disk.watch.take();
    drop(disk);
    // Memory is taken from a second run: giving it back at once makes opening slow.
    let mut reopened = Reopened::by_fresh_process(path, &[])?;
    reopened.resident = Reopened::by_fresh_process(path, GIVE_BACK)?.resident;
    if reopened.shards != count {
        return Err(format!("{} shards were put, {} found", count, reopened.shards).into());
    }
    let without_summaries = match destroy_summaries(path)? {
        0 => None,
        _ => Some(Reopened::by_fresh_process(path, &[])?.open),
    };
    Ok(Census {
        puts,
        counts,
        reopened,
        without_summaries,
    })
}

/// Destroys the summaries that a closed disk's sealed extents end in, as far as the disk has any; says how many. What they say is
/// in the records, so opening does without.
fn destroy_summaries(path: &Path) -> Result<usize> {
    let device = open_file(path, Backend::Auto)?;
    let superblock = peek_superblock(&*device)?;
    let layout = Layout::new(superblock.device_size, superblock.extent_size)?;
    let mut destroyed = 0;
    for extent in 0..layout.extents() {
        let last = layout.extent_offset(extent) + u64::from(layout.data_end()) - BLOCK as u64;
        let block = device.read(last, AlignedBuf::zeroed(BLOCK)).wait()?;
        if block[BLOCK - SUMMARY_FOOTER_BYTES..].starts_with(SUMMARY_MAGIC) {
            device.write(last, AlignedBuf::zeroed(BLOCK).share()).wait()?;
            destroyed += 1;
        }
    }
    device.flush().wait()?;
    Ok(destroyed)
}

/// In the fresh process: opens the disk, lists a unit, prints what [`measure`] reads.
pub fn reopen(path: &Path) -> Result<()> {
    let before = Memory::now()?;
    let started = Instant::now();
    let disk = Disk::open(path)?;
    let open = started.elapsed();
    let after = Memory::now()?;
    let (unit, mut last, mut listed) = (disk.unit(1), None, 0);
    let started = Instant::now();
    loop {
        let page = disk.engine.inventory(&unit, last, INVENTORY_LIMIT_MAX)?;
        let Some(entry) = page.last() else { break };
        last = Some(entry.key);
        listed += page.len();
    }
    let list = started.elapsed();
    println!(
        "{} {} {listed} {} {} {}",
        open.as_nanos(),
        list.as_nanos(),
        disk.engine.status().shards,
        after.resident.saturating_sub(before.resident),
        after.peak.saturating_sub(before.resident),
    );
    Ok(())
}

impl Reopened {
    fn by_fresh_process(path: &Path, environment: &[(&str, &str)]) -> Result<Reopened> {
        let mut command = Command::new(std::env::current_exe()?);
        command.arg(REOPEN).arg(path);
        let output = command.envs(environment.iter().copied()).output()?;
        if !output.status.success() {
            return Err(String::from_utf8_lossy(&output.stderr).trim().into());
        }
        Reopened::parse(&String::from_utf8_lossy(&output.stdout))
    }

    fn parse(line: &str) -> Result<Reopened> {
        let numbers = line.split_whitespace().map(str::parse);
        let numbers = numbers.collect::<std::result::Result<Vec<u64>, _>>()?;
        let [open, list, listed, shards, resident, peak] = numbers[..] else {
            return Err(format!("the fresh process said {line:?}").into());
        };
        Ok(Reopened {
            open: Duration::from_nanos(open),
            list: Duration::from_nanos(list),
            listed,
            shards,
            resident,
            peak,
        })
    }
}

impl std::fmt::Display for Reopened {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let each = |bytes: u64| bytes as f64 / self.shards as f64;
        write!(
            f,
            "opened again in {:.2?}; {:.0} B resident for each shard, {:.0} at the peak; {} shards of a unit listed in {:.2?}",
            self.open,
            each(self.resident),
            each(self.peak),
            self.listed,
            self.list,
        )
    }
}
