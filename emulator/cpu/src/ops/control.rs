//! Control and debug registers, TLB and cache maintenance, processor control. All are system operations.

use iced_x86::Mnemonic;

use crate::bits::{attr, canonical, cr0, cr4, efer};
use crate::cpu::{Cpu, Leave, Result};
use crate::flags::{self, bit};
use crate::op::{CS, Insn, Op};
use crate::ops::operand::gpr_index;
use crate::state::{Exception, MemoryEncryption};

fn privileged(cpu: &mut Cpu) -> Result<()> {
    if cpu.state.cpl != 0 { Err(cpu.gp0()) } else { Ok(()) }
}

pub(crate) fn mov_from_cr(cpu: &mut Cpu, op: &Op, insn: &Insn) -> Result<()> {
    privileged(cpu)?;
    let v = match insn.iced.op1_register().number() {
        0 => cpu.state.cr0,
        2 => cpu.state.cr2,
        3 => cpu.state.cr3,
        4 => cpu.state.cr4,
        8 => cpu.env(|env, state| env.read_cr8(state))?,
        _ => return Err(cpu.ud()),
    };
    cpu.set_operand(op, &insn.iced, 0, v)
}

pub(crate) fn mov_to_cr(cpu: &mut Cpu, op: &Op, insn: &Insn) -> Result<()> {
    privileged(cpu)?;
    let v = cpu.operand(op, &insn.iced, 1)?;
    match insn.iced.op0_register().number() {
        0 => write_cr0(cpu, v),
        2 => {
            cpu.env(|env, state| env.cr_write(state, 2, v))?;
            cpu.state.cr2 = v;
            Ok(())
        }
        3 => write_cr3(cpu, v),
        4 => write_cr4(cpu, v),
        8 => {
            if v & !15 != 0 {
                return Err(cpu.gp0());
            }
            cpu.env(|env, state| env.cr_write(state, 8, v))?;
            cpu.env(|env, state| env.write_cr8(state, v))
        }
        _ => Err(cpu.ud()),
    }
}

fn write_cr0(cpu: &mut Cpu, v: u64) -> Result<()> {
    let (old, s) = (cpu.state.cr0, &cpu.state);
    let bad = v >> 32 != 0
        || v & cr0::PG != 0 && v & cr0::PE == 0
        || v & cr0::NW != 0 && v & cr0::CD == 0
        || v & !old & cr0::PG != 0
            && s.efer & efer::LME != 0
            && (s.cr4 & cr4::PAE == 0 || s.seg[usize::from(CS)].attributes & attr::L != 0)
        || old & !v & cr0::PG != 0 && cpu.code64();
    if bad {
        return Err(cpu.gp0());
    }
    let known = cr0::PE | cr0::MP | cr0::EM | cr0::TS | cr0::ET | cr0::NE;
    let v = v & (known | cr0::WP | cr0::AM | cr0::NW | cr0::CD | cr0::PG) | cr0::ET;
    cpu.env(|env, state| env.cr_write(state, 0, v))?;
    cpu.epoch += 1;
    cpu.state.cr0 = v;
    if (v ^ old) & cr0::PG != 0 {
        if v & cr0::PG != 0 && cpu.state.efer & efer::LME != 0 {
            cpu.state.efer |= efer::LMA;
        } else {
            cpu.state.efer &= !efer::LMA;
        }
    }
    if (v ^ old) & (cr0::PG | cr0::PE | cr0::WP) != 0 {
        cpu.paging_changed(false);
        cpu.env(|env, state| {
            env.tlb_flushed(state);
            Ok(())
        })?;
    }
    Ok(())
}

fn write_cr3(cpu: &mut Cpu, v: u64) -> Result<()> {
    if cpu.long_mode() {
        let width = u32::from(cpu.state.physical_address_bits.clamp(32, 52));
        let mut allowed = (1u64 << width) - 1;
        if let MemoryEncryption::CBit(n) | MemoryEncryption::SharedBit(n) = cpu.state.memory_encryption {
            allowed |= 1 << (n & 63);
        }
        if v & !allowed != 0 {
            return Err(cpu.gp0());
        }
    }
    cpu.env(|env, state| env.cr_write(state, 3, v))?;
    cpu.state.cr3 = v;
    cpu.paging_changed(true);
    cpu.env(|env, state| {
        env.tlb_flushed(state);
        Ok(())
    })
}

fn write_cr4(cpu: &mut Cpu, v: u64) -> Result<()> {
    let old = cpu.state.cr4;
    let implemented = cr4::IMPLEMENTED | if crate::features::xsave() { cr4::OSXSAVE } else { 0 };
    if v & !implemented != 0 || cpu.long_mode() && v & cr4::PAE == 0 {
        return Err(cpu.gp0());
    }
    cpu.env(|env, state| env.cr_write(state, 4, v))?;
    cpu.epoch += 1;
    cpu.state.cr4 = v;
    if (v ^ old) & (cr4::PSE | cr4::PAE | cr4::PGE | cr4::SMEP | cr4::SMAP) != 0 {
        cpu.paging_changed(false);
        cpu.env(|env, state| {
            env.tlb_flushed(state);
            Ok(())
        })?;
    }
    Ok(())
}

/// LMSW sets PE, MP, EM and TS, and cannot clear PE.
pub(crate) fn lmsw(cpu: &mut Cpu, op: &Op, insn: &Insn) -> Result<()> {
    privileged(cpu)?;
    let v = cpu.operand(op, &insn.iced, 0)?;
    let kept = cpu.state.cr0 & !(cr0::MP | cr0::EM | cr0::TS);
    write_cr0(cpu, kept | v & 15)
}

pub(crate) fn clts(cpu: &mut Cpu, _: &Op, _: &Insn) -> Result<()> {
    privileged(cpu)?;
    let v = cpu.state.cr0 & !cr0::TS;
    cpu.env(|env, state| env.cr_write(state, 0, v))?;
    cpu.state.cr0 = v;
    Ok(())
}

// ---- debug registers ----

/// DR4 and DR5 are DR6 and DR7 unless CR4.DE.
fn debug_register(cpu: &mut Cpu, n: usize) -> Result<usize> {
    privileged(cpu)?;
    if cpu.state.dr7 & 1 << 13 != 0 {
        cpu.state.dr6 |= 1 << 13;
        cpu.state.dr7 &= !(1 << 13);
        return Err(cpu.fault(Exception::bare(1)));
    }
    match n {
        4 | 5 if cpu.state.cr4 & 8 != 0 => Err(cpu.ud()),
        4 | 5 => Ok(n + 2),
        _ => Ok(n & 7),
    }
}

pub(crate) fn mov_from_dr(cpu: &mut Cpu, op: &Op, insn: &Insn) -> Result<()> {
    let n = debug_register(cpu, insn.iced.op1_register().number())?;
    cpu.env(|env, state| env.dr_access(state, n as u8, None))?;
    let v = match n {
        6 => cpu.state.dr6,
        7 => cpu.state.dr7,
        _ => cpu.state.dr[n & 3],
    };
    cpu.set_operand(op, &insn.iced, 0, v)
}

pub(crate) fn mov_to_dr(cpu: &mut Cpu, op: &Op, insn: &Insn) -> Result<()> {
    let n = debug_register(cpu, insn.iced.op0_register().number())?;
    let v = cpu.operand(op, &insn.iced, 1)?;
    if n >= 6 && v >> 32 != 0 {
        return Err(cpu.gp0());
    }
    cpu.env(|env, state| env.dr_access(state, n as u8, Some(v)))?;
    match n {
        6 => cpu.state.dr6 = v & 0xe00f | 0xffff_0ff0,
        7 => cpu.state.dr7 = v & 0xffff_2fff | 0x400,
        _ => cpu.state.dr[n & 3] = v,
    }
    Ok(())
}

// ---- TLB and caches ----

pub(crate) fn invlpg(cpu: &mut Cpu, op: &Op, _: &Insn) -> Result<()> {
    privileged(cpu)?;
    let offset = cpu.offset(op);
    let base =
        if cpu.code64() && op.seg < crate::op::FS { 0 } else { cpu.state.seg[usize::from(op.seg)].base };
    cpu.invalidate(base.wrapping_add(offset))
}

pub(crate) fn invpcid(cpu: &mut Cpu, op: &Op, insn: &Insn) -> Result<()> {
    use crate::access::{Ea, General};
    privileged(cpu)?;
    let kind = cpu.reg::<u64>(gpr_index(insn.iced.op0_register()));
    let linear = General::linear(cpu, op, 16, false)?;
    let pcid = cpu.load::<u64>(linear)?;
    let address = cpu.load::<u64>(linear.wrapping_add(8))?;
    match kind {
        0 if pcid == 0 && canonical(address) => cpu.invalidate(address),
        1 | 3 if pcid == 0 || kind == 3 => {
            cpu.paging_changed(true);
            Ok(())
        }
        2 => {
            cpu.paging_changed(false);
            Ok(())
        }
        _ => Err(cpu.gp0()),
    }
}

impl Cpu {
    fn invalidate(&mut self, linear: u64) -> Result<()> {
        self.tlb.flush_page(linear);
        self.epoch += 1;
        self.env(|env, state| {
            env.tlb_flushed(state);
            Ok(())
        })
    }
}

/// INVD, WBINVD, WBNOINVD.
pub(crate) fn wbinvd(cpu: &mut Cpu, _: &Op, insn: &Insn) -> Result<()> {
    privileged(cpu)?;
    let invd = insn.iced.mnemonic() == Mnemonic::Invd;
    cpu.env(|env, state| env.wbinvd(state, invd))
}

// ---- interrupt flag, halting ----

pub(crate) fn cli(cpu: &mut Cpu, _: &Op, _: &Insn) -> Result<()> {
    iopl(cpu)?;
    cpu.state.rflags &= !bit::IF;
    Ok(())
}

pub(crate) fn sti(cpu: &mut Cpu, _: &Op, _: &Insn) -> Result<()> {
    iopl(cpu)?;
    if cpu.state.rflags & bit::IF == 0 {
        cpu.state.rflags |= bit::IF;
        cpu.state.interrupt_shadow = true;
    }
    Ok(())
}

fn iopl(cpu: &mut Cpu) -> Result<()> {
    let allowed = u64::from(cpu.state.cpl) <= cpu.state.rflags >> 12 & 3;
    if cpu.protected() && !allowed { Err(cpu.gp0()) } else { Ok(()) }
}

/// CLAC and STAC.
pub(crate) fn alignment_check(cpu: &mut Cpu, op: &Op, _: &Insn) -> Result<()> {
    if cpu.state.cpl != 0 {
        return Err(cpu.ud());
    }
    cpu.state.rflags = cpu.state.rflags & !bit::AC | if op.aux != 0 { bit::AC } else { 0 };
    Ok(())
}

pub(crate) fn hlt(cpu: &mut Cpu, _: &Op, _: &Insn) -> Result<()> {
    privileged(cpu)?;
    cpu.env(|env, state| env.hlt(state))
}

/// MONITOR and MWAIT (and AMD's MONITORX and MWAITX are not advertised).
pub(crate) fn mwait(cpu: &mut Cpu, _: &Op, insn: &Insn) -> Result<()> {
    if cpu.state.cpl != 0 {
        return Err(cpu.ud());
    }
    let monitor = insn.iced.mnemonic() == Mnemonic::Monitor;
    cpu.env(|env, state| env.mwait(state, monitor))
}

/// PAUSE: lets the run loop look around, and now and then another processor's thread run.
pub(crate) fn pause(cpu: &mut Cpu, _: &Op, _: &Insn) -> Result<()> {
    const PAUSES_PER_YIELD: u32 = 128;
    cpu.pauses = cpu.pauses.wrapping_add(1);
    if cpu.pauses.is_multiple_of(PAUSES_PER_YIELD) {
        std::thread::yield_now();
    }
    Ok(())
}

// ---- identification and counters ----

pub(crate) fn cpuid(cpu: &mut Cpu, _: &Op, _: &Insn) -> Result<()> {
    cpu.epoch += 1;
    let (leaf, subleaf) = (cpu.reg::<u32>(0), cpu.reg::<u32>(1));
    let [eax, ebx, ecx, edx] = cpu.env(|env, state| env.cpuid(state, leaf, subleaf))?;
    for (r, v) in [(0, eax), (3, ebx), (1, ecx), (2, edx)] {
        cpu.set_reg(r, v);
    }
    Ok(())
}

fn set_edx_eax(cpu: &mut Cpu, v: u64) {
    cpu.set_reg(0, v as u32);
    cpu.set_reg(2, (v >> 32) as u32);
}

pub(crate) fn rdtsc(cpu: &mut Cpu, _: &Op, insn: &Insn) -> Result<()> {
    if cpu.state.cr4 & cr4::TSD != 0 && cpu.state.cpl != 0 {
        return Err(cpu.gp0());
    }
    let v = cpu.env(|env, state| env.rdtsc(state))?;
    set_edx_eax(cpu, v);
    if insn.iced.mnemonic() == Mnemonic::Rdtscp {
        cpu.set_reg(1, cpu.state.tsc_aux as u32);
    }
    Ok(())
}

pub(crate) fn rdpid(cpu: &mut Cpu, _: &Op, insn: &Insn) -> Result<()> {
    cpu.set_reg(gpr_index(insn.iced.op0_register()), cpu.state.tsc_aux);
    Ok(())
}

pub(crate) fn rdpmc(cpu: &mut Cpu, _: &Op, _: &Insn) -> Result<()> {
    if cpu.state.cr4 & cr4::PCE == 0 && cpu.state.cpl != 0 {
        return Err(cpu.gp0());
    }
    let v = cpu.env(|env, state| env.rdpmc(state))?;
    set_edx_eax(cpu, v);
    Ok(())
}

// ---- software interrupts ----

pub(crate) fn int_n(cpu: &mut Cpu, _: &Op, insn: &Insn) -> Result<()> {
    cpu.software_interrupt(insn.iced.immediate8(), false)
}

pub(crate) fn int3(cpu: &mut Cpu, _: &Op, _: &Insn) -> Result<()> {
    cpu.software_interrupt(3, false)
}

pub(crate) fn int1(cpu: &mut Cpu, _: &Op, _: &Insn) -> Result<()> {
    cpu.software_interrupt(1, true)
}

pub(crate) fn into(cpu: &mut Cpu, _: &Op, _: &Insn) -> Result<()> {
    if cpu.flags & flags::OF == 0 { Ok(()) } else { cpu.software_interrupt(4, false) }
}

pub(crate) fn bound(cpu: &mut Cpu, op: &Op, insn: &Insn) -> Result<()> {
    use crate::access::{Ea, General};
    let bytes = insn.iced.op0_register().size() as u64;
    let sign = |v: u64| if bytes == 2 { i64::from(v as i16) } else { i64::from(v as i32) };
    let linear = General::linear(cpu, op, bytes * 2, false)?;
    let low = cpu.load_sized(linear, bytes)?;
    let high = cpu.load_sized(linear.wrapping_add(bytes), bytes)?;
    let index = cpu.operand(op, &insn.iced, 0)?;
    if sign(index) < sign(low) || sign(index) > sign(high) {
        return Err(cpu.fault(Exception::bare(5)));
    }
    Ok(())
}

/// A valid instruction that the processor does not implement.
pub(crate) fn unimplemented(cpu: &mut Cpu, _: &Op, insn: &Insn) -> Result<()> {
    cpu.note(crate::decode::name(insn.iced.mnemonic()));
    Err(cpu.ud())
}

/// A serialising no-operation.
pub(crate) fn serialize(cpu: &mut Cpu, _: &Op, _: &Insn) -> Result<()> {
    cpu.epoch += 1;
    Ok(())
}

/// MFENCE, LFENCE, SFENCE.
pub(crate) fn fence(_: &mut Cpu, _: &Op) -> core::result::Result<(), Leave> {
    core::sync::atomic::fence(core::sync::atomic::Ordering::SeqCst);
    Ok(())
}
