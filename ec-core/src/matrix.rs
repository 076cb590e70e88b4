//! Small matrices over GF(2^8), and the question behind every repair: which rows are combinations of which others.

use crate::gf256::{inverse, mul};

/// A matrix, by rows. At least one column.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Matrix {
    columns: usize,
    cells: Vec<u8>,
}

impl Matrix {
    /// Of the cells that `cell(row, column)` gives.
    pub(crate) fn from_fn(rows: usize, columns: usize, cell: impl Fn(usize, usize) -> u8) -> Matrix {
        let cells = (0..rows * columns)
            .map(|i| cell(i / columns, i % columns))
            .collect();
        Matrix { columns, cells }
    }

    /// How many columns it has.
    pub(crate) fn columns(&self) -> usize {
        self.columns
    }

    /// One row.
    pub(crate) fn row(&self, row: usize) -> &[u8] {
        &self.cells[row * self.columns..(row + 1) * self.columns]
    }

    /// The cells of all rows from `row` on.
    pub(crate) fn rows_from(&self, row: usize) -> &[u8] {
        &self.cells[row * self.columns..]
    }

    /// self · right.
    pub(crate) fn times(&self, right: &Matrix) -> Matrix {
        let mut cells = Vec::with_capacity(self.cells.len() / self.columns * right.columns);
        for row in self.cells.chunks_exact(self.columns) {
            let mut sum = vec![0; right.columns];
            for (i, &factor) in row.iter().enumerate() {
                add_multiple(&mut sum, factor, right.row(i));
            }
            cells.extend(sum);
        }
        Matrix {
            columns: right.columns,
            cells,
        }
    }

    /// The inverse of its top square, or `None` if that is singular.
    pub(crate) fn inverse(&self) -> Option<Matrix> {
        let mut basis = Basis::new(self.columns);
        for row in 0..self.columns {
            basis.add(self.row(row)).then_some(())?;
        }
        let mut cells = Vec::with_capacity(self.columns * self.columns);
        for row in 0..self.columns {
            let unit: Vec<u8> = (0..self.columns).map(|column| u8::from(column == row)).collect();
            cells.extend(basis.express(&unit)?);
        }
        Some(Matrix {
            columns: self.columns,
            cells,
        })
    }
}

/// Linearly independent rows, added one by one, kept so that any row in their span can be written in terms of them: Gauss's
/// elimination, one row at a time.
#[derive(Clone, Debug)]
pub(crate) struct Basis {
    columns: usize,
    reduced: Vec<Reduced>,
}

/// A combination of the basis's rows that has a 1 in its pivot, and 0 in the pivots of those before it.
#[derive(Clone, Debug)]
struct Reduced {
    pivot: usize,
    cells: Vec<u8>,
    /// How much of each of the basis's rows it is made of.
    of: Vec<u8>,
}

impl Basis {
    /// Of no rows yet, each of which will have so many columns.
    pub(crate) fn new(columns: usize) -> Basis {
        Basis {
            columns,
            reduced: Vec::new(),
        }
    }

    /// How many rows it has.
    pub(crate) fn rank(&self) -> usize {
        self.reduced.len()
    }

    /// Whether every row is in its span.
    pub(crate) fn is_full(&self) -> bool {
        self.rank() == self.columns
    }

    /// Adds a row if it is not a combination of those that are there; says whether it did.
    pub(crate) fn add(&mut self, row: &[u8]) -> bool {
        let (mut cells, mut of) = self.reduce(row);
        let Some((pivot, scale)) = first_non_zero(&cells) else {
            return false;
        };
        of.push(1);
        for cell in cells.iter_mut().chain(&mut of) {
            *cell = mul(*cell, scale);
        }
        self.reduced.push(Reduced { pivot, cells, of });
        true
    }

    /// The coefficients that make a row out of those added, in the order they were; `None` if it is not in their span.
    pub(crate) fn express(&self, row: &[u8]) -> Option<Vec<u8>> {
        let (rest, mut of) = self.reduce(row);
        of.resize(self.rank(), 0);
        first_non_zero(&rest).is_none().then_some(of)
    }

    /// The row less what of it is in the span, and the combination that this is.
    fn reduce(&self, row: &[u8]) -> (Vec<u8>, Vec<u8>) {
        let (mut rest, mut of) = (row.to_vec(), vec![0; self.rank()]);
        for reduced in &self.reduced {
            let factor = rest[reduced.pivot];
            if factor != 0 {
                add_multiple(&mut rest, factor, &reduced.cells);
                add_multiple(&mut of, factor, &reduced.of);
            }
        }
        (rest, of)
    }
}

/// The place of the first cell that is not 0, and the inverse of what is there.
fn first_non_zero(cells: &[u8]) -> Option<(usize, u8)> {
    let found = |(place, &cell): (usize, &u8)| Some((place, inverse(cell)?));
    cells.iter().enumerate().find_map(found)
}

/// row += factor · other; where `other` is shorter, the rest of it is taken for 0.
fn add_multiple(row: &mut [u8], factor: u8, other: &[u8]) {
    for (cell, &other) in row.iter_mut().zip(other) {
        *cell ^= mul(factor, other);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn identity(size: usize) -> Matrix {
        Matrix::from_fn(size, size, |row, column| u8::from(row == column))
    }

    #[test]
    fn dependent_rows_are_seen() {
        let mut basis = Basis::new(3);
        assert!(!basis.add(&[0, 0, 0]));
        assert!(basis.add(&[0, 1, 2]));
        assert!(basis.add(&[3, 1, 2]));
        assert!(!basis.add(&[3, 0, 0]));
        assert_eq!(basis.express(&[3, 0, 0]), Some(vec![1, 1]));
        assert_eq!(basis.express(&[0, 0, 1]), None);
        assert!(!basis.is_full());
        assert!(basis.add(&[9, 9, 9]));
        assert!(basis.is_full());
        assert_eq!(Matrix::from_fn(2, 2, |_, _| 7).inverse(), None);
    }

    proptest! {
        #[test]
        fn inverses_invert(size in 1usize..20, cells in proptest::collection::vec(any::<u8>(), 400)) {
            let matrix = Matrix::from_fn(size, size, |row, column| cells[row * size + column]);
            if let Some(inverse) = matrix.inverse() {
                prop_assert_eq!(matrix.times(&inverse), identity(size));
                prop_assert_eq!(inverse.times(&matrix), identity(size));
            }
        }

        #[test]
        fn what_is_expressed_adds_up(size in 1usize..12, count in 1usize..14, cells in proptest::collection::vec(0u8..4, 180)) {
            let rows: Vec<&[u8]> = cells.chunks_exact(size).take(count + 1).collect();
            let mut basis = Basis::new(size);
            let added: Vec<&[u8]> = rows[1..].iter().copied().filter(|row| basis.add(row)).collect();
            prop_assert_eq!(basis.rank(), added.len());
            match basis.express(rows[0]) {
                Some(coefficients) => {
                    let mut sum = vec![0; size];
                    coefficients.iter().zip(&added).for_each(|(&factor, row)| add_multiple(&mut sum, factor, row));
                    prop_assert_eq!(sum, rows[0]);
                }
                None => prop_assert!(basis.clone().add(rows[0])),
            }
        }
    }
}
