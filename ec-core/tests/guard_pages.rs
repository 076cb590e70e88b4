//! No kernel touches a byte before or after its slices: shards lie against pages that cannot be read or written, at either end.
#![cfg(all(unix, not(miri)))]
#![allow(unsafe_code)]

use ec_core::{Codec, Kernel};

/// Memory between two pages that fault when they are touched.
struct Guarded {
    start: *mut u8,
    page: usize,
    usable: usize,
}

impl Guarded {
    fn new(at_least: usize) -> Guarded {
        // SAFETY: a question without arguments that matter.
        let page = unsafe { libc::sysconf(libc::_SC_PAGESIZE) } as usize;
        let usable = at_least.next_multiple_of(page);
        // SAFETY: a new private mapping, of which the first and last pages lose all rights; nothing else refers to it.
        unsafe {
            let start = libc::mmap(
                std::ptr::null_mut(),
                usable + 2 * page,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS,
                -1,
                0,
            );
            assert_ne!(start, libc::MAP_FAILED);
            assert_eq!(libc::mprotect(start, page, libc::PROT_NONE), 0);
            assert_eq!(
                libc::mprotect(
                    start.cast::<u8>().add(page + usable).cast(),
                    page,
                    libc::PROT_NONE
                ),
                0
            );
            Guarded {
                start: start.cast(),
                page,
                usable,
            }
        }
    }

    /// The first bytes of the memory, or the last.
    fn slice(&mut self, len: usize, last: bool) -> &mut [u8] {
        assert!(len <= self.usable);
        let offset = self.page + if last { self.usable - len } else { 0 };
        // SAFETY: within the readable pages, which live as long as self, and borrowed with it.
        unsafe { std::slice::from_raw_parts_mut(self.start.add(offset), len) }
    }
}

impl Drop for Guarded {
    fn drop(&mut self) {
        // SAFETY: the mapping made in `new`, which nothing refers to any more.
        unsafe { libc::munmap(self.start.cast(), self.usable + 2 * self.page) };
    }
}

#[test]
fn no_kernel_touches_what_is_beside_its_slices() {
    const LEN_MAX: usize = 700;
    for text in ["rs(3,1)", "rs(4,2)", "rs(5,3)", "rs(2,4)"] {
        for kernel in Kernel::supported() {
            let codec = Codec::new(text.parse().unwrap(), kernel).unwrap();
            let (k, m) = (codec.scheme().data_shards(), codec.scheme().parity_shards());
            let mut memory: Vec<Guarded> = (0..k + m).map(|_| Guarded::new(LEN_MAX)).collect();
            for (len, last) in (0..=LEN_MAX).flat_map(|len| [(len, false), (len, true)]) {
                let mut shards: Vec<&mut [u8]> = memory
                    .iter_mut()
                    .map(|guarded| guarded.slice(len, last))
                    .collect();
                for (i, shard) in shards.iter_mut().enumerate() {
                    shard
                        .iter_mut()
                        .enumerate()
                        .for_each(|(j, byte)| *byte = (i * 31 + j * 7) as u8);
                }
                let (data, parity) = shards.split_at_mut(k);
                let data: Vec<&[u8]> = data.iter().map(|shard| &shard[..]).collect();
                codec.encode(&data, parity).unwrap();
                codec.update(k - 1, data[0], parity).unwrap();
            }
        }
    }
}
