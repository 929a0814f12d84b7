//! A proof that a secret arrived, for its owner's eyes on the host's console: an HMAC under a key that the broker released, too.
//!
//! A plain digest would let the host try all short secrets. The key is as secret as what it proves, and long.

use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;
use zeroize::Zeroizing;

const LABEL: &[u8] = b"cloister secret proof 1\n";
/// Fewer could be tried.
const MIN_KEY: usize = 32;

/// The key of proofs.
pub struct Key(Zeroizing<Vec<u8>>);

impl Key {
    /// A key that is long enough.
    pub fn new(key: Zeroizing<Vec<u8>>) -> Result<Self, String> {
        match key.len() {
            MIN_KEY.. => Ok(Self(key)),
            short => {
                Err(format!("a key of proofs has at least {MIN_KEY} random bytes, and this one has {short}"))
            }
        }
    }

    /// HMAC-SHA-256 over the label, the name with its length (8 bytes, big-endian), and the secret.
    pub fn proof(&self, resource: &str, secret: &[u8]) -> String {
        // Any length is good for HMAC.
        let Ok(mac) = <Hmac<Sha256> as KeyInit>::new_from_slice(&self.0) else { return String::new() };
        let mac = mac.chain_update(LABEL).chain_update((resource.len() as u64).to_be_bytes());
        hex::encode(mac.chain_update(resource).chain_update(secret).finalize().into_bytes())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(byte: u8, len: usize) -> Result<Key, String> {
        Key::new(Zeroizing::new(vec![byte; len]))
    }

    #[test]
    fn a_proof_is_of_this_secret_of_this_name_under_this_key() {
        let one = key(1, 32).unwrap();
        let proof = one.proof("a/b/c", b"1234");
        assert_eq!(proof, one.proof("a/b/c", b"1234"));
        assert_ne!(proof, one.proof("a/b/c", b"1235"));
        assert_ne!(proof, one.proof("a/b/", b"c1234"));
        assert_ne!(
            proof,
            key(2, 32).unwrap().proof("a/b/c", b"1234"),
            "without the key nothing can be tried"
        );
        assert!(key(1, 31).is_err());
    }
}
