//! Segment registers, far transfers, IRET, and the fast system calls. All are system operations.

use crate::access::{Ea, General};
use crate::bits::{attr, canonical, efer};
use crate::cpu::{Cpu, Leave, Result};
use crate::descriptor::flat;
use crate::flags::bit;
use crate::op::{CS, Insn, Op, SS};
use crate::state::Segment;

/// Attributes of the flat segments that SYSCALL and SYSENTER load.
const CODE64: u16 = 0xa9b;
const CODE32: u16 = 0xc9b;
const DATA: u16 = 0xc93;

fn with_dpl(attributes: u16, dpl: u8) -> u16 {
    attributes | u16::from(dpl) << 5
}

pub(crate) fn mov_to_seg(cpu: &mut Cpu, op: &Op, insn: &Insn) -> Result<()> {
    let seg = insn.iced.op0_register().number() as u8;
    let selector = match insn.iced.op1_kind() {
        iced_x86::OpKind::Register => cpu.operand(op, &insn.iced, 1)? as u16,
        _ => {
            let linear = General::linear(cpu, op, 2, false)?;
            cpu.load::<u16>(linear)?
        }
    };
    if seg == CS {
        return Err(cpu.ud());
    }
    cpu.load_segment(seg, selector)?;
    cpu.state.interrupt_shadow |= seg == SS;
    Ok(())
}

/// POP of a segment register; `aux` is the operand size.
pub(crate) fn pop_seg(cpu: &mut Cpu, op: &Op, insn: &Insn) -> Result<()> {
    let seg = insn.iced.op0_register().number() as u8;
    let bytes = u64::from(op.aux);
    let [v] = cpu.stack_values::<1>(bytes)?;
    let segment = cpu.data_segment(seg, v as u16, cpu.state.cpl)?;
    cpu.set_sp(cpu.state.gpr[4].wrapping_add(bytes));
    cpu.state.seg[usize::from(seg) % 6] = segment;
    cpu.state.interrupt_shadow |= seg == SS;
    Ok(())
}

/// LDS, LES, LFS, LGS, LSS.
pub(crate) fn load_far_pointer(cpu: &mut Cpu, op: &Op, insn: &Insn) -> Result<()> {
    let seg = match insn.iced.mnemonic() {
        iced_x86::Mnemonic::Les => 0,
        iced_x86::Mnemonic::Lss => SS,
        iced_x86::Mnemonic::Lds => 3,
        iced_x86::Mnemonic::Lfs => 4,
        _ => 5,
    };
    let bytes = insn.iced.op0_register().size() as u64;
    let (offset, selector) = far_operand(cpu, op, bytes)?;
    cpu.load_segment(seg, selector)?;
    cpu.set_reg_sized(insn.iced.op0_register().number() as u8, bytes, offset);
    Ok(())
}

/// An offset of `bytes` bytes and a selector, in memory.
fn far_operand(cpu: &mut Cpu, op: &Op, bytes: u64) -> Result<(u64, u16)> {
    let linear = General::linear(cpu, op, bytes + 2, false)?;
    let offset = cpu.load_sized(linear, bytes)?;
    let selector = cpu.load::<u16>(linear.wrapping_add(bytes))?;
    Ok((offset, selector))
}

/// Target of a far JMP or CALL; `aux` is the operand size.
fn far_target(cpu: &mut Cpu, op: &Op, insn: &Insn) -> Result<(u64, u16)> {
    match insn.iced.op0_kind() {
        iced_x86::OpKind::FarBranch16 => {
            Ok((u64::from(insn.iced.far_branch16()), insn.iced.far_branch_selector()))
        }
        iced_x86::OpKind::FarBranch32 => {
            Ok((u64::from(insn.iced.far_branch32()), insn.iced.far_branch_selector()))
        }
        _ => far_operand(cpu, op, u64::from(op.aux)),
    }
}

fn real_mode_code(cpu: &mut Cpu, selector: u16, offset: u64) -> Result<()> {
    let cs = Segment { selector, base: u64::from(selector) << 4, ..cpu.state.seg[usize::from(CS)] };
    cpu.check_target(&cs, offset)?;
    cpu.enter_code(cs, offset, cpu.state.cpl);
    Err(Leave::Branch)
}

pub(crate) fn jmp_far(cpu: &mut Cpu, op: &Op, insn: &Insn) -> Result<()> {
    let (offset, selector) = far_target(cpu, op, insn)?;
    if !cpu.protected() {
        return real_mode_code(cpu, selector, offset);
    }
    let cs = direct_code(cpu, selector)?;
    cpu.check_target(&cs, offset)?;
    cpu.enter_code(cs, offset, cpu.state.cpl);
    Err(Leave::Branch)
}

/// The code segment of a direct far transfer; gates are refused.
fn direct_code(cpu: &mut Cpu, selector: u16) -> Result<Segment> {
    if selector & !3 != 0 && cpu.descriptor(selector, 13)?.system_type().is_some() {
        return Err(cpu.gate_refused(selector));
    }
    Ok(cpu.code_segment(selector, cpu.state.cpl, false)?.1)
}

pub(crate) fn call_far(cpu: &mut Cpu, op: &Op, insn: &Insn) -> Result<()> {
    let (offset, selector) = far_target(cpu, op, insn)?;
    let bytes = u64::from(op.aux);
    let next = cpu.state.rip.wrapping_add(u64::from(op.length()));
    let protected = cpu.protected();
    let cs = if protected { Some(direct_code(cpu, selector)?) } else { None };
    if let Some(cs) = &cs {
        cpu.check_target(cs, offset)?;
    }
    let saved = cpu.state.gpr[4];
    let old = u64::from(cpu.state.seg[usize::from(CS)].selector);
    cpu.push_sized(bytes, old)?;
    if let Err(leave) = cpu.push_sized(bytes, next) {
        cpu.state.gpr[4] = saved;
        return Err(leave);
    }
    match cs {
        Some(cs) => {
            cpu.enter_code(cs, offset, cpu.state.cpl);
            Err(Leave::Branch)
        }
        None => real_mode_code(cpu, selector, offset),
    }
}

/// RETF; `aux` is the operand size, `imm` of the instruction the bytes to drop.
pub(crate) fn ret_far(cpu: &mut Cpu, op: &Op, insn: &Insn) -> Result<()> {
    let bytes = u64::from(op.aux);
    let drop = if insn.iced.op_count() == 0 { 0 } else { u64::from(insn.iced.immediate16()) };
    let [rip, cs] = cpu.stack_values::<2>(bytes)?;
    let selector = cs as u16;
    if !cpu.protected() {
        cpu.set_sp(cpu.state.gpr[4].wrapping_add(2 * bytes + drop));
        return real_mode_code(cpu, selector, rip);
    }
    let rpl = (selector & 3) as u8;
    if rpl < cpu.state.cpl {
        return Err(cpu.selector_fault(13, selector));
    }
    let (_, code) = cpu.code_segment(selector, rpl, true)?;
    cpu.check_target(&code, rip)?;
    if rpl == cpu.state.cpl {
        cpu.set_sp(cpu.state.gpr[4].wrapping_add(2 * bytes + drop));
        cpu.enter_code(code, rip, rpl);
        return Err(Leave::Branch);
    }
    let sp = cpu.state.gpr[4];
    cpu.set_sp(sp.wrapping_add(2 * bytes + drop));
    let outer = cpu.stack_values::<2>(bytes);
    cpu.state.gpr[4] = sp;
    let [new_sp, ss] = outer?;
    let stack = return_stack(cpu, ss as u16, rpl, &code)?;
    cpu.state.seg[usize::from(SS)] = stack;
    cpu.enter_code(code, rip, rpl);
    cpu.set_sp(new_sp.wrapping_add(drop));
    cpu.drop_privileged_segments();
    Err(Leave::Branch)
}

/// SS of a return to privilege `cpl`; null is allowed when returning to 64-bit code below 3.
fn return_stack(cpu: &mut Cpu, selector: u16, cpl: u8, code: &Segment) -> Result<Segment> {
    if selector & !3 == 0 {
        let to64 = cpu.long_mode() && code.attributes & attr::L != 0;
        if !to64 || cpl == 3 {
            return Err(cpu.gp0());
        }
        return Ok(Segment { selector, attributes: u16::from(cpl) << 5, ..Segment::default() });
    }
    cpu.data_segment(SS, selector, cpl)
}

pub(crate) fn iret(cpu: &mut Cpu, op: &Op, _: &Insn) -> Result<()> {
    let bytes = u64::from(op.aux);
    cpu.epoch += 1;
    if !cpu.protected() {
        let [rip, cs, rflags] = cpu.stack_values::<3>(bytes)?;
        cpu.set_sp(cpu.state.gpr[4].wrapping_add(3 * bytes));
        cpu.load_rflags(rflags, bytes);
        cpu.state.nmi_blocked = false;
        return real_mode_code(cpu, cs as u16, rip);
    }
    if cpu.state.rflags & bit::NT != 0 {
        let link = cpu.state.tr.selector;
        return Err(if cpu.long_mode() { cpu.gp0() } else { cpu.gate_refused(link) });
    }
    let [rip, cs, rflags] = cpu.stack_values::<3>(bytes)?;
    if rflags & bit::VM != 0 && !cpu.long_mode() && bytes == 4 && cpu.state.cpl == 0 {
        cpu.note("virtual-8086 mode");
        return Err(cpu.gp0());
    }
    let selector = cs as u16;
    let rpl = (selector & 3) as u8;
    if rpl < cpu.state.cpl {
        return Err(cpu.selector_fault(13, selector));
    }
    let (_, code) = cpu.code_segment(selector, rpl, true)?;
    cpu.check_target(&code, rip)?;
    if rpl == cpu.state.cpl && !cpu.code64() {
        cpu.set_sp(cpu.state.gpr[4].wrapping_add(3 * bytes));
        cpu.load_rflags(rflags, bytes);
        cpu.enter_code(code, rip, rpl);
    } else {
        let [_, _, _, new_sp, ss] = cpu.stack_values::<5>(bytes)?;
        let stack = return_stack(cpu, ss as u16, rpl, &code)?;
        cpu.load_rflags(rflags, bytes);
        cpu.state.seg[usize::from(SS)] = stack;
        cpu.enter_code(code, rip, rpl);
        cpu.set_sp(new_sp);
        cpu.drop_privileged_segments();
    }
    cpu.state.nmi_blocked = false;
    Err(Leave::Branch)
}

// ---- SYSCALL, SYSRET, SYSENTER, SYSEXIT, SWAPGS ----

pub(crate) fn syscall(cpu: &mut Cpu, op: &Op, _: &Insn) -> Result<()> {
    if cpu.state.efer & efer::SCE == 0 || !cpu.protected() {
        return Err(cpu.ud());
    }
    let next = cpu.state.rip.wrapping_add(u64::from(op.length()));
    let selector = (cpu.state.star >> 32) as u16 & !3;
    if cpu.long_mode() {
        cpu.sync_flags();
        let target = if cpu.code64() { cpu.state.lstar } else { cpu.state.cstar };
        cpu.state.gpr[1] = next;
        cpu.state.gpr[11] = cpu.state.rflags & !bit::RF;
        cpu.state.rflags = cpu.state.rflags & !(cpu.state.sfmask | bit::RF) | 2;
        cpu.flags = crate::flags::from_rflags(cpu.state.rflags);
        cpu.state.seg[usize::from(SS)] = flat(selector.wrapping_add(8), DATA);
        cpu.enter_code(flat(selector, CODE64), target, 0);
    } else {
        cpu.state.gpr[1] = next & 0xffff_ffff;
        cpu.state.rflags &= !(bit::IF | bit::RF | bit::VM);
        cpu.state.seg[usize::from(SS)] = flat(selector.wrapping_add(8), DATA);
        cpu.enter_code(flat(selector, CODE32), cpu.state.star & 0xffff_ffff, 0);
    }
    Err(Leave::Branch)
}

/// SYSRET; `aux` is the operand size.
pub(crate) fn sysret(cpu: &mut Cpu, op: &Op, _: &Insn) -> Result<()> {
    if cpu.state.efer & efer::SCE == 0 || !cpu.protected() {
        return Err(cpu.ud());
    }
    if cpu.state.cpl != 0 {
        return Err(cpu.gp0());
    }
    let base = (cpu.state.star >> 48) as u16;
    let (cs, rip) = if op.aux == 8 {
        if !canonical(cpu.state.gpr[1]) {
            return Err(cpu.gp0());
        }
        (flat(base.wrapping_add(16) | 3, with_dpl(CODE64, 3)), cpu.state.gpr[1])
    } else {
        (flat(base | 3, with_dpl(CODE32, 3)), cpu.state.gpr[1] & 0xffff_ffff)
    };
    if cpu.long_mode() {
        cpu.state.rflags = cpu.state.gpr[11] & 0x003c_7fd7 & !bit::RF | 2;
        cpu.flags = crate::flags::from_rflags(cpu.state.rflags);
    } else {
        cpu.state.rflags |= bit::IF;
    }
    cpu.state.seg[usize::from(SS)] = flat(base.wrapping_add(8) | 3, with_dpl(DATA, 3));
    cpu.enter_code(cs, rip, 3);
    Err(Leave::Branch)
}

pub(crate) fn sysenter(cpu: &mut Cpu, _: &Op, _: &Insn) -> Result<()> {
    let selector = cpu.state.sysenter_cs as u16 & !3;
    if !cpu.protected() || selector == 0 {
        return Err(cpu.gp0());
    }
    let long = cpu.long_mode();
    cpu.state.rflags &= !(bit::IF | bit::VM | bit::RF);
    cpu.state.seg[usize::from(SS)] = flat(selector.wrapping_add(8), DATA);
    let (rip, rsp) = (cpu.state.sysenter_eip, cpu.state.sysenter_esp);
    cpu.enter_code(flat(selector, if long { CODE64 } else { CODE32 }), rip, 0);
    cpu.state.gpr[4] = if long { rsp } else { rsp & 0xffff_ffff };
    Err(Leave::Branch)
}

/// SYSEXIT; `aux` is the operand size.
pub(crate) fn sysexit(cpu: &mut Cpu, op: &Op, _: &Insn) -> Result<()> {
    let selector = cpu.state.sysenter_cs as u16 & !3;
    if !cpu.protected() || selector == 0 || cpu.state.cpl != 0 {
        return Err(cpu.gp0());
    }
    let (rip, rsp) = (cpu.state.gpr[2], cpu.state.gpr[1]);
    if op.aux == 8 {
        if !canonical(rip) || !canonical(rsp) {
            return Err(cpu.gp0());
        }
        cpu.state.seg[usize::from(SS)] = flat(selector.wrapping_add(40) | 3, with_dpl(DATA, 3));
        cpu.enter_code(flat(selector.wrapping_add(32) | 3, with_dpl(CODE64, 3)), rip, 3);
        cpu.state.gpr[4] = rsp;
    } else {
        cpu.state.seg[usize::from(SS)] = flat(selector.wrapping_add(24) | 3, with_dpl(DATA, 3));
        cpu.enter_code(flat(selector.wrapping_add(16) | 3, with_dpl(CODE32, 3)), rip & 0xffff_ffff, 3);
        cpu.state.gpr[4] = rsp & 0xffff_ffff;
    }
    Err(Leave::Branch)
}

pub(crate) fn swapgs(cpu: &mut Cpu, _: &Op, _: &Insn) -> Result<()> {
    if cpu.state.cpl != 0 {
        return Err(cpu.gp0());
    }
    core::mem::swap(&mut cpu.state.seg[5].base, &mut cpu.state.kernel_gs_base);
    Ok(())
}

// ---- LAR, LSL, VERR, VERW, ARPL ----

/// The descriptor if the selector is visible at this privilege, else `None`.
fn visible(cpu: &mut Cpu, selector: u16) -> Result<Option<crate::descriptor::Descriptor>> {
    if !cpu.protected() {
        return Err(cpu.ud());
    }
    if selector & !3 == 0 {
        return Ok(None);
    }
    let d = match cpu.descriptor(selector, 13) {
        Ok(d) => d,
        Err(leave) => {
            // Outside the table means invisible; a page fault stays a fault.
            return match cpu.stop {
                crate::env::Stop::Fault(e) if e.vector == 13 => Ok(None),
                _ => Err(leave),
            };
        }
    };
    let conforming = d.is_code() && d.has(attr::DC);
    let reach = cpu.state.cpl.max((selector & 3) as u8);
    Ok((conforming || d.dpl() >= reach).then_some(d))
}

fn set_zf(cpu: &mut Cpu, on: bool) {
    cpu.flags = cpu.flags & !crate::flags::ZF | if on { crate::flags::ZF } else { 0 };
}

fn selector_operand(cpu: &mut Cpu, op: &Op, insn: &Insn, n: u32) -> Result<u16> {
    match insn.iced.op_kind(n) {
        iced_x86::OpKind::Register => cpu.operand(op, &insn.iced, n).map(|v| v as u16),
        _ => {
            let linear = General::linear(cpu, op, 2, false)?;
            cpu.load::<u16>(linear)
        }
    }
}

pub(crate) fn lar(cpu: &mut Cpu, op: &Op, insn: &Insn) -> Result<()> {
    let selector = selector_operand(cpu, op, insn, 1)?;
    let d = visible(cpu, selector)?.filter(|d| match d.system_type() {
        None => true,
        Some(kind) if cpu.long_mode() => matches!(kind, 2 | 9 | 11 | 12),
        Some(kind) => matches!(kind, 1..=5 | 9 | 11 | 12),
    });
    if let Some(d) = d {
        cpu.set_operand(op, &insn.iced, 0, d.raw >> 32 & 0x00ff_ff00)?;
    }
    set_zf(cpu, d.is_some());
    Ok(())
}

pub(crate) fn lsl(cpu: &mut Cpu, op: &Op, insn: &Insn) -> Result<()> {
    let selector = selector_operand(cpu, op, insn, 1)?;
    let d = visible(cpu, selector)?.filter(|d| match d.system_type() {
        None => true,
        Some(kind) if cpu.long_mode() => matches!(kind, 2 | 9 | 11),
        Some(kind) => matches!(kind, 1..=3 | 9 | 11),
    });
    if let Some(d) = d {
        cpu.set_operand(op, &insn.iced, 0, u64::from(d.segment(selector).limit))?;
    }
    set_zf(cpu, d.is_some());
    Ok(())
}

pub(crate) fn verr(cpu: &mut Cpu, op: &Op, insn: &Insn) -> Result<()> {
    let selector = selector_operand(cpu, op, insn, 0)?;
    let d = visible(cpu, selector)?;
    set_zf(cpu, d.is_some_and(|d| d.has(attr::S) && (!d.is_code() || d.has(attr::RW))));
    Ok(())
}

pub(crate) fn verw(cpu: &mut Cpu, op: &Op, insn: &Insn) -> Result<()> {
    let selector = selector_operand(cpu, op, insn, 0)?;
    let d = visible(cpu, selector)?;
    set_zf(cpu, d.is_some_and(|d| d.has(attr::S) && !d.is_code() && d.has(attr::RW)));
    Ok(())
}

pub(crate) fn arpl(cpu: &mut Cpu, op: &Op, insn: &Insn) -> Result<()> {
    if !cpu.protected() {
        return Err(cpu.ud());
    }
    let (a, b) = (cpu.operand(op, &insn.iced, 0)?, cpu.operand(op, &insn.iced, 1)?);
    let low = a & 3 < b & 3;
    if low {
        cpu.set_operand(op, &insn.iced, 0, a & !3 | b & 3)?;
    }
    set_zf(cpu, low);
    Ok(())
}

// ---- descriptor-table registers ----

fn privileged(cpu: &mut Cpu) -> Result<()> {
    if cpu.state.cpl != 0 { Err(cpu.gp0()) } else { Ok(()) }
}

fn umip(cpu: &mut Cpu) -> Result<()> {
    let refused = cpu.state.cpl != 0 && cpu.state.cr4 & crate::bits::cr4::UMIP != 0;
    if refused { Err(cpu.gp0()) } else { Ok(()) }
}

/// LGDT and LIDT.
pub(crate) fn load_table(cpu: &mut Cpu, op: &Op, insn: &Insn) -> Result<()> {
    privileged(cpu)?;
    let bytes = if cpu.code64() { 8 } else { 4 };
    let linear = General::linear(cpu, op, 2 + bytes, false)?;
    let limit = cpu.load::<u16>(linear)?;
    let base = cpu.load_sized(linear.wrapping_add(2), bytes)?;
    // A 16-bit operand size loads 24 bits of base.
    let base = if matches!(insn.iced.code(), iced_x86::Code::Lgdt_m1632_16 | iced_x86::Code::Lidt_m1632_16) {
        base & 0xff_ffff
    } else {
        base
    };
    if bytes == 8 && !canonical(base) {
        return Err(cpu.gp0());
    }
    let table = crate::state::SegmentTable { base, limit };
    match insn.iced.mnemonic() {
        iced_x86::Mnemonic::Lgdt => cpu.state.gdtr = table,
        _ => cpu.state.idtr = table,
    }
    Ok(())
}

/// SGDT and SIDT.
pub(crate) fn store_table(cpu: &mut Cpu, op: &Op, insn: &Insn) -> Result<()> {
    umip(cpu)?;
    let table = match insn.iced.mnemonic() {
        iced_x86::Mnemonic::Sgdt => cpu.state.gdtr,
        _ => cpu.state.idtr,
    };
    let n = if cpu.code64() { 10 } else { 6 };
    let linear = General::linear(cpu, op, n as u64, true)?;
    let mut bytes = [0; 10];
    bytes[..2].copy_from_slice(&table.limit.to_le_bytes());
    bytes[2..].copy_from_slice(&table.base.to_le_bytes());
    cpu.write_bytes(linear, &bytes[..n])
}

/// SLDT, STR and SMSW: 16 bits to memory, the operand size to a register.
pub(crate) fn store_selector(cpu: &mut Cpu, op: &Op, insn: &Insn) -> Result<()> {
    umip(cpu)?;
    let v = match insn.iced.mnemonic() {
        iced_x86::Mnemonic::Sldt | iced_x86::Mnemonic::Str if !cpu.protected() => return Err(cpu.ud()),
        iced_x86::Mnemonic::Sldt => u64::from(cpu.state.ldtr.selector),
        iced_x86::Mnemonic::Str => u64::from(cpu.state.tr.selector),
        _ => cpu.state.cr0,
    };
    match insn.iced.op0_kind() {
        iced_x86::OpKind::Register => cpu.set_operand(op, &insn.iced, 0, v),
        _ => {
            let linear = General::linear(cpu, op, 2, true)?;
            cpu.store(linear, v as u16)
        }
    }
}

pub(crate) fn lldt(cpu: &mut Cpu, op: &Op, insn: &Insn) -> Result<()> {
    if !cpu.protected() {
        return Err(cpu.ud());
    }
    privileged(cpu)?;
    let selector = selector_operand(cpu, op, insn, 0)?;
    if selector & !3 == 0 {
        cpu.state.ldtr = Segment { selector, ..Segment::default() };
        return Ok(());
    }
    if selector & 4 != 0 {
        return Err(cpu.selector_fault(13, selector));
    }
    let d = cpu.descriptor(selector, 13)?;
    if d.system_type() != Some(2) {
        return Err(cpu.selector_fault(13, selector));
    }
    if !d.has(attr::P) {
        return Err(cpu.selector_fault(11, selector));
    }
    let high = cpu.wide_base(&d)?;
    let mut segment = d.segment(selector);
    segment.base |= high;
    cpu.state.ldtr = segment;
    Ok(())
}

pub(crate) fn ltr(cpu: &mut Cpu, op: &Op, insn: &Insn) -> Result<()> {
    if !cpu.protected() {
        return Err(cpu.ud());
    }
    privileged(cpu)?;
    let selector = selector_operand(cpu, op, insn, 0)?;
    if selector & !3 == 0 {
        return Err(cpu.gp0());
    }
    if selector & 4 != 0 {
        return Err(cpu.selector_fault(13, selector));
    }
    let mut d = cpu.descriptor(selector, 13)?;
    let available = d.system_type() == Some(9) || !cpu.long_mode() && d.system_type() == Some(1);
    if !available {
        return Err(cpu.selector_fault(13, selector));
    }
    if !d.has(attr::P) {
        return Err(cpu.selector_fault(11, selector));
    }
    let high = cpu.wide_base(&d)?;
    cpu.mark_descriptor(&mut d, 1 << 41)?;
    let mut segment = d.segment(selector);
    segment.base |= high;
    cpu.state.tr = segment;
    Ok(())
}

/// RDFSBASE, RDGSBASE, WRFSBASE, WRGSBASE.
pub(crate) fn segment_base(cpu: &mut Cpu, op: &Op, insn: &Insn) -> Result<()> {
    use iced_x86::Mnemonic::{Rdfsbase, Rdgsbase, Wrfsbase};
    if cpu.state.cr4 & crate::bits::cr4::FSGSBASE == 0 {
        return Err(cpu.ud());
    }
    let m = insn.iced.mnemonic();
    let seg = if matches!(m, Rdfsbase | Wrfsbase) { 4 } else { 5 };
    if matches!(m, Rdfsbase | Rdgsbase) {
        let base = cpu.state.seg[seg].base;
        return cpu.set_operand(op, &insn.iced, 0, base);
    }
    let base = cpu.operand(op, &insn.iced, 0)?;
    if !canonical(base) {
        return Err(cpu.gp0());
    }
    cpu.state.seg[seg].base = base;
    Ok(())
}
