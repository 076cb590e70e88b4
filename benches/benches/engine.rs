//! How fast one disk's engine is, beside fio on the same filesystem in the same run.
//!
//! `cargo bench -p cairn-benches --bench engine -- [--full] [--shards N] [--path DIRECTORY | --path DEVICE --erase]`
//!
//! Engine and fio take turns, round after round, and each figure is the median round's, so that a neighbour's burst touches
//! both alike. Both do direct I/O through the same backend, on files whose blocks were all written before, as those of a disk in
//! use were (with --full also on fresh ones). Seals of large shards are made before the clock starts: that is the gateway's
//! work. CPU is that of the whole process, load included. Files are in a directory that is removed in the end.

use cairn_benches::Result;
use cairn_benches::disk::{Disk, Place};
use cairn_benches::fio::{Access, Fio, Job};
use cairn_benches::loads::{Shards, put_all, read_blocks};
use cairn_benches::report::{self, Figure};
use cairn_benches::sample::Sample;
use cairn_benches::shards;
use cairn_benches::watched::Counts;
use std::path::{Path, PathBuf};
use std::sync::Arc;
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
    let sizes = bench.sizes;
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
    bench.puts(&large)?;
    if options.full {
        (large.name, large.target, large.fresh) = ("1 MiB puts, fresh files", None, true);
        bench.puts(&large)?;
    }
    bench.puts(&PutLoad {
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
    bench.puts(&PutLoad {
        name: "350 KiB puts, 16 in flight",
        figure: Figure::Throughput,
        target: None,
        shards: Arc::new(Shards::new(sizes.large_shards, 350 << 10, UNITS, WIDTH)),
        in_flight: 16,
        yardstick: None,
        fresh: false,
    })?;
    bench.reads()?;
    bench.many_shards(options.shards)?;
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
}

impl Options {
    fn parse() -> Result<Options> {
        let mut options = Options {
            full: false,
            path: env!("CARGO_TARGET_TMPDIR").into(),
            erase: false,
            shards: 0,
            reopen: None,
        };
        let mut arguments = std::env::args().skip(1);
        while let Some(argument) = arguments.next() {
            let mut value = || arguments.next().ok_or(format!("{argument} needs a value"));
            match argument.as_str() {
                "--full" => options.full = true,
                "--path" => options.path = value()?.into(),
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
    };
    const FULL: Sizes = Sizes {
        rounds: 7,
        large_shards: 1024,
        small_shards: 60_000,
        synced_writes: 10_000,
        reads: 32_768,
        disk_bytes: 2048 * MIB,
        extent_bytes: 64 * MIB,
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

    fn many_shards(&mut self, count: u64) -> Result<()> {
        self.incarnation += 1;
        let path = self.place.path("shards");
        let census = shards::measure(&self.runtime, &path, self.incarnation, count)?;
        self.place.remove(&path)?;
        let name = format!("{count} puts of 256 B");
        report::line(&name, Figure::Operations, &[census.puts], &[], None);
        report::writes(&census.counts, &[census.puts]);
        println!("    {}", census.reopened);
        Ok(())
    }
}

fn load_average() -> String {
    let line = std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
    line.split(' ').take(2).collect::<Vec<_>>().join(" ")
}
