//! Port I/O.

use crate::cpu::{Cpu, Result};
use crate::op::{Insn, Op};

impl Cpu {
    /// The I/O permission check: IOPL, then the TSS's bitmap.
    pub(crate) fn check_port(&mut self, port: u16, bytes: u64) -> Result<()> {
        let iopl = (self.state.rflags >> 12 & 3) as u8;
        if !self.protected() || self.state.cpl <= iopl {
            return Ok(());
        }
        let (base, limit) = (self.state.tr.base, self.state.tr.limit);
        if self.state.tr.attributes & 0xf < 9 || limit < 0x67 {
            return Err(self.gp0());
        }
        let map = u32::from(self.load_system::<u16>(base.wrapping_add(0x66))?);
        let at = map + u32::from(port / 8);
        if at + 1 > limit {
            return Err(self.gp0());
        }
        let bits = self.load_system::<u16>(base.wrapping_add(u64::from(at)))?;
        if bits >> (port % 8) & ((1 << bytes) - 1) != 0 { Err(self.gp0()) } else { Ok(()) }
    }
}

/// IN and OUT: `aux` is the width, the port is `imm` of the instruction or DX.
fn port(cpu: &Cpu, insn: &Insn, operand: u32) -> u16 {
    match insn.iced.op_kind(operand) {
        iced_x86::OpKind::Immediate8 => u16::from(insn.iced.immediate8()),
        _ => cpu.reg::<u16>(2),
    }
}

pub(crate) fn port_in(cpu: &mut Cpu, op: &Op, insn: &Insn) -> Result<()> {
    let port = port(cpu, insn, 1);
    cpu.check_port(port, u64::from(op.aux))?;
    let v = cpu.env(|env, state| env.port_in(state, port, op.aux, false))?;
    cpu.set_reg_sized(0, u64::from(op.aux), u64::from(v));
    Ok(())
}

pub(crate) fn port_out(cpu: &mut Cpu, op: &Op, insn: &Insn) -> Result<()> {
    let port = port(cpu, insn, 0);
    cpu.check_port(port, u64::from(op.aux))?;
    let v = cpu.reg_sized(0, u64::from(op.aux)) as u32;
    cpu.env(|env, state| env.port_out(state, port, op.aux, v, false))
}
