//! PUSH, POP and the stack-frame instructions.

use crate::access::Ea;
use crate::alu::Alu;
use crate::cpu::{Cpu, Result};
use crate::flags::{self, bit};
use crate::op::{Insn, Op, SS};

/// 64-bit code with its flat stack: the common case by far.
pub(crate) fn push64(cpu: &mut Cpu, op: &Op) -> Result<()> {
    let v = cpu.state.gpr[usize::from(op.dst & 15)];
    let sp = cpu.state.gpr[4].wrapping_sub(8);
    cpu.store(sp, v)?;
    cpu.state.gpr[4] = sp;
    Ok(())
}

pub(crate) fn pop64(cpu: &mut Cpu, op: &Op) -> Result<()> {
    let sp = cpu.state.gpr[4];
    let v = cpu.load::<u64>(sp)?;
    cpu.state.gpr[4] = sp.wrapping_add(8);
    cpu.state.gpr[usize::from(op.dst & 15)] = v;
    Ok(())
}

pub(crate) fn push_r<W: Alu>(cpu: &mut Cpu, op: &Op) -> Result<()> {
    cpu.push(cpu.reg::<W>(op.dst))
}

pub(crate) fn push_i<W: Alu>(cpu: &mut Cpu, op: &Op) -> Result<()> {
    cpu.push(W::truncate(op.imm))
}

pub(crate) fn push_m<W: Alu, E: Ea>(cpu: &mut Cpu, op: &Op) -> Result<()> {
    let linear = E::linear(cpu, op, W::BYTES, false)?;
    let v = cpu.load::<W>(linear)?;
    cpu.push(v)
}

/// PUSH of a segment register: the selector zero-extended.
pub(crate) fn push_seg<W: Alu>(cpu: &mut Cpu, op: &Op) -> Result<()> {
    let selector = cpu.state.seg[usize::from(op.src) % 6].selector;
    cpu.push(W::truncate(u64::from(selector)))
}

pub(crate) fn pop_r<W: Alu>(cpu: &mut Cpu, op: &Op) -> Result<()> {
    let v = cpu.pop::<W>()?;
    cpu.set_reg(op.dst, v);
    Ok(())
}

/// POP to memory; an address based on the stack pointer sees it already incremented.
pub(crate) fn pop_m<W: Alu, E: Ea>(cpu: &mut Cpu, op: &Op) -> Result<()> {
    let v = cpu.stack_load::<W>(0)?;
    let sp = cpu.state.gpr[4];
    cpu.set_sp(sp.wrapping_add(W::BYTES));
    let done = match E::linear(cpu, op, W::BYTES, true) {
        Ok(linear) => cpu.store(linear, v),
        Err(leave) => Err(leave),
    };
    if done.is_err() {
        cpu.state.gpr[4] = sp;
    }
    done
}

pub(crate) fn leave<W: Alu>(cpu: &mut Cpu, _: &Op) -> Result<()> {
    let frame = cpu.state.gpr[5] & cpu.stack_mask();
    let linear = cpu.segmented(SS, frame, W::BYTES, false)?;
    let v = cpu.load::<W>(linear)?;
    cpu.set_sp(frame.wrapping_add(W::BYTES));
    cpu.set_reg(5, v);
    Ok(())
}

/// ENTER size, level.
pub(crate) fn enter<W: Alu>(cpu: &mut Cpu, op: &Op) -> Result<()> {
    // SAFETY: the decoder gives ENTER its instruction.
    let insn = unsafe { op.insn() };
    let (size, level) = (u64::from(insn.iced.immediate16()), u64::from(insn.iced.immediate8_2nd() & 31));
    let saved = cpu.state.gpr[4];
    let done = enter_frame::<W>(cpu, size, level);
    if done.is_err() {
        cpu.state.gpr[4] = saved;
    }
    done
}

fn enter_frame<W: Alu>(cpu: &mut Cpu, size: u64, level: u64) -> Result<()> {
    cpu.push(cpu.reg::<W>(5))?;
    let frame = cpu.state.gpr[4];
    for i in 1..level {
        let at = cpu.state.gpr[5].wrapping_sub(W::BYTES * i) & cpu.stack_mask();
        let linear = cpu.segmented(SS, at, W::BYTES, false)?;
        let v = cpu.load::<W>(linear)?;
        cpu.push(v)?;
    }
    if level > 0 {
        cpu.push(W::truncate(frame))?;
    }
    let sp = cpu.state.gpr[4].wrapping_sub(size);
    // The new top must be writable, or the frame could not be used.
    let linear = cpu.segmented(SS, sp & cpu.stack_mask(), W::BYTES, true)?;
    cpu.probe_write(linear, W::BYTES, cpu.set)?;
    cpu.set_sp(sp);
    cpu.set_reg(5, W::truncate(frame));
    Ok(())
}

pub(crate) fn pusha<W: Alu>(cpu: &mut Cpu, _: &Op) -> Result<()> {
    let saved = cpu.state.gpr[4];
    for r in 0..8 {
        let v = if r == 4 { W::truncate(saved) } else { cpu.reg::<W>(r) };
        if let Err(leave) = cpu.push(v) {
            cpu.state.gpr[4] = saved;
            return Err(leave);
        }
    }
    Ok(())
}

pub(crate) fn popa<W: Alu>(cpu: &mut Cpu, _: &Op) -> Result<()> {
    let mut values = [W::truncate(0); 8];
    for (i, v) in values.iter_mut().enumerate() {
        *v = cpu.stack_load::<W>(i as u64 * W::BYTES)?;
    }
    cpu.set_sp(cpu.state.gpr[4].wrapping_add(8 * W::BYTES));
    for (i, v) in values.iter().enumerate() {
        let r = 7 - i as u8;
        if r != 4 {
            cpu.set_reg(r, *v);
        }
    }
    Ok(())
}

pub(crate) fn pushf<W: Alu>(cpu: &mut Cpu, _: &Op) -> Result<()> {
    cpu.sync_flags();
    cpu.push(W::truncate(cpu.state.rflags & !(bit::RF | bit::VM)))
}

/// POPF, a system operation: TF, IF, IOPL and AC matter to the run loop.
pub(crate) fn popf<W: Alu>(cpu: &mut Cpu, _: &Op, _: &Insn) -> Result<()> {
    let v = cpu.pop::<W>()?.zero_extend();
    cpu.load_rflags(v, W::BYTES);
    Ok(())
}

impl Cpu {
    /// Loads RFLAGS as POPF and IRET do, with the privilege rules.
    pub(crate) fn load_rflags(&mut self, v: u64, bytes: u64) {
        let mut changeable = flags::ARITHMETIC | bit::TF | bit::DF | bit::NT;
        if bytes > 2 {
            changeable |= bit::AC | bit::ID;
        }
        if self.state.cpl == 0 {
            changeable |= bit::IOPL;
        }
        if u64::from(self.state.cpl) <= self.state.rflags >> 12 & 3 {
            changeable |= bit::IF;
        }
        self.state.rflags = (self.state.rflags & !(changeable | bit::RF) | v & changeable) | 2;
        self.flags = flags::from_rflags(self.state.rflags);
    }
}
