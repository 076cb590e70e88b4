//! One seed: clients work while faults come and go, then everything heals, then everything is looked at.

use crate::clients::{Client, Counts, SHARED_KEYS};
use crate::faults::Faults;
use crate::model::{Model, Shared};
use crate::trace::{Log, Trace};
use crate::world::{BUCKET, Serving, Shape, World};
use gateway::object::list::{Entry, Query};
use gateway::object::multipart::UploadTarget;
use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng};
use std::collections::{BTreeMap, VecDeque};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::sync::RwLock;
use tokio::time::Instant;

/// How long everything may take to heal.
const HEALED_WITHIN: Duration = Duration::from_secs(2_400);
const CLIENTS: usize = 3;

/// What all parts of a run share.
pub struct Run {
    pub seed: u64,
    pub world: Arc<World>,
    pub trace: Trace,
    pub counts: Counts,
    pub shared: Shared,
    /// What each client knows of its keys.
    pub models: Vec<Arc<Model>>,
    /// Whoever asks a gateway for something reads it; whoever exchanges the ledger writes it, and nobody asks meanwhile.
    pub traffic: RwLock<()>,
    quiet: AtomicBool,
    failure: Mutex<Option<String>>,
    /// More is lost than the scheme survives, until then.
    unreadable_until: Mutex<Option<Instant>>,
}

impl Run {
    pub fn fail(&self, why: String) {
        self.trace.note(format!("FAILED: {why}"));
        let mut failure = self.failure.lock().unwrap_or_else(|e| e.into_inner());
        failure.get_or_insert(why);
    }

    pub fn has_failed(&self) -> bool {
        self.failure.lock().unwrap_or_else(|e| e.into_inner()).is_some()
    }

    /// Whether clients and faults are to end.
    pub fn is_quiet(&self) -> bool {
        self.quiet.load(Ordering::Relaxed)
    }

    pub fn unreadable_until(&self) -> Option<Instant> {
        *self.unreadable_until.lock().unwrap_or_else(|e| e.into_inner())
    }

    pub fn set_unreadable_until(&self, until: Instant) {
        *self.unreadable_until.lock().unwrap_or_else(|e| e.into_inner()) = Some(until);
    }

    /// A read was refused: fine only if more was lost than the scheme survives, at its beginning or since.
    pub fn excuse(&self, at_begin: Option<Instant>, why: String) -> Result<(), String> {
        let now = self.unreadable_until();
        match now != at_begin || now.is_some_and(|until| Instant::now() < until) {
            true => Ok(()),
            false => Err(why),
        }
    }
}

/// What kind of cluster a seed has.
fn shape(rng: &mut StdRng) -> Shape {
    let shapes = [
        ("rs(4,2)", 8, 2, 0),
        ("rs(4,2)", 7, 1, 0),
        ("rs(2,2)", 6, 2, 0),
        ("rs(2,2)", 8, 1, 2),
        ("replica(3)", 5, 2, 0),
        ("rs(3,1)", 6, 1, 0),
        ("lrc(4,2,1)", 9, 1, 0),
    ];
    let (scheme, machines, disks_each, rack) = shapes.choose(rng).expect("shapes");
    Shape {
        scheme: scheme.parse().expect("a scheme"),
        machines: *machines,
        disks_each: *disks_each,
        rack: *rack,
    }
}

/// What a seed did.
pub struct Done {
    pub told: String,
    /// What happened, and how often.
    pub counted: BTreeMap<String, usize>,
}

/// Runs a seed. Answers what it did, or what is wrong.
pub async fn run(seed: u64, events: Arc<Mutex<VecDeque<String>>>) -> Result<Done, String> {
    let mut rng = StdRng::seed_from_u64(seed);
    let shape = shape(&mut rng);
    let trace = Trace::new(events);
    let _logged = tracing::subscriber::set_default(Log(trace.clone()));
    trace.note(format!("seed {seed}: {shape:?}"));
    let world = World::new(shape, seed, trace.clone()).await;
    let run = Arc::new(Run {
        seed,
        world,
        trace,
        counts: Counts::default(),
        shared: Shared::default(),
        models: (0..CLIENTS).map(|_| Arc::default()).collect(),
        traffic: RwLock::default(),
        quiet: AtomicBool::new(false),
        failure: Mutex::default(),
        unreadable_until: Mutex::default(),
    });
    let working: Vec<_> = (0..CLIENTS)
        .map(|number| tokio::spawn(Client::new(run.clone(), number).work()))
        .collect();
    let mut faults = Faults::new(run.clone(), rng.random());
    let lasts = Duration::from_secs(rng.random_range(60..180));
    faults.rage(lasts).await;
    run.quiet.store(true, Ordering::Relaxed);
    let mut clients = Vec::new();
    for client in working {
        clients.push(
            client
                .await
                .map_err(|error| format!("a client stopped: {error}"))?,
        );
    }
    run.trace.note("all clients are done; healing");
    faults.heal().await;
    end_uploads(&run.world.gateway().await).await?;
    run.check_failure()?;
    run.settle(&mut faults).await?;
    check_all(&run, &mut clients).await?;
    let census = run.world.census().await;
    if !census.is_clean() {
        return Err(format!("{census:#?}"));
    }
    check_let_go(&run.world.gateway().await)?;
    faults.lose_most().await;
    check_all(&run, &mut clients).await?;
    let counts = &run.counts;
    let told = format!(
        "{} blobs, {} shards at the end ({} tails, {} unclaimed, {} astray); {counts:?}; {faults}",
        census.blobs, census.shards, census.tails, census.unclaimed, census.astray
    );
    let counted = faults.counted().clone();
    Ok(Done { told, counted })
}

async fn check_all(run: &Run, clients: &mut [Client]) -> Result<(), String> {
    let serving = run.world.gateway().await;
    for client in clients.iter_mut() {
        client.check(&serving).await;
    }
    for number in 0..SHARED_KEYS {
        clients[0].get_shared(&serving, &format!("shared/{number}")).await;
    }
    run.check_failure()
}

/// Nobody asks for anything: all memory is free, and every blob is named or gone.
fn check_let_go(serving: &Serving) -> Result<(), String> {
    let (objects, budget) = (&serving.objects, &serving.objects.budget);
    let held = [&budget.writes, &budget.reads, &budget.decode].map(|pool| pool.used_bytes());
    let volumes = objects.volumes.all();
    let written: Vec<u64> = volumes
        .iter()
        .map(|v| v.id)
        .filter(|id| objects.abandoned.is_writing(*id))
        .collect();
    match held == [0; 3] && objects.abandoned.is_empty() && written.is_empty() {
        true => Ok(()),
        false => Err(format!(
            "idle, and {held:?} bytes are set aside, {} blobs abandoned, volumes {written:?} written to",
            objects.abandoned.len()
        )),
    }
}

/// Uploads that clients left.
async fn end_uploads(serving: &Serving) -> Result<(), String> {
    let query = Query {
        limit: 1_000,
        ..Query::default()
    };
    let page = serving.objects.list_uploads(BUCKET, &query, None).await;
    for entry in page.map_err(|error| format!("uploads: {error}"))?.entries {
        let Entry::Item(name, entry) = entry else { continue };
        let target = UploadTarget {
            bucket: BUCKET.into(),
            name,
            upload: entry.upload,
        };
        let ended = serving.objects.abort_upload(&target).await;
        ended.map_err(|error| format!("aborting an upload: {error}"))?;
    }
    Ok(())
}

impl Run {
    fn check_failure(&self) -> Result<(), String> {
        match self.failure.lock().unwrap_or_else(|e| e.into_inner()).clone() {
            Some(why) => Err(why),
            None => Ok(()),
        }
    }

    /// Waits until nothing is left to be done, and stays so.
    async fn settle(&self, faults: &mut Faults) -> Result<(), String> {
        let begun = Instant::now();
        let (mut calm, mut verified) = (0, 0);
        let mut left = Vec::new();
        while begun.elapsed() < HEALED_WITHIN {
            tokio::time::sleep(Duration::from_secs(5)).await;
            faults.operate().await;
            left = self.world.unsettled().await;
            left.extend(self.world.displaced().await);
            left.extend(faults.left().await);
            calm = if left.is_empty() { calm + 1 } else { 0 };
            match calm {
                4 if verified < 2 => {
                    // What is left of rot is found now, and what was found is repaired.
                    faults.verify_all().await;
                    faults.order_census().await;
                    (calm, verified) = (0, verified + 1);
                }
                4 => {
                    self.trace.note(format!("settled after {:?}", begun.elapsed()));
                    return Ok(());
                }
                _ => {}
            }
        }
        Err(format!("after {HEALED_WITHIN:?} there is still {left:#?}"))
    }
}
