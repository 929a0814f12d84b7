//! The SSE and x87 state instructions that concern guest memory or state as a whole.

use crate::access::{Ea, General};
use crate::bits::cr0;
use crate::cpu::{Cpu, Result};
use crate::native::image;
use crate::op::{DS, Op};
use crate::state::Exception;

/// MXCSR bits that exist; also what FXSAVE reports as MXCSR_MASK.
const MXCSR_MASK: u32 = 0xffff;
/// FXSAVE leaves the last 96 bytes to software (SDM volume 1, 10.5.1).
const SAVED: usize = 416;

fn check(cpu: &mut Cpu) -> Result<()> {
    if cpu.state.cr0 & (cr0::EM | cr0::TS) != 0 { Err(cpu.fault(Exception::bare(7))) } else { Ok(()) }
}

fn image_address(cpu: &mut Cpu, op: &Op, write: bool) -> Result<u64> {
    check(cpu)?;
    let linear = General::linear(cpu, op, image::BYTES as u64, write)?;
    if linear & 15 != 0 { Err(cpu.gp0()) } else { Ok(linear) }
}

pub(crate) fn fxsave(cpu: &mut Cpu, op: &Op) -> Result<()> {
    let linear = image_address(cpu, op, true)?;
    let mut bytes = [0; SAVED];
    bytes.copy_from_slice(&cpu.state.fpu.0[..SAVED]);
    bytes[28..32].copy_from_slice(&MXCSR_MASK.to_le_bytes());
    cpu.write_bytes(linear, &bytes)
}

pub(crate) fn fxrstor(cpu: &mut Cpu, op: &Op) -> Result<()> {
    let linear = image_address(cpu, op, false)?;
    let mut bytes = [0; SAVED];
    cpu.read_bytes(linear, &mut bytes)?;
    let mxcsr = u32::from_le_bytes([bytes[24], bytes[25], bytes[26], bytes[27]]);
    if mxcsr & !MXCSR_MASK != 0 {
        return Err(cpu.gp0());
    }
    cpu.state.fpu.0[..SAVED].copy_from_slice(&bytes);
    cpu.summarise_x87();
    Ok(())
}

pub(crate) fn ldmxcsr(cpu: &mut Cpu, op: &Op) -> Result<()> {
    cpu.check_sse()?;
    let linear = General::linear(cpu, op, 4, false)?;
    let v = cpu.load::<u32>(linear)?;
    if v & !MXCSR_MASK != 0 {
        return Err(cpu.gp0());
    }
    cpu.set_mxcsr(v);
    Ok(())
}

pub(crate) fn stmxcsr(cpu: &mut Cpu, op: &Op) -> Result<()> {
    cpu.check_sse()?;
    let linear = General::linear(cpu, op, 4, true)?;
    cpu.store(linear, cpu.mxcsr())
}

/// MASKMOVDQU: the selected bytes of `dst` go to DS:rDI.
pub(crate) fn maskmovdqu(cpu: &mut Cpu, op: &Op) -> Result<()> {
    cpu.check_sse()?;
    let register = |cpu: &Cpu, r: u8| {
        let at = image::XMM + 16 * usize::from(r & 15);
        let mut v = [0; 16];
        v.copy_from_slice(&cpu.state.fpu.0[at..at + 16]);
        v
    };
    let (data, mask) = (register(cpu, op.dst), register(cpu, op.src));
    let offset = match op.address {
        3 => cpu.state.gpr[7],
        2 => cpu.state.gpr[7] & 0xffff_ffff,
        _ => cpu.state.gpr[7] & 0xffff,
    };
    let seg = if op.seg == crate::op::SS { DS } else { op.seg };
    let linear = cpu.segmented(seg, offset, 16, true)?;
    if mask.iter().any(|m| m & 0x80 != 0) {
        cpu.probe_write(linear, 16, cpu.set)?;
    }
    for (i, (v, m)) in data.into_iter().zip(mask).enumerate() {
        if m & 0x80 != 0 {
            cpu.store(linear.wrapping_add(i as u64), v)?;
        }
    }
    Ok(())
}

// ---- 16-byte moves, too frequent for a stub ----

#[inline(always)]
fn xmm(cpu: &Cpu, r: u8) -> [u8; 16] {
    let at = image::XMM + 16 * usize::from(r & 15);
    let mut v = [0; 16];
    v.copy_from_slice(&cpu.state.fpu.0[at..at + 16]);
    v
}

#[inline(always)]
fn set_xmm(cpu: &mut Cpu, r: u8, v: [u8; 16]) {
    let at = image::XMM + 16 * usize::from(r & 15);
    cpu.state.fpu.0[at..at + 16].copy_from_slice(&v);
}

/// MOVUPS and its kin; `aux` set for the aligned forms.
pub(crate) fn mov16_rm<E: Ea>(cpu: &mut Cpu, op: &Op) -> Result<()> {
    cpu.check_sse()?;
    let linear = E::linear(cpu, op, 16, false)?;
    if op.aux != 0 && linear & 15 != 0 {
        return Err(cpu.gp0());
    }
    let mut v = [0; 16];
    cpu.read_wide(linear, &mut v)?;
    set_xmm(cpu, op.dst, v);
    Ok(())
}

pub(crate) fn mov16_mr<E: Ea>(cpu: &mut Cpu, op: &Op) -> Result<()> {
    cpu.check_sse()?;
    let linear = E::linear(cpu, op, 16, true)?;
    if op.aux != 0 && linear & 15 != 0 {
        return Err(cpu.gp0());
    }
    let v = xmm(cpu, op.src);
    cpu.write_wide(linear, &v)
}

pub(crate) fn mov16_rr(cpu: &mut Cpu, op: &Op) -> Result<()> {
    cpu.check_sse()?;
    let v = xmm(cpu, op.src);
    set_xmm(cpu, op.dst, v);
    Ok(())
}

/// PXOR or XORPS of a register with itself.
pub(crate) fn zero(cpu: &mut Cpu, op: &Op) -> Result<()> {
    cpu.check_sse()?;
    set_xmm(cpu, op.dst, [0; 16]);
    Ok(())
}
