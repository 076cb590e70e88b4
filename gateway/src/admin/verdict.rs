//! The first thing an operator should know: what is at risk, since when, and what to do next. Decided purely from what is seen.
//!
//! ```text
//! loss        something cannot be read now
//! risk        something survives no further loss, or writes or the ledger are refused
//! attention   something survives fewer losses than it should, or somebody should look
//! ok          everything survives what its scheme promises
//! ```
//! Invariant: pure. What waits to be deleted, and what is repaired by itself in time, is no reason for attention.

use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

/// How bad it is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Level {
    /// All is as it should be.
    #[default]
    Ok,
    /// Somebody should look.
    Attention,
    /// The next loss may lose data, or requests are refused.
    Risk,
    /// Something cannot be read.
    Loss,
}

/// What operators should know first.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Verdict {
    /// How bad it is.
    pub level: Level,
    /// What it is, the worst first.
    pub words: String,
    /// Since when it is so bad, in milliseconds since 1970, as far as this gateway has seen.
    pub since_ms: u64,
    /// What to do about it; none if it mends itself, or there is nothing to be done.
    pub next: Option<String>,
    /// Volumes by the losses that they survive from now on, those that survive fewer than they should; -1: cannot be read now.
    #[serde(default)]
    pub at_risk: Vec<AtRisk>,
    /// What else could be tidied up.
    #[serde(default)]
    pub hints: Vec<String>,
}

/// Volumes that survive so many losses from now on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct AtRisk {
    /// So many losses; -1: they cannot be read.
    pub losses_left: i64,
    /// How many volumes.
    pub volumes: usize,
    /// Bytes of objects in them, as far as is known.
    pub bytes: u64,
}

/// One volume, as far as the verdict goes.
#[derive(Clone, Copy, Debug)]
pub struct VolumeSeen {
    /// Losses it survives from now on.
    pub spare: i64,
    /// Losses it should survive.
    pub should: i64,
    /// Whether it can be decoded.
    pub readable: bool,
    /// Bytes of objects in it.
    pub bytes: u64,
}

/// One disk that is not as it should be.
#[derive(Clone, Debug)]
pub struct DiskSeen {
    /// Its name.
    pub label: String,
    /// Why it is not online; none if it is.
    pub why: Option<String>,
    /// It is suspect, and not down.
    pub is_suspect: bool,
    /// It was retired, or given up.
    pub is_given_up: bool,
    /// Units that the ledger has on it.
    pub units: usize,
}

/// Blobs of which too many shards are gone.
#[derive(Clone, Debug, Default)]
pub struct Unreadable {
    /// How many.
    pub blobs: usize,
    /// The first one, as `bucket/key` where that is known.
    pub first: Option<String>,
}

/// All that a verdict is made of.
#[derive(Clone, Debug, Default)]
pub struct Facts {
    /// Why the ledger cannot be asked, if it cannot.
    pub ledger: Option<String>,
    /// Why nothing is deleted, with what to do about it.
    pub holds: Vec<(String, String)>,
    /// Why uploads are refused, with what to do about it.
    pub refused: Option<(String, String)>,
    /// All volumes.
    pub volumes: Vec<VolumeSeen>,
    /// What reads, repair and the census found.
    pub unreadable: Unreadable,
    /// All disks.
    pub disks: Vec<DiskSeen>,
    /// Units that are being rebuilt,
    pub rebuilding: usize,
    /// those of them that wait for a disk or for sources,
    pub waiting: usize,
    /// and when the others are done, as far as is known.
    pub eta_s: Option<u64>,
    /// Workers whose last step failed, with why.
    pub failing: Vec<(String, String)>,
    /// Shards that repair could not mend.
    pub in_vain: usize,
    /// Why what nothing names does not go by itself, if it does not.
    pub unnamed: Option<String>,
    /// Blobs that objects name and that have no row of their own.
    pub rowless: u64,
    /// For how many seconds the archive of the ledger has been behind, and why; none if it is not for long.
    pub archive: Option<(u64, String)>,
}

/// Since when it is as bad as it is.
#[derive(Debug, Default)]
pub struct Since(Mutex<Option<(Level, u64)>>);

impl Since {
    /// Takes in how bad it is now; since when it is.
    pub fn note(&self, level: Level, now_ms: u64) -> u64 {
        let mut seen = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match *seen {
            Some((before, since_ms)) if before == level => since_ms,
            _ => {
                *seen = Some((level, now_ms));
                now_ms
            }
        }
    }
}

struct Reason {
    level: Level,
    words: String,
    next: Option<String>,
}

/// The verdict; `since_ms` is for whoever remembers.
pub fn judge(facts: &Facts) -> Verdict {
    let (at_risk, by_losses) = by_losses(facts);
    let mut reasons = Vec::new();
    if let Some(why) = &facts.ledger {
        let next = "nothing can be served without it: see the gateway's log; `cairn ledger check` on its directory when it is stopped";
        reasons.push(reason(
            Level::Risk,
            format!("the ledger cannot be used: {why}"),
            next,
        ));
    }
    reasons.extend(by_losses);
    if facts.unreadable.blobs > 0 {
        let (blobs, first) = (facts.unreadable.blobs, facts.unreadable.first.as_deref());
        let words = format!("too many shards of {} are gone", count(blobs, "blob"));
        let named = first.map_or_else(String::new, |first| format!(" ({first})"));
        let next = format!(
            "bring back disks that had them, or write these objects again{named}; `cairn scrub start --wait` counts what else is missing"
        );
        reasons.push(reason(Level::Loss, words, &next));
    }
    for (why, next) in &facts.holds {
        reasons.push(reason(Level::Risk, format!("nothing is deleted: {why}"), next));
    }
    if let Some((why, next)) = &facts.refused {
        reasons.push(reason(Level::Risk, format!("uploads are refused: {why}"), next));
    }
    reasons.extend(disks(facts));
    for (worker, why) in &facts.failing {
        let words = format!("the worker {worker} fails: {why}");
        reasons.push(reason(Level::Attention, words, "the gateway's log says more"));
    }
    if let Some((behind_s, why)) = &facts.archive {
        let words = format!(
            "the archive of the ledger has been behind for {}: {why}; what is committed now is on the gateway's machine alone",
            span(*behind_s)
        );
        let next = "it goes on by itself when enough disks can be written; until then, `cairn ledger backup` writes a copy to keep elsewhere";
        reasons.push(reason(Level::Attention, words, next));
    }
    if facts.rowless > 0 {
        let blobs = usize::try_from(facts.rowless).unwrap_or(usize::MAX);
        let words = format!("{} that objects name lost their rows", count(blobs, "blob"));
        let next =
            "`cairn unnamed list` shows them, `cairn unnamed restore VOLUME/BLOB` gives them back their rows";
        reasons.push(reason(Level::Attention, words, next));
    }
    if let Some(why) = &facts.unnamed {
        let words = format!("what nothing names is kept: {why}");
        let next = "find out whether this is the newest ledger, then `cairn unnamed restore` or `cairn unnamed purge`";
        reasons.push(reason(Level::Attention, words, next));
    }
    if facts.in_vain > 0 && facts.unreadable.blobs == 0 {
        let words = format!("{} cannot be repaired yet", count(facts.in_vain, "shard"));
        reasons.push(Reason {
            level: Level::Attention,
            words,
            next: None,
        });
    }
    reasons.sort_by_key(|reason| std::cmp::Reverse(reason.level)); // Those alike stay in order.
    let all: Vec<&str> = reasons.iter().map(|reason| reason.words.as_str()).collect();
    let promised = facts.volumes.iter().map(|volume| volume.should).min();
    let words = match (all.is_empty(), promised) {
        (false, _) => all.join("; "),
        (true, Some(losses)) => format!("every volume survives {}", more_losses(losses)),
        (true, None) => "nothing is stored yet".into(),
    };
    Verdict {
        level: reasons.first().map_or(Level::Ok, |reason| reason.level),
        words,
        since_ms: 0,
        next: reasons.into_iter().find_map(|reason| reason.next),
        at_risk,
        hints: hints(facts),
    }
}

fn reason(level: Level, words: String, next: &str) -> Reason {
    Reason {
        level,
        words,
        next: Some(next.into()),
    }
}

/// Volumes that survive fewer losses than they should, by how many that are.
fn by_losses(facts: &Facts) -> (Vec<AtRisk>, Vec<Reason>) {
    let mut by_losses: BTreeMap<i64, AtRisk> = BTreeMap::new();
    for volume in facts.volumes.iter().filter(|volume| volume.spare < volume.should) {
        // Past what a scheme promises it may still be readable, if the right ones are lost.
        let losses_left = match volume.readable {
            true => volume.spare.max(0),
            false => -1,
        };
        let sum = by_losses.entry(losses_left).or_default();
        sum.losses_left = losses_left;
        sum.volumes += 1;
        sum.bytes += volume.bytes;
    }
    let reasons = by_losses.values().map(|sum| {
        let what = format!("{} ({})", count(sum.volumes, "volume"), bytes(sum.bytes));
        let survive = if sum.volumes == 1 { "survives" } else { "survive" };
        let (level, words) = match sum.losses_left {
            ..0 => (Level::Loss, format!("{what} cannot be read now")),
            0 => (Level::Risk, format!("{what} {survive} no further loss")),
            left => (
                Level::Attention,
                format!("{what} {survive} {}", more_losses(left)),
            ),
        };
        Reason {
            level,
            words: words + &rebuilding(facts, sum.losses_left),
            next: mend(facts, sum.losses_left),
        }
    });
    let reasons = reasons.collect();
    (by_losses.into_values().collect(), reasons)
}

fn rebuilding(facts: &Facts, losses_left: i64) -> String {
    match (facts.rebuilding, facts.waiting, facts.eta_s) {
        (0, ..) => String::new(),
        _ if losses_left < 0 => String::new(),
        (_, 0, Some(seconds)) => format!(", rebuilding, {} left", span(seconds)),
        (_, 0, None) => ", rebuilding".into(),
        (_, waiting, _) => format!(", {} to rebuild wait for disks", count(waiting, "unit")),
    }
}

/// What mends volumes whose disks are away.
fn mend(facts: &Facts, losses_left: i64) -> Option<String> {
    let away: Vec<&DiskSeen> = facts
        .disks
        .iter()
        .filter(|disk| disk.why.is_some() && disk.units > 0)
        .collect();
    let names: Vec<&str> = away.iter().map(|disk| disk.label.as_str()).collect();
    let names = some_of(&names);
    if losses_left < 0 {
        return (!away.is_empty()).then(|| format!("bring back {names}: too few of the others are left"));
    }
    let waited: Vec<&str> = away
        .iter()
        .filter(|disk| !disk.is_given_up && !disk.is_suspect)
        .map(|disk| disk.label.as_str())
        .collect();
    match (waited.first(), facts.rebuilding) {
        (Some(first), _) => Some(format!(
            "bring back {}, or do not wait: `cairn disk retire {first}` has what it held rebuilt at once",
            some_of(&waited)
        )),
        (None, 1..) if facts.waiting > 0 => {
            Some("add disks, in machines that have none of these volumes yet: `cairn disk add --all`".into())
        }
        (None, 1..) => Some("wait; `cairn rebuild status` says how far it is".into()),
        (None, 0) => None,
    }
}

/// Disks that are away or suspect, where no volume says so already.
fn disks(facts: &Facts) -> Vec<Reason> {
    let expected = || {
        facts
            .disks
            .iter()
            .filter(|disk| !disk.is_given_up || disk.units > 0)
    };
    let mut reasons = Vec::new();
    for (is_suspect, word) in [(false, "down"), (true, "suspect")] {
        let concerned = expected().filter(|disk| disk.why.is_some() && disk.is_suspect == is_suspect);
        let concerned: Vec<&DiskSeen> = concerned.collect();
        let Some(first) = concerned.first() else { continue };
        let names: Vec<&str> = concerned.iter().map(|disk| disk.label.as_str()).collect();
        let why = first.why.as_deref().unwrap_or_default();
        reasons.push(Reason {
            level: Level::Attention,
            words: format!("{} {word} ({why})", some_of(&names)),
            next: (!is_suspect && first.units == 0)
                .then(|| format!("bring it back, or `cairn disk retire {}`", first.label)),
        });
    }
    reasons
}

fn hints(facts: &Facts) -> Vec<String> {
    let is_done = |disk: &&DiskSeen| disk.is_given_up && disk.units == 0 && disk.why.is_some();
    let done = facts.disks.iter().filter(is_done);
    done.map(|disk| {
        let label = &disk.label;
        format!("{label} was given up and holds nothing any more: `cairn disk remove {label}` forgets it")
    })
    .collect()
}

fn count(number: usize, what: &str) -> String {
    match number {
        1 => format!("1 {what}"),
        _ => format!("{number} {what}s"),
    }
}

fn more_losses(losses: i64) -> String {
    match losses {
        1 => "1 more loss".into(),
        _ => format!("{losses} more losses"),
    }
}

/// Names, but no more than a line has room for.
fn some_of(names: &[&str]) -> String {
    match names {
        [first, second, third, rest @ ..] if rest.len() > 1 => {
            format!("{first}, {second}, {third} and {} others", rest.len())
        }
        _ => names.join(", "),
    }
}

/// Bytes for people.
fn bytes(count: u64) -> String {
    const UNITS: [&str; 6] = ["KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
    let mut scaled = count as f64;
    let mut unit = "B";
    for larger in UNITS {
        if scaled < 1024.0 {
            break;
        }
        scaled /= 1024.0;
        unit = larger;
    }
    match unit {
        "B" => format!("{count} B"),
        _ => format!("{scaled:.1} {unit}"),
    }
}

/// A time for people, in its largest unit.
pub fn span(seconds: u64) -> String {
    match seconds {
        ..120 => format!("{} s", seconds.max(1)),
        120..7_200 => format!("{} min", seconds / 60),
        7_200..172_800 => format!("{} h", seconds / 3_600),
        _ => format!("{} days", seconds / 86_400),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn volume(spare: i64, readable: bool) -> VolumeSeen {
        VolumeSeen {
            spare,
            should: 2,
            readable,
            bytes: 3 << 29,
        }
    }

    fn disk(label: &str, why: Option<&str>, is_given_up: bool, units: usize) -> DiskSeen {
        DiskSeen {
            label: label.into(),
            why: why.map(str::to_owned),
            is_suspect: false,
            is_given_up,
            units,
        }
    }

    #[test]
    fn all_is_well() {
        let empty = judge(&Facts::default());
        assert_eq!(
            (empty.level, empty.words.as_str()),
            (Level::Ok, "nothing is stored yet")
        );
        let facts = Facts {
            volumes: vec![volume(2, true); 3],
            disks: vec![disk("disk-0", None, false, 3)],
            ..Facts::default()
        };
        let verdict = judge(&facts);
        assert_eq!((verdict.level, verdict.next), (Level::Ok, None));
        assert_eq!(verdict.words, "every volume survives 2 more losses");
        assert!(verdict.at_risk.is_empty() && verdict.hints.is_empty());
    }

    #[test]
    fn an_archive_that_is_behind_wants_attention() {
        let facts = Facts {
            archive: Some((125, "too few disks".into())),
            ..Facts::default()
        };
        let verdict = judge(&facts);
        assert_eq!(verdict.level, Level::Attention);
        assert!(verdict.words.contains("too few disks"), "{verdict:?}");
        assert!(
            verdict
                .next
                .is_some_and(|next| next.contains("cairn ledger backup"))
        );
    }

    #[test]
    fn volumes_are_counted_by_the_losses_they_survive() {
        let mut facts = Facts {
            volumes: vec![volume(2, true), volume(1, true), volume(0, true), volume(0, true)],
            disks: vec![
                disk("disk-3", Some("gone"), false, 3),
                disk("disk-4", Some("gone"), true, 2),
            ],
            ..Facts::default()
        };
        let verdict = judge(&facts);
        assert_eq!(verdict.level, Level::Risk);
        let begins = "2 volumes (3.0 GiB) survive no further loss; 1 volume (1.5 GiB) survives 1 more loss; disk-3, disk-4 down (gone)";
        assert_eq!(verdict.words, begins);
        assert!(verdict.next.unwrap().contains("`cairn disk retire disk-3`"));
        let left: Vec<_> = verdict
            .at_risk
            .iter()
            .map(|sum| (sum.losses_left, sum.volumes))
            .collect();
        assert_eq!(left, [(0, 2), (1, 1)]);

        (facts.rebuilding, facts.eta_s) = (4, Some(480));
        facts.disks.remove(0);
        let verdict = judge(&facts);
        assert!(
            verdict.words.contains("no further loss, rebuilding, 8 min left"),
            "{}",
            verdict.words
        );
        assert!(verdict.next.unwrap().contains("cairn rebuild status"));

        facts.waiting = 3;
        let verdict = judge(&facts);
        assert!(
            verdict.words.contains("3 units to rebuild wait for disks"),
            "{}",
            verdict.words
        );
        assert!(verdict.next.unwrap().contains("cairn disk add"));

        facts.volumes.push(volume(-1, false));
        let verdict = judge(&facts);
        assert_eq!(verdict.level, Level::Loss);
        assert!(
            verdict
                .words
                .starts_with("1 volume (1.5 GiB) cannot be read now;"),
            "{}",
            verdict.words
        );
        assert!(verdict.next.unwrap().starts_with("bring back disk-4"));
    }

    #[test]
    fn a_disk_that_was_given_up_and_is_empty_is_a_hint_and_no_reason() {
        let facts = Facts {
            volumes: vec![volume(2, true)],
            disks: vec![disk("disk-3", Some("gone"), true, 0)],
            ..Facts::default()
        };
        let verdict = judge(&facts);
        assert_eq!(verdict.level, Level::Ok, "{verdict:?}");
        assert!(verdict.hints[0].contains("`cairn disk remove disk-3`"));
    }

    #[test]
    fn it_is_so_bad_since_it_became_so() {
        let since = Since::default();
        let seen = [
            (Level::Ok, 5),
            (Level::Ok, 9),
            (Level::Risk, 11),
            (Level::Risk, 12),
            (Level::Ok, 20),
        ];
        let told = seen.map(|(level, now)| since.note(level, now));
        assert_eq!(told, [5, 5, 11, 11, 20]);
    }

    #[test]
    fn the_worst_comes_first() {
        let facts = Facts {
            ledger: Some("disk full".into()),
            holds: vec![("rows are damaged".into(), "`cairn ledger repair`".into())],
            refused: Some(("too few disks".into(), "add disks".into())),
            unreadable: Unreadable {
                blobs: 2,
                first: Some("photos/1".into()),
            },
            failing: vec![("repair".into(), "it panicked".into())],
            in_vain: 4,
            unnamed: Some("it is too much".into()),
            rowless: 3,
            ..Facts::default()
        };
        let verdict = judge(&facts);
        assert_eq!(verdict.level, Level::Loss);
        assert!(
            verdict
                .words
                .starts_with("too many shards of 2 blobs are gone; the ledger"),
            "{}",
            verdict.words
        );
        assert!(verdict.next.unwrap().contains("photos/1"));
        for part in [
            "nothing is deleted: rows",
            "uploads are refused: too few",
            "repair fails: it panicked",
            "what nothing names is kept: it is too much",
            "3 blobs that objects name lost their rows",
        ] {
            assert!(verdict.words.contains(part), "{}", verdict.words);
        }
    }
}
