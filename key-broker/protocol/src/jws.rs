//! Compact JWS (RFC 7515) with ECDSA on P-256 or P-384, verified with a key that the reader was told of beforehand.
//!
//! A signature carries its public key (`jwk`), so that a reader who knows only the key's thumbprint (RFC 7638) can verify
//! it. The key is believed because its thumbprint is pinned, never because it is there. Must never: let the message choose
//! the algorithm; accept a signature that was made for something else (`typ`).

use std::str::FromStr;

use base64::Engine;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use kbs_types::TeePubKey;
use p256::ecdsa::signature::Verifier as _;
use serde_json::{Map, Value, json};
use sha2::{Digest, Sha256};

/// Bytes of a signature with what it signs, at most: a token has a guest's claims in it.
const MAX_BYTES: usize = 64 << 10;
/// More pins than anybody rotates at once.
const MAX_PINS: usize = 16;

/// Why a signature is not believed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// Not a compact JWS.
    #[error("it is not a compact JWS of at most {MAX_BYTES} bytes: {0}")]
    Malformed(&'static str),
    /// Not a key that can sign here.
    #[error("the key is not an EC key on P-256 or P-384")]
    Key,
    /// The key is none of those that the reader was told of.
    #[error("it is signed by the key sha256:{0}, which is not pinned")]
    NotPinned(String),
    /// Another algorithm than the key's.
    #[error("its algorithm is {seen:?}; its key is for {expected}")]
    Algorithm {
        /// What the message says.
        seen: String,
        /// What the key is for.
        expected: &'static str,
    },
    /// Made for something else.
    #[error("it is a {seen:?}, not a {expected:?}")]
    Type {
        /// What the message says.
        seen: String,
        /// What was asked for.
        expected: &'static str,
    },
    /// A critical extension (RFC 7515 §4.1.11): none is understood here.
    #[error("it has critical extensions, and none is understood here")]
    Critical,
    /// The signature is wrong.
    #[error("its signature is wrong")]
    Signature,
}

/// The SHA-256 thumbprint of a JWK.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Thumbprint(pub [u8; 32]);

impl std::fmt::Display for Thumbprint {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&BASE64_URL_SAFE_NO_PAD.encode(self.0))
    }
}

impl Thumbprint {
    /// Of a public key as guests name theirs; `None` for kinds without a thumbprint here.
    pub fn of(key: &TeePubKey) -> Option<Self> {
        // The required members in lexicographic order and nothing else (RFC 7638 §3.2).
        let canonical = match key {
            TeePubKey::EC { crv, x, y, .. } => json!({"crv": crv, "kty": "EC", "x": x, "y": y}),
            TeePubKey::RSA { k_mod, k_exp, .. } => json!({"e": k_exp, "kty": "RSA", "n": k_mod}),
            TeePubKey::AKP { .. } => return None,
        };
        Some(Self(Sha256::digest(crate::sorted(canonical).to_string()).into()))
    }
}

/// A key that signatures are verified with.
pub struct VerifyingKey {
    key: Key,
    jwk: Value,
}

enum Key {
    P256(p256::ecdsa::VerifyingKey),
    P384(p384::ecdsa::VerifyingKey),
}

impl VerifyingKey {
    /// Reads a JWK. Members that do not make the key are ignored.
    pub fn from_jwk(jwk: &Value) -> Result<Self, Error> {
        let text = |name: &str| jwk.get(name).and_then(Value::as_str).ok_or(Error::Key);
        let (kty, crv, x, y) = (text("kty")?, text("crv")?, text("x")?, text("y")?);
        let decode = |text: &str| BASE64_URL_SAFE_NO_PAD.decode(text).map_err(|_| Error::Key);
        // An uncompressed point (SEC 1 §2.3.3).
        let coordinates = [decode(x)?, decode(y)?];
        let point = [&[4u8][..], &coordinates[0], &coordinates[1]].concat();
        let size = match (kty, crv) {
            ("EC", "P-256") => 32,
            ("EC", "P-384") => 48,
            _ => return Err(Error::Key),
        };
        if coordinates.iter().any(|c| c.len() != size) {
            return Err(Error::Key);
        }
        let key = match size {
            32 => Key::P256(p256::ecdsa::VerifyingKey::from_sec1_bytes(&point).map_err(|_| Error::Key)?),
            _ => Key::P384(p384::ecdsa::VerifyingKey::from_sec1_bytes(&point).map_err(|_| Error::Key)?),
        };
        Ok(Self { key, jwk: json!({"crv": crv, "kty": "EC", "x": x, "y": y}) })
    }

    /// The one algorithm that this key is for.
    pub fn algorithm(&self) -> &'static str {
        match self.key {
            Key::P256(_) => "ES256",
            Key::P384(_) => "ES384",
        }
    }

    /// Its thumbprint.
    pub fn thumbprint(&self) -> Thumbprint {
        Thumbprint(Sha256::digest(crate::sorted(self.jwk.clone()).to_string()).into())
    }

    fn verifies(&self, message: &[u8], signature: &[u8]) -> bool {
        match &self.key {
            Key::P256(key) => p256::ecdsa::Signature::from_slice(signature)
                .is_ok_and(|signature| key.verify(message, &signature).is_ok()),
            Key::P384(key) => p384::ecdsa::Signature::from_slice(signature)
                .is_ok_and(|signature| key.verify(message, &signature).is_ok()),
        }
    }

    /// The payload of a signature by this key, for this purpose.
    pub fn verify(&self, compact: &str, purpose: &'static str) -> Result<Value, Error> {
        let parts = Parts::of(compact)?;
        let text = |name: &str| {
            parts.header.get(name).and_then(Value::as_str).unwrap_or_default().chars().take(40).collect()
        };
        if parts.header.contains_key("crit") {
            return Err(Error::Critical);
        }
        let seen: String = text("alg");
        if seen != self.algorithm() {
            return Err(Error::Algorithm { seen, expected: self.algorithm() });
        }
        let seen: String = text("typ");
        if seen != purpose {
            return Err(Error::Type { seen, expected: purpose });
        }
        if !self.verifies(parts.signed.as_bytes(), &parts.signature) {
            return Err(Error::Signature);
        }
        let payload = BASE64_URL_SAFE_NO_PAD.decode(parts.payload);
        let payload = payload.map_err(|_| Error::Malformed("the payload is not base64url"))?;
        serde_json::from_slice(&payload).map_err(|_| Error::Malformed("the payload is not JSON"))
    }
}

/// A compact JWS, taken apart.
struct Parts<'a> {
    header: Map<String, Value>,
    payload: &'a str,
    signed: &'a str,
    signature: Vec<u8>,
}

impl<'a> Parts<'a> {
    fn of(compact: &'a str) -> Result<Self, Error> {
        if compact.len() > MAX_BYTES {
            return Err(Error::Malformed("it is too long"));
        }
        let three = || Error::Malformed("it has not three parts");
        let (signed, signature) = compact.rsplit_once('.').ok_or_else(three)?;
        let (header, payload) = signed.split_once('.').ok_or_else(three)?;
        let decode = |text: &str| {
            BASE64_URL_SAFE_NO_PAD.decode(text).map_err(|_| Error::Malformed("a part is not base64url"))
        };
        let header = serde_json::from_slice(&decode(header)?)
            .map_err(|_| Error::Malformed("the header is not a JSON object"))?;
        Ok(Self { header, payload, signed, signature: decode(signature)? })
    }
}

/// The keys that a reader was told of, by thumbprint. Several are for the time in which one replaces another.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Pins(Vec<Thumbprint>);

/// Not a pin.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("expected sha256: and a JWK thumbprint in base64url (43 characters) or hexadecimal digits (64)")]
pub struct BadPin;

impl FromStr for Thumbprint {
    type Err = BadPin;

    fn from_str(text: &str) -> Result<Self, BadPin> {
        let digest = text.strip_prefix("sha256:").ok_or(BadPin)?;
        let bytes = match digest.len() {
            64 => from_hex(digest).ok_or(BadPin)?,
            _ => BASE64_URL_SAFE_NO_PAD.decode(digest).map_err(|_| BadPin)?,
        };
        bytes.try_into().map(Self).map_err(|_| BadPin)
    }
}

fn from_hex(text: &str) -> Option<Vec<u8>> {
    let digit = |c: u8| char::from(c).to_digit(16).and_then(|d| u8::try_from(d).ok());
    let pair = |pair: &[u8]| match pair {
        [high, low] => Some(digit(*high)? << 4 | digit(*low)?),
        _ => None,
    };
    text.as_bytes().chunks(2).map(pair).collect()
}

impl Pins {
    /// Adds one; false if there are too many.
    pub fn add(&mut self, pin: Thumbprint) -> bool {
        if self.0.len() >= MAX_PINS {
            return false;
        }
        self.0.push(pin);
        true
    }

    /// Adds the keys of a JWK set (RFC 7517 §5), or of one JWK. All of them must be keys that can sign here.
    pub fn add_jwks(&mut self, document: &[u8]) -> Result<(), Error> {
        let value: Value = serde_json::from_slice(document).map_err(|_| Error::Key)?;
        let one = [value.clone()];
        let keys = match value.get("keys") {
            Some(keys) => keys.as_array().ok_or(Error::Key)?.as_slice(),
            None => &one,
        };
        for jwk in keys {
            if !self.add(VerifyingKey::from_jwk(jwk)?.thumbprint()) {
                return Err(Error::Key);
            }
        }
        Ok(())
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The payload of a signature by one of these keys, for this purpose.
    pub fn verify(&self, compact: &str, purpose: &'static str) -> Result<Value, Error> {
        let header = Parts::of(compact)?.header;
        let key = VerifyingKey::from_jwk(header.get("jwk").unwrap_or(&Value::Null))?;
        let thumbprint = key.thumbprint();
        if !self.0.contains(&thumbprint) {
            return Err(Error::NotPinned(thumbprint.to_string()));
        }
        key.verify(compact, purpose)
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use p256::ecdsa::signature::Signer as _;

    pub(crate) struct Signer(p256::ecdsa::SigningKey);

    impl Signer {
        pub(crate) fn new(seed: u8) -> Self {
            Self(p256::ecdsa::SigningKey::from_slice(&[seed; 32]).unwrap())
        }

        pub(crate) fn jwk(&self) -> Value {
            let point = self.0.verifying_key().to_sec1_point(false);
            let bytes = point.as_bytes();
            let encode = |range: std::ops::Range<usize>| BASE64_URL_SAFE_NO_PAD.encode(&bytes[range]);
            json!({"kty": "EC", "crv": "P-256", "x": encode(1..33), "y": encode(33..65), "use": "sig"})
        }

        pub(crate) fn pins(&self) -> Pins {
            Pins(vec![VerifyingKey::from_jwk(&self.jwk()).unwrap().thumbprint()])
        }

        pub(crate) fn sign_with(&self, header: Value, payload: &Value) -> String {
            let part = |value: &Value| BASE64_URL_SAFE_NO_PAD.encode(value.to_string());
            let signed = format!("{}.{}", part(&header), part(payload));
            let signature: p256::ecdsa::Signature = self.0.sign(signed.as_bytes());
            format!("{signed}.{}", BASE64_URL_SAFE_NO_PAD.encode(signature.to_bytes()))
        }

        pub(crate) fn sign(&self, purpose: &str, payload: &Value) -> String {
            self.sign_with(json!({"alg": "ES256", "typ": purpose, "jwk": self.jwk()}), payload)
        }
    }

    #[test]
    fn a_pinned_keys_signature_is_believed_and_no_other() {
        let (broker, other) = (Signer::new(1), Signer::new(2));
        let payload = json!({"a": 1});
        let pins = broker.pins();
        assert_eq!(pins.verify(&broker.sign("test", &payload), "test"), Ok(payload.clone()));
        let both = {
            let mut pins = other.pins();
            pins.add_jwks(json!({"keys": [broker.jwk()]}).to_string().as_bytes()).unwrap();
            pins
        };
        assert!(
            both.verify(&broker.sign("test", &payload), "test").is_ok(),
            "while keys rotate, two are good"
        );
        assert!(matches!(pins.verify(&other.sign("test", &payload), "test"), Err(Error::NotPinned(_))));
        assert!(matches!(
            Pins::default().verify(&broker.sign("test", &payload), "test"),
            Err(Error::NotPinned(_))
        ));
        // The pinned key is in the header, and somebody else signed.
        let borrowed = other.sign_with(json!({"alg": "ES256", "typ": "test", "jwk": broker.jwk()}), &payload);
        assert_eq!(pins.verify(&borrowed, "test"), Err(Error::Signature));
        assert!(matches!(pins.verify(&broker.sign("JWT", &payload), "test"), Err(Error::Type { .. })));
    }

    #[test]
    fn the_message_does_not_choose_how_it_is_verified() {
        let broker = Signer::new(1);
        let (pins, jwk) = (broker.pins(), broker.jwk());
        for (header, expected) in [
            (json!({"alg": "none", "typ": "t", "jwk": jwk}), "its algorithm"),
            (json!({"alg": "HS256", "typ": "t", "jwk": jwk}), "its algorithm"),
            (json!({"alg": "ES384", "typ": "t", "jwk": jwk}), "its algorithm"),
            (json!({"typ": "t", "jwk": jwk}), "its algorithm"),
            (json!({"alg": "ES256", "typ": "t", "jwk": jwk, "crit": ["b64"], "b64": false}), "critical"),
            (json!({"alg": "ES256", "jwk": jwk}), "not a \"t\""),
            (json!({"alg": "ES256", "typ": "t"}), "not an EC key"),
            (json!({"alg": "ES256", "typ": "t", "jwk": {"kty": "oct", "k": "AAAA"}}), "not an EC key"),
        ] {
            let error = pins.verify(&broker.sign_with(header.clone(), &json!({})), "t").unwrap_err();
            assert!(error.to_string().contains(expected), "{header}: {error}");
        }
        let good = broker.sign("t", &json!({"n": 1}));
        let unsigned = format!("{}.", good.rsplit_once('.').unwrap().0);
        assert_eq!(pins.verify(&unsigned, "t"), Err(Error::Signature));
        for text in ["", "..", "a.b", "....", &"A".repeat(MAX_BYTES + 1), &format!("{good}.x")] {
            assert!(pins.verify(text, "t").is_err(), "{text:.20}");
        }
        // Every character counts.
        for at in 0..good.len() {
            let mut bytes = good.clone().into_bytes();
            bytes[at] = if bytes[at] == b'A' { b'B' } else { b'A' };
            let changed = String::from_utf8(bytes).unwrap();
            assert!(pins.verify(&changed, "t").is_err(), "changed at {at}");
        }
    }

    #[test]
    fn pins_are_read_in_both_encodings() {
        let key = VerifyingKey::from_jwk(&Signer::new(1).jwk()).unwrap().thumbprint();
        let hex: String = key.0.iter().map(|b| format!("{b:02x}")).collect();
        for text in
            [format!("sha256:{key}"), format!("sha256:{hex}"), format!("sha256:{}", hex.to_uppercase())]
        {
            assert_eq!(text.parse(), Ok(key), "{text}");
        }
        for bad in ["", "sha256:", "sha256:AAAA", "sha1:AAAA", &hex, &format!("sha256:{}zz", &hex[2..])] {
            assert_eq!(bad.parse::<Thumbprint>(), Err(BadPin), "{bad}");
        }
    }

    #[test]
    fn the_thumbprint_is_rfc_7638s() {
        // Its example, section 3.1.
        let n = "0vx7agoebGcQSuuPiLJXZptN9nndrQmbXEps2aiAFbWhM78LhWx4cbbfAAtVT86zwu1RK7aPFFxuhDR1L6tSoc_BJECPebWKRXjBZCiFV4n3oknjhMstn64tZ_2W-5JsGY4Hc5n9yBXArwl93lqt7_RN5w6Cf0h4QyQ5v-65YGjQR0_FDW2QvzqY368QQMicAtaSqzs8KJZgnYb9c7d0zgdAZHzu6qMQvRL5hajrn1n91CbOpbISD08qNLyrdkt-bFTWhAI4vMQFh6WeZu0fM4lFd2NcRwr3XPksINHaQ-G_xBniIqbw0Ls1jF44-csFCur-kEgU8awapJzKnqDKgw";
        let key = TeePubKey::RSA { alg: "RS256".into(), k_mod: n.into(), k_exp: "AQAB".into() };
        let thumbprint = Thumbprint::of(&key).unwrap().to_string();
        assert_eq!(thumbprint, "NzbLsXh8uDCcd-6MNwXF4W_7noWXFZAfHkxZsRGC9Xs");
    }
}
