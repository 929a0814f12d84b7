//! The platform model: security versions, and the ways in which a platform can be bad; a JSON file in the state directory.

use std::path::Path;
use std::sync::OnceLock;

use p256::ecdsa::SigningKey;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha384};

use super::pki::Pki;
use crate::platform::{self, Error, Locked, crypto, derive};

/// Security versions of a platform.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Versions {
    /// SGX TCB component SVNs 1 to 16.
    pub sgx: [u8; 16],
    /// PCESVN.
    pub pcesvn: u16,
    /// ISVSVN of the TD quoting enclave.
    pub qe_isvsvn: u16,
}

/// What Intel's collateral calls up to date, were this platform Intel's.
pub const CURRENT: Versions =
    Versions { sgx: [3, 3, 2, 2, 4, 1, 0, 5, 0, 0, 0, 0, 0, 0, 0, 0], pcesvn: 13, qe_isvsvn: 4 };
/// TEE_TCB_SVN of the same: module SVN 6 of major version 1, SEAMLDR and microcode behind it.
pub const CURRENT_TEE: [u8; 16] = [6, 1, 3, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
/// The level below: out of date.
pub const STALE: Versions =
    Versions { sgx: [2, 2, 2, 2, 3, 1, 0, 3, 0, 0, 0, 0, 0, 0, 0, 0], pcesvn: 11, qe_isvsvn: 4 };
/// TEE_TCB_SVN of the level below.
pub const STALE_TEE: [u8; 16] = [3, 1, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];

/// What the model file says.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Model {
    /// Version of the quotes: 4 or 5.
    pub quote_version: u16,
    /// Security versions; the PCK certificate has them.
    pub versions: Versions,
    /// TEE_TCB_SVN, in reports and quotes.
    pub tee_tcb_svn: [u8; 16],
    /// The collateral revokes this platform's PCK certificate.
    pub pck_revoked: bool,
    /// Another signer's quoting enclave: its identity is not the one in the collateral.
    pub alien_qe: bool,
    /// The host's KVM lets clients make debuggable TDs. Mainline's does not; a hostile host's does.
    pub kvm_allows_debug: bool,
}

impl Default for Model {
    fn default() -> Self {
        Self {
            quote_version: 4,
            versions: CURRENT,
            tee_tcb_svn: CURRENT_TEE,
            pck_revoked: false,
            alien_qe: false,
            kvm_allows_debug: false,
        }
    }
}

/// An opened platform.
pub struct Platform {
    /// The model.
    pub model: Model,
    /// The key of report MACs.
    pub mac_key: [u8; 48],
    /// PPID, platform instance ID.
    pub identifiers: ([u8; 16], [u8; 16]),
    /// The quoting enclave's attestation key.
    pub attestation_key: SigningKey,
    /// Certificates and their keys.
    pub pki: Pki,
}

/// A P-256 key derived from byte strings.
pub fn key(parts: &[&[u8]]) -> Result<SigningKey, Error> {
    for attempt in 0u8..=255 {
        let last = [attempt];
        let all: Vec<&[u8]> = parts.iter().copied().chain([&last[..]]).collect();
        if let Some(Ok(key)) = derive(&all).get(..32).map(SigningKey::from_slice) {
            return Ok(key);
        }
    }
    Err(crypto("no key"))
}

/// The first 16 bytes of a derivation.
fn short(parts: &[&[u8]]) -> [u8; 16] {
    derive(parts).first_chunk().copied().unwrap_or_default()
}

impl Platform {
    /// Opens the state directory, making keys and files that are not there.
    pub fn open(dir: &Path) -> Result<Self, Error> {
        let _lock = Locked::open(dir)?;
        let path = dir.join("tdx-platform.json");
        let model: Model = platform::model(&path)?;
        if !matches!(model.quote_version, 4 | 5) {
            let why = format!("quote_version {} is not 4 or 5", model.quote_version);
            return Err(platform::damaged(&path)(why));
        }
        let seed = platform::seed(&dir.join("tdx-chip.seed"))?;
        // As on hardware, keys depend on the security versions: a platform that was rolled back cannot sign for a newer one.
        let versions = [&model.versions.sgx[..], &model.versions.pcesvn.to_le_bytes()].concat();
        let identifiers = (short(&[b"PPID", &seed]), short(&[b"instance", &seed]));
        let pki = Pki::open(dir, &model, identifiers, &seed, &versions)?;
        Ok(Self {
            mac_key: derive(&[b"report MAC", &seed]),
            attestation_key: key(&[b"attestation key", &seed, &versions])?,
            identifiers,
            pki,
            model,
        })
    }

    /// MRSEAM: there is no module binary to measure, so its version stands for it.
    pub fn mrseam(&self) -> [u8; 48] {
        Sha384::digest([&b"softkvm TDX module"[..], &self.model.tee_tcb_svn].concat()).into()
    }

    /// CPUSVN.
    pub fn cpusvn(&self) -> [u8; 16] {
        self.model.versions.sgx
    }
}

/// The platform of this process, opened at first use.
pub fn platform() -> Option<&'static Platform> {
    static PLATFORM: OnceLock<Option<Platform>> = OnceLock::new();
    platform::of_this_process(&PLATFORM, "the TDX platform", Platform::open)
}
