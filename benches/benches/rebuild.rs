//! How fast what a lost disk held is whole again, and what clients feel of it.
//!
//! `cargo bench -p cairn-benches --bench rebuild -- [--full] [--path DIRECTORY]`
//!
//! Gateway and node are one process, the disks are files of one filesystem, and so share one device. Beside it stands what fio
//! takes, on files of that filesystem, to read the rebuilt bytes k times and then to write them once: what rebuilding must read
//! and write there at the least, and no more. Files were written all over before, as those of disks in use were. fio does nothing but
//! move bytes; rebuilding also verifies, decodes, checks and seals them, and asks the ledger what there is to do.
//!
//! A disk is given up by an operator's decision, so that the clock starts there and not when somebody notices.

use cairn_benches::clients::{Clients, Waited};
use cairn_benches::cluster::{Cluster, Rebuilt, Shape};
use cairn_benches::disk::Place;
use cairn_benches::fio::{Access, Fio, Job};
use cairn_benches::{Error, Result};
use gateway::maintenance::rebuild::pace::Wanted;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// As the binary `cairn` has it.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

const MIB: u64 = 1 << 20;
/// Data shards of a stripe, and those that are parity.
const SCHEME: (usize, usize) = (4, 2);
/// An object of a stripe of full shards.
const LARGE_BYTES: usize = 4 << 20;
const SMALL_BYTES: usize = 4 << 10;
/// fio's operations in flight, for each of its jobs.
const DEPTH: usize = 16;
/// It takes so much longer than fio at the most.
const TARGET_TIMES: f64 = 1.5;
/// Small shards a second, at the least.
const TARGET_SHARDS: f64 = 20_000.0;

/// How much is done.
struct Size {
    disk_bytes: u64,
    large_objects: u64,
    small_objects: u64,
    /// How long clients are watched alone.
    alone: Duration,
}

const SMALL: Size = Size {
    disk_bytes: 128 * MIB,
    large_objects: 24,
    small_objects: 1_500,
    alone: Duration::from_millis(1500),
};
const FULL: Size = Size {
    disk_bytes: 1536 * MIB,
    large_objects: 800,
    small_objects: 200_000,
    alone: Duration::from_secs(20),
};

fn main() -> Result<()> {
    let (size, path) = options()?;
    let place = Place::at(&path, false)?;
    let fio = Fio::find();
    println!(
        "rebuild beside {}, in {}; load average {}",
        fio.as_ref()
            .map_or("nothing, as fio is not there".into(), Fio::name),
        path.display(),
        std::fs::read_to_string("/proc/loadavg")?.trim()
    );
    large(&place, &size, fio.as_ref())?;
    small(&place, &size)?;
    println!(
        "load average at the end {}",
        std::fs::read_to_string("/proc/loadavg")?.trim()
    );
    Ok(())
}

fn options() -> Result<(Size, PathBuf)> {
    let (mut size, mut path) = (SMALL, PathBuf::from(env!("CARGO_TARGET_TMPDIR")));
    let mut arguments = std::env::args().skip(1);
    while let Some(argument) = arguments.next() {
        match argument.as_str() {
            "--full" => size = FULL,
            "--path" => path = arguments.next().ok_or("--path needs a value")?.into(),
            // What cargo adds.
            "--bench" => {}
            other => return Err(format!("{other} is no option of this benchmark").into()),
        }
    }
    Ok((size, path))
}

/// A cluster on files of `place` that were written all over.
fn cluster(place: &Place, directory: &str, shape: &Shape) -> Result<(Cluster, PathBuf)> {
    let directory = place.path(directory);
    std::fs::create_dir(&directory)?;
    let name = |number: usize| format!("disk-{number}");
    for number in 0..shape.disks as usize {
        place.lay_out(&directory.join(name(number)), shape.disk_bytes)?;
    }
    Ok((Cluster::start(&directory, shape, name)?, directory))
}

/// Shards of 1 MiB.
fn large(place: &Place, size: &Size, fio: Option<&Fio>) -> Result<()> {
    let shape = Shape {
        scheme: SCHEME,
        disks: 9,
        disk_bytes: size.disk_bytes,
    };
    let (cluster, directory) = cluster(place, "large", &shape)?;
    cluster.fill(size.large_objects, LARGE_BYTES, 8)?;

    let clients = Clients::start(&cluster, size.large_objects, LARGE_BYTES as u64);
    std::thread::sleep(size.alone / 4);
    clients.begin();
    std::thread::sleep(size.alone);
    let alone = clients.waited();
    clients.begin();
    let polite = cluster.lose(0)?;
    let felt_of_polite = clients.waited();
    want(&cluster, Wanted::Bandwidth(1 << 40))?;
    clients.begin();
    let rude = cluster.lose(1)?;
    let felt_of_rude = clients.waited();
    clients.stop(&cluster)?;
    want(&cluster, Wanted::Auto)?;
    // Until nobody is waited for any more.
    std::thread::sleep(size.alone / 4);
    let quiet = cluster.lose(2)?;
    cluster.stop();
    std::fs::remove_dir_all(&directory)?;

    println!("1 MiB shards, rs({},{})", SCHEME.0, SCHEME.1);
    show("nobody waits", &quiet);
    if let Some(fio) = fio {
        let took = fio_takes(place, fio, quiet.bytes)?;
        let times = quiet.elapsed.as_secs_f64() / took.as_secs_f64();
        println!(
            "    fio reads them {} times and writes them once in {took:.2?}: {times:.2}× of that (target at most {TARGET_TIMES}×)",
            SCHEME.0
        );
    }
    show("beside clients, as they allow", &polite);
    show("beside clients, at full speed", &rude);
    for (what, waited) in [
        ("alone", alone),
        ("rebuilding as they allow", felt_of_polite),
        ("rebuilding at full speed", felt_of_rude),
    ] {
        println!("    clients {what:<25} {}", describe(&waited));
    }
    Ok(())
}

/// Objects of 4 KiB, which are copied.
fn small(place: &Place, size: &Size) -> Result<()> {
    let shape = Shape {
        scheme: SCHEME,
        disks: 6,
        disk_bytes: size.disk_bytes,
    };
    let (cluster, directory) = cluster(place, "small", &shape)?;
    cluster.fill(size.small_objects, SMALL_BYTES, 256)?;
    std::thread::sleep(size.alone / 4);
    let rebuilt = cluster.lose(0)?;
    cluster.stop();
    std::fs::remove_dir_all(&directory)?;
    println!("4 KiB objects, {} of them, replica(3)", size.small_objects);
    show("nobody waits", &rebuilt);
    let rate = rebuilt.shards as f64 / rebuilt.elapsed.as_secs_f64();
    println!("    {rate:.0} shards/s (target at least {TARGET_SHARDS:.0})");
    Ok(())
}

fn want(cluster: &Cluster, wanted: Wanted) -> Result<()> {
    let objects = &cluster.gateway().objects;
    cluster
        .runtime()
        .block_on(objects.want_pace(wanted, None))
        .map_err(Error::from)
}

/// How long fio takes to read so many bytes k times, and to write them once.
fn fio_takes(place: &Place, fio: &Fio, bytes: u64) -> Result<Duration> {
    let path = place.path("fio");
    let file_bytes = bytes.next_multiple_of(MIB);
    place.lay_out(&path, file_bytes)?;
    let run = |path: &Path, access, times: u64| {
        let job = Job {
            access,
            block_bytes: MIB,
            depth: DEPTH,
            file_bytes,
            bytes: file_bytes * times,
        };
        fio.run(path, &job)
    };
    let read = run(&path, Access::Read, SCHEME.0 as u64)?;
    let written = run(&path, Access::Write, 1)?;
    place.remove(&path)?;
    Ok(read.elapsed + written.elapsed)
}

fn show(what: &str, rebuilt: &Rebuilt) {
    let mib = rebuilt.bytes as f64 / MIB as f64;
    let error = |error: Option<f64>| error.map_or("not told".into(), |e| format!("{:+.0} %", 100.0 * e));
    println!(
        "    {what}: {} shards, {mib:.0} MiB in {:.2?}, {:.0} MiB/s; time left told wrongly by {} after a tenth, {} after half (target 20 %)",
        rebuilt.shards,
        rebuilt.elapsed,
        mib / rebuilt.elapsed.as_secs_f64(),
        error(rebuilt.eta_errors[0]),
        error(rebuilt.eta_errors[1]),
    );
}

fn describe(waited: &Waited) -> String {
    let ms = |times: [Duration; 2]| {
        times
            .map(|time| format!("{:.2}", time.as_secs_f64() * 1e3))
            .join(" / ")
    };
    format!(
        "64 KiB reads {} ms, 4 KiB writes {} ms (median / p99, {} requests)",
        ms(waited.reads),
        ms(waited.writes),
        waited.requests
    )
}
