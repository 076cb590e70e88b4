//! The gateway's machine stands still: its virtual machine is moved. The clock of everybody jumps, for nobody else does anything meanwhile
//! that matters to it; answers wait at its socket, or are as late as it is.
//!
//! What must hold: no disk is blamed for it, and requests go on.

use super::Faults;
use super::ledgers::put;
use crate::world::Serving;
use bytes::Bytes;
use gateway::cluster::conduct::Trust;
use gateway::cluster::disks::{Disk, Health};
use rand::Rng;
use std::collections::BTreeSet;
use std::time::Duration;
use storage_node::protocol::DiskId;
use tokio::time::Instant;

/// What a gateway gives a read.
const PIECE_TIME: Duration = Duration::from_secs(20);

impl Faults {
    pub(super) async fn gateway_pauses(&mut self) {
        let run = self.run.clone();
        let Some(serving) = run.world.living().filter(|serving| !serving.is_safe()) else {
            return;
        };
        if run.unreadable_until().is_some_and(|until| Instant::now() < until) {
            return; // Who is blamed for what then, nobody can tell.
        }
        let probe = Bytes::from_static(b"before and after");
        let could_put = put(&serving, "pauses/probe", &probe).await.is_ok();
        let trusted = self.trusted(&serving);
        let pause = Duration::from_millis(self.rng.random_range(5_000..30_000));
        let answers_wait = self.rng.random();
        self.note(format!("the gateway stands still for {pause:?}"));
        if answers_wait {
            serving.life.hold();
            let wait = Duration::from_millis(self.rng.random_range(1..20));
            tokio::time::sleep(wait).await;
            serving.life.release();
        }
        let excused = !answers_wait || pause >= PIECE_TIME || !self.now.is_empty();
        if excused {
            // What was being read may have had no time left.
            run.set_unreadable_until(Instant::now());
        }
        tokio::time::advance(pause).await;
        self.count(match answers_wait {
            true => "pause, answers waited",
            false => "pause, answers late",
        });
        for wait in [0, 100, 1_000, 3_000] {
            tokio::time::sleep(Duration::from_millis(wait)).await;
            if serving.life.is_over() {
                return;
            }
            let now = self.trusted(&serving);
            for blamed in trusted.difference(&now) {
                let disk = serving.objects.disks.get(*blamed);
                let why = disk.map(|disk| (disk.label.clone(), disk.standing(), disk.trust()));
                run.fail(format!("after a pause of {pause:?} a disk is blamed: {why:?}"));
            }
        }
        let put = put(&serving, "pauses/probe", &probe).await;
        if let (true, Err(error), false) = (could_put, put, serving.life.is_over()) {
            run.fail(format!("after a pause of {pause:?} nothing can be put: {error}"));
        }
        if serving.objects.disks.pauses().count() == 0 {
            run.fail("a pause was not noticed".into());
        }
    }

    /// The disks of machines at which nothing is wrong, and against which nothing speaks.
    fn trusted(&self, serving: &Serving) -> BTreeSet<DiskId> {
        let is_well = |disk: &Disk| {
            let machine = disk.node.as_ref().map(|node| node.id);
            self.now.iter().all(|d| Some(d.machine) != machine)
        };
        let is_trusted = |disk: &Disk| {
            disk.health == Health::Online && disk.trust().is_none_or(|trust| trust == Trust::Full)
        };
        let disks = serving.objects.disks.all();
        let trusted = disks.iter().filter(|disk| is_well(disk) && is_trusted(disk));
        trusted.map(|disk| disk.id).collect()
    }
}
