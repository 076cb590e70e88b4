//! Little-endian fields at fixed places of fixed-size headers. The places are constants within the header's size.

pub fn get_u32(b: &[u8], at: usize) -> u32 {
    u32::from_le_bytes([b[at], b[at + 1], b[at + 2], b[at + 3]])
}

pub fn get_u64(b: &[u8], at: usize) -> u64 {
    u64::from(get_u32(b, at)) | u64::from(get_u32(b, at + 4)) << 32
}

pub fn get_u128(b: &[u8], at: usize) -> u128 {
    u128::from(get_u64(b, at)) | u128::from(get_u64(b, at + 8)) << 64
}

pub fn put(b: &mut [u8], at: usize, field: &[u8]) {
    b[at..at + field.len()].copy_from_slice(field);
}
