//! Bytes that can be made again from a few numbers, so that a model need not keep them.

use rand::rngs::StdRng;
use rand::{RngCore, SeedableRng};

/// The content of an object: random bytes of a seed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Content {
    /// Different seeds give different bytes.
    pub seed: u64,
    /// How many.
    pub bytes: usize,
}

impl Content {
    /// A content that no other has.
    pub fn random(bytes: usize) -> Self {
        Self {
            seed: rand::random(),
            bytes,
        }
    }

    /// The bytes.
    pub fn make(&self) -> Vec<u8> {
        let mut content = vec![0; self.bytes];
        StdRng::seed_from_u64(self.seed).fill_bytes(&mut content);
        content
    }

    /// Fails, and says where, if the bytes are not these.
    pub fn check(&self, found: &[u8], what: &str) {
        if let Err(difference) = self.compare(found) {
            panic!("{what}: {difference}");
        }
    }

    /// Where the bytes differ from these.
    pub fn compare(&self, found: &[u8]) -> Result<(), String> {
        let expected = self.make();
        if found == expected {
            return Ok(());
        }
        let same = expected.iter().zip(found).take_while(|(a, b)| a == b).count();
        Err(format!(
            "{} bytes expected, {} found, different from byte {same} on",
            self.bytes,
            found.len()
        ))
    }
}
