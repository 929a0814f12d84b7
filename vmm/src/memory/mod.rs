//! Guest RAM: where it lies, which of it the host may touch, and how that changes.
//!
//! A confidential guest's pages have two backings: private memory in a guest_memfd, which this process
//! cannot map, and a shared mapping. [`SharedPages`] knows which of the two a page uses now, [`DeviceMemory`] is the
//! only way for devices to reach the mapping and refuses the rest, and [`Converter`] moves pages between the two.
//! No Rust reference to guest memory ever exists: the guest may change it at any time.

mod convert;
pub mod dump;
mod guarded;
mod shared;
mod slots;

pub use convert::Converter;
pub use guarded::DeviceMemory;
pub use shared::SharedPages;
pub use slots::{MemoryError, PrivateSlot, add_plain_slots, add_private_slots};

use std::ops::Range;
use std::sync::Arc;

use vm_memory::{GuestAddress, GuestMemoryMmap};

/// The mapping behind guest RAM: all of it for a plain guest, the shared side for a confidential one.
pub type Ram = Arc<GuestMemoryMmap>;

/// Where `bytes` of RAM lie: below the 32-bit hole, the rest above it.
pub fn ram_ranges(bytes: u64) -> Vec<Range<u64>> {
    cloister_attestation::abi::ram_ranges(bytes).into_iter().filter(|range| !range.is_empty()).collect()
}

/// Maps `ranges` of guest RAM, all zero and not yet backed by pages.
pub fn map_ram(ranges: &[Range<u64>]) -> Result<Ram, MemoryError> {
    let regions: Vec<_> =
        ranges.iter().map(|range| (GuestAddress(range.start), (range.end - range.start) as usize)).collect();
    GuestMemoryMmap::from_ranges(&regions)
        .map(Arc::new)
        .map_err(|error| MemoryError::Map { reason: error.to_string() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ram_leaves_the_32_bit_hole_free() {
        const GIB: u64 = 1 << 30;
        let one = |range: Range<u64>| vec![range];
        assert_eq!(ram_ranges(GIB), one(0..GIB));
        assert_eq!(ram_ranges(3 * GIB), one(0..3 * GIB));
        assert_eq!(ram_ranges(5 * GIB), [0..3 * GIB, 4 * GIB..6 * GIB]);
    }
}
