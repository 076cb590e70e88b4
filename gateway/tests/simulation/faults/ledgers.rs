//! What becomes of the ledger's file: an older one is put in its place, or it is copied, and gateways run on both.
//!
//! What must hold:
//! - A ledger that is behind catches up from the archive, or is only read. What it names and nobody has changed since reads right, and nothing
//!   that the newest one names is lost by it.
//! - Of two copies one acts. Whoever is fenced acknowledges nothing any more, and deletes nothing.
//! - A ledger that acts is not behind any disk that it reaches. It has all that was acknowledged by its last commit; an operator who goes on
//!   with it gives up what came later, and who puts the newest one back has everything again.

use super::Faults;
use crate::clients::{read, wanted_all};
use crate::model::{Span, among, bytes_of};
use crate::store::LedgerFile;
use crate::world::{BUCKET, Serving};
use bytes::Bytes;
use gateway::error::Error;
use gateway::ledger::model::Headers;
use gateway::object::condition::WriteConditions;
use gateway::object::put::Expected;
use rand::Rng;
use rand::seq::IndexedRandom;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;
use storage_node::protocol::LedgerMarks;

/// Backups that are kept.
const BACKUPS_MAX: usize = 4;
/// Keys that are read of a copy of the ledger.
const READ_MAX: usize = 12;
/// A gateway that another one took over from knows by then.
const FENCED_WITHIN: Duration = Duration::from_secs(15);

/// An object that was put through a copy of the ledger.
struct Fresh {
    key: String,
    bytes: Bytes,
    at: Span,
}

impl Faults {
    /// Copies the ledger as it is, to be put back some time.
    pub(super) fn back_up(&mut self) {
        let file = self.run.world.file();
        let copy = self.copy(&file);
        self.backups.push(copy);
        if self.backups.len() > BACKUPS_MAX {
            let oldest = self.rng.random_range(0..self.backups.len());
            self.backups.remove(oldest);
        }
    }

    fn copy(&mut self, file: &LedgerFile) -> Arc<LedgerFile> {
        self.copies += 1;
        file.copy(format!("copy-{}", self.copies))
    }

    /// A copy of a backup, or of the ledger as it is now.
    fn some_copy(&mut self) -> Arc<LedgerFile> {
        let newest = self.run.world.file();
        let backup = self.backups.choose(&mut self.rng).cloned();
        let is_old = self.rng.random_range(0..4) > 0;
        let file = backup.filter(|_| is_old).unwrap_or(newest);
        self.copy(&file)
    }

    /// The gateway ends, an older ledger is put in its place, and after a while the newest one back.
    pub(super) async fn older_ledger(&mut self) {
        let run = self.run.clone();
        let _resting = run.traffic.write().await;
        let world = &run.world;
        if world.living().is_none_or(|serving| serving.is_safe()) {
            return;
        }
        let newest = world.file();
        match self.rng.random() {
            true => {
                world.stop_gateway().await;
                self.back_up();
            }
            false => world.kill_gateway(),
        }
        let older = self.some_copy();
        let position = older.position();
        self.note(format!(
            "the ledger at {} is replaced by one at {position}",
            newest.position()
        ));
        let serving = self.start_judged(older).await;
        if serving.is_safe() {
            self.count("older ledger only read");
            // It may have caught up, and shown itself to disks, before one of them knew better.
            if serving.store.position_now() > serving.base() {
                world.note_copy_acted();
            }
            self.check_only_reads(&serving).await;
            serving.life.end();
            self.put_newest_back(newest, &[]).await;
            return;
        }
        self.count(match serving.base() > position {
            true => "older ledger caught up",
            false => "copy was the newest",
        });
        self.copy_acts(serving, newest).await;
    }

    /// The ledger is copied, and a second gateway started on it, beside the first.
    pub(super) async fn ledger_cloned(&mut self) {
        let run = self.run.clone();
        let world = &run.world;
        let Some(first) = world.living().filter(|first| !first.is_safe()) else {
            return;
        };
        let clone = self.some_copy();
        let position = clone.position();
        let is_held = match self.rng.random_range(0..3) {
            0 => {
                self.clone_is_refused(&first, clone).await;
                return;
            }
            1 => true,
            _ => false,
        };
        self.note(format!(
            "a clone at {position} is started beside the first at {}{}",
            first.store.position_now(),
            if is_held { ", which hangs" } else { "" }
        ));
        // What is deleted through the first one between the second's look at a disk and its word to it, the second cannot know: an object that
        // it names is gone then. So clients rest before a gateway is taken over from that hears of it only afterwards.
        let (begun, _resting) = match is_held {
            true => {
                first.life.hold();
                let begun = world.begin(clone, false).await;
                first.life.release();
                (begun, run.traffic.write().await)
            }
            false => {
                let resting = run.traffic.write().await;
                (world.begin(clone, true).await, resting)
            }
        };
        let second = match begun {
            Ok(second) => second,
            // What the first one said before may arrive late.
            Err(error) => {
                self.note(format!("the clone does not start: {error}"));
                self.count("clone refused");
                return;
            }
        };
        if !second.is_safe() {
            world.note_copy_acted();
        }
        if first.life.is_over() {
            // It died meanwhile, at a commit. An operator decides for it.
            second.life.end();
            world.kill_gateway();
            self.put_newest_back(first.store.file.clone(), &[]).await;
            return;
        }
        if second.is_safe() {
            self.count("clone only read");
            self.check_only_reads(&second).await;
            second.life.end();
            // It may have learnt that it is behind when disks obeyed it already. Then nobody acts.
            if first.is_safe() && second.store.position_now() > second.base() {
                self.count("neither acted");
                world.note_copy_acted();
                world.kill_gateway();
                self.put_newest_back(first.store.file.clone(), &[]).await;
            } else if first.is_safe() {
                run.fail("a clone that never acted made the first one give way".into());
            }
            return;
        }
        self.count(if is_held {
            "clone after a hang"
        } else {
            "clone took over"
        });
        self.check_fenced(&first).await;
        self.copy_acts(second, first.store.file.clone()).await;
        first.life.end();
    }

    /// Nobody says that the second one is to take over.
    async fn clone_is_refused(&mut self, first: &Serving, clone: Arc<LedgerFile>) {
        let run = self.run.clone();
        match run.world.begin(clone, false).await {
            Err(Error::InvalidRequest(_)) => self.count("clone refused"),
            Err(error) => run.fail(format!("a clone does not start: {error}")),
            Ok(second) => {
                second.life.end();
                if first.life.is_over() {
                    return; // So it did not beside it.
                }
                run.fail("a clone started beside a gateway that lives".into());
            }
        }
    }

    /// A copy acts. An operator goes on with it, or puts the newest back.
    async fn copy_acts(&mut self, second: Serving, newest: Arc<LedgerFile>) {
        let run = self.run.clone();
        let world = &run.world;
        let base = second.base();
        self.check_as_of(&second, base).await;
        world.note_copy_acted();
        if self.rng.random() {
            self.note(format!("{} goes on from {base}", second.store.file.name));
            self.count(match base < newest.position() {
                true => "went on without the last commits",
                false => "went on with all commits",
            });
            run.models.iter().for_each(|model| model.fork(base));
            run.shared.fork(base);
            self.backups.retain(|backup| backup.position() <= base);
            world.set_file(second.store.file.clone());
            world.set_serving(second);
            return;
        }
        let mut fresh = Vec::new();
        for number in 0..self.rng.random_range(1..4) {
            let size = self.rng.random_range(1..200_000);
            let bytes = bytes_of(&[(self.rng.random(), size)]);
            let key = format!("fresh/{}-{number}", second.store.file.name);
            let begun = second.store.position_now();
            let put = put(&second, &key, &bytes).await;
            let ended = second.store.position_now();
            if put.is_ok() {
                let at = Span { begun, ended };
                fresh.push(Fresh { key, bytes, at });
            }
        }
        let pause = Duration::from_millis(self.rng.random_range(0..10_000));
        tokio::time::sleep(pause).await;
        world.set_serving(second);
        match self.rng.random() {
            true => world.stop_gateway().await,
            false => world.kill_gateway(),
        }
        self.put_newest_back(newest, &fresh).await;
    }

    /// The newest ledger is put back, and accepted if disks obey a copy of it by now.
    async fn put_newest_back(&mut self, newest: Arc<LedgerFile>, fresh: &[Fresh]) {
        let run = self.run.clone();
        self.note(format!(
            "the newest ledger, at {}, is put back",
            newest.position()
        ));
        run.world.set_file(newest.clone());
        let mut serving = self.start_judged(newest.clone()).await;
        if serving.is_safe() {
            self.check_as_of(&serving, newest.position()).await;
            serving = self.accepted(serving).await;
        } else if !fresh.is_empty() {
            self.count("newest caught up with a copy");
            for object in fresh.iter().filter(|object| object.at.ended <= serving.base()) {
                match read(&serving, &object.key, wanted_all()).await {
                    Ok(bytes) if bytes == object.bytes => {}
                    Ok(_) => run.fail(format!("{} holds other bytes", object.key)),
                    Err(error) => run
                        .excuse(run.unreadable_until(), format!("get {}: {error}", object.key))
                        .unwrap_or_else(|why| run.fail(why)),
                }
            }
        }
        run.world.set_serving(serving);
    }

    /// Starts a gateway alone. If it acts, its ledger is not behind any disk that it could ask.
    async fn start_judged(&mut self, file: Arc<LedgerFile>) -> Serving {
        let run = self.run.clone();
        let known = run.world.marks_within_reach();
        let serving = run.world.start_on(file).await;
        if serving.is_safe() {
            return serving;
        }
        let base = serving.objects.disks.generations().base();
        let is_newer = |marks: &&LedgerMarks| {
            let same = marks.generation == base.generation;
            marks.generation.number > base.generation.number || (same && marks.position > base.position)
        };
        if let Some(marks) = known.iter().find(is_newer) {
            run.fail(format!("a ledger acts as {base:?}, and a disk knows {marks:?}"));
        }
        serving
    }

    /// An operator says that the ledger of a gateway that only reads is to be used. The gateway that goes on with it.
    pub(super) async fn accepted(&mut self, mut serving: Serving) -> Serving {
        for _ in 0..60 {
            if !serving.is_safe() {
                break;
            }
            // It asks its disks first.
            tokio::time::sleep(Duration::from_secs(2)).await;
            let accepted = match serving.objects.accept_plan().await {
                Ok(plan) => serving.objects.accept(&plan).await,
                Err(error) => Err(error),
            };
            self.note(format!("operator: accepts the ledger: {accepted:?}"));
            if accepted.is_ok() {
                self.count("ledger accepted");
                self.run.world.note_copy_acted();
                serving.life.end();
                serving = self.run.world.start_on(serving.store.file.clone()).await;
            }
        }
        if serving.is_safe() {
            self.run.fail("the ledger cannot be accepted".into());
        }
        serving
    }

    /// A gateway whose ledger is behind changes nothing, and reads what it names.
    async fn check_only_reads(&mut self, serving: &Serving) {
        let run = self.run.clone();
        // It may have got closer by its archive.
        let (position, now) = (serving.base(), serving.store.position_now());
        for _ in 0..2 {
            self.check_as_of(serving, position).await;
            if put(serving, "older/refused", &Bytes::from_static(b"no"))
                .await
                .is_ok()
            {
                run.fail("a ledger that is behind takes objects".into());
            }
            if let Some(key) = self.key_as_of(position) {
                let delete = serving.objects.delete(BUCKET, &key, WriteConditions::default());
                if delete.await.is_ok() {
                    run.fail(format!("a ledger that is behind deletes {key}"));
                }
            }
            if serving.objects.holds.may_delete() || serving.store.position_now() != now {
                run.fail("a ledger that is behind changes something".into());
            }
            let pause = Duration::from_millis(self.rng.random_range(0..8_000));
            tokio::time::sleep(pause).await;
        }
    }

    /// A gateway that another one took over from knows it soon, acknowledges nothing, and reads what it names.
    async fn check_fenced(&mut self, first: &Serving) {
        let run = self.run.clone();
        let fenced = async {
            while !first.is_safe() {
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        };
        if tokio::time::timeout(FENCED_WITHIN, fenced).await.is_err() {
            run.fail("a gateway goes on beside one that took over".into());
        }
        if put(first, "first/refused", &Bytes::from_static(b"no"))
            .await
            .is_ok()
        {
            run.fail("a gateway that was taken over from takes objects".into());
        }
        self.note("the first has given way");
        self.check_as_of(first, first.store.position_now()).await;
    }

    /// A key that holds an object at a position.
    fn key_as_of(&mut self, position: u64) -> Option<String> {
        let model = self.run.models.choose(&mut self.rng)?.clone();
        let is_there = |key: &String| !model.as_of(key, position).0.contains(&None);
        let keys: Vec<String> = model.keys().into_iter().filter(is_there).collect();
        keys.choose(&mut self.rng).cloned()
    }

    /// Reads some of what a ledger names that is at a position. What was changed since may be deleted, and is not another's.
    async fn check_as_of(&mut self, serving: &Serving, position: u64) {
        let run = self.run.clone();
        let from = run.unreadable_until();
        self.note(format!("what {} says at {position}", serving.store.file.name));
        let mut keys = Vec::new();
        for model in &run.models {
            keys.extend(model.keys().into_iter().map(|key| (model.clone(), key)));
        }
        let keys: Vec<_> = keys.choose_multiple(&mut self.rng, READ_MAX).cloned().collect();
        for (model, key) in keys {
            let (values, is_changed) = model.as_of(&key, position);
            run.counts.reads.fetch_add(1, Ordering::Relaxed);
            let found = match read_patiently(serving, &key, is_changed).await {
                Ok(bytes) => among(&key, &values, Some(&bytes)).map(drop),
                Err(Error::NoSuchKey) => among(&key, &values, None).map(drop),
                Err(_) if is_changed => Ok(()),
                Err(error) => run.excuse(from, format!("get {key}: {error}")),
            };
            found.unwrap_or_else(|why| run.fail(format!("a ledger at {position}: {why}")));
        }
        for number in 0..crate::clients::SHARED_KEYS {
            let key = format!("shared/{number}");
            let is_changed = run.shared.changed_since(&key, position);
            let found = match read_patiently(serving, &key, is_changed).await {
                Ok(bytes) => run.shared.found_as_of(&key, position, Some(&bytes)),
                Err(Error::NoSuchKey) => run.shared.found_as_of(&key, position, None),
                Err(_) if is_changed => Ok(()),
                Err(error) => run.excuse(from, format!("get {key}: {error}")),
            };
            found.unwrap_or_else(|why| run.fail(format!("a ledger at {position}: {why}")));
        }
    }
}

/// Reads an object as often as it takes to find units again that another gateway moves meanwhile; disks are asked for them now and then.
async fn read_patiently(serving: &Serving, key: &str, is_changed: bool) -> Result<Vec<u8>, Error> {
    for _ in 0..4 {
        match read(serving, key, wanted_all()).await {
            Err(Error::NoSuchKey) => return Err(Error::NoSuchKey),
            Err(_) if serving.is_safe() && !is_changed => {
                tokio::time::sleep(Duration::from_secs(2)).await;
            }
            read => return read,
        }
    }
    read(serving, key, wanted_all()).await
}

/// Puts an object that no client knows of.
pub(super) async fn put(serving: &Serving, key: &str, bytes: &Bytes) -> Result<(), Error> {
    let sent = bytes.clone();
    let body = Box::pin(futures::stream::once(async move { Ok(sent) }));
    let put = serving.objects.put(
        BUCKET,
        key,
        body,
        Expected::default(),
        Headers::default(),
        WriteConditions::default(),
    );
    tokio::select! {
        stored = put => stored.map(drop),
        () = serving.life.over() => Err(Error::Internal("the gateway died".into())),
    }
}
