//! Running guest instructions on the host.
//!
//! SSE, MMX, x87, AES, SHA, carry-less multiplication and the BMI family are pure functions of registers and one
//! memory operand, and the host has them. Each distinct instruction becomes a small stub that loads the guest's
//! registers, executes it with its memory operand moved to [`Pad`], and stores the registers back.
//!
//! No exception of the guest's is ever one of the host's. SSE exceptions are masked while a stub runs; what the guest has
//! unmasked is raised afterwards. An x87 exception is reported by the instruction after the one that caused it, so a stub
//! never starts with one pending: #MF is raised before, or what is pending is hidden while the instruction runs.

use core::cell::Cell;

use iced_x86::{
    CpuidFeature, Instruction, InstructionInfoFactory, Mnemonic, OpAccess, OpKind, Register, UsedRegister,
};

use crate::access::{Ea, General};
use crate::bits::{cr0, cr4};
use crate::cpu::{Cpu, Leave, Result};
use crate::flags;
use crate::op::Op;
use crate::state::Exception;

mod code;
mod emit;

pub(crate) use code::Native;
use code::NoStub;

/// Where stubs find what is not in the architectural state.
#[repr(C, align(64))]
pub(crate) struct Pad {
    /// The memory operand.
    pub(crate) memory: [u8; 128],
    /// Arithmetic flags in and out.
    pub(crate) flags: u64,
    /// The MXCSR that host code runs with.
    pub(crate) host_mxcsr: u32,
}

impl Pad {
    pub(crate) const NEW: Self = Self { memory: [0; 128], flags: 2, host_mxcsr: 0x1f80 };
}

/// A stub's entry point.
pub(crate) type Stub = unsafe extern "sysv64" fn(*mut Cpu);

/// Offsets in the FXSAVE image.
pub(crate) mod image {
    pub(crate) const FCW: usize = 0;
    pub(crate) const FSW: usize = 2;
    pub(crate) const MXCSR: usize = 24;
    pub(crate) const XMM: usize = 160;
    pub(crate) const BYTES: usize = 512;
}

/// Which state an instruction belongs to: what must be enabled, and what a stub must load.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Unit {
    /// General registers only (BMI, ADX, CRC32).
    Integer,
    /// XMM registers.
    Sse,
    /// x87 or MMX registers.
    X87,
}

/// What an x87 instruction does with the exception flags of the status word.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Status {
    /// Adds to them, if anything.
    Adds,
    /// Stores or clears them as they are, without waiting: nothing may be hidden from it, and the host does not complain.
    Handles,
    /// Replaces them by what it loads.
    Loads,
}

/// How an instruction runs natively; made when it is decoded.
pub(crate) struct Plan {
    stub: Cell<Option<Stub>>,
    unit: Unit,
    mmx: bool,
    reads_memory: bool,
    writes_memory: bool,
    /// Something besides memory changes, so a store must be proven possible first.
    changes_state: bool,
    aligned: bool,
    /// MXCSR matters.
    float: bool,
    /// x87 instructions that do not check for pending exceptions.
    no_wait: bool,
    /// What an x87 instruction makes of the exceptions that are pending before it.
    status: Status,
    flags: bool,
    bytes: u16,
}

/// Feature sets that stubs may use, by the state they belong to.
fn unit_of(feature: CpuidFeature) -> Option<Unit> {
    use CpuidFeature as F;
    Some(match feature {
        F::SSE | F::SSE2 | F::SSE3 | F::SSSE3 | F::SSE4_1 | F::SSE4_2 | F::AES | F::PCLMULQDQ | F::SHA => {
            Unit::Sse
        }
        F::MMX | F::FPU | F::FPU287 | F::FPU387 | F::CMOV => Unit::X87,
        F::BMI1 | F::BMI2 | F::ADX => Unit::Integer,
        _ => return None,
    })
}

fn host_has(feature: CpuidFeature) -> bool {
    use CpuidFeature as F;
    match feature {
        F::SSE3 => std::is_x86_feature_detected!("sse3"),
        F::SSSE3 => std::is_x86_feature_detected!("ssse3"),
        F::SSE4_1 => std::is_x86_feature_detected!("sse4.1"),
        F::SSE4_2 => std::is_x86_feature_detected!("sse4.2"),
        F::AES => std::is_x86_feature_detected!("aes"),
        F::PCLMULQDQ => std::is_x86_feature_detected!("pclmulqdq"),
        F::SHA => std::is_x86_feature_detected!("sha"),
        F::BMI1 => std::is_x86_feature_detected!("bmi1"),
        F::BMI2 => std::is_x86_feature_detected!("bmi2"),
        F::ADX => std::is_x86_feature_detected!("adx"),
        _ => true,
    }
}

/// Can the instruction run natively?
pub(crate) fn supports(i: &Instruction) -> bool {
    use Mnemonic as M;
    let excluded = matches!(
        i.mnemonic(),
        M::Fxsave
            | M::Fxsave64
            | M::Fxrstor
            | M::Fxrstor64
            | M::Ldmxcsr
            | M::Stmxcsr
            | M::Maskmovdqu
            | M::Maskmovq
    );
    let registers = (0..i.op_count()).all(|n| {
        i.op_kind(n) != OpKind::Register || {
            let r = i.op_register(n);
            r.is_gpr() || r.is_xmm() || r.is_mm() || r.is_st()
        }
    });
    // iced files FISTTP under a feature of its own.
    let known = |f: &CpuidFeature| unit_of(*f).is_some_and(|_| host_has(*f));
    !excluded && registers && (i.cpuid_features().iter().all(known) || i.mnemonic() == M::Fisttp)
}

fn unit(i: &Instruction) -> Unit {
    let x87 = i.mnemonic() == Mnemonic::Fisttp
        || i.cpuid_features().contains(&CpuidFeature::MMX)
        || i.cpuid_features().iter().any(|f| unit_of(*f) == Some(Unit::X87))
        || (0..i.op_count()).any(|n| i.op_kind(n) == OpKind::Register && i.op_register(n).is_mm());
    if x87 {
        Unit::X87
    } else {
        let integer = i.mnemonic() == Mnemonic::Crc32
            || i.cpuid_features().iter().all(|f| unit_of(*f) == Some(Unit::Integer));
        if integer { Unit::Integer } else { Unit::Sse }
    }
}

/// 16-byte memory operands that need no alignment. AMD processors ask none of SHA.
fn unaligned(i: &Instruction) -> bool {
    use Mnemonic as M;
    let strings = matches!(
        i.mnemonic(),
        M::Pcmpestri | M::Pcmpestrm | M::Pcmpistri | M::Pcmpistrm | M::Pcmpestri64 | M::Pcmpestrm64
    );
    strings
        || matches!(i.mnemonic(), M::Movups | M::Movupd | M::Movdqu | M::Lddqu)
        || i.cpuid_features().contains(&CpuidFeature::SHA)
}

/// SSE instructions that neither read nor write MXCSR; anything else is taken to.
fn no_mxcsr(i: &Instruction) -> bool {
    use Mnemonic as M;
    let m = i.mnemonic();
    let integer_features = |f: &CpuidFeature| {
        matches!(f, CpuidFeature::SSSE3 | CpuidFeature::AES | CpuidFeature::PCLMULQDQ | CpuidFeature::SHA)
    };
    if i.cpuid_features().iter().any(integer_features) {
        return true;
    }
    let name = crate::decode::name(m);
    name.starts_with('P')
        || name.starts_with("Mov")
        || matches!(
            m,
            M::Xorps
                | M::Xorpd
                | M::Andps
                | M::Andpd
                | M::Andnps
                | M::Andnpd
                | M::Orps
                | M::Orpd
                | M::Unpcklps
                | M::Unpcklpd
                | M::Unpckhps
                | M::Unpckhpd
                | M::Shufps
                | M::Shufpd
                | M::Lddqu
                | M::Crc32
        )
}

impl Plan {
    /// Analyses an instruction; cheap for those that never run natively.
    pub(crate) fn of(i: &Instruction) -> Self {
        let mut plan = Self {
            stub: Cell::new(None),
            unit: Unit::Integer,
            mmx: false,
            reads_memory: false,
            writes_memory: false,
            changes_state: true,
            aligned: false,
            float: false,
            no_wait: false,
            status: Status::Adds,
            flags: false,
            bytes: 0,
        };
        if !supports(i) {
            return plan;
        }
        let mut factory = InstructionInfoFactory::new();
        let info = factory.info(i);
        plan.unit = unit(i);
        plan.mmx =
            info.used_registers().iter().any(|r| r.register().is_mm()) || i.mnemonic() == Mnemonic::Emms;
        for n in 0..i.op_count() {
            if i.op_kind(n) == OpKind::Memory {
                let access = info.op_access(n);
                plan.reads_memory |= matches!(
                    access,
                    OpAccess::Read | OpAccess::CondRead | OpAccess::ReadWrite | OpAccess::ReadCondWrite
                );
                plan.writes_memory |= matches!(
                    access,
                    OpAccess::Write | OpAccess::CondWrite | OpAccess::ReadWrite | OpAccess::ReadCondWrite
                );
                plan.bytes = i.memory_size().size() as u16;
            }
        }
        let writes = |r: &UsedRegister| emit::writes(r) && !r.register().is_segment_register();
        plan.flags = i.rflags_read() | i.rflags_modified() != 0;
        plan.changes_state = plan.unit == Unit::X87 || plan.flags || info.used_registers().iter().any(writes);
        plan.aligned = plan.bytes == 16 && !unaligned(i);
        plan.float = match plan.unit {
            Unit::Integer => false,
            Unit::Sse => !no_mxcsr(i),
            // Conversions between MMX and XMM obey MXCSR; loading the image loads it anyway.
            Unit::X87 => true,
        };
        plan.no_wait = matches!(
            i.mnemonic(),
            Mnemonic::Fninit
                | Mnemonic::Fnclex
                | Mnemonic::Fnstcw
                | Mnemonic::Fnstsw
                | Mnemonic::Fnstenv
                | Mnemonic::Fnsave
                | Mnemonic::Fneni
                | Mnemonic::Fndisi
                | Mnemonic::Fnsetpm
        );
        plan.status = match i.mnemonic() {
            Mnemonic::Fninit
            | Mnemonic::Fnclex
            | Mnemonic::Fnstcw
            | Mnemonic::Fnstsw
            | Mnemonic::Fnstenv
            | Mnemonic::Fnsave => Status::Handles,
            Mnemonic::Fldenv | Mnemonic::Frstor => Status::Loads,
            _ => Status::Adds,
        };
        plan
    }
}

impl Cpu {
    fn image_u16(&self, at: usize) -> u16 {
        u16::from_le_bytes([self.state.fpu.0[at], self.state.fpu.0[at + 1]])
    }

    pub(crate) fn mxcsr(&self) -> u32 {
        u32::from(self.image_u16(image::MXCSR))
    }

    pub(crate) fn set_mxcsr(&mut self, v: u32) {
        self.state.fpu.0[image::MXCSR..image::MXCSR + 4].copy_from_slice(&v.to_le_bytes());
    }

    /// Is the SSE unit enabled?
    pub(crate) fn check_sse(&mut self) -> Result<()> {
        if self.state.cr0 & cr0::EM != 0 || self.state.cr4 & cr4::OSFXSR == 0 {
            return Err(self.ud());
        }
        if self.state.cr0 & cr0::TS != 0 {
            return Err(self.fault(Exception::bare(7)));
        }
        Ok(())
    }

    /// Is the x87 unit enabled? MMX instructions are #UD, not #NM, under EM.
    fn check_x87(&mut self, mmx: bool) -> Result<()> {
        match (self.state.cr0 & cr0::EM != 0, self.state.cr0 & cr0::TS != 0) {
            (true, _) if mmx => Err(self.ud()),
            (false, false) => Ok(()),
            _ => Err(self.fault(Exception::bare(7))),
        }
    }

    /// Is an exception pending that is not masked? The error summary bit of an image may say anything: a processor
    /// computes it from these (APM volume 1, 6.2.2; SDM volume 1, 8.1.3.3).
    fn x87_pending(&self) -> bool {
        self.image_u16(image::FSW) & !self.image_u16(image::FCW) & EXCEPTIONS != 0
    }

    /// #MF for an exception that an earlier x87 instruction left pending.
    ///
    /// With CR0.NE clear a processor asserts FERR# instead, and goes on when the board answers with IGNNE#. KVM's
    /// interrupt chips do not have that wire; here the answer is always there.
    fn check_pending_x87(&mut self) -> Result<()> {
        if self.x87_pending() && self.state.cr0 & cr0::NE != 0 {
            return Err(self.fault(Exception::bare(16)));
        }
        Ok(())
    }

    fn set_fsw(&mut self, v: u16) {
        self.state.fpu.0[image::FSW..image::FSW + 2].copy_from_slice(&v.to_le_bytes());
    }

    /// Takes pending exceptions out of the status word; what was there.
    fn hide_pending(&mut self) -> u16 {
        let fsw = self.image_u16(image::FSW);
        self.set_fsw(fsw & !(EXCEPTIONS | SUMMARY));
        fsw & EXCEPTIONS
    }

    /// Computes the summary bits, as a processor does when it loads a status word.
    pub(crate) fn summarise_x87(&mut self) {
        self.show_pending(0);
    }

    /// Puts them back beside those that have come since.
    fn show_pending(&mut self, hidden: u16) {
        let fsw = self.image_u16(image::FSW) & !SUMMARY | hidden;
        let pending = fsw & !self.image_u16(image::FCW) & EXCEPTIONS != 0;
        self.set_fsw(if pending { fsw | SUMMARY } else { fsw });
    }
}

/// The exceptions of FCW's masks and FSW's flags.
const EXCEPTIONS: u16 = 0x3f;
/// FSW: error summary, and busy, which repeats it.
const SUMMARY: u16 = 1 << 7 | 1 << 15;

/// WAIT.
pub(crate) fn wait(cpu: &mut Cpu, _: &Op) -> Result<()> {
    if cpu.state.cr0 & (cr0::MP | cr0::TS) == cr0::MP | cr0::TS {
        return Err(cpu.fault(Exception::bare(7)));
    }
    cpu.check_pending_x87()
}

/// Runs an operation's instruction on the host.
pub(crate) fn run(cpu: &mut Cpu, op: &Op) -> Result<()> {
    // SAFETY: the decoder gives native operations their instruction.
    let insn = unsafe { op.insn() };
    let plan = &insn.native;
    match plan.unit {
        Unit::Integer => {}
        Unit::Sse => cpu.check_sse()?,
        Unit::X87 => {
            cpu.check_x87(plan.mmx)?;
            if !plan.no_wait {
                cpu.check_pending_x87()?;
            }
        }
    }
    let stub = match plan.stub.get() {
        Some(stub) => stub,
        None => {
            let stub = match cpu.native.stub(&insn.iced, plan.unit, plan.float) {
                Ok(stub) => stub,
                Err(NoStub::Full) => return full(cpu, op),
                Err(NoStub::Impossible) => {
                    cpu.note(crate::decode::name(insn.iced.mnemonic()));
                    return Err(cpu.ud());
                }
            };
            plan.stub.set(Some(stub));
            stub
        }
    };
    let linear = memory_in(cpu, op, plan)?;
    if plan.flags {
        cpu.pad.flags = flags::to_rflags(cpu.flags) | 2;
    }
    let hidden = (plan.unit == Unit::X87 && plan.status != Status::Handles && cpu.x87_pending())
        .then(|| cpu.hide_pending());
    if plan.float {
        let done = run_float(cpu, stub);
        if let Some(hidden) = hidden.filter(|_| done.is_err() || plan.status != Status::Loads) {
            cpu.show_pending(hidden);
        }
        done?;
    } else {
        // SAFETY: a stub touches the processor's state and pad, and registers that a call may.
        unsafe { stub(core::ptr::from_mut(cpu)) };
    }
    if plan.flags {
        cpu.flags = flags::from_rflags(cpu.pad.flags);
    }
    if plan.writes_memory {
        let n = usize::from(plan.bytes);
        let bytes = cpu.pad.memory;
        cpu.write_wide(linear, &bytes[..n.min(bytes.len())])?;
    }
    Ok(())
}

/// Brings the memory operand in; returns where it is.
#[inline(always)]
fn memory_in(cpu: &mut Cpu, op: &Op, plan: &Plan) -> Result<u64> {
    if plan.bytes == 0 {
        return Ok(0);
    }
    let n = u64::from(plan.bytes);
    let linear = General::linear(cpu, op, n, plan.writes_memory)?;
    if plan.aligned && linear & 15 != 0 {
        return Err(cpu.gp0());
    }
    // An unmasked x87 exception leaves the destination as it was: what is written back must be what was there.
    let unmasked = plan.unit == Unit::X87 && plan.writes_memory && cpu.image_u16(image::FCW) & 0x3f != 0x3f;
    if plan.reads_memory || unmasked {
        let mut bytes = [0; 128];
        let size = usize::from(plan.bytes).min(bytes.len());
        cpu.read_wide(linear, &mut bytes[..size])?;
        cpu.pad.memory[..size].copy_from_slice(&bytes[..size]);
    }
    if plan.writes_memory && plan.changes_state {
        cpu.probe_write(linear, n, cpu.set)?;
    }
    Ok(linear)
}

/// Runs with SSE exceptions masked, and raises what the guest has not masked.
///
/// One difference remains: unmasked underflow is raised for inexact tiny results only, not for exact ones.
fn run_float(cpu: &mut Cpu, stub: Stub) -> Result<()> {
    const MASKS: u32 = 0x1f80;
    let guest = cpu.mxcsr();
    // Bits that do not exist, which a save area may bring along, are #GP to the host.
    cpu.set_mxcsr(guest);
    if guest & MASKS == MASKS {
        // SAFETY: as in `run`.
        unsafe { stub(core::ptr::from_mut(cpu)) };
        return Ok(());
    }
    let mut before = [0; image::BYTES];
    before.copy_from_slice(&cpu.state.fpu.0[..image::BYTES]);
    let (gpr, pad_flags) = (cpu.state.gpr, cpu.pad.flags);
    cpu.set_mxcsr(guest & !0x3f | MASKS);
    // SAFETY: as in `run`.
    unsafe { stub(core::ptr::from_mut(cpu)) };
    let raised = cpu.mxcsr() & 0x3f;
    let unmasked = raised & !(guest >> 7) & 0x3f;
    if unmasked == 0 {
        cpu.set_mxcsr(guest | raised);
        return Ok(());
    }
    // Unmasked invalid-operation, denormal and divide-by-zero exceptions come before the result is computed, and so
    // before it can overflow, underflow or be inexact.
    let raised = if unmasked & 7 != 0 { raised & 7 } else { raised };
    cpu.state.fpu.0[..image::BYTES].copy_from_slice(&before);
    (cpu.state.gpr, cpu.pad.flags) = (gpr, pad_flags);
    cpu.set_mxcsr(guest | raised);
    let vector = if cpu.state.cr4 & cr4::OSXMMEXCPT != 0 { 19 } else { 6 };
    Err(cpu.fault(Exception::bare(vector)))
}

/// No room for another stub: the run loop empties the caches, and the instruction is decoded again.
#[cold]
fn full(cpu: &mut Cpu, op: &Op) -> Result<()> {
    cpu.native.full = true;
    cpu.force_boundary();
    cpu.set_rip(cpu.state.rip.wrapping_add(u64::from(op.start)));
    Err(Leave::Branch)
}

/// Number of an XMM register.
fn xmm_number(r: Register) -> Option<usize> {
    r.is_xmm().then(|| r.number())
}

#[cfg(test)]
mod tests {
    use super::*;
    use iced_x86::{Decoder, DecoderOptions};

    fn plan(bytes: &[u8]) -> Plan {
        Plan::of(&Decoder::new(64, bytes, DecoderOptions::AMD).decode())
    }

    #[test]
    fn moves_leave_mxcsr_alone_and_arithmetic_does_not() {
        assert!(!plan(&[0x0f, 0x10, 0x00]).float, "movups xmm0, [rax]");
        assert!(plan(&[0x0f, 0x58, 0xc1]).float, "addps xmm0, xmm1");
        assert!(!plan(&[0x66, 0x0f, 0xef, 0xc1]).float, "pxor xmm0, xmm1");
    }

    #[test]
    fn alignment_is_asked_of_aligned_forms_only() {
        assert!(plan(&[0x0f, 0x28, 0x00]).aligned, "movaps xmm0, [rax]");
        assert!(!plan(&[0x0f, 0x10, 0x00]).aligned, "movups xmm0, [rax]");
        assert!(plan(&[0x66, 0x0f, 0xfe, 0x00]).aligned, "paddd xmm0, [rax]");
        assert!(!plan(&[0xf2, 0x0f, 0x58, 0x00]).aligned, "addsd xmm0, [rax]");
    }

    #[test]
    fn stores_of_registers_need_no_probe() {
        assert!(!plan(&[0x0f, 0x11, 0x00]).changes_state, "movups [rax], xmm0");
        assert!(plan(&[0xdd, 0x18]).changes_state, "fstp qword [rax]");
    }
}
