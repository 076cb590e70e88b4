//! The headers of every extent: whose each is, and where the numbers of headers and generations stand.
//!
//! They are the most of what is read of a disk whose extents are summed up, so many are asked for at a time.
//!
//! Invariant: one bad read decides nothing; an extent of which no header is valid is left alone.

use super::index::{Extent, ExtentUse};
use super::tail::{FooterBytes, footer_in};
use crate::device::{AlignedBuf, BLOCK, Completion, Device};
use crate::format::extent::{DiskIdentity, ExtentHeader};
use crate::format::layout::Layout;
use crate::format::superblock::Superblock;
use crate::protocol::UnitId;
use std::collections::{HashMap, VecDeque};

/// Extents whose edges are being read at a time.
const EXTENTS_AHEAD: usize = 16;

/// What an extent's two headers mean together. Pure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HeaderChoice {
    /// This one counts; both copies say so if `agreed`.
    Header {
        /// The one that counts.
        header: ExtentHeader,
        /// Both copies are alike.
        agreed: bool,
    },
    /// Neither is valid.
    Bad,
}

/// The newer of two header copies.
pub fn choose_header(a: Option<ExtentHeader>, b: Option<ExtentHeader>) -> HeaderChoice {
    match (a, b) {
        (None, None) => HeaderChoice::Bad,
        (Some(a), Some(b)) if a == b => HeaderChoice::Header {
            header: a,
            agreed: true,
        },
        (Some(a), Some(b)) => HeaderChoice::Header {
            header: if a.sequence >= b.sequence { a } else { b },
            agreed: false,
        },
        (Some(one), None) | (None, Some(one)) => HeaderChoice::Header {
            header: one,
            agreed: false,
        },
    }
}

/// What the headers of all extents say.
#[derive(Default)]
pub struct Extents {
    /// By number.
    pub extents: Vec<Extent>,
    /// Those in use, and whose they are.
    pub owned: Vec<(u32, UnitId)>,
    /// What is where the footers of their summaries would be, if it could be read.
    pub footers: HashMap<u32, FooterBytes>,
    /// Extents in their second use or later whose header no superblock calls flushed.
    pub loose: Vec<u32>,
    /// Headers whose two copies disagree.
    pub disagreeing: Vec<ExtentHeader>,
    /// Those of which neither header is valid: they are left alone.
    pub bad: Vec<u32>,
    /// The headers of one could not be read: it may be there next time, with all it holds.
    pub unknown: bool,
}

/// Reads all headers; and where the numbers of headers and generations stand.
pub fn read_extents(
    device: &dyn Device,
    superblock: &Superblock,
    layout: &Layout,
    identity: &DiskIdentity,
) -> (Extents, u64, u64) {
    let mut found = Extents::default();
    let (mut next_header, mut generation) = (1, superblock.generation_limit);
    let mut ahead = 0..layout.extents();
    let mut started: VecDeque<Edges> = VecDeque::new();
    for number in 0..layout.extents() {
        let more = EXTENTS_AHEAD - started.len();
        started.extend(
            ahead
                .by_ref()
                .take(more)
                .map(|next| Edges::start(device, layout, next)),
        );
        let Some(edges) = started.pop_front() else { break };
        let Headers {
            copies: [a, b],
            failed,
            footer,
        } = edges.wait(device, identity);
        let choice = choose_header(a, b);
        found.unknown |= failed && choice == HeaderChoice::Bad;
        let extent = match choice {
            HeaderChoice::Bad => {
                found.bad.push(number);
                Extent::new(ExtentUse::Quarantined, 0, layout.data_end())
            }
            HeaderChoice::Header { header, agreed } => {
                next_header = next_header.max(header.sequence + 1);
                generation = generation.max(header.generation + 1);
                if header.sequence >= superblock.headers && header.generation > 0 {
                    found.loose.push(number);
                }
                if !agreed {
                    found.disagreeing.push(header);
                }
                if let Some(owner) = header.owner {
                    found.owned.push((number, owner));
                    found.footers.extend(footer.map(|footer| (number, footer)));
                }
                let used = header.owner.map_or(ExtentUse::Free, ExtentUse::Owned);
                Extent::new(used, header.generation, layout.data_start())
            }
        };
        found.extents.push(extent);
    }
    if let Some(first) = found.bad.first() {
        let (disk, count) = (identity.disk, found.bad.len());
        tracing::error!(%disk, count, first, "extents of which both headers are bad: left alone");
    }
    (found, next_header, generation)
}

/// What is read at the edges of an extent.
struct Headers {
    /// Both copies of its header.
    copies: [Option<ExtentHeader>; 2],
    /// One of them could not be read.
    failed: bool,
    /// What is before copy B, if it could be read.
    footer: Option<FooterBytes>,
}

/// Both edges of an extent on their way from the disk: header A, and header B with the block before it.
struct Edges {
    number: u32,
    places: [u64; 2],
    reads: [Completion<AlignedBuf>; 2],
}

impl Edges {
    fn start(device: &dyn Device, layout: &Layout, number: u32) -> Edges {
        let start = layout.extent_offset(number);
        let places = [start, start + u64::from(layout.data_end())];
        let tail = places[1] - BLOCK as u64;
        Edges {
            number,
            places,
            reads: [
                device.read(start, AlignedBuf::zeroed(BLOCK)),
                device.read(tail, AlignedBuf::zeroed(2 * BLOCK)),
            ],
        }
    }

    fn wait(self, device: &dyn Device, identity: &DiskIdentity) -> Headers {
        let first = self.reads.map(|read| read.wait().ok());
        let decode = |block: &[u8]| ExtentHeader::decode(block, identity, self.number).ok();
        let mut failed = false;
        let copies = [0, 1].map(|copy: usize| {
            let block = first[copy].as_ref().map(|read| &read[copy * BLOCK..]);
            // One bad read decides nothing.
            block.and_then(decode).or_else(|| {
                let again = device.read(self.places[copy], AlignedBuf::zeroed(BLOCK));
                let again = again.wait().ok();
                failed |= again.is_none();
                again.as_deref().and_then(decode)
            })
        });
        Headers {
            copies,
            failed,
            footer: first[1].as_deref().and_then(footer_in),
        }
    }
}
