//! Checks every byte that has a checksum, and says of each that is wrong what it belongs to.
//!
//! Two severities: damage is what was acknowledged and is not there any more, or a copy of it that is lost; unfinished
//! is what a stop in the middle of a write leaves behind, which the next start repairs, and nobody was promised.

use super::Progress;
use super::disk::Disk;
use super::summary::check_summary;
use super::survey::Survey;
use super::walk::{Hole, Judged, RecordState, WalkedExtent, WalkedUnit, walk};
use crate::format::extent::SYSTEM_UNIT;
use crate::format::record::RecordKind;
use crate::protocol::{DiskId, UnitId};
use serde::Serialize;

/// At most so many findings are kept; all are counted.
pub const FINDINGS_KEPT_MAX: usize = 1000;

/// What is wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum FindingKind {
    /// The disk is not as large as when it was formatted, or an extent is not all there.
    Size,
    /// A superblock copy is bad, or older than another.
    Superblock,
    /// An extent header copy is bad, or older than the other.
    Header,
    /// Where a record's head should be is none that verifies.
    Head,
    /// A record's payload does not match its checksums, or cannot be read.
    Payload,
    /// Parts of an extent cannot be read.
    Unreadable,
    /// A record is valid, and contradicts the extent or the superblock.
    Content,
    /// The summary of an extent does not verify, or says otherwise than its records.
    Summary,
}

/// How bad it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Severity {
    /// Something that was written whole is damaged.
    Damage,
    /// Something was being written when the disk stopped; the next start repairs it.
    Unfinished,
}

/// One thing that is wrong.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// What kind.
    pub kind: FindingKind,
    /// How bad.
    pub severity: Severity,
    /// In which extent.
    pub extent: Option<u32>,
    /// Where on the device, in bytes.
    pub offset: Option<u64>,
    /// Of which unit; none if it is not known, or the system's.
    pub unit: Option<UnitId>,
    /// Of which blob.
    pub blob: Option<u64>,
    /// Of which stripe.
    pub stripe: Option<u32>,
    /// What the record is worth, where its head is valid.
    pub state: Option<RecordState>,
    /// What is wrong, for people.
    pub what: String,
}

/// What was checked, and what was found.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Verification {
    /// The disk.
    pub disk: DiskId,
    /// Nothing is damaged.
    pub clean: bool,
    /// Extents of which both headers were read.
    pub extents: u64,
    /// Of those, extents whose records were read.
    pub extents_in_use: u64,
    /// Records whose head is valid.
    pub records: u64,
    /// Payload bytes that were compared with their checksums.
    pub payload_bytes: u64,
    /// Shards that are served.
    pub live_shards: u64,
    /// Of those, how many are damaged.
    pub live_shards_damaged: u64,
    /// Findings of damage.
    pub damaged: u64,
    /// Findings of unfinished writes.
    pub unfinished: u64,
    /// The first of them, in the order of the disk's parts.
    pub findings: Vec<Finding>,
}

impl Verification {
    pub(super) fn add(&mut self, finding: Finding) {
        match finding.severity {
            Severity::Damage => self.damaged += 1,
            Severity::Unfinished => self.unfinished += 1,
        }
        self.clean = self.damaged == 0;
        if self.findings.len() < FINDINGS_KEPT_MAX {
            self.findings.push(finding);
        }
    }
}

/// Checks a whole disk. Blocks: it reads all that is in use.
pub fn verify(disk: &Disk, progress: Progress<'_>) -> Verification {
    let survey = Survey::of(disk, progress);
    let mut found = Verification {
        disk: disk.superblock.disk,
        clean: true,
        extents: survey.extents.len() as u64,
        extents_in_use: survey.units().values().map(|extents| extents.len() as u64).sum(),
        records: 0,
        payload_bytes: 0,
        live_shards: 0,
        live_shards_damaged: 0,
        damaged: 0,
        unfinished: 0,
        findings: Vec::new(),
    };
    check_superblocks(disk, &mut found);
    for number in 0..survey.extents.len() as u32 {
        check_headers(disk, &survey, number, &mut found);
    }
    walk(
        disk,
        &survey,
        |_| true,
        progress,
        |unit| {
            check_unit(disk, &survey, &unit, &mut found);
        },
    );
    found
}

pub(super) fn finding(kind: FindingKind, severity: Severity, what: impl Into<String>) -> Finding {
    Finding {
        kind,
        severity,
        extent: None,
        offset: None,
        unit: None,
        blob: None,
        stripe: None,
        state: None,
        what: what.into(),
    }
}

fn check_superblocks(disk: &Disk, found: &mut Verification) {
    let (now, formatted) = (disk.device.info().size, disk.superblock.device_size);
    if now != formatted {
        let what = format!("the disk was {formatted} bytes when it was formatted and is {now} bytes now");
        found.add(finding(FindingKind::Size, Severity::Damage, what));
    }
    for copy in &disk.copies {
        let (severity, what) = match (&copy.problem, copy.superblock) {
            (Some(problem), _) => (Severity::Damage, problem.clone()),
            (None, Some(s)) if (s.disk, s.incarnation) != (disk.identity.disk, disk.identity.incarnation) => {
                (
                    Severity::Damage,
                    format!("of disk {} in incarnation {}", s.disk, s.incarnation),
                )
            }
            (None, Some(s)) if s.sequence < disk.superblock.sequence => (
                Severity::Unfinished,
                format!(
                    "sequence {}, and {} is the newest",
                    s.sequence, disk.superblock.sequence
                ),
            ),
            _ => continue,
        };
        found.add(Finding {
            offset: Some(copy.offset),
            ..finding(
                FindingKind::Superblock,
                severity,
                format!("superblock copy {}: {what}", copy.copy),
            )
        });
    }
}

fn check_headers(disk: &Disk, survey: &Survey, number: u32, found: &mut Verification) {
    let extent = &survey.extents[number as usize];
    let at = |offset, kind, severity, what: String| Finding {
        extent: Some(number),
        offset: Some(disk.offset(number, offset)),
        ..finding(kind, severity, what)
    };
    if extent.missing > 0 {
        let what = format!(
            "{} bytes of the extent are past the end of the disk",
            extent.missing
        );
        return found.add(at(0, FindingKind::Size, Severity::Damage, what));
    }
    let end = disk.layout.data_end();
    let kind = FindingKind::Header;
    match &extent.headers {
        [Err(a), Err(b)] => {
            let what = format!("both headers are bad, so what it holds is not read: A: {a}; B: {b}");
            found.add(at(0, kind, Severity::Damage, what));
        }
        [Err(what), Ok(_)] => found.add(at(0, kind, Severity::Damage, format!("header A: {what}"))),
        [Ok(_), Err(what)] => found.add(at(end, kind, Severity::Damage, format!("header B: {what}"))),
        [Ok(a), Ok(b)] if a != b => {
            let (older, name) = if a.sequence < b.sequence {
                (0, "A")
            } else {
                (end, "B")
            };
            let what = format!("header {name} is older than the other copy");
            found.add(at(older, kind, Severity::Unfinished, what));
        }
        _ => {}
    }
    if let Some(header) = extent.header
        && header.generation >= disk.superblock.generation_limit
    {
        let limit = disk.superblock.generation_limit;
        let what = format!(
            "generation {}, and none from {limit} on was reserved",
            header.generation
        );
        found.add(at(0, FindingKind::Content, Severity::Damage, what));
    }
}

fn check_unit(disk: &Disk, survey: &Survey, walked: &WalkedUnit, found: &mut Verification) {
    for extent in &walked.extents {
        check_extent(disk, survey, walked.unit, extent, found);
        if let Some(finding) = check_summary(disk, survey, walked, extent) {
            found.add(finding);
        }
    }
    for record in &walked.records {
        found.records += 1;
        found.payload_bytes += u64::from(record.head.len);
        let live = record.state == RecordState::Live;
        found.live_shards += u64::from(live);
        if let Some(finding) = check_record(disk, walked.unit, record) {
            found.live_shards_damaged += u64::from(live);
            found.add(finding);
        }
    }
}

fn check_extent(disk: &Disk, survey: &Survey, unit: UnitId, extent: &WalkedExtent, found: &mut Verification) {
    let unit = (unit != SYSTEM_UNIT).then_some(unit);
    if extent.unreadable {
        found.add(Finding {
            extent: Some(extent.number),
            offset: Some(disk.offset(extent.number, 0)),
            unit,
            ..finding(
                FindingKind::Unreadable,
                Severity::Damage,
                "parts of the extent cannot be read",
            )
        });
    }
    for hole in &extent.holes {
        let severity = match hole.batch > survey.flushed {
            true => Severity::Unfinished,
            false => Severity::Damage,
        };
        found.add(Finding {
            extent: Some(extent.number),
            offset: Some(disk.offset(extent.number, hole.place.offset)),
            unit: hole
                .claim
                .map(|(unit, _)| unit)
                .or(unit)
                .filter(|unit| *unit != SYSTEM_UNIT),
            blob: hole.claim.map(|(_, key)| key.blob),
            stripe: hole.claim.map(|(_, key)| key.stripe),
            ..finding(FindingKind::Head, severity, hole_words(hole))
        });
    }
}

fn hole_words(hole: &Hole) -> String {
    let records = match hole.lost {
        1 => "a record whose head does not verify".into(),
        lost => format!("{lost} records whose heads do not verify"),
    };
    let place = if hole.at_end {
        ", the last of its extent"
    } else {
        ""
    };
    let claim = if hole.claim.is_some() {
        "; what it was is what the damaged bytes say"
    } else {
        ""
    };
    format!("{records}{place}{claim}")
}

fn check_record(disk: &Disk, owner: UnitId, record: &Judged) -> Option<Finding> {
    let head = &record.head;
    let (kind, severity, what) = match (&record.payload, record.state) {
        (_, RecordState::Cut) => return None,
        (Some(Err(_)), RecordState::Torn) => (
            FindingKind::Payload,
            Severity::Unfinished,
            "the write of this record was not finished".into(),
        ),
        (Some(Err(what)), _) => (FindingKind::Payload, Severity::Damage, what.clone()),
        _ if owner != SYSTEM_UNIT && (head.unit != owner || head.kind != RecordKind::Shard) => (
            FindingKind::Content,
            Severity::Damage,
            "a record that does not belong into an extent of this unit".into(),
        ),
        _ if owner == SYSTEM_UNIT && head.kind == RecordKind::Shard => (
            FindingKind::Content,
            Severity::Damage,
            "a shard in an extent of the system".into(),
        ),
        _ => return None,
    };
    Some(Finding {
        extent: Some(head.place.extent),
        offset: Some(disk.offset(head.place.extent, head.place.offset)),
        unit: (head.unit != SYSTEM_UNIT).then_some(head.unit),
        blob: Some(head.key.blob),
        stripe: Some(head.key.stripe),
        state: Some(record.state),
        ..finding(kind, severity, what)
    })
}
