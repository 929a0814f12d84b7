//! The secure processor's services: the CPUID page, ID blocks, guest requests.

use sha2::{Digest, Sha384};

use super::launch::{Firmware, Identity, LaunchDigest};
use super::page::{Page, put, u32_at, u64_at};
use crate::machine::ctx::Ctx;
use crate::uapi::cpuid;

/// SNP firmware ABI version.
pub const ABI_MAJOR: u8 = 1;
/// SNP firmware ABI version.
pub const ABI_MINOR: u8 = 55;
/// Firmware build.
pub const BUILD: u8 = 21;

/// Entries of the CPUID page at most (AMD 56860, "CPUID Page").
const CPUID_ENTRIES: usize = 64;
const CPUID_ENTRY_BYTES: usize = 48;

/// SNP_LAUNCH_UPDATE's check of the CPUID page: a guest must not be told of features that the machine has not, nor of
/// another C-bit. `Err` carries the page as the firmware would have it.
pub fn check_cpuid_page(page: &Page) -> Result<(), Box<Page>> {
    let mut fixed = Box::new(*page);
    let count = u32_at(page, 0) as usize;
    if count > CPUID_ENTRIES || u32_at(page, 4) != 0 || u64_at(page, 8) != 0 {
        put(&mut fixed[..], 0, &(count.min(CPUID_ENTRIES) as u32).to_le_bytes());
        put(&mut fixed[..], 4, &[0; 12]);
    }
    let supported = cpuid::supported();
    for i in 0..count.min(CPUID_ENTRIES) {
        let at = 16 + i * CPUID_ENTRY_BYTES;
        let (leaf, subleaf) = (u32_at(page, at), u32_at(page, at + 4));
        let claimed: [u32; 4] = std::array::from_fn(|r| u32_at(page, at + 24 + 4 * r));
        let allowed = judge(&supported, leaf, subleaf, claimed);
        for (r, value) in allowed.into_iter().enumerate() {
            put(&mut fixed[..], at + 24 + 4 * r, &value.to_le_bytes());
        }
    }
    if fixed[..] == page[..] { Ok(()) } else { Err(fixed) }
}

/// Leaves that the policy names (PPR 55898, 2.1.5.3 "CPUID Policy Enforcement"); every other one of the standard and the
/// extended range must be zeros.
fn named(leaf: u32) -> bool {
    matches!(leaf, 0 | 1 | 5..=7 | 0xb | 0xd | 0x8000_0000..=0x8000_0008 | 0x8000_000a)
        || matches!(leaf, 0x8000_0019..=0x8000_001b | 0x8000_001d..=0x8000_0024 | 0x8000_0026)
}

/// What the firmware lets stand of one entry.
///
/// The firmware ABI (AMD 56860, "CPUID Reporting") refers to the processor's PPR for the policy. What is not said here
/// about a leaf that is named is not checked.
fn judge(
    supported: &[kvm_bindings::kvm_cpuid_entry2],
    leaf: u32,
    subleaf: u32,
    claimed: [u32; 4],
) -> [u32; 4] {
    let own = cpuid::lookup(supported, leaf, subleaf, 1 << 18, 7, 1 << 11);
    let and = |mask: [u32; 4]| -> [u32; 4] { std::array::from_fn(|r| claimed[r] & mask[r]) };
    match leaf {
        // Neither the standard nor the extended range, so none of the firmware's business: the hypervisor's own leaves.
        0x1_0000..=0x7fff_ffff | 0x8001_0000.. => claimed,
        _ if !named(leaf) => [0; 4],
        0 | 0x8000_0000 => [claimed[0].min(own[0]), own[1], own[2], own[3]],
        // EAX may be of another model (QEMU's EPYC-v4 on a Genoa); EBX (APIC ID, CPU count) is the hypervisor's; OSXSAVE is
        // the guest's.
        1 => and([u32::MAX, u32::MAX, own[2] | 1 << 27, own[3] | 1 << 28]),
        7 | 0x8000_0021 => and(own),
        0x8000_0001 => and([u32::MAX, u32::MAX, own[2], own[3]]),
        0x8000_0008 => [claimed[0], claimed[1] & own[1], claimed[2], claimed[3]],
        // The C-bit is a fact. How many address bits are lost is not checked, nor what ECX and EDX say of ASIDs; a guest may be
        // told of fewer VMPLs (QEMU's are told of none).
        0x8000_001f => {
            const C_BIT: u32 = 0x3f;
            const UNCHECKED: u32 = 0xfc0;
            let vmpls = |ebx: u32| ebx >> 12 & 0xf;
            let ebx = own[1] & C_BIT | claimed[1] & UNCHECKED | vmpls(claimed[1]).min(vmpls(own[1])) << 12;
            [claimed[0] & own[0], ebx, claimed[2], claimed[3]]
        }
        // Save-area sizes belong to the XCR0 of the entry; a guest computes the rest (linux: snp_cpuid_calc_xsave_size).
        0xd if subleaf == 0 => and([own[0], u32::MAX, u32::MAX, own[3]]),
        0xd if subleaf == 1 => and([own[0], u32::MAX, own[2], own[3]]),
        _ => claimed,
    }
}

/// The ID authentication page's layout (AMD 56860, "ID Authentication Information Structure").
mod auth {
    pub const ID_KEY_ALGORITHM: usize = 0x000;
    pub const AUTHOR_KEY_ALGORITHM: usize = 0x004;
    pub const BLOCK_SIGNATURE: usize = 0x040;
    pub const ID_KEY: usize = 0x240;
    pub const ID_KEY_SIGNATURE: usize = 0x680;
    pub const AUTHOR_KEY: usize = 0x880;
    pub const KEY_BYTES: usize = 0x404;
    /// ECDSA P-384 with SHA-384.
    pub const ECDSA_P384: u32 = 1;
    /// Curve identifier of P-384.
    pub const P384: u32 = 2;
}

/// A 72-byte little-endian integer as 48 bytes big-endian.
fn scalar(page: &[u8], at: usize) -> Option<[u8; 48]> {
    let field = page.get(at..at + 72)?;
    let (low, high) = field.split_at(48);
    if high.iter().any(|&b| b != 0) {
        return None;
    }
    let mut big: [u8; 48] = low.try_into().ok()?;
    big.reverse();
    Some(big)
}

fn signed_by(page: &Page, key_at: usize, signature_at: usize, message: &[u8]) -> bool {
    use p384::ecdsa::signature::Verifier;
    use p384::ecdsa::{Signature, VerifyingKey};
    let verify = || -> Option<bool> {
        if u32_at(page, key_at) != auth::P384 {
            return None;
        }
        let (x, y) = (scalar(page, key_at + 4)?, scalar(page, key_at + 4 + 72)?);
        let point = p384::Sec1Point::from_affine_coordinates(&x.into(), &y.into(), false);
        let key = VerifyingKey::from_sec1_point(&point).ok()?;
        let (r, s) = (scalar(page, signature_at)?, scalar(page, signature_at + 72)?);
        let signature = Signature::from_scalars(r, s).ok()?;
        Some(key.verify(message, &signature).is_ok())
    };
    verify().unwrap_or(false)
}

/// SNP_LAUNCH_FINISH's checks of the ID block: digest and policy equal, signatures good.
pub fn check_id(
    block: &[u8; 96],
    page: &Page,
    author: bool,
    digest: &LaunchDigest,
    policy: u64,
    identity: &mut Identity,
) -> Result<(), Firmware> {
    if u32_at(page, auth::ID_KEY_ALGORITHM) != auth::ECDSA_P384 || u32_at(block, 0x50) != 1 {
        return Err(Firmware::InvalidParam);
    }
    if author && u32_at(page, auth::AUTHOR_KEY_ALGORITHM) != auth::ECDSA_P384 {
        return Err(Firmware::InvalidParam);
    }
    if block.get(..48) != Some(&digest.0[..]) {
        return Err(Firmware::BadMeasurement);
    }
    if u64_at(block, 0x58) != policy {
        return Err(Firmware::PolicyFailure);
    }
    let key = |at: usize| page.get(at..at + auth::KEY_BYTES).unwrap_or(&[]);
    if !signed_by(page, auth::ID_KEY, auth::BLOCK_SIGNATURE, block) {
        return Err(Firmware::BadSignature);
    }
    if author && !signed_by(page, auth::AUTHOR_KEY, auth::ID_KEY_SIGNATURE, key(auth::ID_KEY)) {
        return Err(Firmware::BadSignature);
    }
    identity.id_key_digest = Sha384::digest(key(auth::ID_KEY)).into();
    if author {
        identity.author_key = true;
        identity.author_key_digest = Sha384::digest(key(auth::AUTHOR_KEY)).into();
    }
    let field = |at: usize| block.get(at..at + 16).and_then(|b| b.try_into().ok()).unwrap_or([0; 16]);
    (identity.family_id, identity.image_id) = (field(0x30), field(0x40));
    identity.guest_svn = u32_at(block, 0x54);
    Ok(())
}

/// "VMM error" in the upper half of SW_EXITINFO2 (GHCB specification, "SNP Guest Request").
const VMM_INVALID_LENGTH: u64 = 1 << 32;
const FIRMWARE_INVALID_ADDRESS: u64 = 9;

/// SNP_GUEST_REQUEST: both pages shared and page aligned; the answer is SW_EXITINFO2.
pub fn guest_request(ctx: &mut Ctx, request: u64, response: u64) -> u64 {
    let mut page = super::page::ZERO;
    let usable = |gpa: u64| gpa & 0xfff == 0 && !ctx.vm.is_private(gpa);
    if !usable(request)
        || !usable(response)
        || request == response
        || ctx.vm.read_shared(request, &mut page).is_err()
    {
        return FIRMWARE_INVALID_ADDRESS;
    }
    let Some(snp) = ctx.vm.snp() else { return FIRMWARE_INVALID_ADDRESS };
    let answer = super::psp::message(&mut snp.launch(), &page);
    match answer {
        Ok(page) if ctx.vm.write_shared(response, &page[..]).is_ok() => 0,
        Ok(_) => FIRMWARE_INVALID_ADDRESS,
        Err(status) => u64::from(status),
    }
}

/// The extended request: a report with the certificate table beside it. `Some` tells how many pages the table needs.
pub fn extended_guest_request(
    ctx: &mut Ctx,
    request: u64,
    response: u64,
    data: u64,
    pages: u64,
) -> (u64, Option<u64>) {
    let table = super::psp::certificate_table();
    let needed = (table.len() as u64).div_ceil(4096);
    if pages < needed {
        return (VMM_INVALID_LENGTH, Some(needed));
    }
    let shared = data & 0xfff == 0 && (0..needed).all(|i| !ctx.vm.is_private(data + i * 4096));
    if !shared || ctx.vm.write_shared(data, table).is_err() {
        return (FIRMWARE_INVALID_ADDRESS, None);
    }
    (guest_request(ctx, request, response), None)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn page(entries: &[(u32, u32, [u32; 4])]) -> Page {
        let mut page = super::super::page::ZERO;
        put(&mut page, 0, &(entries.len() as u32).to_le_bytes());
        for (i, (leaf, subleaf, regs)) in entries.iter().enumerate() {
            let at = 16 + CPUID_ENTRY_BYTES * i;
            put(&mut page, at, &leaf.to_le_bytes());
            put(&mut page, at + 4, &subleaf.to_le_bytes());
            for (r, value) in regs.iter().enumerate() {
                put(&mut page, at + 24 + 4 * r, &value.to_le_bytes());
            }
        }
        page
    }

    #[test]
    fn the_machines_own_table_passes_and_an_embellished_one_comes_back_corrected() {
        let supported = cpuid::supported();
        let rows: Vec<_> =
            supported.iter().map(|e| (e.function, e.index, [e.eax, e.ebx, e.ecx, e.edx])).collect();
        assert_eq!(check_cpuid_page(&page(&rows)), Ok(()));
        let own = cpuid::lookup(&supported, 7, 0, 0, 1, 0);
        let claimed = [own[0], own[1] | 1 << 16, own[2], own[3]];
        let corrected =
            check_cpuid_page(&page(&[(7, 0, claimed)])).expect_err("AVX-512 that the machine has not");
        assert_eq!(u32_at(&corrected[..], 16 + 28), own[1]);
        let [sev, widths, ..] = cpuid::lookup(&supported, 0x8000_001f, 0, 0, 1, 0);
        for (ebx, allowed) in [
            (widths, true),
            // A guest that is told of no VMPLs; of more than there are; of another C-bit; of other lost address bits.
            (widths & 0xfff, true),
            (widths | 1 << 15, false),
            (widths ^ 1, false),
            (widths ^ 1 << 6, true),
            (widths | 0xfc0, true),
            (widths | 1 << 16, false),
        ] {
            let answer = check_cpuid_page(&page(&[(0x8000_001f, 0, [sev, ebx, 0, 0])]));
            assert_eq!(answer.is_ok(), allowed, "{ebx:#x}");
        }
        for (leaf, allowed) in [
            (2, false),
            (4, false),
            (0xffff, false),
            (0x8000_0009, false),
            (0x8000_001c, false),
            (0x8000_ffff, false),
            (0x4000_0001, true),
            (0x1_0000, true),
            (0x8001_0000, true),
            (0x8000_001e, true),
        ] {
            assert_eq!(check_cpuid_page(&page(&[(leaf, 0, [1, 0, 0, 0])])).is_ok(), allowed, "{leaf:#x}");
            assert!(check_cpuid_page(&page(&[(leaf, 0, [0; 4])])).is_ok(), "{leaf:#x} of zeros");
        }
        let [_, b, c, d] = cpuid::lookup(&supported, 1, 0, 0, 1, 0);
        assert!(check_cpuid_page(&page(&[(1, 0, [0x80_0f12, b, c, d])])).is_ok(), "another model");
        assert!(check_cpuid_page(&page(&[(1, 0, [0x80_0f12, b, c | 1 << 28, d])])).is_err(), "with AVX");
        let mut long = page(&[]);
        put(&mut long, 0, &65u32.to_le_bytes());
        assert!(check_cpuid_page(&long).is_err(), "65 entries");
    }
}
