//! A guest without confidentiality: plain memory slots, the ROM copied to below 4 GiB.

use std::sync::Arc;

use kvm_bindings::KVM_X86_DEFAULT_VM;
use kvm_ioctls::Kvm;
use vm_memory::{Bytes, GuestAddress};

use super::{Backing, Call, Guest, LaunchError, RAM_SLOT, ROM_SLOT, cpuid, create_vcpu, create_vm, reset};
use crate::config::VmConfig;
use crate::layout::{IDENTITY_MAP, ROM_END, TSS};
use crate::memory::{DeviceMemory, MemoryError, add_plain_slots, map_ram, ram_ranges};

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
