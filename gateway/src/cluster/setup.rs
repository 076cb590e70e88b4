//! The first start of a cluster, and every later one: what the ledger must hold before anything is served.
//!
//! Order: the settings row, then disk rows marked unformatted, then (by the caller) the media, then the rows marked
//! formatted. A crash anywhere is resumed by doing the same again, because an unformatted disk holds nothing yet.

use crate::error::{Error, Result};
use crate::ledger::model::{DiskRow, SettingsRow};
use crate::ledger::{CommitBuilder, Ledger, Typed, key};
use bytes::Bytes;
use ec_core::Scheme;
use storage_node::protocol::{ClusterId, DiskId};

/// What the operator asks for.
#[derive(Clone, Debug)]
pub struct Wanted {
    /// The default scheme, if asked for; a new cluster gets `scheme_default` otherwise.
    pub scheme: Option<Scheme>,
    /// How many disks, if asked for; a new cluster gets `disks_default` otherwise.
    pub disks: Option<u32>,
    /// Scheme of a new cluster.
    pub scheme_default: Scheme,
    /// Disks of a new cluster.
    pub disks_default: u32,
    /// Size of each disk of a new cluster, in bytes.
    pub disk_size: u64,
}

/// A disk the ledger names.
#[derive(Clone, Debug)]
pub struct PlannedDisk {
    /// Its id.
    pub id: DiskId,
    /// Its row.
    pub row: DiskRow,
}

/// What the ledger says the cluster is.
#[derive(Clone, Debug)]
pub struct Cluster {
    /// Its id.
    pub id: ClusterId,
    /// The default scheme.
    pub scheme: Scheme,
    /// Its disks, in label order.
    pub disks: Vec<PlannedDisk>,
}

/// Opens the cluster that the ledger describes, or plans a new one; refuses what does not fit what is there.
pub async fn open_or_plan(ledger: &Ledger, wanted: &Wanted) -> Result<Cluster> {
    match ledger.get::<SettingsRow>(key::settings()).await? {
        Some(settings) => open(ledger, settings.row, wanted).await,
        None => plan(ledger, wanted).await,
    }
}

async fn open(ledger: &Ledger, settings: SettingsRow, wanted: &Wanted) -> Result<Cluster> {
    if let Some(scheme) = wanted.scheme
        && scheme.to_string() != settings.scheme
    {
        return Err(Error::InvalidRequest(format!(
            "this data directory holds a cluster of scheme {}, not {scheme}; leave --scheme out, or use another --data",
            settings.scheme
        )));
    }
    if let Some(disks) = wanted.disks
        && disks != settings.disks
    {
        return Err(Error::InvalidRequest(format!(
            "this data directory holds a cluster of {} disks, not {disks}; leave --disks out, or use another --data",
            settings.disks
        )));
    }
    let (id, scheme) = identity(&settings)?;
    let mut disks = Vec::new();
    ledger
        .for_each(key::table(b'd'), |row_key, Typed { row, .. }: Typed<DiskRow>| {
            if let Some(id) = key::disk_id(&row_key) {
                disks.push(PlannedDisk { id: DiskId(id), row });
            }
        })
        .await?;
    disks.sort_by(|a, b| (a.row.label.len(), &a.row.label).cmp(&(b.row.label.len(), &b.row.label)));
    Ok(Cluster { id, scheme, disks })
}

fn identity(settings: &SettingsRow) -> Result<(ClusterId, Scheme)> {
    let cluster: [u8; 16] = settings
        .cluster
        .as_ref()
        .try_into()
        .map_err(|_| Error::Internal("the cluster id is not 16 bytes".into()))?;
    let scheme = settings
        .scheme
        .parse()
        .map_err(|e| Error::Internal(format!("the ledger's scheme: {e}")))?;
    Ok((ClusterId(u128::from_be_bytes(cluster)), scheme))
}

/// Makes a cluster that has no disks yet, in a ledger that is empty.
pub async fn create(ledger: &Ledger, id: ClusterId, name: &str, scheme: Scheme) -> Result<()> {
    let settings = SettingsRow {
        cluster: Bytes::copy_from_slice(&id.0.to_be_bytes()),
        scheme: scheme.to_string(),
        disks: 0,
        format: 1,
        name: name.into(),
    };
    let commit = CommitBuilder::new()
        .expect(&key::settings(), None)
        .put(key::settings(), &settings);
    ledger.commit(commit.build()).await?;
    Ok(())
}

/// The cluster that the ledger holds, and its scheme.
pub async fn find(ledger: &Ledger) -> Result<Option<(ClusterId, Scheme)>> {
    let settings = ledger.get::<SettingsRow>(key::settings()).await?;
    settings.map(|settings| identity(&settings.row)).transpose()
}

async fn plan(ledger: &Ledger, wanted: &Wanted) -> Result<Cluster> {
    let scheme = wanted.scheme.unwrap_or(wanted.scheme_default);
    let enough = wanted.disks_default.max(scheme.total_shards() as u32);
    let count = wanted.disks.unwrap_or(enough);
    if scheme.total_shards() > count as usize {
        return Err(Error::InvalidRequest(format!(
            "{scheme} needs {} disks, and there are {count}: give more --disks or a narrower --scheme",
            scheme.total_shards()
        )));
    }
    let id: u128 = rand::random();
    let settings = SettingsRow {
        cluster: Bytes::copy_from_slice(&id.to_be_bytes()),
        scheme: scheme.to_string(),
        disks: count,
        format: 1,
        ..SettingsRow::default()
    };
    let mut commit = CommitBuilder::new()
        .expect(&key::settings(), None)
        .put(key::settings(), &settings);
    let mut disks = Vec::new();
    for n in 0..count {
        let disk: u128 = rand::random();
        let row = DiskRow {
            incarnation: 1,
            label: format!("disk-{n}"),
            size: wanted.disk_size,
            formatted: false,
            ..DiskRow::default()
        };
        commit = commit.put(key::disk(disk), &row);
        disks.push(PlannedDisk {
            id: DiskId(disk),
            row,
        });
    }
    ledger.commit(commit.build()).await?;
    Ok(Cluster {
        id: ClusterId(id),
        scheme,
        disks,
    })
}

/// Records that the media of these disks are formatted.
pub async fn mark_formatted(ledger: &Ledger, disks: &mut [PlannedDisk]) -> Result<()> {
    let mut commit = CommitBuilder::new();
    for disk in disks.iter_mut() {
        disk.row.formatted = true;
        commit = commit.put(key::disk(disk.id.0), &disk.row);
    }
    ledger.commit(commit.build()).await?;
    Ok(())
}
