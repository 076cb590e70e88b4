//! ISA-L's erasure code, through the shim in `isal/shim.c`.
#![allow(unsafe_code)]

use std::ffi::{c_int, c_uchar};

unsafe extern "C" {
    fn cairn_isal_tables(k: c_int, rows: c_int, coefficients: *mut c_uchar, tables: *mut c_uchar);
    fn cairn_isal_multiply(
        len: c_int,
        k: c_int,
        rows: c_int,
        tables: *mut c_uchar,
        data: *mut *mut c_uchar,
        out: *mut *mut c_uchar,
    );
    fn cairn_isal_invert(matrix: *mut c_uchar, inverse: *mut c_uchar, k: c_int) -> c_int;
}

/// A matrix over GF(2^8) with ISA-L's tables for it.
#[derive(Debug)]
pub struct Matrix {
    rows: usize,
    columns: usize,
    tables: Vec<u8>,
}

impl Matrix {
    /// Of cells given row by row.
    pub fn new(columns: usize, cells: &[u8]) -> Matrix {
        let rows = cells.len() / columns;
        let mut tables = vec![0; 32 * rows * columns];
        // SAFETY: ISA-L reads rows × columns bytes, which `cells` has, writes 32 for each, and keeps no pointer. It takes the
        // coefficients as mutable and does not change them.
        unsafe {
            cairn_isal_tables(
                columns as c_int,
                rows as c_int,
                cells.as_ptr().cast_mut(),
                tables.as_mut_ptr(),
            );
        }
        Matrix {
            rows,
            columns,
            tables,
        }
    }

    /// out = matrix · data.
    pub fn multiply(&mut self, data: &[&[u8]], out: &mut [&mut [u8]]) {
        let len = data[0].len();
        assert_eq!((data.len(), out.len()), (self.columns, self.rows));
        assert!(data.iter().all(|shard| shard.len() == len) && out.iter().all(|shard| shard.len() == len));
        let mut data: Vec<*mut u8> = data.iter().map(|shard| shard.as_ptr().cast_mut()).collect();
        let mut out: Vec<*mut u8> = out.iter_mut().map(|shard| shard.as_mut_ptr()).collect();
        // SAFETY: every pointer is to `len` bytes, there are as many as the tables were made for, and data is only read.
        unsafe {
            cairn_isal_multiply(
                len as c_int,
                self.columns as c_int,
                self.rows as c_int,
                self.tables.as_mut_ptr(),
                data.as_mut_ptr(),
                out.as_mut_ptr(),
            );
        }
    }
}

/// The coefficients that make the first `lost` data shards out of the other data shards and as many parity shards, row by
/// row; `generator` has k columns.
pub fn decode_rows(k: usize, generator: &[u8], lost: usize) -> Vec<u8> {
    let mut rows = generator[lost * k..(lost + k) * k].to_vec();
    let mut inverse = vec![0; k * k];
    // SAFETY: both are k × k bytes.
    let failed = unsafe { cairn_isal_invert(rows.as_mut_ptr(), inverse.as_mut_ptr(), k as c_int) };
    assert_eq!(failed, 0, "any k rows of a generator invert");
    inverse.truncate(lost * k);
    inverse
}
