//! JWE with ECDH-ES+A256KW on P-256 and A256GCM (RFC 7516, RFC 7518 §4.6), in kbs-types' flattened JSON.

use aes_gcm::aead::{AeadInOut, Generate};
use aes_gcm::{Aes256Gcm, KeyInit, Tag};
use aes_kw::KwAes256;
use base64::Engine;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use kbs_types::{ProtectedHeader, Response, TeePubKey};
pub use p256::SecretKey;
use p256::ecdh::diffie_hellman;
use p256::elliptic_curve::sec1::{FromSec1Point, ToSec1Point};
use p256::{FieldBytes, PublicKey, Sec1Point};
use serde_json::{Map, Value, json};
use sha2::{Digest, Sha256};
use zeroize::Zeroizing;

const ALGORITHM: &str = "ECDH-ES+A256KW";
const ENCRYPTION: &str = "A256GCM";
const CURVE: &str = "P-256";
const KEY_BYTES: usize = 32;
/// RFC 3394 adds one block of 64 bits.
const WRAPPED_KEY_BYTES: usize = KEY_BYTES + 8;
const KEY_BITS: u32 = 256;

/// Why a message cannot be made or opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// Not a P-256 key for this algorithm.
    #[error("the key is not an EC key on P-256 for ECDH-ES+A256KW")]
    Key,
    /// Another algorithm.
    #[error("the message is not ECDH-ES+A256KW with A256GCM")]
    Algorithm,
    /// It was not made for this key, or it was changed.
    #[error("the message does not open with this key")]
    Authentication,
    /// The header cannot be encoded.
    #[error("the header cannot be encoded")]
    Header,
    /// There is no randomness.
    #[error("the system gives no randomness")]
    Randomness,
}

/// The JWK of a public key.
pub fn public_key(key: &PublicKey) -> TeePubKey {
    let point = key.to_sec1_point(false);
    let coordinate = |c: Option<&FieldBytes>| c.map(|c| BASE64_URL_SAFE_NO_PAD.encode(c)).unwrap_or_default();
    TeePubKey::EC {
        crv: CURVE.into(),
        alg: ALGORITHM.into(),
        x: coordinate(point.x()),
        y: coordinate(point.y()),
    }
}

/// A new key pair of the caller's randomness: `fill` fills its argument or says why it cannot. Nothing else is ever used in
/// its place.
pub fn generate_with<E>(mut fill: impl FnMut(&mut [u8; 32]) -> Result<(), E>) -> Result<SecretKey, E>
where
    E: From<Error>,
{
    // Of honest randomness nearly every scalar is a key (FIPS 186-5, A.2.2).
    const MAX_DRAWS: usize = 64;
    let mut scalar = Zeroizing::new([0; 32]);
    for _ in 0..MAX_DRAWS {
        fill(&mut scalar)?;
        if let Ok(key) = SecretKey::from_slice(&scalar[..]) {
            return Ok(key);
        }
    }
    Err(Error::Randomness.into())
}

/// Bytes from the system.
fn random<const N: usize>() -> Result<[u8; N], Error> {
    <[u8; N]>::try_generate().map_err(|_| Error::Randomness)
}

/// A new key pair of the system's randomness.
pub fn generate() -> Result<SecretKey, Error> {
    generate_with(|bytes| random().map(|drawn| *bytes = drawn))
}

fn point(x: &str, y: &str) -> Result<PublicKey, Error> {
    let field = |text: &str| -> Option<FieldBytes> {
        let bytes: [u8; 32] = BASE64_URL_SAFE_NO_PAD.decode(text).ok()?.try_into().ok()?;
        Some(bytes.into())
    };
    let (x, y) = (field(x).ok_or(Error::Key)?, field(y).ok_or(Error::Key)?);
    let point = Sec1Point::from_affine_coordinates(&x, &y, false);
    Option::from(PublicKey::from_sec1_point(&point)).ok_or(Error::Key)
}

/// Concat KDF (RFC 7518 §4.6.2) with empty party information: one round gives the 256-bit key.
fn key_encryption_key(secret: &[u8]) -> Zeroizing<[u8; KEY_BYTES]> {
    let mut hash = Sha256::new();
    hash.update(1u32.to_be_bytes());
    hash.update(secret);
    hash.update((ALGORITHM.len() as u32).to_be_bytes());
    hash.update(ALGORITHM);
    hash.update([0u8; 8]);
    hash.update(KEY_BITS.to_be_bytes());
    Zeroizing::new(hash.finalize().into())
}

/// Encrypts `secret` to a guest's key.
pub fn encrypt(to: &TeePubKey, secret: &[u8]) -> Result<Response, Error> {
    let TeePubKey::EC { crv, alg, x, y } = to else { return Err(Error::Key) };
    if crv != CURVE || alg != ALGORITHM {
        return Err(Error::Key);
    }
    let recipient = point(x, y)?;
    let ephemeral = generate()?;
    let shared = diffie_hellman(ephemeral.to_nonzero_scalar(), recipient.as_affine());
    let kek = KwAes256::new((&*key_encryption_key(shared.raw_secret_bytes())).into());
    let content_key = Zeroizing::new(random::<KEY_BYTES>()?);
    let iv = random::<12>()?;
    let mut encrypted_key = vec![0; WRAPPED_KEY_BYTES];
    kek.wrap_key(&content_key[..], &mut encrypted_key).map_err(|_| Error::Header)?;
    let mut other_fields = Map::new();
    other_fields.insert("epk".into(), epk(&ephemeral.public_key()));
    let protected = ProtectedHeader { alg: ALGORITHM.into(), enc: ENCRYPTION.into(), other_fields };
    let aad = protected.generate_aad().map_err(|_| Error::Header)?;
    let mut ciphertext = secret.to_vec();
    let tag = Aes256Gcm::new((&*content_key).into())
        .encrypt_inout_detached(&iv.into(), &aad, ciphertext.as_mut_slice().into())
        .map_err(|_| Error::Header)?;
    Ok(Response { protected, encrypted_key, iv: iv.to_vec(), ciphertext, aad: None, tag: tag.to_vec() })
}

fn epk(key: &PublicKey) -> Value {
    match public_key(key) {
        TeePubKey::EC { crv, x, y, .. } => json!({ "kty": "EC", "crv": crv, "x": x, "y": y }),
        _ => Value::Null,
    }
}

/// Opens a message with the guest's key.
pub fn decrypt(key: &SecretKey, message: &Response) -> Result<Zeroizing<Vec<u8>>, Error> {
    if message.protected.alg != ALGORITHM || message.protected.enc != ENCRYPTION {
        return Err(Error::Algorithm);
    }
    let field = |name: &str| {
        message
            .protected
            .other_fields
            .get("epk")
            .and_then(|epk| epk.get(name))
            .and_then(Value::as_str)
            .ok_or(Error::Algorithm)
    };
    if field("crv")? != CURVE {
        return Err(Error::Algorithm);
    }
    let sender = point(field("x")?, field("y")?)?;
    let shared = diffie_hellman(key.to_nonzero_scalar(), sender.as_affine());
    let kek = KwAes256::new((&*key_encryption_key(shared.raw_secret_bytes())).into());
    let wrapped: &[u8; WRAPPED_KEY_BYTES] =
        message.encrypted_key.as_slice().try_into().map_err(|_| Error::Authentication)?;
    let mut content_key = Zeroizing::new([0; KEY_BYTES]);
    kek.unwrap_key(wrapped, &mut content_key[..]).map_err(|_| Error::Authentication)?;
    let iv: [u8; 12] = message.iv.as_slice().try_into().map_err(|_| Error::Authentication)?;
    let tag: [u8; 16] = message.tag.as_slice().try_into().map_err(|_| Error::Authentication)?;
    let mut aad = message.protected.generate_aad().map_err(|_| Error::Header)?;
    if let Some(extra) = &message.aad {
        aad.push(b'.');
        aad.extend_from_slice(extra);
    }
    let mut plain = Zeroizing::new(message.ciphertext.clone());
    Aes256Gcm::new((&*content_key).into())
        .decrypt_inout_detached(&iv.into(), &aad, plain.as_mut_slice().into(), &Tag::from(tag))
        .map_err(|_| Error::Authentication)?;
    Ok(plain)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_right_key_opens_an_unchanged_message() {
        let key = generate().unwrap();
        let message = encrypt(&public_key(&key.public_key()), b"open sesame").unwrap();
        assert_eq!(decrypt(&key, &message).unwrap().as_slice(), b"open sesame");
        assert_eq!(decrypt(&generate().unwrap(), &message).unwrap_err(), Error::Authentication);
        type Spoil = (&'static str, fn(&mut Response), Error);
        let spoilers: [Spoil; 8] = [
            ("ciphertext", |m| m.ciphertext[0] ^= 1, Error::Authentication),
            ("tag", |m| m.tag[3] ^= 1, Error::Authentication),
            ("short tag", |m| m.tag.truncate(8), Error::Authentication),
            ("wrapped key", |m| m.encrypted_key[5] ^= 1, Error::Authentication),
            ("short wrapped key", |m| m.encrypted_key.truncate(32), Error::Authentication),
            ("no wrapped key", |m| m.encrypted_key.clear(), Error::Authentication),
            ("additional data", |m| m.aad = Some(b"x".to_vec()), Error::Authentication),
            ("algorithm", |m| m.protected.enc = "A128GCM".into(), Error::Algorithm),
        ];
        for (what, spoil, expected) in spoilers {
            let mut changed = message.clone();
            spoil(&mut changed);
            assert_eq!(decrypt(&key, &changed).unwrap_err(), expected, "{what}");
        }
    }

    #[test]
    fn without_randomness_there_is_no_key() {
        let failing = generate_with(|_| Err::<(), _>(Error::Randomness));
        assert_eq!(failing.map(drop), Err(Error::Randomness));
        // A source that is stuck at what is no key (zero, or beyond the order) is given up.
        for constant in [0, 0xff] {
            let stuck = generate_with(|bytes| {
                bytes.fill(constant);
                Ok::<(), Error>(())
            });
            assert_eq!(stuck.map(drop), Err(Error::Randomness), "{constant:#x}");
        }
        let mut draws = 0;
        let late = generate_with(|bytes| {
            draws += 1;
            bytes.fill(if draws < 3 { 0 } else { 1 });
            Ok::<(), Error>(())
        });
        assert!(late.is_ok() && draws == 3);
    }

    #[test]
    fn keys_of_other_kinds_are_refused() {
        let good = public_key(&generate().unwrap().public_key());
        let TeePubKey::EC { x, y, .. } = &good else { unreachable!("EC by construction") };
        let ec = |crv: &str, alg: &str, x: &str, y: &str| TeePubKey::EC {
            crv: crv.into(),
            alg: alg.into(),
            x: x.into(),
            y: y.into(),
        };
        let cases = [
            ec("P-521", ALGORITHM, x, y),
            ec(CURVE, "RSA-OAEP-256", x, y),
            ec(CURVE, ALGORITHM, "AAAA", y),
            // Not on the curve.
            ec(CURVE, ALGORITHM, x, x),
            TeePubKey::RSA { alg: "RSA-OAEP-256".into(), k_mod: "AQAB".into(), k_exp: "AQAB".into() },
        ];
        for key in cases {
            assert_eq!(encrypt(&key, b"x").unwrap_err(), Error::Key, "{key:?}");
        }
    }

    #[test]
    fn the_concat_kdf_is_rfc_7518s() {
        // RFC 7518 appendix C's shared secret; the input of the one hash round is spelt out here octet by octet, as
        // section 4.6.2 lists it: round, Z, AlgorithmID, empty PartyU/V, key length in bits.
        let z = [
            158, 86, 217, 29, 129, 113, 53, 211, 114, 131, 66, 131, 191, 132, 38, 156, 251, 49, 110, 163,
            218, 128, 106, 72, 246, 218, 167, 121, 140, 254, 144, 196,
        ];
        let mut input = vec![0, 0, 0, 1];
        input.extend_from_slice(&z);
        input.extend_from_slice(b"\0\0\0\x0eECDH-ES+A256KW\0\0\0\0\0\0\0\0\0\0\x01\0");
        assert_eq!(*key_encryption_key(&z), <[u8; 32]>::from(Sha256::digest(&input)));
    }
}
