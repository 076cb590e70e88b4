//! Disks that come back, and copies that come back in their place: nothing is resurrected, nothing is served wrongly, and space is
//! freed.

use crate::census::{census_of, take};
use crate::support::cluster::World;
use crate::support::content::content;
use bytes::Bytes;
use gateway::cluster::disks::Health;
use gateway::ledger::model::{DiskRow, Membership};
use gateway::ledger::{CommitBuilder, key};
use gateway::maintenance::leftovers::Leftovers;
use gateway::maintenance::rebuild::pace::FLOOR;
use gateway::maintenance::rebuild::{Moving, Rebuild, Shared};
use gateway::maintenance::worker::{Step, Worker};
use std::sync::Arc;
use tokio::sync::watch;

/// Objects, of which the first `overwritten` are written over, the next `deleted` are deleted, and some come.
struct Contents {
    world: World,
    objects: Vec<(String, Bytes)>,
}

impl Contents {
    async fn new() -> Contents {
        let world = World::new("rs(4,2)", 9).await;
        let mut contents = Contents {
            world,
            objects: Vec::new(),
        };
        contents.add("old", 24).await;
        contents
    }

    async fn add(&mut self, name: &str, count: u64) {
        for number in 0..count {
            let (name, bytes) = (
                format!("{name}-{number}"),
                content(number, [900, 40_000, 2_000_000][number as usize % 3]),
            );
            self.world.put(&name, &bytes).await.unwrap();
            self.objects.push((name, bytes));
        }
    }

    /// Deletes some, writes over some, and adds some.
    async fn change(&mut self, name: &str) {
        for _ in 0..6 {
            let (name, _) = self.objects.remove(0);
            self.world.delete(&name).await.unwrap();
        }
        for (name, bytes) in self.objects.iter_mut().take(6) {
            *bytes = content(77, 500_000);
            self.world.put(name, bytes).await.unwrap();
        }
        self.add(name, 12).await;
        self.world.collect().await;
    }

    async fn assert_right(&self) {
        for (name, bytes) in &self.objects {
            assert!(self.world.get(name).await.unwrap() == *bytes, "{name}");
        }
        for gone in 0..24 {
            let name = format!("old-{gone}");
            let is_there = self.objects.iter().any(|(known, _)| *known == name);
            assert_eq!(self.world.get(&name).await.is_ok(), is_there, "{name}");
        }
    }

    fn health(&self, n: usize) -> Health {
        self.world
            .objects
            .disks
            .get(self.world.disk(n))
            .unwrap()
            .health
            .clone()
    }

    fn in_doubt(&self, n: usize) -> bool {
        let disk = self.world.objects.disks.get(self.world.disk(n)).unwrap();
        disk.in_doubt().is_some()
    }

    /// Compares the disks that are in doubt, and repairs and deletes what that finds.
    async fn settle_doubts(&self) {
        self.world.keep_no_time(1).await;
        let (census, _stop) = census_of(&self.world, Moving::default());
        for _ in 0..3 {
            census.step().await.unwrap();
        }
        while self.world.repair().await == Step::Worked {}
        self.world.collect().await;
        // What the copy has too many is set aside; its time is over at once here.
        if !self.world.set_aside().await.is_empty() {
            take(&self.world).await;
            assert_eq!(self.world.let_go().await, Step::Worked);
            self.world.collect().await;
        }
    }
}

fn rebuilding(world: &World) -> (Rebuild, Leftovers, watch::Sender<bool>) {
    let moving = Moving::default();
    let (stop, stopped) = watch::channel(false);
    let shared = Arc::new(Shared::new(&world.objects, FLOOR));
    let rebuild = Rebuild::new(world.objects.clone(), moving.clone(), shared, stopped);
    (rebuild, Leftovers::new(world.objects.clone(), moving), stop)
}

#[tokio::test]
async fn a_disk_that_comes_back_before_it_was_replaced_serves_and_deletes_what_it_missed() {
    let mut contents = Contents::new().await;
    contents.settle_doubts().await;
    assert!(!contents.in_doubt(2));
    contents.world.lose(&[2]).await;
    contents.world.poll().await;
    contents.change("new").await;
    contents
        .world
        .cluster
        .node
        .with(contents.world.disk(2), |d| d.reopen());
    contents.world.heal().await;
    assert_eq!(contents.health(2), Health::Online);
    assert!(contents.in_doubt(2), "until it was compared");
    contents.settle_doubts().await;
    assert!(!contents.in_doubt(2));
    contents.assert_right().await;
    contents.world.census().await.assert_clean();
}

/// The copy was made before the disk was last opened.
#[tokio::test]
async fn an_old_copy_serves_nothing_and_is_cleared_when_nothing_counts_on_it() {
    let mut contents = Contents::new().await;
    let disk = contents.world.disk(3);
    let node = contents.world.cluster.node.clone();
    let copy = node.with(disk, |d| d.image());
    node.with(disk, |d| d.reopen());
    contents.world.poll().await;
    assert_eq!(contents.health(3), Health::Online);
    contents.change("new").await;
    let original = node.with(disk, |d| d.swap(copy));
    for _ in 0..8 {
        // However often it is opened.
        node.with(disk, |d| d.reopen());
        contents.world.poll().await;
        let Health::Down(why) = contents.health(3) else {
            panic!("an old copy serves")
        };
        assert!(why.contains("a copy of an earlier state"), "{why}");
    }
    let gets = node.with(disk, |d| d.gets);
    contents.assert_right().await;
    contents.change("newer").await;
    contents.assert_right().await;
    assert_eq!(node.with(disk, |d| d.gets), gets);

    // The disk itself is put back: it serves as if nothing had been.
    let copy = node.with(disk, |d| d.swap(original));
    contents.world.poll().await;
    assert_eq!(contents.health(3), Health::Online);
    contents.settle_doubts().await;
    contents.world.census().await.assert_clean();

    // The copy again, and this time the disk is given up.
    node.with(disk, |d| d.swap(copy));
    contents.world.poll().await;
    contents
        .world
        .objects
        .decide(disk, Membership::Absent)
        .await
        .unwrap();
    let (rebuild, leftovers, _stop) = rebuilding(&contents.world);
    leftovers.step().await.unwrap();
    contents.world.poll().await;
    assert!(
        matches!(contents.health(3), Health::Down(_)),
        "units are named on it"
    );
    while rebuild.step().await.unwrap() == Step::Worked {}
    assert!(node.with(disk, |d| d.shards().count()) > 0);
    leftovers.step().await.unwrap();
    contents.world.poll().await;
    assert_eq!(contents.health(3), Health::Online);
    while leftovers.step().await.unwrap() == Step::Worked {}
    assert_eq!(node.with(disk, |d| d.shards().count()), 0, "its space is free");
    let membership = contents.world.objects.disks.get(disk).unwrap().membership;
    assert_eq!(membership, Membership::Active);
    contents.change("newest").await;
    contents.settle_doubts().await;
    contents.assert_right().await;
    contents.world.census().await.assert_clean();
}

/// The copy was made after the disk was last opened, so nobody can tell that it is none; but what it lacks can be told.
#[tokio::test]
async fn of_a_new_copy_what_it_lacks_is_repaired_and_what_it_has_too_many_is_deleted() {
    let mut contents = Contents::new().await;
    contents.settle_doubts().await;
    let disk = contents.world.disk(3);
    let node = contents.world.cluster.node.clone();
    let copy = node.with(disk, |d| d.image());
    contents.change("new").await;
    let original = node.with(disk, |d| d.swap(copy));
    contents.world.poll().await;
    assert_eq!(contents.health(3), Health::Online);
    let census = contents.world.census().await;
    assert!(!census.missing.is_empty() && !census.unnamed.is_empty());
    contents.assert_right().await;
    assert!(contents.in_doubt(3));
    contents.settle_doubts().await;
    assert!(!contents.in_doubt(3));
    contents.world.census().await.assert_clean();
    contents.assert_right().await;
    // Now it is the disk, and the disk itself is an earlier state.
    node.with(disk, |d| d.swap(original));
    contents.world.poll().await;
    assert!(matches!(contents.health(3), Health::Down(_)));
    contents.assert_right().await;
}

#[tokio::test]
async fn a_gateway_that_starts_uses_disks_that_were_not_opened_anew_as_they_are() {
    let contents = Contents::new().await;
    contents.settle_doubts().await;
    let before: Vec<u64> = admissions(&contents.world).await;
    let Contents { world, objects } = contents;
    let contents = Contents {
        world: world.crash().await,
        objects,
    };
    assert_eq!(admissions(&contents.world).await, before);
    assert!((0..9).all(|n| contents.health(n) == Health::Online && !contents.in_doubt(n)));
    contents.assert_right().await;
    contents.world.cluster.node.each(|_, disk| disk.reopen());
    let Contents { world, objects } = contents;
    let contents = Contents {
        world: world.crash().await,
        objects,
    };
    let after = admissions(&contents.world).await;
    assert!(
        before
            .iter()
            .zip(&after)
            .all(|(before, after)| *after == before + 1),
        "{after:?}"
    );
    assert!((0..9).all(|n| contents.health(n) == Health::Online && contents.in_doubt(n)));
    contents.assert_right().await;
}

async fn admissions(world: &World) -> Vec<u64> {
    let mut numbers = Vec::new();
    for disk in &world.cluster.disks {
        let row = world
            .objects
            .ledger
            .get::<DiskRow>(key::disk(disk.0))
            .await
            .unwrap();
        numbers.push(row.unwrap().row.admission.unwrap().number);
    }
    numbers
}

/// Restored from a backup, the ledger knows an older admission than the disks: they serve, and are in doubt.
#[tokio::test]
async fn disks_serve_a_ledger_that_is_older_than_they_are() {
    let contents = Contents::new().await;
    contents.settle_doubts().await;
    let ledger = contents.world.objects.ledger.clone();
    let mut rows = Vec::new();
    for disk in &contents.world.cluster.disks {
        let row = ledger.get::<DiskRow>(key::disk(disk.0)).await.unwrap();
        rows.push((key::disk(disk.0), row.unwrap().row));
    }
    contents.world.cluster.node.each(|_, disk| disk.reopen());
    contents.world.poll().await;
    let restore = rows.iter().fold(CommitBuilder::new(), |commit, (row_key, row)| {
        commit.put(row_key.clone(), row)
    });
    ledger.commit(restore.build()).await.unwrap();
    contents.world.cluster.node.each(|_, disk| disk.reopen());
    let Contents { world, objects } = contents;
    let contents = Contents {
        world: world.crash().await,
        objects,
    };
    assert!((0..9).all(|n| contents.health(n) == Health::Online && contents.in_doubt(n)));
    contents.assert_right().await;
}
