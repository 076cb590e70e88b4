//! How fast ec-core codes, beside memcpy and the crate reed-solomon-erasure on the same bytes in the same run.
//!
//! `cargo bench -p cairn-benches --bench kernels [-- --full]`. One thread. Every figure counts all k+m shards: encode
//! reads k and writes m, reconstruct reads k and writes the m data shards lost (the worst case), memcpy copies k+m. The ways
//! are measured in turn, round after round, and each figure is the median round's, so that a machine that changes its pace
//! or a neighbour's burst touches all alike. A round has warm caches when k+m shards fit in them: at 64 KiB they
//! mostly do, at 1 MiB they mostly do not, and memcpy beside it tells which.

use ec_core::{Codec, Scheme};
use reed_solomon_erasure::galois_8::ReedSolomon;
use std::error::Error;
use std::hint::black_box;
use std::time::{Duration, Instant};

const WAYS: [&str; 4] = ["memcpy", "encode", "reconstruct", "rs-erasure"];

fn main() -> Result<(), Box<dyn Error>> {
    let full = std::env::args().any(|argument| argument == "--full");
    let (rounds, round) = if full {
        (51, Duration::from_millis(40))
    } else {
        (11, Duration::from_millis(3))
    };
    println!(
        "GB/s over k+m bytes, and as a share of memcpy; median of {rounds} rounds of {round:?}, one thread"
    );
    println!(
        "{:<10} {:>8} {:>8} {:>16} {:>16} {:>16}",
        "scheme", "shard", WAYS[0], WAYS[1], WAYS[2], WAYS[3]
    );
    for (data, parity) in [(4, 2), (8, 3), (12, 4)] {
        for shard_bytes in [64 * 1024, 1024 * 1024] {
            let speeds = Stripe::new(data, parity, shard_bytes)?.measure(rounds, round)?;
            print!(
                "rs({data},{parity})\t{:>5} KiB {:>8.2}",
                shard_bytes / 1024,
                speeds[0]
            );
            for speed in &speeds[1..] {
                print!(" {speed:>8.2} {:>6.2}×", speed / speeds[0]);
            }
            println!();
        }
    }
    Ok(())
}

/// A stripe and everything that is computed from it.
struct Stripe {
    codec: Codec,
    oracle: ReedSolomon,
    data: Vec<Vec<u8>>,
    parity: Vec<Vec<u8>>,
    /// As many shards as there are parity shards: where results go.
    out: Vec<Vec<u8>>,
    /// Where memcpy copies the whole stripe to.
    copy: Vec<u8>,
}

impl Stripe {
    fn new(k: usize, m: usize, shard_bytes: usize) -> Result<Stripe, Box<dyn Error>> {
        let mut state = 1u64;
        let mut random = || {
            state = state
                .wrapping_mul(6364136223846793005)
                .wrapping_add(1442695040888963407);
            (state >> 56) as u8
        };
        let data: Vec<Vec<u8>> = (0..k)
            .map(|_| (0..shard_bytes).map(|_| random()).collect())
            .collect();
        let mut parity = vec![vec![0; shard_bytes]; m];
        let codec = Codec::new(Scheme::rs(k, m)?)?;
        codec.encode(&slices(&data), &mut slices_mut(&mut parity))?;
        Ok(Stripe {
            codec,
            oracle: ReedSolomon::new(k, m)?,
            out: parity.clone(),
            copy: vec![0; (k + m) * shard_bytes],
            data,
            parity,
        })
    }

    /// Does it once in one of the ways.
    fn run(&mut self, way: usize) -> Result<(), Box<dyn Error>> {
        match WAYS[way] {
            "memcpy" => {
                let shards = self.data.iter().chain(&self.parity);
                for (shard, to) in shards.zip(self.copy.chunks_exact_mut(self.data[0].len())) {
                    to.copy_from_slice(black_box(shard));
                }
                black_box(&mut self.copy);
            }
            "encode" => self
                .codec
                .encode(&slices(black_box(&self.data)), &mut slices_mut(&mut self.out))?,
            "reconstruct" => {
                // The first m data shards are lost: every one of them has to be computed from all k sources.
                let lost: Vec<usize> = (0..self.parity.len()).collect();
                let shards = self
                    .data
                    .iter()
                    .chain(&self.parity)
                    .map(Vec::as_slice)
                    .enumerate();
                let available: Vec<(usize, &[u8])> = shards.skip(lost.len()).collect();
                self.codec
                    .reconstruct(black_box(&available), &lost, &mut slices_mut(&mut self.out))?;
            }
            _ => self.oracle.encode_sep(black_box(&self.data), &mut self.out)?,
        }
        black_box(&mut self.out);
        Ok(())
    }

    /// The speed of each way, in GB/s.
    fn measure(&mut self, rounds: usize, round: Duration) -> Result<[f64; WAYS.len()], Box<dyn Error>> {
        let mut speeds = vec![Vec::with_capacity(rounds); WAYS.len()];
        for _ in 0..rounds {
            for (way, speeds) in speeds.iter_mut().enumerate() {
                self.run(way)?;
                let start = Instant::now();
                let mut times = 0;
                while start.elapsed() < round {
                    self.run(way)?;
                    times += 1;
                }
                speeds.push((times * self.copy.len()) as f64 / start.elapsed().as_secs_f64() / 1e9);
            }
        }
        Ok(std::array::from_fn(|way| {
            speeds[way].sort_by(f64::total_cmp);
            speeds[way][rounds / 2]
        }))
    }
}

fn slices(shards: &[Vec<u8>]) -> Vec<&[u8]> {
    shards.iter().map(Vec::as_slice).collect()
}

fn slices_mut(shards: &mut [Vec<u8>]) -> Vec<&mut [u8]> {
    shards.iter_mut().map(Vec::as_mut_slice).collect()
}
