//! Integer arithmetic and logic.

use core::marker::PhantomData;

use crate::access::Ea;
use crate::alu::Alu;
use crate::cpu::{Cpu, Result};
use crate::flags::Flags;
use crate::mem::Width;
use crate::op::Op;
use crate::state::Exception;

/// A two-operand operation.
pub(crate) trait Binary {
    /// False for CMP and TEST.
    const WRITES: bool = true;
    fn apply<W: Alu>(a: W, b: W, f: &mut Flags) -> W;
}

macro_rules! binary {
    ($($name:ident => $method:ident, $writes:literal;)*) => {$(
        pub(crate) struct $name;
        impl Binary for $name {
            const WRITES: bool = $writes;
            #[inline(always)]
            fn apply<W: Alu>(a: W, b: W, f: &mut Flags) -> W {
                a.$method(b, f)
            }
        }
    )*};
}

binary! {
    Add => add, true;
    Adc => adc, true;
    Sub => sub, true;
    Sbb => sbb, true;
    And => and, true;
    Or => or, true;
    Xor => xor, true;
    Cmp => sub, false;
    Test => and, false;
}

/// A one-operand operation.
pub(crate) trait Unary {
    fn apply<W: Alu>(a: W, f: &mut Flags) -> W;
}

pub(crate) struct Inc;
pub(crate) struct Dec;
pub(crate) struct Neg;
pub(crate) struct Not;

impl Unary for Inc {
    #[inline(always)]
    fn apply<W: Alu>(a: W, f: &mut Flags) -> W {
        a.inc(f)
    }
}

impl Unary for Dec {
    #[inline(always)]
    fn apply<W: Alu>(a: W, f: &mut Flags) -> W {
        a.dec(f)
    }
}

impl Unary for Neg {
    #[inline(always)]
    fn apply<W: Alu>(a: W, f: &mut Flags) -> W {
        a.neg(f)
    }
}

impl Unary for Not {
    #[inline(always)]
    fn apply<W: Alu>(a: W, _: &mut Flags) -> W {
        W::truncate(!a.zero_extend())
    }
}

/// A shift or rotate.
pub(crate) trait Shift {
    fn apply<W: Alu>(a: W, n: u8, f: &mut Flags) -> W;
}

macro_rules! shift {
    ($($name:ident => $method:ident;)*) => {$(
        pub(crate) struct $name;
        impl Shift for $name {
            #[inline(always)]
            fn apply<W: Alu>(a: W, n: u8, f: &mut Flags) -> W {
                a.$method(n & if W::BYTES == 8 { 63 } else { 31 }, f)
            }
        }
    )*};
}

shift! {
    Rol => rol;
    Ror => ror;
    Rcl => rcl;
    Rcr => rcr;
    Shl => shl;
    Shr => shr;
    Sar => sar;
}

/// Marker for handlers generic over an operation.
pub(crate) struct Of<O>(PhantomData<O>);

impl Cpu {
    #[inline(always)]
    pub(crate) fn reg<W: Width>(&self, r: u8) -> W {
        W::get(&self.state.gpr, r)
    }

    #[inline(always)]
    pub(crate) fn set_reg<W: Width>(&mut self, r: u8, v: W) {
        W::set(&mut self.state.gpr, r, v);
    }
}

impl<O: Binary> Of<O> {
    pub(crate) fn rr<W: Alu>(cpu: &mut Cpu, op: &Op) -> Result<()> {
        let v = O::apply(cpu.reg::<W>(op.dst), cpu.reg(op.src), &mut cpu.flags);
        if O::WRITES {
            cpu.set_reg(op.dst, v);
        }
        Ok(())
    }

    pub(crate) fn ri<W: Alu>(cpu: &mut Cpu, op: &Op) -> Result<()> {
        let v = O::apply(cpu.reg::<W>(op.dst), W::truncate(op.imm), &mut cpu.flags);
        if O::WRITES {
            cpu.set_reg(op.dst, v);
        }
        Ok(())
    }

    pub(crate) fn rm<W: Alu, E: Ea>(cpu: &mut Cpu, op: &Op) -> Result<()> {
        let linear = E::linear(cpu, op, W::BYTES, false)?;
        let b = cpu.load(linear)?;
        let v = O::apply(cpu.reg::<W>(op.dst), b, &mut cpu.flags);
        if O::WRITES {
            cpu.set_reg(op.dst, v);
        }
        Ok(())
    }

    #[inline(always)]
    fn m<W: Alu, E: Ea>(cpu: &mut Cpu, op: &Op, b: W, locked: bool) -> Result<()> {
        let linear = E::linear(cpu, op, W::BYTES, O::WRITES)?;
        if O::WRITES {
            cpu.modify(linear, locked, |a, f| O::apply(a, b, f))?;
        } else {
            let a = cpu.load(linear)?;
            O::apply(a, b, &mut cpu.flags);
        }
        Ok(())
    }

    pub(crate) fn mr<W: Alu, E: Ea>(cpu: &mut Cpu, op: &Op) -> Result<()> {
        let b = cpu.reg::<W>(op.src);
        Self::m::<W, E>(cpu, op, b, false)
    }

    pub(crate) fn mi<W: Alu, E: Ea>(cpu: &mut Cpu, op: &Op) -> Result<()> {
        Self::m::<W, E>(cpu, op, W::truncate(op.imm), false)
    }

    pub(crate) fn mr_locked<W: Alu, E: Ea>(cpu: &mut Cpu, op: &Op) -> Result<()> {
        let b = cpu.reg::<W>(op.src);
        Self::m::<W, E>(cpu, op, b, true)
    }

    pub(crate) fn mi_locked<W: Alu, E: Ea>(cpu: &mut Cpu, op: &Op) -> Result<()> {
        Self::m::<W, E>(cpu, op, W::truncate(op.imm), true)
    }
}

/// Marker for handlers generic over a one-operand operation.
pub(crate) struct One<O>(PhantomData<O>);

impl<O: Unary> One<O> {
    pub(crate) fn r<W: Alu>(cpu: &mut Cpu, op: &Op) -> Result<()> {
        let v = O::apply(cpu.reg::<W>(op.dst), &mut cpu.flags);
        cpu.set_reg(op.dst, v);
        Ok(())
    }

    pub(crate) fn m<W: Alu, E: Ea>(cpu: &mut Cpu, op: &Op) -> Result<()> {
        let linear = E::linear(cpu, op, W::BYTES, true)?;
        cpu.modify::<W>(linear, false, |a, f| O::apply(a, f)).map(drop)
    }

    pub(crate) fn m_locked<W: Alu, E: Ea>(cpu: &mut Cpu, op: &Op) -> Result<()> {
        let linear = E::linear(cpu, op, W::BYTES, true)?;
        cpu.modify::<W>(linear, true, |a, f| O::apply(a, f)).map(drop)
    }
}

/// Marker for handlers generic over a shift.
pub(crate) struct By<O>(PhantomData<O>);

impl<O: Shift> By<O> {
    pub(crate) fn ri<W: Alu>(cpu: &mut Cpu, op: &Op) -> Result<()> {
        let v = O::apply(cpu.reg::<W>(op.dst), op.imm as u8, &mut cpu.flags);
        cpu.set_reg(op.dst, v);
        Ok(())
    }

    pub(crate) fn rc<W: Alu>(cpu: &mut Cpu, op: &Op) -> Result<()> {
        let n = cpu.reg::<u8>(1);
        let v = O::apply(cpu.reg::<W>(op.dst), n, &mut cpu.flags);
        cpu.set_reg(op.dst, v);
        Ok(())
    }

    pub(crate) fn mi<W: Alu, E: Ea>(cpu: &mut Cpu, op: &Op) -> Result<()> {
        let linear = E::linear(cpu, op, W::BYTES, true)?;
        cpu.modify::<W>(linear, false, |a, f| O::apply(a, op.imm as u8, f)).map(drop)
    }

    pub(crate) fn mc<W: Alu, E: Ea>(cpu: &mut Cpu, op: &Op) -> Result<()> {
        let n = cpu.reg::<u8>(1);
        let linear = E::linear(cpu, op, W::BYTES, true)?;
        cpu.modify::<W>(linear, false, |a, f| O::apply(a, n, f)).map(drop)
    }
}

// ---- multiplication and division ----

/// The register pair of one-operand MUL and DIV: AX for bytes, rDX:rAX otherwise.
fn set_pair<W: Width>(cpu: &mut Cpu, low: W, high: W) {
    cpu.set_reg(0, low);
    cpu.set_reg(if W::BYTES == 1 { 0x80 } else { 2 }, high);
}

fn high_half<W: Width>(cpu: &Cpu) -> W {
    cpu.reg(if W::BYTES == 1 { 0x80 } else { 2 })
}

pub(crate) fn mul<W: Alu>(cpu: &mut Cpu, b: W) -> Result<()> {
    let (low, high) = cpu.reg::<W>(0).mul(b, &mut cpu.flags);
    set_pair(cpu, low, high);
    Ok(())
}

pub(crate) fn imul<W: Alu>(cpu: &mut Cpu, b: W) -> Result<()> {
    let (low, high) = cpu.reg::<W>(0).imul(b, &mut cpu.flags);
    set_pair(cpu, low, high);
    Ok(())
}

pub(crate) fn div<W: Alu>(cpu: &mut Cpu, b: W) -> Result<()> {
    let bits = W::BYTES as u32 * 8;
    let a = u128::from(high_half::<W>(cpu).zero_extend()) << bits | u128::from(cpu.reg::<W>(0).zero_extend());
    let b = u128::from(b.zero_extend());
    let quotient =
        if a >> 64 == 0 && b != 0 { Some(u128::from(a as u64 / b as u64)) } else { a.checked_div(b) };
    match quotient {
        Some(q) if q >> bits == 0 => {
            let r = a - q * b;
            set_pair(cpu, W::truncate(q as u64), W::truncate(r as u64));
            Ok(())
        }
        _ => Err(cpu.fault(Exception::bare(0))),
    }
}

pub(crate) fn idiv<W: Alu>(cpu: &mut Cpu, b: W) -> Result<()> {
    let bits = W::BYTES as u32 * 8;
    let a = i128::from(high_half::<W>(cpu).sign_extend() as i64) << bits
        | i128::from(cpu.reg::<W>(0).zero_extend());
    let b = i128::from(b.sign_extend() as i64);
    let quotient = match (i64::try_from(a), b) {
        (Ok(a), b) if b != 0 && a != i64::MIN => Some(i128::from(a / b as i64)),
        _ => a.checked_div(b),
    };
    match quotient {
        Some(q) if q >> (bits - 1) == 0 || q >> (bits - 1) == -1 => {
            let r = a - q * b;
            set_pair(cpu, W::truncate(q as u64), W::truncate(r as u64));
            Ok(())
        }
        _ => Err(cpu.fault(Exception::bare(0))),
    }
}

macro_rules! pair_ops {
    ($($name:ident, $name_m:ident => $f:ident;)*) => {$(
        pub(crate) fn $name<W: Alu>(cpu: &mut Cpu, op: &Op) -> Result<()> {
            let b = cpu.reg::<W>(op.dst);
            $f(cpu, b)
        }

        pub(crate) fn $name_m<W: Alu, E: Ea>(cpu: &mut Cpu, op: &Op) -> Result<()> {
            let linear = E::linear(cpu, op, W::BYTES, false)?;
            let b = cpu.load::<W>(linear)?;
            $f(cpu, b)
        }
    )*};
}

pair_ops! {
    mul_r, mul_m => mul;
    imul_r, imul_m => imul;
    div_r, div_m => div;
    idiv_r, idiv_m => idiv;
}

pub(crate) fn imul_rr<W: Alu>(cpu: &mut Cpu, op: &Op) -> Result<()> {
    let v = cpu.reg::<W>(op.dst).imul(cpu.reg(op.src), &mut cpu.flags).0;
    cpu.set_reg(op.dst, v);
    Ok(())
}

pub(crate) fn imul_rm<W: Alu, E: Ea>(cpu: &mut Cpu, op: &Op) -> Result<()> {
    let linear = E::linear(cpu, op, W::BYTES, false)?;
    let b = cpu.load::<W>(linear)?;
    let v = cpu.reg::<W>(op.dst).imul(b, &mut cpu.flags).0;
    cpu.set_reg(op.dst, v);
    Ok(())
}

pub(crate) fn imul_rri<W: Alu>(cpu: &mut Cpu, op: &Op) -> Result<()> {
    let v = cpu.reg::<W>(op.src).imul(W::truncate(op.imm), &mut cpu.flags).0;
    cpu.set_reg(op.dst, v);
    Ok(())
}

pub(crate) fn imul_rmi<W: Alu, E: Ea>(cpu: &mut Cpu, op: &Op) -> Result<()> {
    let linear = E::linear(cpu, op, W::BYTES, false)?;
    let a = cpu.load::<W>(linear)?;
    let v = a.imul(W::truncate(op.imm), &mut cpu.flags).0;
    cpu.set_reg(op.dst, v);
    Ok(())
}
