//! KVM_CHECK_EXTENSION: a table of what there is.

use kvm_bindings as k;

use super::tee::Offered;
use crate::machine::tee::Tee;
use crate::machine::vm::Vm;

/// vCPUs of a VM at most.
pub const MAX_VCPUS: i32 = 64;
/// Memslots of a VM at most.
pub const MAX_SLOTS: u32 = 512;
/// GSIs in the routing table at most.
pub const MAX_GSIS: u32 = 4096;

/// Capabilities whose answer does not depend on the descriptor.
const TABLE: &[(u32, i32)] = &[
    (k::KVM_CAP_IRQCHIP, 1),
    (k::KVM_CAP_USER_MEMORY, 1),
    (k::KVM_CAP_SET_TSS_ADDR, 1),
    (k::KVM_CAP_EXT_CPUID, 1),
    (k::KVM_CAP_CLOCKSOURCE, 1),
    (k::KVM_CAP_NR_VCPUS, 8),
    (k::KVM_CAP_NR_MEMSLOTS, MAX_SLOTS as i32),
    (k::KVM_CAP_PIT, 1),
    (k::KVM_CAP_NOP_IO_DELAY, 1),
    (k::KVM_CAP_MP_STATE, 1),
    (k::KVM_CAP_SYNC_MMU, 1),
    (k::KVM_CAP_DESTROY_MEMORY_REGION_WORKS, 1),
    (k::KVM_CAP_USER_NMI, 1),
    (k::KVM_CAP_PIT2, 1),
    (k::KVM_CAP_PIT_STATE2, 1),
    (k::KVM_CAP_JOIN_MEMORY_REGIONS_WORKS, 1),
    (k::KVM_CAP_IRQ_ROUTING, MAX_GSIS as i32),
    (k::KVM_CAP_IRQ_INJECT_STATUS, 1),
    (k::KVM_CAP_IRQFD, 1),
    (k::KVM_CAP_ADJUST_CLOCK, 0x8),
    (k::KVM_CAP_INTERNAL_ERROR_DATA, 1),
    (k::KVM_CAP_VCPU_EVENTS, 1),
    (k::KVM_CAP_DEBUGREGS, 1),
    (k::KVM_CAP_X86_ROBUST_SINGLESTEP, 1),
    (k::KVM_CAP_XSAVE, 1),
    (k::KVM_CAP_XSAVE2, 4096),
    (k::KVM_CAP_XCRS, 1),
    (k::KVM_CAP_IOEVENTFD, 1),
    (k::KVM_CAP_IOEVENTFD_NO_LENGTH, 1),
    (k::KVM_CAP_IOEVENTFD_ANY_LENGTH, 1),
    (k::KVM_CAP_SET_IDENTITY_MAP_ADDR, 1),
    (k::KVM_CAP_MCE, 10),
    (k::KVM_CAP_GET_TSC_KHZ, 1),
    (k::KVM_CAP_TSC_DEADLINE_TIMER, 1),
    (k::KVM_CAP_SIGNAL_MSI, 1),
    (k::KVM_CAP_READONLY_MEM, 1),
    (k::KVM_CAP_MAX_VCPUS, MAX_VCPUS),
    (k::KVM_CAP_MAX_VCPU_ID, MAX_VCPUS),
    (k::KVM_CAP_CHECK_EXTENSION_VM, 1),
    (k::KVM_CAP_ENABLE_CAP_VM, 1),
    (k::KVM_CAP_SPLIT_IRQCHIP, 1),
    (k::KVM_CAP_X2APIC_API, 3),
    (k::KVM_CAP_IMMEDIATE_EXIT, 1),
    (k::KVM_CAP_GET_MSR_FEATURES, 1),
    (k::KVM_CAP_EXIT_HYPERCALL, 1 << 12),
    (k::KVM_CAP_SREGS2, 1),
    (k::KVM_CAP_DEVICE_CTRL, 1),
    (k::KVM_CAP_USER_MEMORY2, 1),
    (k::KVM_CAP_MEMORY_FAULT_INFO, 1),
    (k::KVM_CAP_MEMORY_ATTRIBUTES, k::KVM_MEMORY_ATTRIBUTE_PRIVATE as i32),
    (k::KVM_CAP_GUEST_MEMFD, 1),
    (k::KVM_CAP_X86_APIC_BUS_CYCLES_NS, 1),
];

/// The answer to KVM_CHECK_EXTENSION; 0 for what there is not.
pub fn check(capability: u32) -> i32 {
    if capability == k::KVM_CAP_VM_TYPES {
        let tee = match super::tee::offered() {
            Offered::None => 0,
            Offered::Snp => 1 << k::KVM_X86_SNP_VM,
            Offered::Tdx => 1 << k::KVM_X86_TDX_VM,
        };
        return 1 << k::KVM_X86_DEFAULT_VM | 1 << k::KVM_X86_SW_PROTECTED_VM | tee;
    }
    TABLE.iter().find(|row| row.0 == capability).map_or(0, |row| row.1)
}

/// The answer of a VM, where it differs: a confidential guest's memory cannot be made read-only.
pub fn check_vm(vm: &Vm, capability: u32) -> i32 {
    let protected = !matches!(vm.tee, Tee::None);
    if protected && capability == k::KVM_CAP_READONLY_MEM { 0 } else { check(capability) }
}

#[cfg(test)]
mod tests {
    use super::TABLE;

    #[test]
    fn no_capability_has_two_answers() {
        let mut numbers: Vec<u32> = TABLE.iter().map(|row| row.0).collect();
        numbers.sort_unstable();
        assert!(numbers.windows(2).all(|pair| pair[0] != pair[1]));
    }
}
