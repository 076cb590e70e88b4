//! The disks of the cluster, how to reach each, and whether it can be used right now.
//!
//! Health is what nodes say of their disks: they are polled, and a request that meets a fenced or missing disk marks it suspect
//! until the next poll; one that cannot reach a disk marks all disks of that node. How a disk behaves to requests is its [`Conduct`],
//! which steers reads and writes by itself: a node that says that all is well is not believed.
//! Invariant: a poll that this process slept through says nothing.
//! Invariant: nodes are polled apart from each other. One that is slow delays nothing that is known of others.
//! Invariant: a disk is used where the ledger has it. Another node that shows one with its id has a copy, or got it from
//! a machine that was taken apart; nothing is read from it or written to it there.
//! Invariant: a disk that was opened anew is used only after it was admitted ([`super::admission`]): it may be a copy of what it was.
//! Invariant: a disk is changed only after it was told of this gateway's generation of the ledger ([`super::generation`]).
//! Invariant: health steers choices and never decides what data exists. The ledger does that.

use super::admission::{Admitting, Standing, judge};
use super::conduct::{Conduct, Kind, Outcome, Trust};
use super::generation::{Generations, Verdict};
use super::lease::Lease;
use super::nodes::{Contact, Node, NodeInfo, Nodes};
use super::pauses::Pauses;
use crate::ledger::model::{AdmissionRow, DiskRow, Membership};
use crate::ledger::{Ledger, Typed, key};
use std::collections::{HashMap, HashSet};
use std::sync::{Arc, RwLock};
use std::time::Duration;
use storage_node::client::StorageClient;
use storage_node::protocol::{
    AdmitRequest, DiskId, DiskState, DiskStatus, Generation, NodeError, NodeId, NodeStatus, Opening,
    SealedShard, UnitAddress,
};
use tokio::time::Instant;
use tracing::{info, warn};

/// How often nodes are asked.
pub const POLL_PERIOD: Duration = Duration::from_millis(500);
/// A node that has not answered by then is lost, with all requests that wait for it. It answers from memory.
const POLL_DEADLINE: Duration = Duration::from_secs(1);
/// Polls that a node may miss before its disks count as down.
const MISSES_MAX: u32 = 2;
/// Room kept free on every disk: a put is not sent to a disk with less.
const FREE_BYTES_MIN: u64 = 8 << 20;

/// Why a disk is not used until it was admitted.
const UNCONFIRMED: &str = "it was opened anew, and is not confirmed yet";
/// Why a disk is not used whose marks of the ledger no ledger can reach.
const IMPLAUSIBLE: &str = "it knows of a ledger that cannot be: its superblock is damaged or forged, and the disk has to be replaced";
/// Why a disk is not used when an earlier state of it is in its place.
const STALE: &str =
    "what is there is a copy of an earlier state of this disk: put the disk itself back, or retire it";

/// Whether a disk can be used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Health {
    /// It serves.
    Online,
    /// No new writes: its node missed a poll, or a request met it out of service, or it has failed or lied of late.
    Suspect(String),
    /// It is fenced, missing, or its node does not answer.
    Down(String),
}

impl Health {
    /// What it is called where people and programs read it.
    pub fn word(&self) -> &'static str {
        match self {
            Health::Online => "online",
            Health::Suspect(_) => "suspect",
            Health::Down(_) => "down",
        }
    }
}

/// A disk as the gateway knows it.
#[derive(Clone)]
pub struct Disk {
    /// Its id.
    pub id: DiskId,
    /// The incarnation the ledger holds valid.
    pub incarnation: u64,
    /// The generation of the ledger that it obeys, and that requests to it carry.
    pub ledger: Generation,
    /// Its name for people.
    pub label: String,
    /// What was decided of it.
    pub membership: Membership,
    /// The node it belongs to; none in a cluster of one process, where a disk is a failure domain of its own.
    pub node: Option<Arc<NodeInfo>>,
    /// Reaches it, once its node has shown it.
    pub client: Option<Arc<dyn StorageClient>>,
    /// Whether it can be used, by what its node says.
    pub health: Health,
    /// What its node last said.
    pub status: Option<DiskStatus>,
    /// How it has behaved.
    pub conduct: Arc<Conduct>,
    /// When verifying last came to its end as the ledger has it, in milliseconds since 1970; 0 if it has not.
    pub verified_ms: u64,
    /// The admission that its medium has, or is being given.
    admission: Option<AdmissionRow>,
    /// The number of the admission after which it was last compared with the ledger.
    censused: u64,
    /// The ledger names no unit on it: even a copy of it may be admitted.
    is_cleared: bool,
    /// The node it belongs to, according to its row.
    owner: Option<NodeId>,
    /// The node that last showed it.
    at: Option<NodeId>,
    /// A node that shows it and should not: which, and its name.
    astray: Option<(NodeId, String)>,
    /// Polls in a row that did not show it.
    misses: u32,
    /// This gateway may only read it.
    is_read_only: bool,
    /// The opening in which its node answers reads of a gateway that may change nothing.
    read_in: Option<u64>,
    /// The ledger does not know it, and is behind.
    pub is_unlisted: bool,
}

/// What has to be done before a disk is used.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct ToDo {
    /// It is to be told of this gateway's generation.
    tell: bool,
    /// It is to be admitted in this opening.
    admit: Option<Opening>,
}

impl Disk {
    fn from_row(id: DiskId, row: &DiskRow, pauses: &Arc<Pauses>) -> Disk {
        let owner = row.node.as_ref().try_into().ok();
        Disk {
            id,
            incarnation: row.incarnation,
            ledger: Generation::NONE,
            label: row.label.clone(),
            membership: row.membership(),
            node: None,
            client: None,
            health: Health::Down("not seen yet".into()),
            status: None,
            verified_ms: row.verified_ms,
            admission: row.admission,
            censused: row.censused,
            is_cleared: false,
            owner: owner.map(|id| NodeId(u128::from_be_bytes(id))),
            at: None,
            astray: None,
            conduct: Arc::new(Conduct::new(&row.label, pauses.clone())),
            misses: 0,
            is_read_only: false,
            read_in: None,
            is_unlisted: false,
        }
    }

    /// The row of a disk that the ledger does not know.
    pub fn as_row(&self) -> DiskRow {
        let size = self.status.as_ref().map_or(0, |status| status.capacity_bytes);
        DiskRow {
            incarnation: self.incarnation,
            label: self.label.clone(),
            size,
            formatted: true,
            node: self.owner.map_or_else(Default::default, |id| {
                bytes::Bytes::copy_from_slice(&id.0.to_be_bytes())
            }),
            path: self
                .status
                .as_ref()
                .map_or_else(String::new, |status| status.path.clone()),
            ..DiskRow::default()
        }
    }

    /// When verifying last came to its end, in milliseconds since 1970: as its node says, or as the ledger has it, whichever is
    /// later. The ledger is told only by and by.
    pub fn last_verified_ms(&self, now_ms: u64) -> Option<u64> {
        let status = self.status.as_ref().filter(|_| self.health == Health::Online);
        let ended_s_ago = status.and_then(|status| status.verify?.ended_s_ago);
        let of_node = ended_s_ago.map(|ago| now_ms.saturating_sub(ago.saturating_mul(1_000)));
        of_node.max((self.verified_ms > 0).then_some(self.verified_ms))
    }

    /// Takes in what a node shows of it. What has to be done before it is used, if something has.
    fn take_in(&mut self, node: &Node, status: DiskStatus, verdict: Verdict) -> Option<ToDo> {
        if self.owner.is_some_and(|owner| owner != node.key) {
            if self.astray.as_ref().is_none_or(|(at, _)| *at != node.key) {
                warn!(disk = %self.label, node = node.name(), "a node shows a disk that is not its own; it is not used there");
                self.astray = Some((node.key, node.name().into()));
            }
            return None;
        }
        self.misses = 0;
        let mut health = health_of(self, &status);
        if status.ledger.is_some_and(|marks| !marks.is_plausible()) {
            health = Health::Down(IMPLAUSIBLE.into());
        }
        let mut to_do = ToDo::default();
        let serves = matches!(health, Health::Online | Health::Suspect(_));
        self.is_read_only = verdict == Verdict::ReadOnly;
        self.ledger = match verdict {
            Verdict::Obeys(generation) => generation,
            Verdict::Untold | Verdict::ReadOnly => Generation::NONE,
        };
        if serves && verdict == Verdict::Untold {
            to_do.tell = true;
            health = Health::Down(UNCONFIRMED.into());
        }
        let is_read_here = self.is_read_only && status.opening.map(|opening| opening.id) == self.read_in;
        if let (Some(opening), true, false) = (status.opening, serves, is_read_here) {
            match judge(self.admission.as_ref(), &opening) {
                Standing::Admitted => {}
                Standing::Stale if !self.is_cleared => health = Health::Down(STALE.into()),
                Standing::New | Standing::Stale => {
                    to_do.admit = Some(opening);
                    health = Health::Down(UNCONFIRMED.into());
                }
            }
        }
        self.at = Some(node.key);
        self.client = Some(node.client.clone());
        self.status = Some(status);
        if to_do == ToDo::default() || matches!(&health, Health::Down(why) if why != UNCONFIRMED) {
            set_health(self, health);
            return None;
        }
        self.health = health; // For a moment, and nothing that anybody has to know.
        Some(to_do)
    }

    /// The admission since which it was not compared with the ledger, if it was not.
    pub fn in_doubt(&self) -> Option<u64> {
        let admission = self.admission.filter(|admission| admission.given)?;
        (admission.number > self.censused).then_some(admission.number)
    }

    /// Whether what is in its place is a copy of an earlier state.
    pub fn is_stale(&self) -> bool {
        self.health == Health::Down(STALE.into())
    }

    fn take_in_row(&mut self, row: &DiskRow) {
        self.admission = row.admission;
        self.censused = row.censused;
        self.verified_ms = row.verified_ms;
    }

    /// Takes in that a node does not show it. `lost`: why the node shows nothing.
    fn take_in_absence(&mut self, node: &Node, lost: Option<&str>) {
        if lost.is_none() && self.astray.as_ref().is_some_and(|(at, _)| *at == node.key) {
            self.astray = None;
        }
        if !self.is_expected_at(node) {
            return;
        }
        self.misses += 1;
        let why = match (lost, &self.astray) {
            (Some(why), _) => why.to_owned(),
            (None, Some((_, other))) => format!("node {other} shows it, where it does not belong"),
            (None, None) if node.info.is_some() => format!("node {} does not have it", node.name()),
            (None, None) => "no node has it".into(),
        };
        // One answer that is late is no reason to refuse what can be read.
        let health = match self.misses < MISSES_MAX && self.health == Health::Online {
            true => Health::Suspect(why),
            false => Health::Down(why),
        };
        set_health(self, health);
    }

    fn is_expected_at(&self, node: &Node) -> bool {
        match (self.owner, self.at) {
            (Some(owner), _) => owner == node.key,
            (None, Some(at)) => at == node.key,
            (None, None) => false,
        }
    }

    fn is_nowhere(&self) -> bool {
        self.owner.is_none() && self.at.is_none()
    }

    /// Whether its units are to be rebuilt elsewhere. Those that are not yet are still named there.
    pub fn is_given_up(&self) -> bool {
        self.membership.is_given_up()
    }

    /// Whether new shards may go there while there are others.
    pub fn writable(&self) -> bool {
        self.trust() == Some(Trust::Full)
    }

    /// How far to trust it with a new shard; none if it takes no shards.
    pub fn trust(&self) -> Option<Trust> {
        let takes_shards = self.health == Health::Online
            && !self.is_read_only
            && self.membership == Membership::Active
            && !self.full();
        takes_shards.then(|| self.conduct.trust())
    }

    /// Its health as operators should see it: a disk that fails or lies is suspect, whatever its node says.
    pub fn standing(&self) -> Health {
        match (&self.health, self.conduct.suspicion()) {
            (Health::Online, Some(why)) => Health::Suspect(why),
            (health, _) => health.clone(),
        }
    }

    /// Its failure domain at this level: no two units of a volume share one. Without a label, or a node, the one below.
    pub fn domain(&self, level: Level) -> u128 {
        let Some(node) = &self.node else {
            return self.id.0;
        };
        let of_label = |label: &str| {
            let hash = blake3::hash(label.as_bytes());
            hash.as_bytes()
                .iter()
                .take(16)
                .fold(0, |id, byte| id << 8 | u128::from(*byte))
        };
        match level {
            Level::Zone if !node.zone.is_empty() => of_label(&format!("zone {}", node.zone)),
            Level::Zone | Level::Rack if !node.rack.is_empty() => {
                of_label(&format!("rack {} {}", node.zone, node.rack))
            }
            _ => node.id.0,
        }
    }

    /// Whether it serves but has no room.
    pub fn full(&self) -> bool {
        self.status
            .as_ref()
            .is_some_and(|s| s.free_bytes < FREE_BYTES_MIN)
    }
}

/// What must not fail together: see DESIGN's failure domains. A disk's node, where it has one, is the least.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    /// A machine, or in a cluster of one process a disk.
    Node,
    /// Machines with the same rack.
    Rack,
    /// Machines with the same zone.
    Zone,
}

/// The disks at one moment. Requests share it; it is replaced, never changed.
#[derive(Default)]
struct Snapshot {
    by_id: HashMap<DiskId, Arc<Disk>>,
    by_label: Arc<[Arc<Disk>]>,
}

impl Snapshot {
    fn new(mut sorted: Vec<Arc<Disk>>) -> Snapshot {
        sorted.sort_by(|a, b| (a.label.len(), &a.label).cmp(&(b.label.len(), &b.label)));
        let by_id = sorted.iter().map(|d| (d.id, d.clone())).collect();
        Snapshot {
            by_id,
            by_label: sorted.into(),
        }
    }
}

/// All disks.
pub struct Disks {
    nodes: Arc<Nodes>,
    generations: Arc<Generations>,
    admitting: Admitting,
    pauses: Arc<Pauses>,
    now: RwLock<Snapshot>,
}

impl Disks {
    /// Reads the disks from the ledger; nothing is known of their health until [`Disks::poll`].
    pub async fn load(
        ledger: &Ledger,
        lease: Arc<Lease>,
        nodes: Arc<Nodes>,
        generations: Arc<Generations>,
    ) -> crate::error::Result<Disks> {
        let pauses = Arc::new(Pauses::default());
        let mut disks = Vec::new();
        ledger
            .for_each(key::table(b'd'), |row_key, Typed { row, .. }: Typed<DiskRow>| {
                if let (Some(id), true) = (key::disk_id(&row_key), row.formatted) {
                    disks.push(Disk::from_row(DiskId(id), &row, &pauses));
                }
            })
            .await?;
        let disks = Disks {
            nodes,
            generations,
            admitting: Admitting::new(ledger.clone(), lease),
            pauses,
            now: RwLock::new(Snapshot::new(disks.into_iter().map(Arc::new).collect())),
        };
        disks.name_nodes();
        Ok(disks)
    }

    /// When this process stood still. Nobody looks until [`Pauses::watch`].
    pub fn pauses(&self) -> &Arc<Pauses> {
        &self.pauses
    }

    /// The nodes they are on.
    pub fn nodes(&self) -> &Arc<Nodes> {
        &self.nodes
    }

    /// Takes in the row of a disk that is new, or has another incarnation now. The next poll says how it is.
    pub fn put(&self, id: DiskId, row: &DiskRow) {
        let disk = Disk::from_row(id, row, &self.pauses);
        self.change(|disks| {
            disks.retain(|other| other.id != id);
            disks.push(Arc::new(disk));
        });
        self.name_nodes();
    }

    /// Forgets a disk whose row is gone.
    pub fn remove(&self, id: DiskId) {
        self.change(|disks| disks.retain(|other| other.id != id));
    }

    /// Takes in that a node has changed its labels: its disks carry them.
    pub fn name_nodes(&self) {
        let info = |disk: &Disk| disk.owner.and_then(|id| self.nodes.get(id)?.info.clone());
        self.update(|disk| info(disk) != disk.node, |disk| disk.node = info(disk));
    }

    /// Asks every node, all at once, and takes in what they say; ends when the last one has answered.
    pub async fn poll(&self) {
        let nodes = self.nodes.all();
        futures::future::join_all(nodes.iter().map(|node| self.poll_node(node))).await;
        let why_lost = |node: &Arc<Node>| match node.contact() {
            Contact::Lost(why) => Some(why),
            _ => None,
        };
        let why = nodes.iter().find_map(why_lost);
        let why = why.unwrap_or_else(|| "no node has it".into());
        self.update(Disk::is_nowhere, |disk| {
            set_health(disk, Health::Down(why.clone()))
        });
    }

    /// Asks every node that is not being asked already, and waits for none.
    pub fn begin_poll(self: &Arc<Self>) {
        for node in self.nodes.all().iter() {
            let (disks, node) = (self.clone(), node.clone());
            tokio::spawn(async move {
                if let Ok(_asking) = node.asking.try_lock() {
                    disks.ask(&node).await;
                }
            });
        }
    }

    /// Asks one node, and takes in what it says.
    pub async fn poll_node(&self, node: &Arc<Node>) {
        let _asking = node.asking.lock().await;
        self.ask(node).await;
    }

    async fn ask(&self, node: &Arc<Node>) {
        let beat = async {
            if let Some(beat) = self.generations.beat() {
                // A node of before does not know what that is.
                let _heard = node.client.beat(&beat, POLL_DEADLINE).await;
            }
        };
        let began = Instant::now();
        let (answer, ()) = futures::join!(node.client.status(POLL_DEADLINE), beat);
        if answer.is_err() && self.pauses.touched(began) {
            return; // It may have answered; it is asked again at once.
        }
        let current = self.nodes.get(node.key);
        if !current.is_some_and(|current| Arc::ptr_eq(&current, node)) {
            return; // It moved, or left, meanwhile.
        }
        let lost = node.take_in(&answer);
        let to_do = self.take_in(node, answer.unwrap_or_default(), lost.as_deref());
        let confirm = |(id, to_do)| self.confirm(id, node, to_do);
        futures::future::join_all(to_do.into_iter().map(confirm)).await;
    }

    /// Tells a disk of the ledger, and admits it, as far as it has to be; it is used from then on.
    async fn confirm(&self, id: DiskId, node: &Node, to_do: ToDo) {
        let Some(disk) = self.get(id) else { return };
        if to_do.tell
            && let Err(error) = self.generations.tell(&*node.client, id, disk.incarnation).await
        {
            tracing::debug!(disk = %disk.label, %error, "not told of the ledger yet; it is tried again");
            return;
        }
        let own = self.generations.own();
        if to_do.admit.is_some() {
            self.generations.forget(id); // Another medium may be in its place.
        }
        if to_do.tell {
            self.update(
                |disk| disk.id == id,
                |disk| disk.ledger = own.unwrap_or(Generation::NONE),
            );
        }
        match (to_do.admit, own) {
            (Some(opening), Some(own)) => self.admit(id, node, opening, own).await,
            (Some(opening), None) => self.admit_reading(&disk, node, opening).await,
            (None, _) => self.set_confirmed(id),
        }
    }

    fn set_confirmed(&self, id: DiskId) {
        self.update(
            |disk| disk.id == id && disk.health == Health::Down(UNCONFIRMED.into()),
            |disk| set_health(disk, Health::Online),
        );
    }

    /// Asks a node to answer reads of a disk; nothing is written anywhere.
    async fn admit_reading(&self, disk: &Disk, node: &Node, opening: Opening) {
        let admitted = admit_reading(&*node.client, disk.id, disk.incarnation, &opening, POLL_DEADLINE).await;
        match admitted {
            Ok(()) => {
                self.update(
                    |other| other.id == disk.id,
                    |disk| disk.read_in = Some(opening.id),
                );
                self.set_confirmed(disk.id);
            }
            Err(error) => tracing::debug!(disk = %disk.label, %error, "not read yet; it is tried again"),
        }
    }

    /// Has disks know of this commit, durably, before something on them is deleted because of it; says whether this one does.
    pub async fn tell(&self, disk: &Disk, position: u64) -> bool {
        if disk.ledger == Generation::NONE {
            // Its node is of before disks knew any; or this gateway is safe, and deletes nothing.
            return self.generations.own().is_some();
        }
        if self.generations.knows(disk.id, position) {
            return true;
        }
        let Some(client) = &disk.client else { return false };
        let told = self.generations.tell(&**client, disk.id, disk.incarnation).await;
        told.is_ok() && self.generations.knows(disk.id, position)
    }

    /// Tells every disk that is there how far the ledger is.
    pub async fn tell_all(&self, position: u64) {
        let disks = self.all();
        let there = disks.iter().filter(|disk| disk.health == Health::Online);
        futures::future::join_all(there.map(|disk| self.tell(disk, position))).await;
    }

    /// What this gateway may do, and what disks were told.
    pub fn generations(&self) -> &Arc<Generations> {
        &self.generations
    }

    /// Admits a disk in this opening, and uses it from then on.
    async fn admit(&self, id: DiskId, node: &Node, opening: Opening, own: Generation) {
        let Some(disk) = self.get(id) else { return };
        let ledger = match disk.ledger {
            Generation::NONE => Generation::NONE,
            _ => own,
        };
        let admitted = self
            .admitting
            .admit(id, &*node.client, &opening, ledger, disk.is_cleared)
            .await;
        let is_it = |disk: &Disk| disk.id == id;
        match &admitted {
            Ok(Some(row)) => self.update(is_it, |disk| {
                disk.take_in_row(row);
                disk.is_cleared = false;
                if disk.health == Health::Down(UNCONFIRMED.into()) {
                    set_health(disk, Health::Online);
                }
            }),
            Ok(None) => {}
            Err(error) => tracing::debug!(disk = %disk.label, %error, "not admitted yet; it is tried again"),
        }
    }

    /// Takes in that the ledger names no unit on a disk: what is in its place may be a copy of it.
    pub fn set_cleared(&self, id: DiskId) {
        self.update(|disk| disk.id == id, |disk| disk.is_cleared = true);
    }

    /// Notes that a disk was compared with the ledger since this admission, unless it was opened anew meanwhile.
    pub async fn note_censused(&self, id: DiskId, admission: u64) -> crate::error::Result<bool> {
        let noted = self.admitting.note_censused(id, admission).await?;
        if noted {
            self.update(|disk| disk.id == id, |disk| disk.censused = admission);
        }
        Ok(noted)
    }

    /// Notes when verifying came to the end of a disk.
    pub async fn note_verified(&self, id: DiskId, at_ms: u64) -> crate::error::Result<()> {
        self.admitting.note_verified(id, at_ms).await?;
        self.update(|disk| disk.id == id, |disk| disk.verified_ms = at_ms);
        Ok(())
    }

    /// What was shown, and what has to be done with it first.
    fn take_in(&self, node: &Node, status: NodeStatus, lost: Option<&str>) -> Vec<(DiskId, ToDo)> {
        let shown = status.disks.into_iter().map(|disk| (disk.disk, disk));
        let mut shown: HashMap<DiskId, DiskStatus> = shown.collect();
        let names: HashSet<DiskId> = shown.keys().copied().collect();
        let is_concerned = |disk: &Disk| {
            let is_astray_here = disk.astray.as_ref().is_some_and(|(at, _)| *at == node.key);
            names.contains(&disk.id) || disk.is_expected_at(node) || is_astray_here
        };
        if self.generations.own().is_none() {
            self.take_in_unlisted(node, &shown);
        }
        let verdicts = shown
            .iter()
            .map(|(id, status)| (*id, self.generations.verdict(*id, status.ledger.as_ref())));
        let verdicts: HashMap<DiskId, Verdict> = verdicts.collect();
        let mut to_do = Vec::new();
        self.update(is_concerned, |disk| match shown.remove(&disk.id) {
            Some(status) => {
                let verdict = verdicts.get(&disk.id).copied().unwrap_or(Verdict::ReadOnly);
                to_do.extend(disk.take_in(node, status, verdict).map(|to_do| (disk.id, to_do)));
            }
            None => disk.take_in_absence(node, lost),
        });
        to_do
    }

    /// Takes in disks that the ledger, which is behind, does not know: what it names may be there now.
    fn take_in_unlisted(&self, node: &Node, shown: &HashMap<DiskId, DiskStatus>) {
        let is_unlisted = |status: &&DiskStatus| status.disk != DiskId(0) && self.get(status.disk).is_none();
        let unlisted = shown.values().filter(is_unlisted).map(|status| {
            let owner = node.info.as_ref().map(|info| info.id.0.to_be_bytes());
            let row = DiskRow {
                incarnation: status.incarnation,
                label: format!("unlisted-{:.8}", status.disk.to_string()),
                formatted: true,
                node: owner.map_or_else(Default::default, |id| bytes::Bytes::copy_from_slice(&id)),
                ..DiskRow::default()
            };
            warn!(
                disk = row.label,
                node = node.name(),
                path = status.path,
                "the ledger does not know this disk; it is read"
            );
            Arc::new(Disk {
                is_unlisted: true,
                ..Disk::from_row(status.disk, &row, &self.pauses)
            })
        });
        let unlisted: Vec<Arc<Disk>> = unlisted.collect();
        if !unlisted.is_empty() {
            self.change(|disks| disks.extend(unlisted));
            self.name_nodes();
        }
    }

    /// The widest failure domains of which there are enough for volumes of this many units, whether or not all are up now. With
    /// too few nodes it is nodes all the same: width shrinks, and no two units share one.
    pub fn level(&self, width: usize) -> Level {
        let disks = self.all();
        let members = || {
            disks
                .iter()
                .filter(|disk| matches!(disk.membership, Membership::Active | Membership::Absent))
        };
        let is_enough = |level: &Level| {
            let is_labelled = |disk: &Arc<Disk>| {
                disk.node.as_ref().is_some_and(|node| match level {
                    Level::Zone => !node.zone.is_empty(),
                    _ => !node.rack.is_empty(),
                })
            };
            let domains: HashSet<u128> = members().map(|disk| disk.domain(*level)).collect();
            members().all(is_labelled) && domains.len() >= width
        };
        let wide = [Level::Zone, Level::Rack].into_iter().find(is_enough);
        wide.unwrap_or(Level::Node)
    }

    /// Takes in what was decided of a disk, once the ledger has it.
    pub fn set_membership(&self, id: DiskId, membership: Membership) {
        self.update(|disk| disk.id == id, |disk| disk.membership = membership);
    }

    /// Stores a shard on a disk. It is given up after `time`, or when others would have been done for long.
    pub async fn put_shard(
        &self,
        disk: &Disk,
        to: &UnitAddress,
        shard: SealedShard,
        time: Duration,
    ) -> Result<(), NodeError> {
        let client = disk.client.as_ref().ok_or_else(no_node)?;
        let cut_off = disk.conduct.cut_off(Kind::Write);
        let call = disk.conduct.begin(Kind::Write);
        let stored = client.put(to, shard, cut_off.min(time)).await;
        match &stored {
            Ok(()) => call.end(Outcome::Good),
            Err(NodeError::Timeout) if time < cut_off => drop(call), // It had less time than it may take.
            Err(error) => {
                call.end(Outcome::of_error(error));
                self.met(disk.id, error);
            }
        }
        stored
    }

    /// Takes in that a change of what a disk holds failed, other than [`Disks::put_shard`].
    pub fn report(&self, id: DiskId, error: &NodeError) {
        if let Some(disk) = self.get(id) {
            disk.conduct.take_in(Kind::Write, Outcome::of_error(error));
        }
        self.met(id, error);
    }

    /// Takes in what an error says of a disk's state: the next request need not find out, and the next poll knows better.
    pub fn met(&self, id: DiskId, error: &NodeError) {
        self.generations.refused_by(error);
        let is_of_node = match error {
            NodeError::Fenced { .. } | NodeError::WrongDisk | NodeError::NoSpace => false,
            NodeError::Unreachable { .. } if self.pauses.lately() => return,
            NodeError::Unreachable { .. } => true,
            _ => return,
        };
        let Some(found) = self.get(id).filter(|disk| disk.health == Health::Online) else {
            return; // Known already.
        };
        let is_concerned = |disk: &Disk| {
            let is_beside = is_of_node && disk.at.is_some() && disk.at == found.at && found.node.is_some();
            disk.health == Health::Online && (disk.id == id || is_beside)
        };
        self.update(is_concerned, |disk| {
            if let (NodeError::NoSpace, Some(status)) = (error, &mut disk.status) {
                status.free_bytes = 0; // Until the next poll: it knows better than what it last said.
            }
            set_health(disk, Health::Suspect(error.to_string()));
        });
    }

    /// One disk.
    pub fn get(&self, id: DiskId) -> Option<Arc<Disk>> {
        self.now
            .read()
            .unwrap_or_else(|e| e.into_inner())
            .by_id
            .get(&id)
            .cloned()
    }

    /// All of them, by label.
    pub fn all(&self) -> Arc<[Arc<Disk>]> {
        self.now
            .read()
            .unwrap_or_else(|e| e.into_inner())
            .by_label
            .clone()
    }

    /// Replaces the snapshot by one in which every disk that `concerns` says went through `change`.
    fn update(&self, concerns: impl Fn(&Disk) -> bool, mut change: impl FnMut(&mut Disk)) {
        self.change(|disks| {
            for disk in disks.iter_mut().filter(|disk| concerns(disk)) {
                let mut changed = Disk::clone(disk);
                change(&mut changed);
                *disk = Arc::new(changed);
            }
        });
    }

    fn change(&self, change: impl FnOnce(&mut Vec<Arc<Disk>>)) {
        let mut now = self.now.write().unwrap_or_else(|e| e.into_inner());
        let mut disks = now.by_label.to_vec();
        change(&mut disks);
        *now = Snapshot::new(disks);
    }
}

/// Has a node answer reads of a disk in this opening. Nothing is written anywhere.
pub async fn admit_reading(
    client: &dyn StorageClient,
    disk: DiskId,
    incarnation: u64,
    opening: &Opening,
    deadline: Duration,
) -> Result<(), NodeError> {
    let request = AdmitRequest {
        opening: opening.id,
        admission: opening.admission,
        ledger: Generation::NONE,
        is_reading: true,
    };
    client.admit(disk, incarnation, &request, deadline).await
}

fn set_health(disk: &mut Disk, health: Health) {
    if disk.health != health {
        log_change(disk, &health);
        disk.health = health;
    }
}

fn health_of(disk: &Disk, status: &DiskStatus) -> Health {
    if status.incarnation != disk.incarnation {
        return Health::Down(format!("incarnation {} is not the valid one", status.incarnation));
    }
    match &status.state {
        DiskState::Fenced { reason } => Health::Down(reason.clone()),
        DiskState::Online => Health::Online,
    }
}

/// What a call to a disk ends with that no node has shown.
pub fn no_node() -> NodeError {
    NodeError::Unreachable {
        what: "no node has the disk".into(),
    }
}

fn log_change(disk: &Disk, health: &Health) {
    match health {
        Health::Online => info!(disk = %disk.label, "disk online"),
        Health::Suspect(why) => warn!(disk = %disk.label, why, "disk suspect: no new writes to it"),
        Health::Down(why) => warn!(disk = %disk.label, why, "disk down"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use storage_node::protocol::VerifyStatus;

    #[test]
    fn a_pass_counts_as_soon_as_the_node_says_so() {
        let row = DiskRow {
            verified_ms: 2_000,
            ..DiskRow::default()
        };
        let mut disk = Disk::from_row(DiskId(1), &row, &Arc::default());
        disk.status = Some(DiskStatus {
            disk: disk.id,
            incarnation: 0,
            path: String::new(),
            state: DiskState::Online,
            backend: String::new(),
            capacity_bytes: 0,
            free_bytes: 0,
            live_bytes: 0,
            shards: 0,
            corrupt_shards: 0,
            opening: None,
            verify: Some(VerifyStatus {
                ended_s_ago: Some(3),
                ..VerifyStatus::default()
            }),
            ledger: None,
        });
        assert_eq!(
            disk.last_verified_ms(10_000),
            Some(2_000),
            "what a disk said that is away is old"
        );
        disk.health = Health::Online;
        assert_eq!(disk.last_verified_ms(10_000), Some(7_000));
        assert_eq!(disk.last_verified_ms(4_000), Some(2_000));
        (disk.verified_ms, disk.status) = (0, None);
        assert_eq!(disk.last_verified_ms(10_000), None);
    }
}
