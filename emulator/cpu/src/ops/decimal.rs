//! The decimal-adjust instructions of 16- and 32-bit code.

use crate::alu::Alu;
use crate::cpu::{Cpu, Result};
use crate::flags::{AF, CF, Flags, OF, PF, SF, ZF};
use crate::op::Op;
use crate::state::Exception;

/// SF, ZF and PF of a byte; the rest as given.
fn result_flags(v: u8, rest: Flags) -> Flags {
    let mut f = 0;
    v.or(0, &mut f);
    f & (SF | ZF | PF) | rest
}

fn adjust(cpu: &mut Cpu, subtract: bool) {
    let al = cpu.reg::<u8>(0);
    let (af, cf) = (cpu.flags & AF != 0, cpu.flags & CF != 0);
    let low = al & 15 > 9 || af;
    let high = al > 0x99 || cf;
    let by = if low { 6u8 } else { 0 } + if high { 0x60 } else { 0 };
    let v = if subtract { al.wrapping_sub(by) } else { al.wrapping_add(by) };
    let borrow = subtract && low && (al < 6 || cf);
    let rest = if low { AF } else { 0 } | if high || borrow { CF } else { 0 } | cpu.flags & OF;
    cpu.flags = result_flags(v, rest);
    cpu.set_reg(0, v);
}

pub(crate) fn daa(cpu: &mut Cpu, _: &Op) -> Result<()> {
    adjust(cpu, false);
    Ok(())
}

pub(crate) fn das(cpu: &mut Cpu, _: &Op) -> Result<()> {
    adjust(cpu, true);
    Ok(())
}

fn ascii(cpu: &mut Cpu, subtract: bool) {
    let ax = cpu.reg::<u16>(0);
    let yes = ax & 15 > 9 || cpu.flags & AF != 0;
    let ax = match (yes, subtract) {
        (true, false) => ax.wrapping_add(0x106),
        (true, true) => ax.wrapping_sub(0x106),
        _ => ax,
    };
    cpu.flags = cpu.flags & !(AF | CF) | if yes { AF | CF } else { 0 };
    cpu.set_reg(0, ax & 0xff0f);
}

pub(crate) fn aaa(cpu: &mut Cpu, _: &Op) -> Result<()> {
    ascii(cpu, false);
    Ok(())
}

pub(crate) fn aas(cpu: &mut Cpu, _: &Op) -> Result<()> {
    ascii(cpu, true);
    Ok(())
}

pub(crate) fn aam(cpu: &mut Cpu, op: &Op) -> Result<()> {
    let (al, base) = (cpu.reg::<u8>(0), op.imm as u8);
    let (Some(q), Some(r)) = (al.checked_div(base), al.checked_rem(base)) else {
        return Err(cpu.fault(Exception::bare(0)));
    };
    cpu.set_reg(0, u16::from(q) << 8 | u16::from(r));
    cpu.flags = result_flags(r, 0);
    Ok(())
}

pub(crate) fn aad(cpu: &mut Cpu, op: &Op) -> Result<()> {
    let ax = cpu.reg::<u16>(0);
    let v = (ax as u8).wrapping_add(((ax >> 8) as u8).wrapping_mul(op.imm as u8));
    cpu.set_reg(0, u16::from(v));
    cpu.flags = result_flags(v, 0);
    Ok(())
}

/// SALC, undocumented and everywhere.
pub(crate) fn salc(cpu: &mut Cpu, _: &Op) -> Result<()> {
    let v = if cpu.flags & CF != 0 { 0xffu8 } else { 0 };
    cpu.set_reg(0, v);
    Ok(())
}
