//! Prediction of launch measurements.
//!
//! A launch is described once, as a plan; the VMM executes the plan and the functions here hash
//! it, so that prediction and reality agree by construction.

mod hex;
mod kernel_hashes;
pub mod sev;
pub mod snp;

#[cfg(feature = "verify")]
pub(crate) use hex::write_hex;
pub use kernel_hashes::{KernelHashTableError, KernelHashes};

/// The page size of every TEE's measurement.
pub const PAGE_SIZE: usize = 4096;

/// A guest physical address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Gpa(pub u64);

impl core::fmt::Display for Gpa {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        write!(f, "{:#x}", self.0)
    }
}
