//! Reading an extent's tail: whether it has a summary, and what the summary lists.
//!
//! Invariant: one read decides nothing. An extent may be appended to only if two reads of its tail found no summary: what
//! is appended behind a summary is lost at the next start.

use crate::device::{AlignedBuf, BLOCK, Device, DeviceError};
use crate::format::extent::DiskIdentity;
use crate::format::layout::Layout;
use crate::format::summary::{SUMMARY_FOOTER_BYTES, SummaryEntry, SummaryFooter, Tail, summary_start};

/// Bytes of entries read at a time.
const STEP_BYTES: usize = 1 << 20;

/// The bytes of a footer.
pub type FooterBytes = [u8; SUMMARY_FOOTER_BYTES];

/// The footer's bytes, in the block that ends with them.
pub fn footer_in(block: &[u8]) -> Option<FooterBytes> {
    block.get(..BLOCK)?.last_chunk().copied()
}

/// What is at the tail of an extent, where `first` was read before, if it could be.
pub fn look_at_tail(
    device: &dyn Device,
    layout: &Layout,
    identity: &DiskIdentity,
    (extent, generation): (u32, u64),
    first: Option<FooterBytes>,
) -> Tail {
    let decode = |bytes: Option<FooterBytes>| match bytes {
        Some(bytes) => Tail::of(&bytes, identity, extent, generation, layout),
        None => Tail::Damaged("the footer of the summary cannot be read".into()),
    };
    let first = decode(first);
    if matches!(first, Tail::Sealed(_)) {
        return first;
    }
    match (first, decode(read_footer(device, layout, extent))) {
        (_, Tail::Sealed(footer)) => Tail::Sealed(footer),
        (_, Tail::Damaged(why)) | (Tail::Damaged(why), _) => Tail::Damaged(why),
        _ => Tail::Open,
    }
}

/// The bytes where a footer would be.
pub fn read_footer(device: &dyn Device, layout: &Layout, extent: u32) -> Option<FooterBytes> {
    let at = layout.extent_offset(extent) + u64::from(layout.data_end()) - BLOCK as u64;
    let block = device.read(at, AlignedBuf::zeroed(BLOCK)).wait().ok()?;
    footer_in(&block)
}

/// The entries of a summary: all of them, or why not.
pub fn read_entries(
    device: &dyn Device,
    layout: &Layout,
    identity: &DiskIdentity,
    footer: &SummaryFooter,
) -> Result<Vec<SummaryEntry>, String> {
    let attempt = || {
        let bytes = read_summary(device, layout, footer).map_err(|error| error.to_string())?;
        footer
            .decode_entries(&bytes, identity)
            .map_err(|error| error.to_string())
    };
    attempt().or_else(|_| attempt())
}

fn read_summary(
    device: &dyn Device,
    layout: &Layout,
    footer: &SummaryFooter,
) -> Result<Vec<u8>, DeviceError> {
    let start = summary_start(layout, footer.entries.into());
    let (mut at, len) = (
        layout.extent_offset(footer.extent) + u64::from(start),
        (layout.data_end() - start) as usize,
    );
    let mut bytes = Vec::with_capacity(len);
    while bytes.len() < len {
        let step = AlignedBuf::recycled(STEP_BYTES.min(len - bytes.len()));
        let read = device.read(at, step).wait()?;
        at += read.len() as u64;
        bytes.extend_from_slice(&read);
    }
    Ok(bytes)
}
