//! Acceptance 4: one bit flips somewhere on one disk, again and again. Every read is right, a flip that a read meets
//! is counted, and the record is repaired.

// A failed `unwrap` is a failed test, in the functions beside the tests too.
#![allow(clippy::unwrap_used)]

use std::time::Duration;

use cairn_tests::client::Client;
use cairn_tests::cluster::{Cluster, Options};
use cairn_tests::content::Content;
use cairn_tests::faults::{self, Flip, Place};
use cairn_tests::load::{self, SIZES};
use cairn_tests::model::Model;
use cairn_tests::{setting, status};
use rand::random_range;
use rand::seq::IndexedRandom;

const BUCKET: &str = "rot";
/// Enough bytes to be on the disks only where the object is.
const NEEDLE_BYTES: usize = 24;
const REPAIR_TIME_MAX: Duration = Duration::from_secs(30);

/// Data shards hold the object's bytes as they are, so a flip can be aimed at what a read must meet.
#[test]
fn flips_that_reads_meet_are_counted_and_repaired() {
    let mut cluster = Cluster::start();
    let client = cluster.client();
    client.create_bucket(BUCKET);
    let model = load::store(
        &client,
        BUCKET,
        "",
        &[16_385, 70_000, 300_000, 1 << 20, 5_000_000, 9_000_000],
    );
    for number in 0..setting::scaled(50, 500) {
        let (key, content) = *model.contents().choose(&mut rand::rng()).unwrap();
        let (counted, repaired) = (
            status::corrupt_shards(&cluster),
            status::repaired_shards(&cluster),
        );
        let (places, needle) = places_of_a_piece(&cluster, &content);
        let what = format!("flip {number} of {key} at {places:?}");
        let at = random_range(0..NEEDLE_BYTES as u64);
        places.into_iter().for_each(|place| {
            drop(Flip::new(Place {
                offset: place.offset + at,
                ..place
            }))
        });
        read(&client, key, &content, &what);
        let now = status::corrupt_shards(&cluster);
        assert!(now > counted, "{what}: read around, but not counted");
        let seen = || {
            format!(
                "{} repaired before, {} now",
                repaired,
                status::repaired_shards(&cluster)
            )
        };
        let is_repaired =
            || status::repaired_shards(&cluster) > repaired && status::suspect_shards(&cluster) == 0;
        status::wait_until(&format!("{what} is repaired"), REPAIR_TIME_MAX, is_repaired, seen);
        let counted = status::corrupt_shards(&cluster);
        read(&client, key, &content, &what);
        assert_eq!(
            status::corrupt_shards(&cluster),
            counted,
            "{what}: met again after its repair"
        );
        let found = faults::find(&cluster.disks(), &needle);
        assert!(!found.is_empty(), "{what}: the right bytes are on no disk again");
    }
    cluster.allow("");
}

/// Nobody reads, and yet what rots is found by verifying and repaired: while the flips last, no read meets one.
#[test]
fn flips_that_no_read_meets_are_found_and_repaired() {
    let mut cluster = Cluster::start_with(Options {
        verify_days: "0.00002".into(),
        ..Options::default()
    });
    let client = cluster.client();
    client.create_bucket(BUCKET);
    let model = load::store(&client, BUCKET, "", &[16_385, 300_000, 1 << 20, 5_000_000]);
    for number in 0..setting::scaled(5, 50) {
        let (key, content) = *model.contents().choose(&mut rand::rng()).unwrap();
        let repaired = status::repaired_shards(&cluster);
        let (places, needle) = places_of_a_piece(&cluster, &content);
        let what = format!("flip {number} of {key} at {places:?}");
        places.into_iter().for_each(|place| drop(Flip::new(place)));
        assert!(faults::find(&cluster.disks(), &needle).is_empty(), "{what}");
        let is_repaired =
            || status::repaired_shards(&cluster) > repaired && status::suspect_shards(&cluster) == 0;
        let seen = || format!("{repaired} repaired before");
        status::wait_until(&format!("{what} is repaired"), REPAIR_TIME_MAX, is_repaired, seen);
        assert!(
            !faults::find(&cluster.disks(), &needle).is_empty(),
            "{what}: the right bytes are on no disk again"
        );
        read(&client, key, &content, &what);
    }
    assert_eq!(status::corrupt_shards(&cluster), 0.0, "a read met one");
    cluster.allow("found by verifying");
    cluster.allow("queued for repair");
}

/// Headers, parity, tables, free space between: wherever it hits, reads are right, also after a restart. What no read
/// meets is repaired within a week, so each bit is flipped back before the next: one at a time.
#[test]
fn flips_anywhere_never_show() {
    let mut cluster = Cluster::start();
    let client = cluster.client();
    client.create_bucket(BUCKET);
    let sizes: Vec<usize> = SIZES
        .iter()
        .copied()
        .chain((0..60).map(|_| random_range(1..40_000)))
        .collect();
    let mut model = load::store(&client, BUCKET, "", &sizes);
    for number in 0..setting::scaled(50, 500) {
        let place = faults::random_used_place(&cluster.disks());
        let what = format!("flip {number} at {place:?}");
        let flip = Flip::new(place);
        check(&client, &mut model, &what);
        if number % 5 == 0 {
            cluster.kill();
            cluster.restart();
            check(&client, &mut model, &format!("restarted after {what}"));
        }
        status::wait_until_settled(&cluster, REPAIR_TIME_MAX);
        flip.undo();
    }
    cluster.allow("");
}

/// Where a random piece of the content is, and the piece. It may be in several places: what a repair replaced stays
/// on the disk until its space is needed.
fn places_of_a_piece(cluster: &Cluster, content: &Content) -> (Vec<Place>, Vec<u8>) {
    let body = content.make();
    for _ in 0..20 {
        let at = random_range(0..body.len() - NEEDLE_BYTES);
        let needle = &body[at..at + NEEDLE_BYTES];
        let places = faults::find(&cluster.disks(), needle);
        // None if the piece is cut by the border of two shards.
        if !places.is_empty() {
            return (places, needle.to_vec());
        }
    }
    panic!("no piece of the object is on the disks as it is");
}

fn read(client: &Client, key: &str, content: &Content, what: &str) {
    match client.get(BUCKET, key) {
        Ok(found) => content.check(&found, what),
        Err(failure) => panic!("{what}: {failure}"),
    }
}

fn check(client: &Client, model: &mut Model, when: &str) {
    let violations = model.check(client, BUCKET);
    assert!(violations.is_empty(), "{when}:\n{}", violations.join("\n"));
}
