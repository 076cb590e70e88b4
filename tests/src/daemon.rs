//! A process of the product that a test starts, ends, and starts again.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use crate::processes::cairn_after;
use crate::tools;

/// The longest that a stop may take.
const PATIENCE: Duration = Duration::from_secs(60);

/// One process that is started again and again with the same command.
#[derive(Debug)]
pub(crate) struct Daemon {
    pub(crate) name: String,
    pub(crate) arguments: Vec<String>,
    /// What its command line begins with, so that it runs on another machine.
    prefix: Vec<String>,
    log: PathBuf,
    pub(crate) process: Option<Child>,
}

impl Daemon {
    pub(crate) fn new(name: &str, directory: &Path, prefix: Vec<String>, arguments: Vec<String>) -> Self {
        Self {
            name: name.to_owned(),
            arguments,
            prefix,
            log: directory.join(format!("{name}.log")),
            process: None,
        }
    }

    pub(crate) fn start(&mut self, further: &[&str]) {
        assert!(self.process.is_none(), "{} is still running", self.name);
        let log = File::options().create(true).append(true).open(&self.log).unwrap();
        let mut command = cairn_after(&self.prefix);
        command
            .args(&self.arguments)
            .args(further)
            .args(["--log-format", "json"]);
        let child = command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn();
        self.process = Some(child.unwrap());
    }

    pub(crate) fn is_running(&mut self) -> bool {
        self.process
            .as_mut()
            .is_some_and(|process| process.try_wait().unwrap().is_none())
    }

    pub(crate) fn kill(&mut self) {
        let mut process = self.process.take().unwrap();
        process.kill().unwrap();
        process.wait().unwrap();
    }

    pub(crate) fn terminate(&mut self) -> ExitStatus {
        let mut process = self.process.take().unwrap();
        tools::signal(process.id(), "TERM");
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(status) = process.try_wait().unwrap() {
                return status;
            }
            if Instant::now() > deadline {
                process.kill().unwrap();
                process.wait().unwrap();
                panic!(
                    "{} still runs {PATIENCE:?} after SIGTERM\n{}",
                    self.name,
                    self.log()
                );
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    pub(crate) fn log(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }
}
