//! Reaches the disks of a cluster whose gateway does not run: those of its nodes, or files that this process serves meanwhile.

use crate::home::Home;
use gateway::archive::finding::Source;
use gateway::cluster::disks::admit_reading;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use storage_node::client::StorageClient;
use storage_node::http_client::HttpClient;
use storage_node::node::{DiskSpec, Node, NodeOptions};
use storage_node::protocol::{Admission, AdmitRequest, ClusterId, DiskState, DiskStatus, LedgerMarks};
use storage_node::tls::Credentials;

type Error = Box<dyn std::error::Error + Send + Sync>;

const DEADLINE: Duration = Duration::from_secs(10);

/// The disks that are asked, however they are reached.
pub struct Reached {
    pub sources: Vec<Source>,
    pub marks: Vec<LedgerMarks>,
    /// What cannot be read, and why.
    pub away: Vec<String>,
    /// Served in this process.
    local: Option<Arc<Node>>,
}

impl Reached {
    /// Lets go of disks that this process serves.
    pub async fn release(self) -> Result<(), Error> {
        if let Some(node) = self.local {
            tokio::task::spawn_blocking(move || node.shutdown()).await?;
        }
        Ok(())
    }
}

/// What disks are for.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum For {
    /// A ledger will be made of them, and goes on with them.
    Restoring,
    /// They are read, and stay as they are.
    Reading,
}

/// The cluster's disks; none where none can be known. `nodes` or `disks`: only these, of a directory of `cairn init` or another.
pub async fn reach(
    home: &Home,
    data: &Path,
    nodes: &[String],
    disks: &[PathBuf],
    what_for: For,
) -> Result<Option<(ClusterId, Reached)>, Error> {
    if home.is_inhabited() {
        let (cluster, _) = home.authority_kept()?;
        let credentials = home.credentials(cluster)?;
        return Ok(Some((cluster, of_nodes(nodes, &credentials, what_for).await?)));
    }
    let disks = match disks {
        [] => disks_in(data)?,
        disks => disks.to_vec(),
    };
    if disks.is_empty() {
        return Ok(None);
    }
    let cluster = cluster_of(&disks).await?;
    Ok(Some((cluster, of_files(disks, cluster, what_for).await?)))
}

fn disks_in(directory: &Path) -> Result<Vec<PathBuf>, Error> {
    let mut disks = Vec::new();
    for entry in std::fs::read_dir(directory)? {
        let path = entry?.path();
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or("");
        let number = name.strip_prefix("disk-").map(str::parse::<u32>);
        if matches!(number, Some(Ok(_))) {
            disks.push(path);
        }
    }
    disks.sort();
    Ok(disks)
}

/// The cluster that the first disk that can be read is of.
async fn cluster_of(disks: &[PathBuf]) -> Result<ClusterId, Error> {
    let disks = disks.to_vec();
    let look = move || {
        let of = |path: &PathBuf| Some(storage_node::offline::Disk::open(path).ok()?.superblock().cluster);
        disks.iter().find_map(of)
    };
    let found = tokio::task::spawn_blocking(look).await?;
    Ok(found.ok_or("none of these is a disk of Cairn that can be read, or all are in use")?)
}

async fn of_files(disks: Vec<PathBuf>, cluster: ClusterId, what_for: For) -> Result<Reached, Error> {
    let specs = disks.into_iter().map(DiskSpec::at).collect();
    let options = NodeOptions {
        cluster: Some(cluster),
        ..NodeOptions::default()
    };
    let node = Arc::new(tokio::task::spawn_blocking(move || Node::open(specs, options)).await?);
    let mut reached = Reached {
        sources: Vec::new(),
        marks: Vec::new(),
        away: Vec::new(),
        local: Some(node.clone()),
    };
    let client: Arc<dyn StorageClient> = node;
    take_in(&mut reached, "here", &client, what_for).await;
    Ok(reached)
}

async fn of_nodes(addresses: &[String], credentials: &Credentials, what_for: For) -> Result<Reached, Error> {
    let mut reached = Reached {
        sources: Vec::new(),
        marks: Vec::new(),
        away: Vec::new(),
        local: None,
    };
    for address in addresses {
        let client: Arc<dyn StorageClient> = Arc::new(
            HttpClient::of_any_node(address, credentials).map_err(|e| format!("--node {address}: {e}"))?,
        );
        take_in(&mut reached, address, &client, what_for).await;
    }
    Ok(reached)
}

/// Takes in the disks of a node, and has each serve.
async fn take_in(reached: &mut Reached, name: &str, client: &Arc<dyn StorageClient>, what_for: For) {
    let status = match client.status(DEADLINE).await {
        Ok(status) => status,
        Err(error) => return reached.away.push(format!("{name}: {error}")),
    };
    for disk in status.disks {
        if let DiskState::Fenced { reason } = &disk.state {
            reached.away.push(format!("{name}, {}: {reason}", disk.path));
            continue;
        }
        if let Err(why) = admit(client, &disk, what_for).await {
            reached.away.push(format!("{name}, {}: {why}", disk.path));
            continue;
        }
        let marks = disk.ledger.unwrap_or_default();
        reached.marks.push(marks);
        reached.sources.push(Source {
            disk: disk.disk,
            incarnation: disk.incarnation,
            ledger: marks.generation,
            client: client.clone(),
        });
    }
}

/// A disk of a node serves nothing before it was admitted as it was opened. The ledger that is made of it knows an older admission, and
/// takes a greater one for the disk.
async fn admit(client: &Arc<dyn StorageClient>, disk: &DiskStatus, what_for: For) -> Result<(), String> {
    // Most serve already: the gateway is gone, and they are not.
    if client.units(disk.disk, disk.incarnation, DEADLINE).await.is_ok() {
        return Ok(());
    }
    let opening = disk.opening.ok_or("it does not say how it was opened")?;
    if what_for == For::Reading {
        let admitted = admit_reading(&**client, disk.disk, disk.incarnation, &opening, DEADLINE).await;
        return admitted.map_err(|error| error.to_string());
    }
    let request = AdmitRequest {
        opening: opening.id,
        admission: Admission {
            number: opening.admission.number + 1,
            nonce: rand::random(),
        },
        ledger: disk.ledger.unwrap_or_default().generation,
        is_reading: false,
    };
    let admitted = client
        .admit(disk.disk, disk.incarnation, &request, DEADLINE)
        .await;
    admitted.map_err(|error| error.to_string())
}
