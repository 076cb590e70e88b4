//! The digests of what a client sends: MD5 for the ETag, and the checksum it chose.
//!
//! CRCs are computed by crc-fast and combine: the checksum of a multipart object over its whole content
//! (FULL_OBJECT) comes from those of its parts. Digests are raw bytes here, big-endian for CRCs as S3 has them.

use super::hashing::Hashing;
use super::off_reactor;
use crate::error::Result;
use bytes::Bytes;
use crc_fast::CrcAlgorithm;
use ec_core::md5::Md5;
use sha2::Digest as _;

/// A checksum algorithm of S3.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Algorithm {
    /// CRC-32 (ISO-HDLC).
    Crc32,
    /// CRC-32C (Castagnoli).
    Crc32c,
    /// CRC-64/NVME.
    Crc64Nvme,
    /// SHA-1.
    Sha1,
    /// SHA-256.
    Sha256,
    /// SHA-512.
    Sha512,
    /// MD5.
    Md5,
    /// XXH64.
    XxHash64,
    /// XXH3, 64 bits.
    XxHash3,
    /// XXH3, 128 bits.
    XxHash128,
}

impl Algorithm {
    /// All of them.
    pub const ALL: [Algorithm; 10] = [
        Algorithm::Crc32,
        Algorithm::Crc32c,
        Algorithm::Crc64Nvme,
        Algorithm::Sha1,
        Algorithm::Sha256,
        Algorithm::Sha512,
        Algorithm::Md5,
        Algorithm::XxHash64,
        Algorithm::XxHash3,
        Algorithm::XxHash128,
    ];

    /// S3's name.
    pub fn name(self) -> &'static str {
        match self {
            Algorithm::Crc32 => "CRC32",
            Algorithm::Crc32c => "CRC32C",
            Algorithm::Crc64Nvme => "CRC64NVME",
            Algorithm::Sha1 => "SHA1",
            Algorithm::Sha256 => "SHA256",
            Algorithm::Sha512 => "SHA512",
            Algorithm::Md5 => "MD5",
            Algorithm::XxHash64 => "XXHASH64",
            Algorithm::XxHash3 => "XXHASH3",
            Algorithm::XxHash128 => "XXHASH128",
        }
    }

    /// By S3's name, any case.
    pub fn parse(name: &str) -> Option<Algorithm> {
        Algorithm::ALL
            .into_iter()
            .find(|a| a.name().eq_ignore_ascii_case(name))
    }

    /// Bytes of a digest.
    pub fn digest_len(self) -> usize {
        match self {
            Algorithm::Crc32 | Algorithm::Crc32c => 4,
            Algorithm::Crc64Nvme | Algorithm::XxHash64 | Algorithm::XxHash3 => 8,
            Algorithm::Md5 | Algorithm::XxHash128 => 16,
            Algorithm::Sha1 => 20,
            Algorithm::Sha256 => 32,
            Algorithm::Sha512 => 64,
        }
    }

    fn crc(self) -> Option<CrcAlgorithm> {
        match self {
            Algorithm::Crc32 => Some(CrcAlgorithm::Crc32IsoHdlc),
            Algorithm::Crc32c => Some(CrcAlgorithm::Crc32Iscsi),
            Algorithm::Crc64Nvme => Some(CrcAlgorithm::Crc64Nvme),
            _ => None,
        }
    }

    /// Whether the checksum of a whole follows from those of its parts.
    pub fn combines(self) -> bool {
        self.crc().is_some()
    }

    /// The digest of one piece of data.
    pub fn digest(self, bytes: &[u8]) -> Vec<u8> {
        let mut hasher = Hasher::new(self);
        hasher.update(bytes);
        hasher.finish()
    }

    /// The digest of `first` followed by `second`, from the digests of both and the length of the second.
    /// None if the algorithm does not combine or a digest has the wrong length.
    pub fn combine(self, first: &[u8], second: &[u8], second_len: u64) -> Option<Vec<u8>> {
        let crc = self.crc()?;
        let combined = crc_fast::checksum_combine(crc, number(first)?, number(second)?, second_len);
        Some(crc_bytes(combined, self.digest_len()))
    }
}

fn number(digest: &[u8]) -> Option<u64> {
    (digest.len() <= 8).then(|| digest.iter().fold(0, |n, &b| n << 8 | b as u64))
}

fn crc_bytes(crc: u64, len: usize) -> Vec<u8> {
    crc.to_be_bytes()[8 - len..].to_vec()
}

/// Computes one checksum.
pub enum Hasher {
    /// Any CRC, and its digest's length.
    Crc(Box<crc_fast::Digest>, usize),
    /// SHA-1.
    Sha1(sha1::Sha1),
    /// SHA-256.
    Sha256(sha2::Sha256),
    /// SHA-512.
    Sha512(Box<sha2::Sha512>),
    /// MD5.
    Md5(Box<md5::Md5>),
    /// XXH64.
    XxHash64(Box<xxhash_rust::xxh64::Xxh64>),
    /// XXH3, and how many bits of it.
    XxHash3(Box<xxhash_rust::xxh3::Xxh3>, u32),
}

impl Hasher {
    /// Of nothing yet.
    pub fn new(algorithm: Algorithm) -> Hasher {
        match (algorithm.crc(), algorithm) {
            (Some(crc), _) => Hasher::Crc(Box::new(crc_fast::Digest::new(crc)), algorithm.digest_len()),
            (None, Algorithm::Sha1) => Hasher::Sha1(sha1::Sha1::new()),
            (None, Algorithm::Sha512) => Hasher::Sha512(Box::default()),
            (None, Algorithm::Md5) => Hasher::Md5(Box::default()),
            (None, Algorithm::XxHash64) => Hasher::XxHash64(Box::new(xxhash_rust::xxh64::Xxh64::new(0))),
            (None, Algorithm::XxHash3) => Hasher::XxHash3(Box::new(xxhash_rust::xxh3::Xxh3::new()), 64),
            (None, Algorithm::XxHash128) => Hasher::XxHash3(Box::new(xxhash_rust::xxh3::Xxh3::new()), 128),
            (None, _) => Hasher::Sha256(sha2::Sha256::new()),
        }
    }

    /// Takes in more bytes.
    pub fn update(&mut self, bytes: &[u8]) {
        match self {
            Hasher::Crc(digest, _) => digest.update(bytes),
            Hasher::Sha1(digest) => digest.update(bytes),
            Hasher::Sha256(digest) => digest.update(bytes),
            Hasher::Sha512(digest) => digest.update(bytes),
            Hasher::Md5(digest) => digest.update(bytes),
            Hasher::XxHash64(digest) => digest.update(bytes),
            Hasher::XxHash3(digest, _) => digest.update(bytes),
        }
    }

    /// The digest.
    pub fn finish(self) -> Vec<u8> {
        match self {
            Hasher::Crc(digest, len) => crc_bytes(digest.finalize(), len),
            Hasher::Sha1(digest) => digest.finalize().to_vec(),
            Hasher::Sha256(digest) => digest.finalize().to_vec(),
            Hasher::Sha512(digest) => digest.finalize().to_vec(),
            Hasher::Md5(digest) => digest.finalize().to_vec(),
            Hasher::XxHash64(digest) => digest.digest().to_be_bytes().to_vec(),
            Hasher::XxHash3(digest, 64) => digest.digest().to_be_bytes().to_vec(),
            Hasher::XxHash3(digest, _) => digest.digest128().to_be_bytes().to_vec(),
        }
    }
}

/// MD5 and, if asked for, a checksum, over the same bytes.
pub struct ContentHasher {
    md5: Md5,
    checksum: Option<(Algorithm, Hasher)>,
}

/// What a [`ContentHasher`] found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ContentDigests {
    /// MD5 of the content.
    pub md5: [u8; 16],
    /// The checksum, if one was asked for.
    pub checksum: Option<(Algorithm, Vec<u8>)>,
}

impl ContentHasher {
    /// Of nothing yet.
    pub fn new(algorithm: Option<Algorithm>) -> ContentHasher {
        ContentHasher {
            md5: Md5::new(),
            checksum: algorithm.map(|a| (a, Hasher::new(a))),
        }
    }

    /// Takes in more bytes, both digests at once, off the reactor.
    pub async fn update(self, hashing: &Hashing, bytes: Bytes) -> Result<ContentHasher> {
        let md5 = hashing.update(self.md5, bytes.clone());
        let checksum = async {
            let Some((algorithm, mut hasher)) = self.checksum else {
                return Ok(None);
            };
            off_reactor(move || {
                hasher.update(&bytes);
                Some((algorithm, hasher))
            })
            .await
        };
        let (md5, checksum) = tokio::try_join!(md5, checksum)?;
        Ok(ContentHasher { md5, checksum })
    }

    /// The digests.
    pub fn finish(self) -> ContentDigests {
        ContentDigests {
            md5: self.md5.finish(),
            checksum: self
                .checksum
                .map(|(algorithm, hasher)| (algorithm, hasher.finish())),
        }
    }
}

/// Bytes in lower-case hex.
pub fn hex(bytes: &[u8]) -> String {
    bytes
        .iter()
        .fold(String::with_capacity(2 * bytes.len()), |mut out, b| {
            for digit in [b >> 4, b & 15] {
                out.push(char::from_digit(digit as u32, 16).unwrap_or('?'));
            }
            out
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn check_values() {
        let check = |a: Algorithm| hex(&a.digest(b"123456789"));
        assert_eq!(check(Algorithm::Crc32), "cbf43926");
        assert_eq!(check(Algorithm::Crc32c), "e3069283");
        assert_eq!(check(Algorithm::Crc64Nvme), "ae8b14860a799888");
        assert_eq!(check(Algorithm::Sha1), "f7c3bc1d808e04732adf679965ccc34ca7ae3441");
        assert_eq!(&check(Algorithm::Sha256)[..16], "15e2b0d3c33891eb");
    }

    #[tokio::test]
    async fn both_digests_are_of_the_same_bytes() {
        let hashing = Hashing::start(ec_core::Kernel::best()).unwrap();
        let mut hasher = ContentHasher::new(Some(Algorithm::Crc32));
        for bytes in ["a", "", "bc"] {
            hasher = hasher.update(&hashing, bytes.into()).await.unwrap();
        }
        let digests = hasher.finish();
        assert_eq!(hex(&digests.md5), "900150983cd24fb0d6963f7d28e17f72");
        assert_eq!(
            digests.checksum,
            Some((Algorithm::Crc32, Algorithm::Crc32.digest(b"abc")))
        );
    }

    #[test]
    fn crcs_combine() {
        let data: Vec<u8> = (0..100_000u32).map(|i| ((i * 7) >> 3) as u8).collect();
        for algorithm in Algorithm::ALL {
            for cut in [0, 1, 65_536, 99_999, 100_000] {
                let (a, b) = data.split_at(cut);
                let whole = algorithm.combine(&algorithm.digest(a), &algorithm.digest(b), b.len() as u64);
                assert_eq!(
                    whole,
                    algorithm.combines().then(|| algorithm.digest(&data)),
                    "{algorithm:?} at {cut}"
                );
            }
        }
    }
}
