//! TDCALL: the leaves that a guest may call (TDX module ABI reference, "Guest-Side (TDCALL) Interface Functions").

use std::sync::atomic::Ordering;

use softkvm_cpu::{CpuState, Exception, Stop};

use super::memory::{self, Views};
use super::status::{self, operand};
use super::{metadata, mr, report, ve, vmcall};
use crate::machine::env::VcpuEnv;
use crate::machine::vcpu::attention;

const RCX: usize = CpuState::RCX;
const RDX: usize = CpuState::RDX;
const R8: usize = 8;
const R9: usize = 9;
const R10: usize = 10;
const R11: usize = 11;

const BAD_RAX: u64 = status::OPERAND_INVALID | operand::RAX;
const BAD_RCX: u64 = status::OPERAND_INVALID | operand::RCX;
const BAD_RDX: u64 = status::OPERAND_INVALID | operand::RDX;

/// A leaf: the status that goes to RAX, or a stop.
pub(super) type Leaf = fn(&mut VcpuEnv<'_>, &mut CpuState) -> Result<u64, Stop>;

/// Number, highest version, name, what it does.
pub(super) const LEAVES: &[(u16, u8, &str, Leaf)] = &[
    (0, 0, "TDG.VP.VMCALL", vmcall::vmcall),
    (1, 0, "TDG.VP.INFO", vp_info),
    (2, 0, "TDG.MR.RTMR.EXTEND", rtmr_extend),
    (3, 0, "TDG.VP.VEINFO.GET", veinfo_get),
    (4, 0, "TDG.MR.REPORT", report::mr_report),
    (5, 0, "TDG.VP.CPUIDVE.SET", cpuidve_set),
    (6, 0, "TDG.MEM.PAGE.ACCEPT", |env, cpu| memory::accept(env.ctx, cpu.gpr[RCX])),
    (7, 1, "TDG.VM.RD", metadata::vm_rd),
    (8, 0, "TDG.VM.WR", metadata::vm_wr),
    // No service TD can be bound here (KVM does not offer it), so no binding handle is valid.
    (18, 0, "TDG.SERVTD.RD", |_, _| Ok(BAD_RCX)),
    (20, 0, "TDG.SERVTD.WR", |_, _| Ok(BAD_RCX)),
    (22, 0, "TDG.MR.VERIFYREPORT", report::mr_verifyreport),
];

/// 64-bit code?
pub fn in_64_bit_mode(cpu: &CpuState) -> bool {
    const LMA: u64 = 1 << 10;
    const L: u16 = 1 << 9;
    cpu.efer & LMA != 0 && cpu.seg[1].attributes & L != 0
}

/// TDCALL.
pub fn execute(env: &mut VcpuEnv<'_>, cpu: &mut CpuState) -> Result<(), Stop> {
    if !in_64_bit_mode(cpu) {
        return Err(Stop::Fault(Exception::GP0));
    }
    let rax = cpu.gpr[CpuState::RAX];
    let (number, version) = (rax as u16, (rax >> 16) as u8);
    let found = LEAVES.iter().find(|row| row.0 == number && version <= row.1 && rax >> 24 == 0);
    cpu.gpr[CpuState::RAX] = match found {
        Some((.., leaf)) => leaf(env, cpu)?,
        None => {
            crate::note_once!("TDCALL leaf {number} version {version}: TDX_OPERAND_INVALID");
            BAD_RAX
        }
    };
    Ok(())
}

fn vp_info(env: &mut VcpuEnv<'_>, cpu: &mut CpuState) -> Result<u64, Stop> {
    let ctx = &mut *env.ctx;
    let Some(parameters) = ctx.vm.tdx().and_then(|tdx| tdx.parameters()) else { return Ok(BAD_RAX) };
    let vcpus = ctx.vm.vcpus().len() as u64;
    cpu.gpr[RCX] = u64::from(parameters.gpaw.bits());
    cpu.gpr[RDX] = parameters.attributes;
    cpu.gpr[R8] = u64::from(crate::uapi::caps::MAX_VCPUS as u32) << 32 | vcpus;
    cpu.gpr[R9] = u64::from(ctx.shared.id);
    // TDG.SYS.RD is not available.
    cpu.gpr[R10] = 0;
    cpu.gpr[R11] = 0;
    Ok(status::SUCCESS)
}

fn veinfo_get(env: &mut VcpuEnv<'_>, cpu: &mut CpuState) -> Result<u64, Stop> {
    let info = std::mem::take(&mut env.ctx.tdx.ve);
    let ve::Info { valid, reason, qualification, gla, gpa, length } = info;
    let outputs = [
        (RCX, u64::from(reason)),
        (RDX, qualification),
        (R8, gla),
        (R9, gpa),
        // Instruction information, of no use with these reasons, would be above.
        (R10, u64::from(length)),
    ];
    for (register, value) in outputs {
        cpu.gpr[register] = if valid { value } else { 0 };
    }
    // The module holds NMIs back until now: a #VE inside of one would have been a double fault.
    if env.ctx.shared.nmis.load(Ordering::SeqCst) > 0 {
        env.ctx.shared.notify(attention::NMI);
    }
    Ok(if valid { status::SUCCESS } else { status::NO_VALID_VE_INFO })
}

fn cpuidve_set(env: &mut VcpuEnv<'_>, cpu: &mut CpuState) -> Result<u64, Stop> {
    let flags = cpu.gpr[RCX];
    if flags & !3 != 0 {
        return Ok(BAD_RCX);
    }
    env.ctx.tdx.cpuid_supervisor_ve = flags & 1 != 0;
    env.ctx.tdx.cpuid_user_ve = flags & 2 != 0;
    Ok(status::SUCCESS)
}

fn rtmr_extend(env: &mut VcpuEnv<'_>, cpu: &mut CpuState) -> Result<u64, Stop> {
    let (gpa, index) = (cpu.gpr[RCX], cpu.gpr[RDX]);
    let mut data: mr::Measurement = [0; 48];
    if !gpa.is_multiple_of(64) || !memory::read_operand(env.ctx, cpu, gpa, Views::Private, &mut data)? {
        return Ok(BAD_RCX);
    }
    let Some(tdx) = env.ctx.vm.tdx() else { return Ok(BAD_RAX) };
    match tdx.td().rtmr.0.get_mut(usize::try_from(index).unwrap_or(usize::MAX)) {
        Some(register) => {
            mr::extend(register, &data);
            Ok(status::SUCCESS)
        }
        None => Ok(BAD_RDX),
    }
}
