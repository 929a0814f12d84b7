//! ECDSA on P-256 with SHA-256: the only signature in Intel's certificates.

use const_oid::ObjectIdentifier;
use p256::ecdsa::Signature;
use spki::{AlgorithmIdentifierRef, SubjectPublicKeyInfoRef};

use super::signed::SignatureError;
use crate::signature::Backend;

pub(super) const ECDSA_WITH_SHA256: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.10045.4.3.2");
const EC_PUBLIC_KEY: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.10045.2.1");
const PRIME256V1: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.10045.3.1.7");

/// Checks that `signature` of `message` was made with `key` and is declared as what it is.
pub(super) fn verify(
    key: SubjectPublicKeyInfoRef<'_>,
    algorithm: AlgorithmIdentifierRef<'_>,
    message: &[u8],
    signature: &[u8],
    backend: &Backend,
) -> Result<(), SignatureError> {
    // RFC 5758, 3.2: no parameters.
    if algorithm.parameters.is_some() {
        return Err(SignatureError::Algorithm);
    }
    let point = point(&key).ok_or(SignatureError::Key)?;
    let signature = Signature::from_der(signature).map_err(|_| SignatureError::Mismatch)?;
    match (backend.p256)(point, message, &signature.to_bytes()) {
        true => Ok(()),
        false => Err(SignatureError::Mismatch),
    }
}

/// The point of a key on P-256, as SEC 1 writes it.
pub(super) fn point<'a>(key: &SubjectPublicKeyInfoRef<'a>) -> Option<&'a [u8]> {
    let curve = key.algorithm.parameters.and_then(|curve| curve.decode_as().ok());
    let p256 = key.algorithm.oid == EC_PUBLIC_KEY && curve == Some(PRIME256V1);
    key.subject_public_key.as_bytes().filter(|_| p256)
}
