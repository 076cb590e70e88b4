//! Shards of one stripe that several pieces of a download need, read once.
//!
//! Where two of four data shards are gone, each of the two lost pieces is computed from the other two and from parity, and the other two are
//! pieces themselves: read for each piece apart, that would be ten shards instead of four.
//!
//! Invariant: an answer, an error too, is the stripe's for as long as the pieces of this stripe are being read, and no longer.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use storage_node::protocol::{BlockRange, NodeError, ShardBlocks};
use tokio::sync::OnceCell;

/// How a read ended.
pub type Outcome = Result<ShardBlocks, NodeError>;

type Key = (u8, u32, u32);

/// What was asked of the shards of one stripe.
#[derive(Default)]
pub struct SharedReads {
    cells: Mutex<HashMap<Key, Arc<OnceCell<Outcome>>>>,
}

impl SharedReads {
    /// What `read`, or whoever asked for the same before, finds. If that one leaves, the next one reads.
    pub async fn get(&self, index: u8, blocks: BlockRange, read: impl Future<Output = Outcome>) -> Outcome {
        let cell = {
            let mut cells = self.cells.lock().unwrap_or_else(|e| e.into_inner());
            let key = (index, blocks.first, blocks.count);
            cells.entry(key).or_default().clone()
        };
        cell.get_or_init(|| read).await.clone()
    }
}
