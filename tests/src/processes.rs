//! A Cairn of several processes for a test: a gateway, and nodes that joined it, over mutual TLS: on loopback ports with
//! files as disks, or each on a machine of its own (see [`network`]) with loop devices.
//!
//! Invariants: dropping it ends its processes and removes its directory; a line of WARN or ERROR in any of their logs that
//! the test did not allow fails the test, and so does whatever is not a log line (a panic).

use std::fs::File;
use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Output, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;
use tempfile::TempDir;

use crate::client::Client;
use crate::cluster::{binary, free_address, unexpected_lines};
use crate::daemon::Daemon;
use crate::loop_device::LoopDevice;
use crate::network::{self, Machine, Network};
use crate::sigv4::Keys;
use crate::{http, status, tools};

/// The longest that a start, a stop or a command may take.
const PATIENCE: Duration = Duration::from_secs(60);
/// The size of a disk.
const DISK_BYTES: u64 = 256 << 20;
/// And of one on a network of machines, whose faults leave volumes of several schemes: each takes an extent of each of its disks.
const DEVICE_BYTES: u64 = 2 << 30;

#[derive(Debug)]
struct NodeProcess {
    daemon: Daemon,
    directory: PathBuf,
    address: SocketAddr,
    disks: Vec<PathBuf>,
    /// What the disks are, where they are no files. Dropped after the process has ended.
    _devices: Vec<LoopDevice>,
}

/// A running cluster.
#[derive(Debug)]
pub struct Processes {
    directory: TempDir,
    gateway: Daemon,
    nodes: Vec<NodeProcess>,
    listen: SocketAddr,
    admin: SocketAddr,
    allowed: Vec<String>,
    network: Option<Network>,
    disk_bytes: u64,
}

/// The gateway's machine. Node n is on the n-th after it.
const GATEWAY: Machine = 1;

impl Processes {
    /// So many nodes with so many disks each, joined and added, ready for requests.
    pub fn start(nodes: usize, disks_per_node: usize, scheme: &str) -> Self {
        Self::start_with(nodes, disks_per_node, scheme, &[])
    }

    /// The same, with further arguments for the gateway.
    pub fn start_with(nodes: usize, disks_per_node: usize, scheme: &str, further: &[&str]) -> Self {
        Self::start_gateway_with(scheme, further, None).with_nodes(nodes, disks_per_node)
    }

    /// The same on a network of machines, one for the gateway and one for each node. The calling thread moves there.
    pub fn start_on_network(nodes: usize, disks_per_node: usize, scheme: &str, further: &[&str]) -> Self {
        let mut network = Network::new();
        assert_eq!(network.add_machine(), GATEWAY);
        Self::start_gateway_with(scheme, further, Some(network)).with_nodes(nodes, disks_per_node)
    }

    /// The same, with disks of so many bytes, where more volumes come than small ones have extents for.
    pub fn start_sized(nodes: usize, disks_per_node: usize, scheme: &str, disk_bytes: u64) -> Self {
        let mut cluster = Self::start_gateway_with(scheme, &[], None);
        cluster.disk_bytes = disk_bytes;
        cluster.with_nodes(nodes, disks_per_node)
    }

    fn with_nodes(mut self, nodes: usize, disks_per_node: usize) -> Self {
        for _ in 0..nodes {
            self.add_node(disks_per_node);
        }
        if nodes * disks_per_node > 0 {
            let added = self.cairn(&["disk", "add", "--all", "--yes"]);
            assert!(added.status.success(), "{added:?}");
            self.wait_until_ready();
        }
        self
    }

    /// A new cluster with a gateway and nothing else.
    pub fn start_gateway(scheme: &str) -> Self {
        Self::start_gateway_with(scheme, &[], None)
    }

    fn start_gateway_with(scheme: &str, further: &[&str], network: Option<Network>) -> Self {
        let directory = tempfile::Builder::new()
            .prefix("cairn-processes-")
            .tempdir()
            .unwrap();
        let [listen, admin, join] = [9000, 9001, 9002].map(|port| match &network {
            Some(_) => SocketAddr::from((network::address(GATEWAY), port)),
            None => free_address(),
        });
        let prefix = network.as_ref().map(|network| network.prefix(GATEWAY));
        // It is not on loopback there.
        let allowed = network
            .iter()
            .map(|_| "operators are asked for no key".to_owned())
            .collect();
        let data = directory.path().join("gateway");
        let made = run(cairn()
            .arg("init")
            .arg("--data")
            .arg(&data)
            .args(["--scheme", scheme]));
        assert!(made.status.success(), "{made:?}");
        let mut arguments = vec!["gateway".to_owned(), "--config".to_owned()];
        arguments.push(data.join("cairn.toml").display().to_string());
        for (flag, value) in [
            ("--listen", listen),
            ("--admin-listen", admin),
            ("--join-listen", join),
        ] {
            arguments.extend([flag.to_owned(), value.to_string()]);
        }
        // What is in memory says nothing of disks.
        arguments.extend(["--memory", "256MiB", "--cache", "0"].map(str::to_owned));
        arguments.extend(further.iter().map(|argument| (*argument).to_owned()));
        let gateway = Daemon::new("gateway", directory.path(), prefix.unwrap_or_default(), arguments);
        let mut cluster = Self {
            directory,
            gateway,
            nodes: Vec::new(),
            listen,
            admin,
            allowed,
            network,
            disk_bytes: DISK_BYTES,
        };
        cluster.restart_gateway();
        cluster
    }

    /// Another node, with this many blank disks, which has joined. Its number.
    pub fn add_node(&mut self, disks: usize) -> usize {
        let token = self.token();
        let index = self.prepare_node(disks);
        self.nodes[index].daemon.start(&["--join", &token]);
        self.wait_until_online(index);
        index
    }

    /// As [`Processes::add_node`], without joining or starting it.
    pub fn prepare_node(&mut self, disks: usize) -> usize {
        let index = self.nodes.len();
        let name = format!("node-{index}");
        let directory = self.directory.path().join(&name);
        std::fs::create_dir(&directory).unwrap();
        let (address, prefix) = match &mut self.network {
            None => (free_address(), Vec::new()),
            Some(network) => {
                let machine = network.add_machine();
                let address = SocketAddr::from((network::address(machine), 9100));
                (address, network.prefix(machine))
            }
        };
        let mut devices = Vec::new();
        let mut names = Vec::new();
        for disk in 0..disks {
            if self.network.is_some() {
                let device = LoopDevice::new(DEVICE_BYTES);
                names.push(device.path().display().to_string());
                devices.push(device);
            } else {
                let name = format!("disk-{disk}");
                let file = File::create(directory.join(&name)).unwrap();
                file.set_len(self.disk_bytes).unwrap();
                names.push(name);
            }
        }
        let config = format!(
            "[node]\nname = \"{name}\"\ndata = \"member\"\nlisten = \"{address}\"\nrack = \"rack-{index}\"\ndisks = {names:?}\n"
        );
        let path = directory.join("node.toml");
        std::fs::write(&path, config).unwrap();
        let arguments = vec![
            "node".to_owned(),
            "--config".to_owned(),
            path.display().to_string(),
        ];
        self.nodes.push(NodeProcess {
            daemon: Daemon::new(&name, self.directory.path(), prefix, arguments),
            disks: names.iter().map(|name| directory.join(name)).collect(),
            directory,
            address,
            _devices: devices,
        });
        index
    }

    /// Runs a prepared node with further arguments until it stops by itself.
    pub fn node_refused(&self, index: usize, arguments: &[&str]) -> Output {
        let node = &self.nodes[index];
        run(cairn().args(&node.daemon.arguments).args(arguments))
    }

    /// Starts a node that was prepared, with further arguments, and does not wait.
    pub fn spawn_node(&mut self, index: usize, arguments: &[&str]) {
        self.nodes[index].daemon.start(arguments);
    }

    /// A token for one node.
    pub fn token(&self) -> String {
        let made = self.cairn(&["node", "token"]);
        assert!(made.status.success(), "{made:?}");
        String::from_utf8(made.stdout).unwrap().trim().to_owned()
    }

    /// Runs `cairn` against the gateway's admin address.
    pub fn cairn(&self, arguments: &[&str]) -> Output {
        run(cairn().args(arguments).env("CAIRN_ADMIN", self.admin_endpoint()))
    }

    /// Starts the gateway again, and waits until it answers.
    pub fn restart_gateway(&mut self) {
        if let Err(log) = self.restart_gateway_or_refused() {
            panic!("the gateway stopped\n{log}");
        }
    }

    /// As [`Processes::restart_gateway`], unless the gateway refuses to start: its log then.
    pub fn restart_gateway_or_refused(&mut self) -> Result<(), String> {
        let before = self.gateway.log().len();
        self.gateway.start(&[]);
        let deadline = Instant::now() + PATIENCE;
        loop {
            if self
                .admin("/health/live")
                .is_ok_and(|response| response.status == 200)
            {
                return Ok(());
            }
            if !self.gateway.is_running() {
                self.gateway.process = None;
                return Err(self.gateway.log().split_off(before));
            }
            assert!(
                Instant::now() < deadline,
                "the gateway is not live\n{}",
                self.gateway.log()
            );
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Whether writes are taken.
    pub fn is_ready(&self) -> bool {
        self.admin("/health/ready")
            .is_ok_and(|response| response.status == 200)
    }

    /// Ends the gateway at once.
    pub fn kill_gateway(&mut self) {
        self.gateway.kill();
    }

    /// Asks the gateway to stop, and waits until it did.
    pub fn terminate_gateway(&mut self) -> ExitStatus {
        self.gateway.terminate()
    }

    /// Starts a node again, without token, and waits until the gateway sees it.
    pub fn restart_node(&mut self, index: usize) {
        self.nodes[index].daemon.start(&[]);
        self.wait_until_online(index);
    }

    /// Ends a node at once.
    pub fn kill_node(&mut self, index: usize) {
        self.nodes[index].daemon.kill();
    }

    /// Asks a node to stop, and waits until it did.
    pub fn terminate_node(&mut self, index: usize) -> ExitStatus {
        self.nodes[index].daemon.terminate()
    }

    /// Puts a blank disk into a machine, and starts its node again with it.
    pub fn add_blank_disk(&mut self, index: usize) {
        let path = self.nodes[index].directory.join("node.toml");
        let config = std::fs::read_to_string(&path).unwrap();
        let name = format!("disk-{}", config.matches("\"disk-").count());
        let file = File::create(self.nodes[index].directory.join(&name)).unwrap();
        file.set_len(self.disk_bytes).unwrap();
        let (before, disks) = config.split_once("disks = [").unwrap();
        // Whole at once: a node that has just been started may be reading it.
        let next = path.with_extension("next");
        std::fs::write(&next, format!("{before}disks = [\"{name}\", {disks}")).unwrap();
        std::fs::rename(&next, &path).unwrap();
        // One that can use none of its disks may have ended with an error.
        let _status = self.terminate_node(index);
        self.nodes[index].daemon.start(&[]);
        let path = self.nodes[index].directory.join(&name);
        self.nodes[index].disks.push(path.clone());
        let path = path.display().to_string();
        let is_there = || self.admin_json("/v1/disks").to_string().contains(&path);
        status::wait_until("the blank disk is seen", PATIENCE, is_there, || {
            self.node(index).to_string()
        });
    }

    /// Pulls the cable of a node's machine.
    pub fn unplug_node(&self, index: usize) {
        self.network().unplug(machine_of(index));
    }

    /// Plugs it in again.
    pub fn plug_node(&self, index: usize) {
        self.network().plug(machine_of(index));
    }

    /// From now on nothing that the gateway's machine sends reaches this node's.
    pub fn cut_to_node(&self, index: usize) {
        self.network().cut(GATEWAY, machine_of(index));
    }

    /// From now on nothing that this node's machine sends reaches the gateway's.
    pub fn cut_from_node(&self, index: usize) {
        self.network().cut(machine_of(index), GATEWAY);
    }

    /// Ends such a cut.
    pub fn heal_to_node(&self, index: usize) {
        self.network().heal(GATEWAY, machine_of(index));
    }

    /// Ends such a cut.
    pub fn heal_from_node(&self, index: usize) {
        self.network().heal(machine_of(index), GATEWAY);
    }

    fn network(&self) -> &Network {
        self.network.as_ref().expect("a cluster that has a network")
    }

    /// The process of the gateway, for signals.
    pub fn gateway_pid(&self) -> u32 {
        self.gateway.process.as_ref().unwrap().id()
    }

    /// The process of a node, for signals.
    pub fn node_pid(&self, index: usize) -> u32 {
        self.nodes[index].daemon.process.as_ref().unwrap().id()
    }

    /// Where a node serves.
    pub fn node_address(&self, index: usize) -> SocketAddr {
        self.nodes[index].address
    }

    /// The directory of a node: `node.toml`, `member`, `disk-0`, …
    pub fn node_directory(&self, index: usize) -> &Path {
        &self.nodes[index].directory
    }

    /// The file of a disk of a node.
    pub fn disk(&self, node: usize, disk: usize) -> PathBuf {
        self.nodes[node].disks[disk].clone()
    }

    /// The files of all disks that a node ever had, in the order in which they came.
    pub fn disks_of(&self, node: usize) -> &[PathBuf] {
        &self.nodes[node].disks
    }

    /// The directory that `cairn init` made.
    pub fn gateway_directory(&self) -> PathBuf {
        self.directory.path().join("gateway")
    }

    /// How many nodes were prepared.
    pub fn node_count(&self) -> usize {
        self.nodes.len()
    }

    /// A client with the keys that `cairn init` made.
    pub fn client(&self) -> Client {
        Client {
            address: self.listen,
            keys: keys(&self.gateway_directory()),
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

    /// A GET of the administration.
    pub fn admin(&self, target: &str) -> io::Result<http::Response> {
        let host = [("host".to_owned(), self.admin.to_string())];
        http::exchange(self.admin, "GET", target, &host, &[])
    }

    /// `/v1/status`.
    pub fn status(&self) -> Value {
        self.admin_json("/v1/status")
    }

    /// What the administration says at a path, which it must.
    pub fn admin_json(&self, target: &str) -> Value {
        let response = self.admin(target).unwrap();
        assert_eq!(response.status, 200, "{}", response.text());
        serde_json::from_slice(&response.body).unwrap()
    }

    /// What `/v1/nodes` says of a node; null if it is not there.
    pub fn node(&self, index: usize) -> Value {
        let nodes = self.admin_json("/v1/nodes");
        let name = format!("node-{index}");
        let found = nodes["nodes"]
            .as_array()
            .unwrap()
            .iter()
            .find(|node| node["name"] == name);
        found.cloned().unwrap_or(Value::Null)
    }

    /// Waits until the gateway sees this node and all of its disks.
    pub fn wait_until_online(&self, index: usize) {
        let is_online = || {
            let node = self.node(index);
            node["state"] == "online" && node["disks"] == node["disks_online"]
        };
        let seen = || format!("{}\n{}", self.node(index), self.node_log(index));
        status::wait_until("the node is online", PATIENCE, is_online, seen);
    }

    /// Scrubs all disks and takes a census, again and again while it finds something: what it finds is repaired or collected, and then
    /// nothing is found.
    #[track_caller]
    pub fn wait_until_clean(&self) {
        let mut told = String::new();
        for _ in 0..10 {
            let scrubbed = self.cairn(&["scrub", "start", "--wait"]);
            told = said(&scrubbed);
            if scrubbed.status.success() {
                assert!(told.ends_with("clean\n"), "{told}");
                return;
            }
            assert!(told.contains("not clean"), "{told}");
            std::thread::sleep(Duration::from_secs(1));
        }
        panic!("never clean: {told}\n{}", self.status());
    }

    /// Waits until the gateway has lost this node.
    pub fn wait_until_lost(&self, index: usize) {
        let is_lost = || self.node(index)["state"] == "lost";
        status::wait_until("the node is lost", PATIENCE, is_lost, || {
            self.node(index).to_string()
        });
    }

    /// Waits until writes are taken.
    pub fn wait_until_ready(&self) {
        let seen = || self.status().to_string();
        status::wait_until("it is ready", PATIENCE, || self.is_ready(), seen);
    }

    /// Log lines that contain this text are expected, whoever logs them. A panic never is.
    pub fn allow(&mut self, text: &str) {
        self.allowed.push(text.to_owned());
    }

    /// Log lines about a node that is lost, or comes and goes with its disks, are expected.
    pub fn allow_lost_nodes(&mut self) {
        for text in ["node lost", "disk suspect", "disk down"] {
            self.allow(text);
        }
    }

    /// What the gateway has logged so far.
    pub fn gateway_log(&self) -> String {
        self.gateway.log()
    }

    /// What a node has logged so far.
    pub fn node_log(&self, index: usize) -> String {
        self.nodes[index].daemon.log()
    }

    fn daemons(&mut self) -> impl Iterator<Item = &mut Daemon> {
        std::iter::once(&mut self.gateway).chain(self.nodes.iter_mut().map(|node| &mut node.daemon))
    }
}

impl Drop for Processes {
    fn drop(&mut self) {
        let allowed = self.allowed.clone();
        let mut unexpected = Vec::new();
        for daemon in self.daemons() {
            if let Some(mut process) = daemon.process.take() {
                // It may have ended by itself; its log says so below.
                let _ended = process.kill();
                let _status = process.wait();
            }
            let log = daemon.log();
            if std::thread::panicking() {
                let last: Vec<&str> = log.lines().rev().take(20).collect();
                eprintln!(
                    "the last lines of {}, latest first:\n{}",
                    daemon.name,
                    last.join("\n")
                );
            }
            let lines = unexpected_lines(&log, &allowed);
            unexpected.extend(lines.into_iter().map(|line| format!("{}: {line}", daemon.name)));
        }
        assert!(
            std::thread::panicking() || unexpected.is_empty(),
            "unexpected in the logs:\n{}",
            unexpected.join("\n")
        );
    }
}

fn machine_of(node: usize) -> Machine {
    GATEWAY + 1 + Machine::try_from(node).unwrap()
}

/// The program, without what the surroundings would tell it.
pub fn cairn() -> Command {
    cairn_after(&[])
}

/// The same, with a command line that begins with these words.
pub(crate) fn cairn_after(prefix: &[String]) -> Command {
    let mut command = match prefix {
        [] => Command::new(binary()),
        [first, others @ ..] => {
            let mut command = Command::new(first);
            command.args(others).arg(binary());
            command
        }
    };
    let ours = std::env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("CAIRN_"));
    ours.for_each(|(name, _)| {
        command.env_remove(name);
    });
    command
}

/// All that a command printed.
pub fn said(output: &Output) -> String {
    let (out, err) = (&output.stdout, &output.stderr);
    format!("{}{}", String::from_utf8_lossy(out), String::from_utf8_lossy(err))
}

/// Runs a command to its end, which must come in time.
pub fn run(command: &mut Command) -> Output {
    let child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn();
    tools::wait_with_output(child.unwrap(), PATIENCE)
}

fn keys(directory: &Path) -> Keys {
    let text = std::fs::read_to_string(directory.join("credentials")).unwrap();
    let value = |name: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(name));
        line.unwrap().trim_start_matches([' ', '=']).to_owned()
    };
    Keys {
        access: value("aws_access_key_id"),
        secret: value("aws_secret_access_key"),
    }
}
