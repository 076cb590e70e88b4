//! A machine: real disk engines on simulated disks, and a process that can die with or without the power.
//!
//! It answers as `storage_node::node::Node` does. Invariant: what was asked of a process that has ended meanwhile has no
//! answer, whether or not it was done.

use crate::trace::Trace;
use rand::Rng;
use rand::rngs::StdRng;
use std::sync::{Arc, Mutex, MutexGuard};
use storage_node::device::simulated::{SimulatedDisk, Unflushed};
use storage_node::engine::{Engine, Format, format, peek_superblock};
use storage_node::protocol::*;
use tokio::time::Instant;

/// Large enough for a few dozen extents; memory is used only where something was written.
pub const DISK_BYTES: u64 = 160 << 20;
pub const EXTENT_BYTES: u64 = 4 << 20;
pub const CLUSTER: ClusterId = ClusterId(0xCA1);

/// A place for a disk.
struct Slot {
    path: String,
    medium: SimulatedDisk,
    /// The medium fails at everything, for good.
    is_dead: bool,
    /// Nothing is in the slot.
    is_empty: bool,
    served: Served,
}

enum Served {
    Nothing,
    Blank,
    Disk(Arc<Engine>),
}

struct State {
    /// Grows with every start and end of the process.
    life: u64,
    is_up: bool,
    slots: Vec<Slot>,
    /// The gateway that it heard last, and when.
    heard: Option<(Beat, Instant)>,
}

/// How a process ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// In order: what was asked for is done, all is flushed.
    Stopped,
    /// `kill -9`: what was written stays in the disks' caches.
    Killed,
    /// The power: what was not flushed is lost, or torn.
    PowerCut,
}

pub struct Machine {
    pub id: NodeId,
    pub name: String,
    state: Mutex<State>,
    trace: Trace,
}

/// Answers of a process that ended before it gave one.
pub type Answer<T> = Option<Result<T, NodeError>>;

impl Machine {
    pub fn new(number: usize, trace: Trace) -> Machine {
        let state = State {
            life: 0,
            is_up: false,
            slots: Vec::new(),
            heard: None,
        };
        Machine {
            id: NodeId(number as u128 + 1),
            name: format!("n{number}"),
            state: Mutex::new(state),
            trace,
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(|e| e.into_inner())
    }

    /// Puts a blank disk into a new place. Answers which.
    pub fn insert_blank(&self, seed: u64) -> usize {
        let mut state = self.lock();
        let number = state.slots.len();
        let mut slot = Slot {
            path: format!("/{}/{number}", self.name),
            medium: SimulatedDisk::new(DISK_BYTES, seed),
            is_dead: false,
            is_empty: false,
            served: Served::Nothing,
        };
        if state.is_up {
            slot.open();
        }
        state.slots.push(slot);
        number
    }

    /// Formats the disk in a place, as the first start of a cluster does.
    pub fn format_slot(&self, slot: usize, disk: DiskId) -> String {
        let mut state = self.lock();
        let slot = &mut state.slots[slot];
        let layout = Format {
            cluster: CLUSTER,
            disk,
            incarnation: 1,
            extent_size: EXTENT_BYTES,
        };
        format(&*slot.medium.device(), &layout).expect("a new disk can be formatted");
        slot.path.clone()
    }

    pub fn is_up(&self) -> bool {
        self.lock().is_up
    }

    /// Which start of the process this is, while it runs.
    pub fn life(&self) -> Option<u64> {
        let state = self.lock();
        state.is_up.then_some(state.life)
    }

    /// Starts the process: every disk that is there recovers.
    pub fn start(&self) {
        let mut state = self.lock();
        if state.is_up {
            return;
        }
        (state.is_up, state.life) = (true, state.life + 1);
        state.heard = None;
        state.slots.iter_mut().for_each(Slot::open);
    }

    /// Ends the process.
    pub fn end(&self, how: End) {
        let mut state = self.lock();
        if !state.is_up {
            return;
        }
        (state.is_up, state.life) = (false, state.life + 1);
        for slot in &mut state.slots {
            slot.close(how);
        }
    }

    /// The medium of a disk fails from now on, for good.
    pub fn kill_disk(&self, disk: DiskId) {
        for slot in self.lock().slots.iter_mut().filter(|slot| slot.has(disk)) {
            slot.is_dead = true;
            slot.medium.crash_after(0);
        }
    }

    /// Takes a disk out of its place. The process must be down.
    pub fn pull_disk(&self, disk: DiskId) -> Option<SimulatedDisk> {
        let mut state = self.lock();
        assert!(!state.is_up, "disks are changed with the power off");
        let slot = state.slots.iter_mut().find(|slot| slot.holds(disk))?;
        slot.is_empty = true;
        Some(slot.medium.clone())
    }

    /// Puts a disk that was pulled into a new place. The process must be down.
    pub fn plug_disk(&self, medium: SimulatedDisk) {
        let mut state = self.lock();
        assert!(!state.is_up, "disks are changed with the power off");
        let path = format!("/{}/{}", self.name, state.slots.len());
        state.slots.push(Slot {
            path,
            medium,
            is_dead: false,
            is_empty: false,
            served: Served::Nothing,
        });
    }

    /// Disks do what they say from now on. Answers how often they have not.
    pub fn end_lies(&self) -> u64 {
        let state = self.lock();
        for slot in &state.slots {
            slot.medium.lose_writes(0);
            slot.medium.lie_about_flushes(false);
        }
        state.slots.iter().map(|slot| slot.medium.lies()).sum()
    }

    /// The medium that a served disk is on.
    pub fn medium(&self, disk: DiskId) -> Option<SimulatedDisk> {
        let state = self.lock();
        let slot = state.slots.iter().find(|slot| slot.has(disk))?;
        Some(slot.medium.clone())
    }

    /// The engines of the disks it serves.
    pub fn engines(&self) -> Vec<(DiskId, Arc<Engine>)> {
        let state = self.lock();
        let engines = state.slots.iter().filter_map(|slot| match &slot.served {
            Served::Disk(engine) => Some((engine.superblock().disk, engine.clone())),
            _ => None,
        });
        engines.collect()
    }

    /// Flips a bit somewhere in what is stored of a disk.
    pub fn rot(&self, disk: DiskId, rng: &mut StdRng) -> Option<u64> {
        let medium = self.medium(disk)?;
        for _ in 0..200 {
            let offset = rng.random_range(0..DISK_BYTES / 4096) * 4096;
            let bytes = medium.peek(offset, 4096);
            // Headers and superblocks have copies, and are looked at when the disk is opened; here it is about records.
            let is_record = bytes.iter().filter(|byte| **byte != 0).count() > 512;
            if is_record {
                let at = offset + rng.random_range(0..4096);
                medium.flip_bit(at, rng.random_range(0..8));
                return Some(at);
            }
        }
        None
    }

    fn engine(&self, disk: DiskId, incarnation: u64) -> Result<Arc<Engine>, NodeError> {
        let engines = self.engines();
        let found = engines.into_iter().find(|(id, _)| *id == disk);
        let (_, engine) = found.ok_or(NodeError::WrongDisk)?;
        match engine.superblock().incarnation == incarnation {
            true => Ok(engine),
            false => Err(NodeError::WrongDisk),
        }
    }

    /// Does something with a disk that was admitted.
    pub async fn with_engine<T, F>(
        &self,
        disk: DiskId,
        incarnation: u64,
        act: impl FnOnce(Arc<Engine>) -> F + Send + 'static,
    ) -> Answer<T>
    where
        T: Send + 'static,
        F: Future<Output = Result<T, NodeError>> + Send,
    {
        let admitted = move |engine: Arc<Engine>| async move {
            match engine.is_admitted() {
                true => act(engine).await,
                false => Err(NodeError::WrongDisk),
            }
        };
        self.with_opened(disk, incarnation, admitted).await
    }

    /// Does something with a disk; the clock stands still meanwhile, because engines have threads of their own.
    pub async fn with_opened<T, F>(
        &self,
        disk: DiskId,
        incarnation: u64,
        act: impl FnOnce(Arc<Engine>) -> F + Send + 'static,
    ) -> Answer<T>
    where
        T: Send + 'static,
        F: Future<Output = Result<T, NodeError>> + Send,
    {
        let life = self.life()?;
        let engine = match self.engine(disk, incarnation) {
            Ok(engine) => engine,
            Err(error) => return Some(Err(error)),
        };
        let handle = tokio::runtime::Handle::current();
        let done = tokio::task::spawn_blocking(move || handle.block_on(act(engine)));
        let done = done.await.unwrap_or(Err(NodeError::Overloaded));
        (self.life() == Some(life)).then_some(done)
    }

    /// A gateway says that it is there.
    pub fn hear(&self, beat: Beat) -> Answer<()> {
        self.life()?;
        self.lock().heard = Some((beat, Instant::now()));
        Some(Ok(()))
    }

    pub fn status(&self) -> Answer<NodeStatus> {
        self.life()?;
        let state = self.lock();
        let heard = state.heard.as_ref().map(|(beat, at)| Heard {
            beat: beat.clone(),
            ago_ms: at.elapsed().as_millis() as u64,
        });
        let mut status = NodeStatus {
            heard,
            ..NodeStatus::default()
        };
        for slot in &state.slots {
            match &slot.served {
                Served::Nothing => {}
                Served::Blank => status.blank.push(BlankDisk {
                    path: slot.path.clone(),
                    size: DISK_BYTES,
                    holds: None,
                }),
                Served::Disk(engine) => status.disks.push(disk_status(engine, &slot.path)),
            }
        }
        Some(Ok(status))
    }

    pub fn format(&self, request: &FormatRequest) -> Answer<()> {
        self.life()?;
        let mut state = self.lock();
        let refused = |what: &str| Some(Err(NodeError::BadRequest { what: what.into() }));
        let Some(slot) = state.slots.iter_mut().find(|slot| slot.path == request.path) else {
            return refused("no such place");
        };
        match &slot.served {
            Served::Blank => {}
            Served::Disk(engine) if engine.superblock().disk == request.disk => return Some(Ok(())),
            _ => return refused("it is not blank"),
        }
        let layout = Format {
            cluster: request.cluster,
            disk: request.disk,
            incarnation: request.incarnation,
            extent_size: EXTENT_BYTES,
        };
        if let Err(error) = format(&*slot.medium.device(), &layout) {
            return refused(&error);
        }
        slot.open();
        self.trace.note(format!("{} formatted {}", self.name, slot.path));
        Some(Ok(()))
    }
}

impl Slot {
    fn open(&mut self) {
        self.served = Served::Nothing;
        if self.is_dead || self.is_empty {
            return;
        }
        let device = self.medium.device();
        self.served = match peek_superblock(&*device) {
            Err(_) => Served::Blank,
            Ok(_) => match Engine::open(device) {
                Ok(engine) => Served::Disk(Arc::new(engine)),
                // One that lied may have lost anything.
                Err(_) if self.medium.lies() > 0 => Served::Nothing,
                Err(error) => panic!("a disk does not open: {error}"),
            },
        };
    }

    fn close(&mut self, how: End) {
        if let Served::Disk(engine) = std::mem::replace(&mut self.served, Served::Nothing) {
            if how != End::Stopped {
                self.medium.crash_after(0);
            }
            engine.shutdown();
        }
        if !self.is_dead {
            self.medium.reboot_with(match how {
                End::PowerCut => Unflushed::Either,
                End::Stopped | End::Killed => Unflushed::Cached,
            });
        }
    }

    fn has(&self, disk: DiskId) -> bool {
        matches!(&self.served, Served::Disk(engine) if engine.superblock().disk == disk)
    }

    /// As `has`, also while nobody serves it.
    fn holds(&self, disk: DiskId) -> bool {
        !self.is_empty && peek_superblock(&*self.medium.device()).is_ok_and(|found| found.disk == disk)
    }
}

fn disk_status(engine: &Engine, path: &str) -> DiskStatus {
    let status = engine.status();
    DiskStatus {
        disk: engine.superblock().disk,
        incarnation: engine.superblock().incarnation,
        path: path.into(),
        state: status.state,
        backend: status.backend,
        capacity_bytes: status.capacity_bytes,
        free_bytes: status.free_bytes,
        live_bytes: status.live_bytes,
        shards: status.shards,
        corrupt_shards: status.corrupt_shards,
        opening: Some(engine.opening()),
        verify: Some(engine.verify_status()),
        ledger: Some(engine.ledger()),
    }
}
