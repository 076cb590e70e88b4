//! A Cairn of its own for every test: the real binary, on free ports, in a temporary directory.
//!
//! Invariants: dropping a cluster ends its process and removes its directory; a line of WARN or ERROR that the test
//! did not allow fails the test, and so does whatever is not a log line (a panic).

use std::fs::File;
use std::io;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;
use tempfile::TempDir;

use crate::client::Client;
use crate::http;
use crate::setting;
use crate::sigv4::Keys;
use crate::tools;

/// The longest that a start may take. Recovery reads the disks, and the machine may be busy with other tests.
const READY_SECONDS_MAX: u64 = 60;
/// Ports are drawn below those that the kernel gives to outgoing connections.
const PORTS: std::ops::Range<u16> = 10_000..32_000;

/// How a cluster is started.
#[derive(Clone, Debug)]
pub struct Options {
    /// How many disks.
    pub disks: usize,
    /// As on the command line.
    pub scheme: String,
    /// As on the command line.
    pub disk_size: String,
    /// As on the command line.
    pub memory: String,
    /// As on the command line.
    pub verify_days: String,
    /// As on the command line. None by default: what is in memory says nothing of disks.
    pub cache: String,
    /// As on the command line.
    pub archive: String,
    /// As on the command line. In the test's own directory by default.
    pub data: Option<PathBuf>,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            disks: setting::scheme().total_shards(),
            scheme: setting::scheme().to_string(),
            disk_size: "1GiB".into(),
            memory: "256MiB".into(),
            verify_days: "7".into(),
            cache: "0".into(),
            archive: "async".into(),
            data: None,
        }
    }
}

/// A running (or killed) `cairn dev`.
#[derive(Debug)]
pub struct Cluster {
    options: Options,
    directory: TempDir,
    listen: SocketAddr,
    admin: SocketAddr,
    process: Option<Child>,
    allowed: Vec<String>,
}

impl Cluster {
    /// As many disks as the scheme needs, six of rs(4,2) by default, ready for requests.
    pub fn start() -> Self {
        Self::start_with(Options::default())
    }

    /// A new cluster, ready for requests.
    pub fn start_with(options: Options) -> Self {
        let (listen, admin) = (free_address(), free_address());
        let directory = tempfile::Builder::new().prefix("cairn-test-").tempdir().unwrap();
        let mut cluster = Self {
            options,
            directory,
            listen,
            admin,
            process: None,
            allowed: Vec::new(),
        };
        cluster.restart();
        cluster
    }

    /// Starts the process again on the same directory and ports, and waits until it is ready.
    pub fn restart(&mut self) {
        self.restart_until("/health/ready");
    }

    /// As `restart`, with perhaps too few disks to be ready: waits until it lives.
    pub fn restart_alive(&mut self) {
        self.restart_until("/health/live");
    }

    /// As `restart`, with too few disks to be ready: waits until it lives.
    pub fn restart_unready(&mut self) {
        self.restart_alive();
        assert_ne!(self.admin("/health/ready").unwrap().status, 200);
    }

    /// As `restart`, with standard output and standard error elsewhere than in this cluster's log.
    pub fn restart_saying(&mut self, stdout: impl Into<Stdio>, stderr: impl Into<Stdio>) {
        self.spawn(stdout.into(), stderr.into(), "/health/ready");
    }

    fn restart_until(&mut self, health: &str) {
        let output = |name| {
            File::options()
                .create(true)
                .append(true)
                .open(self.directory.path().join(name))
                .unwrap()
        };
        self.spawn(output("stdout").into(), output("log").into(), health);
    }

    fn spawn(&mut self, stdout: Stdio, stderr: Stdio, health: &str) {
        assert!(self.process.is_none(), "it is still running");
        let child = self.command(&self.options).stdout(stdout).stderr(stderr).spawn();
        self.process = Some(child.unwrap_or_else(|error| panic!("starting {}: {error}", binary().display())));
        let deadline = Instant::now() + Duration::from_secs(READY_SECONDS_MAX);
        while !self.admin(health).is_ok_and(|response| response.status == 200) {
            if let Some(status) = self.process.as_mut().unwrap().try_wait().unwrap() {
                self.process = None;
                panic!("cairn stopped before it was ready: {status}\n{}", self.log());
            }
            assert!(
                Instant::now() < deadline,
                "not ready after {READY_SECONDS_MAX} s\n{}",
                self.log()
            );
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Runs `cairn dev` with other options on this cluster's directory until it stops by itself.
    pub fn start_refused(&self, options: &Options) -> Output {
        assert!(self.process.is_none(), "it is still running");
        let command = self
            .command(options)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        tools::wait_with_output(command, Duration::from_secs(20))
    }

    fn command(&self, options: &Options) -> Command {
        let mut command = Command::new(binary());
        command.arg("dev").arg("--data").arg(self.data());
        command
            .arg("--disks")
            .arg(options.disks.to_string())
            .arg("--scheme")
            .arg(&options.scheme);
        command
            .arg("--listen")
            .arg(self.listen.to_string())
            .arg("--admin-listen")
            .arg(self.admin.to_string());
        command
            .arg("--disk-size")
            .arg(&options.disk_size)
            .arg("--memory")
            .arg(&options.memory)
            .arg("--verify-days")
            .arg(&options.verify_days)
            .arg("--cache")
            .arg(&options.cache)
            .arg("--archive")
            .arg(&options.archive);
        command.args(["--log-format", "json"]).stdin(Stdio::null());
        let keys = keys();
        command
            .env("CAIRN_ACCESS_KEY", keys.access)
            .env("CAIRN_SECRET_KEY", keys.secret);
        command
    }

    /// A client with the cluster's keys.
    pub fn client(&self) -> Client {
        Client {
            address: self.listen,
            keys: keys(),
        }
    }

    /// Where S3 is.
    pub fn endpoint(&self) -> String {
        format!("http://{}", self.listen)
    }

    /// Where the administration is.
    pub fn admin_endpoint(&self) -> String {
        format!("http://{}", self.admin)
    }

    /// A temporary directory of this test, removed with the cluster.
    pub fn scratch(&self) -> PathBuf {
        let scratch = self.directory.path().join("scratch");
        std::fs::create_dir_all(&scratch).unwrap();
        scratch
    }

    /// What `--data` says.
    pub fn data(&self) -> PathBuf {
        let data = self.options.data.clone();
        data.unwrap_or_else(|| self.directory.path().join("data"))
    }

    /// The file of a disk.
    pub fn disk(&self, index: usize) -> PathBuf {
        self.data().join(format!("disk-{index}"))
    }

    /// The files of all disks that are there.
    pub fn disks(&self) -> Vec<PathBuf> {
        (0..self.options.disks)
            .map(|index| self.disk(index))
            .filter(|path| path.exists())
            .collect()
    }

    /// Ends the process at once, as a power failure of the process would.
    pub fn kill(&mut self) {
        let mut process = self.process.take().unwrap();
        process.kill().unwrap();
        process.wait().unwrap();
    }

    /// Sends the process a signal.
    pub fn signal(&self, name: &str) {
        tools::signal(self.process.as_ref().unwrap().id(), name);
    }

    /// Asks the process to stop, and says how and after how long it did.
    pub fn terminate(&mut self) -> (ExitStatus, Duration) {
        let start = Instant::now();
        let mut process = self.process.take().unwrap();
        tools::signal(process.id(), "TERM");
        let deadline = start + Duration::from_secs(30);
        loop {
            if let Some(status) = process.try_wait().unwrap() {
                return (status, start.elapsed());
            }
            if Instant::now() > deadline {
                process.kill().unwrap();
                process.wait().unwrap();
                panic!("still running 30 s after SIGTERM\n{}", self.log());
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// Bytes of memory that the process has resident now.
    pub fn resident_bytes(&self) -> u64 {
        let status =
            std::fs::read_to_string(format!("/proc/{}/status", self.process.as_ref().unwrap().id())).unwrap();
        let line = status
            .lines()
            .find_map(|line| line.strip_prefix("VmRSS:"))
            .unwrap();
        line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() * 1024
    }

    /// `/v1/status`.
    pub fn status(&self) -> Value {
        let response = self.admin("/v1/status").unwrap();
        assert_eq!(response.status, 200, "{}", response.text());
        serde_json::from_slice(&response.body).unwrap()
    }

    /// The sum of all series of this name whose labels contain `labels` (`kind="corrupt"`); 0 if there is none.
    pub fn metric(&self, name: &str, labels: &str) -> f64 {
        let metrics = self.admin("/metrics").unwrap().text();
        let values = metrics.lines().filter_map(|line| {
            let (series, value) = line.rsplit_once(' ')?;
            let (found, found_labels) = series.split_once('{').unwrap_or((series, ""));
            (found == name && found_labels.contains(labels)).then(|| value.parse::<f64>().unwrap())
        });
        values.sum()
    }

    /// A GET of the administration.
    pub fn admin(&self, target: &str) -> io::Result<http::Response> {
        http::exchange(
            self.admin,
            "GET",
            target,
            &[("host".to_owned(), self.admin.to_string())],
            &[],
        )
    }

    /// Log lines that contain this text are expected. A panic never is.
    pub fn allow(&mut self, text: &str) {
        self.allowed.push(text.to_owned());
    }

    /// What the process has logged so far.
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.directory.path().join("log")).unwrap_or_default()
    }

    /// Lines of the log that the test did not expect.
    pub fn unexpected_log_lines(&self) -> Vec<String> {
        unexpected_lines(&self.log(), &self.allowed)
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        if let Some(mut process) = self.process.take() {
            // It may have ended by itself; its log says so below.
            let _ended = process.kill();
            let _status = process.wait();
        }
        if std::thread::panicking() {
            let log = self.log();
            let last: Vec<&str> = log.lines().rev().take(40).collect();
            eprintln!("the last lines of the log, latest first:\n{}", last.join("\n"));
            return;
        }
        let unexpected = self.unexpected_log_lines();
        assert!(
            unexpected.is_empty(),
            "unexpected in the log:\n{}",
            unexpected.join("\n")
        );
    }
}

/// Lines of a log that are alarming, and contain none of the texts that a test allowed.
pub(crate) fn unexpected_lines(log: &str, allowed: &[String]) -> Vec<String> {
    let expected = |line: &str| is_log_line(line) && allowed.iter().any(|text| line.contains(text));
    log.lines()
        .filter(|line| is_alarming(line) && !expected(line))
        .map(str::to_owned)
        .collect()
}

fn is_log_line(line: &str) -> bool {
    serde_json::from_str::<Value>(line).is_ok()
}

/// WARN, ERROR, or no log line at all.
fn is_alarming(line: &str) -> bool {
    match serde_json::from_str::<Value>(line) {
        Ok(line) => !matches!(line["level"].as_str(), Some("INFO" | "DEBUG" | "TRACE")),
        Err(_not_json) => !line.trim().is_empty(),
    }
}

/// The keys of every test cluster.
pub fn keys() -> Keys {
    Keys {
        access: "cairn".into(),
        secret: "cairn-secret-key".into(),
    }
}

/// The program under test: `CAIRN_BIN`, or the one that was built beside this test.
pub fn binary() -> PathBuf {
    if let Some(path) = std::env::var_os("CAIRN_BIN") {
        return path.into();
    }
    let test = std::env::current_exe().unwrap();
    let profile = test.ancestors().nth(2).unwrap();
    let binary = profile.join("cairn");
    assert!(
        binary.exists(),
        "{} is missing: `cargo build --release` makes it",
        binary.display()
    );
    binary
}

pub(crate) fn free_address() -> SocketAddr {
    for _ in 0..1000 {
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, rand::random_range(PORTS)));
        if TcpListener::bind(address).is_ok() {
            return address;
        }
    }
    panic!("no free port");
}

/// The workspace.
pub fn workspace() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap()
}
