//! String instructions. Every iteration commits by itself; runs of iterations inside a page go to the host's own
//! string instructions.

use crate::access::Target;
use crate::alu::Alu;
use crate::cpu::{Cpu, Leave, Result};
use crate::env::Access;
use crate::flags::{ZF, bit};
use crate::mem::{self, Width};
use crate::op::{ES, Op};

/// `aux`: the repeat prefix.
pub(crate) const ONCE: u8 = 0;
pub(crate) const REPEAT_EQUAL: u8 = 1;
pub(crate) const REPEAT_NOT_EQUAL: u8 = 2;

const RCX: u8 = 1;
const RSI: u8 = 6;
const RDI: u8 = 7;

fn mask(op: &Op) -> u64 {
    match op.address {
        3 => u64::MAX,
        2 => 0xffff_ffff,
        _ => 0xffff,
    }
}

/// An address or count register at the address size.
#[inline(always)]
fn pointer(cpu: &Cpu, op: &Op, r: u8) -> u64 {
    cpu.state.gpr[usize::from(r)] & mask(op)
}

#[inline(always)]
fn set_pointer(cpu: &mut Cpu, op: &Op, r: u8, v: u64) {
    match op.address {
        3 => cpu.set_reg(r, v),
        2 => cpu.set_reg(r, v as u32),
        _ => cpu.set_reg(r, v as u16),
    }
}

#[inline(always)]
fn step<W: Width>(cpu: &Cpu) -> u64 {
    if cpu.state.rflags & bit::DF != 0 { W::BYTES.wrapping_neg() } else { W::BYTES }
}

#[inline(always)]
fn advance(cpu: &mut Cpu, op: &Op, r: u8, by: u64) {
    let v = pointer(cpu, op, r).wrapping_add(by);
    set_pointer(cpu, op, r, v);
}

/// Repeats `one` as the prefix says; `one` commits its own iterations and returns how many there were.
#[inline(always)]
fn repeat(cpu: &mut Cpu, op: &Op, mut one: impl FnMut(&mut Cpu, u64) -> Result<u64>) -> Result<()> {
    if op.aux == ONCE {
        return one(cpu, 1).map(drop);
    }
    loop {
        let count = pointer(cpu, op, RCX);
        if count == 0 {
            return Ok(());
        }
        let done = one(cpu, count)?;
        set_pointer(cpu, op, RCX, count - done);
        if count != done && cpu.wants_attention() {
            return suspend(cpu, op);
        }
    }
}

/// Ends the block before the instruction is through: it goes on from its committed registers.
fn suspend(cpu: &mut Cpu, op: &Op) -> Result<()> {
    cpu.set_rip(cpu.state.rip.wrapping_add(u64::from(op.start)));
    Err(Leave::Branch)
}

/// How many of `count` upward iterations at `offset` stay within one page and the segment; 0 for the slow way.
fn run_length<W: Width>(cpu: &Cpu, op: &Op, seg: u8, offset: u64, linear: u64, count: u64) -> u64 {
    if count == 1 || cpu.state.rflags & bit::DF != 0 {
        return 0;
    }
    let in_page = (0x1000 - (linear & 0xfff)) / W::BYTES;
    if cpu.code64() && op.address == 3 {
        return in_page.min(count);
    }
    let limit = if cpu.code64() { u64::MAX } else { u64::from(cpu.state.seg[usize::from(seg)].limit) };
    let room = limit.min(mask(op)).saturating_sub(offset).saturating_add(1) / W::BYTES;
    in_page.min(count).min(room)
}

pub(crate) fn stos<W: Alu>(cpu: &mut Cpu, op: &Op) -> Result<()> {
    repeat(cpu, op, |cpu, count| {
        let offset = pointer(cpu, op, RDI);
        let linear = cpu.segmented(ES, offset, W::BYTES, true)?;
        let n = run_length::<W>(cpu, op, ES, offset, linear, count);
        if n > 1
            && let Target::Host(p) = cpu.target(linear, n * W::BYTES, Access::Write, cpu.set)?
        {
            // SAFETY: the page was granted for writing and `n` elements stay inside it.
            unsafe { mem::fill(p, cpu.reg::<W>(0), n as usize) };
            advance(cpu, op, RDI, n * W::BYTES);
            return Ok(n);
        }
        cpu.store(linear, cpu.reg::<W>(0))?;
        advance(cpu, op, RDI, step::<W>(cpu));
        Ok(1)
    })
}

pub(crate) fn movs<W: Alu>(cpu: &mut Cpu, op: &Op) -> Result<()> {
    repeat(cpu, op, |cpu, count| {
        let (source, dest) = (pointer(cpu, op, RSI), pointer(cpu, op, RDI));
        let from = cpu.segmented(op.seg, source, W::BYTES, false)?;
        let to = cpu.segmented(ES, dest, W::BYTES, true)?;
        let n = run_length::<W>(cpu, op, op.seg, source, from, count);
        let n = if n > 1 { run_length::<W>(cpu, op, ES, dest, to, n) } else { n };
        if n > 1
            && let Target::Host(s) = cpu.target(from, n * W::BYTES, Access::Read, cpu.set)?
            && let Target::Host(d) = cpu.target(to, n * W::BYTES, Access::Write, cpu.set)?
        {
            // SAFETY: both pages were granted and `n` elements stay inside them.
            unsafe { mem::copy_elements::<W>(d, s, n as usize) };
            advance(cpu, op, RSI, n * W::BYTES);
            advance(cpu, op, RDI, n * W::BYTES);
            return Ok(n);
        }
        let v = cpu.load::<W>(from)?;
        cpu.store(to, v)?;
        advance(cpu, op, RSI, step::<W>(cpu));
        advance(cpu, op, RDI, step::<W>(cpu));
        Ok(1)
    })
}

pub(crate) fn lods<W: Alu>(cpu: &mut Cpu, op: &Op) -> Result<()> {
    repeat(cpu, op, |cpu, _| {
        let offset = pointer(cpu, op, RSI);
        let linear = cpu.segmented(op.seg, offset, W::BYTES, false)?;
        let v = cpu.load::<W>(linear)?;
        cpu.set_reg(0, v);
        advance(cpu, op, RSI, step::<W>(cpu));
        Ok(1)
    })
}

/// Repeats a comparison until the count or ZF ends it.
#[inline(always)]
fn compare(cpu: &mut Cpu, op: &Op, mut one: impl FnMut(&mut Cpu) -> Result<()>) -> Result<()> {
    if op.aux == ONCE {
        return one(cpu);
    }
    let before = cpu.flags;
    loop {
        let count = pointer(cpu, op, RCX);
        if count == 0 {
            return Ok(());
        }
        if let Err(leave) = one(cpu) {
            // A fault shows the flags from before the instruction (SDM volume 2, REP).
            cpu.flags = before;
            return Err(leave);
        }
        set_pointer(cpu, op, RCX, count - 1);
        if (cpu.flags & ZF != 0) != (op.aux == REPEAT_EQUAL) {
            return Ok(());
        }
        if (count & 0xfff == 1 || cpu.stepping) && count != 1 && cpu.wants_attention() {
            return suspend(cpu, op);
        }
    }
}

pub(crate) fn scas<W: Alu>(cpu: &mut Cpu, op: &Op) -> Result<()> {
    compare(cpu, op, |cpu| {
        let offset = pointer(cpu, op, RDI);
        let linear = cpu.segmented(ES, offset, W::BYTES, false)?;
        let v = cpu.load::<W>(linear)?;
        cpu.reg::<W>(0).sub(v, &mut cpu.flags);
        advance(cpu, op, RDI, step::<W>(cpu));
        Ok(())
    })
}

pub(crate) fn cmps<W: Alu>(cpu: &mut Cpu, op: &Op) -> Result<()> {
    compare(cpu, op, |cpu| {
        let (source, dest) = (pointer(cpu, op, RSI), pointer(cpu, op, RDI));
        let a_at = cpu.segmented(op.seg, source, W::BYTES, false)?;
        let b_at = cpu.segmented(ES, dest, W::BYTES, false)?;
        let a = cpu.load::<W>(a_at)?;
        let b = cpu.load::<W>(b_at)?;
        a.sub(b, &mut cpu.flags);
        advance(cpu, op, RSI, step::<W>(cpu));
        advance(cpu, op, RDI, step::<W>(cpu));
        Ok(())
    })
}

/// INS: the destination is proven writable before the port is read.
pub(crate) fn ins<W: Alu>(cpu: &mut Cpu, op: &Op) -> Result<()> {
    let port = cpu.reg::<u16>(2);
    cpu.check_port(port, W::BYTES)?;
    repeat(cpu, op, |cpu, _| {
        let offset = pointer(cpu, op, RDI);
        let linear = cpu.segmented(ES, offset, W::BYTES, true)?;
        cpu.probe_write(linear, W::BYTES, cpu.set)?;
        let v = cpu.env(|env, state| env.port_in(state, port, W::BYTES as u8, true))?;
        cpu.store(linear, W::truncate(u64::from(v)))?;
        advance(cpu, op, RDI, step::<W>(cpu));
        Ok(1)
    })
}

pub(crate) fn outs<W: Alu>(cpu: &mut Cpu, op: &Op) -> Result<()> {
    let port = cpu.reg::<u16>(2);
    cpu.check_port(port, W::BYTES)?;
    repeat(cpu, op, |cpu, _| {
        let offset = pointer(cpu, op, RSI);
        let linear = cpu.segmented(op.seg, offset, W::BYTES, false)?;
        let v = cpu.load::<W>(linear)?.zero_extend() as u32;
        cpu.env(|env, state| env.port_out(state, port, W::BYTES as u8, v, true))?;
        advance(cpu, op, RSI, step::<W>(cpu));
        Ok(1)
    })
}
