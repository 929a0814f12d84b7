//! The secure processor: keys, certificates, reports, guest messages.
//!
//! Its root is its own (`O=Cloister softkvm, emulated, NOT AMD`), made on first use under the state directory; nothing
//! trusts it unless told to.

pub mod certs;
pub mod message;
pub mod platform;
pub mod report;

use std::path::PathBuf;
use std::sync::OnceLock;

pub use message::message;
use platform::Platform;

use crate::uapi::tee::STATE_VARIABLE;

/// Why the emulated keys cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No place to keep them.
    #[error("no state directory: set --state DIR, XDG_DATA_HOME or HOME")]
    NoDirectory,
    /// A file.
    #[error("{path}: {source}")]
    Io {
        /// Which.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// A file's contents.
    #[error("{path}: {why}; remove the directory to have new keys made")]
    Damaged {
        /// Which.
        path: PathBuf,
        /// What is wrong.
        why: String,
    },
    /// An encoder or signer failed.
    #[error("making certificates: {0}")]
    Crypto(String),
}

/// The state directory: `--state`, else the user's data directory.
pub fn state_directory() -> Result<PathBuf, Error> {
    let variable = |name| std::env::var_os(name).filter(|v| !v.is_empty()).map(PathBuf::from);
    variable(STATE_VARIABLE)
        .or_else(|| variable("XDG_DATA_HOME").map(|d| d.join("cloister/softkvm")))
        .or_else(|| variable("HOME").map(|d| d.join(".local/share/cloister/softkvm")))
        .ok_or(Error::NoDirectory)
}

/// The platform of this process, opened at first use.
pub fn platform() -> Option<&'static Platform> {
    static PLATFORM: OnceLock<Option<Platform>> = OnceLock::new();
    PLATFORM
        .get_or_init(|| match state_directory().and_then(|dir| Platform::open(&dir)) {
            Ok(platform) => Some(platform),
            Err(error) => {
                eprintln!("softkvm: the secure processor cannot start: {error}");
                None
            }
        })
        .as_ref()
}

/// The certificate table of an extended report: VCEK, ASK, ARK.
pub fn certificate_table() -> &'static [u8] {
    static TABLE: OnceLock<Vec<u8>> = OnceLock::new();
    TABLE.get_or_init(|| platform().map(|p| p.certs.table()).unwrap_or_default())
}
