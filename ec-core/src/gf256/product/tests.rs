//! Every kernel against the scalar one, and the scalar one against the definition.

use super::*;
use crate::gf256::mul;
use rand::rngs::StdRng;
use rand::{Rng, RngCore, SeedableRng};

/// Rows and columns: single passes of every height, groups of rows, odd and even columns.
const SHAPES: [(usize, usize); 10] = [
    (1, 1),
    (1, 6),
    (2, 4),
    (2, 5),
    (3, 8),
    (4, 12),
    (4, 3),
    (5, 2),
    (6, 7),
    (9, 3),
];

const LEN_MAX: usize = if cfg!(miri) { 70 } else { 1025 };

/// Cells of which a third are 0 and some are 1; every third matrix has the zeros of an LRC, a row in one half of the columns.
fn cells(rng: &mut StdRng, rows: usize, columns: usize) -> Vec<u8> {
    let halves = rng.random_ratio(1, 3);
    let mut cells = vec![0; rows * columns];
    for (i, cell) in cells.iter_mut().enumerate() {
        let (row, column) = (i / columns, i % columns);
        *cell = match rng.random_range(0..6) {
            _ if halves && row < 2 && (column < columns / 2) != (row == 0) => 0,
            0 | 1 => 0,
            2 => 1,
            _ => rng.random(),
        };
    }
    cells
}

/// As many random slices, each with its own alignment, and the room around each.
struct Shards {
    room: Vec<Vec<u8>>,
    starts: Vec<usize>,
    len: usize,
}

impl Shards {
    fn new(rng: &mut StdRng, count: usize, len: usize) -> Shards {
        let starts = (0..count).map(|_| rng.random_range(0..65)).collect();
        let mut room = vec![vec![0; len + 130]; count];
        room.iter_mut().for_each(|room| rng.fill_bytes(room));
        Shards { room, starts, len }
    }

    fn slices(&self) -> Vec<&[u8]> {
        let each = self.room.iter().zip(&self.starts);
        each.map(|(room, &start)| &room[start..start + self.len])
            .collect()
    }

    fn slices_mut(&mut self) -> Vec<&mut [u8]> {
        let each = self.room.iter_mut().zip(&self.starts);
        each.map(|(room, &start)| &mut room[start..start + self.len])
            .collect()
    }

    /// Whether the bytes around the slices are the same.
    fn room_is(&self, other: &Shards) -> bool {
        let around = |shards: &Shards, i: usize| {
            let (room, start) = (&shards.room[i], shards.starts[i]);
            [room[..start].to_vec(), room[start + shards.len..].to_vec()]
        };
        (0..self.room.len()).all(|i| around(self, i) == around(other, i))
    }
}

impl Clone for Shards {
    fn clone(&self) -> Shards {
        Shards {
            room: self.room.clone(),
            starts: self.starts.clone(),
            len: self.len,
        }
    }
}

#[test]
fn scalar_is_the_definition() {
    let mut rng = StdRng::seed_from_u64(1);
    for (rows, columns) in SHAPES {
        let cells = cells(&mut rng, rows, columns);
        let inputs = Shards::new(&mut rng, columns, 40);
        let mut outputs = Shards::new(&mut rng, rows, 40);
        let product = Product::new(Kernel::Scalar, columns, &cells).unwrap();
        product.multiply(&inputs.slices(), &mut outputs.slices_mut());
        for (row, output) in cells.chunks_exact(columns).zip(outputs.slices()) {
            for (i, &byte) in output.iter().enumerate() {
                let terms = row
                    .iter()
                    .zip(inputs.slices())
                    .map(|(&cell, input)| mul(cell, input[i]));
                assert_eq!(byte, terms.fold(0, |sum, term| sum ^ term));
            }
        }
    }
}

#[test]
fn every_kernel_is_the_scalar_one_at_every_length_and_alignment() {
    let kernels: Vec<Kernel> = Kernel::supported().collect();
    println!("kernels: {kernels:?}");
    for (shape, (rows, columns)) in SHAPES.into_iter().enumerate() {
        for len in 0..=LEN_MAX {
            let mut rng = StdRng::seed_from_u64((shape * 10_000 + len) as u64);
            let cells = cells(&mut rng, rows, columns);
            let inputs = Shards::new(&mut rng, columns, len);
            let before = Shards::new(&mut rng, rows, len);
            let column = rng.random_range(0..columns);
            let mut expected: Option<(Shards, Shards)> = None;
            for &kernel in &kernels {
                let product = Product::new(kernel, columns, &cells).unwrap();
                let (mut product_of, mut sum) = (before.clone(), before.clone());
                product.multiply(&inputs.slices(), &mut product_of.slices_mut());
                product.add_column(column, inputs.slices()[column], &mut sum.slices_mut());
                let what = format!("{kernel}, {rows} × {columns}, {len} bytes, cells {cells:?}");
                assert!(
                    product_of.room_is(&before) && sum.room_is(&before),
                    "{what}: out of bounds"
                );
                let (expected_product, expected_sum) =
                    expected.get_or_insert_with(|| (product_of.clone(), sum.clone()));
                assert!(product_of.slices() == expected_product.slices(), "{what}");
                assert!(sum.slices() == expected_sum.slices(), "{what}, column {column}");
            }
        }
    }
}

#[test]
fn several_passes_take_turns_on_blocks() {
    let (rows, columns) = (7, 5);
    for len in [
        BLOCK_BYTES - 1,
        BLOCK_BYTES,
        BLOCK_BYTES + 1,
        3 * BLOCK_BYTES + 77,
    ] {
        let mut rng = StdRng::seed_from_u64(len as u64);
        let len = if cfg!(miri) { len % 64 } else { len };
        let cells = cells(&mut rng, rows, columns);
        let inputs = Shards::new(&mut rng, columns, len);
        let mut expected = Shards::new(&mut rng, rows, len);
        let scalar = Product::new(Kernel::Scalar, columns, &cells).unwrap();
        scalar.multiply(&inputs.slices(), &mut expected.slices_mut());
        for kernel in Kernel::supported() {
            let mut outputs = Shards::new(&mut rng, rows, len);
            let product = Product::new(kernel, columns, &cells).unwrap();
            product.multiply(&inputs.slices(), &mut outputs.slices_mut());
            assert!(outputs.slices() == expected.slices(), "{kernel}, {len} bytes");
        }
    }
}

#[test]
fn zeros_cost_nothing_where_they_lie_together() {
    let lrc = [
        [1, 1, 1, 1, 1, 1, 0, 0, 0, 0, 0, 0],
        [0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1],
        [2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13],
        [2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13],
    ];
    let passes = |cells: &[u8], columns| -> Vec<(Vec<usize>, Range<usize>)> {
        let product = Product::new(Kernel::Scalar, columns, cells).unwrap();
        let passes = product.passes.iter();
        passes
            .map(|pass| (pass.rows.to_vec(), pass.columns.clone()))
            .collect()
    };
    assert_eq!(
        passes(lrc.as_flattened(), 12),
        [(vec![0, 2, 3], 0..6), (vec![1, 2, 3], 6..12)]
    );
    assert_eq!(
        passes(&[5; 24], 4),
        [(vec![0, 1, 2], 0..4), (vec![3, 4, 5], 0..4)]
    );
    // A single zero is cheaper to multiply by than to go around.
    assert_eq!(passes(&[1, 2, 0, 4, 5, 6], 3), [(vec![0, 1], 0..3)]);
    assert_eq!(passes(&[0, 0, 0, 0, 0, 6], 3), [(vec![1], 2..3)]);
    assert_eq!(passes(&[0; 6], 3), []);
}

#[test]
fn groups_are_even() {
    let sizes = |rows| groups(rows).map(|group| group.len()).collect::<Vec<_>>();
    assert_eq!(sizes(0), [0; 0]);
    assert_eq!(sizes(4), [4]);
    assert_eq!(sizes(5), [2, 3]);
    assert_eq!(sizes(8), [4, 4]);
    assert_eq!(sizes(9), [3, 3, 3]);
}
