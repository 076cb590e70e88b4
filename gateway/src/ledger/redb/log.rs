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
}

impl Medium for File {
    fn write(&mut self, at: u64, bytes: &[u8]) -> io::Result<()> {
        self.write_all_at(bytes, at)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.sync_data()
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
pub fn create_file(path: &Path) -> io::Result<File> {
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

type FrameRead = (u64, Vec<Vec<Mutation>>, usize);

/// The frame at the start of these bytes, if a whole one of this ledger is there, and how many bytes it takes.
fn read_frame(id: &LogId, bytes: &[u8]) -> Result<Option<FrameRead>, String> {
    let Some(mut head) = bytes.get(..HEAD_BYTES) else {
        return Ok(None);
    };
    if !head.starts_with(&MAGIC) || head[8..24] != id[..] {
        return Ok(None);
    }
    head.advance(24);
    let (first, count, body) = (head.get_u64_le(), head.get_u32_le(), head.get_u32_le() as usize);
    let Some(frame) = bytes.get(..HEAD_BYTES + body) else {
        return Ok(None);
    };
    if hash(frame)[..] != *head {
        return Ok(None);
    }
    let body = Bytes::copy_from_slice(&frame[HEAD_BYTES..]);
    let commits = parse(body, count)
        .ok_or_else(|| format!("the log has a frame at commit {first} that makes no sense"))?;
    Ok(Some((first, commits, frame.len().next_multiple_of(FRAME_ALIGN))))
}

fn parse(mut body: Bytes, commits: u32) -> Option<Vec<Vec<Mutation>>> {
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
