//! Against the md-5 crate, on every kernel that runs here.

use super::*;
use ::md5::Digest;
use proptest::prelude::*;
use rand::rngs::StdRng;
use rand::{RngCore, SeedableRng};

fn oracle(bytes: &[u8]) -> [u8; 16] {
    ::md5::Md5::digest(bytes).into()
}

fn random(len: usize, seed: u64) -> Vec<u8> {
    let mut bytes = vec![0; len];
    StdRng::seed_from_u64(seed).fill_bytes(&mut bytes);
    bytes
}

#[test]
fn the_digests_of_the_rfc() {
    let hex = |bytes: &[u8]| {
        let mut md5 = Md5::new();
        md5.update(bytes);
        md5.finish().map(|byte| format!("{byte:02x}")).concat()
    };
    assert_eq!(hex(b""), "d41d8cd98f00b204e9800998ecf8427e");
    assert_eq!(hex(b"abc"), "900150983cd24fb0d6963f7d28e17f72");
    assert_eq!(hex(b"message digest"), "f96b697d7cb7938d525a2f31aaf161d0");
    let eighty = b"1234567890".repeat(8);
    assert_eq!(hex(&eighty), "57edf4a22be3c955ac49da2e2107b67a");
}

/// Every length around the edges of one and two blocks, in two pieces cut everywhere.
#[test]
fn lengths_and_cuts() {
    let bytes = random(if cfg!(miri) { 70 } else { 200 }, 1);
    for len in 0..=bytes.len() {
        let whole = oracle(&bytes[..len]);
        for cut in (0..=len).step_by(if cfg!(miri) { 13 } else { 1 }) {
            let mut md5 = Md5::new();
            md5.update(&bytes[..cut]);
            md5.update(&bytes[cut..len]);
            assert_eq!(md5.finish(), whole, "{len} bytes, cut at {cut}");
        }
    }
}

/// From one stream to more than there are lanes, of lengths all over.
#[test]
fn any_number_of_streams_of_any_length() {
    for kernel in Kernel::supported() {
        for count in [1, 2, 3, 4, 5, 7, 8, 9, 15, 16, 17, 33] {
            let all: Vec<Vec<u8>> = (0..count)
                .map(|n| random((n * 977 + 64 * (n % 3)) % 5_000, n as u64))
                .collect();
            let mut md5s = vec![Md5::new(); count];
            let mut streams: Vec<(&mut Md5, &[u8])> =
                md5s.iter_mut().zip(all.iter().map(Vec::as_slice)).collect();
            update_many(kernel, &mut streams);
            for (md5, bytes) in md5s.into_iter().zip(&all) {
                assert_eq!(
                    md5.finish(),
                    oracle(bytes),
                    "{kernel}, {count} streams, {} bytes",
                    bytes.len()
                );
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(if cfg!(miri) { 2 } else { 256 }))]

    /// Streams that are advanced in rounds, each by a piece of its own.
    #[test]
    fn pieces_in_rounds(
        seed: u64,
        rounds in prop::collection::vec(prop::collection::vec(0usize..700, 0..20), 1..6),
    ) {
        for kernel in Kernel::supported() {
            let mut md5s = vec![Md5::new(); 20];
            let mut taken = vec![Vec::new(); 20];
            for (round, lens) in rounds.iter().enumerate() {
                let pieces: Vec<Vec<u8>> =
                    lens.iter().enumerate().map(|(n, len)| random(*len, seed ^ (round * 20 + n) as u64)).collect();
                for (bytes, piece) in taken.iter_mut().zip(&pieces) {
                    bytes.extend_from_slice(piece);
                }
                let mut streams: Vec<(&mut Md5, &[u8])> =
                    md5s.iter_mut().zip(pieces.iter().map(Vec::as_slice)).collect();
                update_many(kernel, &mut streams);
            }
            for (md5, bytes) in md5s.into_iter().zip(&taken) {
                prop_assert_eq!(md5.finish(), oracle(bytes), "{}", kernel);
            }
        }
    }
}

/// The count of bits takes 64 bits, and nothing else depends on the length.
#[test]
fn the_length_is_in_the_digest() {
    let mut md5 = Md5::new();
    md5.length = 1 << 40;
    assert_ne!(md5.finish(), Md5::new().finish());
}
