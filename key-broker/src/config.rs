//! The configuration file.

use std::path::{Path, PathBuf};

use serde::Deserialize;

/// Everything that `cloister-broker` is told. Relative paths are relative to the file.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Where to listen: `unix:PATH` or `tcp:HOST:PORT`.
    pub listen: Vec<String>,
    /// Whom to believe.
    #[serde(default)]
    pub trust: Trust,
    /// What to accept.
    #[serde(default)]
    pub policy: PolicyFiles,
    /// Files that `cloister-attest measure --json` printed.
    #[serde(default)]
    pub reference_values: Vec<PathBuf>,
    /// Where secrets are.
    pub store: StoreConfig,
    /// Limits of sessions.
    #[serde(default)]
    pub session: SessionConfig,
    /// The tokens that guests get.
    #[serde(default)]
    pub token: TokenConfig,
}

/// Tokens.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TokenConfig {
    /// PEM private key on P-256 or P-384 that signs them; without one each start makes its own.
    #[serde(default)]
    pub key_file: Option<PathBuf>,
}

/// Roots and collateral.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Trust {
    /// PEM or DER root certificates to trust instead of AMD's own.
    #[serde(default)]
    pub roots: Vec<PathBuf>,
    /// Intermediate (and root) certificates, PEM, for evidence that comes without a chain.
    #[serde(default)]
    pub chain: Option<PathBuf>,
    /// Certificate revocation lists, DER.
    #[serde(default)]
    pub crls: Vec<PathBuf>,
    /// The same for TDX.
    #[serde(default)]
    pub tdx: TdxTrust,
}

/// Roots and collateral of TDX platforms.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TdxTrust {
    /// PEM or DER root certificates to trust instead of Intel's own.
    #[serde(default)]
    pub roots: Vec<PathBuf>,
    /// What Intel publishes beside them (JSON, as `cloister-attest verify tdx --collateral` takes), a file for each family of
    /// platforms.
    #[serde(default)]
    pub collateral: Vec<PathBuf>,
}

/// Policies.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PolicyFiles {
    /// Rego release policy; the built-in default releases to accepted guests with a reference measurement.
    #[serde(default)]
    pub release: Option<PathBuf>,
    /// Evidence policy for SEV-SNP (TOML or JSON, as `cloister-attest verify snp --policy` takes).
    #[serde(default)]
    pub evidence: Option<PathBuf>,
    /// Evidence policy for TDX (TOML or JSON, as `cloister-attest verify tdx --policy` takes).
    #[serde(default)]
    pub evidence_tdx: Option<PathBuf>,
}

/// The secret store.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StoreConfig {
    /// The database file.
    pub path: PathBuf,
    /// A file with 64 hexadecimal digits, mode 0600.
    #[serde(default)]
    pub key_file: Option<PathBuf>,
    /// An environment variable with 64 hexadecimal digits.
    #[serde(default)]
    pub key_env: Option<String>,
}

/// Limits.
#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct SessionConfig {
    /// Seconds from the request to the last use.
    pub ttl_seconds: u64,
    /// Sessions at once.
    pub max: usize,
}

impl Default for SessionConfig {
    fn default() -> Self {
        Self { ttl_seconds: 300, max: 1024 }
    }
}

/// Why the configuration cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file.
    #[error("{path}: {source}")]
    Io {
        /// Which.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// Its contents.
    #[error("{path}: {why}")]
    Contents {
        /// Which.
        path: PathBuf,
        /// What is wrong.
        why: String,
    },
    /// No key could be made.
    #[error(transparent)]
    Key(#[from] cloister_attestation::signing::KeyError),
}

impl Config {
    /// Reads a file.
    pub fn load(path: &Path) -> Result<Self, Error> {
        let text = read_text(path)?;
        let mut config: Self = toml::from_str(&text)
            .map_err(|e| Error::Contents { path: path.to_owned(), why: e.to_string() })?;
        let base = path.parent().unwrap_or(Path::new("")).to_owned();
        config.absolute(&base);
        if config.listen.is_empty() {
            return Err(Error::Contents { path: path.to_owned(), why: "listen names no address".into() });
        }
        Ok(config)
    }

    fn absolute(&mut self, base: &Path) {
        let Self { trust, policy, reference_values, store, token, .. } = self;
        let tdx = trust.tdx.roots.iter_mut().chain(&mut trust.tdx.collateral);
        let lists = trust.roots.iter_mut().chain(&mut trust.crls).chain(tdx).chain(reference_values);
        let options = [
            &mut trust.chain,
            &mut policy.release,
            &mut policy.evidence,
            &mut policy.evidence_tdx,
            &mut store.key_file,
            &mut token.key_file,
        ];
        for file in lists.chain(options.into_iter().flatten()).chain([&mut store.path]) {
            *file = base.join(&*file);
        }
    }
}

/// A whole file.
pub fn read(path: &Path) -> Result<Vec<u8>, Error> {
    std::fs::read(path).map_err(|source| Error::Io { path: path.to_owned(), source })
}

/// A whole text file.
pub fn read_text(path: &Path) -> Result<String, Error> {
    String::from_utf8(read(path)?).map_err(|e| Error::Contents { path: path.to_owned(), why: e.to_string() })
}
