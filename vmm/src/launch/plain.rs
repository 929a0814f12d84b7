//! A guest without confidentiality: plain memory slots, the ROM copied to below 4 GiB.

use std::sync::Arc;

use cloister_attestation::abi::{RESET_PORT, RESET_VALUE};
use kvm_bindings::KVM_X86_DEFAULT_VM;
use kvm_ioctls::Kvm;
use vm_memory::{Bytes, GuestAddress};

use super::{Backing, Call, Guest, LaunchError, RAM_SLOT, ROM_SLOT, cpuid, create_vcpu, create_vm, reset};
use crate::config::VmConfig;
use crate::layout::{IDENTITY_MAP, ROM_END, TSS};
use crate::memory::{DeviceMemory, MemoryError, add_plain_slots, map_ram, ram_ranges};

/// FFFF:0, where a PC's firmware starts, and where Linux jumps as its last way to reset. Memory up to 1 MiB is a PC's ROM there: kernels
/// leave it alone.
const BIOS_RESET_VECTOR: u64 = 0xf_fff0;
/// mov dx, RESET_PORT; mov al, RESET_VALUE; out dx, al; hlt; jmp to the hlt.
const RESET_CODE: [u8; 9] = {
    let [low, high] = RESET_PORT.to_le_bytes();
    [0xba, low, high, 0xb0, RESET_VALUE, 0xee, 0xf4, 0xeb, 0xfd]
};

pub(super) fn launch(kvm: &Kvm, config: &VmConfig) -> Result<Guest, LaunchError> {
    let vm = create_vm(kvm, u64::from(KVM_X86_DEFAULT_VM))?;
    vm.set_identity_map_address(IDENTITY_MAP).call("KVM_SET_IDENTITY_MAP_ADDR")?;
    vm.set_tss_address(TSS).call("KVM_SET_TSS_ADDR")?;

    let base = ROM_END - config.firmware.len() as u64;
    let rom = map_ram(std::slice::from_ref(&(base..ROM_END)))?;
    let copied = rom.write_slice(&config.firmware, GuestAddress(base));
    copied.map_err(|error| MemoryError::Map { reason: error.to_string() })?;
    add_plain_slots(&vm, &rom, ROM_SLOT)?;
    let ram = map_ram(&ram_ranges(config.memory))?;
    add_plain_slots(&vm, &ram, RAM_SLOT)?;
    let vector = ram.write_slice(&RESET_CODE, GuestAddress(BIOS_RESET_VECTOR));
    vector.map_err(|error| MemoryError::Map { reason: error.to_string() })?;

    let supported = cpuid::supported(kvm)?;
    let mut vcpus = Vec::new();
    for index in 0..config.cpus {
        let (vcpu, signature) = create_vcpu(&vm, &supported, (index, config.cpus), cpuid::Masks::Plain)?;
        reset::set_reset_state(&vcpu, reset::RESET_VECTOR, signature)?;
        vcpus.push(vcpu);
    }
    let memory = DeviceMemory::plain(ram);
    let backing = Backing { _rom: rom, _rom_slots: Vec::new() };
    Ok(Guest { vm: Arc::new(vm), vcpus, memory, converter: None, backing })
}
