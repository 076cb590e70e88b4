//! The coders that are measured, behind one trait: ec-core on each of its kernels, and those that others use.
//!
//! Decode is the worst case: the first m data shards are lost, and all of them are computed from the k shards left.

use crate::Result;
use ec_core::{Codec, Kernel, Scheme};
use reed_solomon_erasure::galois_8::ReedSolomon;
use reed_solomon_simd::{ReedSolomonDecoder, ReedSolomonEncoder};

/// Where shards start: at a page, as the buffers of the object path and the disk engine do.
const ALIGN: usize = 4096;

/// The bytes of a shard, aligned.
#[derive(Debug)]
pub struct Shard {
    room: Vec<u8>,
    start: usize,
    len: usize,
}

impl Shard {
    /// Of these bytes.
    pub fn new(bytes: &[u8]) -> Shard {
        let room = vec![0; bytes.len() + ALIGN];
        let start = room.as_ptr().align_offset(ALIGN);
        let len = bytes.len();
        let mut shard = Shard { room, start, len };
        shard.as_mut().copy_from_slice(bytes);
        shard
    }
}

impl Clone for Shard {
    fn clone(&self) -> Shard {
        Shard::new(self.as_ref())
    }
}

impl AsRef<[u8]> for Shard {
    fn as_ref(&self) -> &[u8] {
        &self.room[self.start..self.start + self.len]
    }
}

impl AsMut<[u8]> for Shard {
    fn as_mut(&mut self) -> &mut [u8] {
        &mut self.room[self.start..self.start + self.len]
    }
}

/// A stripe: k data shards and m parity shards, all equally long.
#[derive(Clone, Debug)]
pub struct Stripe {
    /// k shards.
    pub data: Vec<Shard>,
    /// m shards, right once a peer has encoded them.
    pub parity: Vec<Shard>,
}

impl Stripe {
    /// Of pseudo-random data and no parity yet.
    pub fn new(k: usize, m: usize, shard_bytes: usize) -> Stripe {
        let mut state = 1u64;
        let mut random = || {
            state = state
                .wrapping_mul(6364136223846793005)
                .wrapping_add(1442695040888963407);
            (state >> 56) as u8
        };
        Stripe {
            data: (0..k)
                .map(|_| Shard::new(&(0..shard_bytes).map(|_| random()).collect::<Vec<u8>>()))
                .collect(),
            parity: vec![Shard::new(&vec![0; shard_bytes]); m],
        }
    }

    /// Bytes of all shards.
    pub fn bytes(&self) -> usize {
        (self.data.len() + self.parity.len()) * self.data[0].len
    }
}

/// A coder of one scheme and shard length.
pub trait Peer {
    /// What the table calls it.
    fn name(&self) -> String;
    /// Computes the parity of a stripe into `out`, m shards; copies those that the coder keeps itself.
    fn encode(&mut self, data: &[Shard], out: &mut [Shard]) -> Result<()>;
    /// Computes the first m data shards of a stripe into `out` from all others.
    fn decode(&mut self, stripe: &Stripe, out: &mut [Shard]) -> Result<()>;
    /// Whether its parity is Cairn's, bit for bit.
    fn is_compatible(&self) -> bool {
        true
    }
}

/// All peers of rs(k,m) that can run here.
pub fn all(k: usize, m: usize, shard_bytes: usize) -> Result<Vec<Box<dyn Peer>>> {
    let scheme = Scheme::rs(k, m)?;
    let mut peers: Vec<Box<dyn Peer>> = Vec::new();
    let mut kernels: Vec<Kernel> = Kernel::supported().collect();
    kernels.reverse();
    for kernel in kernels {
        peers.push(Box::new(Own(Codec::new(scheme, kernel)?)));
    }
    peers.push(Box::new(Erasure {
        code: ReedSolomon::new(k, m)?,
        scratch: Vec::new(),
    }));
    peers.push(Box::new(Simd {
        encoder: ReedSolomonEncoder::new(k, m, shard_bytes)?,
        decoder: ReedSolomonDecoder::new(k, m, shard_bytes)?,
        parity: Vec::new(),
    }));
    #[cfg(isal)]
    peers.push(Box::new(Isal::new(&ec_core::LinearCode::new(scheme))?));
    Ok(peers)
}

struct Own(Codec);

impl Peer for Own {
    fn name(&self) -> String {
        format!("ec-core {}", self.0.kernel())
    }

    fn encode(&mut self, data: &[Shard], out: &mut [Shard]) -> Result<()> {
        Ok(self.0.encode(&slices(data), &mut slices_mut(out))?)
    }

    fn decode(&mut self, stripe: &Stripe, out: &mut [Shard]) -> Result<()> {
        let lost: Vec<usize> = (0..out.len()).collect();
        let shards = stripe
            .data
            .iter()
            .chain(&stripe.parity)
            .map(Shard::as_ref)
            .enumerate();
        let available: Vec<(usize, &[u8])> = shards.skip(lost.len()).collect();
        Ok(self.0.reconstruct(&available, &lost, &mut slices_mut(out))?)
    }
}

/// reed-solomon-erasure with `simd-accel`.
struct Erasure {
    code: ReedSolomon,
    scratch: Vec<(Shard, bool)>,
}

impl Peer for Erasure {
    fn name(&self) -> String {
        "reed-solomon-erasure".into()
    }

    fn encode(&mut self, data: &[Shard], out: &mut [Shard]) -> Result<()> {
        Ok(self.code.encode_sep(data, out)?)
    }

    fn decode(&mut self, stripe: &Stripe, out: &mut [Shard]) -> Result<()> {
        // It wants to own all shards, and marks those it has rebuilt: they are copied once, and lost again each time.
        if self.scratch.is_empty() {
            let shards = stripe.data.iter().chain(&stripe.parity);
            self.scratch = shards.map(|shard| (shard.clone(), true)).collect();
        }
        self.scratch
            .iter_mut()
            .take(out.len())
            .for_each(|(_, present)| *present = false);
        Ok(self.code.reconstruct_data(&mut self.scratch)?)
    }
}

/// reed-solomon-simd: another code (Leopard's), whose parity differs. It copies shards in, as its interface has it.
struct Simd {
    encoder: ReedSolomonEncoder,
    decoder: ReedSolomonDecoder,
    parity: Vec<Vec<u8>>,
}

impl Peer for Simd {
    fn name(&self) -> String {
        "reed-solomon-simd".into()
    }

    fn encode(&mut self, data: &[Shard], _: &mut [Shard]) -> Result<()> {
        for shard in data {
            self.encoder.add_original_shard(shard)?;
        }
        std::hint::black_box(self.encoder.encode()?);
        Ok(())
    }

    fn decode(&mut self, stripe: &Stripe, _: &mut [Shard]) -> Result<()> {
        if self.parity.is_empty() {
            for shard in &stripe.data {
                self.encoder.add_original_shard(shard)?;
            }
            self.parity = self
                .encoder
                .encode()?
                .recovery_iter()
                .map(<[u8]>::to_vec)
                .collect();
        }
        for (index, shard) in stripe.data.iter().enumerate().skip(self.parity.len()) {
            self.decoder.add_original_shard(index, shard)?;
        }
        for (index, shard) in self.parity.iter().enumerate() {
            self.decoder.add_recovery_shard(index, shard)?;
        }
        std::hint::black_box(self.decoder.decode()?);
        Ok(())
    }

    fn is_compatible(&self) -> bool {
        false
    }
}

/// ISA-L with Cairn's matrices.
#[cfg(isal)]
struct Isal {
    parity: crate::isal::Matrix,
    lost: crate::isal::Matrix,
}

#[cfg(isal)]
impl Isal {
    fn new(code: &ec_core::LinearCode) -> Result<Isal> {
        let (k, n) = (code.scheme().data_shards(), code.scheme().total_shards());
        let mut generator = Vec::with_capacity(n * k);
        for shard in 0..n {
            generator.extend_from_slice(code.row(shard)?);
        }
        Ok(Isal {
            parity: crate::isal::Matrix::new(k, &generator[k * k..]),
            lost: crate::isal::Matrix::new(k, &crate::isal::decode_rows(k, &generator, n - k)),
        })
    }
}

#[cfg(isal)]
impl Peer for Isal {
    fn name(&self) -> String {
        "ISA-L".into()
    }

    fn encode(&mut self, data: &[Shard], out: &mut [Shard]) -> Result<()> {
        self.parity.multiply(&slices(data), &mut slices_mut(out));
        Ok(())
    }

    fn decode(&mut self, stripe: &Stripe, out: &mut [Shard]) -> Result<()> {
        let sources: Vec<&[u8]> = stripe
            .data
            .iter()
            .skip(out.len())
            .chain(&stripe.parity)
            .map(Shard::as_ref)
            .collect();
        self.lost.multiply(&sources, &mut slices_mut(out));
        Ok(())
    }
}

fn slices(shards: &[Shard]) -> Vec<&[u8]> {
    shards.iter().map(Shard::as_ref).collect()
}

fn slices_mut(shards: &mut [Shard]) -> Vec<&mut [u8]> {
    shards.iter_mut().map(Shard::as_mut).collect()
}
