//! Makes a ledger of entries: a new one from a snapshot and the log over it, or one that is behind goes on from where it is.
//!
//! Invariants:
//! - A new ledger is in its place only when all of it was read and verified. A body that does not verify is as good as missing, and another
//!   chain, or a shorter one, is tried.
//! - A ledger that catches up gets the very commits, with their versions, or nothing: all of them are read before the first is applied.

use super::chain::{ChainError, Loss, Plan, chains, choose, log_from};
use super::entry::{Digest, Header, Writer, parse_log, parse_rows};
use super::finding::{Finder, Places};
use crate::ledger::model::GenerationRow;
use crate::ledger::redb::{Building, Rows};
use crate::ledger::store::{Commit, LedgerError, Mutation, Store, Versioned};
use crate::ledger::{Ledger, key};
use bytes::{Bytes, BytesMut};
use std::collections::HashSet;
use std::future::Future;
use std::path::Path;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

/// Rows that are put into a new ledger at once take about so many bytes.
const APPLY_BYTES: usize = 16 << 20;
/// Commits that catch up at once, and their bytes.
const CATCH_UP_COMMITS: usize = 512;
const CATCH_UP_BYTES: usize = 8 << 20;
/// The most bytes of log that a ledger catches up by; one that is further behind is restored.
const CATCH_UP_BYTES_MAX: usize = 1 << 30;

/// Why no ledger comes of an archive.
#[derive(Debug, thiserror::Error)]
pub enum ReplayError {
    /// What was found does not make one.
    #[error(transparent)]
    Chain(#[from] ChainError),
    /// The new ledger could not be written.
    #[error(transparent)]
    Ledger(#[from] LedgerError),
    /// Something stopped.
    #[error("{0}")]
    Stopped(String),
}

/// Reads the bodies of entries.
#[async_trait::async_trait]
pub trait Bodies<T>: Sync {
    /// The body, verified; none if it cannot be had.
    async fn body(&self, header: &Header, at: &T) -> Option<Bytes>;
}

#[async_trait::async_trait]
impl Bodies<Places> for Finder {
    async fn body(&self, header: &Header, at: &Places) -> Option<Bytes> {
        match Finder::body(self, header, at).await {
            Ok(body) => Some(body),
            Err(error) => {
                tracing::info!(entry = header.number, %error, "an entry of the archive cannot be read");
                None
            }
        }
    }
}

/// What a ledger was made of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Restored {
    /// The version of its last commit.
    pub position: u64,
    /// When the last entry that it is made of was written, in milliseconds since 1970.
    pub at_ms: u64,
    /// Which ledger that was.
    pub writer: Writer,
    /// The position of the snapshot.
    pub snapshot: u64,
    /// Rows of the snapshot, and entries of the log replayed over it.
    pub rows: u64,
    /// See `rows`.
    pub log_entries: usize,
    /// What could not be used.
    pub losses: Vec<Loss>,
}

/// Makes a new ledger at `path`.
pub async fn build<T: Clone + Send + Sync>(
    path: &Path,
    found: &[(Header, T)],
    until_ms: Option<u64>,
    bodies: &impl Bodies<T>,
) -> Result<Restored, ReplayError> {
    let mut unusable: HashSet<Digest> = HashSet::new();
    loop {
        let plan = choose(found, &unusable, until_ms)?;
        match of_plan(path, &plan, bodies).await? {
            Ok(restored) => return Ok(restored),
            Err(unreadable) => {
                if !unusable.insert(unreadable) {
                    return Err(ReplayError::Stopped(
                        "an entry that was given up is used again".into(),
                    ));
                }
            }
        }
    }
}

/// The digest of the entry that cannot be read, inside.
async fn of_plan<T: Clone + Send + Sync>(
    path: &Path,
    plan: &Plan<T>,
    bodies: &impl Bodies<T>,
) -> Result<Result<Restored, Digest>, ReplayError> {
    let building = {
        let path = path.to_owned();
        off_reactor(move || Building::begin(&path)).await??
    };
    let mut building = Rebuilding {
        building: Arc::new(building),
        rows: Rows::new(),
        bytes: 0,
        position: plan.end.0.first,
    };
    let mut rows = 0;
    for group in groups(&plan.pieces) {
        let body = match joined(group, bodies).await {
            Ok(body) => body,
            Err(unreadable) => return Ok(Err(unreadable)),
        };
        let Some(piece) = parse_rows(body) else {
            return Ok(Err(group[0].0.digest()));
        };
        rows += piece.len() as u64;
        for row in piece {
            building.put(row.key, Some(row.versioned));
        }
        building.apply(false).await?;
    }
    for group in groups(&plan.log) {
        let header = &group[0].0;
        let body = match joined(group, bodies).await {
            Ok(body) => body,
            Err(unreadable) => return Ok(Err(unreadable)),
        };
        let Some(commits) = parse_log(body, header.first, header.last) else {
            return Ok(Err(header.digest()));
        };
        for (version, mutations) in commits
            .into_iter()
            .filter(|(version, _)| *version > plan.end.0.first)
        {
            for mutation in mutations {
                match mutation {
                    Mutation::Put { key, value } => building.put(key, Some(Versioned { version, value })),
                    Mutation::Delete { key } => building.put(key, None),
                }
            }
            building.position = version;
        }
        building.apply(false).await?;
    }
    building.apply(true).await?;
    let Ok(building) = Arc::try_unwrap(building.building) else {
        return Err(ReplayError::Stopped("the new ledger is in use".into()));
    };
    off_reactor(move || building.finish()).await??;
    Ok(Ok(Restored {
        position: plan.position,
        at_ms: plan.at_ms,
        writer: plan.writer,
        snapshot: plan.end.0.last,
        rows,
        log_entries: plan.log.len(),
        losses: plan.losses.clone(),
    }))
}

struct Rebuilding {
    building: Arc<Building>,
    rows: Rows,
    bytes: usize,
    position: u64,
}

impl Rebuilding {
    fn put(&mut self, key: Bytes, row: Option<Versioned>) {
        self.bytes += key.len() + row.as_ref().map_or(0, |row| row.value.len()) + 64;
        self.rows.insert(key, row);
    }

    async fn apply(&mut self, is_last: bool) -> Result<(), ReplayError> {
        if self.bytes < APPLY_BYTES && !is_last {
            return Ok(());
        }
        let (building, rows, position) = (
            self.building.clone(),
            std::mem::take(&mut self.rows),
            self.position,
        );
        self.bytes = 0;
        off_reactor(move || building.apply(&rows, position)).await??;
        Ok(())
    }
}

async fn off_reactor<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T, ReplayError> {
    let done = tokio::task::spawn_blocking(work).await;
    done.map_err(|error| ReplayError::Stopped(format!("a worker stopped: {error}")))
}

/// Entries that were cut belong together.
pub(super) fn groups<T>(entries: &[(Header, T)]) -> impl Iterator<Item = &[(Header, T)]> {
    entries.chunk_by(|(header, _), _| header.more)
}

pub(super) async fn joined<T: Sync>(group: &[(Header, T)], bodies: &impl Bodies<T>) -> Result<Bytes, Digest> {
    let mut all = BytesMut::new();
    for (header, at) in group {
        match bodies.body(header, at).await {
            Some(body) if group.len() == 1 => return Ok(body),
            Some(body) => all.extend_from_slice(&body),
            None => return Err(header.digest()),
        }
    }
    Ok(all.freeze())
}

/// What catching up came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CaughtUp {
    /// The ledger has these commits more.
    By {
        /// How many.
        commits: u64,
        /// Its position now.
        position: u64,
    },
    /// The archive has nothing more than the ledger.
    NothingNewer,
    /// The archive does not go on from where the ledger is, or not as far as it should. Nothing was changed.
    Broken,
}

/// Applies to a ledger that is behind what the archive has beyond it, if that is whole up to `wanted` at least, and of the ledger's own
/// history. Nobody else may commit meanwhile.
pub async fn catch_up(
    ledger: &Ledger,
    finder: &Finder,
    found: &[(Header, Places)],
    wanted: u64,
) -> Result<CaughtUp, ReplayError> {
    let position = ledger.position();
    let Some(chain) = chains(found, &HashSet::new()).into_iter().next() else {
        return Ok(CaughtUp::Broken);
    };
    let newest = chain.iter().map(|(header, _)| header.last).max().unwrap_or(0);
    if newest <= position && wanted <= position {
        return Ok(CaughtUp::NothingNewer);
    }
    let begins = chain
        .iter()
        .rposition(|(header, _)| is_log(header) && header.first <= position + 1);
    // Parts of what was cut have the same versions.
    let begins = begins.map(|at| {
        let first = chain[at].0.first;
        chain
            .iter()
            .position(|(header, _)| is_log(header) && header.first == first)
            .unwrap_or(at)
    });
    let Some(begins) = begins else {
        return Ok(CaughtUp::Broken);
    };
    let (log, reached, _) = log_from(&chain[begins..], position, None);
    if reached < wanted || reached <= position {
        return Ok(CaughtUp::Broken);
    }
    let mut commits = Vec::new();
    let mut bytes = 0;
    for group in groups(&log) {
        let header = &group[0].0;
        let Ok(body) = joined(group, finder).await else {
            return Ok(CaughtUp::Broken);
        };
        bytes += body.len();
        let Some(parsed) = parse_log(body, header.first, header.last) else {
            return Ok(CaughtUp::Broken);
        };
        if bytes > CATCH_UP_BYTES_MAX {
            return Ok(CaughtUp::Broken);
        }
        commits.extend(parsed.into_iter().filter(|(version, _)| *version > position));
    }
    if !is_own_history(ledger, &log, &commits).await? {
        return Ok(CaughtUp::Broken);
    }
    let count = commits.len() as u64;
    apply(ledger.store(), commits).await?;
    Ok(CaughtUp::By {
        commits: count,
        position: ledger.position(),
    })
}

fn is_log(header: &Header) -> bool {
    header.kind == super::entry::Kind::Log
}

/// Whether the log goes on from this very ledger: what wrote it has the ledger's generation, or takes the one after it.
async fn is_own_history(
    ledger: &Ledger,
    log: &[(Header, Places)],
    commits: &[(u64, Vec<Mutation>)],
) -> Result<bool, LedgerError> {
    let own = ledger.get::<GenerationRow>(key::generation()).await?;
    let own = own.map_or_else(Writer::default, |own| Writer {
        number: own.row.number,
        nonce: own.row.nonce,
    });
    let first = log.first().map(|(header, _)| header.writer);
    let mutations = commits.iter().flat_map(|(_, mutations)| mutations);
    let taken = mutations.filter_map(|mutation| match mutation {
        Mutation::Put { key, value } if *key == key::generation() => Some(value.clone()),
        _ => None,
    });
    let taken = taken
        .filter_map(|value| <GenerationRow as prost::Message>::decode(value).ok())
        .next();
    // The first generation that was taken after the ledger's position follows the ledger's own.
    Ok(match taken {
        Some(taken) => (taken.before_number, taken.before_nonce) == (own.number, own.nonce),
        None => first == Some(own),
    })
}

type Committing<'a> = Pin<Box<dyn Future<Output = Result<u64, LedgerError>> + Send + 'a>>;

/// Commits with the versions that they had: a ledger gives its commits consecutive ones.
async fn apply(store: &Arc<dyn Store>, commits: Vec<(u64, Vec<Mutation>)>) -> Result<(), ReplayError> {
    let mut commits = commits.into_iter().peekable();
    while commits.peek().is_some() {
        let (mut window, mut bytes) = (Vec::new(), 0);
        while let Some((version, mutations)) =
            commits.next_if(|_| window.len() < CATCH_UP_COMMITS && bytes < CATCH_UP_BYTES)
        {
            let commit = Commit {
                preconditions: Vec::new(),
                mutations,
            };
            bytes += commit.bytes();
            window.push((version, store.commit(commit)));
        }
        // Each is begun before the next, so that they are made durable together, and in order.
        let (versions, mut waiting): (Vec<u64>, Vec<Committing<'_>>) = window.into_iter().unzip();
        let mut done = Vec::new();
        for commit in &mut waiting {
            let begun = commit.as_mut().poll(&mut Context::from_waker(Waker::noop()));
            done.push(match begun {
                Poll::Ready(outcome) => Some(outcome),
                Poll::Pending => None,
            });
        }
        for ((version, commit), done) in versions.into_iter().zip(waiting).zip(done) {
            let committed = match done {
                Some(outcome) => outcome?,
                None => commit.await?,
            };
            if committed != version {
                return Err(ReplayError::Stopped(format!(
                    "commit {version} of the archive became commit {committed}: somebody else commits"
                )));
            }
        }
    }
    Ok(())
}
