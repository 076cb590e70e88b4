//! Small matrices over GF(2^8): the generator of a code, and the inverse of the rows that are left of it.
//!
//! **The field.** Bytes are polynomials over GF(2) modulo x^8 + x^4 + x^3 + x^2 + 1, 0x11D, in which x (2) generates all 255
//! non-zero elements. Addition is exclusive or, so it is its own inverse.
//!
//! **The generator.** n × k, n = k + m: shard = G · data. It is built as the crate reed-solomon-erasure and
//! Backblaze's JavaReedSolomon build it, so that parity is bit-identical to theirs:
//! 1. V is the n × k Vandermonde matrix `V[r][c] = r^c`, with r the field element whose byte is r, and 0^0 = 1.
//! 2. G = V · T⁻¹, where T is the top k rows of V.
//!
//! So the first k rows of G are the identity (the code is *systematic*: data shards are the data), and the rest are parity.
//!
//! **Why any k shards are enough.** Any k rows of V are a square Vandermonde matrix in k distinct points; its determinant
//! is the product of the differences of the points, none of them 0. Distinct points are to be had as long as n ≤ 256. The
//! same k rows of G are that matrix times T⁻¹: the product of two invertible matrices, which is invertible. Hence
//! data = (rows of G)⁻¹ · shards. Parity rows put under an identity without step 2 do not have the property: that is
//! the mistake of the first edition of Plank's tutorial.
//!
//! With k = 1, V is a column of ones and so is G: replication is the same code.
//!
//! Sources: J. S. Plank, "A Tutorial on Reed-Solomon Coding for Fault-Tolerance in RAID-like Systems", Software:
//! Practice & Experience 27(9), 1997; J. S. Plank and Y. Ding, "Note: Correction to the 1997 Tutorial on Reed-Solomon
//! Coding", Software: Practice & Experience 35(2), 2005; Backblaze, JavaReedSolomon (github.com/Backblaze/JavaReedSolomon).

use reed_solomon_erasure::galois_8::{div, exp, mul};

/// A matrix, by rows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Matrix {
    columns: usize,
    cells: Vec<u8>,
}

impl Matrix {
    /// The generator of the systematic code of `data` data shards, `total` in all. 1 ≤ `data` ≤ `total` ≤ 255.
    pub(crate) fn generator(data: usize, total: usize) -> Matrix {
        let points = (0..=u8::MAX).take(total);
        let vandermonde = Matrix {
            columns: data,
            cells: points
                .flat_map(|point| (0..data).map(move |power| exp(point, power)))
                .collect(),
        };
        let top: Vec<usize> = (0..data).collect();
        match vandermonde.pick(&top).inverse() {
            Some(inverse) => vandermonde.times(&inverse),
            None => unreachable!("a Vandermonde matrix in distinct points inverts"),
        }
    }

    /// One row.
    pub(crate) fn row(&self, row: usize) -> &[u8] {
        &self.cells[row * self.columns..(row + 1) * self.columns]
    }

    /// The cells of all rows from `row` on.
    pub(crate) fn rows_from(&self, row: usize) -> &[u8] {
        &self.cells[row * self.columns..]
    }

    /// The matrix of these rows, in this order.
    pub(crate) fn pick(&self, rows: &[usize]) -> Matrix {
        Matrix {
            columns: self.columns,
            cells: rows.iter().flat_map(|&row| self.row(row)).copied().collect(),
        }
    }

    /// self · right.
    pub(crate) fn times(&self, right: &Matrix) -> Matrix {
        let mut cells = Vec::with_capacity(self.cells.len() / self.columns * right.columns);
        for row in self.cells.chunks_exact(self.columns) {
            for column in 0..right.columns {
                let terms = row
                    .iter()
                    .enumerate()
                    .map(|(i, &cell)| mul(cell, right.cells[i * right.columns + column]));
                cells.push(terms.fold(0, |sum, term| sum ^ term));
            }
        }
        Matrix {
            columns: right.columns,
            cells,
        }
    }

    /// The inverse of a square matrix by Gauss-Jordan elimination, or `None` if it is singular.
    pub(crate) fn inverse(&self) -> Option<Matrix> {
        let size = self.columns;
        let mut left = self.clone();
        let mut right = Matrix::identity(size);
        for pivot in 0..size {
            let found = (pivot..size).find(|&row| left.cells[row * size + pivot] != 0)?;
            left.swap_rows(pivot, found);
            right.swap_rows(pivot, found);
            let scale = div(1, left.cells[pivot * size + pivot]);
            left.scale_row(pivot, scale);
            right.scale_row(pivot, scale);
            for row in (0..size).filter(|&row| row != pivot) {
                let factor = left.cells[row * size + pivot];
                if factor != 0 {
                    left.add_row(row, pivot, factor);
                    right.add_row(row, pivot, factor);
                }
            }
        }
        Some(right)
    }

    fn identity(size: usize) -> Matrix {
        let cells = (0..size * size).map(|i| u8::from(i / size == i % size)).collect();
        Matrix { columns: size, cells }
    }

    fn swap_rows(&mut self, a: usize, b: usize) {
        for column in 0..self.columns {
            self.cells
                .swap(a * self.columns + column, b * self.columns + column);
        }
    }

    fn scale_row(&mut self, row: usize, factor: u8) {
        for cell in &mut self.cells[row * self.columns..(row + 1) * self.columns] {
            *cell = mul(*cell, factor);
        }
    }

    /// row += factor · source.
    fn add_row(&mut self, row: usize, source: usize, factor: u8) {
        for column in 0..self.columns {
            self.cells[row * self.columns + column] ^=
                mul(factor, self.cells[source * self.columns + column]);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_field_is_0x11d() {
        for (a, b) in (0..=255u8).flat_map(|a| (0..=255u8).map(move |b| (a, b))) {
            let mut product = 0u32;
            for bit in (0..8).filter(|bit| b >> bit & 1 == 1) {
                product ^= u32::from(a) << bit;
            }
            while product > 255 {
                product ^= 0x11D << (23 - product.leading_zeros());
            }
            assert_eq!(u32::from(mul(a, b)), product, "{a} · {b}");
        }
    }

    #[test]
    fn generators_are_systematic() {
        for (data, total) in [(1, 1), (1, 3), (2, 3), (4, 6), (12, 16), (17, 20), (200, 255)] {
            let generator = Matrix::generator(data, total);
            assert_eq!(generator.cells.len(), data * total);
            assert_eq!(
                generator.pick(&(0..data).collect::<Vec<_>>()),
                Matrix::identity(data)
            );
        }
        assert_eq!(Matrix::generator(1, 3).cells, [1, 1, 1]);
        assert_eq!(
            Matrix::generator(4, 6).rows_from(4),
            [27, 28, 18, 20, 28, 27, 20, 18]
        );
    }

    #[test]
    fn inverses_invert_and_singular_matrices_are_seen() {
        let generator = Matrix::generator(5, 9);
        let rows = generator.pick(&[8, 1, 6, 7, 3]);
        assert_eq!(rows.times(&rows.inverse().unwrap()), Matrix::identity(5));
        assert_eq!(generator.pick(&[8, 1, 6, 8, 3]).inverse(), None);
    }
}
