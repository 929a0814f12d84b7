//! TDREPORT_STRUCT: what TDG.MR.REPORT writes, and the MAC by which the quoting service knows its own platform's reports.

use hmac::{Hmac, KeyInit, Mac};
use sha2::{Digest, Sha256, Sha384};
use softkvm_cpu::{CpuState, Stop};

use super::launch::{Parameters, Td};
use super::memory::{self, Views};
use super::quoting::platform::{Platform, platform};
use super::status::{self, operand};
use crate::machine::env::VcpuEnv;
use crate::snp::page::put;

/// Bytes of TDREPORT_STRUCT.
pub const BYTES: usize = 1024;
/// Bytes of REPORTMACSTRUCT, its first part.
pub const MAC_STRUCT_BYTES: usize = 256;

/// Offsets (TDX module ABI reference, "TDREPORT_STRUCT").
pub mod offset {
    pub const CPUSVN: usize = 16;
    pub const TEE_TCB_INFO_HASH: usize = 32;
    pub const TEE_INFO_HASH: usize = 80;
    pub const REPORT_DATA: usize = 128;
    pub const MAC: usize = 224;
    pub const TEE_TCB_INFO: usize = 256;
    pub const TEE_TCB_INFO_BYTES: usize = 239;
    pub const TD_INFO: usize = 512;
    pub const TD_INFO_BYTES: usize = 512;
}

/// TEE type and, below TEE_TCB_INFO, what is valid of it.
const TYPE_TDX: u8 = 0x81;
/// TEE_TCB_SVN, MRSEAM, MRSIGNERSEAM, ATTRIBUTES, TEE_TCB_SVN2.
const TEE_TCB_INFO_VALID: u64 = 0x301ff;

/// A report of this TD.
pub fn make(platform: &Platform, parameters: &Parameters, td: &Td, data: &[u8; 64]) -> [u8; BYTES] {
    let mut report = [0u8; BYTES];
    let mut info = [0u8; offset::TD_INFO_BYTES];
    put(&mut info, 0, &parameters.attributes.to_le_bytes());
    put(&mut info, 8, &parameters.xfam.to_le_bytes());
    put(&mut info, 16, &td.mrtd.unwrap_or([0; 48]));
    put(&mut info, 64, &parameters.mrconfigid);
    put(&mut info, 112, &parameters.mrowner);
    put(&mut info, 160, &parameters.mrownerconfig);
    for (i, register) in td.rtmr.0.iter().enumerate() {
        put(&mut info, 208 + 48 * i, register);
    }
    let mut tcb = [0u8; offset::TEE_TCB_INFO_BYTES];
    put(&mut tcb, 0, &TEE_TCB_INFO_VALID.to_le_bytes());
    put(&mut tcb, 8, &platform.model.tee_tcb_svn);
    put(&mut tcb, 24, &platform.mrseam());
    // MRSIGNERSEAM and SEAM attributes: zero, as of a module that Intel signed.
    put(&mut tcb, 128, &platform.model.tee_tcb_svn);
    put(&mut report, 0, &[TYPE_TDX]);
    put(&mut report, offset::CPUSVN, &platform.cpusvn());
    put(&mut report, offset::TEE_TCB_INFO_HASH, &Sha384::digest(tcb));
    put(&mut report, offset::TEE_INFO_HASH, &Sha384::digest(info));
    put(&mut report, offset::REPORT_DATA, data);
    put(&mut report, offset::TEE_TCB_INFO, &tcb);
    put(&mut report, offset::TD_INFO, &info);
    let mac = mac(platform, &report);
    put(&mut report, offset::MAC, &mac);
    report
}

/// The platform's MAC over REPORTMACSTRUCT without its last field.
fn mac(platform: &Platform, report: &[u8]) -> [u8; 32] {
    let mut mac = keyed(platform);
    mac.update(report.get(..offset::MAC).unwrap_or(&[]));
    mac.finalize().into_bytes().into()
}

fn keyed(platform: &Platform) -> Hmac<Sha256> {
    // HMAC takes keys of any length: this cannot fail, and an empty key would only make every report invalid.
    <Hmac<Sha256> as KeyInit>::new_from_slice(&platform.mac_key)
        .unwrap_or_else(|_| <Hmac<Sha256> as KeyInit>::new(&Default::default()))
}

/// Was this REPORTMACSTRUCT made on this platform?
pub fn mac_valid(platform: &Platform, structure: &[u8; MAC_STRUCT_BYTES]) -> bool {
    let mut mac = keyed(platform);
    mac.update(structure.get(..offset::MAC).unwrap_or(&[]));
    structure.get(offset::MAC..).is_some_and(|found| mac.verify_slice(found).is_ok())
}

/// Was this report made on this platform, and is its body the one that the MAC covers?
pub fn genuine(platform: &Platform, report: &[u8; BYTES]) -> bool {
    let part = |at: usize, bytes: usize| report.get(at..at + bytes).unwrap_or(&[]);
    let hashes = [
        (offset::TEE_TCB_INFO_HASH, offset::TEE_TCB_INFO, offset::TEE_TCB_INFO_BYTES),
        (offset::TEE_INFO_HASH, offset::TD_INFO, offset::TD_INFO_BYTES),
    ];
    let structure: Option<&[u8; MAC_STRUCT_BYTES]> = report.first_chunk();
    report[0] == TYPE_TDX
        && structure.is_some_and(|s| mac_valid(platform, s))
        && hashes
            .iter()
            .all(|&(hash, at, bytes)| part(hash, 48) == Sha384::digest(part(at, bytes)).as_slice())
}

const RCX: usize = CpuState::RCX;
const RDX: usize = CpuState::RDX;
const BAD: u64 = status::OPERAND_INVALID;

/// TDG.MR.REPORT: RCX is where the report goes, RDX where the report data are, R8 the sub-type.
pub fn mr_report(env: &mut VcpuEnv<'_>, cpu: &mut CpuState) -> Result<u64, Stop> {
    let (target, source, subtype) = (cpu.gpr[RCX], cpu.gpr[RDX], cpu.gpr[8]);
    if !target.is_multiple_of(BYTES as u64) {
        return Ok(BAD | operand::RCX);
    }
    let mut data = [0u8; 64];
    if !source.is_multiple_of(64) || !memory::read_operand(env.ctx, cpu, source, Views::Either, &mut data)? {
        return Ok(BAD | operand::RDX);
    }
    if subtype != 0 {
        return Ok(BAD | operand::R8);
    }
    let made = env.ctx.vm.tdx().and_then(|tdx| Some((platform()?, tdx.parameters()?, tdx.td())));
    let Some(report) = made.map(|(platform, parameters, td)| make(platform, parameters, &td, &data)) else {
        return Ok(status::OP_STATE_INCORRECT);
    };
    match memory::write_operand(env.ctx, cpu, target, Views::Either, &report)? {
        true => Ok(status::SUCCESS),
        false => Ok(BAD | operand::RCX),
    }
}

/// TDG.MR.VERIFYREPORT: RCX is a REPORTMACSTRUCT.
pub fn mr_verifyreport(env: &mut VcpuEnv<'_>, cpu: &mut CpuState) -> Result<u64, Stop> {
    let source = cpu.gpr[RCX];
    let mut structure = [0u8; MAC_STRUCT_BYTES];
    let aligned = source.is_multiple_of(MAC_STRUCT_BYTES as u64);
    if !aligned || !memory::read_operand(env.ctx, cpu, source, Views::Private, &mut structure)? {
        return Ok(BAD | operand::RCX);
    }
    match platform() {
        Some(platform) if mac_valid(platform, &structure) => Ok(status::SUCCESS),
        Some(_) => Ok(status::INVALID_REPORTMACSTRUCT),
        None => Ok(status::OP_STATE_INCORRECT),
    }
}
