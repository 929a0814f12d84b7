//! Signatures in certificates and CRLs: one algorithm a vendor, told apart by what they declare.

use spki::{AlgorithmIdentifierRef, SubjectPublicKeyInfoRef};

use super::{ecdsa, pss};
use crate::signature::Backend;

/// Why a signature does not hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SignatureError {
    /// Another algorithm, or other parameters.
    #[error(
        "signed neither with RSASSA-PSS (SHA-384, MGF1 with SHA-384, a salt of 48 bytes) nor with ECDSA and SHA-256"
    )]
    Algorithm,
    /// The issuer's key is of another kind or size.
    #[error(
        "the issuer's key is not of the signature's kind: RSA of 4096 bits with exponent 65537, EC on P-256"
    )]
    Key,
    /// The signature is another's, or of something else.
    #[error("the signature is not by its issuer's key")]
    Mismatch,
}

/// Checks that `signature` of `message` was made with `key` and is declared as what it is.
pub(super) fn verify(
    key: SubjectPublicKeyInfoRef<'_>,
    algorithm: AlgorithmIdentifierRef<'_>,
    message: &[u8],
    signature: &[u8],
    backend: &Backend,
) -> Result<(), SignatureError> {
    match algorithm.oid {
        pss::RSASSA_PSS => pss::verify(key, algorithm, message, signature),
        ecdsa::ECDSA_WITH_SHA256 => ecdsa::verify(key, algorithm, message, signature, backend),
        _ => Err(SignatureError::Algorithm),
    }
}
