//! Every way a read can go, for codes small enough to try them all.

use super::*;
use ec_core::Kernel;
use std::collections::BTreeSet;

const LATE_AFTER: Duration = Duration::from_millis(400);

/// How the disk of a shard behaves.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Disk {
    Answers,
    Fails,
    /// Answers when nothing else is left to wait for.
    Hangs,
}

/// What came of a gathering.
struct Run {
    asked: Vec<u8>,
    late: BTreeSet<usize>,
    sources: std::result::Result<Vec<usize>, usize>,
}

fn codec(scheme: &str) -> Arc<Codec> {
    Arc::new(Codec::new(scheme.parse().unwrap(), Kernel::best()).unwrap())
}

fn blocks() -> ShardBlocks {
    ShardBlocks {
        shard_len: 1,
        first_block: 0,
        block_crcs: vec![0],
        digests: Vec::new(),
        payload: Bytes::from_static(b"x"),
    }
}

/// Which reads have become late by then.
fn expired(gathering: &mut Gathering, now: Instant) -> Vec<usize> {
    let late = |gathering: &Gathering| -> BTreeSet<usize> {
        let shards = gathering.shards.iter().enumerate();
        shards
            .filter(|(_, shard)| matches!(shard, Shard::Asked { late_at: None }))
            .map(|(index, _)| index)
            .collect()
    };
    let before = late(gathering);
    gathering.expire(now);
    late(gathering).difference(&before).copied().collect()
}

/// Runs a gathering to its end. Disks that answer do so at once; the clock moves only when all others are waited for.
fn run(codec: &Arc<Codec>, wanted: u8, disks: &[Disk], prompt: impl Fn(usize) -> bool) -> Run {
    let mut gathering = Gathering::new(codec.clone(), wanted, |index| prompt(index).then_some(LATE_AFTER));
    let mut now = Instant::now();
    let (mut asked, mut late) = (Vec::new(), BTreeSet::new());
    let mut running: Vec<u8> = Vec::new();
    for _ in 0..1000 {
        match gathering.begin(now) {
            Ok(begun) => {
                asked.extend(&begun);
                running.extend(begun);
            }
            Err(left) => {
                let sources = Err(left);
                return Run { asked, late, sources };
            }
        }
        if let Some(sources) = gathering.complete() {
            assert_eq!(sources.shards.len(), sources.plan.sources().len());
            let sources = Ok(sources.plan.sources().to_vec());
            return Run { asked, late, sources };
        }
        assert!(!running.is_empty(), "it waits for nothing");
        let soon = running
            .iter()
            .position(|&index| disks[usize::from(index)] != Disk::Hangs);
        match (soon, gathering.late_at()) {
            (Some(at), _) => {
                let index = running.swap_remove(at);
                let read = (disks[usize::from(index)] == Disk::Answers).then(blocks);
                gathering.answered(index, read);
            }
            (None, Some(at)) => {
                assert!(expired(&mut gathering, at - Duration::from_millis(1)).is_empty());
                now = at;
                let expired = expired(&mut gathering, now);
                assert!(!expired.is_empty());
                assert!(expired.iter().all(|index| late.insert(*index)), "late twice");
            }
            (None, None) => {
                let index = running.remove(0);
                gathering.answered(index, Some(blocks()));
            }
        }
    }
    panic!("it does not end");
}

fn possible(codec: &Codec, wanted: u8, disks: &[Disk], of: impl Fn(Disk) -> bool) -> bool {
    let sources = (0..disks.len()).filter(|&index| index != usize::from(wanted) && of(disks[index]));
    codec
        .plan(&[wanted.into()], sources.map(|index| (index, 1)))
        .is_ok()
}

#[test]
fn every_mix_of_failures_and_hangs() {
    for scheme in ["rs(3,2)", "lrc(4,2,1)", "replica(3)"] {
        let codec = codec(scheme);
        let total = codec.scheme().total_shards();
        for wanted in 0..total as u8 {
            for mix in 0..3usize.pow(total as u32) {
                let kind = |index: usize| {
                    [Disk::Answers, Disk::Fails, Disk::Hangs][mix / 3usize.pow(index as u32) % 3]
                };
                let disks: Vec<Disk> = (0..total).map(kind).collect();
                let Run { asked, late, sources } = run(&codec, wanted, &disks, |_| true);
                let what = format!("{scheme}, {wanted} from {disks:?}: asked {asked:?}");
                let once: BTreeSet<u8> = asked.iter().copied().collect();
                assert_eq!(once.len(), asked.len(), "{what}: twice");
                assert!(!once.contains(&wanted), "{what}");
                // It succeeds exactly if that is possible at all, and waits for a disk that hangs only if it must.
                assert_eq!(
                    sources.is_ok(),
                    possible(&codec, wanted, &disks, |disk| disk != Disk::Fails),
                    "{what}"
                );
                if let Ok(sources) = &sources {
                    let waited = sources.iter().any(|&index| disks[index] == Disk::Hangs);
                    assert_eq!(
                        waited,
                        !possible(&codec, wanted, &disks, |disk| disk == Disk::Answers),
                        "{what}"
                    );
                    assert!(sources.iter().all(|&index| disks[index] != Disk::Fails), "{what}");
                }
                assert!(
                    late.iter().all(|&index| disks[index] == Disk::Hangs),
                    "{what}: late {late:?}"
                );
            }
        }
    }
}

#[test]
fn a_group_is_enough_until_it_is_not() {
    let codec = codec("lrc(12,2,2)");
    let mut disks = [Disk::Answers; 16];
    let healthy = run(&codec, 3, &disks, |_| true);
    assert_eq!(healthy.asked, [0, 1, 2, 4, 5, 12]);
    // A member that fails or hangs costs the rest of the stripe, and what was read is used.
    for bad in [Disk::Fails, Disk::Hangs] {
        disks[5] = bad;
        let around = run(&codec, 3, &disks, |_| true);
        assert_eq!(around.sources.unwrap().len(), 12);
        assert!(around.asked.len() <= 13, "{:?}", around.asked);
    }
    // One that is known to be slow is gone around from the start.
    let known = run(&codec, 3, &[Disk::Answers; 16], |index| index != 5);
    assert_eq!(known.asked.len(), 12);
    assert!(!known.asked.contains(&5) && known.late.is_empty());
    // The other group may be slow as it likes.
    assert_eq!(
        run(&codec, 3, &[Disk::Answers; 16], |index| index < 6 || index == 12).asked,
        healthy.asked
    );
}

/// Going around one late shard is cheaper than waiting for it in the widest code there is.
#[test]
fn no_width_makes_waiting_worth_it() {
    let codec = codec("lrc(240,2,3)");
    let mut disks = [Disk::Answers; 245];
    disks[1] = Disk::Hangs;
    assert!(!run(&codec, 0, &disks, |_| true).sources.unwrap().contains(&1));
}

#[test]
fn each_read_has_its_own_time() {
    let codec = codec("rs(2,3)");
    let mut gathering = Gathering::new(codec, 0, |_| Some(LATE_AFTER));
    let start = Instant::now();
    assert_eq!(gathering.begin(start), Ok(vec![1, 2]));
    let later = start + LATE_AFTER - Duration::from_millis(1);
    gathering.answered(2, None);
    assert_eq!(gathering.begin(later), Ok(vec![3]));
    // The replacement was asked for a moment ago.
    assert_eq!(expired(&mut gathering, start + LATE_AFTER), [1]);
    assert_eq!(gathering.begin(later), Ok(vec![4]));
    assert_eq!(gathering.late_at(), Some(later + LATE_AFTER));
    // A late one that answers after all is as good as any.
    gathering.answered(1, Some(blocks()));
    assert_eq!(gathering.begin(later), Ok(vec![]));
    assert!(gathering.complete().is_none());
    gathering.answered(4, Some(blocks()));
    assert_eq!(gathering.begin(later), Ok(vec![]));
    assert_eq!(gathering.complete().unwrap().plan.sources(), [1, 4]);
}
