//! The field's tables, computed by the compiler, and what vector kernels need per constant.

/// x⁸ + x⁴ + x³ + x² + 1.
const POLYNOMIAL: u16 = 0x11D;

/// EXP[i] = xⁱ for i < 255, and once more from there on, so that a sum of two logarithms needs no reduction.
const EXP: [u8; 510] = exponentials();
/// LOG[xⁱ] = i. There is no logarithm of 0: its place is not used.
const LOG: [u8; 256] = logarithms();

/// Every product: `MUL[a][b]` = a·b.
pub(crate) static MUL: [[u8; 256]; 256] = products();

const fn exponentials() -> [u8; 510] {
    let mut table = [0; 510];
    let mut value: u16 = 1;
    let mut i = 0;
    while i < 255 {
        table[i] = value as u8;
        table[i + 255] = value as u8;
        value <<= 1;
        if value > 0xFF {
            value ^= POLYNOMIAL;
        }
        i += 1;
    }
    table
}

const fn logarithms() -> [u8; 256] {
    let mut table = [0; 256];
    let mut i = 0;
    while i < 255 {
        table[EXP[i] as usize] = i as u8;
        i += 1;
    }
    table
}

const fn product(a: u8, b: u8) -> u8 {
    match (a, b) {
        (0, _) | (_, 0) => 0,
        _ => EXP[LOG[a as usize] as usize + LOG[b as usize] as usize],
    }
}

#[allow(long_running_const_eval)]
const fn products() -> [[u8; 256]; 256] {
    let mut table = [[0; 256]; 256];
    let mut i = 0;
    while i < 256 * 256 {
        table[i / 256][i % 256] = product((i / 256) as u8, (i % 256) as u8);
        i += 1;
    }
    table
}

/// a·b.
pub(crate) fn mul(a: u8, b: u8) -> u8 {
    MUL[usize::from(a)][usize::from(b)]
}

/// The element whose product with `a` is 1; none for 0.
pub(crate) fn inverse(a: u8) -> Option<u8> {
    (a != 0).then(|| EXP[255 - usize::from(LOG[usize::from(a)])])
}

/// aⁿ, with 0⁰ = 1.
pub(crate) fn power(a: u8, n: usize) -> u8 {
    match (a, n) {
        (_, 0) => 1,
        (0, _) => 0,
        _ => EXP[usize::from(LOG[usize::from(a)]) * (n % 255) % 255],
    }
}

/// The products of `c` with the 16 low nibbles, then with the 16 high ones.
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
pub(crate) fn nibbles(c: u8) -> [u8; 32] {
    std::array::from_fn(|i| mul(c, if i < 16 { i as u8 } else { (i as u8 - 16) << 4 }))
}

/// Multiplication by `c` as a matrix of bits, in the layout of `gf2p8affineqb`: bit i of the product is the parity of
/// the argument and byte 7 - i.
#[cfg(target_arch = "x86_64")]
pub(crate) fn affine(c: u8) -> u64 {
    let mut rows = [0u8; 8];
    for bit in 0..8 {
        let column = mul(c, 1 << bit);
        for (i, row) in rows.iter_mut().enumerate() {
            *row |= (column >> i & 1) << bit;
        }
    }
    u64::from_be_bytes(rows)
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
    fn inverses_and_powers() {
        assert_eq!(inverse(0), None);
        for a in 1..=255 {
            assert_eq!(mul(a, inverse(a).unwrap()), 1);
        }
        for a in 0..=255 {
            let mut expected = 1;
            for n in 0..600 {
                assert_eq!(power(a, n), expected, "{a}^{n}");
                expected = mul(expected, a);
            }
        }
    }
}
