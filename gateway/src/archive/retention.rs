//! What of the archive may go.
//!
//! Invariant: what is kept goes back to the older of the last two complete snapshots of the chain that is being written, whole: each entry
//! from there on was found to be there before anything is deleted.

use super::chain::{Chain, choose};
use super::entry::{Header, Kind};
use super::finding::{Finder, Places};
use crate::error::Result;
use std::collections::HashSet;

/// Complete snapshots that are kept.
const KEPT: usize = 2;

/// The numbers of the first entries of the complete snapshots of a chain, oldest first.
pub fn snapshots<T: Clone>(chain: &Chain<T>) -> Vec<u64> {
    let ends = chain.iter().filter(|(header, _)| header.kind == Kind::End);
    let is_there = |number: &u64| chain.first().is_some_and(|(first, _)| first.number <= *number);
    ends.map(|(header, _)| header.snapshot).filter(is_there).collect()
}

/// Entries with a smaller number than this are of no use any more.
pub fn floor(snapshots: &[u64]) -> Option<u64> {
    snapshots.len().checked_sub(KEPT).map(|at| snapshots[at])
}

/// Deletes entries below `floor`, if all from there up to the newest one are found, and drops the units that are empty then. How many
/// blobs it deleted; none if something was doubtful.
pub async fn delete_below(
    finder: &Finder,
    floor: u64,
    newest: &Header,
    in_use: Option<u64>,
) -> Result<Option<usize>> {
    let found = finder.find(0).await;
    let kept: Vec<(Header, Places)> = found
        .entries
        .iter()
        .filter(|(header, _)| header.number >= floor)
        .cloned()
        .collect();
    let ours = super::chain::chains(&kept, &HashSet::new());
    let is_whole = ours.iter().any(|chain| {
        let ends_there = chain
            .last()
            .is_some_and(|(header, _)| header.digest() == newest.digest());
        ends_there
            && chain.len() as u64 == newest.number - floor + 1
            && choose(chain, &HashSet::new(), None).is_ok()
    });
    if !is_whole {
        tracing::info!(
            floor,
            "not all entries of the archive were found that are to be kept; none is deleted"
        );
        return Ok(None);
    }
    let mut deleted = 0;
    for (place, blobs) in finder.blobs_below(floor).await {
        let others = found.units.get(&place).copied().unwrap_or(usize::MAX);
        if !blobs.is_empty() {
            if let Err(error) = finder.delete(&place, &blobs).await {
                tracing::debug!(disk = %place.disk, %error, "old entries of the archive are deleted later");
                continue;
            }
            deleted += blobs.len();
        }
        if others == blobs.len()
            && in_use != Some(place.unit.volume)
            && let Err(error) = finder.drop_unit(&place).await
        {
            tracing::debug!(disk = %place.disk, %error, "an empty unit of the archive is dropped later");
        }
    }
    Ok(Some(deleted))
}
