//! Moving data: MOV and its extensions, LEA, XCHG, CMOVcc, SETcc, and the conversions.

use crate::access::Ea;
use crate::alu::Alu;
use crate::cpu::{Cpu, Result};
use crate::flags::{self, condition};
use crate::mem::Width;
use crate::op::Op;

pub(crate) fn nop(_: &mut Cpu, _: &Op) -> Result<()> {
    Ok(())
}

pub(crate) fn mov_rr<W: Alu>(cpu: &mut Cpu, op: &Op) -> Result<()> {
    cpu.set_reg(op.dst, cpu.reg::<W>(op.src));
    Ok(())
}

pub(crate) fn mov_ri<W: Alu>(cpu: &mut Cpu, op: &Op) -> Result<()> {
    cpu.set_reg(op.dst, W::truncate(op.imm));
    Ok(())
}

pub(crate) fn mov_rm<W: Alu, E: Ea>(cpu: &mut Cpu, op: &Op) -> Result<()> {
    let linear = E::linear(cpu, op, W::BYTES, false)?;
    let v = cpu.load::<W>(linear)?;
    cpu.set_reg(op.dst, v);
    Ok(())
}

pub(crate) fn mov_mr<W: Alu, E: Ea>(cpu: &mut Cpu, op: &Op) -> Result<()> {
    let linear = E::linear(cpu, op, W::BYTES, true)?;
    cpu.store(linear, cpu.reg::<W>(op.src))
}

pub(crate) fn mov_mi<W: Alu, E: Ea>(cpu: &mut Cpu, op: &Op) -> Result<()> {
    let linear = E::linear(cpu, op, W::BYTES, true)?;
    cpu.store(linear, W::truncate(op.imm))
}

/// MOV rAX, moffs: the only 64-bit absolute addresses, kept in `imm`.
pub(crate) fn mov_r_moffs<W: Alu>(cpu: &mut Cpu, op: &Op) -> Result<()> {
    let linear = cpu.segmented(op.seg, op.imm, W::BYTES, false)?;
    let v = cpu.load::<W>(linear)?;
    cpu.set_reg(op.dst, v);
    Ok(())
}

pub(crate) fn mov_moffs_r<W: Alu>(cpu: &mut Cpu, op: &Op) -> Result<()> {
    let linear = cpu.segmented(op.seg, op.imm, W::BYTES, true)?;
    cpu.store(linear, cpu.reg::<W>(op.src))
}

/// MOVZX, MOVSX and MOVSXD from `S` to `D`.
pub(crate) fn extend_rr<S: Width, D: Width, const SIGNED: bool>(cpu: &mut Cpu, op: &Op) -> Result<()> {
    let v = cpu.reg::<S>(op.src);
    cpu.set_reg(op.dst, D::truncate(if SIGNED { v.sign_extend() } else { v.zero_extend() }));
    Ok(())
}

pub(crate) fn extend_rm<S: Width, D: Width, const SIGNED: bool, E: Ea>(cpu: &mut Cpu, op: &Op) -> Result<()> {
    let linear = E::linear(cpu, op, S::BYTES, false)?;
    let v = cpu.load::<S>(linear)?;
    cpu.set_reg(op.dst, D::truncate(if SIGNED { v.sign_extend() } else { v.zero_extend() }));
    Ok(())
}

pub(crate) fn lea<W: Alu>(cpu: &mut Cpu, op: &Op) -> Result<()> {
    cpu.set_reg(op.dst, W::truncate(cpu.offset(op)));
    Ok(())
}

pub(crate) fn lea_flat<W: Alu, E: Ea>(cpu: &mut Cpu, op: &Op) -> Result<()> {
    let linear = E::linear(cpu, op, 1, false)?;
    cpu.set_reg(op.dst, W::truncate(linear));
    Ok(())
}

pub(crate) fn xchg_rr<W: Alu>(cpu: &mut Cpu, op: &Op) -> Result<()> {
    let (a, b) = (cpu.reg::<W>(op.dst), cpu.reg::<W>(op.src));
    cpu.set_reg(op.dst, b);
    cpu.set_reg(op.src, a);
    Ok(())
}

/// XCHG with memory locks the bus, prefix or not.
pub(crate) fn xchg_mr<W: Alu, E: Ea>(cpu: &mut Cpu, op: &Op) -> Result<()> {
    let linear = E::linear(cpu, op, W::BYTES, true)?;
    let v = cpu.reg::<W>(op.src);
    let old = cpu.modify::<W>(linear, true, |_, _| v)?;
    cpu.set_reg(op.src, old);
    Ok(())
}

pub(crate) fn cmov_rr<W: Alu, const CC: u8>(cpu: &mut Cpu, op: &Op) -> Result<()> {
    let from = if condition::<CC>(cpu.flags) { op.src } else { op.dst };
    // The destination is written either way: a 32-bit CMOV zero-extends even if the condition is false.
    cpu.set_reg(op.dst, cpu.reg::<W>(from));
    Ok(())
}

pub(crate) fn cmov_rm<W: Alu, E: Ea, const CC: u8>(cpu: &mut Cpu, op: &Op) -> Result<()> {
    let linear = E::linear(cpu, op, W::BYTES, false)?;
    let v = cpu.load::<W>(linear)?;
    let v = if condition::<CC>(cpu.flags) { v } else { cpu.reg(op.dst) };
    cpu.set_reg(op.dst, v);
    Ok(())
}

pub(crate) fn set_r<const CC: u8>(cpu: &mut Cpu, op: &Op) -> Result<()> {
    cpu.set_reg(op.dst, u8::from(condition::<CC>(cpu.flags)));
    Ok(())
}

pub(crate) fn set_m<E: Ea, const CC: u8>(cpu: &mut Cpu, op: &Op) -> Result<()> {
    let linear = E::linear(cpu, op, 1, true)?;
    cpu.store(linear, u8::from(condition::<CC>(cpu.flags)))
}

/// CBW, CWDE, CDQE: `S` to `D` in rAX.
pub(crate) fn convert<S: Width, D: Width>(cpu: &mut Cpu, _: &Op) -> Result<()> {
    cpu.set_reg(0, D::truncate(cpu.reg::<S>(0).sign_extend()));
    Ok(())
}

/// CWD, CDQ, CQO.
pub(crate) fn spread<W: Alu>(cpu: &mut Cpu, _: &Op) -> Result<()> {
    let sign = (cpu.reg::<W>(0).sign_extend() as i64 >> 63) as u64;
    cpu.set_reg(2, W::truncate(sign));
    Ok(())
}

/// BSWAP. With a 16-bit operand the result is undefined; processors clear the register.
pub(crate) fn bswap<W: Alu>(cpu: &mut Cpu, op: &Op) -> Result<()> {
    let v = cpu.reg::<W>(op.dst).zero_extend().swap_bytes() >> (64 - W::BYTES * 8);
    cpu.set_reg(op.dst, W::truncate(if W::BYTES == 2 { 0 } else { v }));
    Ok(())
}

pub(crate) fn lahf(cpu: &mut Cpu, _: &Op) -> Result<()> {
    let v = flags::to_rflags(cpu.flags) as u8 | 2;
    cpu.set_reg(0x80, v);
    Ok(())
}

pub(crate) fn sahf(cpu: &mut Cpu, _: &Op) -> Result<()> {
    let ah = cpu.reg::<u8>(0x80);
    cpu.flags = flags::from_rflags(u64::from(ah)) | cpu.flags & flags::OF;
    Ok(())
}

pub(crate) fn xlat(cpu: &mut Cpu, op: &Op) -> Result<()> {
    let offset = cpu.state.gpr[3].wrapping_add(u64::from(cpu.reg::<u8>(0)));
    let offset = match op.address {
        3 => offset,
        2 => offset & 0xffff_ffff,
        _ => offset & 0xffff,
    };
    let linear = cpu.segmented(op.seg, offset, 1, false)?;
    let v = cpu.load::<u8>(linear)?;
    cpu.set_reg(0, v);
    Ok(())
}

pub(crate) fn movbe_rm<W: Alu, E: Ea>(cpu: &mut Cpu, op: &Op) -> Result<()> {
    let linear = E::linear(cpu, op, W::BYTES, false)?;
    let v = cpu.load::<W>(linear)?.zero_extend().swap_bytes() >> (64 - W::BYTES * 8);
    cpu.set_reg(op.dst, W::truncate(v));
    Ok(())
}

pub(crate) fn movbe_mr<W: Alu, E: Ea>(cpu: &mut Cpu, op: &Op) -> Result<()> {
    let linear = E::linear(cpu, op, W::BYTES, true)?;
    let v = cpu.reg::<W>(op.src).zero_extend().swap_bytes() >> (64 - W::BYTES * 8);
    cpu.store(linear, W::truncate(v))
}

/// CLC, STC, CMC.
pub(crate) fn carry(cpu: &mut Cpu, op: &Op) -> Result<()> {
    cpu.flags = match op.aux {
        0 => cpu.flags & !flags::CF,
        1 => cpu.flags | flags::CF,
        _ => cpu.flags ^ flags::CF,
    };
    Ok(())
}

/// CLD, STD.
pub(crate) fn direction(cpu: &mut Cpu, op: &Op) -> Result<()> {
    cpu.state.rflags = cpu.state.rflags & !flags::bit::DF | if op.aux != 0 { flags::bit::DF } else { 0 };
    Ok(())
}
