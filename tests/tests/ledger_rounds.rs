//! Rounds in which copies of the ledger come back: an older one in place of the newest, one of a time asked for, a copy of the gateway
//! beside it or after it; before and after drains, replaced disks, deletes and overwrites. Each ends with the newest ledger in its place:
//! no acknowledged object is lost, none reads wrong. Where the old one is accepted instead, all that it names and that is still there
//! reads right, and no id is handed out twice.
//!
//! `CAIRN_TEST_LONG=1` makes it 200 rounds, on clusters of their own, some at once.

// A failed `unwrap` is a failed test, in the functions beside the tests too.
#![allow(clippy::unwrap_used)]

use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use cairn_tests::client::Client;
use cairn_tests::content::Content;
use cairn_tests::model::Model;
use cairn_tests::processes::{Processes, cairn, run, said};
use cairn_tests::status::wait_until;
use cairn_tests::{faults, http, ledger_files, load, setting};
use gateway::clock::{Clock, SystemClock};
use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng};
use serde_json::Value;

const BUCKET: &str = "rounds";
const PATIENCE: Duration = Duration::from_secs(90);
const NODES: usize = 8;
/// Clusters that run at once. Most of the time they wait.
const AT_ONCE: usize = 4;
/// Each ledger that is given up leaves its volumes to an operator, and each takes an extent.
const DISK_BYTES: u64 = 2 << 30;
/// Beyond so many objects more are deleted than put.
const OBJECTS: usize = 100;
/// Backups that are kept: their ages differ by rounds.
const BACKUPS: usize = 4;
/// What was committed so long ago is in the archive, and disks were told of it: both happen every second or two.
const TOLD_AFTER: Duration = Duration::from_secs(4);

struct Backup {
    files: PathBuf,
    model: Model,
    at: u64,
}

struct Rounds {
    cluster: Processes,
    model: Model,
    rng: StdRng,
    backups: Vec<Backup>,
    /// Blob ids that were seen, and of which object.
    ids: HashMap<u64, (String, Content)>,
    counted: BTreeMap<&'static str, usize>,
    /// The round, for messages.
    now: String,
}

fn seconds_now() -> u64 {
    SystemClock.now_ms() / 1_000
}

impl Rounds {
    fn new(seed: u64) -> Rounds {
        let mut cluster = Processes::start_sized(NODES, 1, "rs(4,2)", DISK_BYTES);
        cluster.allow_lost_nodes();
        for text in [
            // Of ledgers that are behind, and of copies.
            "the ledger was behind",
            "the ledger was accepted",
            "nothing is deleted from now on",
            "another gateway",
            "only reads",
            "stripe not stored",
            "background work failed",
            "still in progress",
            // Of the disk that is replaced.
            "disk given up",
            "shard queued for repair",
            "shards queued for repair", // Of objects that were deleted since, and that an accepted ledger names again.
            "the ledger does not know this disk",
            "is not used",
            "invalid",
            "overwritten",
            "cannot be opened",
            "cairn::",
        ] {
            cluster.allow(text);
        }
        cluster.client().create_bucket(BUCKET);
        let model = load::store(&cluster.client(), BUCKET, "first-", &[700; 30]);
        Rounds {
            cluster,
            model,
            rng: StdRng::seed_from_u64(seed),
            backups: Vec::new(),
            ids: HashMap::new(),
            counted: BTreeMap::new(),
            now: String::new(),
        }
    }

    fn count(&mut self, what: &'static str) {
        *self.counted.entry(what).or_default() += 1;
    }

    fn data(&self) -> PathBuf {
        self.cluster.gateway_directory()
    }

    fn beside(&self, name: &str) -> PathBuf {
        self.data().with_file_name(name)
    }

    /// Puts, overwrites and deletes.
    fn change(&mut self, client: &Client, name: &str) {
        for number in 0..self.rng.random_range(4..16) {
            let known: Vec<String> = self
                .model
                .contents()
                .iter()
                .map(|(key, _)| (*key).to_owned())
                .collect();
            let deletes = match known.len() {
                0 => 0.0,
                known if known > OBJECTS => 0.6,
                _ => 0.25,
            };
            if self.rng.random_bool(deletes) {
                let key = known.choose(&mut self.rng).unwrap();
                client.delete(BUCKET, key).unwrap();
                self.model.acknowledged(key, None);
                continue;
            }
            let key = match known.choose(&mut self.rng) {
                Some(key) if self.rng.random_bool(0.3) => key.clone(),
                _ => format!("{name}-{number}"),
            };
            let content = self.put(client, &key);
            self.model.acknowledged(&key, Some(content));
        }
    }

    fn put(&mut self, client: &Client, key: &str) -> Content {
        let bytes = *[900, 40_000, 300_000].choose(&mut self.rng).unwrap();
        let content = Content::random(bytes);
        client
            .put(BUCKET, key, &content.make())
            .unwrap_or_else(|error| panic!("{}: {key}: {error}", self.now));
        content
    }

    /// No blob id is that of another object, ever.
    fn check_ids(&mut self, model: &Model) {
        let contents = model.contents();
        let some: Vec<_> = contents.choose_multiple(&mut self.rng, 6).cloned().collect();
        for (key, content) in some {
            let located = self.cluster.cairn(&["object", "locate", BUCKET, key, "--json"]);
            assert!(located.status.success(), "{}: {}", self.now, said(&located));
            let located: Value = serde_json::from_slice(&located.stdout).unwrap();
            for blob in located["blobs"].as_array().unwrap() {
                let id = blob["blob"].as_u64().unwrap();
                let owner = self.ids.entry(id).or_insert_with(|| (key.to_owned(), content));
                assert_eq!(*owner, (key.to_owned(), content), "{}: blob {id} twice", self.now);
            }
        }
    }

    fn stop(&mut self) {
        match self.rng.random() {
            true => assert!(self.cluster.terminate_gateway().success()),
            false => self.cluster.kill_gateway(),
        }
    }

    fn assert_all_right(&mut self, what: &str) {
        let violations = self.model.check(&self.cluster.client(), BUCKET);
        assert!(
            violations.is_empty(),
            "{}, {what}: {}\n{}",
            self.now,
            violations.join("\n"),
            self.cluster.gateway_log()
        );
    }

    /// What another model names too, as it is now, reads right.
    fn assert_unchanged_right(&mut self, old: &Model, what: &str) {
        let client = self.cluster.client();
        let mut read = 0;
        for (key, content) in old.contents() {
            if self.model.possible(key) == [Some(content)] {
                // Disks come one after the other when a gateway has just started.
                let until = Instant::now() + Duration::from_secs(15);
                let mut found = client.get(BUCKET, key);
                while found.is_err() && Instant::now() < until {
                    sleep(Duration::from_millis(200));
                    found = client.get(BUCKET, key);
                }
                let found = found.unwrap_or_else(|error| panic!("{}, {what}: {key}: {error}", self.now));
                content.check(&found, &format!("{}, {what}: {key}", self.now));
                read += 1;
            }
        }
        println!("{}, {what}: {read} objects read right", self.now);
    }

    /// A backup of now: while the gateway runs, after it stopped, after it was killed.
    fn back_up(&mut self) {
        if self.backups.len() == BACKUPS {
            let place = self.rng.random_range(0..BACKUPS);
            fs::remove_dir_all(self.backups.swap_remove(place).files).unwrap();
        }
        let files = self.beside(&format!("backup of {}", self.now));
        sleep(Duration::from_millis(1_200));
        let at = seconds_now();
        sleep(Duration::from_millis(1_200));
        let (live, data) = (self.rng.random_bool(0.4), self.data());
        if live {
            ledger_files::back_up(&data, &files);
            self.count("live backup");
        } else {
            self.stop();
            ledger_files::back_up(&data, &files);
            self.cluster.restart_gateway();
            self.cluster.wait_until_ready();
            self.count("clean backup");
        }
        self.backups.push(Backup {
            files,
            model: self.model.clone(),
            at,
        });
    }

    fn labels_of(&self, node: usize) -> Vec<String> {
        let disks = self.cluster.status()["disks"].as_array().unwrap().clone();
        let name = format!("node-{node}");
        disks
            .iter()
            .filter(|disk| disk["node"] == name)
            .map(|disk| disk["label"].as_str().unwrap().to_owned())
            .collect()
    }

    fn operate(&self, arguments: &[&str]) {
        let done = self.cluster.cairn(arguments);
        assert!(
            done.status.success(),
            "{}: {arguments:?}: {}",
            self.now,
            said(&done)
        );
    }

    fn wait_until_rebuilt(&self, label: &str) {
        let is_empty = || {
            let status = self.cluster.status();
            let disks = status["disks"].as_array().unwrap();
            let units = disks
                .iter()
                .filter(|disk| disk["label"] == label)
                .map(|disk| &disk["units"]);
            units.into_iter().all(|units| *units == 0) && status["rebuild"]["units"] == 0
        };
        wait_until("the disk is empty", PATIENCE, is_empty, || {
            self.cluster.status().to_string()
        });
    }

    /// Something that moves units.
    fn move_units(&mut self) {
        let node = self.rng.random_range(0..NODES);
        let label = self.labels_of(node).pop().unwrap();
        match self.rng.random_range(0..4) {
            0 => {
                self.operate(&["disk", "drain", &label, "--yes"]);
                self.wait_until_rebuilt(&label);
                self.operate(&["disk", "activate", &label, "--yes"]);
                self.count("drained disk");
            }
            1 => {
                // While nobody writes to it: a superblock that is written again would make it a disk with damaged shards.
                self.cluster.kill_node(node);
                faults::scramble(self.cluster.disks_of(node).last().unwrap());
                self.cluster.spawn_node(node, &[]);
                let is_down = || {
                    let status = self.cluster.status();
                    let disks = status["disks"].as_array().unwrap();
                    disks
                        .iter()
                        .any(|disk| disk["label"] == label && disk["state"] == "down")
                };
                wait_until("the disk is down", PATIENCE, is_down, || {
                    self.cluster.status().to_string()
                });
                self.cluster.add_blank_disk(node);
                self.operate(&["disk", "replace", &label, "--yes"]);
                self.wait_until_rebuilt(&label);
                self.operate(&["disk", "remove", &label, "--yes"]);
                self.count("replaced disk");
            }
            2 => {
                self.cluster.kill_node(node);
                self.cluster.restart_node(node);
                self.count("restarted node");
            }
            _ => {}
        }
    }

    /// The newest ledger is put back, and used: it knows all that was acknowledged.
    fn newest_back(&mut self, newest: &Path) {
        let data = self.data();
        ledger_files::put_back(newest, &data);
        self.cluster.restart_gateway();
        if !self.becomes_ready() {
            let known = self.model.clone();
            self.assert_unchanged_right(&known, "the newest ledger, which only reads");
            self.accept();
            self.count("newest accepted");
        }
        self.assert_all_right("the newest ledger again");
        fs::remove_dir_all(newest).unwrap();
    }

    /// Whether it becomes ready, or says that it only reads.
    fn becomes_ready(&self) -> bool {
        let until = Instant::now() + PATIENCE;
        loop {
            // It does not answer for a moment while it starts anew.
            let ready = self.cluster.admin("/health/ready");
            match &ready {
                Ok(answer) if answer.status == 200 => return true,
                Ok(answer) if answer.text().contains("ledger accept") => return false,
                _ => {}
            }
            assert!(
                Instant::now() < until,
                "{}: neither ready nor behind: {ready:?}\n{}",
                self.now,
                self.cluster.gateway_log()
            );
            sleep(Duration::from_millis(50));
        }
    }

    fn accept(&self) {
        self.operate(&["ledger", "accept", "--yes"]);
        // It starts anew.
        let is_ready = || self.cluster.is_ready();
        wait_until("it is ready, accepted", PATIENCE, is_ready, || {
            self.cluster.gateway_log()
        });
    }

    /// An old ledger is in place, and used: it reads, it stores beside what it does not know, and it has time to delete.
    fn use_accepted(&mut self, old: &Model) {
        self.assert_unchanged_right(old, "accepted");
        let (client, mut accepted) = (self.cluster.client(), Model::default());
        for number in 0..4 {
            let key = format!("accepted {} {number}", self.now);
            let content = self.put(&client, &key);
            accepted.acknowledged(&key, Some(content));
        }
        self.check_ids(&accepted);
        sleep(Duration::from_secs(1));
        self.assert_unchanged_right(old, "accepted for a while");
        self.count("old ledger accepted");
    }

    /// A backup of some age is put in place of the newest ledger.
    fn old_ledger(&mut self) {
        let backup = self.rng.random_range(0..self.backups.len());
        let (files, old) = (
            self.backups[backup].files.clone(),
            self.backups[backup].model.clone(),
        );
        ledger_files::put_back(&files, &self.data());
        if let Err(log) = self.cluster.restart_gateway_or_refused() {
            // A copy of a file that is being written is not always one.
            assert!(log.contains("damaged"), "{}: {log}", self.now);
            self.count("old ledger refused as damaged");
            return;
        }
        if self.becomes_ready() {
            self.assert_all_right("caught up");
            self.count("old ledger caught up");
        } else {
            self.assert_unchanged_right(&old, "an old ledger that only reads");
            let refused = self.cluster.client().put(BUCKET, "refused", b"no");
            assert_eq!(refused.unwrap_err().status(), Some(503), "{}", self.now);
            self.count("old ledger only read");
            if self.rng.random() {
                self.accept();
                self.use_accepted(&old);
            }
        }
        sleep(Duration::from_secs(1)); // What would delete has had time to.
        self.stop();
    }

    /// The ledger as it was at the newest backup is made from the archive on the disks.
    fn ledger_of_then(&mut self) {
        let backup = self.backups.last().unwrap();
        let (at, old) = (backup.at.to_string(), backup.model.clone());
        let data = self.data();
        ledger_files::remove(&data);
        let mut command = cairn();
        command
            .args(["ledger", "restore", "--from-disks", "--at", &at, "--data"])
            .arg(&data);
        for node in 0..NODES {
            command
                .arg("--node")
                .arg(self.cluster.node_address(node).to_string());
        }
        let restored = run(&mut command);
        assert!(restored.status.success(), "{}: {}", self.now, said(&restored));
        self.cluster.restart_gateway();
        assert!(self.becomes_ready(), "{}: not used though restored", self.now);
        self.use_accepted(&old);
        self.count("ledger of then");
        self.stop();
    }

    /// The gateway's directory is copied; the copy runs after the gateway has stopped, and then the gateway again.
    fn copy_after(&mut self) {
        let (data, copy, own) = (self.data(), self.beside("copy"), self.beside("own"));
        copy_directory(&data, &copy);
        fs::rename(&data, &own).unwrap();
        fs::rename(&copy, &data).unwrap();
        self.cluster.restart_gateway();
        assert!(
            self.becomes_ready(),
            "{}: a copy of the newest is not used",
            self.now
        );
        let (client, name) = (self.cluster.client(), format!("copy {}", self.now));
        self.change(&client, &name);
        sleep(TOLD_AFTER);
        self.stop();
        fs::remove_dir_all(&data).unwrap();
        fs::rename(&own, &data).unwrap();
        self.cluster.restart_gateway();
        assert!(
            self.becomes_ready(),
            "{}: the first did not catch up with its copy",
            self.now
        );
        self.assert_all_right("the first after its copy");
        self.count("copy after");
    }

    /// The gateway's directory is copied while it runs, and the copy started beside it.
    fn copy_beside(&mut self) {
        let (data, copy) = (self.data(), self.beside("copy"));
        sleep(TOLD_AFTER);
        copy_directory(&data, &copy);
        let refused = run(&mut beside(&copy).0);
        assert!(
            !refused.status.success() && said(&refused).contains("another gateway of this cluster is alive"),
            "{}: {}",
            self.now,
            said(&refused)
        );
        let (mut command, s3, admin) = beside(&copy);
        let mut second = End(command.arg("--take-over").stderr(Stdio::null()).spawn().unwrap());
        let host = [("host".to_owned(), admin.to_string())];
        let health = |what: &str| http::exchange(admin, "GET", what, &host, &[]);
        let is_ready = || health("/health/ready").is_ok_and(|answer| answer.status == 200);
        wait_until("the copy is ready", PATIENCE, is_ready, || {
            self.cluster.gateway_log()
        });
        let client = Client {
            address: s3,
            keys: self.cluster.client().keys,
        };
        let first = self
            .cluster
            .client()
            .put(BUCKET, &format!("fenced {}", self.now), b"no");
        assert!(
            first.is_err(),
            "{}: the first acts beside the copy that took over",
            self.now
        );
        // What the first knows.
        let known = self.model.clone();
        let name = format!("second {}", self.now);
        self.change(&client, &name);
        sleep(TOLD_AFTER);
        second.0.kill().unwrap();
        second.0.wait().unwrap();
        drop(second);
        self.stop();
        self.cluster.restart_gateway();
        if self.becomes_ready() {
            self.count("copy beside, caught up with");
        } else {
            // It committed something of its own before it heard that it was fenced. The copy is the newest.
            self.assert_unchanged_right(&known, "the first, which only reads");
            self.stop();
            ledger_files::put_back(&copy, &data);
            self.cluster.restart_gateway();
            assert!(self.becomes_ready(), "{}: the copy is the newest", self.now);
            self.count("copy beside, put in place");
        }
        fs::remove_dir_all(&copy).unwrap();
        self.assert_all_right("after the copy that took over");
    }

    fn round(&mut self, number: usize) {
        self.now = format!("round {number}");
        let client = self.cluster.client();
        self.change(&client, &format!("a{number}"));
        self.back_up();
        self.move_units();
        self.change(&client, &format!("b{number}"));
        let model = self.model.clone();
        self.check_ids(&model);
        match self.rng.random_range(0..6) {
            0 => {
                self.stop();
                self.copy_after();
            }
            1 => self.copy_beside(),
            kind => {
                sleep(TOLD_AFTER);
                self.stop();
                let newest = self.beside("newest");
                ledger_files::back_up(&self.data(), &newest);
                match kind {
                    2 => self.ledger_of_then(),
                    _ => self.old_ledger(),
                }
                self.newest_back(&newest);
            }
        }
    }
}

/// A process that ends with the test.
struct End(Child);

impl Drop for End {
    fn drop(&mut self) {
        let _ended = self.0.kill();
        let _status = self.0.wait();
    }
}

fn copy_directory(from: &Path, to: &Path) {
    let copied = Command::new("cp").arg("-a").args([from, to]).status().unwrap();
    assert!(copied.success());
}

/// A gateway on this directory, and where it would serve.
fn beside(directory: &Path) -> (Command, std::net::SocketAddr, std::net::SocketAddr) {
    let address = || {
        let socket = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        socket.local_addr().unwrap()
    };
    let (s3, admin, join) = (address(), address(), address());
    let mut command = cairn();
    command
        .arg("gateway")
        .arg("--config")
        .arg(directory.join("cairn.toml"))
        .arg("--data")
        .arg(directory);
    for (flag, at) in [
        ("--listen", s3),
        ("--admin-listen", admin),
        ("--join-listen", join),
    ] {
        command.arg(flag).arg(at.to_string());
    }
    (command, s3, admin)
}

#[test]
fn whatever_ledger_comes_back_the_newest_loses_nothing() {
    let seed: u64 = setting::number("CAIRN_TEST_SEED", rand::random());
    // Ledgers that are given up leave volumes on the disks: a cluster has room for so many rounds.
    let rounds = setting::number("CAIRN_TEST_ROUNDS", setting::scaled(4, 20));
    let clusters = setting::scaled(1, 10);
    println!("CAIRN_TEST_SEED={seed}, {clusters} clusters, {rounds} rounds each");
    let one = &|seed: u64| {
        let mut all = Rounds::new(seed);
        for number in 0..rounds {
            all.round(number);
        }
        println!(
            "seed {seed}: {rounds} rounds, {} ids seen, nothing was lost: {:?}",
            all.ids.len(),
            all.counted
        );
    };
    let seeds: Vec<u64> = (0..clusters).map(|number| seed.wrapping_add(number)).collect();
    for some in seeds.chunks(AT_ONCE) {
        std::thread::scope(|scope| {
            let running: Vec<_> = some.iter().map(|seed| scope.spawn(move || one(*seed))).collect();
            for cluster in running {
                cluster.join().unwrap();
            }
        });
    }
}
