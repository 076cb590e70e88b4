//! The network between a gateway and a machine: late, lossy, split, or with a liar at the other end.
//!
//! Invariants: a request that was delivered takes effect even if nobody waits for its answer any more, however late that is. A
//! gateway that is dead sends nothing and hears nothing, but what it sent is on its way.

use crate::machine::{Answer, Machine};
use crate::trace::Trace;
use async_trait::async_trait;
use bytes::Bytes;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;
use storage_node::client::StorageClient;
use storage_node::protocol::*;
use tokio::sync::{Notify, oneshot};

/// A gateway's process, as others can tell.
#[derive(Default)]
pub struct Life {
    is_over: AtomicBool,
    ended: Notify,
    is_held: AtomicBool,
    released: Notify,
}

impl Life {
    pub fn end(&self) {
        self.is_over.store(true, Ordering::Relaxed);
        self.ended.notify_waiters();
    }

    pub fn is_over(&self) -> bool {
        self.is_over.load(Ordering::Relaxed)
    }

    /// From now on nothing that it asks for goes out, and no answer reaches it.
    pub fn hold(&self) {
        self.is_held.store(true, Ordering::Relaxed);
    }

    /// What waited goes on.
    pub fn release(&self) {
        self.is_held.store(false, Ordering::Relaxed);
        self.released.notify_waiters();
    }

    pub fn is_held(&self) -> bool {
        self.is_held.load(Ordering::Relaxed)
    }

    /// Waits while the process is held; never returns once it is dead.
    pub async fn go_on(&self) {
        while self.is_held() {
            let released = self.released.notified();
            if self.is_held() {
                released.await;
            }
        }
        if self.is_over() {
            std::future::pending().await
        }
    }

    pub async fn over(&self) {
        let ended = self.ended.notified();
        if !self.is_over() {
            ended.await;
        }
    }
}

/// What is wrong on the way to a machine. Shares are of a thousand messages.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Weather {
    /// No request arrives.
    pub deaf: bool,
    /// No answer arrives.
    pub mute: bool,
    pub requests_lost: u32,
    pub answers_lost: u32,
    /// Requests that arrive once more, a while later.
    pub twice: u32,
    /// Requests that take their effect long after whoever sent them has given up.
    pub very_late: u32,
    /// Gets that are answered with something else than what was asked for.
    pub lies: u32,
    /// Requests that fail at the machine.
    pub errors: u32,
    /// The most that a message takes on top of what it takes anyway.
    pub delay_max: Duration,
}

/// The way to one machine, for all gateways.
pub struct Way {
    pub machine: Arc<Machine>,
    weather: Mutex<Weather>,
    rng: Mutex<StdRng>,
    /// Puts that arrive when nobody waits for them any more: the sweep for what a dead gateway left may be over by then.
    stragglers: Mutex<BTreeSet<(UnitId, ShardKey)>>,
    trace: Trace,
}

/// What a request asks for, for whoever reads the trace.
struct Name {
    shown: String,
    /// The shard that it puts, if it does.
    put: Option<(UnitId, ShardKey)>,
}

impl Name {
    fn new(shown: String) -> Name {
        Name { shown, put: None }
    }
}

/// What becomes of one message.
struct Fate {
    there: Duration,
    back: Duration,
    request_lost: bool,
    answer_lost: bool,
    again_after: Option<Duration>,
    late_by: Option<Duration>,
    lie: Option<u32>,
    error: Option<NodeError>,
}

impl Fate {
    /// What is unusual about it.
    fn told(&self) -> Option<String> {
        Some(match self {
            Fate {
                error: Some(error), ..
            } => format!("fails: {error}"),
            Fate {
                request_lost: true, ..
            } => "is lost".into(),
            Fate {
                late_by: Some(late), ..
            } => format!("arrives {late:?} late"),
            Fate {
                again_after: Some(again),
                ..
            } => format!("arrives again after {again:?}"),
            Fate {
                answer_lost: true, ..
            } => "gets lost on the way back".into(),
            _ => return None,
        })
    }
}

impl Way {
    pub fn new(machine: Arc<Machine>, seed: u64, trace: Trace) -> Way {
        Way {
            machine,
            weather: Mutex::default(),
            rng: Mutex::new(StdRng::seed_from_u64(seed)),
            stragglers: Mutex::default(),
            trace,
        }
    }

    /// Whether this is a shard that arrived when nobody waited for it any more.
    pub fn is_straggler(&self, unit: UnitId, key: ShardKey) -> bool {
        let stragglers = self.stragglers.lock().unwrap_or_else(|e| e.into_inner());
        stragglers.contains(&(unit, key))
    }

    fn straggles(&self, put: Option<(UnitId, ShardKey)>) {
        let mut stragglers = self.stragglers.lock().unwrap_or_else(|e| e.into_inner());
        stragglers.extend(put);
    }

    pub fn set(&self, weather: Weather) {
        *self.weather.lock().unwrap_or_else(|e| e.into_inner()) = weather;
    }

    pub fn weather(&self) -> Weather {
        self.weather.lock().unwrap_or_else(|e| e.into_inner()).clone()
    }

    fn rng(&self) -> MutexGuard<'_, StdRng> {
        self.rng.lock().unwrap_or_else(|e| e.into_inner())
    }

    fn fate(&self) -> Fate {
        let weather = self.weather();
        let mut rng = self.rng();
        let mut hit = |share: u32| rng.random_range(0..1_000) < share;
        let (request_lost, answer_lost) = (
            hit(weather.requests_lost) || weather.deaf,
            hit(weather.answers_lost) || weather.mute,
        );
        let (twice, late, lies, errs) = (
            hit(weather.twice),
            hit(weather.very_late),
            hit(weather.lies),
            hit(weather.errors),
        );
        let delay_us_max = weather.delay_max.as_micros() as u64;
        let mut leg =
            || Duration::from_micros(rng.random_range(100..2_000) + rng.random_range(0..=delay_us_max));
        let (there, back) = (leg(), leg());
        let error = errs.then(|| match rng.random_range(0..4) {
            0 => NodeError::Overloaded,
            1 => NodeError::Io {
                what: "so it says".into(),
            },
            2 => NodeError::Unreachable {
                what: "it hung up".into(),
            },
            _ => NodeError::Corrupt {
                what: "so it says".into(),
            },
        });
        Fate {
            there,
            back,
            request_lost,
            answer_lost,
            again_after: twice.then(|| Duration::from_millis(rng.random_range(1..4_000))),
            late_by: late.then(|| Duration::from_millis(rng.random_range(10_000..40_000))),
            lie: lies.then(|| rng.random()),
            error,
        }
    }

    /// Carries a request there and its answer back.
    async fn carry<T, F, R>(
        self: &Arc<Self>,
        life: &Arc<Life>,
        name: Name,
        deadline: Duration,
        request: F,
    ) -> Result<T, NodeError>
    where
        T: Send + 'static,
        F: Fn(Arc<Machine>) -> R + Send + 'static,
        R: Future<Output = Answer<T>> + Send,
    {
        life.go_on().await;
        let fate = self.fate();
        let machine = self.machine.clone();
        let (answer, answered) = oneshot::channel();
        if let Some(what) = fate.told() {
            self.trace
                .note(format!("{} to {} {what}", name.shown, machine.name));
        }
        if fate.late_by.or(fate.again_after).is_some() {
            self.straggles(name.put);
        }
        let at_all = !fate.request_lost && fate.error.is_none();
        let arrives = fate.there + fate.late_by.unwrap_or_default();
        let (way, sender) = (self.clone(), life.clone());
        let carried = async move {
            tokio::time::sleep(arrives).await;
            if sender.is_over() {
                way.straggles(name.put);
            }
            if at_all {
                // Whoever waits hears no answer that is late, lost, or never given.
                let given = request(machine.clone()).await;
                if let Some(given) = given.filter(|_| !fate.answer_lost && fate.late_by.is_none()) {
                    tokio::time::sleep(fate.back).await;
                    let _ = answer.send(given);
                }
                if let Some(again) = fate.again_after {
                    tokio::time::sleep(again).await;
                    request(machine).await;
                }
            }
        };
        tokio::spawn(carried);
        let heard = async {
            if let Some(error) = fate.error {
                tokio::time::sleep(fate.there + fate.back).await;
                return Err(error);
            }
            // A machine that is there, and on which nobody listens, says so at once.
            if !fate.request_lost && !fate.answer_lost && !self.machine.is_up() {
                tokio::time::sleep(fate.there + fate.back).await;
                let what = "connection refused".into();
                return Err(NodeError::Unreachable { what });
            }
            let answer = answered.await;
            // It waits to be taken in by a process that stands still.
            life.go_on().await;
            match answer {
                Ok(answer) => answer,
                Err(_) => std::future::pending().await,
            }
        };
        let heard = tokio::time::timeout(deadline, heard)
            .await
            .unwrap_or(Err(NodeError::Timeout));
        life.go_on().await;
        heard
    }
}

/// What a gateway has of a machine.
pub struct Link {
    pub way: Arc<Way>,
    pub life: Arc<Life>,
}

#[async_trait]
impl StorageClient for Link {
    async fn put(&self, to: &UnitAddress, shard: SealedShard, deadline: Duration) -> Result<(), NodeError> {
        let to = *to;
        let name = Name {
            shown: format!("put {:?} of {to:?}", shard.key),
            put: Some((to.unit, shard.key)),
        };
        let request = move |machine: Arc<Machine>| {
            let shard = shard.clone();
            async move {
                let put = move |engine: Arc<storage_node::engine::Engine>| async move {
                    engine.put(&to, shard, deadline).await
                };
                machine.with_engine(to.disk, to.incarnation, put).await
            }
        };
        self.way.carry(&self.life, name, deadline, request).await
    }

    async fn get(
        &self,
        from: &UnitAddress,
        key: ShardKey,
        blocks: BlockRange,
        deadline: Duration,
    ) -> Result<ShardBlocks, NodeError> {
        let from = *from;
        let lie = self.way.fate().lie;
        let name = Name::new(format!("get {key:?} of {:?}", from.unit));
        let request = move |machine: Arc<Machine>| async move {
            let get = move |engine: Arc<storage_node::engine::Engine>| async move {
                match lie {
                    None => engine.get(&from, key, blocks, deadline).await,
                    Some(lie) => told(&engine, &from, key, blocks, deadline, lie).await,
                }
            };
            machine.with_engine(from.disk, from.incarnation, get).await
        };
        self.way.carry(&self.life, name, deadline, request).await
    }

    /// Each shard has a fate of its own, so that any part of many can be lost.
    async fn get_many(
        &self,
        from: &UnitAddress,
        keys: &[ShardKey],
        deadline: Duration,
    ) -> Result<Vec<Result<ShardBlocks, NodeError>>, NodeError> {
        let each = keys
            .iter()
            .map(|key| self.get(from, *key, BlockRange::ALL, deadline));
        Ok(futures::future::join_all(each).await)
    }

    async fn put_many(
        &self,
        to: &UnitAddress,
        shards: Vec<SealedShard>,
        deadline: Duration,
    ) -> Result<Vec<Result<(), NodeError>>, NodeError> {
        let each = shards.into_iter().map(|shard| self.put(to, shard, deadline));
        Ok(futures::future::join_all(each).await)
    }

    async fn delete(&self, from: &UnitAddress, blobs: &[u64], deadline: Duration) -> Result<(), NodeError> {
        let (from, blobs) = (*from, blobs.to_vec());
        let name = Name::new(format!("delete {blobs:?} of {from:?}"));
        let request = move |machine: Arc<Machine>| {
            let blobs = blobs.clone();
            async move {
                let delete = move |engine: Arc<storage_node::engine::Engine>| async move {
                    engine.delete(&from, &blobs, deadline).await
                };
                machine.with_engine(from.disk, from.incarnation, delete).await
            }
        };
        self.way.carry(&self.life, name, deadline, request).await
    }

    async fn inventory(
        &self,
        from: &UnitAddress,
        after: Option<ShardKey>,
        limit: usize,
        deadline: Duration,
    ) -> Result<Vec<InventoryEntry>, NodeError> {
        let from = *from;
        let name = Name::new(format!("inventory of {:?}", from.unit));
        let request = move |machine: Arc<Machine>| async move {
            let list = move |engine: Arc<storage_node::engine::Engine>| async move {
                engine.inventory(&from, after, limit)
            };
            machine.with_engine(from.disk, from.incarnation, list).await
        };
        self.way.carry(&self.life, name, deadline, request).await
    }

    async fn units(
        &self,
        disk: DiskId,
        incarnation: u64,
        deadline: Duration,
    ) -> Result<Vec<UnitInfo>, NodeError> {
        let name = Name::new("units".into());
        let request = move |machine: Arc<Machine>| async move {
            let list = |engine: Arc<storage_node::engine::Engine>| async move { engine.units() };
            machine.with_engine(disk, incarnation, list).await
        };
        self.way.carry(&self.life, name, deadline, request).await
    }

    async fn drop_unit(&self, unit: &UnitAddress, deadline: Duration) -> Result<(), NodeError> {
        let unit = *unit;
        let name = Name::new(format!("drop {unit:?}"));
        let request = move |machine: Arc<Machine>| async move {
            let drop = move |engine: Arc<storage_node::engine::Engine>| async move {
                engine.drop_unit(&unit, deadline).await
            };
            machine.with_engine(unit.disk, unit.incarnation, drop).await
        };
        self.way.carry(&self.life, name, deadline, request).await
    }

    async fn findings(
        &self,
        disk: DiskId,
        incarnation: u64,
        after: u64,
        deadline: Duration,
    ) -> Result<Findings, NodeError> {
        let name = Name::new("findings".into());
        let request = move |machine: Arc<Machine>| async move {
            let list =
                move |engine: Arc<storage_node::engine::Engine>| async move { Ok(engine.findings(after)) };
            machine.with_engine(disk, incarnation, list).await
        };
        self.way.carry(&self.life, name, deadline, request).await
    }

    async fn verify(
        &self,
        disk: DiskId,
        incarnation: u64,
        order: &VerifyOrder,
        deadline: Duration,
    ) -> Result<(), NodeError> {
        let order = *order;
        let name = Name::new("verify".into());
        let request = move |machine: Arc<Machine>| async move {
            let verify = move |engine: Arc<storage_node::engine::Engine>| async move {
                engine.order_verifying(&order)
            };
            machine.with_engine(disk, incarnation, verify).await
        };
        self.way.carry(&self.life, name, deadline, request).await
    }

    async fn admit(
        &self,
        disk: DiskId,
        incarnation: u64,
        request: &AdmitRequest,
        deadline: Duration,
    ) -> Result<(), NodeError> {
        let wanted = *request;
        let name = Name::new(format!("admit {disk}"));
        let request = move |machine: Arc<Machine>| async move {
            let admit = move |engine: Arc<storage_node::engine::Engine>| async move {
                engine.admit(&wanted, deadline).await
            };
            machine.with_opened(disk, incarnation, admit).await
        };
        self.way.carry(&self.life, name, deadline, request).await
    }

    async fn obey(
        &self,
        disk: DiskId,
        incarnation: u64,
        marks: &LedgerMarks,
        deadline: Duration,
    ) -> Result<(), NodeError> {
        let marks = *marks;
        let name = Name::new(format!("obey {disk}"));
        let request = move |machine: Arc<Machine>| async move {
            let obey = move |engine: Arc<storage_node::engine::Engine>| async move {
                engine.obey(&marks, deadline).await
            };
            machine.with_opened(disk, incarnation, obey).await
        };
        self.way.carry(&self.life, name, deadline, request).await
    }

    async fn still(
        &self,
        disk: DiskId,
        incarnation: u64,
        still: &Still,
        deadline: Duration,
    ) -> Result<(), NodeError> {
        let name = Name::new(format!("still {disk}"));
        // The engine's clock is the real one: it stands still for as long as it may, and is told when that is over here.
        let (ended, lasts) = (
            Still {
                lasts_ms: 0,
                ..*still
            },
            Duration::from_millis(still.lasts_ms),
        );
        let begun = Still {
            lasts_ms: if lasts.is_zero() { 0 } else { u64::MAX },
            ..ended
        };
        let request = move |machine: Arc<Machine>| async move {
            let still = move |engine: Arc<storage_node::engine::Engine>| async move {
                let weak = Arc::downgrade(&engine);
                tokio::spawn(async move {
                    tokio::time::sleep(lasts).await;
                    if let Some(engine) = weak.upgrade() {
                        let _gone = engine.still(&ended, deadline).await; // Then it has forgotten it, too.
                    }
                });
                engine.still(&begun, deadline).await
            };
            machine.with_opened(disk, incarnation, still).await
        };
        self.way.carry(&self.life, name, deadline, request).await
    }

    async fn beat(&self, beat: &Beat, deadline: Duration) -> Result<(), NodeError> {
        let beat = beat.clone();
        let name = Name::new(format!("beat of {}", beat.instance));
        let request = move |machine: Arc<Machine>| {
            let beat = beat.clone();
            async move { machine.hear(beat) }
        };
        self.way.carry(&self.life, name, deadline, request).await
    }

    async fn format(&self, request: &FormatRequest, deadline: Duration) -> Result<(), NodeError> {
        let wanted = request.clone();
        let name = Name::new("format".into());
        let request = move |machine: Arc<Machine>| {
            let wanted = wanted.clone();
            async move { machine.format(&wanted) }
        };
        self.way.carry(&self.life, name, deadline, request).await
    }

    async fn status(&self, deadline: Duration) -> Result<NodeStatus, NodeError> {
        let name = Name::new("status".into());
        let request = |machine: Arc<Machine>| async move { machine.status() };
        self.way.carry(&self.life, name, deadline, request).await
    }
}

/// What a machine answers that lies: bytes that are not those, or another shard's, or that it has nothing.
async fn told(
    engine: &storage_node::engine::Engine,
    from: &UnitAddress,
    key: ShardKey,
    blocks: BlockRange,
    deadline: Duration,
    lie: u32,
) -> Result<ShardBlocks, NodeError> {
    let mut read = engine.get(from, key, blocks, deadline).await?;
    match lie % 4 {
        0 if !read.payload.is_empty() => {
            let mut bytes = read.payload.to_vec();
            let at = (lie / 4) as usize % bytes.len();
            bytes[at] ^= 0x40;
            read.payload = Bytes::from(bytes);
        }
        1 => {
            let others = engine.inventory(from, None, 50)?;
            let other = others[(lie / 4) as usize % others.len().max(1)].key;
            read = engine.get(from, other, blocks, deadline).await?;
        }
        2 => return Err(NodeError::NotFound),
        _ => read.digests.reverse(),
    }
    Ok(read)
}
