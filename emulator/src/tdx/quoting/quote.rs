//! TD quotes, versions 4 and 5 (Intel TDX DCAP Quoting Library API, appendix "Quote Format").

use p256::ecdsa::signature::Signer;
use p256::ecdsa::{Signature, SigningKey};
use sha2::{Digest, Sha256};

use super::pki::Pki;
use super::platform::Platform;
use crate::platform::Error;
use crate::snp::page::put;
use crate::tdx::report::{self, offset};

/// ATTRIBUTES of the quoting enclave: INIT, MODE64BIT, and PROVISIONKEY.
pub const QE_ATTRIBUTES: [u8; 16] = [0x11, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
/// MRSIGNER of the emulated quoting enclave.
pub const QE_MRSIGNER: [u8; 32] = *b"softkvm quoting enclave, no SGX!";
/// ISVPRODID of the TD quoting enclave.
pub const QE_PRODUCT: u16 = 2;

/// "Intel SGX quoting enclave": verifiers look for this vendor.
const QE_VENDOR: [u8; 16] =
    [0x93, 0x9a, 0x72, 0x33, 0xf7, 0x9c, 0x4c, 0xa9, 0x94, 0x0a, 0x0d, 0xb3, 0x95, 0x7f, 0x06, 0x07];
const ECDSA_P256: u16 = 2;
const TEE_TDX: u32 = 0x81;
const BODY_TD_1_5: u16 = 3;
const QE_REPORT_CERTIFICATION: u16 = 6;
const PCK_CHAIN: u16 = 5;
const QE_REPORT_BYTES: usize = 384;

/// Why there is no quote.
#[derive(Debug, thiserror::Error)]
pub enum Refusal {
    /// Not a report of this platform.
    #[error("the report is not this platform's")]
    NotGenuine,
    /// Certificates could not be encoded.
    #[error(transparent)]
    Platform(#[from] Error),
}

/// A quote for a report that this platform made.
pub fn make(platform: &Platform, report: &[u8; report::BYTES]) -> Result<Vec<u8>, Refusal> {
    if !report::genuine(platform, report) {
        return Err(Refusal::NotGenuine);
    }
    let version = platform.model.quote_version;
    let mut quote = header(platform, version);
    let body = body(report, version);
    if version == 5 {
        quote.extend_from_slice(&BODY_TD_1_5.to_le_bytes());
        quote.extend_from_slice(&(body.len() as u32).to_le_bytes());
    }
    quote.extend_from_slice(&body);
    let signature = signature_data(platform, &quote)?;
    quote.extend_from_slice(&(signature.len() as u32).to_le_bytes());
    quote.extend_from_slice(&signature);
    Ok(quote)
}

fn header(platform: &Platform, version: u16) -> Vec<u8> {
    let mut header = vec![0u8; 48];
    put(&mut header, 0, &version.to_le_bytes());
    put(&mut header, 2, &ECDSA_P256.to_le_bytes());
    put(&mut header, 4, &TEE_TDX.to_le_bytes());
    put(&mut header, 12, &QE_VENDOR);
    // User data: the first half of an identifier of the quoting enclave.
    put(&mut header, 28, &platform.identifiers.1);
    header
}

/// The TD report's body: TDX 1.0's 584 bytes, and in version 5 TDX 1.5's two fields more.
fn body(report: &[u8], version: u16) -> Vec<u8> {
    let part = |at: usize, bytes: usize| report.get(at..at + bytes).unwrap_or(&[]);
    let tcb = |at: usize, bytes: usize| part(offset::TEE_TCB_INFO + at, bytes);
    let info = |at: usize, bytes: usize| part(offset::TD_INFO + at, bytes);
    let mut body = Vec::with_capacity(648);
    // TEE_TCB_SVN, MRSEAM, MRSIGNERSEAM, SEAM attributes: as they follow one another.
    body.extend_from_slice(tcb(8, 16 + 48 + 48 + 8));
    // ATTRIBUTES to RTMR3.
    body.extend_from_slice(info(0, 8 + 8 + 4 * 48 + 4 * 48));
    body.extend_from_slice(part(offset::REPORT_DATA, 64));
    if version == 5 {
        body.extend_from_slice(tcb(128, 16));
        // MRSERVICETD
        body.extend_from_slice(info(400, 48));
    }
    body
}

fn sign(key: &SigningKey, message: &[u8]) -> [u8; 64] {
    let signature: Signature = key.sign(message);
    signature.to_bytes().into()
}

/// Signature, attestation key, and why to believe that key: the QE's report, signed by the PCK, and the PCK's chain.
fn signature_data(platform: &Platform, signed: &[u8]) -> Result<Vec<u8>, Error> {
    let point = platform.attestation_key.verifying_key().to_sec1_point(false);
    // Uncompressed, without its leading 04h.
    let public = point.as_bytes().get(1..).unwrap_or(&[]);
    let authentication: Vec<u8> = (0u8..32).collect();
    let report = qe_report(platform, &Sha256::digest([public, &authentication].concat()));
    let pki = &platform.pki;
    let chain = Pki::chain(&[&pki.pck, &pki.platform_ca, &pki.root])?;
    let mut certification = report.to_vec();
    certification.extend_from_slice(&sign(&pki.pck_key, &report));
    certification.extend_from_slice(&(authentication.len() as u16).to_le_bytes());
    certification.extend_from_slice(&authentication);
    certification.extend_from_slice(&PCK_CHAIN.to_le_bytes());
    certification.extend_from_slice(&(chain.len() as u32).to_le_bytes());
    certification.extend_from_slice(chain.as_bytes());
    let mut data = sign(&platform.attestation_key, signed).to_vec();
    data.extend_from_slice(public);
    data.extend_from_slice(&QE_REPORT_CERTIFICATION.to_le_bytes());
    data.extend_from_slice(&(certification.len() as u32).to_le_bytes());
    data.extend_from_slice(&certification);
    Ok(data)
}

/// The quoting enclave's SGX report (Intel SDM volume 3, "REPORT Structure"), which binds the attestation key.
fn qe_report(platform: &Platform, binding: &[u8]) -> [u8; QE_REPORT_BYTES] {
    let mut report = [0u8; QE_REPORT_BYTES];
    let signer = if platform.model.alien_qe { [0xa1; 32] } else { QE_MRSIGNER };
    put(&mut report, 0, &platform.cpusvn());
    put(&mut report, 48, &QE_ATTRIBUTES);
    put(&mut report, 64, &Sha256::digest(b"softkvm quoting enclave"));
    put(&mut report, 128, &signer);
    put(&mut report, 256, &QE_PRODUCT.to_le_bytes());
    put(&mut report, 258, &platform.model.versions.qe_isvsvn.to_le_bytes());
    put(&mut report, 320, binding);
    report
}
