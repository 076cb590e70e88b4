//! The log beside the tree: one file of two halves, written in turns. While one is being settled (its commits go into the tree), the
//! other takes new commits.
//!
//! ```text
//! frame, at every multiple of 4 KiB:   0 "cairnlog"   8 the ledger's id, 16   24 version of the first commit, 8   32 commits, 4
//!                                     36 bytes of the body, 4                 40 BLAKE3 of all before and of the body, 16   56 body
//! body, for each commit:     mutations, 4
//!   for each mutation:       bytes of the key, 4 · of the value, 4 (all ones: the key is removed) · key · value
//! ```
//! Integers are little-endian. The versions of the commits of a frame follow each other.
//!
//! Invariants:
//! - A frame is written only once the one before it is durable. So a crash leaves at most the last one torn, and nobody was told
//!   that its commits are durable.
//! - A half is written anew only when the tree has all that it holds: leftovers are known by their versions.
//! - So what the tree does not have must be whole frames, version after version. A gap means that something was lost.

use crate::ledger::changes::Batch;
use crate::ledger::store::{Commit, Mutation};
use bytes::{Buf, BufMut, Bytes};
use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use storage_node::device;

/// Bytes of one half.
pub const HALF_BYTES: usize = if cfg!(test) { 128 << 10 } else { 8 << 20 };

const FRAME_ALIGN: usize = 4096;
const MAGIC: [u8; 8] = *b"cairnlog";
const HASHED_HEAD_BYTES: usize = 40;
const HASH_BYTES: usize = 16;
const HEAD_BYTES: usize = HASHED_HEAD_BYTES + HASH_BYTES;
const REMOVED: u32 = u32::MAX;

/// Which ledger a log belongs to.
pub type LogId = [u8; 16];

/// A commit that was found in a log.
pub type Logged = (u64, Vec<Mutation>);

/// What a log is kept on.
pub trait Medium: Send + std::fmt::Debug {
    /// Writes all the bytes.
    fn write(&mut self, at: u64, bytes: &[u8]) -> io::Result<()>;
    /// Makes them durable.
    fn flush(&mut self) -> io::Result<()>;
    /// Opens it once more, and makes it anew if it is gone.
    fn reopen(&mut self) -> io::Result<()>;
}

/// A log in a file.
#[derive(Debug)]
pub struct LogFile {
    path: PathBuf,
    file: File,
}

impl LogFile {
    /// Makes the file, or takes the one that is there, whose content the caller has read. Blocks.
    pub fn open(path: PathBuf) -> io::Result<LogFile> {
        let file = create_file(&path)?;
        Ok(LogFile { path, file })
    }
}

impl Medium for LogFile {
    fn write(&mut self, at: u64, bytes: &[u8]) -> io::Result<()> {
        self.file.write_all_at(bytes, at)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.sync_data()
    }

    fn reopen(&mut self) -> io::Result<()> {
        self.file = create_file(&self.path)?;
        Ok(())
    }
}

/// A frame in the making.
pub struct Frame {
    bytes: Vec<u8>,
    commits: u32,
}

impl Frame {
    /// One whose first commit will have this version.
    pub fn new(id: &LogId, first: u64) -> Frame {
        let mut bytes = Vec::with_capacity(FRAME_ALIGN);
        bytes.put_slice(&MAGIC);
        bytes.put_slice(id);
        bytes.put_u64_le(first);
        bytes.resize(HEAD_BYTES, 0);
        Frame { bytes, commits: 0 }
    }

    /// Adds a commit, which gets the next version.
    pub fn push(&mut self, commit: &Commit) {
        self.commits += 1;
        self.bytes.put_u32_le(commit.mutations.len() as u32);
        for mutation in &commit.mutations {
            let (key, value) = match mutation {
                Mutation::Put { key, value } => (key, Some(value)),
                Mutation::Delete { key } => (key, None),
            };
            self.bytes.put_u32_le(key.len() as u32);
            self.bytes
                .put_u32_le(value.map_or(REMOVED, |value| value.len() as u32));
            self.bytes.put_slice(key);
            self.bytes.put_slice(value.map_or(&[], |value| &value[..]));
        }
    }

    /// Its commits, for those who follow; none if there are none.
    pub fn batch(&self) -> Option<Batch> {
        let first = u64::from_le_bytes(*self.bytes.get(24..)?.first_chunk()?);
        (self.commits > 0).then(|| Batch {
            first,
            commits: self.commits,
            body: Bytes::copy_from_slice(&self.bytes[HEAD_BYTES..]),
        })
    }

    /// Bytes that it takes.
    pub fn len(&self) -> usize {
        self.bytes.len().next_multiple_of(FRAME_ALIGN)
    }

    fn sealed(mut self) -> Vec<u8> {
        let body = (self.bytes.len() - HEAD_BYTES) as u32;
        self.bytes[32..36].copy_from_slice(&self.commits.to_le_bytes());
        self.bytes[36..40].copy_from_slice(&body.to_le_bytes());
        let hash = hash(&self.bytes);
        self.bytes[HASHED_HEAD_BYTES..HEAD_BYTES].copy_from_slice(&hash);
        self.bytes.resize(self.len(), 0);
        self.bytes
    }
}

fn hash(frame: &[u8]) -> [u8; HASH_BYTES] {
    let mut hasher = blake3::Hasher::new();
    hasher
        .update(&frame[..HASHED_HEAD_BYTES])
        .update(&frame[HEAD_BYTES..]);
    let mut hash = [0; HASH_BYTES];
    hash.copy_from_slice(&hasher.finalize().as_bytes()[..HASH_BYTES]);
    hash
}

/// Where new commits go.
#[derive(Debug)]
pub struct Log {
    id: LogId,
    medium: Box<dyn Medium>,
    half: usize,
    end: usize,
}

impl Log {
    /// On a medium of two halves whose content the tree has.
    pub fn new(id: LogId, medium: Box<dyn Medium>) -> Log {
        Log {
            id,
            medium,
            half: 0,
            end: 0,
        }
    }

    /// Which ledger it belongs to.
    pub fn id(&self) -> &LogId {
        &self.id
    }

    /// Whether a frame fits into what is left of the half in use.
    pub fn fits(&self, frame: &Frame) -> bool {
        self.end + frame.len() <= HALF_BYTES
    }

    /// Appends a frame that fits, durably.
    pub fn append(&mut self, frame: Frame) -> io::Result<()> {
        let bytes = frame.sealed();
        self.medium
            .write((self.half * HALF_BYTES + self.end) as u64, &bytes)?;
        self.medium.flush()?;
        self.end += bytes.len();
        Ok(())
    }

    /// Begins anew on the medium, opened again, if it takes a write and a flush. The tree must have all that was appended.
    pub fn renew(&mut self) -> io::Result<()> {
        self.medium.reopen()?;
        self.medium.write(0, &[0; FRAME_ALIGN])?;
        self.medium.flush()?;
        (self.half, self.end) = (0, 0);
        Ok(())
    }

    /// Goes on at the start of the other half, whose content the tree must have by now.
    pub fn switch(&mut self) {
        self.half = 1 - self.half;
        self.end = 0;
    }
}

/// Where the log of the ledger in this file is.
pub fn path_of(ledger: &Path) -> PathBuf {
    let mut path = ledger.as_os_str().to_owned();
    path.push("-log");
    path.into()
}

/// Makes the file of a log, or takes the one that is there, whose content the caller has read. One of another length is written anew.
/// Durable; blocks.
fn create_file(path: &Path) -> io::Result<File> {
    let bytes = 2 * HALF_BYTES as u64;
    let is_whole = path.metadata().is_ok_and(|found| found.len() == bytes);
    if !is_whole {
        device::create_file(path, bytes)?;
    }
    let file = OpenOptions::new().read(true).write(true).open(path)?;
    if !is_whole {
        // Full of zeros rather than of holes: a flush then has no file system metadata to write.
        (0..bytes)
            .step_by(HALF_BYTES)
            .try_for_each(|at| file.write_all_at(&vec![0; HALF_BYTES], at))?;
        file.sync_all()?;
    }
    Ok(file)
}

/// The most frames that are looked at for one wrong bit.
const CORRECTED_MAX: usize = 4;
/// The longest frame of which every bit is tried: that takes a quarter of a second.
const CORRECTED_BYTES_MAX: usize = 8 << 10;

/// Sets the one bit right that keeps a frame from being one, where that can be found out; a frame that a crash has torn has more.
pub fn correct(id: &LogId, content: &mut [u8], settled: u64) -> usize {
    let (mut at, mut tried, mut corrected) = (0, 0, 0);
    while at + HEAD_BYTES <= content.len() {
        let frame = frame_at(id, &content[at..]);
        if let Some((_, bytes)) = frame {
            at += bytes;
            continue;
        }
        let names = content[at..at + 24].iter().zip(MAGIC.iter().chain(id));
        let bits: u32 = names.map(|(one, other)| (one ^ other).count_ones()).sum();
        let mut first = &content[at + 24..];
        let (first, commits) = (first.get_u64_le(), first.get_u32_le());
        // What is left of older frames is of no interest.
        let is_new = first.saturating_add(u64::from(commits)) > settled + 1;
        if bits <= 1 && (is_new || bits == 1) && tried < CORRECTED_MAX {
            tried += 1;
            corrected += usize::from(correct_frame(id, &mut content[at..]));
        } else if bits == 0 && !is_new && tried < CORRECTED_MAX {
            // The version itself may be what is wrong.
            corrected += usize::from(correct_bits(
                id,
                content,
                at,
                24 * 8..HASHED_HEAD_BYTES * 8,
                settled,
            ));
        }
        at += FRAME_ALIGN;
    }
    corrected
}

/// Tries these bits of the frame at this place; one that is right must be newer than what is settled.
fn correct_bits(
    id: &LogId,
    content: &mut [u8],
    at: usize,
    bits: std::ops::Range<usize>,
    settled: u64,
) -> bool {
    for bit in bits {
        content[at + bit / 8] ^= 1 << (bit % 8);
        if frame_at(id, &content[at..]).is_some_and(|(batch, _)| batch.last() > settled) {
            return true;
        }
        content[at + bit / 8] ^= 1 << (bit % 8);
    }
    false
}

fn correct_frame(id: &LogId, frame: &mut [u8]) -> bool {
    // Its length may be what is wrong, so this comes first.
    if correct_bits(id, frame, 0, 0..HASHED_HEAD_BYTES * 8, 0) {
        return true;
    }
    let body = u32::from_le_bytes([frame[36], frame[37], frame[38], frame[39]]) as usize;
    let Some(whole) = frame.get(..HEAD_BYTES + body) else {
        return false;
    };
    let (right, found) = (hash(whole), &frame[HASHED_HEAD_BYTES..HEAD_BYTES]);
    let bits: u32 = right
        .iter()
        .zip(found)
        .map(|(one, other)| (one ^ other).count_ones())
        .sum();
    if bits == 1 {
        frame[HASHED_HEAD_BYTES..HEAD_BYTES].copy_from_slice(&right);
        return frame_at(id, frame).is_some();
    }
    HEAD_BYTES + body <= CORRECTED_BYTES_MAX
        && correct_bits(id, frame, 0, HEAD_BYTES * 8..(HEAD_BYTES + body) * 8, 0)
}

/// The commits in the content of a log that a tree with this last version does not have; an error says what is missing.
pub fn recover(id: &LogId, content: &[u8], settled: u64) -> Result<Vec<Logged>, String> {
    let mut frames = Vec::new();
    let mut at = 0;
    while at < content.len() {
        match read_frame(id, &content[at..])? {
            Some((first, commits, bytes)) => {
                frames.push((first, commits));
                at += bytes;
            }
            None => at += FRAME_ALIGN,
        }
    }
    frames.retain(|(first, commits)| first + commits.len() as u64 > settled + 1);
    frames.sort_by_key(|(first, _)| *first);
    let mut recovered = Vec::new();
    let mut next = settled + 1;
    for (first, commits) in frames {
        if first != next {
            return Err(format!(
                "the ledger ends at commit {}, its log goes on at {first}: what was between is lost",
                next - 1
            ));
        }
        for mutations in commits {
            recovered.push((next, mutations));
            next += 1;
        }
    }
    Ok(recovered)
}

/// Whether the content of a log has frames, and none of them is this ledger's. A log that holds nothing is anybody's.
pub fn is_of_another(id: &LogId, content: &[u8]) -> bool {
    let heads = content
        .chunks(FRAME_ALIGN)
        .filter(|head| head.starts_with(&MAGIC));
    let mut ids = heads.filter_map(|head| head.get(8..24)).peekable();
    ids.peek().is_some() && ids.all(|other| other != &id[..])
}

/// What can be had of a damaged log.
pub struct Salvaged {
    /// Commits that a tree with this last version does not have.
    pub commits: Vec<Logged>,
    /// Frames that cannot be read, or were torn: their first and last versions, as far as they can be believed.
    pub damaged: Vec<(u64, u64)>,
}

/// All commits in the content of a log that a tree with this last version does not have, also beyond a gap.
pub fn salvage(id: &LogId, content: &[u8], settled: u64) -> Salvaged {
    let mut commits = Vec::new();
    let mut damaged = Vec::new();
    let mut at = 0;
    while at < content.len() {
        match read_frame(id, &content[at..]) {
            Ok(Some((first, read, bytes))) => {
                commits.extend((first..).zip(read));
                at += bytes;
            }
            _ => {
                let mut head = &content[at..];
                if head.starts_with(&MAGIC) && head.len() >= HEAD_BYTES && head[8..24] == id[..] {
                    head.advance(24);
                    let (first, count) = (head.get_u64_le(), u64::from(head.get_u32_le()));
                    if first > settled && first < settled + (1 << 32) {
                        damaged.push((first, first + count.clamp(1, 1 << 20) - 1));
                    }
                }
                at += FRAME_ALIGN;
            }
        }
    }
    commits.retain(|(version, _)| *version > settled);
    commits.sort_by_key(|(version, _)| *version);
    Salvaged { commits, damaged }
}

/// The newest commits that the content of a log still has, whether or not the tree has them too: one batch after the other, without a gap,
/// up to this version. None if the log does not go so far.
pub fn newest(id: &LogId, content: &[u8], last: u64) -> Vec<Batch> {
    let mut batches = Vec::new();
    let mut at = 0;
    while at < content.len() {
        // A frame that makes no sense was a reason to refuse the log, if it mattered.
        let frame = frame_at(id, &content[at..]);
        at += frame.as_ref().map_or(FRAME_ALIGN, |(_, bytes)| *bytes);
        batches.extend(frame.map(|(batch, _)| batch));
    }
    batches.sort_by_key(|batch: &Batch| batch.first);
    let mut next = last + 1;
    let follows = |batch: &&Batch| {
        let is_next = batch.commits > 0 && batch.last() + 1 == next;
        next = if is_next { batch.first } else { next };
        is_next
    };
    // What is newer than `last` cannot be, and what is older than a gap is of no use.
    let mut newest: Vec<Batch> = batches.iter().rev().take_while(follows).cloned().collect();
    newest.reverse();
    newest
}

type FrameRead = (u64, Vec<Vec<Mutation>>, usize);

/// The frame at the start of these bytes, if a whole one of this ledger is there, and how many bytes it takes.
fn read_frame(id: &LogId, bytes: &[u8]) -> Result<Option<FrameRead>, String> {
    let Some((batch, bytes)) = frame_at(id, bytes) else {
        return Ok(None);
    };
    let first = batch.first;
    let commits = parse(batch.body, batch.commits)
        .ok_or_else(|| format!("the log has a frame at commit {first} that makes no sense"))?;
    Ok(Some((first, commits, bytes)))
}

/// The same, not parsed.
fn frame_at(id: &LogId, bytes: &[u8]) -> Option<(Batch, usize)> {
    let mut head = bytes.get(..HEAD_BYTES)?;
    if !head.starts_with(&MAGIC) || head[8..24] != id[..] {
        return None;
    }
    head.advance(24);
    let (first, commits, body) = (head.get_u64_le(), head.get_u32_le(), head.get_u32_le() as usize);
    let frame = bytes.get(..HEAD_BYTES + body)?;
    if hash(frame)[..] != *head {
        return None;
    }
    let body = Bytes::copy_from_slice(&frame[HEAD_BYTES..]);
    let batch = Batch { first, commits, body };
    Some((batch, frame.len().next_multiple_of(FRAME_ALIGN)))
}

/// The mutations of so many commits, in order; none if the bytes make no sense. Believes no length.
pub fn parse(mut body: Bytes, commits: u32) -> Option<Vec<Vec<Mutation>>> {
    let commit = |_| {
        let mutations = body.try_get_u32_le().ok()?;
        (0..mutations).map(|_| parse_mutation(&mut body)).collect()
    };
    let commits: Option<Vec<Vec<Mutation>>> = (0..commits).map(commit).collect();
    commits.filter(|_| body.is_empty())
}

fn parse_mutation(body: &mut Bytes) -> Option<Mutation> {
    let (key, value) = (body.try_get_u32_le().ok()?, body.try_get_u32_le().ok()?);
    let mut take = |bytes: u32| {
        let bytes = bytes as usize;
        (bytes <= body.len()).then(|| body.split_to(bytes))
    };
    let key = take(key)?;
    Some(match value {
        REMOVED => Mutation::Delete { key },
        value => Mutation::Put {
            key,
            value: take(value)?,
        },
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn mutation() -> impl Strategy<Value = Mutation> {
        let bytes = |most| proptest::collection::vec(any::<u8>(), 0..most).prop_map(Bytes::from);
        prop_oneof![
            (bytes(50), bytes(6_000)).prop_map(|(key, value)| Mutation::Put { key, value }),
            bytes(50).prop_map(|key| Mutation::Delete { key }),
        ]
    }

    proptest! {
        #[test]
        fn what_was_logged_comes_back(
            frames in proptest::collection::vec(proptest::collection::vec(proptest::collection::vec(mutation(), 0..5), 1..4), 1..5),
            settled in 0u64..9,
        ) {
            let (mut content, mut logged) = (Vec::new(), Vec::new());
            for commits in frames {
                let mut frame = Frame::new(&[5; 16], logged.len() as u64 + 1);
                for mutations in commits {
                    frame.push(&Commit { preconditions: Vec::new(), mutations: mutations.clone() });
                    logged.push((logged.len() as u64 + 1, mutations));
                }
                let len = frame.len();
                content.extend(frame.sealed());
                prop_assert_eq!(content.len() % FRAME_ALIGN, 0);
                prop_assert!(len >= FRAME_ALIGN);
            }
            prop_assert_eq!(recover(&[5; 16], &content, 0), Ok(logged.clone()));
            prop_assert_eq!(recover(&[6; 16], &content, 0), Ok(Vec::new()));
            // All of it is there for those who follow, in order and without a gap, and nothing if the log ends elsewhere.
            let all = newest(&[5; 16], &content, logged.len() as u64);
            let parsed: Vec<Vec<Mutation>> = all.iter().flat_map(|batch| parse(batch.body.clone(), batch.commits).unwrap()).collect();
            prop_assert_eq!(parsed, logged.iter().map(|(_, mutations)| mutations.clone()).collect::<Vec<_>>());
            prop_assert!(all.windows(2).all(|two| two[0].last() + 1 == two[1].first));
            prop_assert_eq!(newest(&[5; 16], &content, logged.len() as u64 + 1), Vec::new());
            prop_assert_eq!(recover(&[5; 16], &content, logged.len() as u64), Ok(Vec::new()));
            // Frames that the tree has are whole: between two of them is no place to be at.
            let _ = recover(&[5; 16], &content, settled);
        }

        #[test]
        fn any_bytes_are_read_or_refused(mut content: Vec<u8>, body: Vec<u8>, commits: u32) {
            let _ = recover(&[5; 16], &content, 0);
            let mut frame = Frame::new(&[5; 16], 1);
            frame.bytes.extend(body);
            frame.commits = commits;
            content = frame.sealed();
            let _ = recover(&[5; 16], &content, 0); // Never panics, and believes no length.
        }
    }
}
