//! What a measured stretch of work did and what it cost; and what the process uses.

use crate::Result;
use rustix::time::{ClockId, clock_gettime};
use std::time::{Duration, Instant};

const MIB: f64 = (1u64 << 20) as f64;
const GIB: f64 = (1u64 << 30) as f64;

/// A measured stretch of work.
#[derive(Clone, Copy, Debug)]
pub struct Sample {
    /// How many operations it did.
    pub operations: u64,
    /// How many bytes of payload it moved.
    pub bytes: u64,
    /// How long it took.
    pub elapsed: Duration,
    /// What the processors worked for it, in user code and in the kernel.
    pub cpu: Duration,
}

impl Sample {
    /// Does some work of this process and measures it.
    pub fn of(operations: u64, bytes: u64, work: impl FnOnce() -> Result<()>) -> Result<Sample> {
        let (started, cpu) = (Instant::now(), cpu_time());
        work()?;
        Ok(Sample {
            operations,
            bytes,
            elapsed: started.elapsed(),
            cpu: cpu_time().saturating_sub(cpu),
        })
    }

    /// MiB of payload in a second.
    pub fn mib_per_second(&self) -> f64 {
        self.bytes as f64 / MIB / self.elapsed.as_secs_f64()
    }

    /// Operations in a second.
    pub fn operations_per_second(&self) -> f64 {
        self.operations as f64 / self.elapsed.as_secs_f64()
    }

    /// CPU seconds for a GiB of payload.
    pub fn cpu_seconds_per_gib(&self) -> f64 {
        self.cpu.as_secs_f64() / (self.bytes as f64 / GIB)
    }

    /// CPU microseconds for an operation.
    pub fn cpu_micros_per_operation(&self) -> f64 {
        self.cpu.as_secs_f64() * 1e6 / self.operations as f64
    }
}

/// The median of what `figure` says of these samples.
pub fn median(samples: &[Sample], figure: impl Fn(&Sample) -> f64) -> f64 {
    let mut figures: Vec<f64> = samples.iter().map(figure).collect();
    figures.sort_by(f64::total_cmp);
    figures.get(figures.len() / 2).copied().unwrap_or(f64::NAN)
}

/// What the processors worked for this process so far, the kernel's workers for its I/O included.
fn cpu_time() -> Duration {
    let time = clock_gettime(ClockId::ProcessCPUTime);
    Duration::new(time.tv_sec.unsigned_abs(), time.tv_nsec.unsigned_abs() as u32)
}

/// Memory of this process.
#[derive(Clone, Copy, Debug)]
pub struct Memory {
    /// Bytes resident now.
    pub resident: u64,
    /// The most that were.
    pub peak: u64,
}

impl Memory {
    /// Now.
    pub fn now() -> Result<Memory> {
        let status = std::fs::read_to_string("/proc/self/status")?;
        let field = |name: &str| -> Result<u64> {
            let line = status.lines().find_map(|line| line.strip_prefix(name));
            let kib = line.and_then(|line| line.trim().strip_suffix(" kB"));
            Ok(kib
                .ok_or("no such line in /proc/self/status")?
                .trim()
                .parse::<u64>()?
                * 1024)
        };
        Ok(Memory {
            resident: field("VmRSS:")?,
            peak: field("VmHWM:")?,
        })
    }
}
