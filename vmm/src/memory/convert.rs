//! Conversions of pages between private and shared, at the guest's request.
//!
//! The side that goes away is discarded both ways: private pages are punched out of the guest_memfd, shared
//! ones are dropped from the mapping, so that nothing of either life of a page is found in the other.

use std::ops::Range;
use std::os::fd::AsRawFd;
use std::sync::{Arc, Mutex, PoisonError};

use kvm_bindings::{KVM_MEMORY_ATTRIBUTE_PRIVATE, kvm_memory_attributes};
use kvm_ioctls::VmFd;
use vm_memory::{GuestAddress, GuestMemoryBackend};

use super::{PrivateSlot, Ram, SharedPages};
use crate::layout::PAGE_SIZE;

/// Why a conversion was refused. The guest learns that it failed, the operator why.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[allow(missing_docs)]
pub enum ConvertError {
    #[error("conversion of {gpa:#x}, {len:#x} bytes: not whole pages")]
    Unaligned { gpa: u64, len: u64 },
    #[error("conversion of {gpa:#x}, {len:#x} bytes: not in RAM")]
    OutsideRam { gpa: u64, len: u64 },
    #[error("conversion of {gpa:#x}: attributes {attributes:#x} have reserved bits")]
    Attributes { gpa: u64, attributes: u64 },
    #[error("conversion of {gpa:#x}, {len:#x} bytes: {call}: {errno}")]
    Host { gpa: u64, len: u64, call: &'static str, errno: i32 },
}

/// Page state of KVM_HC_MAP_GPA_RANGE (Linux `uapi/linux/kvm_para.h`): bits 1:0 page size, bit 4 encrypted.
const MAP_GPA_PAGE_SIZE_MASK: u64 = 0b11;
const MAP_GPA_ENCRYPTED: u64 = 1 << 4;

/// Converts pages of one guest. Holds the private sides of its slots.
#[derive(Debug)]
pub struct Converter {
    vm: Arc<VmFd>,
    ram: Ram,
    shared: Arc<SharedPages>,
    slots: Vec<PrivateSlot>,
    /// Attributes, discards and [`SharedPages`] change together.
    one_at_a_time: Mutex<()>,
}

impl Converter {
    /// A converter of `ram`, whose private sides are `slots` and all private.
    pub fn new(vm: Arc<VmFd>, ram: Ram, shared: Arc<SharedPages>, slots: Vec<PrivateSlot>) -> Self {
        Self { vm, ram, shared, slots, one_at_a_time: Mutex::new(()) }
    }

    /// The private sides of RAM.
    pub fn slots(&self) -> &[PrivateSlot] {
        &self.slots
    }

    /// Executes KVM_HC_MAP_GPA_RANGE: every argument is the guest's.
    pub fn map_gpa_range(&self, gpa: u64, pages: u64, attributes: u64) -> Result<(), ConvertError> {
        if attributes & !(MAP_GPA_PAGE_SIZE_MASK | MAP_GPA_ENCRYPTED) != 0 {
            return Err(ConvertError::Attributes { gpa, attributes });
        }
        self.convert(gpa, pages.saturating_mul(PAGE_SIZE), attributes & MAP_GPA_ENCRYPTED != 0)
    }

    /// Makes `len` bytes at `gpa` private or shared and discards the other side.
    pub fn convert(&self, gpa: u64, len: u64, private: bool) -> Result<(), ConvertError> {
        let range = checked_range(&self.shared, gpa, len)?;
        let _guard = self.one_at_a_time.lock().unwrap_or_else(PoisonError::into_inner);
        if private {
            // Devices lose their access first.
            self.shared.set(range.clone(), false);
            self.set_attributes(&range, true)?;
            self.discard_shared(&range)
        } else {
            self.set_attributes(&range, false)?;
            self.discard_private(&range)?;
            self.shared.set(range, true);
            Ok(())
        }
    }

    /// Sets the KVM attribute of `range` and nothing else.
    pub fn set_attributes(&self, range: &Range<u64>, private: bool) -> Result<(), ConvertError> {
        let attributes = kvm_memory_attributes {
            address: range.start,
            size: range.end - range.start,
            attributes: if private { u64::from(KVM_MEMORY_ATTRIBUTE_PRIVATE) } else { 0 },
            flags: 0,
        };
        let set = self.vm.set_memory_attributes(attributes);
        set.map_err(|error| host_error(range, "KVM_SET_MEMORY_ATTRIBUTES", error.errno()))
    }

    /// Punches `range` out of the guest_memfd.
    pub fn discard_private(&self, range: &Range<u64>) -> Result<(), ConvertError> {
        let covers = |slot: &&PrivateSlot| slot.range.start <= range.start && range.end <= slot.range.end;
        let (gpa, len) = (range.start, range.end - range.start);
        let slot = self.slots.iter().find(covers).ok_or(ConvertError::OutsideRam { gpa, len })?;
        let mode = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
        let (fd, offset) = (slot.guest_memfd.as_raw_fd(), gpa - slot.range.start);
        // SAFETY: fallocate touches no memory of this process.
        match unsafe { libc::fallocate(fd, mode, offset as i64, len as i64) } {
            0 => Ok(()),
            _ => Err(host_error(range, "fallocate(PUNCH_HOLE)", last_errno())),
        }
    }

    /// Drops the pages of `range` from the shared mapping.
    fn discard_shared(&self, range: &Range<u64>) -> Result<(), ConvertError> {
        let (gpa, len) = (range.start, range.end - range.start);
        let host = self.ram.get_host_address(GuestAddress(gpa));
        let host = host.map_err(|_| ConvertError::OutsideRam { gpa, len })?;
        // SAFETY: `checked_range` confirmed that the range lies in one region, which is one private anonymous
        // mapping; no Rust reference into it exists.
        match unsafe { libc::madvise(host.cast(), len as usize, libc::MADV_DONTNEED) } {
            0 => Ok(()),
            _ => Err(host_error(range, "madvise(DONTNEED)", last_errno())),
        }
    }
}

fn last_errno() -> i32 {
    std::io::Error::last_os_error().raw_os_error().unwrap_or_default()
}

fn host_error(range: &Range<u64>, call: &'static str, errno: i32) -> ConvertError {
    ConvertError::Host { gpa: range.start, len: range.end - range.start, call, errno }
}

/// The range that a guest named, if it is whole pages of RAM.
fn checked_range(ram: &SharedPages, gpa: u64, len: u64) -> Result<Range<u64>, ConvertError> {
    if len == 0 || !gpa.is_multiple_of(PAGE_SIZE) || !len.is_multiple_of(PAGE_SIZE) {
        return Err(ConvertError::Unaligned { gpa, len });
    }
    let range = gpa.checked_add(len).map(|end| gpa..end);
    range.filter(|range| ram.contains(range)).ok_or(ConvertError::OutsideRam { gpa, len })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_whole_pages_of_ram_are_converted() {
        let ram = SharedPages::new(&super::super::ram_ranges(16 * PAGE_SIZE));
        assert_eq!(checked_range(&ram, 0, 16 * PAGE_SIZE), Ok(0..16 * PAGE_SIZE));
        for (gpa, len) in [(0, 0), (1, PAGE_SIZE), (0, 1), (0x800, 0x800)] {
            assert_eq!(checked_range(&ram, gpa, len), Err(ConvertError::Unaligned { gpa, len }));
        }
        let last = !0xfff;
        for (gpa, len) in [(0, 17 * PAGE_SIZE), (16 * PAGE_SIZE, PAGE_SIZE), (last, PAGE_SIZE), (last, last)]
        {
            assert_eq!(checked_range(&ram, gpa, len), Err(ConvertError::OutsideRam { gpa, len }));
        }
    }
}
