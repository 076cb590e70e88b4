//! What calls do to a disk's standing, on a clock that stands still until told.

use super::*;

fn conduct() -> Arc<Conduct> {
    Arc::new(Conduct::new("disk-0", Arc::default()))
}

/// A call that takes so long, and ends so.
async fn call(conduct: &Arc<Conduct>, kind: Kind, took: Duration, outcome: Outcome) {
    let call = conduct.begin(kind);
    tokio::time::advance(took).await;
    call.end(outcome);
}

fn lie() -> Outcome {
    Outcome::Wrong(Wrong::Bytes, "block 3".into())
}

const MS: Duration = Duration::from_millis(1);

#[tokio::test(start_paused = true)]
async fn a_disk_that_lies_gets_no_writes_and_says_why() {
    let conduct = conduct();
    for _ in 1..8 {
        call(&conduct, Kind::Read, MS, lie()).await;
        assert!(conduct.may_write() && conduct.suspicion().is_none());
    }
    call(&conduct, Kind::Read, MS, lie()).await;
    assert_eq!(conduct.may_read(), Admission::No);
    assert!(!conduct.may_write());
    let why = conduct.suspicion().expect("suspect");
    assert!(why.contains("bytes: block 3"), "{why}");
    tokio::time::advance(Duration::from_secs(5)).await;
    assert_eq!(conduct.may_read(), Admission::Trial);
    assert!(conduct.may_write() && conduct.suspicion().is_none());
    for _ in 0..3 {
        call(&conduct, Kind::Read, MS, Outcome::Good).await;
    }
    assert_eq!(conduct.may_read(), Admission::Yes);
    let seen = conduct.wrong_seen();
    assert_eq!(seen.counts, [(Wrong::Bytes, 8)]);
    let (what, ago) = seen.last.expect("there was one");
    assert!(what == "bytes: block 3" && ago >= Duration::from_secs(5));
}

#[tokio::test(start_paused = true)]
async fn what_a_disk_lacks_is_counted_and_says_nothing_of_it() {
    let conduct = conduct();
    for _ in 0..100 {
        call(&conduct, Kind::Read, MS, Outcome::Neutral).await;
        conduct.take_in(Kind::Read, Outcome::Wrong(Wrong::Missing, "no such shard".into()));
    }
    assert_eq!(
        (conduct.may_read(), conduct.trust()),
        (Admission::Yes, Trust::Full)
    );
    assert_eq!(conduct.suspicion(), None);
    assert_eq!(conduct.wrong_seen().counts, [(Wrong::Missing, 100)]);
}

#[tokio::test(start_paused = true)]
async fn writes_that_fail_weigh_more_than_reads_that_are_wrong() {
    let conduct = conduct();
    for _ in 0..8 {
        call(&conduct, Kind::Read, MS, lie()).await;
    }
    assert_eq!(conduct.trust(), Trust::ReadsWrong);
    call(&conduct, Kind::Write, MS, Outcome::Failed("a test".into())).await;
    assert_eq!(conduct.trust(), Trust::WritesFail);
}

#[tokio::test(start_paused = true)]
async fn a_disk_whose_writes_hang_can_be_read() {
    let conduct = conduct();
    let error = Outcome::of_error(&NodeError::Timeout);
    call(&conduct, Kind::Write, CUT_OFF_MAX, error).await;
    assert!(!conduct.may_write() && conduct.suspicion().is_some());
    assert_eq!(conduct.may_read(), Admission::Yes);
}

#[tokio::test(start_paused = true)]
async fn a_slow_disk_is_read_around_and_is_no_suspect() {
    let conduct = conduct();
    // Nobody waited for the end of it.
    let hedged = conduct.begin(Kind::Read);
    tokio::time::advance(LATE_MAX).await;
    drop(hedged);
    assert_eq!(conduct.may_read(), Admission::No);
    assert!(conduct.may_write() && conduct.suspicion().is_none());
    // One whose client left in time says nothing.
    let conduct = self::conduct();
    drop(conduct.begin(Kind::Read));
    assert_eq!(conduct.may_read(), Admission::Yes);
}

#[tokio::test(start_paused = true)]
async fn patience_follows_what_a_disk_takes() {
    let conduct = conduct();
    assert_eq!(conduct.late_after(), LATE_MAX);
    assert_eq!(conduct.cut_off(Kind::Write), CUT_OFF_MAX);
    for _ in 0..100 {
        call(&conduct, Kind::Read, 30 * MS, Outcome::Good).await;
        call(&conduct, Kind::Write, 30 * MS, Outcome::Good).await;
    }
    let late_after = conduct.late_after();
    assert!((30 * MS..=45 * MS).contains(&late_after), "{late_after:?}");
    assert_eq!(conduct.cut_off(Kind::Write), CUT_OFF_MIN);
    // It becomes slow for good: it is waited for longer then.
    for _ in 0..100 {
        call(&conduct, Kind::Write, Duration::from_secs(1), Outcome::Good).await;
    }
    let cut_off = conduct.cut_off(Kind::Write);
    assert!(cut_off >= Duration::from_secs(8), "{cut_off:?}");
    // What was waited for in vain says how long it takes at least.
    for _ in 0..100 {
        call(&conduct, Kind::Read, 200 * MS, Outcome::Neutral).await;
    }
    assert!(conduct.late_after() >= 200 * MS);
}

#[tokio::test(start_paused = true)]
async fn few_try_a_disk_that_failed() {
    let conduct = conduct();
    call(&conduct, Kind::Read, MS, Outcome::Failed("a test".into())).await;
    tokio::time::advance(Duration::from_secs(5)).await;
    let trials = [conduct.begin(Kind::Read), conduct.begin(Kind::Read)];
    assert_eq!(conduct.may_read(), Admission::No);
    drop(trials);
    assert_eq!(conduct.may_read(), Admission::Trial);
}

#[tokio::test(start_paused = true)]
async fn a_pause_of_this_process_is_held_against_nobody() {
    let pauses = Arc::new(Pauses::default());
    let conduct = Arc::new(Conduct::new("disk-0", pauses.clone()));
    pauses.look(Instant::now());
    let calls: Vec<Call> = (0..100)
        .map(|n| conduct.begin([Kind::Read, Kind::Write][n % 2]))
        .collect();
    let failures = [
        Outcome::Good,
        Outcome::Failed("timeout".into()),
        Outcome::Unreachable("cut".into()),
        Outcome::Wrong(Wrong::Garbled, "cut off".into()),
    ];
    tokio::time::advance(Duration::from_secs(12)).await;
    for (n, call) in calls.into_iter().enumerate() {
        match failures.get(n % 5) {
            Some(outcome) => call.end(outcome.clone()),
            None => drop(call),
        }
        // Some are told of before the pause is noted, others after.
        if n == 50 {
            pauses.look(Instant::now());
        }
    }
    conduct.take_in(Kind::Write, Outcome::Failed("timeout".into()));
    assert_eq!(
        (conduct.may_read(), conduct.trust()),
        (Admission::Yes, Trust::Full)
    );
    assert_eq!(
        (conduct.late_after(), conduct.cut_off(Kind::Write)),
        (LATE_MAX, CUT_OFF_MAX)
    );
    // What happens later counts.
    for _ in 0..30 {
        tokio::time::advance(Duration::from_millis(100)).await;
        pauses.look(Instant::now());
    }
    call(&conduct, Kind::Write, MS, Outcome::Failed("timeout".into())).await;
    assert_eq!(conduct.trust(), Trust::WritesFail);
}

/// Bytes that are wrong are wrong, whenever they come.
#[tokio::test(start_paused = true)]
async fn a_lie_counts_during_a_pause_too() {
    let pauses = Arc::new(Pauses::default());
    let conduct = Arc::new(Conduct::new("disk-0", pauses.clone()));
    for _ in 0..8 {
        pauses.look(Instant::now());
        conduct.begin(Kind::Read).end(lie());
    }
    assert_eq!(conduct.trust(), Trust::ReadsWrong);
}
