//! Harm to the disks of a cluster, done through their files and behind the product's back.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use memchr::memmem;
use rand::RngCore;
use rustix::fs::SeekFrom;

/// Disks are read and overwritten in pieces of this size.
const PIECE_BYTES: usize = 1 << 20;
/// A sparse file reads as zeroes where nothing was written; looked at in blocks of this size.
const BLOCK_BYTES: usize = 4096;

/// A place on a disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// The disk's file.
    pub disk: PathBuf,
    /// The byte.
    pub offset: u64,
}

/// Overwrites everything that was ever written to the disk, and its first and last bytes, with random ones.
pub fn scramble(disk: &Path) {
    let file = File::options().read(true).write(true).open(disk).unwrap();
    let bytes = file.metadata().unwrap().len();
    let ends = [0, bytes.saturating_sub(PIECE_BYTES as u64)];
    for offset in used_pieces(&file).into_iter().chain(ends) {
        let mut piece = vec![0; PIECE_BYTES.min((bytes - offset) as usize)];
        rand::rng().fill_bytes(&mut piece);
        file.write_all_at(&piece, offset).unwrap();
    }
    // Where a node writes at the same time past the page cache, a flush may fail: what is on the disk is as wrong as is wanted.
    let _raced = file.sync_all();
}

/// Where on the disks these bytes are, which should be long enough to be there by intent only.
pub fn find(disks: &[PathBuf], needle: &[u8]) -> Vec<Place> {
    assert!(needle.len() >= 16);
    let finder = memmem::Finder::new(needle);
    let mut places = Vec::new();
    for disk in disks {
        let file = File::open(disk).unwrap();
        for offset in used_pieces(&file) {
            // Read on past the piece, so that no needle is cut.
            let piece = read(&file, offset, PIECE_BYTES + needle.len() - 1);
            let found = finder.find_iter(&piece).filter(|at| *at < PIECE_BYTES);
            places.extend(found.map(|at| Place {
                disk: disk.clone(),
                offset: offset + at as u64,
            }));
        }
    }
    places
}

/// A random byte of a random block that is in use, on any of the disks.
pub fn random_used_place(disks: &[PathBuf]) -> Place {
    let mut blocks = Vec::new();
    for disk in disks {
        let file = File::open(disk).unwrap();
        for offset in used_pieces(&file) {
            let piece = read(&file, offset, PIECE_BYTES);
            let used = piece
                .chunks(BLOCK_BYTES)
                .enumerate()
                .filter(|(_, block)| block.iter().any(|byte| *byte != 0));
            blocks.extend(used.map(|(index, _)| (disk, offset + (index * BLOCK_BYTES) as u64)));
        }
    }
    let (disk, offset) = blocks[rand::random_range(0..blocks.len())];
    Place {
        disk: disk.clone(),
        offset: offset + rand::random_range(0..BLOCK_BYTES as u64),
    }
}

/// A flipped bit, and how to take it back.
#[derive(Debug)]
pub struct Flip {
    place: Place,
    block: Vec<u8>,
    mask: u8,
}

impl Flip {
    /// Flips one random bit of the byte.
    pub fn new(place: Place) -> Self {
        let file = File::options().read(true).write(true).open(&place.disk).unwrap();
        let mut block = read(&file, place.block(), BLOCK_BYTES);
        let mask = 1 << rand::random_range(0..8);
        block[place.in_block()] ^= mask;
        file.write_all_at(&block[place.in_block()..][..1], place.offset)
            .unwrap();
        file.sync_all().unwrap();
        Self { place, block, mask }
    }

    /// Flips the bit back, unless the block has been written anew since.
    pub fn undo(self) {
        let file = File::options()
            .read(true)
            .write(true)
            .open(&self.place.disk)
            .unwrap();
        if read(&file, self.place.block(), BLOCK_BYTES) == self.block {
            let byte = [self.block[self.place.in_block()] ^ self.mask];
            file.write_all_at(&byte, self.place.offset).unwrap();
            file.sync_all().unwrap();
        }
    }
}

impl Place {
    fn block(&self) -> u64 {
        self.offset - self.in_block() as u64
    }

    fn in_block(&self) -> usize {
        (self.offset % BLOCK_BYTES as u64) as usize
    }
}

/// Offsets of the pieces of a sparse file that hold something.
fn used_pieces(file: &File) -> Vec<u64> {
    let (mut pieces, mut from) = (Vec::new(), 0);
    loop {
        match rustix::fs::seek(file, SeekFrom::Data(from)) {
            Ok(data) => {
                let piece = data - data % PIECE_BYTES as u64;
                pieces.push(piece);
                from = piece + PIECE_BYTES as u64;
            }
            Err(rustix::io::Errno::NXIO) => return pieces,
            Err(error) => panic!("looking for data: {error}"),
        }
    }
}

/// So many bytes, or those up to the end of the file.
fn read(file: &File, offset: u64, bytes: usize) -> Vec<u8> {
    let mut piece = vec![0; bytes];
    let mut filled = 0;
    while filled < bytes {
        match file
            .read_at(&mut piece[filled..], offset + filled as u64)
            .unwrap()
        {
            0 => break,
            read => filled += read,
        }
    }
    piece.truncate(filled);
    piece
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_across_pieces_and_flips_one_bit() {
        let directory = tempfile::tempdir().unwrap();
        let disk = directory.path().join("disk");
        let file = File::create(&disk).unwrap();
        file.set_len(5 * PIECE_BYTES as u64 + 17).unwrap();
        let needle = *b"a needle of some length";
        let offset = 2 * PIECE_BYTES as u64 - 5;
        file.write_all_at(&needle, offset).unwrap();
        let disks = [disk.clone()];
        assert_eq!(
            find(&disks, &needle),
            [Place {
                disk: disk.clone(),
                offset
            }]
        );
        let before = std::fs::read(&disk).unwrap();
        let place = random_used_place(&disks);
        assert!(place.offset / BLOCK_BYTES as u64 == offset / BLOCK_BYTES as u64 || place.offset >= offset);
        let flip = Flip::new(place);
        let after = std::fs::read(&disk).unwrap();
        let flipped: u32 = before.iter().zip(&after).map(|(a, b)| (a ^ b).count_ones()).sum();
        assert_eq!(flipped, 1);
        flip.undo();
        assert_eq!(std::fs::read(&disk).unwrap(), before);
        scramble(&disk);
        assert_eq!(find(&disks, &needle), []);
    }
}
