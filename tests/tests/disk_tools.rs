//! The offline tools on the disks of a real cluster: they refuse a served disk, call a stopped one clean, and find one
//! flipped bit, the shard it is in, and nothing else.

// A failed `unwrap` is a failed test, in the functions beside the tests too.
#![allow(clippy::unwrap_used)]

use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use cairn_tests::cluster::{Cluster, binary};
use cairn_tests::content::Content;
use cairn_tests::faults::{self, Flip};
use cairn_tests::load::{self, SIZES};
use cairn_tests::tools;
use serde_json::Value;

const BUCKET: &str = "offline";
const TOOL_TIME_MAX: Duration = Duration::from_secs(60);

fn tool(arguments: &[&str], disk: &Path) -> Output {
    let mut command = Command::new(binary());
    command.arg("disk").args(arguments).arg(disk).stdin(Stdio::null());
    let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn();
    tools::wait_with_output(child.unwrap(), TOOL_TIME_MAX)
}

/// The exit code, and standard output as JSON.
fn json(arguments: &[&str], disk: &Path) -> (i32, Value) {
    let output = tool(arguments, disk);
    let text = String::from_utf8(output.stdout).unwrap();
    let errors = String::from_utf8_lossy(&output.stderr);
    let value =
        serde_json::from_str(&text).unwrap_or_else(|e| panic!("{arguments:?}: {e}\n{text}\n{errors}"));
    (output.status.code().unwrap(), value)
}

/// A cluster with objects, some of them deleted, after it stopped; and an object that is there.
fn stopped() -> (Cluster, Content) {
    let mut cluster = Cluster::start();
    let client = cluster.client();
    client.create_bucket(BUCKET);
    load::store(&client, BUCKET, "kept-", &SIZES);
    let content = Content::random(300_000);
    client.put(BUCKET, "object", &content.make()).unwrap();
    cluster.terminate();
    (cluster, content)
}

#[test]
fn a_served_disk_is_refused() {
    let cluster = Cluster::start();
    for command in ["probe", "inspect", "verify"] {
        let output = tool(&[command], &cluster.disk(0));
        let errors = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{command}: {errors}");
        assert!(
            errors.contains("in use by another process"),
            "{command}: {errors}"
        );
        assert!(output.stdout.is_empty());
    }
}

#[test]
fn stopped_disks_are_clean_and_hold_what_the_cluster_said() {
    let (mut cluster, _) = stopped();
    let mut live = 0;
    for disk in cluster.disks() {
        let (code, found) = json(&["verify", "--json"], &disk);
        assert_eq!((code, &found["clean"]), (0, &Value::Bool(true)), "{found}");
        assert_eq!(found["findings"], Value::Array(Vec::new()));
        let (code, held) = json(&["inspect", "--json"], &disk);
        assert_eq!(code, 0);
        assert_eq!(held["live_shards"], found["live_shards"]);
        assert_eq!(held["extents_bad"], 0);
        live += held["live_shards"].as_u64().unwrap();
        let (code, offered) = json(&["probe", "--json"], &disk);
        assert_eq!(
            (code, &offered["superblock"]),
            (0, &Value::from("cairn")),
            "{offered}"
        );
        assert_eq!(offered["disk"], held["disk"]);
        assert!(tool(&["verify"], &disk).status.success());
    }
    assert!(live > 0);
    // Looking changed nothing, and holds nothing.
    cluster.restart();
    let disks = cluster.status()["disks"].as_array().unwrap().clone();
    let served: u64 = disks.iter().map(|disk| disk["shards"].as_u64().unwrap()).sum();
    assert_eq!(served, live);
    let backend = disks[0]["backend"].clone();
    cluster.terminate();
    let (_, offered) = json(&["probe", "--json"], &cluster.disk(0));
    assert_eq!(offered["backend"], backend);
}

#[test]
fn a_flipped_bit_is_found_in_its_shard_and_nothing_else_is() {
    let (cluster, content) = stopped();
    let bytes = content.make();
    let places = faults::find(&cluster.disks(), &bytes[1000..1032]);
    let place = places.first().expect("the object's bytes are on a disk").clone();
    let flip = Flip::new(place.clone());
    let (code, found) = json(&["verify", "--json"], &place.disk);
    assert_eq!((code, &found["damaged"]), (1, &Value::from(1)), "{found}");
    let finding = &found["findings"][0];
    assert_eq!(
        (&finding["kind"], &finding["state"]),
        (&Value::from("payload"), &Value::from("live"))
    );

    // The finding names a record that `inspect` shows around the flipped byte, and calls bad too.
    let shard = format!("{}/{}", finding["blob"], finding["stripe"]);
    let (code, held) = json(&["inspect", "--json", "--record", &shard], &place.disk);
    assert_eq!(code, 0);
    let records = held["records"].as_array().unwrap();
    let record = records
        .iter()
        .find(|r| r["device_offset"] == finding["offset"])
        .unwrap();
    let number = |field: &str| record[field].as_u64().unwrap();
    let payload = number("device_offset") + number("payload_at");
    assert!(
        (payload..payload + number("len")).contains(&place.offset),
        "{record}"
    );
    assert_ne!(record["payload"], "ok");
    let text = String::from_utf8(tool(&["verify"], &place.disk).stdout).unwrap();
    assert!(
        text.contains(&format!("shard {shard}")) && text.contains("1 damaged"),
        "{text}"
    );

    for disk in cluster.disks().iter().filter(|disk| **disk != place.disk) {
        assert!(tool(&["verify"], disk).status.success(), "{}", disk.display());
    }
    flip.undo();
    assert!(tool(&["verify"], &place.disk).status.success());
}

#[test]
fn what_is_no_disk_of_ours_cannot_be_read() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("noise");
    std::fs::write(&path, vec![0x5a; 1 << 20]).unwrap();
    for path in [path.as_path(), directory.path(), Path::new("/nowhere")] {
        for command in ["inspect", "verify"] {
            let output = tool(&[command], path);
            let errors = String::from_utf8_lossy(&output.stderr);
            assert_eq!(
                output.status.code(),
                Some(2),
                "{command} {}: {errors}",
                path.display()
            );
            assert!(errors.starts_with("cairn: "), "{errors}");
        }
    }
    assert!(tool(&["probe"], &path).status.success());
}

/// A cluster that is killed leaves nothing worse than unfinished writes.
#[test]
fn a_killed_cluster_leaves_no_damage() {
    let mut cluster = Cluster::start();
    let client = cluster.client();
    client.create_bucket(BUCKET);
    let body = Content::random(3_000_000).make();
    std::thread::scope(|scope| {
        let writers: Vec<_> = (0..4)
            .map(|number| {
                let (client, body) = (&client, &body);
                scope.spawn(move || while client.put(BUCKET, &format!("{number}"), body).is_ok() {})
            })
            .collect();
        std::thread::sleep(Duration::from_secs(2));
        cluster.kill();
        writers.into_iter().for_each(|writer| writer.join().unwrap());
    });
    for disk in cluster.disks() {
        let (code, found) = json(&["verify", "--json"], &disk);
        assert_eq!((code, &found["damaged"]), (0, &Value::from(0)), "{found}");
        assert!(found["records"].as_u64().unwrap() > 0);
    }
}
