//! A `cairn node` of its own for a test, on disks that the test made.
//!
//! Invariants: dropping it ends its process; a line of WARN or ERROR that the test did not allow fails the test, and so
//! does whatever is not a log line (a panic).

use std::fs::File;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;
use storage_node::http_client::HttpClient;
use storage_node::node::{FormatOptions, format_disk};
use storage_node::protocol::{ClusterId, DiskId};
use tempfile::TempDir;

use crate::cluster::{binary, free_address, unexpected_lines};
use crate::{http, tools};

/// The longest that a start or a stop may take.
const PATIENCE: Duration = Duration::from_secs(60);
const TOOL_TIME_MAX: Duration = Duration::from_secs(120);
/// The cluster of all disks of the tests.
pub const CLUSTER: ClusterId = ClusterId(0xca12);
/// The incarnation of all disks of the tests.
pub const INCARNATION: u64 = 1;

/// Formats a disk of the tests' cluster.
pub fn format(path: &Path, bytes: u64, disk: DiskId) {
    let options = FormatOptions {
        cluster: CLUSTER,
        disk,
        incarnation: INCARNATION,
        extent_size: None,
        overwrite: false,
    };
    format_disk(path, bytes, &options).unwrap();
}

/// What `cairn disk verify --json` says of a disk that nobody serves, with its exit code.
pub fn verify(disk: &Path) -> (i32, Value) {
    let mut command = Command::new(binary());
    command
        .args(["disk", "verify", "--json"])
        .arg(disk)
        .stdin(Stdio::null());
    let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn();
    let output = tools::wait_with_output(child.unwrap(), TOOL_TIME_MAX);
    let errors = String::from_utf8_lossy(&output.stderr);
    let found = serde_json::from_slice(&output.stdout)
        .unwrap_or_else(|e| panic!("{}: {e}: {errors}", disk.display()));
    (output.status.code().unwrap(), found)
}

/// A running (or killed) `cairn node`.
#[derive(Debug)]
pub struct NodeProcess {
    disks: Vec<PathBuf>,
    arguments: Vec<String>,
    address: SocketAddr,
    directory: TempDir,
    process: Option<Child>,
    allowed: Vec<String>,
}

impl NodeProcess {
    /// Serves these disks.
    pub fn start(disks: &[&Path]) -> Self {
        Self::start_with(disks, &[], &[])
    }

    /// As `start`, with further arguments, and log lines that are expected.
    pub fn start_with(disks: &[&Path], arguments: &[&str], allowed: &[&str]) -> Self {
        let mut node = Self::prepare(disks, arguments);
        allowed.iter().for_each(|text| node.allow(text));
        node.restart();
        node
    }

    /// Runs `cairn node` with further arguments until it stops by itself.
    pub fn start_refused(disks: &[&Path], arguments: &[&str]) -> Output {
        let mut command = Self::prepare(disks, arguments).command();
        let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn();
        tools::wait_with_output(child.unwrap(), PATIENCE)
    }

    fn prepare(disks: &[&Path], arguments: &[&str]) -> Self {
        Self {
            disks: disks.iter().map(|path| path.to_path_buf()).collect(),
            arguments: arguments.iter().map(|&argument| argument.to_owned()).collect(),
            address: free_address(),
            directory: tempfile::Builder::new().prefix("cairn-node-").tempdir().unwrap(),
            process: None,
            allowed: Vec::new(),
        }
    }

    fn command(&self) -> Command {
        let mut command = Command::new(binary());
        command.arg("node").args(&self.arguments);
        for disk in &self.disks {
            command.arg("--disk").arg(disk);
        }
        command.arg("--listen").arg(self.address.to_string());
        command.args(["--log-format", "json"]).stdin(Stdio::null());
        command
    }

    /// Starts the process again, and waits until it answers: its disks have recovered then.
    pub fn restart(&mut self) {
        self.spawn();
        let deadline = Instant::now() + PATIENCE;
        while !self.answers() {
            if let Some(status) = self.process.as_mut().unwrap().try_wait().unwrap() {
                self.process = None;
                panic!("the node stopped before it was ready: {status}\n{}", self.log());
            }
            assert!(Instant::now() < deadline, "not ready\n{}", self.log());
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Starts the process again, and does not wait until its disks have recovered.
    pub fn spawn(&mut self) {
        assert!(self.process.is_none(), "it is still running");
        let log = File::options()
            .create(true)
            .append(true)
            .open(self.directory.path().join("log"))
            .unwrap();
        let child = self.command().stdout(Stdio::null()).stderr(log).spawn();
        self.process = Some(child.unwrap_or_else(|error| panic!("starting {}: {error}", binary().display())));
    }

    /// Whether it serves. The listener is bound before disks are opened, so a connection alone says nothing.
    fn answers(&self) -> bool {
        let host = [("host".to_owned(), self.address.to_string())];
        http::exchange(self.address, "GET", "/v1/status", &host, &[]).is_ok_and(|answer| answer.status == 200)
    }

    /// A client with connections of its own.
    pub fn client(&self) -> HttpClient {
        HttpClient::new(&format!("http://{}", self.address)).unwrap()
    }

    /// Ends the process at once.
    pub fn kill(&mut self) {
        let mut process = self.process.take().unwrap();
        process.kill().unwrap();
        process.wait().unwrap();
    }

    /// Asks the process to stop, and waits until it did.
    pub fn terminate(&mut self) -> ExitStatus {
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
                panic!("still running {PATIENCE:?} after SIGTERM\n{}", self.log());
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// Log lines that contain this text are expected. A panic never is.
    pub fn allow(&mut self, text: &str) {
        self.allowed.push(text.to_owned());
    }

    /// What the process has logged so far.
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.directory.path().join("log")).unwrap_or_default()
    }
}

impl Drop for NodeProcess {
    fn drop(&mut self) {
        if let Some(mut process) = self.process.take() {
            // It may have ended by itself; its log says so below.
            let _ended = process.kill();
            let _status = process.wait();
        }
        let log = self.log();
        if std::thread::panicking() {
            let last: Vec<&str> = log.lines().rev().take(40).collect();
            eprintln!("the last lines of the log, latest first:\n{}", last.join("\n"));
            return;
        }
        let unexpected = unexpected_lines(&log, &self.allowed);
        assert!(
            unexpected.is_empty(),
            "unexpected in the log:\n{}",
            unexpected.join("\n")
        );
    }
}
