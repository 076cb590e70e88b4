//! The implementations of the product, and which of them a process uses.

use crate::error::{Error, Result};
use std::fmt;
use std::str::FromStr;

/// The environment variable that forces a kernel: `CAIRN_KERNEL=avx2`.
pub const KERNEL_VARIABLE: &str = "CAIRN_KERNEL";

/// An implementation of matrix × data. All compute the same bytes; they differ in the instructions they need.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Kernel {
    /// A look-up per byte, anywhere. The oracle of the others.
    Scalar,
    /// Nibble tables with aarch64's NEON.
    Neon,
    /// Nibble tables with AVX2.
    Avx2,
    /// Nibble tables with AVX-512.
    Avx512,
    /// Affine maps in 256-bit registers.
    GfniAvx2,
    /// Affine maps in 512-bit registers.
    GfniAvx512,
}

impl Kernel {
    /// Every kernel, slowest first.
    pub const ALL: [Kernel; 6] = [
        Kernel::Scalar,
        Kernel::Neon,
        Kernel::Avx2,
        Kernel::Avx512,
        Kernel::GfniAvx2,
        Kernel::GfniAvx512,
    ];

    /// Whether this processor, and this build, can run it.
    pub fn is_supported(self) -> bool {
        match self {
            Kernel::Scalar => true,
            Kernel::Neon => cfg!(target_arch = "aarch64"), // NEON is part of the architecture.
            #[cfg(target_arch = "x86_64")]
            Kernel::Avx2 => is_x86_feature_detected!("avx2"),
            #[cfg(target_arch = "x86_64")]
            Kernel::Avx512 => {
                is_x86_feature_detected!("avx512f")
                    && is_x86_feature_detected!("avx512bw")
                    && is_x86_feature_detected!("avx512vl")
            }
            #[cfg(target_arch = "x86_64")]
            Kernel::GfniAvx2 => Kernel::Avx2.is_supported() && is_x86_feature_detected!("gfni"),
            #[cfg(target_arch = "x86_64")]
            Kernel::GfniAvx512 => Kernel::Avx512.is_supported() && is_x86_feature_detected!("gfni"),
            #[cfg(not(target_arch = "x86_64"))]
            _ => false,
        }
    }

    /// Those that run here, slowest first.
    pub fn supported() -> impl Iterator<Item = Kernel> {
        Kernel::ALL.into_iter().filter(|kernel| kernel.is_supported())
    }

    /// The fastest that runs here.
    pub fn best() -> Kernel {
        Kernel::supported().last().unwrap_or(Kernel::Scalar)
    }

    /// The one that [`KERNEL_VARIABLE`] names, or the fastest. A name that is wrong, or cannot run here, is an error:
    /// who forces a kernel wants that one.
    pub fn from_environment() -> Result<Kernel> {
        match std::env::var_os(KERNEL_VARIABLE) {
            Some(name) if !name.is_empty() => name.to_string_lossy().parse(),
            _ => Ok(Kernel::best()),
        }
    }

    /// Errors unless it runs here.
    pub(crate) fn check_supported(self) -> Result<Kernel> {
        match self.is_supported() {
            true => Ok(self),
            false => Err(Error::BadKernel {
                kernel: self.to_string(),
                supported: names(),
            }),
        }
    }
}

fn names() -> String {
    let names: Vec<String> = Kernel::supported().map(|kernel| kernel.to_string()).collect();
    names.join(", ")
}

impl fmt::Display for Kernel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Kernel::Scalar => "scalar",
            Kernel::Neon => "neon",
            Kernel::Avx2 => "avx2",
            Kernel::Avx512 => "avx512",
            Kernel::GfniAvx2 => "gfni-avx2",
            Kernel::GfniAvx512 => "gfni-avx512",
        })
    }
}

impl FromStr for Kernel {
    type Err = Error;

    fn from_str(name: &str) -> Result<Kernel> {
        let found = Kernel::ALL.into_iter().find(|kernel| kernel.to_string() == name);
        let unknown = || Error::BadKernel {
            kernel: name.to_owned(),
            supported: names(),
        };
        found.ok_or_else(unknown)?.check_supported()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_parse_and_others_say_what_there_is() {
        for kernel in Kernel::ALL {
            match kernel.to_string().parse::<Kernel>() {
                Ok(parsed) => assert_eq!((parsed, kernel.is_supported()), (kernel, true)),
                Err(error) => {
                    assert!(!kernel.is_supported());
                    assert!(error.to_string().contains("scalar"), "{error}");
                }
            }
        }
        let error = "sse9".parse::<Kernel>().unwrap_err().to_string();
        assert!(error.contains("sse9") && error.contains("scalar"), "{error}");
        assert!(Kernel::supported().any(|kernel| kernel == Kernel::best()));
    }
}
