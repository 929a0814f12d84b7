//! Secrets at rest: a redb file whose values are encrypted with AES-256-GCM under a key that is not in it. The name of a
//! secret is authenticated with it, so values cannot be swapped in the file.

use std::path::PathBuf;

use aes_gcm::aead::{Aead, Generate, Payload};
use aes_gcm::{Aes256Gcm, KeyInit};
use redb::{Database, ReadableDatabase, ReadableTable, TableDefinition};
use zeroize::Zeroizing;

use crate::config::StoreConfig;
use crate::key_file;

const SECRETS: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("secrets");
const NONCE_BYTES: usize = 12;

/// Why the store cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The key.
    #[error("the store's key: {0}")]
    Key(String),
    /// A file.
    #[error("{path}: {source}")]
    Io {
        /// Which.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The database.
    #[error("the store: {0}")]
    Database(String),
    /// The value does not open: another key, or the file was changed.
    #[error("a stored secret does not decrypt: wrong key, or the file was changed")]
    Decrypt,
    /// Not a resource name.
    #[error("{0:?} is not repository/type/tag")]
    Name(String),
    /// No such secret.
    #[error("there is no secret {0:?}")]
    Missing(String),
    /// Too large.
    #[error("a secret has at most {} KiB", crate::MAX_SECRET >> 10)]
    TooLarge,
}

fn database<E: std::fmt::Display>(error: E) -> Error {
    Error::Database(error.to_string())
}

/// The store.
pub struct Store {
    database: Database,
    cipher: Aes256Gcm,
}

impl std::fmt::Debug for Store {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Store(..)")
    }
}

fn key(config: &StoreConfig) -> Result<Zeroizing<[u8; 32]>, Error> {
    match (&config.key_file, &config.key_env) {
        (Some(path), None) => key_file::read_hex(path).map_err(|e| Error::Key(e.to_string())),
        (None, Some(name)) => {
            let text = Zeroizing::new(std::env::var(name).map_err(|e| Error::Key(format!("{name}: {e}")))?);
            key_file::from_hex(&text).ok_or_else(|| Error::Key(format!("{name}: not 64 hexadecimal digits")))
        }
        _ => Err(Error::Key("set exactly one of key_file and key_env".into())),
    }
}

impl Store {
    /// Opens the file, or makes it.
    pub fn open(config: &StoreConfig) -> Result<Self, Error> {
        let key = key(config)?;
        let db = Database::create(&config.path)
            .map_err(|e| Error::Database(format!("{}: {e}", config.path.display())))?;
        let write = db.begin_write().map_err(database)?;
        write.open_table(SECRETS).map_err(database)?;
        write.commit().map_err(database)?;
        Ok(Self { database: db, cipher: Aes256Gcm::new((&*key).into()) })
    }

    /// Stores a secret.
    pub fn set(&self, name: &str, secret: &[u8]) -> Result<(), Error> {
        cloister_kbs::resource_name(name).ok_or_else(|| Error::Name(name.to_owned()))?;
        let nonce = <[u8; NONCE_BYTES]>::generate();
        let payload = Payload { msg: secret, aad: name.as_bytes() };
        let sealed = self.cipher.encrypt(&nonce.into(), payload).map_err(|_| Error::TooLarge)?;
        let mut value = nonce.to_vec();
        value.extend_from_slice(&sealed);
        let write = self.database.begin_write().map_err(database)?;
        write.open_table(SECRETS).map_err(database)?.insert(name, value.as_slice()).map_err(database)?;
        write.commit().map_err(database)
    }

    /// A secret.
    pub fn get(&self, name: &str) -> Result<Zeroizing<Vec<u8>>, Error> {
        let read = self.database.begin_read().map_err(database)?;
        let table = read.open_table(SECRETS).map_err(database)?;
        let value = table.get(name).map_err(database)?.ok_or_else(|| Error::Missing(name.to_owned()))?;
        let (nonce, sealed) = value.value().split_at_checked(NONCE_BYTES).ok_or(Error::Decrypt)?;
        let nonce: [u8; NONCE_BYTES] = nonce.try_into().map_err(|_| Error::Decrypt)?;
        let payload = Payload { msg: sealed, aad: name.as_bytes() };
        self.cipher.decrypt(&nonce.into(), payload).map(Zeroizing::new).map_err(|_| Error::Decrypt)
    }

    /// Removes a secret.
    pub fn remove(&self, name: &str) -> Result<(), Error> {
        let write = self.database.begin_write().map_err(database)?;
        let found = write.open_table(SECRETS).map_err(database)?.remove(name).map_err(database)?.is_some();
        write.commit().map_err(database)?;
        if found { Ok(()) } else { Err(Error::Missing(name.to_owned())) }
    }

    /// All names.
    pub fn names(&self) -> Result<Vec<String>, Error> {
        let read = self.database.begin_read().map_err(database)?;
        let table = read.open_table(SECRETS).map_err(database)?;
        let entries = table.iter().map_err(database)?;
        entries.map(|entry| entry.map(|(name, _)| name.value().to_owned()).map_err(database)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(dir: &std::path::Path, key: &str) -> StoreConfig {
        let key_file = dir.join("key");
        let _ = std::fs::remove_file(&key_file);
        key_file::create(&key_file, key).unwrap();
        StoreConfig { path: dir.join("secrets.redb"), key_file: Some(key_file), key_env: None }
    }

    #[test]
    fn secrets_come_back_and_are_not_in_the_file() {
        let dir = tempfile::tempdir().unwrap();
        let config = config(dir.path(), &"ab".repeat(32));
        let store = Store::open(&config).unwrap();
        store.set("a/b/c", b"a very secret secret").unwrap();
        assert_eq!(store.get("a/b/c").unwrap().as_slice(), b"a very secret secret");
        assert_eq!(store.names().unwrap(), ["a/b/c"]);
        drop(store);
        let file = std::fs::read(&config.path).unwrap();
        assert!(!file.windows(11).any(|w| w == b"very secret"), "encrypted at rest");
        let store = Store::open(&config).unwrap();
        store.remove("a/b/c").unwrap();
        assert!(matches!(store.get("a/b/c"), Err(Error::Missing(_))));
        assert!(matches!(store.set("../x", b""), Err(Error::Name(_))));
    }

    #[test]
    fn another_key_or_a_swapped_value_opens_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(&config(dir.path(), &"ab".repeat(32))).unwrap();
        store.set("a/b/c", b"one").unwrap();
        let write = store.database.begin_write().unwrap();
        {
            let mut table = write.open_table(SECRETS).unwrap();
            let value = table.get("a/b/c").unwrap().unwrap().value().to_vec();
            table.insert("x/y/z", value.as_slice()).unwrap();
        }
        write.commit().unwrap();
        assert!(matches!(store.get("x/y/z"), Err(Error::Decrypt)));
        drop(store);
        let store = Store::open(&config(dir.path(), &"cd".repeat(32))).unwrap();
        assert!(matches!(store.get("a/b/c"), Err(Error::Decrypt)));
        assert!(matches!(Store::open(&config(dir.path(), "short")), Err(Error::Key(_))));
        let open = config(dir.path(), &"ab".repeat(32));
        let path = open.key_file.clone().unwrap();
        std::fs::set_permissions(path, std::os::unix::fs::PermissionsExt::from_mode(0o644)).unwrap();
        assert!(Store::open(&open).unwrap_err().to_string().contains("chmod 600"));
    }
}
