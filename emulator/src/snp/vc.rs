//! #VC: which instructions and MSRs an SNP guest reaches directly, and which raise it.

use softkvm_cpu::{CpuState, Exception, Stop};

use super::exit;
use crate::machine::env::VcpuEnv;
use crate::machine::tee::Intercept;

const GHCB: u32 = 0xc001_0130;
const SEV_STATUS: u32 = 0xc001_0131;
/// IA32_TSC is read with RDTSC's rules; KVM does not intercept it for SEV-ES guests that can see an invariant TSC.
const XSS: u32 = 0xda0;

/// Instructions that KVM intercepts raise #VC with the intercept's exit code; HLT is an automatic exit.
pub fn intercept(what: Intercept) -> Result<(), Stop> {
    let code = match what {
        Intercept::Apic => exit::NPF,
        Intercept::Cpuid => exit::CPUID,
        Intercept::Port { .. } => exit::IOIO,
        Intercept::Hlt => return Ok(()),
        Intercept::Monitor => exit::MONITOR,
        Intercept::Mwait => exit::MWAIT,
        Intercept::Invd => exit::INVD,
        Intercept::Wbinvd => exit::WBINVD,
        Intercept::Rdpmc => exit::RDPMC,
        Intercept::Dr7 { write: false } => exit::READ_DR7,
        Intercept::Dr7 { write: true } => exit::WRITE_DR7,
        Intercept::Vmcall { .. } => exit::VMMCALL,
    };
    Err(Stop::Fault(Exception::vc(code)))
}

fn intercepted<T>() -> Result<T, Stop> {
    Err(Stop::Fault(Exception::vc(exit::MSR)))
}

/// RDMSR of an MSR that the core does not own.
pub fn rdmsr(env: &mut VcpuEnv<'_>, _cpu: &CpuState, index: u32) -> Result<u64, Stop> {
    match index {
        GHCB => Ok(env.ctx.snp.ghcb_msr),
        // SEV, SEV-ES, then SEV_FEATURES from bit 2.
        SEV_STATUS => Ok(0b11 | env.ctx.snp.sev_features << 2),
        XSS => Ok(0),
        _ => intercepted(),
    }
}

/// WRMSR of an MSR that the core does not own.
pub fn wrmsr(env: &mut VcpuEnv<'_>, _cpu: &CpuState, index: u32, value: u64) -> Result<(), Stop> {
    match index {
        GHCB => {
            env.ctx.snp.ghcb_msr = value;
            Ok(())
        }
        SEV_STATUS => Err(Stop::Fault(Exception::GP0)),
        XSS if value == 0 => Ok(()),
        XSS => Err(Stop::Fault(Exception::GP0)),
        _ => intercepted(),
    }
}
