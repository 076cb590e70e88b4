//! What a device and the kernel offer, and what Cairn would make of it: before a disk is given to it, or when it is slow.

use super::image;
use crate::device::{self, AlignedBuf, BLOCK, Backend, DeviceError, DiskFile};
use crate::engine::{Trace, find_superblock};
use crate::protocol::{ClusterId, DiskId};
use serde::Serialize;
use std::fs;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};

/// Whether something works, and why not.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Trial {
    /// It works.
    pub works: bool,
    /// Why not.
    pub problem: Option<String>,
}

/// Where a file is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Filesystem {
    /// Its type.
    pub kind: String,
    /// Where it is mounted.
    pub mount: String,
    /// What is mounted.
    pub source: String,
    /// Bytes that are free on it.
    pub free_bytes: Option<u64>,
    /// Bytes of it that the file takes.
    pub taken_bytes: u64,
}

/// A block device, as the kernel describes it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct BlockFacts {
    /// Its name.
    pub name: String,
    /// Bytes of a logical block.
    pub logical_block_bytes: Option<u64>,
    /// Bytes of a physical block.
    pub physical_block_bytes: Option<u64>,
    /// Whether it turns.
    pub rotational: Option<bool>,
    /// `write back` (flushes matter) or `write through`.
    pub write_cache: Option<String>,
    /// Whether a single write can be forced to be durable.
    pub fua: Option<bool>,
    /// The I/O scheduler in use.
    pub scheduler: Option<String>,
}

/// A limit of this process; none is no limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Limit {
    /// What holds now.
    pub soft_bytes: Option<u64>,
    /// What it may be raised to.
    pub hard_bytes: Option<u64>,
}

/// What is known about a device without writing to it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Probe {
    /// `file` or `block device`.
    pub kind: &'static str,
    /// Its size, in whole blocks.
    pub size_bytes: u64,
    /// Where it is, if it is a file.
    pub filesystem: Option<Filesystem>,
    /// The block device that it is, or that is under the filesystem.
    pub block: Option<BlockFacts>,
    /// The kernel.
    pub kernel: Option<String>,
    /// O_DIRECT: opened, and a block read.
    pub direct: Trial,
    /// io_uring: a ring made, with the operations that are needed.
    pub io_uring: Trial,
    /// RLIMIT_MEMLOCK.
    pub memlock: Option<Limit>,
    /// What serving it would use.
    pub backend: String,
    /// `none`, `damaged` or `cairn`.
    pub superblock: &'static str,
    /// Whose disk it is.
    pub disk: Option<DiskId>,
    /// And of which cluster.
    pub cluster: Option<ClusterId>,
    /// And in which life.
    pub incarnation: Option<u64>,
    /// Its size when it was formatted.
    pub formatted_bytes: Option<u64>,
}

/// Looks at a device. Blocks. Writes nothing, and refuses one that is in use.
pub fn probe(path: &Path) -> Result<Probe, DeviceError> {
    let file = image::open_locked(path)?;
    let gone = |e: std::io::Error| {
        DeviceError::new(device::DeviceErrorKind::Gone, format!("{}: {e}", path.display()))
    };
    let metadata = file.file().metadata().map_err(gone)?;
    let is_block = file.is_block_device();
    let device = device::start(file.clone(), Backend::Auto)?;
    let trace = find_superblock(&*device);
    let found = match &trace {
        Trace::Disk(superblock) => Some(superblock),
        _ => None,
    };
    Ok(Probe {
        kind: if is_block { "block device" } else { "file" },
        size_bytes: file.size(),
        filesystem: if is_block {
            None
        } else {
            filesystem(&metadata, file.file())
        },
        block: block_facts(if is_block { metadata.rdev() } else { metadata.dev() }),
        kernel: read_line("/proc/sys/kernel/osrelease"),
        direct: try_direct(&file),
        io_uring: try_uring(),
        memlock: memlock(),
        backend: device.info().backend.clone(),
        superblock: match trace {
            Trace::None => "none",
            Trace::Damaged => "damaged",
            Trace::Disk(_) => "cairn",
        },
        disk: found.map(|s| s.disk),
        cluster: found.map(|s| s.cluster),
        incarnation: found.map(|s| s.incarnation),
        formatted_bytes: found.map(|s| s.device_size),
    })
}

fn trial(result: Result<(), String>) -> Trial {
    Trial {
        works: result.is_ok(),
        problem: result.err(),
    }
}

fn try_direct(file: &DiskFile) -> Trial {
    if !file.is_direct() {
        return trial(Err("the filesystem refuses it".into()));
    }
    if file.size() < BLOCK as u64 {
        return trial(Ok(()));
    }
    let read = file.file().read_exact_at(&mut AlignedBuf::zeroed(BLOCK), 0);
    trial(read.map_err(|e| e.to_string()))
}

fn try_uring() -> Trial {
    let explain = |error: std::io::Error| match read_line("/proc/sys/kernel/io_uring_disabled").as_deref() {
        Some("1" | "2") => format!("{error} (kernel.io_uring_disabled is set)"),
        _ if error.raw_os_error() == Some(libc::EPERM) => format!("{error} (a seccomp profile, usually)"),
        _ => error.to_string(),
    };
    trial(device::check_uring().map_err(explain))
}

fn read_line(path: impl AsRef<Path>) -> Option<String> {
    let text = fs::read_to_string(path).ok()?;
    Some(text.lines().next()?.trim().to_string())
}

fn memlock() -> Option<Limit> {
    let limits = fs::read_to_string("/proc/self/limits").ok()?;
    let line = limits.lines().find_map(|l| l.strip_prefix("Max locked memory"))?;
    let mut fields = line.split_whitespace().map(|field| field.parse().ok());
    Some(Limit {
        soft_bytes: fields.next()?,
        hard_bytes: fields.next()?,
    })
}

/// `MAJOR:MINOR` of a device number, as Linux splits it.
fn device_number(number: u64) -> String {
    let major = (number >> 32) & 0xffff_f000 | (number >> 8) & 0xfff;
    let minor = (number >> 12) & 0xffff_ff00 | number & 0xff;
    format!("{major}:{minor}")
}

fn filesystem(metadata: &fs::Metadata, file: &fs::File) -> Option<Filesystem> {
    let mounts = fs::read_to_string("/proc/self/mountinfo").ok()?;
    let number = device_number(metadata.dev());
    // ID PARENT MAJOR:MINOR ROOT MOUNT OPTIONS … - TYPE SOURCE SUPER-OPTIONS
    let line = mounts
        .lines()
        .find(|line| line.split(' ').nth(2) == Some(&number))?;
    let (before, after) = line.split_once(" - ")?;
    let mut after = after.split(' ');
    let space = rustix::fs::fstatvfs(file).ok();
    Some(Filesystem {
        mount: before.split(' ').nth(4)?.to_string(),
        kind: after.next()?.to_string(),
        source: after.next()?.to_string(),
        free_bytes: space.map(|s| s.f_bavail.saturating_mul(s.f_frsize)),
        taken_bytes: metadata.blocks().saturating_mul(512),
    })
}

fn block_facts(number: u64) -> Option<BlockFacts> {
    let device = fs::canonicalize(PathBuf::from("/sys/dev/block").join(device_number(number))).ok()?;
    // A partition has no queue of its own.
    let queue = [device.join("queue"), device.parent()?.join("queue")]
        .into_iter()
        .find(|queue| queue.is_dir())?;
    let field = |name: &str| read_line(queue.join(name));
    let number = |name: &str| field(name)?.parse::<u64>().ok();
    let scheduler = field("scheduler").map(|all| match all.split(['[', ']']).nth(1) {
        Some(chosen) => chosen.to_string(),
        None => all,
    });
    Some(BlockFacts {
        name: device.file_name()?.to_string_lossy().into_owned(),
        logical_block_bytes: number("logical_block_size"),
        physical_block_bytes: number("physical_block_size"),
        rotational: number("rotational").map(|n| n == 1),
        write_cache: field("write_cache"),
        fua: number("fua").map(|n| n == 1),
        scheduler,
    })
}
