//! What of the archive may go.
//!
//! Invariant: what is kept goes back to the older of the last two complete snapshots of the chain that is being written, whole: each entry
//! from there on was found to be there before anything is deleted.

use super::chain::{Chain, choose};
use super::entry::{Header, Kind};
use super::finding::{Finder, Places};
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

/// What is old in the archive, when it was looked at.
pub struct Old {
    /// Entries below this number may go,
    pub floor: u64,
    /// if all from there up to this one, at least, are there.
    pub known: Header,
    /// The system volume that is being written.
    pub in_use: Option<u64>,
    /// Those that this gateway made. One may be there without an entry, because the first is on its way.
    pub own: HashSet<u64>,
}

/// Deletes what is old, and drops the units that are empty then. How many blobs it deleted; none if something was doubtful. It ends early
/// when nothing may be deleted any more.
pub async fn delete_below(finder: &Finder, old: &Old, may_delete: impl Fn() -> bool) -> Option<usize> {
    let (floor, known) = (old.floor, &old.known);
    let found = finder.find(0).await;
    let kept: Vec<(Header, Places)> = found
        .entries
        .iter()
        .filter(|(header, _)| header.number >= floor)
        .cloned()
        .collect();
    let ours = super::chain::chains(&kept, &HashSet::new());
    let is_whole = ours.iter().any(|chain| {
        // Later ones may have come meanwhile.
        let at = known
            .number
            .checked_sub(floor)
            .map_or(usize::MAX, |at| at as usize);
        let up_to_known = chain.get(..at.saturating_add(1)).unwrap_or_default();
        let ends_there = up_to_known
            .last()
            .is_some_and(|(header, _)| header.digest() == known.digest());
        ends_there && choose(up_to_known, &HashSet::new(), None).is_ok()
    });
    if !is_whole {
        tracing::info!(
            floor,
            "not all entries of the archive were found that are to be kept; none is deleted"
        );
        return None;
    }
    let mut deleted = 0;
    for (place, blobs) in finder.blobs_below(floor).await {
        if !may_delete() {
            break;
        }
        let others = found.units.get(&place).copied().unwrap_or(usize::MAX);
        if !blobs.is_empty() {
            if let Err(error) = finder.delete(&place, &blobs).await {
                tracing::debug!(disk = %place.disk, %error, "old entries of the archive are deleted later");
                continue;
            }
            deleted += blobs.len();
        }
        let volume = place.unit.volume;
        let is_old = old.in_use != Some(volume) && (!blobs.is_empty() || !old.own.contains(&volume));
        if others == blobs.len()
            && is_old
            && let Err(error) = finder.drop_unit(&place).await
        {
            tracing::debug!(disk = %place.disk, %error, "an empty unit of the archive is dropped later");
        }
    }
    Some(deleted)
}
