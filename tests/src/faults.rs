//! Harm to the disks of a cluster, done through their files and behind the product's back.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use memchr::memmem;
use rand::RngCore;

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

/// Overwrites everything that was ever written to the disk, and what lies around it, with random bytes.
pub fn scramble(disk: &Path) {
    let file = File::options().read(true).write(true).open(disk).unwrap();
    let bytes = file.metadata().unwrap().len();
    for offset in (0..bytes).step_by(PIECE_BYTES) {
        let mut piece = read(&file, offset, bytes);
        let last = offset + PIECE_BYTES as u64 >= bytes;
        if offset == 0 || last || piece.iter().any(|byte| *byte != 0) {
            rand::rng().fill_bytes(&mut piece);
            file.write_all_at(&piece, offset).unwrap();
        }
    }
    file.sync_all().unwrap();
}

/// Where on the disks these bytes are, which should be long enough to be there by intent only.
pub fn find(disks: &[PathBuf], needle: &[u8]) -> Vec<Place> {
    assert!(needle.len() >= 16);
    let finder = memmem::Finder::new(needle);
    let mut places = Vec::new();
    for disk in disks {
        let file = File::open(disk).unwrap();
        let bytes = file.metadata().unwrap().len();
        for offset in (0..bytes).step_by(PIECE_BYTES) {
            // Read on past the piece, so that no needle is cut.
            let mut piece = vec![0; PIECE_BYTES + needle.len() - 1];
            let read = read_up_to(&file, offset, &mut piece);
            let found = finder.find_iter(&piece[..read]);
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
        let bytes = file.metadata().unwrap().len();
        for offset in (0..bytes).step_by(PIECE_BYTES) {
            let piece = read(&file, offset, bytes);
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

/// Flips one random bit of the byte.
pub fn flip_bit(place: &Place) {
    let file = File::options().read(true).write(true).open(&place.disk).unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, place.offset).unwrap();
    byte[0] ^= 1 << rand::random_range(0..8);
    file.write_all_at(&byte, place.offset).unwrap();
    file.sync_all().unwrap();
}

fn read(file: &File, offset: u64, bytes: u64) -> Vec<u8> {
    let mut piece = vec![0; PIECE_BYTES.min(usize::try_from(bytes - offset).unwrap())];
    file.read_exact_at(&mut piece, offset).unwrap();
    piece
}

fn read_up_to(file: &File, offset: u64, piece: &mut [u8]) -> usize {
    let mut filled = 0;
    while filled < piece.len() {
        match file
            .read_at(&mut piece[filled..], offset + filled as u64)
            .unwrap()
        {
            0 => break,
            read => filled += read,
        }
    }
    filled
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
        flip_bit(&place);
        let after = std::fs::read(&disk).unwrap();
        let flipped: u32 = before.iter().zip(&after).map(|(a, b)| (a ^ b).count_ones()).sum();
        assert_eq!(flipped, 1);
        scramble(&disk);
        assert_eq!(find(&disks, &needle), []);
    }
}
