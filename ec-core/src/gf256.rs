//! The field GF(2^8), and products of matrices over it with long rows of bytes.
//!
//! **The field.** A byte b stands for the polynomial b₇x⁷ + … + b₁x + b₀ over GF(2). Addition is exclusive or, so every element
//! is its own negative. Multiplication is that of polynomials modulo x⁸ + x⁴ + x³ + x² + 1, 0x11D, which is primitive: the
//! powers of x (the byte 2) are all 255 non-zero elements. Hence the two tables: `EXP[i]` is xⁱ, `LOG` its inverse, and
//! a·b = EXP[LOG a + LOG b].
//!
//! **Multiplying many bytes by one constant c.** The map b ↦ c·b is linear over GF(2), which gives two ways without a look-up
//! per byte:
//! - *Nibbles*: c·b = c·(b & 0x0F) + c·(b & 0xF0). Each half has 16 values, a table that fits a vector register, and one shuffle
//!   looks up 16 to 64 bytes at once (J. S. Plank, K. M. Greenan, E. L. Miller, "Screaming Fast Galois Field Arithmetic Using Intel
//!   SIMD Instructions", FAST 2013).
//! - *Affine*: the map is an 8 × 8 matrix of bits, and the GFNI instruction `gf2p8affineqb` applies one to every byte of a
//!   register. (GFNI's own multiplication is in AES's field, 0x11B, and no use here.)
//!
//! A [`Product`] is a matrix made ready for one [`Kernel`]; `product.rs` tells how the work is cut.

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
#[cfg(target_arch = "x86_64")]
mod gfni;
mod kernel;
#[cfg(target_arch = "aarch64")]
mod neon;
mod product;
mod scalar;
mod tables;

pub use kernel::{KERNEL_VARIABLE, Kernel};
#[cfg(test)]
pub(crate) use product::BLOCK_BYTES;
pub(crate) use product::Product;
pub(crate) use tables::{inverse, mul, power};
