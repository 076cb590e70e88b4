//! What operators do: they drain disks, retire those that are dead, remove what is empty, and add new ones.

use super::Faults;
use crate::world::Serving;
use gateway::admin::operations::{Action, ApplyRequest, PlanRequest, Subject};
use gateway::admin::scrub::{self, StartRequest};
use gateway::admin::unnamed::PurgeRequest;
use gateway::cluster::disks::{Disk, Health};
use gateway::ledger::key;
use gateway::ledger::model::{DiskRow, Membership};
use rand::Rng;
use rand::seq::IndexedRandom;
use std::collections::BTreeSet;
use std::sync::Arc;

impl Faults {
    pub(super) async fn drain_something(&mut self) {
        let Some(serving) = self.run.world.living() else {
            return;
        };
        let disks = serving.objects.disks.all();
        let is_active =
            |disk: &&Arc<Disk>| disk.membership == Membership::Active && disk.health == Health::Online;
        let Some(disk) = disks
            .iter()
            .filter(is_active)
            .collect::<Vec<_>>()
            .choose(&mut self.rng)
            .copied()
        else {
            return;
        };
        if self.leaving.len() >= 2
            || self.run.world.ways.len() < self.run.world.shape.scheme.total_shards() + 2
        {
            return;
        }
        let machine = disk.node.as_ref().expect("it has a machine").id;
        self.decide(&serving, disk, Action::Drain).await;
        self.leaving.push((machine, disk.id));
    }

    /// Does what operators do next with disks that are dead or are to go.
    pub async fn operate(&mut self) {
        let Some(serving) = self.run.world.living() else {
            return;
        };
        let Some(serving) = self.accept_if_needed(serving).await else {
            return;
        };
        self.forget_what_is_gone().await;
        self.purge_what_is_kept(&serving).await;
        self.add_blank(&serving).await;
        for disk in serving.objects.disks.all().iter() {
            let units = serving.objects.volumes.all();
            let units = units
                .iter()
                .filter(|volume| volume.disks.contains(&disk.id))
                .count();
            let is_dead = self.dead.iter().any(|(_, id)| *id == disk.id);
            let leaves = self.leaving.iter().any(|(_, id)| *id == disk.id);
            if disk.membership == Membership::Out && self.renewed.insert(disk.id) {
                // Another one comes at once: what this one held may have nowhere else to go.
                let machine = disk.node.as_ref().expect("it has a machine").id;
                self.machine(machine).insert_blank(self.rng.random());
            }
            let is_shared = self.run.world.has_copy_acted() && self.shared.contains(&disk.label);
            match disk.membership {
                // Of two ledgers each had moved another unit there. Nothing moves them apart unless it is asked to.
                Membership::Active if is_shared && !is_dead && !leaves => {
                    self.count("two units apart");
                    let machine = disk.node.as_ref().expect("it has a machine").id;
                    self.decide(&serving, disk, Action::Drain).await;
                    self.leaving.push((machine, disk.id));
                }
                Membership::Active | Membership::Absent if is_dead && self.rng.random_range(0..3) == 0 => {
                    self.decide(&serving, disk, Action::Retire).await;
                }
                Membership::Draining if is_dead => self.decide(&serving, disk, Action::Retire).await,
                // They change their mind.
                Membership::Draining if leaves && self.rng.random_range(0..60) == 0 => {
                    self.decide(&serving, disk, Action::Activate).await;
                }
                Membership::Draining if leaves && units == 0 => {
                    self.decide(&serving, disk, Action::Retire).await;
                }
                Membership::Active if leaves => self.leaving.retain(|(_, id)| *id != disk.id),
                Membership::Out if units == 0 => self.decide(&serving, disk, Action::Remove).await,
                _ => {}
            }
        }
    }

    /// A disk that was away may obey another copy of the ledger. The gateway that goes on.
    async fn accept_if_needed(&mut self, serving: Serving) -> Option<Serving> {
        if !serving.is_safe() {
            return Some(serving);
        }
        let run = self.run.clone();
        if !run.world.has_copy_acted() {
            run.fail("the only ledger is taken for one that is behind".into());
            return None;
        }
        let accepted = self.accepted(serving).await;
        run.world.set_serving(accepted.clone());
        Some(accepted)
    }

    /// Where copies of the ledger have acted, operators ask for a census: what those left is found by one, and not before.
    pub async fn order_census(&mut self) {
        let Some(serving) = self.run.world.living() else {
            return;
        };
        if self.run.world.has_copy_acted() {
            let started = scrub::start(&serving.gateway, &StartRequest::default()).await;
            let started = started.map_err(|error| error.to_string());
            self.note(format!(
                "operator: a census: {:?}",
                started.as_ref().map(|it| it.cycle)
            ));
            self.census = started.ok().map(|it| it.cycle);
        }
    }

    /// The census that is waited for, while it is not over.
    pub(super) async fn census_left(&self) -> Option<String> {
        let (wanted, serving) = (self.census?, self.run.world.living()?);
        let status = scrub::status(&serving.objects).await.ok()?;
        let last = status.last_census.map_or(0, |census| census.cycle);
        (last < wanted).then(|| format!("census {wanted}, the last was {last}"))
    }

    /// In the end, what may belong to a copy of the ledger that was given up is not wanted any more.
    async fn purge_what_is_kept(&mut self, serving: &Serving) {
        if !self.run.is_quiet() || !self.run.world.has_copy_acted() {
            return;
        }
        let purging = async {
            let page = serving
                .objects
                .unnamed_page(None)
                .await
                .map_err(|refusal| refusal.to_string())?;
            let kept = page.lines.iter().filter(|line| line.kept.is_some());
            let mut request = PurgeRequest {
                blobs: kept.map(|line| (line.volume, line.blob)).collect(),
                plan: None,
            };
            if request.blobs.is_empty() {
                return Ok(None);
            }
            let plan = serving
                .objects
                .purge(&request)
                .await
                .map_err(|refusal| refusal.to_string())?;
            request.plan = Some(plan.plan);
            let purged = serving.objects.purge(&request).await;
            purged
                .map(|plan| Some(plan.blobs))
                .map_err(|refusal| refusal.to_string())
        };
        let purged: Result<Option<u64>, String> = tokio::select! {
            purged = purging => purged,
            () = serving.life.over() => return,
        };
        match purged {
            Ok(None) => {}
            Ok(Some(blobs)) => {
                self.note(format!("operator: purges what is kept: {blobs} blobs"));
                self.count("purged");
            }
            Err(why) => self.note(format!("operator: purges what is kept: {why}")),
        }
    }

    /// Disks whose rows are gone are nobody's business any more.
    async fn forget_what_is_gone(&mut self) {
        let rows = self.run.world.table::<DiskRow>(b'd').await;
        let known: BTreeSet<u128> = rows
            .iter()
            .filter_map(|(row_key, _)| key::disk_id(row_key))
            .collect();
        self.leaving.retain(|(_, id)| known.contains(&id.0));
        self.dead.retain(|(_, id)| known.contains(&id.0));
    }

    /// Goes on with disks that were begun to be added, and adds those that machines show and nobody has used yet.
    async fn add_blank(&mut self, serving: &Serving) {
        let adopting = self.run.world.adopting(serving);
        tokio::select! {
            resumed = adopting.resume() => if let Err(error) = resumed {
                self.run.trace.note(format!("not resumed: {error}"));
            },
            () = serving.life.over() => return,
        }
        let blank = adopting.blank();
        if blank.is_empty() {
            return;
        }
        let adding = async {
            match adopting.add(&blank, false).await {
                Ok(added) => self.run.trace.note(format!("added {added:?}")),
                Err(error) => self.run.trace.note(format!("not added: {error}")),
            }
        };
        tokio::select! {
            () = adding => {}
            () = serving.life.over() => {}
        }
        self.count("new disk");
    }

    /// Plans and does something with a disk, as far as the gateway lets it. What became of it, its row will say.
    async fn decide(&mut self, serving: &Serving, disk: &Disk, action: Action) {
        let planned = serving.objects.plan(&PlanRequest {
            subject: Subject::Disk(disk.label.clone()),
            action,
        });
        let Ok(plan) = planned else { return };
        let request = ApplyRequest {
            subject: Subject::Disk(disk.label.clone()),
            action,
            plan: plan.plan,
            force: None,
        };
        let applied = tokio::select! {
            applied = serving.objects.apply(&request) => applied.map(drop),
            () = serving.life.over() => return,
        };
        if applied.is_ok() {
            self.count(&format!("{action:?}"));
        }
        self.note(format!("operator: {action:?} {}: {applied:?}", disk.label));
    }
}
