//! The generator of a Reed-Solomon code, and of replication.
//!
//! n × k, n = k + m: shard = G · data. It is built as the crate reed-solomon-erasure and Backblaze's JavaReedSolomon build it,
//! so that parity is bit-identical to theirs:
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
//! Sources: I. S. Reed and G. Solomon, "Polynomial Codes over Certain Finite Fields", J. SIAM 8(2), 1960; J. S. Plank, "A Tutorial
//! on Reed-Solomon Coding for Fault-Tolerance in RAID-like Systems", Software: Practice & Experience 27(9), 1997; J. S. Plank and
//! Y. Ding, "Note: Correction to the 1997 Tutorial on Reed-Solomon Coding", Software: Practice & Experience 35(2), 2005;
//! Backblaze, JavaReedSolomon (github.com/Backblaze/JavaReedSolomon).

use crate::gf256::power;
use crate::matrix::Matrix;

/// The generator of the systematic code of `data` data shards, `total` in all. 1 ≤ `data` ≤ `total` ≤ 255.
pub(crate) fn generator(data: usize, total: usize) -> Matrix {
    let vandermonde = Matrix::from_fn(total, data, |point, exponent| power(point as u8, exponent));
    match vandermonde.inverse() {
        Some(inverse) => vandermonde.times(&inverse),
        None => unreachable!("a Vandermonde matrix in distinct points inverts"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn generators_are_systematic() {
        for (data, total) in [(1, 1), (1, 3), (2, 3), (4, 6), (12, 16), (17, 20), (200, 255)] {
            let generator = generator(data, total);
            assert_eq!(generator.rows_from(0).len(), data * total);
            for (row, column) in (0..data).flat_map(|row| (0..data).map(move |column| (row, column))) {
                assert_eq!(generator.row(row)[column], u8::from(row == column));
            }
        }
        assert_eq!(generator(1, 3).rows_from(0), [1, 1, 1]);
        assert_eq!(generator(4, 6).rows_from(4), [27, 28, 18, 20, 28, 27, 20, 18]);
    }
}
