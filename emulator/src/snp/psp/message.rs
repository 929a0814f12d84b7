//! Guest messages (AMD 56860, "Guest Messages"): AES-256-GCM under a VMPCK, sequence numbers, requests and answers.

use aes_gcm::aead::AeadInOut;
use aes_gcm::{Aes256Gcm, KeyInit, Tag};

use super::platform::Platform;
use super::report::{self, Signing};
use crate::platform::derive;
use crate::snp::launch::Launch;
use crate::snp::page::{Page, ZERO, put, u16_at, u32_at, u64_at};

/// Status of SNP_GUEST_REQUEST itself.
mod status {
    pub const BAD_MEASUREMENT: u32 = 11;
    pub const INVALID_COMMAND: u32 = 17;
    pub const INVALID_PARAM: u32 = 22;
    pub const AEAD_OVERFLOW: u32 = 0x1d;
}

/// Offsets in the message header (linux: struct snp_guest_msg_hdr).
mod header {
    pub const TAG: usize = 0x00;
    pub const SEQUENCE: usize = 0x20;
    pub const ALGORITHM: usize = 0x30;
    pub const VERSION: usize = 0x31;
    pub const BYTES_FIELD: usize = 0x32;
    pub const KIND: usize = 0x34;
    pub const KIND_VERSION: usize = 0x35;
    pub const PAYLOAD_BYTES: usize = 0x36;
    pub const VMPCK: usize = 0x3c;
    pub const BYTES: usize = 0x60;
}

const AES_256_GCM: u8 = 1;
const KEY_REQUEST: u8 = 3;
const REPORT_REQUEST: u8 = 5;
/// MSG_*_RSP.status.
const MESSAGE_OK: u32 = 0;
const MESSAGE_INVALID_PARAMETERS: u32 = 0x16;

fn cipher(key: &[u8; 32]) -> Aes256Gcm {
    Aes256Gcm::new(key.into())
}

/// The IV is the sequence number, little-endian, zero-extended.
fn nonce(sequence: u64) -> [u8; 12] {
    let mut iv = [0u8; 12];
    put(&mut iv, 0, &sequence.to_le_bytes());
    iv
}

/// SNP_GUEST_REQUEST: one message in, one message out. `Err` is the firmware's status; then no sequence number is used up.
pub fn message(guest: &mut Launch, request: &Page) -> Result<Box<Page>, u32> {
    let Some(platform) = super::platform() else { return Err(status::INVALID_COMMAND) };
    serve(platform, guest, request)
}

fn serve(platform: &Platform, guest: &mut Launch, request: &Page) -> Result<Box<Page>, u32> {
    let key_index = usize::from(request[header::VMPCK]);
    let bytes = usize::from(u16_at(request, header::PAYLOAD_BYTES));
    let shape = request[header::ALGORITHM] == AES_256_GCM
        && request[header::VERSION] == 1
        && usize::from(u16_at(request, header::BYTES_FIELD)) == header::BYTES
        && bytes <= request.len() - header::BYTES
        && guest.running();
    let Some(key) = guest.vmpcks.get(key_index).copied().filter(|_| shape) else {
        return Err(status::INVALID_PARAM);
    };
    let sequence = u64_at(request, header::SEQUENCE);
    let last = guest.sequence.get(key_index).copied().unwrap_or(u64::MAX);
    // The counter must move by exactly one: a replayed or dropped message is an attack.
    if last == u64::MAX || sequence == u64::MAX {
        return Err(status::AEAD_OVERFLOW);
    }
    if sequence != last + 1 {
        return Err(status::INVALID_PARAM);
    }
    let payload = open(&key, sequence, request, bytes).ok_or(status::BAD_MEASUREMENT)?;
    let answer = match (request[header::KIND], request[header::KIND_VERSION]) {
        (REPORT_REQUEST, 1) => report_response(platform, guest, key_index as u32, &payload),
        (KEY_REQUEST, 1) => key_response(platform, guest, key_index as u32, &payload),
        _ => return Err(status::INVALID_PARAM),
    };
    let response = seal(&key, sequence + 1, request, &answer).ok_or(status::INVALID_PARAM)?;
    if let Some(counter) = guest.sequence.get_mut(key_index) {
        *counter = sequence + 1;
    }
    Ok(response)
}

fn open(key: &[u8; 32], sequence: u64, request: &Page, bytes: usize) -> Option<Vec<u8>> {
    let mut payload = request.get(header::BYTES..header::BYTES + bytes)?.to_vec();
    let tag = Tag::from(<[u8; 16]>::try_from(request.get(header::TAG..header::TAG + 16)?).ok()?);
    let aad = request.get(header::ALGORITHM..header::BYTES)?;
    cipher(key)
        .decrypt_inout_detached(&nonce(sequence).into(), aad, payload.as_mut_slice().into(), &tag)
        .ok()?;
    Some(payload)
}

fn seal(key: &[u8; 32], sequence: u64, request: &Page, answer: &[u8]) -> Option<Box<Page>> {
    let mut page = Box::new(ZERO);
    put(&mut page[..], header::SEQUENCE, &sequence.to_le_bytes());
    put(&mut page[..], header::ALGORITHM, &[AES_256_GCM, 1]);
    put(&mut page[..], header::BYTES_FIELD, &(header::BYTES as u16).to_le_bytes());
    // The response's type follows the request's.
    put(&mut page[..], header::KIND, &[request[header::KIND] + 1, request[header::KIND_VERSION]]);
    put(&mut page[..], header::PAYLOAD_BYTES, &u16::try_from(answer.len()).ok()?.to_le_bytes());
    put(&mut page[..], header::VMPCK, &[request[header::VMPCK]]);
    let mut payload = answer.to_vec();
    let aad: [u8; header::BYTES - header::ALGORITHM] =
        page.get(header::ALGORITHM..header::BYTES)?.try_into().ok()?;
    let tag = cipher(key)
        .encrypt_inout_detached(&nonce(sequence).into(), &aad, payload.as_mut_slice().into())
        .ok()?;
    put(&mut page[..], header::TAG, &tag);
    put(&mut page[..], header::BYTES, &payload);
    Some(page)
}

/// MSG_REPORT_REQ: report data, VMPL, key selection.
fn report_response(platform: &Platform, guest: &Launch, key_index: u32, payload: &[u8]) -> Vec<u8> {
    let mut answer = vec![0u8; 32 + report::BYTES];
    let data: Option<[u8; 64]> = payload.get(..64).and_then(|b| b.try_into().ok());
    let (vmpl, selection) = (u32_at(payload, 64), u32_at(payload, 68));
    let reserved = payload.get(72..96).is_some_and(|b| b.iter().all(|&x| x == 0));
    // A guest asks for itself or for a less privileged VMPL; keys: 0 VLEK if there is one else VCEK, 1 VCEK, 2 VLEK.
    let Some(data) =
        data.filter(|_| payload.len() == 96 && reserved && (key_index..=3).contains(&vmpl) && selection <= 1)
    else {
        put(&mut answer, 0, &MESSAGE_INVALID_PARAMETERS.to_le_bytes());
        return answer;
    };
    put(&mut answer, 0, &MESSAGE_OK.to_le_bytes());
    put(&mut answer, 4, &(report::BYTES as u32).to_le_bytes());
    put(&mut answer, 32, &report::make(platform, guest, vmpl, &data, Signing::Vcek));
    answer
}

/// MSG_KEY_REQ: a key derived from the chip's secret and the selected fields of the guest.
fn key_response(platform: &Platform, guest: &Launch, key_index: u32, payload: &[u8]) -> Vec<u8> {
    let mut answer = vec![0u8; 64];
    let (root, fields) = (u32_at(payload, 0), u64_at(payload, 8));
    let (vmpl, svn, tcb) = (u32_at(payload, 16), u32_at(payload, 20), u64_at(payload, 24));
    let own = platform.model.tcb.packed().to_le_bytes();
    let tcb_allowed = tcb.to_le_bytes().iter().zip(own).all(|(&asked, have)| asked <= have);
    // Root keys: 0 VCEK, 1 VMRK (none without a migration agent). Field bits: policy, image, family, measurement, SVN, TCB.
    let valid =
        matches!(payload.len(), 32 | 40) && root == 0 && fields < 1 << 6 && svn <= guest.identity.guest_svn;
    if !valid || !tcb_allowed || !(key_index..=3).contains(&vmpl) {
        put(&mut answer, 0, &MESSAGE_INVALID_PARAMETERS.to_le_bytes());
        return answer;
    }
    let identity = &guest.identity;
    let pick = |bit: u32, bytes: Vec<u8>| if fields >> bit & 1 != 0 { bytes } else { Vec::new() };
    let key = derive(&[
        b"guest key",
        &platform.secret,
        &vmpl.to_le_bytes(),
        &pick(0, guest.policy.to_le_bytes().to_vec()),
        &pick(1, identity.image_id.to_vec()),
        &pick(2, identity.family_id.to_vec()),
        &pick(3, guest.digest.0.to_vec()),
        &pick(4, svn.to_le_bytes().to_vec()),
        &pick(5, tcb.to_le_bytes().to_vec()),
        &identity.host_data,
        &identity.id_key_digest,
    ]);
    put(&mut answer, 32, key.get(..32).unwrap_or(&[]));
    answer
}
