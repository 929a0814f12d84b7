//! The frame around instructions that may change mode, or that the environment carries out.

use crate::cpu::{Cpu, Leave, Result};
use crate::op::{IDLE, Op};

/// Runs [`crate::op::Insn::exec`] with RIP at the instruction, then steps over it. Always ends the block.
pub(crate) fn system(cpu: &mut Cpu, op: &Op) -> Result<()> {
    // SAFETY: the decoder gives every system operation its instruction.
    let insn = unsafe { op.insn() };
    let length = op.length();
    let local = Op { start: 0, end: u16::from(length), ..*op };
    cpu.state.rip = cpu.state.rip.wrapping_add(u64::from(op.start));
    cpu.length = length;
    cpu.current = &raw const local;
    let done = (insn.exec)(cpu, &local, insn);
    cpu.current = &raw const IDLE;
    match done {
        Ok(()) => cpu.set_rip(cpu.state.rip.wrapping_add(u64::from(length))),
        Err(Leave::Branch) => {}
        Err(Leave::Stop) => return Err(Leave::Stop),
    }
    cpu.update_mode();
    Err(Leave::Branch)
}
