//! TDG.VM.RD and TDG.VM.WR: the TD's metadata that a guest may read, and the little that it may write.

use std::sync::atomic::Ordering;

use softkvm_cpu::{CpuState, Stop};

use super::launch::{Parameters, config_flag};
use super::mr::Measurement;
use super::status::{self, operand};
use super::{TSC_UNITS, TdxVm};
use crate::machine::env::VcpuEnv;
use crate::machine::vm::Vm;

/// A metadata field identifier (TDX module ABI reference, "MD_FIELD_ID").
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct FieldId(u64);

impl FieldId {
    fn code(self) -> u32 {
        self.0 as u32 & 0xff_ffff
    }

    fn class(self) -> u8 {
        (self.0 >> 56) as u8 & 0x3f
    }

    /// One element: no sequence, nothing reserved. Size, mask and context are not looked at.
    fn single(self) -> bool {
        const RESERVED: u64 = 0xff << 24 | 7 << 47 | 1 << 55 | 1 << 62;
        const LAST_ELEMENT: u64 = 0xf << 34;
        const LAST_FIELD: u64 = 0x1ff << 38;
        self.0 & (RESERVED | LAST_ELEMENT | LAST_FIELD) == 0
    }
}

/// What a getter sees.
struct Sources<'a> {
    vm: &'a Vm,
    tdx: &'a TdxVm,
    parameters: &'a Parameters,
}

type Get = fn(&Sources<'_>, usize) -> u64;

/// Class, first field code, fields, value.
const FIELDS: &[(u8, u32, u32, Get)] = &[
    (0x10, 0x01, 1, |s, _| s.vm.vcpus().len() as u64), // NUM_VCPUS
    (0x10, 0x05, 1, |_, _| 0),                         // NUM_L2_VMS
    (0x11, 0x00, 1, |s, _| s.parameters.attributes),   // ATTRIBUTES
    (0x11, 0x01, 1, |s, _| s.parameters.xfam),         // XFAM
    (0x11, 0x02, 1, |_, _| crate::uapi::caps::MAX_VCPUS as u64), // MAX_VCPUS
    (0x11, 0x03, 1, |s, _| s.parameters.config_flags() & config_flag::GPAW_52), // GPAW
    (0x11, 0x0c, 1, |_, _| u64::from(TSC_UNITS)),      // TSC_FREQUENCY
    (0x11, NOTIFY_ENABLES, 1, |s, _| s.tdx.notify_enables.load(Ordering::SeqCst)),
    (0x11, 0x16, 1, |s, _| s.parameters.config_flags()), // CONFIG_FLAGS
    (0x11, TD_CTLS, 1, |s, _| u64::from(s.tdx.pending_ve_disable.load(Ordering::SeqCst))),
    (0x13, 0x00, 6, |s, i| quadword(&s.tdx.td().mrtd.unwrap_or([0; 48]), i)), // MRTD
    (0x13, 0x10, 6, |s, i| quadword(&s.parameters.mrconfigid, i)),            // MRCONFIGID
    (0x13, 0x18, 6, |s, i| quadword(&s.parameters.mrowner, i)),               // MROWNER
    (0x13, 0x20, 6, |s, i| quadword(&s.parameters.mrownerconfig, i)),         // MROWNERCONFIG
    (0x13, 0x40, 24, |s, i| quadword(s.tdx.td().rtmr.0.get(i / 6).unwrap_or(&[0; 48]), i % 6)), // RTMR
    (0x19, 0x00, 6, |_, _| 0),                                                // SERVTD_HASH
    (0x19, 0x06, 1, |_, _| 0),                                                // SERVTD_NUM
];

const EXECUTION_CONTROLS: u8 = 0x11;
const NOTIFY_ENABLES: u32 = 0x10;
const TD_CTLS: u32 = 0x17;

fn quadword(measurement: &Measurement, index: usize) -> u64 {
    measurement.chunks_exact(8).nth(index).and_then(|b| b.try_into().ok()).map_or(0, u64::from_le_bytes)
}

fn read(env: &VcpuEnv<'_>, id: FieldId) -> Result<u64, u64> {
    let vm = &env.ctx.vm;
    let sources = vm.tdx().and_then(|tdx| Some(Sources { vm, tdx, parameters: tdx.parameters()? }));
    let row = FIELDS
        .iter()
        .find(|row| row.0 == id.class() && (row.1..row.1 + row.2).contains(&id.code()))
        .filter(|_| id.single());
    match (sources, row) {
        (Some(sources), Some((_, first, _, get))) => Ok(get(&sources, (id.code() - first) as usize)),
        _ => Err(status::METADATA_FIELD_ID_INCORRECT),
    }
}

const R8: usize = 8;
const R9: usize = 9;
/// "Not applicable", where a next field would be named.
const FIELD_ID_NA: u64 = u64::MAX;

/// The VM of RCX must be the caller's own.
fn bad_vm(cpu: &CpuState) -> Option<u64> {
    (cpu.gpr[CpuState::RCX] != 0).then_some(status::OPERAND_INVALID | operand::RCX)
}

/// TDG.VM.RD: RDX names the field, R8 gets its value. Version 1 would walk the fields with RDX; it is told that there is no next.
pub fn vm_rd(env: &mut VcpuEnv<'_>, cpu: &mut CpuState) -> Result<u64, Stop> {
    let id = FieldId(cpu.gpr[CpuState::RDX]);
    if cpu.gpr[CpuState::RAX] >> 16 & 0xff != 0 {
        cpu.gpr[CpuState::RDX] = FIELD_ID_NA;
    }
    cpu.gpr[R8] = 0;
    if let Some(bad) = bad_vm(cpu) {
        return Ok(bad);
    }
    match read(env, id) {
        Ok(value) => {
            cpu.gpr[R8] = value;
            Ok(status::SUCCESS)
        }
        Err(status) => Ok(status),
    }
}

/// TDG.VM.WR: RDX names the field, R8 has the value and R9 the mask; R8 gets the old value.
pub fn vm_wr(env: &mut VcpuEnv<'_>, cpu: &mut CpuState) -> Result<u64, Stop> {
    let (id, value, mask) = (FieldId(cpu.gpr[CpuState::RDX]), cpu.gpr[R8], cpu.gpr[R9]);
    cpu.gpr[R8] = 0;
    if let Some(bad) = bad_vm(cpu) {
        return Ok(bad);
    }
    let old = match read(env, id) {
        Ok(old) => old,
        Err(status) => return Ok(status),
    };
    let Some(tdx) = env.ctx.vm.tdx() else { return Ok(status::METADATA_FIELD_ID_INCORRECT) };
    let flexible = tdx.parameters().is_some_and(|p| p.config_flags() & config_flag::FLEXIBLE_PENDING_VE != 0);
    match (id.class(), id.code()) {
        (EXECUTION_CONTROLS, NOTIFY_ENABLES) if mask & !1 == 0 => {
            tdx.notify_enables.store(old & !mask | value & mask, Ordering::SeqCst);
        }
        (EXECUTION_CONTROLS, TD_CTLS) if flexible && mask & !1 == 0 => {
            tdx.pending_ve_disable.store((old & !mask | value & mask) & 1 != 0, Ordering::SeqCst);
        }
        _ => return Ok(status::METADATA_FIELD_NOT_WRITABLE),
    }
    cpu.gpr[R8] = old;
    Ok(status::SUCCESS)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn identifiers_that_linux_uses_name_the_fields_it_means() {
        for (raw, class, code) in [
            (0x1110_0003_0000_0016u64, 0x11, 0x16),
            (0x1110_0003_0000_0017, 0x11, 0x17),
            (0x9100_0000_0000_0010, 0x11, 0x10),
        ] {
            let id = FieldId(raw);
            assert_eq!((id.class(), id.code(), id.single()), (class, code, true), "{raw:#x}");
            assert!(FIELDS.iter().any(|row| row.0 == class && row.1 == code));
        }
        assert!(!FieldId(0x1110_0003_0000_0016 | 1 << 34).single(), "a field of two elements");
        assert!(!FieldId(0x1110_0003_0000_0016 | 1 << 38).single(), "a sequence");
    }
}
