//! Prediction of launch measurements.
//!
//! A launch is described once, as a plan; the VMM executes the plan and the functions here hash
//! it, so that prediction and reality agree by construction.

mod guid;
mod guided;
mod hex;
mod kernel_hashes;
pub mod sev;
pub mod snp;
pub mod tdx;

pub use guid::Guid;
pub use guided::TableError;
#[cfg(feature = "std")]
pub(crate) use hex::hex_string;
#[cfg(feature = "verify")]
pub(crate) use hex::{read_hex, write_hex};
pub use kernel_hashes::{KernelHashTableError, KernelHashes};

use alloc::borrow::Cow;

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

/// Where the bytes of a launch's page command come from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Contents<'a> {
    /// These, measured where the command says so.
    Bytes(Cow<'a, [u8]>),
    /// Zeros.
    Zeros,
    /// Whoever executes the plan gives them, such as a CPUID table, secrets or a hand-off block; never measured.
    Executor,
}
