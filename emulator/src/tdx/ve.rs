//! #VE: what the module turns into a virtualization exception, and VE_INFO.

use softkvm_cpu::{Access, CpuState, Exception, PageRequest, Stop};

use crate::machine::ctx::Ctx;
use crate::machine::tee::Intercept;

/// VMX exit reasons (Intel SDM volume 3, appendix "VMX Basic Exit Reasons").
pub mod reason {
    macro_rules! reasons {
        ($($name:ident = $number:literal)*) => {
            $(pub const $name: u32 = $number;)*
            /// All of them, by name.
            #[cfg(test)]
            pub const ALL: &[(&str, u32)] = &[$((stringify!($name), $name)),*];
        };
    }

    reasons! {
        CPUID = 10
        HLT = 12
        INVD = 13
        VMCALL = 18
        CR_ACCESS = 28
        IO = 30
        MSR_READ = 31
        MSR_WRITE = 32
        MWAIT = 36
        MONITOR = 39
        EPT_VIOLATION = 48
        WBINVD = 54
    }
}

/// VE_INFO, as TDG.VP.VEINFO.GET returns it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Info {
    /// Not yet read by the guest.
    pub valid: bool,
    /// Exit reason.
    pub reason: u32,
    /// Exit qualification.
    pub qualification: u64,
    /// Guest-linear address of an EPT violation.
    pub gla: u64,
    /// Guest-physical address of an EPT violation, with the shared bit.
    pub gpa: u64,
    /// Instruction length.
    pub length: u8,
}

const VE: u8 = 20;
const DF: Exception = Exception { vector: 8, error: Some(0), cr2: None };

/// Injects #VE. A second one before the guest has read VE_INFO is a double fault.
fn inject<T>(ctx: &mut Ctx, cpu: &CpuState, info: Info) -> Result<T, Stop> {
    if ctx.tdx.ve.valid {
        return Err(Stop::Fault(DF));
    }
    ctx.tdx.ve = Info { valid: true, length: cpu.instruction_length, ..info };
    Err(Stop::Fault(Exception::bare(VE)))
}

/// #VE of an instruction.
pub fn instruction<T>(ctx: &mut Ctx, cpu: &CpuState, reason: u32, qualification: u64) -> Result<T, Stop> {
    inject(ctx, cpu, Info { reason, qualification, ..Info::default() })
}

/// #VE of an access: MMIO on a shared address, or a private page that waits for acceptance.
pub fn ept_violation<T>(ctx: &mut Ctx, cpu: &CpuState, request: &PageRequest) -> Result<T, Stop> {
    const LINEAR_VALID: u64 = 1 << 7;
    /// The access was to the final address, not to a page table.
    const FINAL: u64 = 1 << 8;
    let access = match request.access {
        Access::Read => 1,
        Access::Write => 1 << 1,
        Access::Execute => 1 << 2,
    };
    let shared = ctx.vm.tdx().and_then(|tdx| tdx.parameters()).map_or(0, |p| p.gpaw.shared_mask());
    let info = Info {
        reason: reason::EPT_VIOLATION,
        qualification: access | LINEAR_VALID | if request.walk { 0 } else { FINAL },
        gla: request.gva,
        gpa: request.gpa | if request.private { 0 } else { shared },
        ..Info::default()
    };
    inject(ctx, cpu, info)
}

/// Exit qualification of an I/O instruction (Intel SDM volume 3, "Exit Qualification for I/O Instructions").
fn port_qualification(port: u16, bytes: u8, input: bool, string: bool) -> u64 {
    u64::from(bytes - 1) | u64::from(input) << 3 | u64::from(string) << 4 | u64::from(port) << 16
}

/// What becomes of an instruction that the module intercepts, or does not.
pub fn intercept(ctx: &mut Ctx, cpu: &CpuState, what: Intercept) -> Result<(), Stop> {
    let (reason, qualification) = match what {
        // A TD's LAPIC is in x2APIC mode; CPUID has its own way.
        Intercept::Apic | Intercept::Cpuid | Intercept::Dr7 { .. } => return Ok(()),
        Intercept::Rdpmc => return Err(Stop::Fault(Exception::GP0)),
        Intercept::Vmcall { intel: false } => return Err(Stop::Fault(Exception::UD)),
        Intercept::Port { port, bytes, input, string } => {
            (reason::IO, port_qualification(port, bytes, input, string))
        }
        Intercept::Hlt => (reason::HLT, 0),
        Intercept::Monitor => (reason::MONITOR, 0),
        Intercept::Mwait => (reason::MWAIT, 0),
        Intercept::Invd => (reason::INVD, 0),
        Intercept::Wbinvd => (reason::WBINVD, 0),
        Intercept::Vmcall { intel: true } => (reason::VMCALL, 0),
    };
    instruction(ctx, cpu, reason, qualification)
}

/// CR0.PE and CR4.MCE stay set, CR0.CD and CR0.NW clear: #VE; CR0.NE stays set: #GP (VMX does not run without it).
pub fn cr_write(ctx: &mut Ctx, cpu: &CpuState, cr: u8, value: u64) -> Result<(), Stop> {
    const PE: u64 = 1 << 0;
    const NE: u64 = 1 << 5;
    const NW_CD: u64 = 3 << 29;
    const MCE: u64 = 1 << 6;
    match cr {
        0 if value & NE == 0 => Err(Stop::Fault(Exception::GP0)),
        0 if value & PE == 0 || value & NW_CD != 0 => instruction(ctx, cpu, reason::CR_ACCESS, 0),
        4 if value & MCE == 0 => instruction(ctx, cpu, reason::CR_ACCESS, 4),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::port_qualification;

    #[test]
    fn the_io_qualification_has_the_fields_where_guests_look() {
        assert_eq!(port_qualification(0x3f8, 1, false, false), 0x03f8_0000);
        assert_eq!(port_qualification(0xcfc, 4, true, false), 0x0cfc_000b);
        assert_eq!(port_qualification(0x60, 2, true, true), 0x0060_0019);
    }
}
