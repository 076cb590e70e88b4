//! How fast one disk's engine is, beside fio on the same filesystem in the same run.
//!
//! `cargo bench -p cairn-benches --bench engine -- [--full] [--only PART] [--shards N] [--path DIRECTORY | --path DEVICE --erase]`
//!
//! Its parts are puts, reads, verify, amplification, latency and shards.
//!
//! Engine and fio take turns, round after round, and each figure is the median round's, so that a neighbour's burst touches
//! both alike. Both do direct I/O through the same backend, on files whose blocks were all written before, as those of a disk in
//! use were (with --full also on fresh ones). Seals of large shards are made before the clock starts: that is the gateway's
//! work. CPU is that of the whole process, load included. Files are in a directory that is removed in the end.

use cairn_benches::disk::{Disk, Place};
use cairn_benches::fio::{Access, Fio, Job};
use cairn_benches::loads::{Shards, put_all, read_blocks};
use cairn_benches::report::{self, Figure};
use cairn_benches::sample::Sample;
use cairn_benches::shards;
use cairn_benches::watched::Counts;
use cairn_benches::{Result, amplification, latency};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use storage_node::engine::Verified;
use tokio::runtime::Runtime;

/// As the binary `cairn` has it.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;
/// Units that are written at once: the open volumes that have one on the disk.
const UNITS: u64 = 4;
/// Shards of a stripe of rs(4,2).
const WIDTH: usize = 6;
/// Shards of a small object, which is copied.
const COPIES: usize = 3;

fn main() -> Result<()> {
    let options = Options::parse()?;
    if let Some(path) = &options.reopen {
        return shards::reopen(path);
    }
    let mut bench = Bench::new(&options)?;
    bench.introduce()?;
    report::head();
    if options.wants("puts") {
        bench.all_puts(options.full)?;
    }
    if options.wants("reads") {
        bench.reads()?;
    }
    if options.wants("verify") {
        bench.verify()?;
    }
    if options.wants("amplification") {
        bench.amplification()?;
    }
    if options.wants("latency") {
        bench.latency()?;
    }
    if options.wants("shards") {
        bench.many_shards(options.shards)?;
    }
    println!("load average at the end {}", load_average());
    Ok(())
}

/// What was asked for.
struct Options {
    full: bool,
    path: PathBuf,
    erase: bool,
    shards: u64,
    reopen: Option<PathBuf>,
    only: Option<String>,
}

impl Options {
    fn parse() -> Result<Options> {
        let mut options = Options {
            full: false,
            path: env!("CARGO_TARGET_TMPDIR").into(),
            erase: false,
            shards: 0,
            reopen: None,
            only: None,
        };
        let mut arguments = std::env::args().skip(1);
        while let Some(argument) = arguments.next() {
            let mut value = || arguments.next().ok_or(format!("{argument} needs a value"));
            match argument.as_str() {
                "--full" => options.full = true,
                "--path" => options.path = value()?.into(),
                "--only" => options.only = Some(value()?),
                "--erase" => options.erase = true,
                "--shards" => options.shards = value()?.parse()?,
                shards::REOPEN => options.reopen = Some(value()?.into()),
                // What cargo adds.
                "--bench" => {}
                other => return Err(format!("{other} is no option of this benchmark").into()),
            }
        }
        if options.shards == 0 {
            options.shards = if options.full { 1_000_000 } else { 20_000 };
        }
        Ok(options)
    }

    /// Whether a part is to be measured: all are, unless one was named.
    fn wants(&self, part: &str) -> bool {
        self.only.as_deref().is_none_or(|only| only == part)
    }
}

/// How much is done in a round, and on what.
#[derive(Clone, Copy)]
struct Sizes {
    rounds: usize,
    large_shards: u64,
    small_shards: u64,
    synced_writes: u64,
    reads: u64,
    disk_bytes: u64,
    extent_bytes: u64,
    /// A disk that is kept nearly full: its size and its extents', and how often its bytes are replaced.
    churned: (u64, u64),
    turns: f64,
    /// A disk that is read while it has other work: its size and its extents'.
    read_beside: (u64, u64),
    latency: latency::Size,
}

impl Sizes {
    const SMALL: Sizes = Sizes {
        rounds: 3,
        large_shards: 48,
        small_shards: 4_000,
        synced_writes: 200,
        reads: 1_000,
        disk_bytes: 128 * MIB,
        extent_bytes: 8 * MIB,
        churned: (512 * MIB, 8 * MIB),
        turns: 0.2,
        read_beside: (256 * MIB, 4 * MIB),
        latency: latency::Size {
            rounds: 2,
            reads: 500,
            shards: 16,
            chaff: 48,
            hasty: true,
        },
    };
    const FULL: Sizes = Sizes {
        rounds: 7,
        large_shards: 1024,
        small_shards: 60_000,
        synced_writes: 10_000,
        reads: 32_768,
        disk_bytes: 2048 * MIB,
        extent_bytes: 64 * MIB,
        churned: (4096 * MIB, 16 * MIB),
        turns: 2.0,
        read_beside: (4096 * MIB, 64 * MIB),
        latency: latency::Size {
            rounds: 5,
            reads: 40_000,
            shards: 512,
            chaff: 896,
            hasty: false,
        },
    };
}

/// Puts of one kind.
struct PutLoad {
    name: &'static str,
    figure: Figure,
    target: Option<f64>,
    shards: Arc<Shards>,
    in_flight: usize,
    /// What fio does beside them.
    yardstick: Option<Job>,
    /// On files that were not written before.
    fresh: bool,
}

struct Bench {
    runtime: Runtime,
    place: Place,
    fio: Option<Fio>,
    sizes: Sizes,
    incarnation: u64,
}

impl Bench {
    fn new(options: &Options) -> Result<Bench> {
        Ok(Bench {
            runtime: Runtime::new()?,
            place: Place::at(&options.path, options.erase)?,
            fio: None,
            sizes: if options.full { Sizes::FULL } else { Sizes::SMALL },
            incarnation: 0,
        })
    }

    /// Says what is measured; and finds out what fio is to use.
    fn introduce(&mut self) -> Result<()> {
        let backend = self.disk(&self.place.path("disk"))?.engine.status().backend;
        self.fio = Fio::find().map(|fio| fio.like(&backend));
        let beside = match &self.fio {
            Some(fio) => format!("beside {}", fio.name()),
            None => "alone: fio is missing (Debian package fio)".into(),
        };
        let (rounds, load) = (self.sizes.rounds, load_average());
        println!("engine ({backend}) {beside}; median of {rounds} rounds; load average {load}");
        Ok(())
    }

    /// A new disk at `path`, on which nothing of an earlier one is valid.
    fn disk(&mut self, path: &Path) -> Result<Disk> {
        self.incarnation += 1;
        Disk::format(
            path,
            self.sizes.disk_bytes,
            self.sizes.extent_bytes,
            self.incarnation,
        )
    }

    fn all_puts(&mut self, full: bool) -> Result<()> {
        let sizes = self.sizes;
        let mut large = PutLoad {
            name: "1 MiB puts, 16 in flight",
            figure: Figure::Throughput,
            target: Some(0.85),
            shards: Arc::new(Shards::new(sizes.large_shards, MIB as usize, UNITS, WIDTH)),
            in_flight: 16,
            yardstick: Some(Job {
                access: Access::Write,
                block_bytes: MIB,
                depth: 16,
                file_bytes: sizes.large_shards * MIB,
                bytes: sizes.large_shards * MIB,
            }),
            fresh: false,
        };
        self.puts(&large)?;
        if full {
            (large.name, large.target, large.fresh) = ("1 MiB puts, fresh files", None, true);
            self.puts(&large)?;
        }
        self.puts(&PutLoad {
            name: "4 KiB puts, 256 in flight",
            figure: Figure::Operations,
            target: Some(20.0),
            shards: Arc::new(Shards::new(sizes.small_shards, 4 << 10, UNITS, COPIES)),
            in_flight: 256,
            yardstick: Some(Job {
                access: Access::WriteAndSync,
                block_bytes: 4 * KIB,
                depth: 1,
                file_bytes: sizes.synced_writes * 4 * KIB,
                bytes: sizes.synced_writes * 4 * KIB,
            }),
            fresh: false,
        })?;
        self.puts(&PutLoad {
            name: "350 KiB puts, 16 in flight",
            figure: Figure::Throughput,
            target: None,
            shards: Arc::new(Shards::new(sizes.large_shards, 350 << 10, UNITS, WIDTH)),
            in_flight: 16,
            yardstick: None,
            fresh: false,
        })?;
        Ok(())
    }

    fn puts(&mut self, load: &PutLoad) -> Result<()> {
        let (disk_path, fio_path) = (self.place.path("disk"), self.place.path("fio"));
        let (mut engine, mut fio, mut counts) = (Vec::new(), Vec::new(), Counts::default());
        for round in 0..self.sizes.rounds {
            if load.fresh {
                self.place.remove(&disk_path)?;
                self.place.remove(&fio_path)?;
            } else if round == 0 {
                self.place.lay_out(&disk_path, self.sizes.disk_bytes)?;
            }
            let disk = self.disk(&disk_path)?;
            engine.push(Sample::of(load.shards.count(), load.shards.bytes(), || {
                let puts = put_all(&disk, &load.shards, load.in_flight);
                self.runtime.block_on(puts)
            })?);
            counts += disk.watch.take();
            drop(disk);
            if let (Some(tool), Some(yardstick)) = (&self.fio, &load.yardstick) {
                if round == 0 && !load.fresh {
                    self.place.lay_out(&fio_path, yardstick.file_bytes)?;
                }
                fio.push(tool.run(&fio_path, yardstick)?);
            }
        }
        self.place.remove(&disk_path)?;
        self.place.remove(&fio_path)?;
        report::line(load.name, load.figure, &engine, &fio, load.target);
        report::writes(&counts, &engine);
        Ok(())
    }

    /// Blocks of 64 KiB, verified; fio reads the same file.
    fn reads(&mut self) -> Result<()> {
        const DEPTH: usize = 32;
        let (sizes, path) = (self.sizes, self.place.path("disk"));
        self.place.lay_out(&path, sizes.disk_bytes)?;
        let disk = self.disk(&path)?;
        let shards = Arc::new(Shards::new(sizes.large_shards, MIB as usize, UNITS, WIDTH));
        self.runtime.block_on(put_all(&disk, &shards, DEPTH))?;
        disk.watch.take();
        let job = Job {
            access: Access::RandomRead,
            block_bytes: 64 * KIB,
            depth: DEPTH,
            file_bytes: shards.bytes(),
            bytes: sizes.reads * 64 * KIB,
        };
        let (mut engine, mut fio) = (Vec::new(), Vec::new());
        for _ in 0..sizes.rounds {
            engine.push(Sample::of(sizes.reads, sizes.reads * 64 * KIB, || {
                let reads = read_blocks(&disk, &shards, sizes.reads, DEPTH);
                self.runtime.block_on(reads)
            })?);
            if let Some(tool) = &self.fio {
                fio.push(tool.run(&path, &job)?);
            }
        }
        let counts = disk.watch.take();
        drop(disk);
        self.place.remove(&path)?;
        let name = "64 KiB verified reads, 32 in flight";
        report::line(name, Figure::Throughput, &engine, &fio, Some(0.85));
        report::reads(&counts, &engine);
        Ok(())
    }

    /// All of a disk with large shards, verified as fast as it goes; fio reads the same part of the same file.
    fn verify(&mut self) -> Result<()> {
        let (sizes, path) = (self.sizes, self.place.path("disk"));
        self.place.lay_out(&path, sizes.disk_bytes)?;
        let disk = self.disk(&path)?;
        let shards = Arc::new(Shards::new(sizes.large_shards, MIB as usize, UNITS, WIDTH));
        self.runtime.block_on(put_all(&disk, &shards, 16))?;
        let job = Job {
            access: Access::Read,
            block_bytes: MIB,
            depth: 4,
            file_bytes: shards.bytes(),
            bytes: shards.bytes(),
        };
        let (mut engine, mut fio) = (Vec::new(), Vec::new());
        for _ in 0..sizes.rounds {
            let mut verified = Verified::default();
            engine.push(Sample::of(shards.count(), shards.bytes(), || {
                verified = disk.engine.verify_once();
                Ok(())
            })?);
            if verified.shards != shards.count() || verified.findings != 0 {
                return Err(format!("{} shards were put, and verified {verified:?}", shards.count()).into());
            }
            if let Some(tool) = &self.fio {
                fio.push(tool.run(&path, &job)?);
            }
        }
        drop(disk);
        self.place.remove(&path)?;
        let name = "verify a disk of 1 MiB shards";
        report::line(name, Figure::Throughput, &engine, &fio, Some(0.9));
        Ok(())
    }

    fn amplification(&mut self) -> Result<()> {
        let path = self.place.path("disk");
        self.incarnation += 1;
        let (size, extent) = self.sizes.churned;
        let disk = Disk::format(&path, size, extent, self.incarnation)?;
        println!(
            "{}",
            amplification::measure(&self.runtime, &disk, UNITS, self.sizes.turns)?
        );
        drop(disk);
        self.place.remove(&path)
    }

    fn latency(&mut self) -> Result<()> {
        let (sizes, path) = (self.sizes, self.place.path("disk"));
        let (size, extent) = sizes.read_beside;
        self.place.lay_out(&path, size)?;
        self.incarnation += 1;
        let disk = Disk::format(&path, size, extent, self.incarnation)?;
        println!("{}", latency::measure(&self.runtime, &path, disk, sizes.latency)?);
        self.place.remove(&path)
    }

    fn many_shards(&mut self, count: u64) -> Result<()> {
        self.incarnation += 1;
        let path = self.place.path("shards");
        let census = shards::measure(&self.runtime, &path, self.incarnation, count)?;
        self.place.remove(&path)?;
        let name = format!("{count} puts of 256 B");
        report::line(&name, Figure::Operations, &[census.puts], &[], None);
        report::writes(&census.counts, &[census.puts]);
        println!("    {}", census.reopened);
        if let Some(open) = census.without_summaries {
            println!("    without the summaries of its extents, opened again in {open:.2?}");
        }
        Ok(())
    }
}

fn load_average() -> String {
    let line = std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
    line.split(' ').take(2).collect::<Vec<_>>().join(" ")
}
