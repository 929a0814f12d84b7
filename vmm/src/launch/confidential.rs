//! What every confidential launch holds, and the one way in which pages get into the guest: written to the shared side
//! of their own place, taken from there by the TEE's command, and dropped.

use std::ops::Range;
use std::sync::Arc;

use kvm_ioctls::{VcpuFd, VmFd};
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend};

use super::{Backing, Guest, LaunchError, ROM_SLOT, discard};
use crate::hostile::{self, Hostile};
use crate::memory::{
    Converter, DeviceMemory, PrivateSlot, Ram, SharedPages, add_private_slots, map_ram, ram_ranges,
};

/// A VM with private memory, and as many vCPUs as were pushed.
pub struct Confidential {
    pub vm: Arc<VmFd>,
    pub vcpus: Vec<VcpuFd>,
    rom: Ram,
    ram: Ram,
    shared: Arc<SharedPages>,
    ram_slots: Vec<PrivateSlot>,
    rom_slots: Vec<PrivateSlot>,
}

impl Confidential {
    /// Gives `vm` its memory: the ROM's ranges, then RAM.
    pub fn new(vm: VmFd, rom: &[Range<u64>], memory: u64) -> Result<Self, LaunchError> {
        let ram_slot = ROM_SLOT + rom.len() as u32;
        let rom = map_ram(rom)?;
        let rom_slots = add_private_slots(&vm, &rom, ROM_SLOT)?;
        let ranges = ram_ranges(memory);
        let ram = map_ram(&ranges)?;
        let ram_slots = add_private_slots(&vm, &ram, ram_slot)?;
        let shared = Arc::new(SharedPages::new(&ranges));
        Ok(Self { vm: Arc::new(vm), vcpus: Vec::new(), rom, ram, shared, ram_slots, rom_slots })
    }

    /// In tests of the defence: what a malicious host leaves in memory that the launch does not fill.
    pub fn plant(&self, hostile: Option<Hostile>) {
        hostile::plant(hostile, &self.ram_slots);
    }

    /// The vCPU through which commands go that want one.
    pub fn first_vcpu(&self) -> Result<&VcpuFd, LaunchError> {
        self.vcpus.first().ok_or(LaunchError::Missing("a first vCPU"))
    }

    /// The mapping that backs a range of the guest.
    fn backing(&self, gpa: u64) -> &Ram {
        if self.rom.find_region(GuestAddress(gpa)).is_some() { &self.rom } else { &self.ram }
    }

    /// Writes `contents` to the shared side of `len` bytes at `gpa` and has `command` take them from there, at the
    /// address that it is told. However that ends, the plaintext is gone afterwards.
    pub fn give(
        &self,
        (gpa, len): (u64, u64),
        contents: &[u8],
        command: impl FnOnce(*mut u8) -> Result<(), LaunchError>,
    ) -> Result<(), LaunchError> {
        let outside = || LaunchError::PlanOutsideRam { gpa, len };
        let backing = self.backing(gpa);
        let length = usize::try_from(len).map_err(|_| outside())?;
        let slice = backing.get_slice(GuestAddress(gpa), length).map_err(|_| outside())?;
        backing.write_slice(contents, GuestAddress(gpa)).map_err(|_| outside())?;
        let host = slice.ptr_guard_mut().as_ptr();
        let result = command(host);
        discard(host, length)?;
        result
    }

    /// Reads the shared side, while a command is at it.
    pub fn shared_side(&self, gpa: u64, bytes: &mut [u8]) -> Result<(), LaunchError> {
        let len = bytes.len() as u64;
        let read = self.backing(gpa).read_slice(bytes, GuestAddress(gpa));
        read.map_err(|_| LaunchError::PlanOutsideRam { gpa, len })
    }

    /// The guest, once its launch is closed.
    pub fn guest(self) -> Guest {
        let Self { vm, vcpus, rom, ram, shared, ram_slots, rom_slots } = self;
        let memory = DeviceMemory::confidential(ram.clone(), shared.clone());
        let converter = Arc::new(Converter::new(vm.clone(), ram, shared, ram_slots));
        let backing = Backing { _rom: rom, _rom_slots: rom_slots };
        Guest { vm, vcpus, memory, converter: Some(converter), backing }
    }
}
