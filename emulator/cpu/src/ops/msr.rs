//! RDMSR and WRMSR of the MSRs that the core owns; the rest goes to the environment.

use crate::bits::{canonical, cr0, efer};
use crate::cpu::{Cpu, Result};
use crate::op::{Insn, Op};
use crate::state::CpuState;

const TSC: u32 = 0x10;
const SYSENTER_CS: u32 = 0x174;
const PAT: u32 = 0x277;
const EFER: u32 = 0xc000_0080;

/// How a value must look.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Check {
    Any,
    Canonical,
    Low32,
    Pat,
    Efer,
}

struct Owned {
    index: u32,
    field: fn(&mut CpuState) -> &mut u64,
    check: Check,
}

const fn owned(index: u32, field: fn(&mut CpuState) -> &mut u64, check: Check) -> Owned {
    Owned { index, field, check }
}

static OWNED: [Owned; 13] = [
    owned(SYSENTER_CS, |s| &mut s.sysenter_cs, Check::Any),
    owned(0x175, |s| &mut s.sysenter_esp, Check::Canonical),
    owned(0x176, |s| &mut s.sysenter_eip, Check::Canonical),
    owned(PAT, |s| &mut s.pat, Check::Pat),
    owned(EFER, |s| &mut s.efer, Check::Efer),
    owned(0xc000_0081, |s| &mut s.star, Check::Any),
    owned(0xc000_0082, |s| &mut s.lstar, Check::Canonical),
    owned(0xc000_0083, |s| &mut s.cstar, Check::Canonical),
    owned(0xc000_0084, |s| &mut s.sfmask, Check::Low32),
    owned(0xc000_0100, |s| &mut s.seg[4].base, Check::Canonical),
    owned(0xc000_0101, |s| &mut s.seg[5].base, Check::Canonical),
    owned(0xc000_0102, |s| &mut s.kernel_gs_base, Check::Canonical),
    owned(0xc000_0103, |s| &mut s.tsc_aux, Check::Low32),
];

fn find(index: u32) -> Option<&'static Owned> {
    OWNED.iter().find(|o| o.index == index)
}

pub(crate) fn rdmsr(cpu: &mut Cpu, _: &Op, _: &Insn) -> Result<()> {
    if cpu.state.cpl != 0 {
        return Err(cpu.gp0());
    }
    let index = cpu.reg::<u32>(1);
    let v = match find(index) {
        Some(owned) => {
            cpu.env(|env, state| env.msr_intercept(state, index, None))?;
            *(owned.field)(&mut cpu.state)
        }
        None if index == TSC => cpu.env(|env, state| {
            env.msr_intercept(state, index, None)?;
            env.rdtsc(state)
        })?,
        None => cpu.env(|env, state| env.rdmsr(state, index))?,
    };
    cpu.set_reg(0, v as u32);
    cpu.set_reg(2, (v >> 32) as u32);
    Ok(())
}

pub(crate) fn wrmsr(cpu: &mut Cpu, _: &Op, _: &Insn) -> Result<()> {
    if cpu.state.cpl != 0 {
        return Err(cpu.gp0());
    }
    let index = cpu.reg::<u32>(1);
    let v = u64::from(cpu.reg::<u32>(2)) << 32 | u64::from(cpu.reg::<u32>(0));
    let Some(owned) = find(index) else {
        return cpu.env(|env, state| env.wrmsr(state, index, v));
    };
    let ok = match owned.check {
        Check::Any => true,
        Check::Canonical => canonical(v),
        Check::Low32 => v >> 32 == 0,
        Check::Pat => v.to_le_bytes().iter().all(|t| matches!(t, 0 | 1 | 4..=7)),
        Check::Efer => efer_ok(&cpu.state, v),
    };
    if !ok {
        return Err(cpu.gp0());
    }
    cpu.env(|env, state| env.msr_intercept(state, index, Some(v)))?;
    if owned.check == Check::Efer {
        let old = cpu.state.efer;
        cpu.state.efer = v & !efer::LMA | old & efer::LMA;
        if (old ^ v) & efer::NXE != 0 {
            cpu.paging_changed(false);
        }
        return Ok(());
    }
    *(owned.field)(&mut cpu.state) = v;
    Ok(())
}

fn efer_ok(state: &CpuState, v: u64) -> bool {
    let toggles_lme = (v ^ state.efer) & efer::LME != 0;
    v & !efer::IMPLEMENTED == 0 && !(toggles_lme && state.cr0 & cr0::PG != 0)
}
