//! Encoding and decoding allocate nothing once they are set up.
#![allow(unsafe_code)]

use ec_core::{Codec, Kernel};
use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

thread_local! {
    static ALLOCATIONS: Cell<usize> = const { Cell::new(0) };
}

/// The system's allocator, counting what each thread asks of it.
struct Counting;

// SAFETY: every call goes to the system's allocator as it came.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.set(ALLOCATIONS.get() + 1);
        // SAFETY: the caller's contract is this one.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: the caller's contract is this one.
        unsafe { System.dealloc(pointer, layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        ALLOCATIONS.set(ALLOCATIONS.get() + 1);
        // SAFETY: the caller's contract is this one.
        unsafe { System.realloc(pointer, layout, size) }
    }
}

#[global_allocator]
static COUNTING: Counting = Counting;

fn allocations_of(work: impl FnOnce()) -> usize {
    let before = ALLOCATIONS.get();
    work();
    ALLOCATIONS.get() - before
}

#[test]
fn nothing_is_allocated_after_set_up() {
    assert!(
        allocations_of(|| drop(std::hint::black_box(vec![0u8; 100]))) > 0,
        "the counter counts"
    );
    for kernel in Kernel::supported() {
        for text in ["rs(4,2)", "rs(12,4)", "rs(6,6)", "replica(3)", "lrc(12,2,2)"] {
            let codec = Codec::new(text.parse().unwrap(), kernel).unwrap();
            let (k, m) = (codec.scheme().data_shards(), codec.scheme().parity_shards());
            let data = vec![vec![7u8; 10_001]; k];
            let mut parity = vec![vec![0u8; 10_001]; m];
            let mut out = vec![0u8; 10_001];
            let plan = codec.plan(&[0], (1..k + m).map(|i| (i, 1))).unwrap();

            let data: Vec<&[u8]> = data.iter().map(Vec::as_slice).collect();
            let mut targets: Vec<&mut [u8]> = parity.iter_mut().map(Vec::as_mut_slice).collect();
            let encoding = allocations_of(|| {
                codec.encode(&data, &mut targets).unwrap();
                let mut encoder = codec.encoder(&mut targets).unwrap();
                (0..k).for_each(|i| encoder.add(i, data[i]).unwrap());
                encoder.finish().unwrap();
                codec.update(k - 1, data[0], &mut targets).unwrap();
            });
            drop(targets);
            let shards: Vec<&[u8]> = data
                .iter()
                .copied()
                .chain(parity.iter().map(Vec::as_slice))
                .collect();
            let sources: Vec<&[u8]> = plan.sources().iter().map(|&i| shards[i]).collect();
            let decoding = allocations_of(|| plan.compute(&sources, &mut [&mut out]).unwrap());
            assert_eq!((encoding, decoding), (0, 0), "{text} on {kernel}");
        }
    }
}
