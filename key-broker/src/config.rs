//! The configuration file.

use std::path::{Path, PathBuf};

use serde::Deserialize;

/// Everything that `cloister-broker` is told. Relative paths are relative to the file.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Where to listen: `unix:PATH` (relative to the file, as all paths) or `tcp:HOST:PORT`.
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
    /// Challenges and tokens.
    #[serde(default)]
    pub session: SessionConfig,
    /// The tokens that guests get.
    #[serde(default)]
    pub token: TokenConfig,
    /// Limits of clients.
    #[serde(default)]
    pub limits: Limits,
}

/// What clients may cost, attested or not. A time is in milliseconds.
#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Limits {
    /// Connections of one listener.
    pub connections: usize,
    /// Connections of one peer at one listener: an IPv4 address, an IPv6 network of 64 bits, or a user of a unix socket.
    pub connections_per_peer: usize,
    /// For a request's head to come; also how long a connection may be idle.
    pub head_ms: u64,
    /// For a request's body to come.
    pub body_ms: u64,
    /// How long a client may take nothing of its answer.
    pub answer_ms: u64,
    /// For a whole connection, however many requests it carries.
    pub connection_ms: u64,
    /// Attestations, and likewise releases, at work at once; 0: as many as there are processors.
    pub workers: usize,
    /// Attestations, and likewise releases, that wait for one of them.
    pub waiting: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections: 256,
            connections_per_peer: 64,
            head_ms: 10_000,
            body_ms: 20_000,
            answer_ms: 20_000,
            connection_ms: 300_000,
            workers: 0,
            waiting: 256,
        }
    }
}

impl Limits {
    fn check(&self) -> Result<(), String> {
        let rows = [
            ("connections", self.connections as u64),
            ("connections_per_peer", self.connections_per_peer as u64),
            ("head_ms", self.head_ms),
            ("body_ms", self.body_ms),
            ("answer_ms", self.answer_ms),
            ("connection_ms", self.connection_ms),
        ];
        match rows.into_iter().find(|(_, value)| *value == 0) {
            Some((name, _)) => Err(format!("[limits] {name} is 0: nobody would be served")),
            None => Ok(()),
        }
    }
}

/// Tokens.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TokenConfig {
    /// PEM private key on P-256 or P-384 that signs them and what is released, mode 0600; guests have its thumbprint pinned.
    /// Without one each start makes its own, which no guest can know.
    #[serde(default)]
    pub key_file: Option<PathBuf>,
    /// Seconds by which the clocks of brokers that share a key may differ: a token is good that much earlier and later. 60 if not
    /// given; an hour at most.
    #[serde(default = "clock_tolerance")]
    pub clock_tolerance_seconds: u64,
}

fn clock_tolerance() -> u64 {
    60
}

impl Default for TokenConfig {
    fn default() -> Self {
        Self { key_file: None, clock_tolerance_seconds: clock_tolerance() }
    }
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
    /// What evidence is accepted without: named here, or the broker does not start.
    #[serde(default)]
    pub accept_unchecked: Vec<Unchecked>,
}

/// What an owner may accept undecided, in words.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Unchecked {
    /// SEV-SNP: which TCB a platform has.
    Tcb,
    /// SEV-SNP: whether its certificates were revoked.
    Revocation,
}

impl Unchecked {
    /// As configurations and verdicts call it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Tcb => "tcb",
            Self::Revocation => "revocation",
        }
    }
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

/// Sessions.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct SessionConfig {
    /// Seconds for which a challenge is good, and then a token.
    pub ttl_seconds: u64,
    /// Guests that attest within that time, at most.
    pub max: usize,
    /// A file with 64 hexadecimal digits, mode 0600: brokers that share it take each other's challenges.
    pub key_file: Option<PathBuf>,
}

impl Default for SessionConfig {
    fn default() -> Self {
        Self { ttl_seconds: 300, max: 65_536, key_file: None }
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
        config.sockets(&base).map_err(|why| Error::Contents { path: path.to_owned(), why })?;
        if config.listen.is_empty() {
            return Err(Error::Contents { path: path.to_owned(), why: "listen names no address".into() });
        }
        config.limits.check().map_err(|why| Error::Contents { path: path.to_owned(), why })?;
        Ok(config)
    }

    /// Unix sockets are files, too.
    fn sockets(&mut self, base: &Path) -> Result<(), String> {
        for address in &mut self.listen {
            if let Some(socket) = address.strip_prefix("unix:").filter(|socket| !socket.is_empty()) {
                let socket = base.join(socket);
                let text = socket.to_str().ok_or_else(|| format!("{}: not UTF-8", socket.display()))?;
                *address = format!("unix:{text}");
            }
        }
        Ok(())
    }

    fn absolute(&mut self, base: &Path) {
        let Self { trust, policy, reference_values, store, token, session, .. } = self;
        let tdx = trust.tdx.roots.iter_mut().chain(&mut trust.tdx.collateral);
        let lists = trust.roots.iter_mut().chain(&mut trust.crls).chain(tdx).chain(reference_values);
        let options = [
            &mut trust.chain,
            &mut policy.release,
            &mut policy.evidence,
            &mut policy.evidence_tdx,
            &mut store.key_file,
            &mut token.key_file,
            &mut session.key_file,
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_path_is_relative_to_the_file() {
        let folder = std::env::temp_dir().join(format!("cloister-broker-config-{}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        let file = folder.join("broker.toml");
        let text = "listen = ['unix:s', 'unix:/abs/s', 'tcp:127.0.0.1:1']\nreference_values = ['r.json']\n\
                    [store]\npath = 'd'\nkey_file = 'k'\n";
        std::fs::write(&file, text).unwrap();
        let config = Config::load(&file).unwrap();
        let at = |name: &str| folder.join(name);
        let socket = format!("unix:{}", at("s").display());
        assert_eq!(config.listen, [socket.as_str(), "unix:/abs/s", "tcp:127.0.0.1:1"]);
        assert_eq!((&config.store.path, &config.reference_values[0]), (&at("d"), &at("r.json")));
        std::fs::remove_dir_all(folder).unwrap();
    }
}
