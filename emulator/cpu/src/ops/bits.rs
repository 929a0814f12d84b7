//! Bit operations, exchange-and-compare, and double shifts.

use crate::access::{Ea, General};
use crate::alu::{Alu, Double};
use crate::cpu::{Cpu, Result};
use crate::flags::{AF, CF, Flags, OF, PF, SF, ZF};
use crate::mem::{self, Width};
use crate::op::Op;

/// `aux`: what happens to the bit, and whether atomically.
pub(crate) const TEST: u8 = 0;
pub(crate) const SET: u8 = 1;
pub(crate) const RESET: u8 = 2;
pub(crate) const COMPLEMENT: u8 = 3;
pub(crate) const LOCKED: u8 = 4;

#[inline(always)]
fn change<W: Width>(v: W, bit: u64, kind: u8, f: &mut Flags) -> W {
    let (v, mask) = (v.zero_extend(), 1u64 << bit);
    *f = *f & !CF | if v & mask != 0 { CF } else { 0 };
    W::truncate(match kind & 3 {
        TEST => v,
        SET => v | mask,
        RESET => v & !mask,
        _ => v ^ mask,
    })
}

#[inline(always)]
fn bit_in_register<W: Width>(cpu: &mut Cpu, op: &Op, bit: u64) {
    let v = change(cpu.reg::<W>(op.dst), bit % (W::BYTES * 8), op.aux, &mut cpu.flags);
    if op.aux & 3 != TEST {
        cpu.set_reg(op.dst, v);
    }
}

pub(crate) fn bit_rr<W: Alu>(cpu: &mut Cpu, op: &Op) -> Result<()> {
    let bit = cpu.reg::<W>(op.src).zero_extend();
    bit_in_register::<W>(cpu, op, bit);
    Ok(())
}

pub(crate) fn bit_ri<W: Alu>(cpu: &mut Cpu, op: &Op) -> Result<()> {
    bit_in_register::<W>(cpu, op, op.imm);
    Ok(())
}

fn bit_in_memory<W: Width>(cpu: &mut Cpu, op: &Op, linear: u64, bit: u64) -> Result<()> {
    if op.aux & 3 == TEST {
        let v = cpu.load::<W>(linear)?;
        change(v, bit, TEST, &mut cpu.flags);
        return Ok(());
    }
    cpu.modify::<W>(linear, op.aux & LOCKED != 0, |v, f| change(v, bit, op.aux, f)).map(drop)
}

pub(crate) fn bit_mi<W: Alu>(cpu: &mut Cpu, op: &Op) -> Result<()> {
    let linear = General::linear(cpu, op, W::BYTES, op.aux & 3 != TEST)?;
    bit_in_memory::<W>(cpu, op, linear, op.imm % (W::BYTES * 8))
}

/// The register operand is a signed bit offset from the memory operand.
pub(crate) fn bit_mr<W: Alu>(cpu: &mut Cpu, op: &Op) -> Result<()> {
    let bit = cpu.reg::<W>(op.src).sign_extend() as i64;
    let width = W::BYTES as i64 * 8;
    let away = bit.div_euclid(width).wrapping_mul(W::BYTES as i64);
    let mut offset = cpu.offset(op).wrapping_add(away as u64);
    if op.address < 3 {
        offset &= if op.address == 2 { 0xffff_ffff } else { 0xffff };
    }
    let linear = cpu.segmented(op.seg, offset, W::BYTES, op.aux & 3 != TEST)?;
    bit_in_memory::<W>(cpu, op, linear, bit.rem_euclid(width) as u64)
}

/// `aux` of the scans.
pub(crate) const BSF: u8 = 0;
pub(crate) const BSR: u8 = 1;
pub(crate) const TZCNT: u8 = 2;
pub(crate) const LZCNT: u8 = 3;
pub(crate) const POPCNT: u8 = 4;

fn scan<W: Width>(cpu: &mut Cpu, op: &Op, v: W) {
    let bits = W::BYTES * 8;
    let v = v.zero_extend();
    let leading = u64::from(v.leading_zeros()) - (64 - bits);
    let trailing = u64::from(v.trailing_zeros()).min(bits);
    let zero_if = |yes: bool| if yes { ZF } else { 0 };
    match op.aux {
        BSF | BSR => {
            cpu.flags = cpu.flags & !ZF | zero_if(v == 0);
            if v != 0 {
                let at = if op.aux == BSF { trailing } else { bits - 1 - leading };
                cpu.set_reg(op.dst, W::truncate(at));
            }
        }
        TZCNT | LZCNT => {
            let n = if op.aux == TZCNT { trailing } else { leading };
            cpu.flags = cpu.flags & !(ZF | CF) | zero_if(n == 0) | if v == 0 { CF } else { 0 };
            cpu.set_reg(op.dst, W::truncate(n));
        }
        _ => {
            cpu.flags = cpu.flags & !(ZF | CF | OF | SF | AF | PF) | zero_if(v == 0);
            cpu.set_reg(op.dst, W::truncate(u64::from(v.count_ones())));
        }
    }
}

pub(crate) fn scan_rr<W: Alu>(cpu: &mut Cpu, op: &Op) -> Result<()> {
    let v = cpu.reg::<W>(op.src);
    scan(cpu, op, v);
    Ok(())
}

pub(crate) fn scan_rm<W: Alu, E: Ea>(cpu: &mut Cpu, op: &Op) -> Result<()> {
    let linear = E::linear(cpu, op, W::BYTES, false)?;
    let v = cpu.load::<W>(linear)?;
    scan(cpu, op, v);
    Ok(())
}

// ---- double shifts ----

/// SHLD and SHRD: count in CL (`aux` bit 1) or `imm`; right if `aux` bit 0.
fn double_count(cpu: &Cpu, op: &Op, bytes: u64) -> u8 {
    let n = if op.aux & 2 != 0 { cpu.reg::<u8>(1) } else { op.imm as u8 };
    n & if bytes == 8 { 63 } else { 31 }
}

pub(crate) fn double_r<W: Double>(cpu: &mut Cpu, op: &Op) -> Result<()> {
    let n = double_count(cpu, op, W::BYTES);
    let (a, b) = (cpu.reg::<W>(op.dst), cpu.reg::<W>(op.src));
    let v = if op.aux & 1 != 0 { a.shrd(b, n, &mut cpu.flags) } else { a.shld(b, n, &mut cpu.flags) };
    cpu.set_reg(op.dst, v);
    Ok(())
}

pub(crate) fn double_m<W: Double>(cpu: &mut Cpu, op: &Op) -> Result<()> {
    let n = double_count(cpu, op, W::BYTES);
    let b = cpu.reg::<W>(op.src);
    let linear = General::linear(cpu, op, W::BYTES, true)?;
    let right = op.aux & 1 != 0;
    cpu.modify::<W>(linear, false, |a, f| if right { a.shrd(b, n, f) } else { a.shld(b, n, f) }).map(drop)
}

// ---- exchanges ----

pub(crate) fn xadd_r<W: Alu>(cpu: &mut Cpu, op: &Op) -> Result<()> {
    let (a, b) = (cpu.reg::<W>(op.dst), cpu.reg::<W>(op.src));
    let sum = a.add(b, &mut cpu.flags);
    cpu.set_reg(op.src, a);
    cpu.set_reg(op.dst, sum);
    Ok(())
}

pub(crate) fn xadd_m<W: Alu>(cpu: &mut Cpu, op: &Op) -> Result<()> {
    let b = cpu.reg::<W>(op.src);
    let linear = General::linear(cpu, op, W::BYTES, true)?;
    let old = cpu.modify::<W>(linear, op.aux & LOCKED != 0, |a, f| a.add(b, f))?;
    cpu.set_reg(op.src, old);
    Ok(())
}

pub(crate) fn cmpxchg_r<W: Alu>(cpu: &mut Cpu, op: &Op) -> Result<()> {
    let (acc, a, b) = (cpu.reg::<W>(0), cpu.reg::<W>(op.dst), cpu.reg::<W>(op.src));
    acc.sub(a, &mut cpu.flags);
    if acc == a {
        cpu.set_reg(op.dst, b);
    } else {
        cpu.set_reg(0, a);
    }
    Ok(())
}

/// CMPXCHG writes its memory operand either way, as the hardware does.
pub(crate) fn cmpxchg_m<W: Alu, E: Ea>(cpu: &mut Cpu, op: &Op) -> Result<()> {
    let (acc, b) = (cpu.reg::<W>(0), cpu.reg::<W>(op.src));
    let linear = E::linear(cpu, op, W::BYTES, true)?;
    let old = cpu.modify::<W>(linear, op.aux & LOCKED != 0, |a, f| {
        acc.sub(a, f);
        if acc == a { b } else { a }
    })?;
    if old != acc {
        cpu.set_reg(0, old);
    }
    Ok(())
}

pub(crate) fn cmpxchg8b(cpu: &mut Cpu, op: &Op) -> Result<()> {
    let pair =
        |cpu: &Cpu, low: u8, high: u8| u64::from(cpu.reg::<u32>(high)) << 32 | u64::from(cpu.reg::<u32>(low));
    let (acc, b) = (pair(cpu, 0, 2), pair(cpu, 3, 1));
    let linear = General::linear(cpu, op, 8, true)?;
    let old = cpu.modify::<u64>(linear, op.aux & LOCKED != 0, |a, f| {
        *f = *f & !ZF | if a == acc { ZF } else { 0 };
        if a == acc { b } else { a }
    })?;
    if old != acc {
        cpu.set_reg(0, old as u32);
        cpu.set_reg(2, (old >> 32) as u32);
    }
    Ok(())
}

pub(crate) fn cmpxchg16b(cpu: &mut Cpu, op: &Op) -> Result<()> {
    let pair = |cpu: &Cpu, low: usize, high: usize| {
        u128::from(cpu.state.gpr[high]) << 64 | u128::from(cpu.state.gpr[low])
    };
    let (acc, b) = (pair(cpu, 0, 2), pair(cpu, 3, 1));
    let linear = General::linear(cpu, op, 16, true)?;
    if linear & 15 != 0 {
        return Err(cpu.gp0());
    }
    let old = match cpu.target(linear, 16, crate::env::Access::Write, cpu.set)? {
        // SAFETY: the page was granted for writing, and an aligned operand stays inside it.
        crate::access::Target::Host(p) => unsafe { mem::compare_exchange_16(p, acc, b) },
        crate::access::Target::Mmio(_) => return Err(cpu.gp0()),
    };
    cpu.flags = cpu.flags & !ZF | if old == acc { ZF } else { 0 };
    if old != acc {
        cpu.state.gpr[0] = old as u64;
        cpu.state.gpr[2] = (old >> 64) as u64;
    }
    Ok(())
}
