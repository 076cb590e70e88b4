//! Objects to work with.

use std::time::Duration;

use crate::client::Client;
use crate::content::Content;
use crate::model::Model;

/// Sizes on both sides of every boundary: nothing, small (replicated), a block, a stripe, more than a stripe.
pub const SIZES: [usize; 13] = [
    0,
    1,
    4096,
    16_384,
    16_385,
    65_536,
    100_000,
    1 << 20,
    (1 << 20) + 1,
    4 << 20,
    (4 << 20) + 1,
    9_000_000,
    (12 << 20) + 1,
];
/// The largest object that is replicated instead of coded.
pub const REPLICATED_BYTES_MAX: usize = 16_384;

/// Stores an object of each size under `prefix`, and records it.
pub fn store(client: &Client, bucket: &str, prefix: &str, sizes: &[usize]) -> Model {
    let mut model = Model::default();
    for (number, bytes) in sizes.iter().enumerate() {
        let (key, content) = (format!("{prefix}{number:03}-{bytes}"), Content::random(*bytes));
        if let Err(failure) = client.put_patiently(bucket, &key, &content.make(), Duration::from_secs(30)) {
            panic!("storing {key}: {failure}");
        }
        model.acknowledged(&key, Some(content));
    }
    model
}
