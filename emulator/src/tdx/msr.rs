//! MSRs of a TD: a table of those that the module lets through, refuses, or virtualizes. Any other raises #VE.

use softkvm_cpu::{CpuState, Exception, Stop};

use super::ve::{self, reason};
use crate::machine::env::VcpuEnv;

/// What an access does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Action {
    /// As on the processor.
    Native,
    /// #VE.
    Ve,
    /// #GP(0).
    Gp,
    /// #VE if CPUID(1).ECX has TSC_DEADLINE, else #GP(0).
    Deadline,
    /// Reads as this.
    Value(u64),
    /// Writes must be zero.
    Zero,
    /// EFER: SCE may change, nothing else.
    Efer,
}

use Action::{Deadline, Efer, Gp, Native, Value, Ve, Zero};

/// First index, last index, read, write. Sorted; a test checks. The module's own table (include/auto_gen of its source,
/// "MSR virtualization") with its dynamic rows decided: no perfmon, WAITPKG, TSX, PKS, no XFAM component beyond SSE.
const TABLE: &[(u32, u32, Action, Action)] = &[
    (0x10, 0x10, Native, Ve),                   // IA32_TIME_STAMP_COUNTER
    (0x48, 0x49, Gp, Gp), // IA32_SPEC_CTRL, IA32_PRED_CMD: native, and not on this processor
    (0x87, 0x87, Gp, Gp), // IA32_MKTME_PARTITIONING
    (0x8c, 0x8f, Gp, Gp), // IA32_SGXLEPUBKEYHASHx
    (0x98, 0x9b, Gp, Gp), // WBINVDP, WBNOINVDP, INTR_PENDING, SMM_MONITOR_CTL
    (0x9e, 0x9e, Gp, Gp), // IA32_SMBASE
    (0xbd, 0xbd, Value(1), Gp), // IA32_XAPIC_DISABLE_STATUS: LEGACY_XAPIC_DISABLED
    (0xc1, 0xc8, Gp, Gp), // IA32_PMCx
    (0xe1, 0xe1, Gp, Gp), // IA32_UMWAIT_CONTROL
    (0x10a, 0x10a, Value(ARCHITECTURAL), Gp), // IA32_ARCH_CAPABILITIES
    (0x10b, 0x10b, Gp, Gp), // IA32_FLUSH_CMD
    (0x122, 0x122, Gp, Gp), // IA32_TSX_CTRL
    (0x174, 0x176, Native, Native), // IA32_SYSENTER_*
    (0x186, 0x18d, Gp, Gp), // IA32_PERFEVTSELx
    (0x195, 0x195, Gp, Gp), // IA32_OVERCLOCKING_STATUS
    (0x1a0, 0x1a0, Value(MISC_ENABLE), Ve), // IA32_MISC_ENABLE
    (0x1a6, 0x1a7, Gp, Gp), // MSR_OFFCORE_RSPx
    (0x1c4, 0x1c5, Gp, Gp), // IA32_XFD, IA32_XFD_ERR
    (0x1d9, 0x1d9, Value(0), Zero), // IA32_DEBUGCTL
    (0x1f8, 0x1fa, Gp, Gp), // IA32_*_DCA_CAP
    (0x276, 0x276, Gp, Gp), // MSR_SLAM_ENABLE
    (0x277, 0x277, Native, Native), // IA32_PAT
    (0x309, 0x310, Gp, Gp), // IA32_FIXED_CTRx
    (0x329, 0x329, Gp, Gp), // IA32_PERF_METRICS
    (0x345, 0x345, Value(0), Gp), // IA32_PERF_CAPABILITIES
    (0x38d, 0x392, Gp, Gp), // IA32_FIXED_CTR_CTRL, IA32_PERF_GLOBAL_*
    (0x3f1, 0x3f2, Gp, Gp), // PEBS
    (0x3f6, 0x3f7, Gp, Gp), // PEBS
    (0x480, 0x492, Gp, Gp), // IA32_VMX_*
    (0x4c1, 0x4c8, Gp, Gp), // IA32_A_PMCx
    (0x500, 0x500, Gp, Gp), // IA32_SGX_SVN_STATUS
    (0x560, 0x561, Gp, Gp), // IA32_RTIT_*
    (0x570, 0x572, Gp, Gp), // IA32_RTIT_*
    (0x580, 0x587, Gp, Gp), // IA32_RTIT_ADDR*
    (0x600, 0x600, Gp, Gp), // IA32_DS_AREA: native, and not on this processor
    (0x6a0, 0x6a0, Gp, Gp), // IA32_U_CET
    (0x6a2, 0x6a2, Gp, Gp), // IA32_S_CET
    (0x6a4, 0x6a8, Gp, Gp), // shadow stacks
    (0x6e0, 0x6e0, Deadline, Deadline), // IA32_TSC_DEADLINE
    (0x6e1, 0x6e1, Gp, Gp), // IA32_PKRS
    (0x800, 0x801, Gp, Gp), // reserved
    (0x804, 0x807, Gp, Gp), // reserved
    (0x808, 0x80c, Native, Native), // x2APIC TPR, PPR, EOI
    (0x80e, 0x80e, Native, Native), // reserved
    (0x810, 0x827, Native, Native), // x2APIC ISR, TMR, IRR
    (0x829, 0x82e, Gp, Gp), // reserved
    (0x831, 0x831, Gp, Gp), // reserved
    (0x83f, 0x83f, Native, Native), // x2APIC SELF_IPI
    (0x840, 0x8ff, Gp, Gp), // reserved
    (0x981, 0x984, Gp, Gp), // IA32_TME_*
    (0x985, 0x98a, Gp, Gp), // IA32_UINTR_*
    (0xc80, 0xc80, Value(0), Ve), // IA32_DEBUG_INTERFACE
    (0xd90, 0xd90, Gp, Gp), // IA32_BNDCFGS
    (0xd93, 0xd93, Gp, Gp), // IA32_PASID
    (0xda0, 0xda0, Value(0), Zero), // IA32_XSS: nothing that XFAM allows
    (0x1200, 0x12ff, Gp, Gp), // IA32_LBR_INFO
    (0x14ce, 0x14cf, Gp, Gp), // IA32_LBR_CTL, IA32_LBR_DEPTH
    (0x1500, 0x16ff, Gp, Gp), // IA32_LBR_x_FROM_IP, IA32_LBR_x_TO_IP
    (0x1b01, 0x1b01, Gp, Gp), // IA32_UARCH_MISC_CTL: native, and not on this processor
    (0xc000_0080, 0xc000_0080, Native, Efer), // IA32_EFER
    (0xc000_0081, 0xc000_0082, Native, Native), // IA32_STAR, IA32_LSTAR
    (0xc000_0084, 0xc000_0084, Native, Native), // IA32_FMASK
    (0xc000_0100, 0xc000_0103, Native, Native), // FS, GS, kernel GS base, TSC_AUX
];

/// RDCL_NO, SKIP_L1DFL_VMENTRY, SSB_NO, MDS_NO, PSCHANGE_MC_NO, TAA_NO, SBDR_SSDP_NO, FBSDP_NO, PSDP_NO, BHI_NO, PBRSB_NO,
/// GDS_NO, RFDS_NO: an interpreter has none of these faults. Not IBRS_ALL, which promises IA32_SPEC_CTRL.
const ARCHITECTURAL: u64 =
    1 | 1 << 3 | 1 << 4 | 1 << 5 | 1 << 6 | 1 << 8 | 7 << 13 | 1 << 20 | 1 << 24 | 1 << 26 | 1 << 27;
/// Fast strings; BTS and PEBS unavailable.
const MISC_ENABLE: u64 = 1 | 1 << 11 | 1 << 12;

fn action(index: u32, write: bool) -> Action {
    TABLE
        .iter()
        .find(|row| (row.0..=row.1).contains(&index))
        .map_or(Ve, |row| if write { row.3 } else { row.2 })
}

const GP: Stop = Stop::Fault(Exception::GP0);

fn ve<T>(env: &mut VcpuEnv<'_>, cpu: &CpuState, write: bool) -> Result<T, Stop> {
    ve::instruction(env.ctx, cpu, if write { reason::MSR_WRITE } else { reason::MSR_READ }, 0)
}

fn deadline<T>(env: &mut VcpuEnv<'_>, cpu: &CpuState, write: bool) -> Result<T, Stop> {
    let offered = env.ctx.vm.tdx().and_then(|t| t.parameters()).is_some_and(|p| p.cpuid.tsc_deadline());
    if offered { ve(env, cpu, write) } else { Err(GP) }
}

/// RDMSR of an MSR that the core does not own.
pub fn rdmsr(env: &mut VcpuEnv<'_>, cpu: &CpuState, index: u32) -> Result<u64, Stop> {
    match action(index, false) {
        Native => env.machine_rdmsr(index).ok_or(GP),
        Value(value) => Ok(value),
        Deadline => deadline(env, cpu, false),
        Ve => ve(env, cpu, false),
        Gp | Zero | Efer => Err(GP),
    }
}

/// WRMSR of an MSR that the core does not own.
pub fn wrmsr(env: &mut VcpuEnv<'_>, cpu: &CpuState, index: u32, value: u64) -> Result<(), Stop> {
    match action(index, true) {
        Native if env.machine_wrmsr(index, value)? => Ok(()),
        Zero if value == 0 => Ok(()),
        Deadline => deadline(env, cpu, true),
        Ve => ve(env, cpu, true),
        Native | Zero | Gp | Efer | Value(_) => Err(GP),
    }
}

/// An MSR that the core owns is about to be accessed.
pub fn intercept(env: &mut VcpuEnv<'_>, cpu: &CpuState, index: u32, write: Option<u64>) -> Result<(), Stop> {
    /// LMA is read-only, SCE the guest's.
    const FREE: u64 = 1 | 1 << 10;
    match (action(index, write.is_some()), write) {
        (Native, _) => Ok(()),
        (Efer, Some(value)) if (value ^ cpu.efer) & !FREE == 0 => Ok(()),
        (Efer | Ve, _) => ve(env, cpu, write.is_some()),
        _ => Err(GP),
    }
}

/// MSRs that KVM emulates for a TD that asks with TDVMCALL; any other is refused (`tdx_has_emulated_msr`).
const EMULATED: &[(u32, u32)] = &[
    (0x1b, 0x1b),               // IA32_APIC_BASE
    (0x3a, 0x3a),               // IA32_FEAT_CTL
    (0x8b, 0x8b),               // IA32_BIOS_SIGN_ID
    (0xce, 0xce),               // MSR_PLATFORM_INFO
    (0xfe, 0xfe),               // MTRRcap
    (0x10a, 0x10a),             // IA32_ARCH_CAPABILITIES
    (0x140, 0x140),             // MSR_MISC_FEATURES_ENABLES
    (0x179, 0x17b),             // MCG
    (0x1a0, 0x1a0),             // IA32_MISC_ENABLE
    (0x1fc, 0x1fc),             // MSR_IA32_POWER_CTL
    (0x200, 0x26f),             // MTRRs
    (0x277, 0x277),             // IA32_PAT
    (0x280, 0x29f),             // IA32_MCx_CTL2
    (0x2ff, 0x2ff),             // MTRRdefType
    (0x400, 0x47f),             // machine-check banks
    (0x6e0, 0x6e0),             // IA32_TSC_DEADLINE
    (0x800, 0x807),             // x2APIC up to TPR,
    (0x80c, 0x80f),             // between EOI and ISR,
    (0x828, 0x8ff),             // and after IRR
    (0x4b56_4d05, 0x4b56_4d05), // MSR_KVM_POLL_CONTROL
    (0xc000_0080, 0xc000_0080), // IA32_EFER
];

/// Constants of KVM that no other guest here asks for.
const CONSTANT: &[(u32, u64)] = &[
    (0x3a, 1), // locked, nothing enabled
    (0xce, 0),
    (0x10a, ARCHITECTURAL),
    (0x140, 0),
    (0x1fc, 0),
    (0x4b56_4d05, 1),
];

fn emulated(index: u32) -> bool {
    EMULATED.iter().any(|(first, last)| (*first..=*last).contains(&index))
}

/// KVM's RDMSR for a TD, by TDVMCALL or by KVM_GET_MSRS; `None` is an error.
pub fn kvm_read(env: &mut VcpuEnv<'_>, index: u32) -> Option<u64> {
    if !emulated(index) {
        return None;
    }
    CONSTANT.iter().find(|row| row.0 == index).map(|row| row.1).or_else(|| env.machine_rdmsr(index))
}

/// KVM's WRMSR for a TD; `Ok(false)` is an error.
pub fn kvm_write(env: &mut VcpuEnv<'_>, index: u32, value: u64) -> Result<bool, Stop> {
    let read_only = matches!(index, 0x1b | 0x3a | 0xc000_0080);
    if read_only || !emulated(index) {
        return Ok(false);
    }
    if CONSTANT.iter().any(|row| row.0 == index) {
        return Ok(true);
    }
    env.machine_wrmsr(index, value)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_tables_are_sorted_and_disjoint() {
        for pair in TABLE.windows(2) {
            assert!(
                pair[0].0 <= pair[0].1 && pair[0].1 < pair[1].0,
                "{:x} before {:x}",
                pair[0].0,
                pair[1].0
            );
        }
        for pair in EMULATED.windows(2) {
            assert!(
                pair[0].1 < pair[1].0 || pair[1].0 == 0xc000_0080,
                "{:x} before {:x}",
                pair[0].0,
                pair[1].0
            );
        }
        assert!(CONSTANT.iter().all(|row| emulated(row.0)));
    }

    #[test]
    fn unlisted_msrs_raise_ve_and_listed_ones_do_as_the_module_says() {
        for (index, read, write) in [
            (0x1b, Ve, Ve),
            (0x3b, Ve, Ve),
            (0x80b, Native, Native),
            (0x830, Ve, Ve),
            (0xc000_0083, Ve, Ve),
            (0x480, Gp, Gp),
            (0x4b56_4d00, Ve, Ve),
        ] {
            assert_eq!((action(index, false), action(index, true)), (read, write), "{index:#x}");
        }
    }
}
