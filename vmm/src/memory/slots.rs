//! KVM memory slots: how RAM and ROM get into the guest's physical address space.

use std::fs::File;
use std::ops::Range;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

use kvm_bindings::{
    KVM_MEM_GUEST_MEMFD, KVM_MEMORY_ATTRIBUTE_PRIVATE, kvm_create_guest_memfd, kvm_memory_attributes,
    kvm_userspace_memory_region, kvm_userspace_memory_region2,
};
use kvm_ioctls::VmFd;
use vm_memory::{Address, GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion, MemoryRegionAddress};

/// Why guest memory could not be set up.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs)]
pub enum MemoryError {
    #[error("cannot map guest memory: {reason}")]
    Map { reason: String },
    #[error("{call} for guest memory at {gpa:#x}: {source}")]
    Kvm { call: &'static str, gpa: u64, source: kvm_ioctls::Error },
}

/// A slot whose private side is a guest_memfd.
#[derive(Debug)]
pub struct PrivateSlot {
    /// Guest physical range of the slot.
    pub range: Range<u64>,
    /// Its private pages.
    pub guest_memfd: File,
}

fn slots(memory: &GuestMemoryMmap) -> impl Iterator<Item = (Range<u64>, u64)> {
    memory.iter().map(|region| {
        let start = region.start_addr().raw_value();
        // A mapped region has a host address at its first byte.
        let host = region.get_host_address(MemoryRegionAddress(0)).map_or(0, |pointer| pointer as u64);
        (start..start + region.len(), host)
    })
}

/// Adds every region of `memory` as a plain slot, numbered from `first` on.
pub fn add_plain_slots(vm: &VmFd, memory: &GuestMemoryMmap, first: u32) -> Result<(), MemoryError> {
    for (slot, (range, userspace_addr)) in (first..).zip(slots(memory)) {
        let region = kvm_userspace_memory_region {
            slot,
            flags: 0,
            guest_phys_addr: range.start,
            memory_size: range.end - range.start,
            userspace_addr,
        };
        // SAFETY: `userspace_addr` is the start of a mapping of `memory_size` bytes, which the callers keep
        // for as long as the VM.
        unsafe { vm.set_user_memory_region(region) }.map_err(|source| MemoryError::Kvm {
            call: "KVM_SET_USER_MEMORY_REGION",
            gpa: range.start,
            source,
        })?;
    }
    Ok(())
}

/// Adds every region of `memory` with a guest_memfd beside it, all of it private.
pub fn add_private_slots(
    vm: &VmFd,
    memory: &GuestMemoryMmap,
    first: u32,
) -> Result<Vec<PrivateSlot>, MemoryError> {
    (first..)
        .zip(slots(memory))
        .map(|(slot, (range, host))| add_private_slot(vm, slot, range, host))
        .collect()
}

fn add_private_slot(vm: &VmFd, slot: u32, range: Range<u64>, host: u64) -> Result<PrivateSlot, MemoryError> {
    let (gpa, size) = (range.start, range.end - range.start);
    let fail = |call| move |source| MemoryError::Kvm { call, gpa, source };
    let memfd = kvm_create_guest_memfd { size, flags: 0, reserved: [0; 6] };
    let fd = vm.create_guest_memfd(memfd).map_err(fail("KVM_CREATE_GUEST_MEMFD"))?;
    // SAFETY: KVM just returned this descriptor, nobody else owns it.
    let guest_memfd = File::from(unsafe { OwnedFd::from_raw_fd(fd) });
    let region = kvm_userspace_memory_region2 {
        slot,
        flags: KVM_MEM_GUEST_MEMFD,
        guest_phys_addr: gpa,
        memory_size: size,
        userspace_addr: host,
        guest_memfd_offset: 0,
        guest_memfd: guest_memfd.as_raw_fd() as u32,
        ..Default::default()
    };
    // SAFETY: `host` is the start of a mapping of `size` bytes, which the callers keep for as long as the VM.
    unsafe { vm.set_user_memory_region2(region) }.map_err(fail("KVM_SET_USER_MEMORY_REGION2"))?;
    let attributes = kvm_memory_attributes {
        address: gpa,
        size,
        attributes: u64::from(KVM_MEMORY_ATTRIBUTE_PRIVATE),
        flags: 0,
    };
    vm.set_memory_attributes(attributes).map_err(fail("KVM_SET_MEMORY_ATTRIBUTES"))?;
    Ok(PrivateSlot { range, guest_memfd })
}
