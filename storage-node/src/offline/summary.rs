//! Compares the summaries of sealed extents with the records that they sum up.
//!
//! A summary that is wrong would be believed at the next start, so it is damage like any other; one that does not verify
//! costs a walk, and is written again.

use super::disk::Disk;
use super::survey::Survey;
use super::verify::{Finding, FindingKind, Severity, finding};
use super::walk::{Judged, RecordState, WalkedExtent, WalkedUnit};
use crate::engine::tail::read_entries;
use crate::format::record::RecordKind;
use crate::format::summary::{SummaryEntry, SummaryFooter, Tail, summary_start};

/// What is wrong with the summary of an extent, if anything.
pub fn check_summary(
    disk: &Disk,
    survey: &Survey,
    unit: &WalkedUnit,
    extent: &WalkedExtent,
) -> Option<Finding> {
    let (severity, what) = match &survey.extents[extent.number as usize].tail {
        Tail::Open => return None,
        Tail::Damaged(why) => (Severity::Damage, why.clone()),
        Tail::Sealed(footer) => problem(disk, survey, unit, extent, footer)?,
    };
    let at = match &survey.extents[extent.number as usize].tail {
        Tail::Sealed(footer) => summary_start(&disk.layout, footer.entries.into()),
        _ => summary_start(&disk.layout, 0),
    };
    Some(Finding {
        extent: Some(extent.number),
        offset: Some(disk.offset(extent.number, at)),
        unit: Some(unit.unit),
        ..finding(
            FindingKind::Summary,
            severity,
            format!("summary of the extent: {what}"),
        )
    })
}

fn problem(
    disk: &Disk,
    survey: &Survey,
    unit: &WalkedUnit,
    extent: &WalkedExtent,
    footer: &SummaryFooter,
) -> Option<(Severity, String)> {
    let listed = match read_entries(&*disk.device, &disk.layout, &disk.identity, footer) {
        Ok(listed) => listed,
        // The footer is of one sector: it may have been written, and the rest not.
        Err(what) if survey.flushed <= footer.flushed => return Some((Severity::Unfinished, what)),
        Err(what) => return Some((Severity::Damage, what)),
    };
    let is_whole = extent.holes.is_empty() && !extent.unreadable;
    let records = records_of(unit, extent.number);
    let differing = match is_whole {
        true => first_difference(&listed, &records),
        // What the damage hides is listed, and not walked.
        false => records
            .iter()
            .find(|record| !listed.contains(record))
            .map(|record| record.offset),
    };
    let end = u64::from(disk.layout.data_start()) + extent.written;
    let what = match differing {
        _ if footer.unit != unit.unit => "it is of another unit".into(),
        Some(offset) => format!("it says otherwise than the records, first at {offset} in the extent"),
        None if is_whole && u64::from(footer.end) != end => {
            format!(
                "it says that the log ends at {}, and it ends at {end}",
                footer.end
            )
        }
        None => return None,
    };
    Some((Severity::Damage, what))
}

/// Where two lists of records begin to differ.
fn first_difference(listed: &[SummaryEntry], records: &[SummaryEntry]) -> Option<u32> {
    let same = listed.iter().zip(records).take_while(|(a, b)| a == b).count();
    let next = [listed.get(same), records.get(same)];
    next.into_iter().flatten().map(|entry| entry.offset).min()
}

/// What the summary of an extent should list, by walking it.
fn records_of(unit: &WalkedUnit, number: u32) -> Vec<SummaryEntry> {
    // They are in the order of their extents.
    let first = unit.records.partition_point(|r| r.head.place.extent < number);
    let here = unit.records[first..]
        .iter()
        .take_while(|r| r.head.place.extent == number);
    let is_listed = |r: &&Judged| {
        r.state != RecordState::Cut && r.head.kind == RecordKind::Shard && r.head.unit == unit.unit
    };
    here.filter(is_listed)
        .map(|record| SummaryEntry {
            key: record.head.key,
            sequence: record.head.sequence,
            offset: record.head.place.offset,
            len: record.head.len,
            digests: record.digests as u8,
        })
        .collect()
}
