//! RSASSA-PSS with SHA-384 and RSA-4096: the only signature in AMD's certificates.
//!
//! The `rsa` crate reads DER and hashes with older releases of `der` and `sha2` than the rest: here is where they meet, and
//! what it re-exports is what it is spoken to in.

use const_oid::ObjectIdentifier;
use der::{Tag, Tagged};
use rsa::RsaPublicKey;
use rsa::pkcs1::der::asn1::AnyRef;
use rsa::pkcs1::der::{self as rsa_der, Decode};
use rsa::pkcs1::{RsaPssParams, TrailerField};
use rsa::pss::{Signature, VerifyingKey};
use rsa::sha2::Sha384;
use rsa::signature::Verifier;
use rsa::traits::PublicKeyParts;
use spki::{AlgorithmIdentifierRef, SubjectPublicKeyInfoRef};

use super::signed::SignatureError;

pub(super) const RSASSA_PSS: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.113549.1.1.10");
const RSA_ENCRYPTION: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.113549.1.1.1");
const MGF1: rsa::pkcs8::ObjectIdentifier = rsa::pkcs8::ObjectIdentifier::new_unwrap("1.2.840.113549.1.1.8");
const SHA384: rsa::pkcs8::ObjectIdentifier =
    rsa::pkcs8::ObjectIdentifier::new_unwrap("2.16.840.1.101.3.4.2.2");
const KEY_BITS: usize = 4096;
const SALT_BYTES: u8 = 48;

/// Checks that `signature` of `message` was made with `key` and is declared as what it is.
pub(super) fn verify(
    key: SubjectPublicKeyInfoRef<'_>,
    algorithm: AlgorithmIdentifierRef<'_>,
    message: &[u8],
    signature: &[u8],
) -> Result<(), SignatureError> {
    check_algorithm(algorithm).ok_or(SignatureError::Algorithm)?;
    let key = public_key(key).ok_or(SignatureError::Key)?;
    let signature = Signature::try_from(signature).map_err(|_| SignatureError::Mismatch)?;
    VerifyingKey::<Sha384>::new_with_salt_len(key, usize::from(SALT_BYTES))
        .verify(message, &signature)
        .map_err(|_| SignatureError::Mismatch)
}

fn check_algorithm(algorithm: AlgorithmIdentifierRef<'_>) -> Option<()> {
    let is_sha384 = |id: &rsa::pkcs8::AlgorithmIdentifierRef<'_>| {
        id.oid == SHA384 && id.parameters.is_none_or(|parameters| parameters.is_null())
    };
    let parameters = algorithm.parameters.filter(|_| algorithm.oid == RSASSA_PSS)?;
    let parameters = parameters.tag().eq(&Tag::Sequence).then(|| parameters.value())?;
    let parameters = AnyRef::new(rsa_der::Tag::Sequence, parameters).ok()?;
    let parameters: RsaPssParams<'_> = parameters.decode_as().ok()?;
    let mgf_hash = parameters.mask_gen.parameters.filter(|_| parameters.mask_gen.oid == MGF1)?;
    let exact = is_sha384(&parameters.hash)
        && is_sha384(&mgf_hash)
        && parameters.salt_len == SALT_BYTES
        && parameters.trailer_field == TrailerField::BC;
    exact.then_some(())
}

fn public_key(key: SubjectPublicKeyInfoRef<'_>) -> Option<RsaPublicKey> {
    let bytes = key.subject_public_key.as_bytes().filter(|_| key.algorithm.oid == RSA_ENCRYPTION)?;
    let rsa::pkcs1::RsaPublicKey { modulus, public_exponent } =
        rsa::pkcs1::RsaPublicKey::from_der(bytes).ok()?;
    let number = rsa::BigUint::from_bytes_be;
    let key = RsaPublicKey::new(number(modulus.as_bytes()), number(public_exponent.as_bytes())).ok()?;
    (key.n().bits() == KEY_BITS && *key.e() == rsa::BigUint::from(65537u32)).then_some(key)
}
