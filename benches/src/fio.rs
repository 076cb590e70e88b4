//! fio, the yardstick: one job run as a process of its own, and its JSON output read.
//!
//! Jobs are direct, on the file that is named, with the backend that the engine has, so that both ask the same of the same
//! filesystem. A file that is as large as the job is written in place; one that is not there is made, with its space granted first.

use crate::Result;
use crate::sample::Sample;
use serde_json::Value;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

/// A fio that is installed.
#[derive(Debug)]
pub struct Fio {
    version: String,
    ioengine: &'static str,
}

/// What a job does with each block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// Writes one after another, and one fsync at the end.
    Write,
    /// Writes one after another, with an fdatasync after each.
    WriteAndSync,
    /// Reads one after another.
    Read,
    /// Reads anywhere.
    RandomRead,
}

/// One job.
#[derive(Clone, Copy, Debug)]
pub struct Job {
    /// What is done.
    pub access: Access,
    /// Bytes of one operation.
    pub block_bytes: u64,
    /// Operations in flight.
    pub depth: usize,
    /// The part of the file, from its start, that is used.
    pub file_bytes: u64,
    /// How much is read or written in all.
    pub bytes: u64,
}

impl Fio {
    /// The one that is installed, if there is one.
    pub fn find() -> Option<Fio> {
        let output = Command::new("fio").arg("--version").output().ok()?;
        let version = String::from_utf8_lossy(&output.stdout).trim().to_string();
        output.status.success().then_some(Fio {
            version,
            ioengine: "io_uring",
        })
    }

    /// Where the engine could not have io_uring, fio has Linux's older asynchronous I/O.
    pub fn like(self, backend: &str) -> Fio {
        let ioengine = match backend.starts_with("io_uring") {
            true => "io_uring",
            false => "libaio",
        };
        Fio { ioengine, ..self }
    }

    /// What it is, for people.
    pub fn name(&self) -> String {
        format!("{} ({})", self.version, self.ioengine)
    }

    /// Runs a job on a file or device.
    pub fn run(&self, path: &Path, job: &Job) -> Result<Sample> {
        let mut command = Command::new("fio");
        command
            .args([
                "--name=cairn",
                "--output-format=json",
                "--direct=1",
                "--overwrite=1",
            ])
            .args(["--randrepeat=0", "--norandommap=1"])
            .arg(format!("--filename={}", path.display()))
            .arg(format!("--ioengine={}", self.ioengine))
            .arg(format!("--bs={}", job.block_bytes))
            .arg(format!("--iodepth={}", job.depth))
            .arg(format!("--size={}", job.file_bytes))
            .arg(format!("--io_size={}", job.bytes))
            .args(match job.access {
                Access::Write => ["--rw=write", "--end_fsync=1"],
                Access::WriteAndSync => ["--rw=write", "--fdatasync=1"],
                Access::Read => ["--rw=read", "--readonly"],
                Access::RandomRead => ["--rw=randread", "--readonly"],
            });
        let output = command.output()?;
        if !output.status.success() {
            let words = String::from_utf8_lossy(&output.stderr);
            return Err(format!("fio failed: {}", words.trim()).into());
        }
        let direction = match job.access {
            Access::Read | Access::RandomRead => "read",
            _ => "write",
        };
        parse(&String::from_utf8_lossy(&output.stdout), direction)
    }
}

/// What fio says of its one job. It may print a line or two before its JSON.
fn parse(output: &str, direction: &str) -> Result<Sample> {
    let json = output.find('{').map(|start| &output[start..]);
    let report: Value = serde_json::from_str(json.ok_or("fio printed no JSON")?)?;
    let job = &report["jobs"][0];
    let number = |value: &Value, what: &str| {
        let lacks = || format!("fio's report lacks {what}");
        value[what].as_f64().ok_or_else(lacks)
    };
    if number(job, "error")? != 0.0 {
        return Err(format!("fio's job failed with error {}", job["error"]).into());
    }
    let done = &job[direction];
    let milliseconds = |value: f64| Duration::from_secs_f64(value / 1e3);
    let busy = (number(job, "usr_cpu")? + number(job, "sys_cpu")?) / 100.0;
    Ok(Sample {
        operations: number(done, "total_ios")? as u64,
        bytes: number(done, "io_bytes")? as u64,
        elapsed: milliseconds(number(done, "runtime")?),
        cpu: milliseconds(number(job, "job_runtime")? * busy),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_report_is_read() {
        let output = r#"fio: a remark
            {"fio version": "fio-3.33", "jobs": [{"error": 0, "job_runtime": 700, "usr_cpu": 0.5, "sys_cpu": 5.5,
            "read": {"io_bytes": 1073741824, "total_ios": 16384, "runtime": 701}}]}"#;
        let sample = parse(output, "read").unwrap();
        assert_eq!((sample.operations, sample.bytes), (16384, 1 << 30));
        assert_eq!(sample.elapsed, Duration::from_millis(701));
        assert_eq!(sample.cpu, Duration::from_millis(42));
    }

    #[test]
    fn a_failed_job_is_an_error() {
        assert!(parse(r#"{"jobs": [{"error": 5}]}"#, "read").is_err());
        assert!(parse("no JSON", "read").is_err());
        assert!(parse("{}", "write").is_err());
    }
}
