//! What goes wrong, and what operators do about it.
//!
//! Invariant: at most as many machines are disturbed at once as the scheme survives losses, and one counts until everything
//! that it held is whole again; unless a seed means to go further, for a while.

mod ledgers;
mod operators;
mod pauses;

use crate::machine::{End, Machine};
use crate::network::Weather;
use crate::run::Run;
use crate::store::{Doom, LedgerFile};
use gateway::ledger::key;
use gateway::ledger::model::{DiskRow, Membership, SuspectRow};
use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::Arc;
use std::time::Duration;
use storage_node::device::simulated::{Fault, SimulatedDisk};
use storage_node::protocol::{DiskId, NodeId};
use tokio::time::Instant;

/// A machine at which something is wrong.
struct Disturbance {
    machine: NodeId,
    kind: Kind,
    until: Instant,
    /// What caused it is over; what followed from it may not be.
    is_over: bool,
    /// Disks of it were given up: what they held has to be whole elsewhere.
    gave_up: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Kind {
    Restart,
    PowerCut,
    Away,
    Deaf,
    Mute,
    Flaky,
    Late,
    Liar,
    Fence,
    DeadDisk,
    Swapped,
    NoSpace,
    Rot,
    ReadErrors,
    LostWrites,
    LyingFlushes,
}

impl Kind {
    /// Whether a disk may lack what it said it had.
    fn is_of_liars(self) -> bool {
        matches!(self, Kind::LostWrites | Kind::LyingFlushes)
    }
}

const KINDS: [Kind; 16] = [
    Kind::Restart,
    Kind::PowerCut,
    Kind::Away,
    Kind::Deaf,
    Kind::Mute,
    Kind::Flaky,
    Kind::Late,
    Kind::Liar,
    Kind::Fence,
    Kind::DeadDisk,
    Kind::Swapped,
    Kind::NoSpace,
    Kind::Rot,
    Kind::ReadErrors,
    Kind::LostWrites,
    Kind::LyingFlushes,
];

/// What a census says of a volume with two units on the machine of a disk, before that disk's name.
pub const SHARED: &str = " has two units on the machine of ";

pub struct Faults {
    run: Arc<Run>,
    rng: StdRng,
    now: Vec<Disturbance>,
    /// Disks that operators want gone: retired or drained, then removed, then replaced by new ones.
    leaving: Vec<(NodeId, DiskId)>,
    /// Disks that were retired, and for which there is a new one.
    renewed: BTreeSet<DiskId>,
    /// Disks whose medium is dead or taken away: until nobody names them.
    dead: Vec<(NodeId, DiskId)>,
    /// Disks that were taken out, and may come back where they are not wanted any more.
    pulled: Vec<(NodeId, SimulatedDisk)>,
    counted: BTreeMap<String, usize>,
    /// Copies of the ledger, of some time before.
    backups: Vec<Arc<LedgerFile>>,
    /// Copies that were ever made of it.
    copies: usize,
    /// The number of the census that operators wait for.
    census: Option<u64>,
    /// Machines that have two units of one volume, since a ledger was accepted: until they are apart, nobody else is disturbed.
    shared: Vec<String>,
    /// Whether this seed goes beyond what the scheme survives.
    excessive: bool,
    losses_max: usize,
}

impl fmt::Display for Faults {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.counted)
    }
}

impl Faults {
    pub fn new(run: Arc<Run>, seed: u64) -> Faults {
        let mut rng = StdRng::seed_from_u64(seed);
        Faults {
            losses_max: run.world.shape.scheme.losses_survived(),
            excessive: rng.random_range(0..6) == 0,
            run,
            rng,
            now: Vec::new(),
            leaving: Vec::new(),
            renewed: BTreeSet::new(),
            dead: Vec::new(),
            pulled: Vec::new(),
            counted: BTreeMap::new(),
            backups: Vec::new(),
            copies: 0,
            census: None,
            shared: Vec::new(),
        }
    }

    /// What happened, and how often.
    pub fn counted(&self) -> &BTreeMap<String, usize> {
        &self.counted
    }

    fn count(&mut self, what: &str) {
        *self.counted.entry(what.into()).or_default() += 1;
    }

    fn note(&self, what: impl AsRef<str>) {
        self.run.trace.note(what);
    }

    /// Lets things go wrong for a while.
    pub async fn rage(&mut self, lasts: Duration) {
        let end = Instant::now() + lasts;
        while Instant::now() < end && !self.run.has_failed() {
            let pause = Duration::from_millis(self.rng.random_range(100..3_000));
            tokio::time::sleep(pause).await;
            self.end_what_is_over(false).await;
            self.operate().await;
            if self.rng.random_range(0..8) == 0 {
                self.back_up();
            }
            match self.rng.random_range(0..40) {
                0..4 => self.gateway_dies().await,
                4..8 => self.drain_something().await,
                8..12 if self.excessive => self.lose_too_many().await,
                12..16 if self.excessive => self.power_fails().await,
                16 => self.older_ledger().await,
                17 => self.ledger_cloned().await,
                18 | 19 => self.gateway_pauses().await,
                _ => self.disturb_something().await,
            }
        }
    }

    async fn gateway_dies(&mut self) {
        self.count("gateway died");
        if let Some(serving) = self.run.world.living()
            && self.rng.random()
        {
            // In the middle of a commit, if there is one soon.
            let doom = if self.rng.random() {
                Doom::Before
            } else {
                Doom::After
            };
            serving.store.die_at(self.rng.random_range(0..20), doom);
            let patience = Duration::from_millis(self.rng.random_range(1..2_000));
            let _ = tokio::time::timeout(patience, serving.life.over()).await;
        }
        self.run.world.kill_gateway();
        let pause = Duration::from_millis(self.rng.random_range(0..1_500));
        tokio::time::sleep(pause).await;
        self.run.world.start_gateway().await;
    }

    fn machine(&self, id: NodeId) -> Arc<Machine> {
        self.run.world.way(id).machine.clone()
    }

    /// A machine at which nothing is wrong, if one more may be disturbed.
    fn untouched(&mut self) -> Option<NodeId> {
        if self.now.len() >= self.losses_max || !self.shared.is_empty() {
            return None;
        }
        let world = &self.run.world;
        let all = world.ways.iter().map(|way| way.machine.id);
        let well: Vec<NodeId> = all
            .filter(|id| self.now.iter().all(|d| d.machine != *id))
            .collect();
        well.choose(&mut self.rng).copied()
    }

    async fn disturb_something(&mut self) {
        let Some(id) = self.untouched() else { return };
        let kind = *KINDS.choose(&mut self.rng).expect("kinds");
        let (way, machine) = (self.run.world.way(id), self.machine(id));
        let disks: Vec<DiskId> = machine.engines().into_iter().map(|(disk, _)| disk).collect();
        let Some(&disk) = disks.choose(&mut self.rng) else {
            return;
        };
        let mut seconds = self.rng.random_range(1..12);
        let medium = machine.medium(disk).expect("a served disk");
        match kind {
            Kind::Restart => {
                let how = if self.rng.random() {
                    End::Stopped
                } else {
                    End::Killed
                };
                machine.end(how);
                seconds = self.rng.random_range(0..5);
            }
            Kind::PowerCut => machine.end(End::PowerCut),
            Kind::Away => {
                machine.end(if self.rng.random() {
                    End::PowerCut
                } else {
                    End::Killed
                });
                seconds = self.rng.random_range(15..90);
            }
            Kind::Deaf => way.set(Weather {
                deaf: true,
                mute: true,
                ..Weather::default()
            }),
            Kind::Mute => way.set(Weather {
                mute: true,
                ..Weather::default()
            }),
            Kind::Flaky => way.set(Weather {
                requests_lost: self.rng.random_range(0..400),
                answers_lost: self.rng.random_range(0..400),
                twice: 100,
                errors: self.rng.random_range(0..200),
                delay_max: Duration::from_millis(self.rng.random_range(0..500)),
                ..Weather::default()
            }),
            Kind::Late => way.set(Weather {
                very_late: self.rng.random_range(20..300),
                delay_max: Duration::from_millis(self.rng.random_range(0..3_000)),
                ..Weather::default()
            }),
            Kind::Liar => way.set(Weather {
                lies: self.rng.random_range(50..1_000),
                ..Weather::default()
            }),
            Kind::Fence => {
                let fault = if self.rng.random() {
                    Fault::WriteError
                } else {
                    Fault::FlushError
                };
                medium.arm(fault);
            }
            Kind::DeadDisk => {
                machine.kill_disk(disk);
                self.dead.push((id, disk));
            }
            // Somebody takes a disk for another one.
            Kind::Swapped => {
                machine.end(End::PowerCut);
                self.pulled
                    .extend(machine.pull_disk(disk).map(|medium| (id, medium)));
                machine.insert_blank(self.rng.random());
                machine.start();
                self.dead.push((id, disk));
            }
            Kind::NoSpace => (0..self.rng.random_range(1..40)).for_each(|_| medium.arm(Fault::NoSpace)),
            Kind::Rot => {
                if machine.rot(disk, &mut self.rng).is_none() {
                    return;
                }
            }
            Kind::LostWrites => medium.lose_writes(self.rng.random_range(1..300)),
            Kind::LyingFlushes => medium.lie_about_flushes(true),
            Kind::ReadErrors => (0..self.rng.random_range(1..20)).for_each(|_| medium.arm(Fault::ReadError)),
        }
        self.note(format!("{kind:?} at {} ({disk}), for {seconds} s", machine.name));
        self.count(&format!("{kind:?}"));
        self.now.push(Disturbance {
            machine: id,
            kind,
            until: Instant::now() + Duration::from_secs(seconds),
            is_over: false,
            gave_up: false,
        });
    }

    /// Ends the causes whose time has come, and forgets those of which nothing is left.
    async fn end_what_is_over(&mut self, all: bool) {
        let now = Instant::now();
        for at in 0..self.now.len() {
            let (id, kind) = (self.now[at].machine, self.now[at].kind);
            if self.now[at].is_over || (now < self.now[at].until && !all) {
                continue;
            }
            self.now[at].is_over = true;
            self.now[at].until = now;
            self.end(id, kind).await;
        }
        let displaced = self.run.world.displaced().await;
        let misplaced = displaced.iter().any(|what| !what.ends_with("Draining"));
        let sharing = displaced.iter().filter_map(|what| what.split_once(SHARED));
        self.shared = sharing.map(|(_, label)| label.to_owned()).collect();
        let has_suspects = !self.run.world.table::<SuspectRow>(b's').await.is_empty();
        let mut left = Vec::new();
        for mut disturbance in std::mem::take(&mut self.now) {
            let (id, kind) = (disturbance.machine, disturbance.kind);
            disturbance.gave_up |= self.has_given_up(id).await || self.dead.iter().any(|(at, _)| *at == id);
            // Findings are asked for now and then; what was late may still be on its way.
            let lasts = match kind {
                Kind::Rot | Kind::ReadErrors | Kind::Liar => Duration::from_secs(15),
                Kind::LostWrites | Kind::LyingFlushes => Duration::from_secs(15),
                Kind::Late => Duration::from_secs(45),
                Kind::Flaky => Duration::from_secs(5),
                _ => Duration::from_secs(1),
            };
            let is_past = disturbance.is_over && now >= disturbance.until + lasts;
            let has_dead = self.dead.iter().any(|(at, _)| *at == id);
            let waits = has_dead || (disturbance.gave_up && misplaced);
            let is_compared = !kind.is_of_liars() || self.run.world.has_compared(id);
            if is_past && !waits && !has_suspects && is_compared && self.run.world.sees_well(id) {
                self.note(format!("{} is well again after {kind:?}", self.machine(id).name));
            } else {
                left.push(disturbance);
            }
        }
        self.now = left;
    }

    /// Whether somebody has decided that a disk of a machine is not to be waited for.
    async fn has_given_up(&self, machine: NodeId) -> bool {
        let disks = self.run.world.table::<DiskRow>(b'd').await;
        let own = disks
            .iter()
            .filter(|(_, row)| row.node.as_ref() == machine.0.to_be_bytes());
        let mut memberships = own.map(|(_, row)| row.membership());
        memberships.any(|is| matches!(is, Membership::Out | Membership::Absent))
    }

    async fn end(&mut self, id: NodeId, kind: Kind) {
        let (way, machine) = (self.run.world.way(id), self.machine(id));
        self.note(format!("{kind:?} at {} ends", machine.name));
        match kind {
            Kind::Restart | Kind::PowerCut | Kind::Away => {
                if self.rng.random() {
                    self.plug_pulled(&machine);
                }
                machine.start();
            }
            Kind::Deaf | Kind::Mute | Kind::Flaky | Kind::Late | Kind::Liar => way.set(Weather::default()),
            // Somebody restarts the process, and the disk works again.
            Kind::Fence => {
                machine.end(End::Stopped);
                machine.start();
            }
            Kind::DeadDisk | Kind::Swapped => {} // Until it is removed.
            // What is on the medium is known when it is opened again.
            Kind::LostWrites | Kind::LyingFlushes => {
                machine.end(match kind {
                    Kind::LostWrites if self.rng.random() => End::Stopped,
                    _ => End::PowerCut,
                });
                let lies = machine.end_lies();
                self.note(format!("{lies} operations were acknowledged and not done"));
                machine.start();
                self.give_up_unreadable(&machine).await;
                verify(&machine).await;
            }
            Kind::Rot | Kind::ReadErrors | Kind::NoSpace => {
                machine
                    .engines()
                    .iter()
                    .for_each(|(disk, _)| machine.medium(*disk).expect("a disk").disarm());
                verify(&machine).await;
            }
        }
    }

    /// Disks that lost too much to be opened are dead.
    async fn give_up_unreadable(&mut self, machine: &Machine) {
        let served: Vec<DiskId> = machine.engines().into_iter().map(|(disk, _)| disk).collect();
        for (row_key, row) in self.run.world.table::<DiskRow>(b'd').await {
            let Some(id) = key::disk_id(&row_key).map(DiskId) else {
                continue;
            };
            let is_here = row.node.as_ref() == machine.id.0.to_be_bytes();
            let is_known = self.dead.iter().any(|(_, dead)| *dead == id);
            if is_here && row.formatted && !served.contains(&id) && !is_known {
                self.count("disk lost by lies");
                self.note(format!("{} cannot be opened any more", row.label));
                self.dead.push((machine.id, id));
            }
        }
    }

    /// More machines are cut off than the scheme survives, for a while. Nothing is lost; nothing wrong may be served.
    async fn lose_too_many(&mut self) {
        self.count("too many");
        let count = self
            .rng
            .random_range(self.losses_max + 1..=self.run.world.ways.len());
        let seconds = Duration::from_secs(self.rng.random_range(1..60));
        // Afterwards a disk that timed out is left alone for a while.
        self.run
            .set_unreadable_until(Instant::now() + seconds + Duration::from_secs(310));
        let ways: Vec<_> = self
            .run
            .world
            .ways
            .choose_multiple(&mut self.rng, count)
            .cloned()
            .collect();
        let before: Vec<Weather> = ways.iter().map(|way| way.weather()).collect();
        let cut = match self.rng.random() {
            true => Weather {
                deaf: true,
                mute: true,
                ..Weather::default()
            },
            false => Weather {
                mute: true,
                ..Weather::default()
            },
        };
        self.note(format!("{count} machines are cut off for {seconds:?}"));
        ways.iter().for_each(|way| way.set(cut.clone()));
        tokio::time::sleep(seconds).await;
        ways.iter().zip(before).for_each(|(way, before)| way.set(before));
        self.note("they are back");
    }

    /// The power fails everywhere. What was acknowledged is there afterwards.
    async fn power_fails(&mut self) {
        self.count("no power");
        self.note("the power fails");
        let seconds = Duration::from_secs(self.rng.random_range(1..10));
        self.run
            .set_unreadable_until(Instant::now() + seconds + Duration::from_secs(10));
        let machines = self.run.world.ways.iter().map(|way| way.machine.clone());
        let running: Vec<_> = machines.filter(|machine| machine.is_up()).collect();
        self.run.world.kill_gateway();
        running.iter().for_each(|machine| machine.end(End::PowerCut));
        tokio::time::sleep(seconds).await;
        running.iter().for_each(|machine| machine.start());
        self.run.world.start_gateway().await;
    }

    /// Puts disks back that were taken out of a machine, where nobody wants them any more.
    fn plug_pulled(&mut self, machine: &Machine) {
        let pulled = std::mem::take(&mut self.pulled);
        for (owner, medium) in pulled {
            match owner == machine.id {
                true => machine.plug_disk(medium),
                false => self.pulled.push((owner, medium)),
            }
        }
    }

    /// Ends everything that is wrong.
    pub async fn heal(&mut self) {
        self.end_what_is_over(true).await;
        if self.run.world.living().is_none() {
            self.run.world.start_gateway().await;
        }
        // What disks say that were away.
        tokio::time::sleep(Duration::from_secs(5)).await;
        self.operate().await;
    }

    pub async fn verify_all(&self) {
        for way in &self.run.world.ways {
            verify(&way.machine).await;
        }
    }

    /// What operators and machines are still busy with.
    pub async fn left(&mut self) -> Vec<String> {
        self.end_what_is_over(true).await;
        let disturbed = self
            .now
            .iter()
            .map(|d| format!("{:?} at {:?}", d.kind, d.machine));
        let dead = self.dead.iter().map(|(_, id)| format!("dead disk {id}"));
        let leaving = self.leaving.iter().map(|(_, id)| format!("leaving disk {id}"));
        let mut left: Vec<String> = disturbed.chain(dead).chain(leaving).collect();
        left.extend(self.census_left().await);
        left
    }

    /// Cuts off as many machines as the scheme survives losses.
    pub async fn lose_most(&mut self) {
        let count = self.losses_max;
        let ways: Vec<_> = self
            .run
            .world
            .ways
            .choose_multiple(&mut self.rng, count)
            .cloned()
            .collect();
        for way in ways {
            self.note(format!("{} is lost", way.machine.name));
            way.machine.end(End::PowerCut);
        }
        tokio::time::sleep(Duration::from_secs(5)).await;
    }
}

/// Verifies all disks of a machine, as scrubbing does at its own pace.
async fn verify(machine: &Machine) {
    for (_, engine) in machine.engines() {
        let verified = tokio::task::spawn_blocking(move || engine.verify_once());
        verified.await.expect("verifying ends");
    }
}
