//! The generator of a locally repairable code, lrc(k,l,g).
//!
//! ```text
//! shard   0 … r-1   r … 2r-1   …   k-r … k-1  |  k … k+l-1   |  k+l … n-1
//!         group 0   group 1        group l-1  |  one local   |  g global
//!                data, r = k/l to a group     |  parity each |  parities
//! ```
//!
//! A local parity is the exclusive or of its group, so that one lost shard of a group is the exclusive or of the r others: r reads
//! where a Reed-Solomon code of k data shards needs k. A global parity covers all data.
//!
//! **What can be hoped for.** Lose e_j shards of group j (its local parity counts as one of them) and f global parities. The
//! group's own equation recovers one; the rest must come from the g - f global equations left. So no coefficients decode a loss
//! unless Σ max(0, e_j - 1) + f ≤ g; a code that decodes all of those is *maximally recoverable*. Any loss of g + 1
//! shards meets the condition: they cannot all be global parities, and the first loss of a group does not count. That much
//! is what the scheme promises.
//!
//! **With g ≤ 2, l ≤ 17 and r ≤ 15 the code is maximally recoverable.** Data shard i of group j gets the element
//! a = x^(17i + j), and the global parities are Σ a·d and Σ a²·d. The subfield GF(16) is 0 and the powers of x^17, so group j's
//! elements are of x^j·GF(16): 17 subspaces over GF(2), of which any two have only 0 in common. Call the local parity's own
//! element 0, as it is in no global parity: then all shards of a group have distinct elements of its subspace. What the
//! condition allows with g = 2, by the equations that decide it:
//! - three of one group: rows (1, a, a²) in three distinct elements, a Vandermonde matrix;
//! - two of group i and two of group j: take the local equations out, and s = a + a' and t = b + b' are left, with the
//!   determinant s·t² + s²·t = s·t·(s + t). s and t are not 0, as elements are distinct, and not equal, as they are of subspaces
//!   that have only 0 in common;
//! - two of one group and one global parity: s or s², not 0;
//! - both global parities, and one of each group: the local equations alone.
//!
//! **Otherwise any g + 1 losses are decoded**, and of the greater ones what chance allows. A (g+1) × k Cauchy matrix,
//! 1/(p_t + q_i), has no singular square submatrix, nor does it when its columns are scaled until row 0 is all ones. That row, cut into
//! the l groups, is the local parities; the others are the global ones. Say d data, p local and f global parities are lost,
//! d + p + f ≤ g + 1. If p = 0, the sum of the local parities is row 0, and d ≤ g + 1 - f rows are left. If p ≥ 1, then d ≤ g - f global
//! rows are left. Either way d rows by d columns of the matrix decide, and invert.
//!
//! **These matrices are a format.** Parity on disks was computed with them, so the construction, and from which parameters on
//! which one is used, never change; the tests have some rows as they were first written.
//!
//! Sources: C. Huang et al., "Erasure Coding in Windows Azure Storage", USENIX ATC 2012 (the code's shape, and the condition on sums of
//! coefficients for g = 2, there met with 4-bit halves); P. Gopalan, C. Huang, B. Jenkins, S. Yekhanin, "Explicit Maximally
//! Recoverable Codes With Locality", IEEE Trans. Inf. Theory 60(9), 2014; C. Huang, M. Chen, J. Li, "Pyramid Codes: Flexible Schemes to Trade
//! Space for Access Efficiency in Reliable Data Storage Systems", IEEE NCA 2007 (splitting a parity row).

use crate::gf256::{inverse, mul, power};
use crate::matrix::Matrix;

/// Subspaces x^j·GF(16) that have only 0 in common.
const SUBSPACES: usize = 17;
/// Elements of one that are not 0.
const SUBSPACE_ELEMENTS: usize = 15;

/// The generator. `groups` divides `data`, and there are at most 255 shards in all.
pub(crate) fn generator(data: usize, groups: usize, globals: usize) -> Matrix {
    let group_len = data / groups;
    let spread = globals <= 2 && groups <= SUBSPACES && group_len <= SUBSPACE_ELEMENTS;
    Matrix::from_fn(data + groups + globals, data, |row, column| {
        match row.checked_sub(data) {
            None => u8::from(row == column),
            Some(local) if local < groups => u8::from(column / group_len == local),
            Some(parity) if spread => {
                let element = power(2, SUBSPACES * (column % group_len) + column / group_len);
                power(element, 1 << (parity - groups))
            }
            Some(parity) => scaled_cauchy(parity - groups + 1, column, globals),
        }
    })
}

/// Row `row` of a Cauchy matrix whose columns are scaled so that row 0 is all ones. Rows have the points 0 to `globals`, columns
/// those that follow.
fn scaled_cauchy(row: usize, column: usize, globals: usize) -> u8 {
    let point = (globals + 1 + column) as u8;
    match inverse(row as u8 ^ point) {
        Some(cell) => mul(cell, point),
        None => unreachable!("the points of rows and columns differ"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Rows as they were when the first shard was written with them: see the module.
    #[test]
    fn the_matrices_do_not_change() {
        let row = |(data, groups, globals): (usize, usize, usize), row: usize| {
            generator(data, groups, globals).row(row).to_vec()
        };
        let lrc = (12, 2, 2);
        assert_eq!(row(lrc, 3), [0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0]);
        assert_eq!(row(lrc, 12), [1, 1, 1, 1, 1, 1, 0, 0, 0, 0, 0, 0]);
        assert_eq!(row(lrc, 13), [0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1]);
        assert_eq!(row(lrc, 14), [1, 152, 78, 10, 153, 214, 2, 45, 156, 20, 47, 177]);
        assert_eq!(row(lrc, 15), [1, 78, 153, 68, 79, 215, 4, 37, 94, 13, 33, 123]);
        assert_eq!(row((4, 2, 1), 6), [1, 152, 2, 45]);
        assert_eq!(row((6, 2, 3), 8), [166, 70, 187, 123, 156, 172]);
        assert_eq!(row((6, 2, 3), 9), [245, 104, 143, 82, 166, 44]);
        assert_eq!(row((6, 2, 3), 10), [210, 143, 245, 200, 180, 123]);
        // On both sides of where the construction changes: the elements of one begin with 1, those of the other do not.
        for (shape, spread) in [
            ((15, 1, 2), true),
            ((16, 1, 2), false),
            ((34, 17, 2), true),
            ((36, 18, 2), false),
            ((30, 2, 2), true),
            ((32, 2, 2), false),
            ((30, 2, 3), false),
        ] {
            let (data, groups, _) = shape;
            assert_eq!(row(shape, data + groups)[0] == 1, spread, "{shape:?}");
        }
    }
}
