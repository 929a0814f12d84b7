//! The guest's CPUID: what KVM supports, made specific to each vCPU, without what a kind of guest cannot have.
//!
//! The CPUID instruction is never executed here: KVM knows the machine, this process may run elsewhere.

use kvm_bindings::{CpuId, KVM_MAX_CPUID_ENTRIES, kvm_cpuid_entry2};
use kvm_ioctls::{Cap, Kvm};

use super::{Call, LaunchError};

/// Which features are hidden from the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Masks {
    /// Memory encryption.
    Plain,
    /// What the SNP firmware refuses in a CPUID page.
    Snp,
    /// Memory encryption that is not TDX's, and what KVM itself cannot give a TD.
    Td,
}

/// A register of a CPUID leaf.
#[derive(Clone, Copy)]
enum Register {
    Eax,
    Ebx,
    Ecx,
    Edx,
}

impl Register {
    fn of(self, entry: &mut kvm_cpuid_entry2) -> &mut u32 {
        match self {
            Self::Eax => &mut entry.eax,
            Self::Ebx => &mut entry.ebx,
            Self::Ecx => &mut entry.ecx,
            Self::Edx => &mut entry.edx,
        }
    }
}

/// Features that need the host to emulate what it cannot do for an SNP guest; the firmware refuses a page
/// that offers them (QEMU masks the same).
const SNP_HIDDEN: &[(u32, u32, Register, u32)] = &[
    (0x1, 0, Register::Ecx, TSC_DEADLINE),
    (0x7, 0, Register::Ebx, 1 << 1), // TSC_ADJUST
    (0x7, 0, Register::Edx, 1 << 26 | 1 << 27 | 1 << 28 | 1 << 29), // SPEC_CTRL, STIBP, FLUSH_L1D, ARCH_CAPABILITIES
    (0x7, 0, Register::Edx, 1 << 30 | 1 << 31),                     // CORE_CAPABILITIES, SSBD
    (0x8000_0008, 0, Register::Ebx, 1 << 25),                       // VIRT_SSBD
    (0x8000_0021, 0, Register::Eax, 1 << 9),                        // NO_SMM_CTL_MSR
    (0x8000_0021, 0, Register::Ecx, u32::MAX),
];
/// KVM's paravirtual features that a TD has no use for: those that need an MSR that KVM does not emulate for TDs, a clock
/// above all (Linux `tdx_has_emulated_msr`; QEMU masks the same).
const TD_HIDDEN: &[(u32, u32, Register, u32)] = &[(0x4000_0001, 0, Register::Eax, !TD_KVM_FEATURES)];
/// NOP_IO_DELAY, PV_UNHALT, PV_TLB_FLUSH, PV_SEND_IPI, POLL_CONTROL, PV_SCHED_YIELD, MSI_EXT_DEST_ID.
const TD_KVM_FEATURES: u32 = 1 << 1 | 1 << 7 | 1 << 9 | 1 << 11 | 1 << 12 | 1 << 13 | 1 << 15;

impl Masks {
    /// Feature bits that such a guest does not see.
    const fn hidden(self) -> &'static [(u32, u32, Register, u32)] {
        match self {
            Self::Plain => &[],
            Self::Snp => SNP_HIDDEN,
            Self::Td => TD_HIDDEN,
        }
    }

    /// Leaves that such a guest does not get at all.
    const fn dropped(self) -> &'static [u32] {
        match self {
            // A guest that sees SEV reads MSR C001_0131 before it can handle an exception, and KVM has none for it.
            Self::Plain | Self::Td => &[0x8000_001f],
            // Extended topology of the host.
            Self::Snp => &[0x8000_0026],
        }
    }
}

/// The leaves of the extended topology (Intel SDM, AMD APM volume 3 appendix E.3).
const TOPOLOGY_LEAVES: &[u32] = &[0xb, 0x1f];
const LEVEL_THREAD: u32 = 1;
const LEVEL_CORE: u32 = 2;

/// Leaf 1, ECX.
const TSC_DEADLINE: u32 = 1 << 24;

/// What KVM can give a guest.
pub fn supported(kvm: &Kvm) -> Result<CpuId, LaunchError> {
    let mut cpuid = kvm.get_supported_cpuid(KVM_MAX_CPUID_ENTRIES).call("KVM_GET_SUPPORTED_CPUID")?;
    // KVM never lists it: it is the local APIC's, and a capability of its own.
    if kvm.check_extension(Cap::TscDeadlineTimer) {
        let leaf_1 = cpuid.as_mut_slice().iter_mut().filter(|entry| entry.function == 1);
        leaf_1.for_each(|entry| entry.ecx |= TSC_DEADLINE);
    }
    Ok(cpuid)
}

/// CPUID Fn0000_0001_EAX.
pub fn signature(cpuid: &CpuId) -> u32 {
    leaf(cpuid, 1).map_or(0, |entry| entry.eax)
}

/// A leaf; the first subleaf, if it has several.
pub fn leaf(cpuid: &CpuId, function: u32) -> Option<&kvm_cpuid_entry2> {
    cpuid.as_slice().iter().find(|entry| entry.function == function)
}

/// The CPUID of vCPU `index` of `cpus`: one package of single-threaded cores.
pub fn for_vcpu(supported: &CpuId, index: u32, cpus: u32, masks: Masks) -> Result<CpuId, LaunchError> {
    let mut entries = Vec::new();
    for entry in supported.as_slice() {
        let mut entry = *entry;
        if TOPOLOGY_LEAVES.contains(&entry.function) {
            // Replaced as a whole below, once per leaf.
            if entry.index == 0 {
                entries.extend(topology(entry.function, index, cpus));
            }
            continue;
        }
        if masks.dropped().contains(&entry.function) {
            continue;
        }
        specialise(&mut entry, index, cpus);
        entries.push(entry);
    }
    for (function, sub_leaf, register, bits) in masks.hidden() {
        for entry in &mut entries {
            if (entry.function, entry.index) == (*function, *sub_leaf) {
                *register.of(entry) &= !bits;
            }
        }
    }
    CpuId::from_entries(&entries)
        .map_err(|_| LaunchError::Missing("a CPUID table of a size that it accepts itself"))
}

/// Bits of APIC identifier that `cpus` cores need.
fn core_bits(cpus: u32) -> u32 {
    cpus.next_power_of_two().trailing_zeros()
}

fn topology(function: u32, apic_id: u32, cpus: u32) -> [kvm_cpuid_entry2; 3] {
    let level = |index: u32, shift: u32, count: u32, kind: u32| kvm_cpuid_entry2 {
        function,
        index,
        flags: kvm_bindings::KVM_CPUID_FLAG_SIGNIFCANT_INDEX,
        eax: shift,
        ebx: count,
        ecx: kind << 8 | index,
        edx: apic_id,
        ..Default::default()
    };
    [level(0, 0, 1, LEVEL_THREAD), level(1, core_bits(cpus), cpus, LEVEL_CORE), level(2, 0, 0, 0)]
}

fn specialise(entry: &mut kvm_cpuid_entry2, apic_id: u32, cpus: u32) {
    const X2APIC: u32 = 1 << 21;
    const HYPERVISOR: u32 = 1 << 31;
    const HTT: u32 = 1 << 28;
    match (entry.function, entry.index) {
        (0x1, _) => {
            let logical = cpus.min(255);
            entry.ebx = (entry.ebx & 0xffff) | logical << 16 | (apic_id & 0xff) << 24;
            entry.ecx |= X2APIC | HYPERVISOR;
            entry.edx = if cpus > 1 { entry.edx | HTT } else { entry.edx & !HTT };
        }
        (0x8000_0008, _) => entry.ecx = core_bits(cpus) << 12 | (cpus - 1).min(255),
        (0x8000_001e, _) => {
            entry.eax = apic_id;
            entry.ebx = apic_id & 0xff; // one thread per core, core number
            entry.ecx = 0; // one node
        }
        // Intel's deterministic cache parameters: sharing and core counts are the host's otherwise.
        (0x4, _) if entry.eax & 0x1f != 0 => {
            entry.eax = (entry.eax & 0x3fff) | (cpus - 1).min(63) << 26;
        }
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn leaf(cpuid: &CpuId, function: u32, index: u32) -> kvm_cpuid_entry2 {
        *cpuid.as_slice().iter().find(|e| (e.function, e.index) == (function, index)).unwrap()
    }

    fn host() -> CpuId {
        let all_ones = |function: u32| kvm_cpuid_entry2 {
            function,
            eax: u32::MAX,
            ebx: u32::MAX,
            ecx: u32::MAX,
            edx: u32::MAX,
            ..Default::default()
        };
        let functions = [
            0x1,
            0x4,
            0x7,
            0xb,
            0x4000_0001,
            0x8000_0008,
            0x8000_001e,
            0x8000_001f,
            0x8000_0021,
            0x8000_0026,
        ];
        CpuId::from_entries(&functions.map(all_ones)).unwrap()
    }

    #[test]
    fn each_vcpu_is_a_core_of_one_package() {
        for (cpus, bits) in [(1, 0), (2, 1), (3, 2), (8, 3)] {
            for index in 0..cpus {
                let cpuid = for_vcpu(&host(), index, cpus, Masks::Plain).unwrap();
                assert_eq!(leaf(&cpuid, 1, 0).ebx >> 16, index << 8 | cpus);
                assert_eq!(leaf(&cpuid, 0xb, 0).edx, index);
                let core = leaf(&cpuid, 0xb, 1);
                assert_eq!((core.eax, core.ebx, core.ecx), (bits, cpus, 0x201));
                assert_eq!(leaf(&cpuid, 0x8000_001e, 0).eax, index);
                assert_eq!(leaf(&cpuid, 0x8000_0008, 0).ecx, bits << 12 | (cpus - 1));
            }
        }
    }

    #[test]
    fn only_an_snp_guest_is_told_of_memory_encryption() {
        for (masks, told) in [(Masks::Plain, false), (Masks::Snp, true), (Masks::Td, false)] {
            let cpuid = for_vcpu(&host(), 0, 1, masks).unwrap();
            let there = cpuid.as_slice().iter().any(|entry| entry.function == 0x8000_001f);
            assert_eq!(there, told, "{masks:?}");
        }
    }

    #[test]
    fn an_snp_guest_is_offered_nothing_that_its_firmware_refuses() {
        let plain = for_vcpu(&host(), 0, 1, Masks::Plain).unwrap();
        let snp = for_vcpu(&host(), 0, 1, Masks::Snp).unwrap();
        assert_eq!(leaf(&snp, 1, 0).ecx & 1 << 24, 0);
        assert_eq!(leaf(&snp, 7, 0).ebx, !(1 << 1));
        assert_eq!(leaf(&snp, 7, 0).edx, 0x03ff_ffff);
        assert_eq!(leaf(&snp, 0x8000_0008, 0).ebx, !(1 << 25));
        assert_eq!(leaf(&snp, 0x8000_0021, 0).ecx, 0);
        assert!(snp.as_slice().iter().all(|entry| entry.function != 0x8000_0026));
        assert_eq!(leaf(&plain, 7, 0).edx, u32::MAX);
    }

    #[test]
    fn a_td_is_offered_no_clock_of_kvms() {
        let offered = |masks| {
            let cpuid = for_vcpu(&host(), 0, 1, masks).unwrap();
            leaf(&cpuid, 0x4000_0001, 0).eax
        };
        assert_eq!((offered(Masks::Plain), offered(Masks::Td)), (u32::MAX, 0xba82));
    }
}
