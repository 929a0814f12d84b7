//! Near control transfer. Every operation here ends its block.

use crate::access::Ea;
use crate::alu::Alu;
use crate::bits::canonical;
use crate::cpu::{Cpu, Leave, Result};
use crate::flags::{ZF, condition};
use crate::mem::Width;
use crate::op::Op;

/// The block ended without a branch.
pub(crate) fn fall_through(cpu: &mut Cpu, op: &Op) -> Result<()> {
    cpu.set_rip(cpu.state.rip.wrapping_add(u64::from(op.end)));
    Err(Leave::Branch)
}

/// Jumps by `imm` from the block's start, truncating RIP to the operand size `W`.
#[inline(always)]
fn relative<W: Width>(cpu: &mut Cpu, op: &Op) {
    let target = cpu.state.rip.wrapping_add(op.imm);
    cpu.state.rip = W::truncate(target).zero_extend();
}

#[inline(always)]
fn next(cpu: &Cpu, op: &Op) -> u64 {
    cpu.state.rip.wrapping_add(u64::from(op.end))
}

/// Jumps to an absolute offset, which must be one.
#[inline(always)]
fn absolute<W: Width>(cpu: &mut Cpu, target: W) -> Result<()> {
    let target = target.zero_extend();
    if W::BYTES == 8 && !canonical(target) {
        return Err(cpu.gp0());
    }
    cpu.state.rip = target;
    Err(Leave::Branch)
}

/// Is the target of a push-then-jump acceptable? Checked before the push.
#[inline(always)]
fn check<W: Width>(cpu: &mut Cpu, target: W) -> Result<()> {
    if W::BYTES == 8 && !canonical(target.zero_extend()) { Err(cpu.gp0()) } else { Ok(()) }
}

pub(crate) fn jcc<W: Alu, const CC: u8>(cpu: &mut Cpu, op: &Op) -> Result<()> {
    if condition::<CC>(cpu.flags) {
        relative::<W>(cpu, op);
        return Err(Leave::Branch);
    }
    fall_through(cpu, op)
}

pub(crate) fn jmp<W: Alu>(cpu: &mut Cpu, op: &Op) -> Result<()> {
    relative::<W>(cpu, op);
    Err(Leave::Branch)
}

pub(crate) fn jmp_r<W: Alu>(cpu: &mut Cpu, op: &Op) -> Result<()> {
    absolute(cpu, cpu.reg::<W>(op.dst))
}

pub(crate) fn jmp_m<W: Alu, E: Ea>(cpu: &mut Cpu, op: &Op) -> Result<()> {
    let linear = E::linear(cpu, op, W::BYTES, false)?;
    let target = cpu.load::<W>(linear)?;
    absolute(cpu, target)
}

pub(crate) fn call<W: Alu>(cpu: &mut Cpu, op: &Op) -> Result<()> {
    cpu.push(W::truncate(next(cpu, op)))?;
    relative::<W>(cpu, op);
    Err(Leave::Branch)
}

pub(crate) fn call_r<W: Alu>(cpu: &mut Cpu, op: &Op) -> Result<()> {
    let target = cpu.reg::<W>(op.dst);
    check(cpu, target)?;
    cpu.push(W::truncate(next(cpu, op)))?;
    absolute(cpu, target)
}

pub(crate) fn call_m<W: Alu, E: Ea>(cpu: &mut Cpu, op: &Op) -> Result<()> {
    let linear = E::linear(cpu, op, W::BYTES, false)?;
    let target = cpu.load::<W>(linear)?;
    check(cpu, target)?;
    cpu.push(W::truncate(next(cpu, op)))?;
    absolute(cpu, target)
}

/// RET; `imm` more bytes are dropped.
pub(crate) fn ret<W: Alu>(cpu: &mut Cpu, op: &Op) -> Result<()> {
    let target = cpu.stack_load::<W>(0)?;
    check(cpu, target)?;
    cpu.set_sp(cpu.state.gpr[4].wrapping_add(W::BYTES + op.imm));
    absolute(cpu, target)
}

fn count(cpu: &Cpu, op: &Op) -> u64 {
    match op.address {
        3 => cpu.state.gpr[1],
        2 => cpu.state.gpr[1] & 0xffff_ffff,
        _ => cpu.state.gpr[1] & 0xffff,
    }
}

/// LOOP (aux 0), LOOPE (1), LOOPNE (2).
pub(crate) fn loop_cx<W: Alu>(cpu: &mut Cpu, op: &Op) -> Result<()> {
    let c = count(cpu, op).wrapping_sub(1);
    match op.address {
        3 => cpu.set_reg(1, c),
        2 => cpu.set_reg(1, c as u32),
        _ => cpu.set_reg(1, c as u16),
    }
    let zero = cpu.flags & ZF != 0;
    let wanted = match op.aux {
        0 => true,
        1 => zero,
        _ => !zero,
    };
    if count(cpu, op) != 0 && wanted { jmp::<W>(cpu, op) } else { fall_through(cpu, op) }
}

/// JCXZ, JECXZ, JRCXZ.
pub(crate) fn jcxz<W: Alu>(cpu: &mut Cpu, op: &Op) -> Result<()> {
    if count(cpu, op) == 0 { jmp::<W>(cpu, op) } else { fall_through(cpu, op) }
}

/// An encoding that is not an instruction.
pub(crate) fn undefined(cpu: &mut Cpu, _: &Op) -> Result<()> {
    Err(cpu.ud())
}
