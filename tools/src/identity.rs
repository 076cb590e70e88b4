//! Who a gateway is to nodes: its name and address, and the ledger file that it has locked.
//!
//! Whoever said the same before is dead, for the lock on that file is this process's: so a gateway that was killed and starts again waits
//! for nobody. A copy of the file is another file, and another machine has another boot id.

use gateway::cluster::generation::Identity;
use std::net::SocketAddr;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

/// Of the gateway that has this ledger open.
pub fn identity(
    name: &str,
    listen: SocketAddr,
    ledger: &Path,
    takes_over: bool,
) -> std::io::Result<Identity> {
    let boot = std::fs::read_to_string("/proc/sys/kernel/random/boot_id")?;
    let file = std::fs::metadata(ledger)?;
    let machine = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    Ok(Identity {
        name: format!("{name} at {listen} on {}", machine.trim()),
        instance: format!("{} {}:{}", boot.trim(), file.dev(), file.ino()),
        takes_over,
    })
}
