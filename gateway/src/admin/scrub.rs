//! What operators see and want of scrubbing: each disk's own verifying, and the census.

use super::operations::Refusal;
use crate::cluster::disks::{Disk, Health};
use crate::ledger::model::ScrubRow;
use crate::maintenance::census::record::CensusReport;
use crate::object::Objects;
use crate::server::Gateway;
use serde::{Deserialize, Serialize};
use std::sync::Arc;
use std::time::Duration;
use storage_node::protocol::{VerifyOrder, VerifyStatus};

const DEADLINE: Duration = Duration::from_secs(5);
/// A pass takes at least a minute, and at most a year.
const CYCLE_S: std::ops::RangeInclusive<u64> = 60..=365 * 86_400;

/// How scrubbing is.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ScrubStatus {
    /// Seconds in which nodes verify a whole disk; none if each does as it is configured.
    pub verify_cycle_s: Option<u64>,
    /// Each disk.
    pub disks: Vec<DiskScrub>,
    /// The census in progress.
    pub census: Option<CensusReport>,
    /// Volumes there are for it.
    pub volumes: usize,
    /// The last one that came to its end.
    pub last_census: Option<CensusReport>,
}

/// How verifying a disk is.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct DiskScrub {
    /// Its name.
    pub label: String,
    /// Whether it serves.
    pub online: bool,
    /// Another number each time it is opened.
    pub opening: Option<u64>,
    /// What its node says; none if it says nothing.
    pub verify: Option<VerifyStatus>,
    /// When a pass last came to its end, in milliseconds since 1970.
    pub verified_ms: Option<u64>,
    /// Whether it was opened since it was last compared with the ledger.
    pub in_doubt: bool,
}

/// Verifying and the census are to begin.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct StartRequest {
    /// Only this disk is verified, by its name or its id; all if none.
    #[serde(default)]
    pub disk: Option<String>,
}

/// They have begun.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct StartAnswer {
    /// The census.
    pub cycle: u64,
    /// The disks that are verified, as they were before.
    pub disks: Vec<DiskScrub>,
    /// The others, and why they are not.
    pub not: Vec<(String, String)>,
}

/// How long verifying a disk takes from now on.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct PaceRequest {
    /// Seconds.
    pub cycle_s: u64,
}

/// How scrubbing is now.
pub async fn status(objects: &Objects) -> crate::error::Result<ScrubStatus> {
    let row = objects.scrub_row().await?;
    let disks = objects.disks.all();
    let now_ms = objects.clock.now_ms();
    Ok(ScrubStatus {
        verify_cycle_s: (row.verify_cycle_s > 0).then_some(row.verify_cycle_s),
        disks: disks.iter().map(|disk| disk_scrub(disk, now_ms)).collect(),
        census: row.now.as_ref().map(CensusReport::new),
        volumes: objects.volumes.all().len(),
        last_census: row.last.as_ref().map(CensusReport::new),
    })
}

fn disk_scrub(disk: &Arc<Disk>, now_ms: u64) -> DiskScrub {
    let status = disk.status.as_ref();
    DiskScrub {
        label: disk.label.clone(),
        online: disk.health == Health::Online,
        opening: status.and_then(|status| status.opening).map(|opening| opening.id),
        verify: status.and_then(|status| status.verify),
        verified_ms: disk.last_verified_ms(now_ms),
        in_doubt: disk.in_doubt().is_some(),
    }
}

/// Begins a census, and a pass over one disk or all.
pub async fn start(gateway: &Gateway, request: &StartRequest) -> Result<StartAnswer, Refusal> {
    let objects = &gateway.objects;
    let chosen: Vec<Arc<Disk>> = match &request.disk {
        Some(name) => vec![objects.find_disk(name)?],
        None => {
            let all = objects.disks.all();
            let counts = |disk: &&Arc<Disk>| disk.health == Health::Online || !disk.is_given_up();
            all.iter().filter(counts).cloned().collect()
        }
    };
    let order = &VerifyOrder {
        cycle_s: None,
        now: true,
    };
    let each = chosen.iter().map(|disk| async move {
        let told = match (&disk.client, &disk.health) {
            (Some(client), Health::Online) => client
                .verify(disk.id, disk.incarnation, order, DEADLINE)
                .await
                .map_err(|error| error.to_string()),
            _ => Err("it is not online".into()),
        };
        (disk, told)
    });
    let (mut disks, mut not) = (Vec::new(), Vec::new());
    for (disk, told) in futures::future::join_all(each).await {
        match told {
            Ok(()) => disks.push(disk_scrub(disk, objects.clock.now_ms())),
            Err(why) => not.push((disk.label.clone(), why)),
        }
    }
    let cycle = objects.begin_census(true).await?;
    gateway.census.notify_one();
    tracing::info!(cycle, disks = disks.len(), "scrub: an operator began it");
    Ok(StartAnswer { cycle, disks, not })
}

/// Sets how long verifying a disk takes. Nodes are told within seconds, and when they come back.
pub async fn set_pace(objects: &Objects, request: &PaceRequest) -> Result<PaceRequest, Refusal> {
    if !CYCLE_S.contains(&request.cycle_s) {
        return Err(Refusal::Refused(
            "a pass takes at least a minute, and at most 365 days".into(),
        ));
    }
    let set = |row: &mut ScrubRow| {
        row.verify_cycle_s = request.cycle_s;
        Some(())
    };
    objects.change_scrub(set, |commit| commit).await?;
    Ok(request.clone())
}
