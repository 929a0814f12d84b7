//! The machine code of a stub.

use core::mem::offset_of;

use iced_x86::{
    Code, Encoder, Instruction, InstructionInfoFactory, MemoryOperand, OpAccess, OpKind, Register,
    UsedRegister,
};

use super::{Pad, Unit, image, xmm_number};
use crate::cpu::Cpu;
use crate::state::CpuState;

const fn gpr_offset(n: usize) -> i64 {
    (offset_of!(Cpu, state) + offset_of!(CpuState, gpr) + 8 * n) as i64
}

const FPU: i64 = (offset_of!(Cpu, state) + offset_of!(CpuState, fpu)) as i64;
const MXCSR: i64 = FPU + image::MXCSR as i64;
const MEMORY: i64 = (offset_of!(Cpu, pad) + offset_of!(Pad, memory)) as i64;
const FLAGS: i64 = (offset_of!(Cpu, pad) + offset_of!(Pad, flags)) as i64;
const HOST_MXCSR: i64 = (offset_of!(Cpu, pad) + offset_of!(Pad, host_mxcsr)) as i64;

const GPRS: [Register; 16] = [
    Register::RAX,
    Register::RCX,
    Register::RDX,
    Register::RBX,
    Register::RSP,
    Register::RBP,
    Register::RSI,
    Register::RDI,
    Register::R8,
    Register::R9,
    Register::R10,
    Register::R11,
    Register::R12,
    Register::R13,
    Register::R14,
    Register::R15,
];

/// Registers that a function must preserve.
const PRESERVED: [usize; 6] = [3, 5, 12, 13, 14, 15];

/// Does the instruction change the register?
pub(super) fn writes(r: &UsedRegister) -> bool {
    matches!(
        r.access(),
        OpAccess::Write | OpAccess::CondWrite | OpAccess::ReadWrite | OpAccess::ReadCondWrite
    )
}

/// A general register of the same width with another number.
fn renumbered(r: Register, to: usize) -> Register {
    let full = GPRS[to];
    match r.size() {
        8 => full,
        4 => full.full_register32(),
        2 => Register::AX + to as u32,
        _ => match to {
            0..4 => Register::AL + to as u32,
            _ => Register::SPL + (to as u32 - 4),
        },
    }
}

struct Emitter {
    encoder: Encoder,
    base: Register,
}

impl Emitter {
    fn instruction(&mut self, i: &Instruction) -> Option<()> {
        self.encoder.encode(i, 0).ok().map(drop)
    }

    fn slot(&self, offset: i64) -> MemoryOperand {
        MemoryOperand::with_base_displ(self.base, offset)
    }

    fn memory(&mut self, code: Code, offset: i64) -> Option<()> {
        let i = Instruction::with1(code, self.slot(offset)).ok()?;
        self.instruction(&i)
    }

    fn load(&mut self, code: Code, r: Register, offset: i64) -> Option<()> {
        let i = Instruction::with2(code, r, self.slot(offset)).ok()?;
        self.instruction(&i)
    }

    fn store(&mut self, code: Code, offset: i64, r: Register) -> Option<()> {
        let i = Instruction::with2(code, self.slot(offset), r).ok()?;
        self.instruction(&i)
    }
}

/// What an instruction touches, by register number.
#[derive(Default)]
struct Touched {
    gpr: [bool; 16],
    xmm: [bool; 16],
}

fn touched(i: &Instruction) -> Touched {
    let mut t = Touched::default();
    let mut factory = InstructionInfoFactory::new();
    // Registers that only address memory are not the stub's business: the operand is moved.
    for r in factory.info(i).used_registers() {
        let r = r.register();
        if r.is_gpr() {
            t.gpr[r.full_register().number() & 15] = true;
        } else if let Some(n) = xmm_number(r) {
            t.xmm[n & 15] = true;
        }
    }
    t
}

/// Assembles the stub of `i`.
pub(super) fn stub(i: &Instruction, unit: Unit, float: bool) -> Option<Vec<u8>> {
    let mut i = *i;
    // Drop the original address first, so that its registers do not count as used.
    i.set_segment_prefix(Register::None);
    if (0..i.op_count()).any(|n| i.op_kind(n) == OpKind::Memory) {
        i.set_memory_base(Register::RDI);
        i.set_memory_index(Register::None);
        i.set_memory_index_scale(1);
        // 64-bit addressing with a 32-bit displacement, which iced calls size 8.
        i.set_memory_displ_size(8);
        i.set_memory_displacement64(MEMORY as u64);
    }
    let mut explicit = i;
    if (0..i.op_count()).any(|n| i.op_kind(n) == OpKind::Memory) {
        explicit.set_memory_base(Register::None);
    }
    let mut used = touched(&explicit);
    // The guest's RSP cannot be the host's: another register stands in for it.
    let free = |used: &Touched| [7usize, 6, 1, 2, 0, 3, 5].into_iter().find(|&n| !used.gpr[n]);
    let mut stand_in = None;
    if used.gpr[4] {
        let n = free(&used)?;
        used.gpr[4] = false;
        used.gpr[n] = true;
        stand_in = Some(n);
        for op in 0..i.op_count() {
            if i.op_kind(op) == OpKind::Register && i.op_register(op).full_register() == Register::RSP {
                i.set_op_register(op, renumbered(i.op_register(op), n));
            }
        }
    }
    let base = free(&used)?;
    if (0..i.op_count()).any(|n| i.op_kind(n) == OpKind::Memory) {
        i.set_memory_base(GPRS[base]);
    }
    let mut e = Emitter { encoder: Encoder::new(64), base: GPRS[base] };
    let saved: Vec<usize> = PRESERVED.into_iter().filter(|&n| used.gpr[n] || n == base).collect();
    for &n in &saved {
        e.instruction(&Instruction::with1(Code::Push_r64, GPRS[n]).ok()?)?;
    }
    if base != 7 {
        e.instruction(&Instruction::with2(Code::Mov_r64_rm64, GPRS[base], Register::RDI).ok()?)?;
    }
    body(&mut e, &i, unit, float, &used, stand_in)?;
    for &n in saved.iter().rev() {
        e.instruction(&Instruction::with1(Code::Pop_r64, GPRS[n]).ok()?)?;
    }
    e.instruction(&Instruction::with(Code::Retnq))?;
    Some(e.encoder.take_buffer())
}

/// Loads, the instruction, stores.
fn body(
    e: &mut Emitter,
    i: &Instruction,
    unit: Unit,
    float: bool,
    used: &Touched,
    stand_in: Option<usize>,
) -> Option<()> {
    let flags = i.rflags_read() | i.rflags_modified() != 0;
    let slot = |n: usize| if Some(n) == stand_in { gpr_offset(4) } else { gpr_offset(n) };
    let gprs = || (0..16).filter(|&n| used.gpr[n]);
    let xmms = || (0..16u32).filter(|&n| used.xmm[n as usize]);
    let xmm_offset = |n: u32| FPU + image::XMM as i64 + 16 * i64::from(n);
    if unit == Unit::X87 {
        e.memory(Code::Fxrstor64_m512byte, FPU)?;
    } else {
        for n in xmms() {
            e.load(Code::Movups_xmm_xmmm128, Register::XMM0 + n, xmm_offset(n))?;
        }
        if float {
            e.memory(Code::Ldmxcsr_m32, MXCSR)?;
        }
    }
    if flags {
        e.memory(Code::Push_rm64, FLAGS)?;
        e.instruction(&Instruction::with(Code::Popfq))?;
    }
    for n in gprs() {
        e.load(Code::Mov_r64_rm64, GPRS[n], slot(n))?;
    }
    e.instruction(i)?;
    for n in gprs() {
        e.store(Code::Mov_rm64_r64, slot(n), GPRS[n])?;
    }
    if flags {
        e.instruction(&Instruction::with(Code::Pushfq))?;
        e.memory(Code::Pop_rm64, FLAGS)?;
    }
    if unit == Unit::X87 {
        e.memory(Code::Fxsave64_m512byte, FPU)?;
        // The host's own code must find no exception pending and no MMX state.
        e.instruction(&Instruction::with(Code::Fninit))?;
    } else {
        for n in xmms() {
            e.store(Code::Movups_xmmm128_xmm, xmm_offset(n), Register::XMM0 + n)?;
        }
        if float {
            e.memory(Code::Stmxcsr_m32, MXCSR)?;
        }
    }
    if float {
        e.memory(Code::Ldmxcsr_m32, HOST_MXCSR)?;
    }
    Some(())
}
