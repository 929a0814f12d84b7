//! What outlives a VM: the state directory with the emulated chips' secrets, their models, and their certificates.
//!
//! Every root here is its own (`O=Cloister softkvm, emulated, NOT AMD` or `NOT Intel`), made on first use; nothing trusts
//! it unless told to.

pub mod x509;

use std::fs;
use std::io::Write;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use der::{Decode, Encode};
use serde::Serialize;
use serde::de::DeserializeOwned;
use sha2::{Digest, Sha384};

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

/// An encoder's or signer's error.
pub fn crypto<E: std::fmt::Display>(error: E) -> Error {
    Error::Crypto(error.to_string())
}

/// An error of a file.
pub fn io(path: &Path) -> impl FnOnce(std::io::Error) -> Error {
    let path = path.to_owned();
    move |source| Error::Io { path, source }
}

/// What is wrong with a file's contents.
pub fn damaged<E: std::fmt::Display>(path: &Path) -> impl FnOnce(E) -> Error {
    let path = path.to_owned();
    move |why| Error::Damaged { path, why: why.to_string() }
}

/// The state directory: `--state`, else the user's data directory.
pub fn state_directory() -> Result<PathBuf, Error> {
    let variable = |name| std::env::var_os(name).filter(|v| !v.is_empty()).map(PathBuf::from);
    variable(STATE_VARIABLE)
        .or_else(|| variable("XDG_DATA_HOME").map(|d| d.join("cloister/softkvm")))
        .or_else(|| variable("HOME").map(|d| d.join(".local/share/cloister/softkvm")))
        .ok_or(Error::NoDirectory)
}

/// The platform of this process, opened at first use. If it cannot be, that is said once.
pub fn of_this_process<P>(
    once: &'static OnceLock<Option<P>>,
    what: &str,
    open: impl FnOnce(&Path) -> Result<P, Error>,
) -> Option<&'static P> {
    once.get_or_init(|| {
        let opened = state_directory().and_then(|dir| open(&dir));
        opened.inspect_err(|error| eprintln!("softkvm: {what} cannot start: {error}")).ok()
    })
    .as_ref()
}

/// Creates a file of mode 0600 with these contents; an existing one stays.
pub fn create_private(path: &Path, contents: &[u8]) -> Result<(), Error> {
    let mut file =
        fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(path).map_err(io(path))?;
    file.write_all(contents).map_err(io(path))
}

/// Reads a file.
pub fn read(path: &Path) -> Result<Vec<u8>, Error> {
    fs::read(path).map_err(io(path))
}

/// Writes a file of an export.
pub fn write_public(path: &Path, contents: impl AsRef<[u8]>) -> Result<(), Error> {
    fs::write(path, contents).map_err(io(path))
}

/// Reads a DER file, or makes it.
pub fn cached<T: Encode + for<'a> Decode<'a>>(
    path: &Path,
    make: impl FnOnce() -> Result<T, Error>,
) -> Result<T, Error> {
    if path.exists() {
        return T::from_der(&read(path)?).map_err(damaged(path));
    }
    let value = make()?;
    create_private(path, &value.to_der().map_err(crypto)?)?;
    Ok(value)
}

/// Reads a JSON model, or writes the default one.
pub fn model<M: Default + Serialize + DeserializeOwned>(path: &Path) -> Result<M, Error> {
    if !path.exists() {
        create_private(path, &serde_json::to_vec_pretty(&M::default()).map_err(crypto)?)?;
    }
    serde_json::from_slice(&read(path)?).map_err(damaged(path))
}

/// Reads a chip's 32 secret bytes, or makes them.
pub fn seed(path: &Path) -> Result<[u8; 32], Error> {
    if !path.exists() {
        create_private(path, &random())?;
    }
    read(path)?.try_into().map_err(|_| damaged(path)("not 32 bytes"))
}

/// A key derived from byte strings.
pub fn derive(parts: &[&[u8]]) -> [u8; 48] {
    let mut hash = Sha384::new();
    for part in parts {
        hash.update((part.len() as u64).to_le_bytes());
        hash.update(part);
    }
    hash.finalize().into()
}

/// Random bytes from the kernel.
pub fn random() -> [u8; 32] {
    let mut bytes = [0u8; 32];
    // SAFETY: the buffer is on this frame. 32 bytes are never cut short once the pool is initialised.
    let got = unsafe { libc::getrandom(bytes.as_mut_ptr().cast(), bytes.len(), 0) };
    if got != 32 {
        eprintln!("softkvm: the host has no random numbers; keys cannot be made");
        std::process::abort();
    }
    bytes
}

/// The opened state directory: two processes that start at once make one set of keys.
pub struct Locked(fs::File);

impl Locked {
    /// Makes the directory if it is not there, and waits for other processes.
    pub fn open(dir: &Path) -> Result<Self, Error> {
        fs::DirBuilder::new().recursive(true).mode(0o700).create(dir).map_err(io(dir))?;
        let path = dir.join("lock");
        let file = fs::OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(&path)
            .map_err(io(&path))?;
        file.lock().map_err(io(&path))?;
        Ok(Self(file))
    }
}

impl Drop for Locked {
    fn drop(&mut self) {
        // Closing the file would do; an error here changes nothing.
        let _ = self.0.unlock();
    }
}
