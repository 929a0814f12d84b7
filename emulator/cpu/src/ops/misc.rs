//! What fits nowhere else: random numbers, cache-line hints, non-temporal stores.

use core::arch::asm;

use crate::alu::Alu;
use crate::cpu::{Cpu, Result};
use crate::flags::{AF, CF, OF, PF, SF, ZF};
use crate::op::Op;

/// RDRAND (`aux` 0) and RDSEED (1) of width `W`, from the host's generator.
pub(crate) fn random<W: Alu>(cpu: &mut Cpu, op: &Op) -> Result<()> {
    let (v, ok): (u64, u8);
    // SAFETY: registers and flags only; the features table advertises these only where the host has them.
    unsafe {
        if op.aux == 0 {
            asm!("rdrand {v}", "setc {ok}", v = out(reg) v, ok = out(reg_byte) ok, options(nomem, nostack));
        } else {
            asm!("rdseed {v}", "setc {ok}", v = out(reg) v, ok = out(reg_byte) ok, options(nomem, nostack));
        }
    }
    cpu.flags = cpu.flags & !(CF | OF | SF | ZF | AF | PF) | if ok != 0 { CF } else { 0 };
    cpu.set_reg(op.dst, W::truncate(v));
    Ok(())
}
