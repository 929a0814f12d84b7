//! Whose arithmetic checks ECDSA signatures: the one point at which another implementation can be chosen.
//!
//! [`RUSTCRYPTO`] is the default: pure Rust, no C, builds anywhere. With the feature `aws-lc` there is `AWS_LC`, which is
//! several times faster on P-384 and brings C and assembly. Whichever is chosen gets the same bytes and must answer the same.

use p256::ecdsa::signature::Verifier as _;

/// Verifies `signature` (r and s, big-endian, of the curve's size each) of `message` by the public key `key` (SEC1, uncompressed).
pub type VerifyEcdsa = fn(key: &[u8], message: &[u8], signature: &[u8]) -> bool;

/// An implementation of ECDSA verification.
#[derive(Clone, Copy, Debug)]
pub struct Backend {
    /// Its name, for people.
    pub name: &'static str,
    /// P-256 with SHA-256.
    pub p256: VerifyEcdsa,
    /// P-384 with SHA-384.
    pub p384: VerifyEcdsa,
}

impl Default for Backend {
    fn default() -> Self {
        RUSTCRYPTO
    }
}

/// The `p256` and `p384` crates.
pub const RUSTCRYPTO: Backend = Backend {
    name: "RustCrypto",
    p256: |key, message, signature| {
        let key = p256::ecdsa::VerifyingKey::from_sec1_bytes(key);
        let signature = p256::ecdsa::Signature::from_slice(signature);
        matches!((key, signature), (Ok(key), Ok(signature)) if key.verify(message, &signature).is_ok())
    },
    p384: |key, message, signature| {
        let key = p384::ecdsa::VerifyingKey::from_sec1_bytes(key);
        let signature = p384::ecdsa::Signature::from_slice(signature);
        matches!((key, signature), (Ok(key), Ok(signature)) if key.verify(message, &signature).is_ok())
    },
};

/// The `aws-lc-rs` crate.
#[cfg(feature = "aws-lc")]
pub const AWS_LC: Backend = {
    use aws_lc_rs::signature::{ECDSA_P256_SHA256_FIXED, ECDSA_P384_SHA384_FIXED, UnparsedPublicKey};
    Backend {
        name: "aws-lc",
        p256: |key, message, signature| {
            UnparsedPublicKey::new(&ECDSA_P256_SHA256_FIXED, key).verify(message, signature).is_ok()
        },
        p384: |key, message, signature| {
            UnparsedPublicKey::new(&ECDSA_P384_SHA384_FIXED, key).verify(message, signature).is_ok()
        },
    }
};

#[cfg(test)]
mod tests {
    use super::*;
    use crate::signing::tests::{p256_key, p384_key};

    fn backends() -> Vec<Backend> {
        let mut all = vec![RUSTCRYPTO];
        #[cfg(feature = "aws-lc")]
        all.push(AWS_LC);
        all.push(Backend::default());
        all
    }

    #[test]
    fn every_backend_accepts_what_is_signed_and_refuses_the_rest() {
        for key in [p256_key(), p384_key()] {
            let (point, signature) = (key.public_point(), key.sign(b"message"));
            let zero = vec![0; signature.len()];
            let mut forged = signature.clone();
            forged[0] ^= 1;
            for backend in backends() {
                let verify = if signature.len() == 64 { backend.p256 } else { backend.p384 };
                assert!(verify(&point, b"message", &signature), "{}", backend.name);
                for (point, message, signature) in [
                    (&point[..], &b"massage"[..], &signature[..]),
                    (&point, b"message", &forged),
                    (&point, b"message", &zero),
                    (&point, b"message", &signature[1..]),
                    (&point, b"message", &[]),
                    (&point[1..], b"message", &signature),
                    (&[], b"message", &signature),
                ] {
                    assert!(!verify(point, message, signature), "{}", backend.name);
                }
            }
        }
    }
}
