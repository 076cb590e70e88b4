//! Machines on a network of a test's own: a network namespace for each, and one for the switch between them. What is cut
//! here is cut for the real processes inside, as a pulled cable or a broken route would do it. It needs root, `ip` and
//! `nsenter`.
//!
//! Invariants: nothing of the machine's own network is touched. The namespaces have no names once they are made: they end
//! with the test and the processes inside, also when the test is killed. Those processes end with the thread that started
//! them.
//!
//! The thread that makes a network moves to its switch, and so do the threads that it starts later: from there, and only
//! there, all machines can be reached.

use std::fs::File;
use std::net::Ipv4Addr;
use std::os::fd::{AsFd, AsRawFd};
use std::process::Command;

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

/// A hardware address that nobody has: what is sent there is lost without a word.
const NOWHERE: &str = "02:00:00:00:ff:ff";
const BRIDGE: &str = "switch";
const BRIDGE_NUMBER: u8 = 254;

/// A machine: its number on the network, from 1.
pub type Machine = u8;

/// The network; without machines at first.
#[derive(Debug)]
pub struct Network {
    switch: Namespace,
    machines: Vec<Namespace>,
}

impl Network {
    /// A new one. The calling thread moves to its switch.
    pub fn new() -> Self {
        let switch = Namespace::new("switch");
        move_into_link_name_space(switch.0.as_fd(), Some(LinkNameSpaceType::Network)).unwrap();
        switch.ip("link set lo up");
        // A machine is reached as soon as it is plugged in: there are no loops to be looked for.
        switch.ip(&format!(
            "link add {BRIDGE} type bridge forward_delay 0 stp_state 0"
        ));
        switch.ip(&format!("addr add {}/24 dev {BRIDGE}", address(BRIDGE_NUMBER)));
        switch.ip(&format!("link set {BRIDGE} up"));
        Self {
            switch,
            machines: Vec::new(),
        }
    }

    /// One more machine, plugged in.
    pub fn add_machine(&mut self) -> Machine {
        let number = Machine::try_from(self.machines.len() + 1).unwrap();
        assert!(number < BRIDGE_NUMBER, "the network is full");
        let machine = Namespace::new(&format!("machine-{number}"));
        let (port, hardware) = (port(number), hardware_address(number));
        self.switch.ip(&format!(
            "link add {port} type veth peer name eth0 address {hardware} netns {}",
            machine.path()
        ));
        self.switch.ip(&format!("link set {port} master {BRIDGE} up"));
        machine.ip("link set lo up");
        machine.ip(&format!("addr add {}/24 dev eth0", address(number)));
        machine.ip("link set eth0 up");
        self.machines.push(machine);
        number
    }

    /// What a command line begins with to run on a machine, and to end when the thread that started it does. The process
    /// is that of the command.
    pub fn prefix(&self, machine: Machine) -> Vec<String> {
        let net = format!("--net={}", self.namespace(machine).path());
        ["nsenter", &net, "setpriv", "--pdeathsig", "KILL"]
            .map(str::to_owned)
            .to_vec()
    }

    /// Pulls a machine's cable: it reaches nobody, and nobody reaches it.
    pub fn unplug(&self, machine: Machine) {
        self.switch.ip(&format!("link set {} down", port(machine)));
    }

    /// Plugs it in again.
    pub fn plug(&self, machine: Machine) {
        self.switch.ip(&format!("link set {} up", port(machine)));
    }

    /// From now on nothing that `from` sends reaches `to`. The other way is as before.
    pub fn cut(&self, from: Machine, to: Machine) {
        self.namespace(from).ip(&format!(
            "neigh replace {} lladdr {NOWHERE} dev eth0 nud permanent",
            address(to)
        ));
    }

    /// Ends a cut that is there.
    pub fn heal(&self, from: Machine, to: Machine) {
        self.namespace(from)
            .ip(&format!("neigh del {} dev eth0", address(to)));
    }

    fn namespace(&self, machine: Machine) -> &Namespace {
        &self.machines[usize::from(machine) - 1]
    }
}

impl Default for Network {
    fn default() -> Self {
        Self::new()
    }
}

/// Where a machine is.
pub fn address(machine: Machine) -> Ipv4Addr {
    Ipv4Addr::new(10, 77, 0, machine)
}

fn hardware_address(machine: Machine) -> String {
    format!("02:00:00:00:00:{machine:02x}")
}

fn port(machine: Machine) -> String {
    format!("port-{machine}")
}

/// A network namespace. It is there as long as this, or a process in it, is.
#[derive(Debug)]
struct Namespace(File);

impl Namespace {
    fn new(name: &str) -> Self {
        // It has a name only until it is open, and no other test's.
        let name = format!("cairn-test-{}-{name}", std::process::id());
        run(Command::new("ip").args(["netns", "add", &name]));
        let file = File::open(format!("/run/netns/{name}"));
        run(Command::new("ip").args(["netns", "del", &name]));
        Self(file.unwrap())
    }

    /// For others who want to enter it.
    fn path(&self) -> String {
        format!("/proc/{}/fd/{}", std::process::id(), self.0.as_raw_fd())
    }

    /// Runs `ip` inside.
    fn ip(&self, arguments: &str) {
        let mut command = Command::new("nsenter");
        command.arg(format!("--net={}", self.path())).arg("ip");
        run(command.args(arguments.split(' ')));
    }
}

/// Runs a command that must succeed. Tests of a network are not skipped: what they test is tested nowhere else.
fn run(command: &mut Command) {
    let needs = "these tests need root, with iproute2, nsenter and setpriv";
    let output = match command.output() {
        Ok(output) => output,
        Err(error) => panic!("{command:?}: {error}; {needs}"),
    };
    let complaint = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command:?}: {complaint}; {needs}");
}

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::net::{TcpListener, TcpStream};
    use std::time::Duration;

    use super::*;

    const TIMEOUT: Duration = Duration::from_millis(500);

    /// Whether a machine gets from the switch what it sends there: a connection needs both ways.
    fn is_connected(network: &Network, machine: Machine, listener: &TcpListener) -> bool {
        let port = listener.local_addr().unwrap().port();
        let script = format!("exec 3<>/dev/tcp/{}/{port} && echo there >&3", address(2));
        let prefix = network.prefix(machine);
        let mut command = Command::new(&prefix[0]);
        command
            .args(&prefix[1..])
            .args(["timeout", "0.5", "bash", "-c", &script]);
        command.output().unwrap().status.success()
    }

    #[test]
    fn a_pulled_cable_and_a_way_that_is_cut_are_so_and_heal() {
        let mut network = Network::new();
        for _ in 0..2 {
            network.add_machine();
        }
        // A listener on the second machine: its thread lives there.
        let namespace = network.namespace(2).0.try_clone().unwrap();
        let enter = move || {
            move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network)).unwrap();
            TcpListener::bind((address(2), 0)).unwrap()
        };
        let listener = std::thread::spawn(enter).join().unwrap();
        let is_reached = |network: &Network| is_connected(network, 1, &listener);
        assert!(is_reached(&network));
        let (mut accepted, _) = listener.accept().unwrap();
        let mut said = String::new();
        accepted.read_to_string(&mut said).unwrap();
        assert_eq!(said, "there\n");
        let from_switch = || TcpStream::connect_timeout(&listener.local_addr().unwrap(), TIMEOUT).is_ok();
        for (from, to) in [(1, 2), (2, 1)] {
            network.cut(from, to);
            assert!(!is_reached(&network), "from {from} to {to}");
            assert!(from_switch(), "others are not concerned");
            network.heal(from, to);
            assert!(is_reached(&network), "from {from} to {to}");
        }
        network.unplug(2);
        assert!(!is_reached(&network) && !from_switch());
        network.plug(2);
        assert!(is_reached(&network) && from_switch());
    }
}
