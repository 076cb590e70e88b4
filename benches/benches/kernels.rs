//! How fast ec-core codes on each of its kernels, beside the coders that others use and memcpy, on the same bytes in the same
//! run.
//!
//! `cargo bench -p cairn-benches --bench kernels -- [--full] ['rs(4,2)' …]`, by default for four schemes. One thread. Every figure counts all k+m shards: encode reads
//! k and writes m, decode reads k and writes the m data shards lost (the worst case), memcpy copies k+m. All are measured in
//! turn, round after round, and each figure is the median round's, so that a machine that changes its pace or a neighbour's
//! burst touches all alike. Caches are as warm as k+m shards fit in them; memcpy beside it tells how warm that is.

use cairn_benches::Result;
use cairn_benches::peers::{self, Peer, Shard, Stripe};
use ec_core::md5::{self, Md5};
use ec_core::seal::{BLOCK_BYTES, Sealing};
use ec_core::{Codec, Kernel, Scheme};
use std::hint::black_box;
use std::time::{Duration, Instant};

/// The first column of every line.
const MEMCPY: &str = "memcpy";
const ERASURE: &str = "reed-solomon-erasure";

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let asked = arguments.iter().filter(|argument| argument.starts_with("rs("));
    let mut schemes = asked
        .map(|argument| argument.parse())
        .collect::<std::result::Result<Vec<Scheme>, _>>()?;
    if schemes.is_empty() {
        for (k, m) in [(4, 2), (8, 3), (12, 4), (17, 3)] {
            schemes.push(Scheme::rs(k, m)?);
        }
    }
    let (rounds, round) = match arguments.iter().any(|argument| argument == "--full") {
        true => (31, Duration::from_millis(20)),
        false => (7, Duration::from_millis(2)),
    };
    println!("GB/s over k+m bytes; median of {rounds} rounds of {round:?}, one thread");
    println!("×memcpy, ×rs-e: beside memcpy and {ERASURE} in the same run; dec/enc: decode beside encode");
    println!(
        "{MEMCPY} of 256 MiB, from and to memory: {:.2} GB/s",
        memory_speed()?
    );
    for scheme in schemes {
        let (k, m) = (scheme.data_shards(), scheme.parity_shards());
        for shard_bytes in [64 * 1024, 1024 * 1024] {
            println!();
            println!(
                "{:<26} {:>8} {:>8} {:>7} {:>8} {:>8} {:>7}",
                format!("{scheme} {} KiB", shard_bytes / 1024),
                "encode",
                "×memcpy",
                "×rs-e",
                "decode",
                "dec/enc",
                "×rs-e"
            );
            let lines = measure(k, m, shard_bytes, rounds, round)?;
            let of = |name: &str| lines.iter().find(|line| line.name == name);
            let memcpy = of(MEMCPY).map_or(f64::NAN, |line| line.encode);
            let erasure = of(ERASURE).map_or((f64::NAN, f64::NAN), |line| (line.encode, line.decode));
            for line in &lines {
                print!("{:<26} {:>8.2}", line.name, line.encode);
                if line.name == MEMCPY {
                    println!();
                    continue;
                }
                println!(
                    " {:>7.2}× {:>6.2}× {:>8.2} {:>8.2} {:>6.2}×",
                    line.encode / memcpy,
                    line.encode / erasure.0,
                    line.decode,
                    line.decode / line.encode,
                    line.decode / erasure.1
                );
            }
        }
    }
    println!();
    println!("repair of one lost data shard of 1 MiB, fastest kernel");
    println!("{:<26} {:>8} {:>14}", "scheme", "reads", "GB/s rebuilt");
    for scheme in [Scheme::rs(12, 4)?, Scheme::lrc(12, 2, 2)?] {
        let (reads, speed) = repair(scheme, rounds, round)?;
        println!("{:<26} {reads:>8} {speed:>14.2}", scheme.to_string());
    }
    println!();
    println!("MD5 of 64 KiB of each of 16, 8 and 2 streams; seals of 1 MiB, block by block; GB/s");
    for kernel in Kernel::supported() {
        print!("{:<26}", format!("md5 {kernel}"));
        for streams in [16, 8, 2] {
            print!(" {:>8.2}", md5_speed(kernel, streams, rounds, round)?);
        }
        println!();
    }
    println!(
        "{:<26} {:>8.2}",
        "seal (CRC-32, BLAKE3)",
        seal_speed(rounds, round)?
    );
    Ok(())
}

/// GB/s of MD5 of so many streams.
fn md5_speed(kernel: Kernel, count: u8, rounds: usize, round: Duration) -> Result<f64> {
    let contents: Vec<Vec<u8>> = (0..count).map(|n| vec![n; 64 << 10]).collect();
    let mut streams = vec![Md5::new(); contents.len()];
    let mut speeds = Vec::with_capacity(rounds);
    for _ in 0..rounds {
        speeds.push(speed(contents.len() * contents[0].len(), round, || {
            let mut together: Vec<(&mut Md5, &[u8])> = streams
                .iter_mut()
                .zip(&contents)
                .map(|(md5, content)| (md5, &content[..]))
                .collect();
            md5::update_many(kernel, black_box(&mut together));
            Ok(())
        })?);
    }
    Ok(median(speeds))
}

/// GB/s of sealing a shard.
fn seal_speed(rounds: usize, round: Duration) -> Result<f64> {
    let shard = vec![7; 1 << 20];
    let mut speeds = Vec::with_capacity(rounds);
    for _ in 0..rounds {
        speeds.push(speed(shard.len(), round, || {
            let mut sealing = Sealing::new(1);
            for block in black_box(&shard).chunks(BLOCK_BYTES as usize) {
                sealing.take_in(block);
            }
            black_box(sealing.finish());
            Ok(())
        })?);
    }
    Ok(median(speeds))
}

/// How many shards it takes to rebuild data shard 0, and how fast that is in bytes of it.
fn repair(scheme: Scheme, rounds: usize, round: Duration) -> Result<(usize, f64)> {
    let codec = Codec::new(scheme, Kernel::best())?;
    let stripe = Stripe::new(scheme.total_shards(), 1, 1 << 20);
    let mut out = stripe.parity;
    let plan = codec.plan(&[0], (1..scheme.total_shards()).map(|i| (i, 1)))?;
    let sources: Vec<&[u8]> = plan.sources().iter().map(|&i| stripe.data[i].as_ref()).collect();
    let mut speeds = Vec::with_capacity(rounds);
    for _ in 0..rounds {
        speeds.push(speed(1 << 20, round, || {
            Ok(plan.compute(black_box(&sources), &mut [black_box(out[0].as_mut())])?)
        })?);
    }
    Ok((sources.len(), median(speeds)))
}

/// GB/s of copying more than caches hold.
fn memory_speed() -> Result<f64> {
    let from = vec![1u8; 256 << 20];
    let mut to = vec![0; from.len()];
    speed(from.len(), Duration::from_millis(300), || {
        black_box(&mut to).copy_from_slice(black_box(&from));
        Ok(())
    })
}

/// Speeds in GB/s.
struct Line {
    name: String,
    encode: f64,
    decode: f64,
}

fn measure(k: usize, m: usize, shard_bytes: usize, rounds: usize, round: Duration) -> Result<Vec<Line>> {
    let mut stripe = Stripe::new(k, m, shard_bytes);
    let mut out = stripe.parity.clone();
    let mut copy = Shard::new(&vec![0; stripe.bytes()]);
    let mut peers = peers::all(k, m, shard_bytes)?;
    verify(&mut peers, &mut stripe, &mut out)?;

    let mut copies = Vec::with_capacity(rounds);
    let mut speeds = vec![(Vec::with_capacity(rounds), Vec::with_capacity(rounds)); peers.len()];
    for _ in 0..rounds {
        copies.push(speed(stripe.bytes(), round, || {
            let shards = stripe.data.iter().chain(&stripe.parity);
            for (shard, to) in shards.zip(copy.as_mut().chunks_exact_mut(shard_bytes)) {
                to.copy_from_slice(black_box(shard.as_ref()));
            }
            black_box(&mut copy);
            Ok(())
        })?);
        for (peer, (encodes, decodes)) in peers.iter_mut().zip(&mut speeds) {
            encodes.push(speed(stripe.bytes(), round, || {
                peer.encode(black_box(&stripe.data), black_box(&mut out))
            })?);
            decodes.push(speed(stripe.bytes(), round, || {
                peer.decode(black_box(&stripe), black_box(&mut out))
            })?);
        }
    }
    let mut lines = vec![Line {
        name: MEMCPY.into(),
        encode: median(copies),
        decode: f64::NAN,
    }];
    lines.extend(peers.iter().zip(speeds).map(|(peer, (encodes, decodes))| Line {
        name: peer.name(),
        encode: median(encodes),
        decode: median(decodes),
    }));
    Ok(lines)
}

/// Those whose parity is to be Cairn's are not measured if they compute something else.
fn verify(peers: &mut [Box<dyn Peer>], stripe: &mut Stripe, out: &mut [Shard]) -> Result<()> {
    peers[0].encode(&stripe.data, &mut stripe.parity)?;
    for peer in peers.iter_mut().filter(|peer| peer.is_compatible()) {
        out.iter_mut().for_each(|shard| shard.as_mut().fill(0));
        peer.encode(&stripe.data, out)?;
        assert!(
            equal(out, &stripe.parity),
            "{} encodes something else",
            peer.name()
        );
        if peer.name() != ERASURE {
            peer.decode(stripe, out)?;
            assert!(
                equal(out, &stripe.data[..out.len()]),
                "{} decodes something else",
                peer.name()
            );
        }
    }
    Ok(())
}

/// GB/s of doing it over and over, for a round, after once to warm up.
fn speed(bytes: usize, round: Duration, mut once: impl FnMut() -> Result<()>) -> Result<f64> {
    once()?;
    let start = Instant::now();
    let mut times = 0;
    while start.elapsed() < round {
        once()?;
        times += 1;
    }
    Ok((times * bytes) as f64 / start.elapsed().as_secs_f64() / 1e9)
}

fn median(mut speeds: Vec<f64>) -> f64 {
    speeds.sort_by(f64::total_cmp);
    speeds[speeds.len() / 2]
}

fn equal(a: &[Shard], b: &[Shard]) -> bool {
    a.len() == b.len() && a.iter().zip(b).all(|(a, b)| a.as_ref() == b.as_ref())
}
