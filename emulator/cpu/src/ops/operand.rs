//! Operands of instructions that are too rare for a form of their own.

use iced_x86::{Instruction, OpKind, Register};

use crate::access::{Ea, General};
use crate::cpu::{Cpu, Result};
use crate::mem::Width;
use crate::op::Op;

/// The encoding's number of a general register, with AH to BH marked as [`Width::get`] wants it.
pub(crate) fn gpr_index(r: Register) -> u8 {
    let n = r.number() as u8;
    if !r.is_gpr8() {
        return n & 15;
    }
    match n {
        0..4 => n,
        4..8 => (n - 4) | 0x80,
        _ => n - 4,
    }
}

/// Size of an operand in bytes.
pub(crate) fn operand_bytes(i: &Instruction, n: u32) -> u64 {
    match i.op_kind(n) {
        OpKind::Register => i.op_register(n).size() as u64,
        OpKind::Memory => i.memory_size().size() as u64,
        _ => 8,
    }
}

impl Cpu {
    pub(crate) fn reg_sized(&self, r: u8, bytes: u64) -> u64 {
        match bytes {
            1 => self.reg::<u8>(r).zero_extend(),
            2 => self.reg::<u16>(r).zero_extend(),
            4 => self.reg::<u32>(r).zero_extend(),
            _ => self.reg::<u64>(r),
        }
    }

    pub(crate) fn set_reg_sized(&mut self, r: u8, bytes: u64, v: u64) {
        match bytes {
            1 => self.set_reg(r, v as u8),
            2 => self.set_reg(r, v as u16),
            4 => self.set_reg(r, v as u32),
            _ => self.set_reg(r, v),
        }
    }

    pub(crate) fn load_sized(&mut self, linear: u64, bytes: u64) -> Result<u64> {
        match bytes {
            1 => self.load::<u8>(linear).map(u64::from),
            2 => self.load::<u16>(linear).map(u64::from),
            4 => self.load::<u32>(linear).map(u64::from),
            _ => self.load::<u64>(linear),
        }
    }

    pub(crate) fn store_sized(&mut self, linear: u64, bytes: u64, v: u64) -> Result<()> {
        match bytes {
            1 => self.store(linear, v as u8),
            2 => self.store(linear, v as u16),
            4 => self.store(linear, v as u32),
            _ => self.store(linear, v),
        }
    }

    /// Reads operand `n`, zero-extended.
    pub(crate) fn operand(&mut self, op: &Op, i: &Instruction, n: u32) -> Result<u64> {
        let bytes = operand_bytes(i, n);
        match i.op_kind(n) {
            OpKind::Register => Ok(self.reg_sized(gpr_index(i.op_register(n)), bytes)),
            OpKind::Memory => {
                let linear = General::linear(self, op, bytes, false)?;
                self.load_sized(linear, bytes)
            }
            _ => Ok(i.immediate(n)),
        }
    }

    /// Writes operand `n`.
    pub(crate) fn set_operand(&mut self, op: &Op, i: &Instruction, n: u32, v: u64) -> Result<()> {
        let bytes = operand_bytes(i, n);
        match i.op_kind(n) {
            OpKind::Register => self.set_reg_sized(gpr_index(i.op_register(n)), bytes, v),
            _ => {
                let linear = General::linear(self, op, bytes, true)?;
                self.store_sized(linear, bytes, v)?;
            }
        }
        Ok(())
    }
}
