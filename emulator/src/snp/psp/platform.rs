//! The platform model: product, firmware versions, chip identity; a JSON file in the state directory.

use std::fs;
use std::io::Write;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::Path;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha384};

use super::Error;
use super::certs::Certs;

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

/// Creates a file of mode 0600 with these contents; an existing one stays.
pub(super) fn create_private(path: &Path, contents: &[u8]) -> Result<(), Error> {
    let io = |source| Error::Io { path: path.to_owned(), source };
    let mut file = fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(path).map_err(io)?;
    file.write_all(contents).map_err(io)
}

pub(super) fn read(path: &Path) -> Result<Vec<u8>, Error> {
    fs::read(path).map_err(|source| Error::Io { path: path.to_owned(), source })
}

impl Platform {
    /// Opens the state directory, making keys and files that are not there.
    pub fn open(dir: &Path) -> Result<Self, Error> {
        let io = |source| Error::Io { path: dir.to_owned(), source };
        fs::DirBuilder::new().recursive(true).mode(0o700).create(dir).map_err(io)?;
        let _lock = Lock::take(dir)?;
        let model_path = dir.join("platform.json");
        if !model_path.exists() {
            let text =
                serde_json::to_vec_pretty(&Model::default()).map_err(|e| Error::Crypto(e.to_string()))?;
            create_private(&model_path, &text)?;
        }
        let damaged = |path: &Path, why: String| Error::Damaged { path: path.to_owned(), why };
        let model: Model =
            serde_json::from_slice(&read(&model_path)?).map_err(|e| damaged(&model_path, e.to_string()))?;
        if !(2..=5).contains(&model.report_version) {
            return Err(damaged(
                &model_path,
                format!("report_version {} is not 2 to 5", model.report_version),
            ));
        }
        let seed_path = dir.join("chip.seed");
        if !seed_path.exists() {
            create_private(&seed_path, &crate::snp::request::random())?;
        }
        let seed = read(&seed_path)?;
        if seed.len() != 32 {
            return Err(damaged(&seed_path, "not 32 bytes".into()));
        }
        let secret: [u8; 48] = derive(&[b"chip secret", &seed]);
        let mut chip_id = [0u8; 64];
        chip_id.copy_from_slice(&sha2::Sha512::digest([&b"chip id"[..], &seed].concat()));
        let vcek = vcek(&secret, model.tcb)?;
        let certs = Certs::open(dir, &model, &chip_id, &vcek)?;
        Ok(Self { model, chip_id, secret, certs, vcek })
    }
}

/// A key derived from byte strings.
pub(super) fn derive(parts: &[&[u8]]) -> [u8; 48] {
    let mut hash = Sha384::new();
    for part in parts {
        hash.update((part.len() as u64).to_le_bytes());
        hash.update(part);
    }
    hash.finalize().into()
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

/// Two processes that start at once make one set of keys.
struct Lock(fs::File);

impl Lock {
    fn take(dir: &Path) -> Result<Self, Error> {
        let path = dir.join("lock");
        let io = |source| Error::Io { path: path.clone(), source };
        let file = fs::OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(&path)
            .map_err(io)?;
        file.lock().map_err(io)?;
        Ok(Self(file))
    }
}

impl Drop for Lock {
    fn drop(&mut self) {
        // Closing the file would do; an error here changes nothing.
        let _ = self.0.unlock();
    }
}
