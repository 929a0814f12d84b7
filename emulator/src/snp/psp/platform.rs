//! The platform model: product, firmware versions, chip identity; a JSON file in the state directory.

use std::path::Path;

use serde::{Deserialize, Serialize};
use sha2::Digest;

use super::certs::Certs;
use crate::platform::{self, Error, Locked, derive};

/// TCB_VERSION by component (AMD 56860, "TCB Version", Milan and Genoa layout).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[allow(missing_docs, reason = "the specification's names")]
pub struct Tcb {
    pub boot_loader: u8,
    pub tee: u8,
    pub snp: u8,
    pub microcode: u8,
}

impl Tcb {
    /// The packed form: boot loader lowest, microcode highest.
    pub fn packed(self) -> u64 {
        u64::from_le_bytes([self.boot_loader, self.tee, 0, 0, 0, 0, self.snp, self.microcode])
    }
}

/// What the model file says.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Model {
    /// Attestation report version: 2, 3, 4 or 5.
    pub report_version: u32,
    /// CURRENT_TCB, REPORTED_TCB, COMMITTED_TCB and LAUNCH_TCB.
    pub tcb: Tcb,
    /// PLATFORM_INFO.
    pub platform_info: u64,
}

impl Default for Model {
    fn default() -> Self {
        Self {
            report_version: 3,
            tcb: Tcb { boot_loader: 10, tee: 0, snp: 23, microcode: 84 },
            // SMT enabled, alias check complete.
            platform_info: 1 | 1 << 5,
        }
    }
}

/// An opened platform.
pub struct Platform {
    /// The model.
    pub model: Model,
    /// CHIP_ID.
    pub chip_id: [u8; 64],
    /// The chip's secret, from which VCEK and derived keys come.
    pub secret: [u8; 48],
    /// Its certificates.
    pub certs: Certs,
    /// The VCEK of the model's TCB.
    pub vcek: p384::ecdsa::SigningKey,
}

impl Platform {
    /// Opens the state directory, making keys and files that are not there.
    pub fn open(dir: &Path) -> Result<Self, Error> {
        let _lock = Locked::open(dir)?;
        let model_path = dir.join("platform.json");
        let model: Model = platform::model(&model_path)?;
        if !(2..=5).contains(&model.report_version) {
            let why = format!("report_version {} is not 2 to 5", model.report_version);
            return Err(platform::damaged(&model_path)(why));
        }
        let seed = platform::seed(&dir.join("chip.seed"))?;
        let secret: [u8; 48] = derive(&[b"chip secret", &seed]);
        let mut chip_id = [0u8; 64];
        chip_id.copy_from_slice(&sha2::Sha512::digest([&b"chip id"[..], &seed].concat()));
        let vcek = vcek(&secret, model.tcb)?;
        let certs = Certs::open(dir, &model, &chip_id, &vcek)?;
        Ok(Self { model, chip_id, secret, certs, vcek })
    }
}

/// As on hardware, the VCEK depends on the TCB: firmware that was rolled back cannot sign for a newer one.
fn vcek(secret: &[u8; 48], tcb: Tcb) -> Result<p384::ecdsa::SigningKey, Error> {
    for attempt in 0u8..=255 {
        let candidate = derive(&[b"VCEK", secret, &tcb.packed().to_le_bytes(), &[attempt]]);
        if let Ok(key) = p384::ecdsa::SigningKey::from_slice(&candidate) {
            return Ok(key);
        }
    }
    Err(Error::Crypto("no VCEK".into()))
}
