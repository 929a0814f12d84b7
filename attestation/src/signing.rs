//! Keys with which a relying party or a guest's owner signs: reference values, results, ID blocks. ECDSA on P-256 or P-384.

use alloc::vec::Vec;

use p256::ecdsa::signature::Signer as _;
use p256::elliptic_curve::zeroize::Zeroizing;
use p256::pkcs8::DecodePrivateKey as _;

/// A private key.
pub struct SigningKey(Key);

enum Key {
    P256(p256::ecdsa::SigningKey),
    P384(p384::ecdsa::SigningKey),
}

/// Why there is no key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum KeyError {
    /// Neither PKCS #8 nor SEC1, encrypted, or of another kind.
    #[error("not an unencrypted PEM private key on P-256 or P-384 (\"PRIVATE KEY\" or \"EC PRIVATE KEY\")")]
    Unusable,
    /// The source of randomness only gave what is no key.
    #[error("the source of randomness gives nothing that is a key")]
    Randomness,
}

impl core::fmt::Debug for SigningKey {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        write!(f, "SigningKey({}, redacted)", self.jws_algorithm())
    }
}

impl SigningKey {
    /// Reads a PEM private key, PKCS #8 or SEC1. Other blocks before it, such as EC PARAMETERS, are skipped.
    pub fn from_pem(text: &str) -> Result<Self, KeyError> {
        let block = |label: &str| {
            let (begin, end) =
                (alloc::format!("-----BEGIN {label}-----"), alloc::format!("-----END {label}-----"));
            let start = text.find(&begin)?;
            let rest = text.get(start..)?;
            let len = rest.find(&end)?.checked_add(end.len())?;
            rest.get(..len)
        };
        let p256 = block("PRIVATE KEY")
            .and_then(|pem| p256::SecretKey::from_pkcs8_pem(pem).ok())
            .or_else(|| p256::SecretKey::from_sec1_pem(block("EC PRIVATE KEY")?).ok());
        let p384 = block("PRIVATE KEY")
            .and_then(|pem| p384::SecretKey::from_pkcs8_pem(pem).ok())
            .or_else(|| p384::SecretKey::from_sec1_pem(block("EC PRIVATE KEY")?).ok());
        match (p256, p384) {
            (Some(key), _) => Ok(Self(Key::P256(key.into()))),
            (None, Some(key)) => Ok(Self(Key::P384(key.into()))),
            (None, None) => Err(KeyError::Unusable),
        }
    }

    /// A new key on P-256. `random` fills its argument from a source that is fit for keys: there is none here.
    pub fn generate_p256(random: impl FnMut(&mut [u8; 32])) -> Result<Self, KeyError> {
        generate(random, |scalar| p256::ecdsa::SigningKey::from_slice(scalar).ok().map(Key::P256))
    }

    /// A new key on P-384, likewise.
    pub fn generate_p384(random: impl FnMut(&mut [u8; 48])) -> Result<Self, KeyError> {
        generate(random, |scalar| p384::ecdsa::SigningKey::from_slice(scalar).ok().map(Key::P384))
    }

    /// Signs `message`, deterministically (RFC 6979): r and s, big-endian, of the curve's size each.
    pub fn sign(&self, message: &[u8]) -> Vec<u8> {
        match &self.0 {
            Key::P256(key) => {
                let signature: p256::ecdsa::Signature = key.sign(message);
                signature.to_bytes().to_vec()
            }
            Key::P384(key) => {
                let signature: p384::ecdsa::Signature = key.sign(message);
                signature.to_bytes().to_vec()
            }
        }
    }

    /// The public key as an uncompressed SEC1 point.
    pub fn public_point(&self) -> Vec<u8> {
        match &self.0 {
            Key::P256(key) => key.verifying_key().to_sec1_point(false).as_bytes().to_vec(),
            Key::P384(key) => key.verifying_key().to_sec1_point(false).as_bytes().to_vec(),
        }
    }

    /// The public key's coordinates, big-endian.
    pub fn public_coordinates(&self) -> (Vec<u8>, Vec<u8>) {
        let point = self.public_point();
        let coordinates = point.get(1..).unwrap_or_default();
        let (x, y) = coordinates.split_at_checked(coordinates.len() / 2).unwrap_or_default();
        (x.to_vec(), y.to_vec())
    }

    /// Whether it is on P-384; else it is on P-256.
    pub fn is_p384(&self) -> bool {
        matches!(self.0, Key::P384(_))
    }

    /// The algorithm's name in JOSE (RFC 7518, 3.4).
    pub fn jws_algorithm(&self) -> &'static str {
        if self.is_p384() { "ES384" } else { "ES256" }
    }
}

/// Draws scalars until one is a key (FIPS 186-5, A.2.2). Of honest randomness nearly every one is.
fn generate<const N: usize>(
    mut random: impl FnMut(&mut [u8; N]),
    key: impl Fn(&[u8]) -> Option<Key>,
) -> Result<SigningKey, KeyError> {
    const MAX_DRAWS: usize = 64;
    let mut scalar = Zeroizing::new([0; N]);
    for _ in 0..MAX_DRAWS {
        random(&mut scalar);
        if let Some(key) = key(scalar.as_slice()) {
            return Ok(SigningKey(key));
        }
    }
    Err(KeyError::Randomness)
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use core::sync::atomic::{AtomicU64, Ordering};
    use p256::elliptic_curve::Generate as _;
    use p256::pkcs8::{EncodePrivateKey, LineEnding};
    use sha2::{Digest, Sha384};

    /// Bytes that no two calls share: enough for a test, and for nothing else.
    fn counted<const N: usize>(bytes: &mut [u8; N]) {
        static CALLS: AtomicU64 = AtomicU64::new(0);
        let digest = Sha384::digest(CALLS.fetch_add(1, Ordering::Relaxed).to_le_bytes());
        bytes.copy_from_slice(&digest[..N]);
    }

    /// A key on P-256 that no other test has.
    pub(crate) fn p256_key() -> SigningKey {
        SigningKey::generate_p256(counted).unwrap()
    }

    /// A key on P-384 that no other test has.
    pub(crate) fn p384_key() -> SigningKey {
        SigningKey::generate_p384(counted).unwrap()
    }

    #[test]
    fn keys_are_made_of_the_callers_randomness() {
        let one = |bytes: &mut [u8; 32]| bytes.fill(1);
        let keys = [SigningKey::generate_p256(one), SigningKey::generate_p256(one)].map(Result::unwrap);
        assert_eq!(keys[0].public_point(), keys[1].public_point());
        assert_ne!(p384_key().public_point(), p384_key().public_point());
        // Neither zero nor a number beyond the order is a key; a source with nothing else is given up.
        for constant in [0, 0xff] {
            let stuck = SigningKey::generate_p384(|bytes| bytes.fill(constant));
            assert_eq!(stuck.map(drop), Err(KeyError::Randomness));
        }
        let mut draws = 0;
        let late = SigningKey::generate_p256(|bytes| {
            draws += 1;
            bytes.fill(if draws < 3 { 0 } else { 1 });
        });
        assert_eq!((late.unwrap().public_point(), draws), (keys[0].public_point(), 3));
    }

    #[test]
    fn keys_are_read_in_both_encodings() {
        let (small, big) = (p256::SecretKey::generate(), p384::SecretKey::generate());
        for (pem, algorithm) in [
            (small.to_pkcs8_pem(LineEnding::LF).unwrap(), "ES256"),
            (small.to_sec1_pem(LineEnding::CRLF).unwrap(), "ES256"),
            (big.to_pkcs8_pem(LineEnding::LF).unwrap(), "ES384"),
            (big.to_sec1_pem(LineEnding::LF).unwrap(), "ES384"),
        ] {
            let text =
                format!("-----BEGIN EC PARAMETERS-----\nBgUrgQQAIg==\n-----END EC PARAMETERS-----\n{}", *pem);
            let key = SigningKey::from_pem(&text).unwrap();
            assert_eq!(key.jws_algorithm(), algorithm);
            assert!(!format!("{key:?}").contains("BEGIN"));
        }
    }

    #[test]
    fn what_is_no_private_key_is_refused() {
        let public = "-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----\n";
        let damaged = "-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n";
        let encrypted = "-----BEGIN ENCRYPTED PRIVATE KEY-----\nAAAA\n-----END ENCRYPTED PRIVATE KEY-----\n";
        for text in ["", public, damaged, encrypted, "-----BEGIN PRIVATE KEY-----"] {
            assert_eq!(SigningKey::from_pem(text).map(drop), Err(KeyError::Unusable), "{text}");
        }
    }
}
