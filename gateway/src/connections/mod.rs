//! Connections of clients, and what each holds: memory of the budget, a place, a head that is not complete.
//!
//! ```text
//! accepted ─► idle: a head comes ─► in a request: reads, works, answers ─► idle …
//!               │                      │
//!               │                      └─ cut if its client is slow, and others wait for the memory that it holds (shares)
//!               └─ cut if places are short, longest idle first; or heads hold too much, largest first
//! ```
//!
//! A request's task says for whom it works by [`Connection::serve`]; memory that it sets aside is counted for that connection, its
//! address, and its access key once that is known. Work of the cluster itself is nobody's.
//!
//! Invariant: a connection is cut by dropping its task: what it held goes back, and an upload that was not complete leaves no object.

pub mod shares;
mod stream;

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use shares::{Holder, Pace};
use std::collections::HashMap;
use std::net::IpAddr;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::task::{Context, Poll};
use std::time::Duration;
pub use stream::ClientStream;
use tokio::sync::Notify;
use tokio::time::Instant;

/// A connection that is idle for less is not cut for its place.
const IDLE_MIN: Duration = Duration::from_secs(1);
/// A client's pace is that of about its last seconds.
const WINDOW: Duration = Duration::from_secs(5);

tokio::task_local! {
    static SERVED: Arc<Connection>;
}

/// The connection for which this task works, if it works for one.
pub fn served() -> Option<Arc<Connection>> {
    SERVED.try_with(Arc::clone).ok()
}

/// Has a task that is spawned work for the connection for which this one does.
pub fn serving_the_same<F: Future>(work: F) -> impl Future<Output = F::Output> {
    let served = served();
    async move {
        match served {
            Some(connection) => SERVED.scope(connection, work).await,
            None => work.await,
        }
    }
}

/// Of which pool memory is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Uploads.
    Writes = 0,
    /// Downloads.
    Reads = 1,
    /// Decoding.
    Decode = 2,
}

/// Pools there are.
const KINDS: usize = 3;

/// Why a connection was cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cut {
    /// Others needed its place.
    Idle,
    /// Heads that are not complete held too much.
    Head,
    /// Others waited for memory that it held.
    Slow,
}

impl Cut {
    /// For metrics.
    pub fn name(self) -> &'static str {
        match self {
            Cut::Idle => "idle",
            Cut::Head => "head",
            Cut::Slow => "slow",
        }
    }
}

/// Who holds something.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Party {
    Address(IpAddr),
    Key(Arc<str>),
}

/// All connections of one address that is listened on.
pub struct Connections {
    /// Bytes of heads that are not complete.
    heads_max: u64,
    heads: AtomicU64,
    next: AtomicU64,
    state: Mutex<State>,
    cut: prometheus::IntCounterVec,
}

#[derive(Default)]
struct State {
    all: HashMap<u64, Weak<Connection>>,
    /// Bytes of each pool that parties hold.
    held: HashMap<Party, [u64; KINDS]>,
}

/// One connection.
pub struct Connection {
    id: u64,
    address: IpAddr,
    connections: Arc<Connections>,
    held: [AtomicU64; KINDS],
    is_cut: AtomicBool,
    cut: Notify,
    /// "100 Continue" is to be sent before what comes next.
    continues: AtomicBool,
    /// The client may be sending a body that nobody reads when the connection is closed.
    lingers: AtomicBool,
    now: Mutex<Now>,
}

/// What a connection does.
struct Now {
    /// The access key of the request in progress.
    key: Option<Arc<str>>,
    /// Since when there is no request; none while there is one.
    idle: Option<Instant>,
    /// Bytes that came since then.
    head: u64,
    /// When its pace began to be counted.
    window: Instant,
    pace: Pace,
    /// Since when its client is waited for, and to do what.
    waiting: Option<(Instant, Awaited)>,
}

/// What a client is waited for to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Awaited {
    Send,
    Take,
}

impl Connections {
    /// With so many bytes for heads that are not complete; counts those that are cut.
    pub fn new(heads_max: u64, cut: prometheus::IntCounterVec) -> Arc<Connections> {
        Arc::new(Connections {
            heads_max,
            heads: AtomicU64::new(0),
            next: AtomicU64::new(0),
            state: Mutex::default(),
            cut,
        })
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// One more.
    pub fn accepted(self: &Arc<Self>, address: IpAddr) -> Arc<Connection> {
        let now = Instant::now();
        let connection = Arc::new(Connection {
            id: self.next.fetch_add(1, Ordering::Relaxed),
            address: address.to_canonical(),
            connections: self.clone(),
            held: Default::default(),
            is_cut: AtomicBool::new(false),
            cut: Notify::new(),
            continues: AtomicBool::new(false),
            lingers: AtomicBool::new(false),
            now: Mutex::new(Now {
                key: None,
                idle: Some(now),
                head: 0,
                window: now,
                pace: Pace::default(),
                waiting: None,
            }),
        });
        let weak = Arc::downgrade(&connection);
        self.lock().all.insert(connection.id, weak);
        connection
    }

    fn all(&self) -> Vec<Arc<Connection>> {
        self.lock().all.values().filter_map(Weak::upgrade).collect()
    }

    /// Cuts the connection that is idle for longest, if there is one: its place is needed.
    pub fn free_a_place(&self) -> bool {
        let all = self.all();
        let idle = all.iter().filter(|it| !it.is_cut());
        let idle = idle.filter_map(|it| Some((it.lock().idle?, it)));
        match idle.min_by_key(|(since, _)| *since) {
            Some((since, longest)) if since.elapsed() >= IDLE_MIN => {
                longest.end(Cut::Idle);
                true
            }
            _ => false,
        }
    }

    /// Cuts those whose heads are largest, until heads hold no more than they may.
    fn free_heads(&self) {
        let mut heads: Vec<(u64, Arc<Connection>)> = self
            .all()
            .into_iter()
            .filter(|it| !it.is_cut())
            .map(|it| {
                let bytes = it.lock().head;
                (bytes, it)
            })
            .collect();
        heads.sort_by_key(|(bytes, _)| std::cmp::Reverse(*bytes));
        let mut all: u64 = heads.iter().map(|(bytes, _)| bytes).sum();
        for (bytes, largest) in heads {
            if all <= self.heads_max {
                return;
            }
            all -= bytes;
            largest.end(Cut::Head);
        }
    }

    /// Cuts slow ones that hold memory of a pool, until this much comes back.
    fn relieve(&self, kind: Kind, wanted: u64, waits: u64) {
        let all = self.all();
        let now = Instant::now();
        let holders: Vec<Holder> = all
            .iter()
            .filter(|it| it.id != waits)
            .map(|it| Holder {
                id: it.id,
                held: it.held[kind as usize].load(Ordering::Relaxed),
                pace: it.lock().pace_at(now),
                is_cut: it.is_cut(),
            })
            .collect();
        let cut = shares::whom_to_cut(&holders, wanted);
        for slow in all.iter().filter(|it| cut.contains(&it.id)) {
            slow.end(Cut::Slow);
        }
    }
}

impl Now {
    fn pace_at(&self, now: Instant) -> Pace {
        let waiting = self
            .waiting
            .map_or(Duration::ZERO, |(since, _)| now.duration_since(since));
        if waiting >= shares::GRACE {
            // Nothing moved since, however much did before: what fills the buffers on the way says nothing of a client.
            return Pace {
                moved: 0,
                waited: waiting,
            };
        }
        Pace {
            moved: self.pace.moved,
            waited: self.pace.waited + waiting,
        }
    }

    /// Nobody waits for the client any more.
    fn came(&mut self, now: Instant) {
        if let Some((since, _)) = self.waiting.take() {
            self.pace.waited += now.duration_since(since);
        }
    }

    fn count_anew(&mut self, now: Instant) {
        (self.window, self.pace) = (now, Pace::default());
    }
}

impl Connection {
    fn lock(&self) -> MutexGuard<'_, Now> {
        self.now.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn is_cut(&self) -> bool {
        self.is_cut.load(Ordering::Relaxed)
    }

    fn end(&self, why: Cut) {
        if !self.is_cut.swap(true, Ordering::Relaxed) {
            self.connections.cut.with_label_values(&[why.name()]).inc();
            tracing::debug!(address = %self.address, why = why.name(), "connection cut");
            self.cut.notify_one();
        }
    }

    /// Returns when it is to be cut.
    pub async fn over(&self) {
        self.cut.notified().await;
    }

    /// A request has begun; it lasts as long as what is answered is held.
    pub fn begin(self: &Arc<Self>) -> InRequest {
        let head = {
            let mut now = self.lock();
            let at = Instant::now();
            now.idle = None;
            now.came(at);
            now.count_anew(at);
            std::mem::take(&mut now.head)
        };
        self.connections.heads.fetch_sub(head, Ordering::Relaxed);
        InRequest(self.clone())
    }

    /// Does a request's work.
    pub async fn serve<F: Future>(self: Arc<Self>, work: F) -> F::Output {
        SERVED.scope(self, work).await
    }

    /// Has "100 Continue" be sent before the answer: for a body of no bytes hyper sends none, and who expects it waits, or misreads
    /// the answer. Where answers of earlier requests wait to be sent it goes before those, and says nothing there either.
    pub fn say_continue(&self) {
        self.continues.store(true, Ordering::Relaxed);
    }

    /// Has what the client still sends be read and dropped for a while once the last answer is sent. A close with bytes that nobody
    /// read would reset the connection, and the client, or a proxy before it, would lose the answer.
    pub fn linger(&self) {
        self.lingers.store(true, Ordering::Relaxed);
    }

    /// Whether something is to come from the client, or to be taken by it, before anything goes on.
    fn awaits_client(&self) -> bool {
        let now = self.lock();
        now.idle.is_some() || now.waiting.is_some()
    }

    /// Whose access key signed the request in progress. Before memory is set aside for it: what was is counted for its address only.
    pub fn set_key(&self, key: &str) {
        self.lock().key = Some(key.into());
    }

    /// Waits for something that the client is to send.
    pub async fn awaiting<F: Future>(&self, work: F) -> F::Output {
        let mut work = std::pin::pin!(work);
        std::future::poll_fn(|cx| {
            let polled = work.as_mut().poll(cx);
            self.note_waiting(Awaited::Send, polled.is_pending());
            polled
        })
        .await
    }

    /// Whether the client is waited for.
    fn note_waiting(&self, awaited: Awaited, is_waiting: bool) {
        let mut now = self.lock();
        match (is_waiting, now.waiting) {
            (true, None) => now.waiting = Some((Instant::now(), awaited)),
            (false, Some((_, before))) if before == awaited => now.came(Instant::now()),
            _ => {}
        }
    }

    /// The client sent bytes.
    fn note_received(&self, bytes: u64) {
        let is_head = {
            let mut now = self.lock();
            // What comes after the last answer is the rest of a body.
            let is_head = now.idle.is_some() && !self.lingers.load(Ordering::Relaxed);
            if is_head {
                now.head += bytes;
            }
            now.note_moved(bytes);
            is_head
        };
        if is_head {
            let connections = &self.connections;
            let all = connections.heads.fetch_add(bytes, Ordering::Relaxed) + bytes;
            if all > connections.heads_max {
                connections.free_heads();
            }
        }
    }

    /// The client took bytes.
    fn note_sent(&self, bytes: u64) {
        self.lock().note_moved(bytes);
    }

    fn parties(&self) -> impl Iterator<Item = Party> {
        let key = self.lock().key.clone();
        [Some(Party::Address(self.address)), key.map(Party::Key)]
            .into_iter()
            .flatten()
    }

    /// Counts bytes of a pool as held, for as long as the answer is.
    pub fn hold(self: &Arc<Self>, kind: Kind, bytes: u64) -> Held {
        let parties: Vec<Party> = self.parties().collect();
        let mut state = self.connections.lock();
        for party in &parties {
            state.held.entry(party.clone()).or_default()[kind as usize] += bytes;
        }
        drop(state);
        self.held[kind as usize].fetch_add(bytes, Ordering::Relaxed);
        Held {
            connection: self.clone(),
            parties,
            kind,
            bytes,
        }
    }

    /// Whether all its parties hold little of a pool of this size, with so many bytes more.
    pub fn holds_little(&self, kind: Kind, wanted: u64, total: u64) -> bool {
        let parties = self.parties();
        let state = self.connections.lock();
        let held = |party: Party| state.held.get(&party).map_or(0, |held| held[kind as usize]);
        let mut parties = parties.map(held);
        parties.all(|held| shares::is_little(held, wanted, total))
    }

    /// It waits for memory: slow ones give some back.
    pub fn relieve(&self, kind: Kind, wanted: u64) {
        self.connections.relieve(kind, wanted, self.id);
    }
}

impl Now {
    fn note_moved(&mut self, bytes: u64) {
        let at = Instant::now();
        if at.duration_since(self.window) > WINDOW {
            self.count_anew(at);
            if let Some((since, _)) = &mut self.waiting {
                *since = at;
            }
        }
        self.pace.moved += bytes;
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        let head = self.lock().head;
        self.connections.heads.fetch_sub(head, Ordering::Relaxed);
        self.connections.lock().all.remove(&self.id);
    }
}

/// Bytes that are counted as a connection's; not any more when dropped.
pub struct Held {
    connection: Arc<Connection>,
    parties: Vec<Party>,
    kind: Kind,
    bytes: u64,
}

impl std::fmt::Debug for Held {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "{} bytes of {:?} for connection {}",
            self.bytes, self.kind, self.connection.id
        )
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        let kind = self.kind as usize;
        self.connection.held[kind].fetch_sub(self.bytes, Ordering::Relaxed);
        let mut state = self.connection.connections.lock();
        for party in &self.parties {
            if let Some(held) = state.held.get_mut(party) {
                held[kind] = held[kind].saturating_sub(self.bytes);
                if *held == [0; KINDS] {
                    state.held.remove(party);
                }
            }
        }
    }
}

/// A request in progress.
pub struct InRequest(Arc<Connection>);

impl InRequest {
    /// Lasts as long as a body.
    pub fn with<B>(self, body: B) -> Answering<B> {
        Answering { body, _request: self }
    }
}

impl Drop for InRequest {
    fn drop(&mut self) {
        let mut now = self.0.lock();
        now.idle = Some(Instant::now());
        now.key = None;
        now.waiting = None;
    }
}

/// The body of an answer, with the request that it ends.
pub struct Answering<B> {
    body: B,
    _request: InRequest,
}

impl<B: Body<Data = Bytes> + Unpin> Body for Answering<B> {
    type Data = Bytes;
    type Error = B::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        Pin::new(&mut self.body).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use prometheus::{IntCounterVec, Opts};
    use std::net::Ipv4Addr;

    fn connections(heads_max: u64) -> Arc<Connections> {
        let cut = IntCounterVec::new(Opts::new("cut", "cut"), &["why"]).expect("valid");
        Connections::new(heads_max, cut)
    }

    fn address(last: u8) -> IpAddr {
        Ipv4Addr::new(127, 0, 0, last).into()
    }

    #[tokio::test(start_paused = true)]
    async fn the_longest_idle_gives_its_place_and_nobody_in_a_request_does() {
        let all = connections(1 << 20);
        let first = all.accepted(address(1));
        tokio::time::advance(Duration::from_secs(5)).await;
        let second = all.accepted(address(1));
        assert!(all.free_a_place());
        assert!(first.is_cut() && !second.is_cut());
        first.over().await;
        assert!(!all.free_a_place(), "the other one has just come");
        tokio::time::advance(Duration::from_secs(5)).await;
        let request = second.begin();
        assert!(!all.free_a_place());
        drop(request);
        assert!(!all.free_a_place());
        tokio::time::advance(IDLE_MIN).await;
        assert!(all.free_a_place());
        assert_eq!(all.cut.with_label_values(&["idle"]).get(), 2);
    }

    #[tokio::test]
    async fn the_largest_heads_go_when_all_hold_too_much() {
        let all = connections(1_000);
        let (small, large) = (all.accepted(address(1)), all.accepted(address(2)));
        small.note_received(400);
        large.note_received(600);
        assert!(!small.is_cut() && !large.is_cut());
        small.note_received(1);
        assert!(large.is_cut() && !small.is_cut());
        drop(large);
        let request = small.begin();
        assert_eq!(all.heads.load(Ordering::Relaxed), 0);
        small.note_received(5_000); // Its body.
        assert_eq!(all.heads.load(Ordering::Relaxed), 0);
        drop(request);
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_that_is_waited_for_gives_back_what_others_wait_for() {
        let all = connections(1 << 20);
        let (slow, busy, waits) = (
            all.accepted(address(1)),
            all.accepted(address(2)),
            all.accepted(address(3)),
        );
        let _requests = [slow.begin(), busy.begin(), waits.begin()];
        let held = slow.hold(Kind::Writes, 100);
        let _disk_is_slow = busy.hold(Kind::Writes, 100);
        slow.note_sent(100 << 20); // Into buffers on the way.
        slow.note_waiting(Awaited::Take, true);
        tokio::time::advance(shares::GRACE).await;
        waits.relieve(Kind::Reads, 10);
        assert!(!slow.is_cut(), "it holds none of that");
        waits.relieve(Kind::Writes, 1_000);
        assert!(slow.is_cut() && !busy.is_cut());
        drop(held);
        assert!(!all.lock().held.contains_key(&Party::Address(address(1))));
    }

    #[tokio::test]
    async fn a_key_and_an_address_each_have_a_share() {
        let all = connections(1 << 20);
        let (first, second, other) = (
            all.accepted(address(1)),
            all.accepted(address(2)),
            all.accepted(address(3)),
        );
        let _requests = [first.begin(), second.begin(), other.begin()];
        first.set_key("a");
        second.set_key("a");
        other.set_key("b");
        let held = first.hold(Kind::Writes, 100);
        assert!(!second.holds_little(Kind::Writes, 100, 1_000), "of the same key");
        assert!(other.holds_little(Kind::Writes, 100, 1_000));
        assert!(second.holds_little(Kind::Reads, 100, 1_000), "of another pool");
        drop(held);
        assert!(second.holds_little(Kind::Writes, 100, 1_000));
    }

    #[tokio::test]
    async fn spawned_work_is_for_the_same_connection() {
        let connection = connections(1).accepted(address(1));
        assert!(served().is_none());
        let id = connection.id;
        let spawned = connection
            .serve(async { tokio::spawn(serving_the_same(async { served().map(|it| it.id) })).await });
        assert_eq!(spawned.await.expect("joins"), Some(id));
    }
}
