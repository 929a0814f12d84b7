//! Prediction of launch measurements.
//!
//! A launch is described once, as a plan; the VMM executes the plan and the functions here hash
//! it, so that prediction and reality agree by construction.

pub mod acpi;
#[cfg(feature = "std")]
mod document;
#[cfg(feature = "std")]
pub mod explanation;
mod guid;
#[cfg(feature = "alloc")]
mod guided;
mod hex;
#[cfg(feature = "alloc")]
mod kernel_hashes;
#[cfg(feature = "alloc")]
mod parallel;
#[cfg(feature = "alloc")]
pub mod sev;
#[cfg(feature = "alloc")]
pub mod snp;
pub mod tdx;

pub use guid::Guid;
#[cfg(feature = "alloc")]
pub use guided::TableError;
#[cfg(feature = "verify")]
pub(crate) use hex::write_hex;
#[cfg(feature = "std")]
pub(crate) use hex::{hex_string, read_hex};
#[cfg(feature = "alloc")]
pub use kernel_hashes::{KernelHashTableError, KernelHashes};

#[cfg(feature = "alloc")]
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
#[cfg(feature = "alloc")]
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Contents<'a> {
    /// These, measured where the command says so.
    Bytes(Cow<'a, [u8]>),
    /// Zeros.
    Zeros,
    /// Whoever executes the plan gives them, such as a CPUID table, secrets or a hand-off block; never measured.
    Executor,
}
