//! The state of a vCPU at reset, set explicitly so that nothing of it is left to KVM's defaults.
//!
//! For SNP this is what KVM builds the measured VMSAs from: it must match
//! `cloister_attestation::measure::snp::Vmsa::at_reset`, which adds what KVM adds (EFER.SVME, CR4.MCE).

use cloister_attestation::abi::memory_types;
use kvm_bindings::{CpuId, Msrs, kvm_dtable, kvm_fpu, kvm_msr_entry, kvm_regs, kvm_segment, kvm_sregs};
use kvm_ioctls::VcpuFd;

use super::{Call, LaunchError, cpuid};

/// Linear address of a boot processor's first instruction.
pub const RESET_VECTOR: u32 = 0xffff_fff0;

/// Segment types (AMD APM volume 2, 4.7 and 4.8).
const TYPE_DATA_RW_ACCESSED: u8 = 0x3;
const TYPE_CODE_RX_ACCESSED: u8 = 0xb;
const TYPE_LDT: u8 = 0x2;
const TYPE_TSS32_BUSY: u8 = 0xb;

const CR0_AT_RESET: u64 = 0x6000_0010;
const RFLAGS_AT_RESET: u64 = 0x2;
const MXCSR_AT_RESET: u32 = 0x1f80;
const FCW_AT_RESET: u16 = 0x37f;

fn segment(selector: u16, base: u64, type_: u8, s: u8) -> kvm_segment {
    kvm_segment { selector, base, limit: 0xffff, type_, s, present: 1, ..Default::default() }
}

/// Puts `vcpu` into the state of a processor that starts at linear address `eip`.
pub fn set_reset_state(vcpu: &VcpuFd, eip: u32, signature: u32) -> Result<(), LaunchError> {
    let before = vcpu.get_sregs().call("KVM_GET_SREGS")?;
    vcpu.set_sregs(&sregs(eip, &before)).call("KVM_SET_SREGS")?;
    let rip = u64::from(eip & 0xffff);
    let regs = kvm_regs { rip, rdx: u64::from(signature), rflags: RFLAGS_AT_RESET, ..Default::default() };
    vcpu.set_regs(&regs).call("KVM_SET_REGS")?;
    let fpu = kvm_fpu { fcw: FCW_AT_RESET, mxcsr: MXCSR_AT_RESET, ..Default::default() };
    vcpu.set_fpu(&fpu).call("KVM_SET_FPU")
}

/// Sets the MTRRs as the firmware sets the boot processor's. The others never run it, and Linux 6.1 complains of a BIOS that
/// did not set up all.
pub fn set_memory_types(vcpu: &VcpuFd, cpuid: &CpuId) -> Result<(), LaunchError> {
    let address_bits = cpuid::leaf(cpuid, 0x8000_0008).map_or(36, |entry| entry.eax & 0xff);
    let entries =
        memory_types(address_bits).map(|(index, data)| kvm_msr_entry { index, data, ..Default::default() });
    let msrs = Msrs::from_entries(&entries).map_err(|_| LaunchError::MemoryType { index: 0 })?;
    let set = vcpu.set_msrs(&msrs).call("KVM_SET_MSRS")?;
    // KVM stops at the first that it refuses.
    entries.get(set).map_or(Ok(()), |refused| Err(LaunchError::MemoryType { index: refused.index }))
}

/// The system registers; the APIC's base is KVM's to choose.
fn sregs(eip: u32, before: &kvm_sregs) -> kvm_sregs {
    let data = segment(0, 0, TYPE_DATA_RW_ACCESSED, 1);
    let table = kvm_dtable { base: 0, limit: 0xffff, ..Default::default() };
    kvm_sregs {
        cs: segment(0xf000, u64::from(eip & 0xffff_0000), TYPE_CODE_RX_ACCESSED, 1),
        ds: data,
        es: data,
        fs: data,
        gs: data,
        ss: data,
        tr: segment(0, 0, TYPE_TSS32_BUSY, 0),
        ldt: segment(0, 0, TYPE_LDT, 0),
        gdt: table,
        idt: table,
        cr0: CR0_AT_RESET,
        cr2: 0,
        cr3: 0,
        cr4: 0,
        cr8: 0,
        efer: 0,
        apic_base: before.apic_base,
        interrupt_bitmap: [0; 4],
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use cloister_attestation::measure::snp::{Segment, VcpuModel, VmmFlavour, Vmsa};

    /// The VMCB form of a segment's attributes: type, S, DPL, P in the low byte.
    fn attrib(segment: &kvm_segment) -> u16 {
        u16::from(segment.type_ | segment.s << 4 | segment.dpl << 5 | segment.present << 7)
    }

    #[test]
    fn the_reset_state_is_the_one_that_is_measured() {
        for eip in [RESET_VECTOR, 0x0080_b004] {
            let vmsa = Vmsa::at_reset(VmmFlavour::Cloister, eip, VcpuModel(0xa10f10), 1);
            let sregs = sregs(eip, &kvm_sregs::default());
            let same = |ours: &kvm_segment, measured: &Segment| {
                assert_eq!(ours.selector, measured.selector.get());
                assert_eq!(ours.base, measured.base.get());
                assert_eq!(ours.limit, measured.limit.get());
                assert_eq!(attrib(ours), measured.attrib.get());
            };
            for (ours, measured) in [
                (&sregs.cs, &vmsa.cs),
                (&sregs.ds, &vmsa.ds),
                (&sregs.es, &vmsa.es),
                (&sregs.fs, &vmsa.fs),
                (&sregs.gs, &vmsa.gs),
                (&sregs.ss, &vmsa.ss),
                (&sregs.tr, &vmsa.tr),
                (&sregs.ldt, &vmsa.ldtr),
            ] {
                same(ours, measured);
            }
            assert_eq!(u32::from(sregs.gdt.limit), vmsa.gdtr.limit.get());
            // KVM clears CD and NW on SVM, and sets CR4.MCE and EFER.SVME.
            assert_eq!(sregs.cr0 & !0x6000_0000, vmsa.cr0.get());
            assert_eq!(sregs.cr4 | 0x40, vmsa.cr4.get());
            assert_eq!(sregs.efer | 0x1000, vmsa.efer.get());
            assert_eq!(u64::from(eip & 0xffff), vmsa.rip.get());
            assert_eq!(RFLAGS_AT_RESET, vmsa.rflags.get());
            assert_eq!((MXCSR_AT_RESET, FCW_AT_RESET), (vmsa.mxcsr.get(), vmsa.x87_fcw.get()));
        }
    }
}
