//! Block devices and small filesystems of a test's own, on loop devices. They need root, `losetup`, `mount` and
//! `mkfs.ext4`.
//!
//! Invariants: what was attached or mounted is detached and unmounted when it is dropped, also by a test that fails;
//! whoever uses it has been dropped before (declare it first).

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use tempfile::TempDir;

/// How often something that is in use is let go again: the kernel ends a killed process's requests a moment after it.
const RELEASE_ATTEMPTS: u32 = 50;
/// How long lies between.
const RELEASE_RETRY: Duration = Duration::from_millis(100);

/// Why this machine has no loop devices for us, if it has none.
pub fn unavailable() -> Option<String> {
    if !rustix::process::geteuid().is_root() {
        return Some("not root".into());
    }
    let missing = |tool: &&str| Command::new(tool).arg("--version").output().is_err();
    let tools = ["losetup", "mount", "umount", "mkfs.ext4"];
    if let Some(tool) = tools.iter().find(|tool| missing(tool)) {
        return Some(format!("{tool} is not installed"));
    }
    let attempt = run("losetup", &["--find"]);
    attempt.err()
}

/// Whether to skip a test that needs loop devices. Says so where everybody sees it.
pub fn skip(test: &str) -> bool {
    let why = unavailable();
    if let Some(why) = &why {
        println!("SKIPPED {test}: no loop devices here: {why}");
    }
    why.is_some()
}

fn run(program: &str, arguments: &[&str]) -> Result<String, String> {
    let output = Command::new(program)
        .args(arguments)
        .output()
        .map_err(|e| e.to_string())?;
    if output.status.success() {
        Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
    } else {
        let complaint = String::from_utf8_lossy(&output.stderr);
        Err(format!("{program} {arguments:?}: {}", complaint.trim()))
    }
}

/// Asks until it works; what does not work in the end is said, not hidden and no second panic.
fn release(program: &str, arguments: &[&str]) {
    let mut complaint = String::new();
    for _ in 0..RELEASE_ATTEMPTS {
        match run(program, arguments) {
            Ok(_) => return,
            Err(why) => complaint = why,
        }
        std::thread::sleep(RELEASE_RETRY);
    }
    eprintln!("left behind: {complaint}");
}

/// A sparse file as a block device.
#[derive(Debug)]
pub struct LoopDevice {
    path: PathBuf,
    backing: PathBuf,
    _directory: TempDir,
}

impl LoopDevice {
    /// A new device of this many bytes, all zero.
    pub fn new(bytes: u64) -> Self {
        let directory = tempfile::Builder::new().prefix("cairn-loop-").tempdir().unwrap();
        let backing = directory.path().join("backing");
        File::create(&backing).unwrap().set_len(bytes).unwrap();
        let path = run("losetup", &["--find", "--show", text(&backing)]).unwrap();
        Self {
            path: path.into(),
            backing,
            _directory: directory,
        }
    }

    /// The block device.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The file under it.
    pub fn backing(&self) -> &Path {
        &self.backing
    }

    /// Gives the file under the device another length, and the device notices nothing: what lies past the end of the
    /// file cannot be read until it is written.
    pub fn truncate_backing(&self, bytes: u64) {
        let file = File::options().write(true).open(&self.backing).unwrap();
        file.set_len(bytes).unwrap();
    }

    /// Makes the device as large as the file under it is now.
    pub fn take_size_of_backing(&self) {
        run("losetup", &["--set-capacity", text(&self.path)]).unwrap();
    }
}

impl Drop for LoopDevice {
    fn drop(&mut self) {
        release("losetup", &["--detach", text(&self.path)]);
    }
}

/// A mounted ext4 of its own.
#[derive(Debug)]
pub struct Filesystem {
    mounted: TempDir,
    // Dropped after it was unmounted.
    _device: LoopDevice,
}

impl Filesystem {
    /// A new ext4 on a loop device of this many bytes, none of them set aside for root.
    pub fn ext4(bytes: u64) -> Self {
        let device = LoopDevice::new(bytes);
        run("mkfs.ext4", &["-q", "-m", "0", text(device.path())]).unwrap();
        let mounted = tempfile::Builder::new().prefix("cairn-ext4-").tempdir().unwrap();
        run("mount", &[text(device.path()), text(mounted.path())]).unwrap();
        Self {
            mounted,
            _device: device,
        }
    }

    /// A file in it.
    pub fn file(&self, name: &str) -> PathBuf {
        self.mounted.path().join(name)
    }
}

impl Drop for Filesystem {
    fn drop(&mut self) {
        release("umount", &[text(self.mounted.path())]);
    }
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}
