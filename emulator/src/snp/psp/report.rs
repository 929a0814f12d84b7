//! ATTESTATION_REPORT (AMD 56860, table "ATTESTATION_REPORT Structure"), versions 2 to 5.

use p384::ecdsa::Signature;
use p384::ecdsa::signature::Signer;

use super::platform::Platform;
use crate::snp::launch::Launch;
use crate::snp::page::put;
use crate::snp::request::{ABI_MAJOR, ABI_MINOR, BUILD};
use crate::uapi::cpuid::SIGNATURE;

/// Bytes of a report.
pub const BYTES: usize = 1184;
const SIGNED: usize = 0x2a0;

/// Which key signs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Signing {
    /// The chip's.
    Vcek,
    /// None.
    Nobody,
}

/// A report of this guest for `vmpl`.
pub fn make(
    platform: &Platform,
    guest: &Launch,
    vmpl: u32,
    report_data: &[u8; 64],
    signing: Signing,
) -> [u8; BYTES] {
    let model = &platform.model;
    let tcb = model.tcb.packed().to_le_bytes();
    let mut report = [0u8; BYTES];
    let mut set = |at: usize, bytes: &[u8]| put(&mut report, at, bytes);
    let identity = &guest.identity;
    set(0x000, &model.report_version.to_le_bytes());
    set(0x004, &identity.guest_svn.to_le_bytes());
    set(0x008, &guest.policy.to_le_bytes());
    set(0x010, &identity.family_id);
    set(0x020, &identity.image_id);
    set(0x030, &vmpl.to_le_bytes());
    set(0x034, &u32::from(signing == Signing::Vcek).to_le_bytes());
    set(0x038, &tcb);
    set(0x040, &model.platform_info.to_le_bytes());
    let signer: u32 = if signing == Signing::Vcek { 0 } else { 7 };
    set(0x048, &(u32::from(identity.author_key) | signer << 2).to_le_bytes());
    set(0x050, report_data);
    set(0x090, &guest.digest.0);
    set(0x0c0, &identity.host_data);
    set(0x0e0, &identity.id_key_digest);
    set(0x110, &identity.author_key_digest);
    set(0x140, &guest.report_id);
    // No migration agent.
    set(0x160, &[0xff; 32]);
    set(0x180, &tcb);
    if model.report_version >= 3 {
        set(0x188, &cpuid());
    }
    set(0x1a0, &platform.chip_id);
    set(0x1e0, &tcb);
    set(0x1e8, &[BUILD, ABI_MINOR, ABI_MAJOR, 0]);
    set(0x1ec, &[BUILD, ABI_MINOR, ABI_MAJOR, 0]);
    set(0x1f0, &tcb);
    if signing == Signing::Vcek {
        sign(platform, &mut report);
    }
    report
}

/// Family (combined), model (combined), stepping.
fn cpuid() -> [u8; 3] {
    let base_family = SIGNATURE >> 8 & 0xf;
    let family = base_family + (SIGNATURE >> 20 & 0xff);
    let model = SIGNATURE >> 4 & 0xf | SIGNATURE >> 12 & 0xf0;
    [family as u8, model as u8, (SIGNATURE & 0xf) as u8]
}

/// r and s are little-endian in 72-byte fields.
fn sign(platform: &Platform, report: &mut [u8; BYTES]) {
    let signature: Signature = platform.vcek.sign(report.get(..SIGNED).unwrap_or(&[]));
    let (r, s) = signature.split_bytes();
    for (at, scalar) in [(SIGNED, r), (SIGNED + 72, s)] {
        let mut little: [u8; 48] = scalar.into();
        little.reverse();
        put(report, at, &little);
    }
}
