//! What is done to a ledger that was restored, before anything else is done with it: it is not the one that the disks obeyed, and may lack
//! the last commits of that.

use crate::cluster::setup;
use crate::error::{Error, Result};
use crate::ledger::key::{self, Counter};
use crate::ledger::model::{CounterRow, GenerationRow, LeaseRow};
use crate::ledger::{CommitBuilder, Ledger};
use storage_node::protocol::{ClusterId, LedgerMarks};

/// Ids of buckets and leases that the commits that are lost may have handed out. No disk has them.
const IDS_LOST_MAX: u64 = 1 << 20;

/// Whether the rows of volumes say where units are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Places {
    /// They were taken from the disks.
    Known,
    /// Units may have moved since: the gateway looks for them when it starts (`maintenance/settling`).
    ToBeFound,
}

/// Ends all leases, takes a generation above every one that a disk obeys, and lets no id be handed out again that a disk has seen. Blobs
/// that nothing names are kept until an operator decides. One commit, with what else `commit` has.
pub async fn settle(
    ledger: &Ledger,
    cluster: ClusterId,
    marks: &[LedgerMarks],
    places: Places,
    mut commit: CommitBuilder,
) -> Result<GenerationRow> {
    match setup::find(ledger).await? {
        Some((found, _)) if found == cluster => {}
        Some((found, _)) => {
            return Err(Error::Internal(format!(
                "the ledger is of cluster {found}, not {cluster}"
            )));
        }
        None => return Err(Error::Internal("the ledger holds no cluster".into())),
    }
    let generation = ledger.get::<GenerationRow>(key::generation()).await?;
    let marks: Vec<&LedgerMarks> = marks.iter().filter(|marks| marks.is_plausible()).collect();
    let known = marks.iter().map(|marks| marks.generation.number);
    let newest = known
        .chain(generation.iter().map(|generation| generation.row.number))
        .max();
    let blob_limit = marks.iter().map(|marks| marks.blob_limit).max().unwrap_or(0);
    let volume_limit = marks.iter().map(|marks| marks.volume_limit).max().unwrap_or(0);
    for (row_key, lease) in ledger.scan::<LeaseRow>(key::table(b'l'), 1_000).await? {
        commit = commit.expect(&row_key, Some(lease.version)).delete(row_key);
    }
    let mut blobs = 0;
    for (counter, at_least, further) in [
        (Counter::Blob, blob_limit, 0),
        (Counter::Volume, volume_limit, 0),
        (Counter::Bucket, 0, IDS_LOST_MAX),
        (Counter::Lease, 0, IDS_LOST_MAX),
    ] {
        let row_key = key::counter(counter);
        let row = ledger.get::<CounterRow>(row_key.clone()).await?;
        let next = row.as_ref().map_or(1, |row| row.row.next);
        let next = next.saturating_add(further).max(at_least);
        if counter == Counter::Blob {
            blobs = next;
        }
        commit = commit
            .expect(&row_key, row.map(|row| row.version))
            .put(row_key, &CounterRow { next });
    }
    let before = generation
        .as_ref()
        .map(|generation| generation.row)
        .unwrap_or_default();
    let taken = GenerationRow {
        number: newest.unwrap_or(0) + 1,
        nonce: rand::random(),
        kept_below_blob: blobs,
        is_restored: places == Places::ToBeFound,
        before_number: before.number,
        before_nonce: before.nonce,
    };
    let row_key = key::generation();
    let commit = commit
        .expect(&row_key, generation.map(|generation| generation.version))
        .put(row_key, &taken);
    ledger.commit(commit.build()).await?;
    Ok(taken)
}
