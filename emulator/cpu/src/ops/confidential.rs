//! The instructions of SEV-SNP and TDX: the core finds the page, the environment does the rest.

use crate::cpu::{Cpu, Result};
use crate::env::Access;
use crate::op::{Insn, Op};

/// Where the page that rAX names is mapped; these instructions check like a one-byte read (AMD APM volume 3).
fn page(cpu: &mut Cpu) -> Result<(u64, u64, bool, bool)> {
    if cpu.state.cpl != 0 {
        return Err(cpu.gp0());
    }
    let gva = if cpu.code64() { cpu.state.gpr[0] } else { cpu.state.gpr[0] & 0xffff_ffff };
    let t = cpu.translate(gva, Access::Read)?;
    Ok((gva, t.gpa & !0xfff, t.private, t.span >= 0x1f_ffff))
}

pub(crate) fn pvalidate(cpu: &mut Cpu, _: &Op, _: &Insn) -> Result<()> {
    let (gva, gpa, private, large) = page(cpu)?;
    cpu.env(|env, state| env.pvalidate(state, gva, gpa, private, large))
}

pub(crate) fn rmpadjust(cpu: &mut Cpu, _: &Op, _: &Insn) -> Result<()> {
    let (gva, gpa, private, _) = page(cpu)?;
    cpu.env(|env, state| env.rmpadjust(state, gva, gpa, private, false))
}

pub(crate) fn rmpquery(cpu: &mut Cpu, _: &Op, _: &Insn) -> Result<()> {
    let (gva, gpa, private, _) = page(cpu)?;
    cpu.env(|env, state| env.rmpadjust(state, gva, gpa, private, true))
}

pub(crate) fn vmgexit(cpu: &mut Cpu, _: &Op, _: &Insn) -> Result<()> {
    cpu.epoch += 1;
    cpu.env(|env, state| env.vmgexit(state))
}

pub(crate) fn vmmcall(cpu: &mut Cpu, _: &Op, _: &Insn) -> Result<()> {
    cpu.epoch += 1;
    cpu.env(|env, state| env.vmcall(state, false))
}

pub(crate) fn vmcall(cpu: &mut Cpu, _: &Op, _: &Insn) -> Result<()> {
    cpu.epoch += 1;
    cpu.env(|env, state| env.vmcall(state, true))
}

pub(crate) fn tdcall(cpu: &mut Cpu, _: &Op, _: &Insn) -> Result<()> {
    cpu.epoch += 1;
    if cpu.state.cpl != 0 {
        return Err(cpu.gp0());
    }
    cpu.env(|env, state| env.tdcall(state))
}
