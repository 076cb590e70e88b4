//! What `cairn node` refuses when it starts: nonsense on its command line, disks of another cluster, copies of a disk.

// A failed `unwrap` is a failed test, in the functions beside the tests too.
#![allow(clippy::unwrap_used)]

use std::path::Path;

use cairn_tests::loop_device::{self, LoopDevice};
use cairn_tests::node::{self, CLUSTER, NodeProcess};
use storage_node::client::StorageClient;
use storage_node::protocol::{ClusterId, DiskId, DiskState};

const DISK_BYTES: u64 = 64 << 20;

/// The state of each disk in words, in the order in which they were given.
fn states(node: &NodeProcess) -> Vec<String> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    let client = node.client();
    let status = runtime
        .block_on(client.status(cairn_tests::shards::DEADLINE))
        .unwrap();
    let words = |state| match state {
        DiskState::Online => "online".to_owned(),
        DiskState::Fenced { reason } => reason,
    };
    status.disks.into_iter().map(|disk| words(disk.state)).collect()
}

#[test]
fn a_cluster_that_is_no_id_is_refused_in_words() {
    for nonsense in ["", "mine", "0x12", "ca12", "+0000000000000000000000000000001"] {
        let output = NodeProcess::start_refused(&[Path::new("/nowhere")], &["--cluster", nonsense]);
        let errors = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{errors}");
        assert!(errors.contains("32 hex digits"), "{errors}");
        assert!(errors.contains("cairn disk inspect"), "{errors}");
    }
}

#[test]
fn a_node_that_knows_its_cluster_serves_its_disks_alone() {
    let directory = tempfile::tempdir().unwrap();
    let disk = directory.path().join("disk");
    node::format(&disk, DISK_BYTES, DiskId(1));
    let ours = CLUSTER.to_string();
    let node = NodeProcess::start_with(&[&disk], &["--cluster", &ours], &[]);
    assert_eq!(states(&node), ["online"]);
    drop(node);
    let other = ClusterId(7).to_string();
    let node = NodeProcess::start_with(&[&disk], &["--cluster", &other], &["disk not opened"]);
    let refused = &states(&node)[0];
    assert!(refused.contains(&ours) && refused.contains(&other), "{refused}");
}

#[test]
fn a_copied_disk_file_takes_both_out_of_service() {
    let directory = tempfile::tempdir().unwrap();
    let [disk, copy] = ["disk", "copy"].map(|name| directory.path().join(name));
    node::format(&disk, DISK_BYTES, DiskId(1));
    std::fs::copy(&disk, &copy).unwrap();
    expect_both_refused(&disk, &copy);
}

/// Locks do not tell: they are two files to the system, and one disk.
#[test]
fn a_block_device_beside_the_file_under_it_takes_both_out_of_service() {
    if loop_device::skip("a block device beside the file under it") {
        return;
    }
    let device = LoopDevice::new(DISK_BYTES);
    node::format(device.path(), 0, DiskId(1));
    expect_both_refused(device.path(), device.backing());
}

fn expect_both_refused(disk: &Path, copy: &Path) {
    let node = NodeProcess::start_with(&[disk, copy], &[], &["disk not opened"]);
    for state in states(&node) {
        let paths = [disk, copy].map(|path| path.display().to_string());
        assert!(state.contains("more than once"), "{state}");
        assert!(paths.iter().all(|path| state.contains(path)), "{state}");
    }
}
