//! A certificate with the bytes that it came in.

use alloc::borrow::ToOwned;
use alloc::string::{String, ToString};
use alloc::sync::Arc;
use alloc::vec::Vec;
use std::sync::OnceLock;

use const_oid::ObjectIdentifier;
use der::{Decode, Reader, SliceReader, Tag};
use sha2::{Digest, Sha256};
use spki::SubjectPublicKeyInfoOwned;
use x509_cert::certificate::{TbsCertificate, Version};
use x509_cert::ext::Extension;
use x509_cert::ext::pkix::{BasicConstraints, KeyUsage, KeyUsages};
use x509_cert::name::Name;

use super::signed::{self, SignatureError};
use super::time::UnixTime;
use crate::signature::Backend;

const COMMON_NAME: ObjectIdentifier = ObjectIdentifier::new_unwrap("2.5.4.3");
const BASIC_CONSTRAINTS: ObjectIdentifier = ObjectIdentifier::new_unwrap("2.5.29.19");
const KEY_USAGE: ObjectIdentifier = ObjectIdentifier::new_unwrap("2.5.29.15");
/// No certificate of these chains is longer.
const MAX_BYTES: usize = 16 << 10;

/// Why bytes are not a certificate that can be judged.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CertificateError {
    /// Longer than anything real.
    #[error("a certificate of {len} bytes is longer than any real one")]
    TooLong {
        /// Its length.
        len: usize,
    },
    /// Not X.509.
    #[error("not an X.509 certificate: {0}")]
    Der(#[from] der::Error),
    /// Not version 3.
    #[error("not an X.509 version 3 certificate")]
    Version,
    /// Inner and outer algorithm differ.
    #[error("it names two different signature algorithms")]
    Algorithms,
    /// The same extension twice: which one is meant?
    #[error("it has extension {0} twice")]
    DuplicateExtension(ObjectIdentifier),
    /// An extension that must be understood is not.
    #[error("its extension {0} is critical and unknown")]
    CriticalExtension(ObjectIdentifier),
    /// Its subject has no common name, or several.
    #[error("its subject has not exactly one common name")]
    CommonName,
}

/// Why a certificate cannot be an authority's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CaProfileError {
    /// Basic constraints say no, or nothing.
    #[error("its basic constraints do not make it an authority")]
    NotAnAuthority,
    /// It may not have as many authorities below it as it has.
    #[error("its path length constraint does not allow the chain")]
    PathLength,
    /// Its key usage does not include signing certificates.
    #[error("its key usage does not allow it to sign certificates")]
    KeyUsage,
}

/// A version 3 certificate whose critical extensions are all understood. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Certificate(Arc<Parsed>);

#[derive(Debug)]
struct Parsed {
    der: Vec<u8>,
    tbs: Vec<u8>,
    parsed: x509_cert::Certificate,
    common_name: String,
    /// For claims, which every verdict under the same root has.
    subject_text: OnceLock<String>,
    fingerprint: OnceLock<[u8; 32]>,
}

impl Certificate {
    /// Reads one certificate; bytes after it are refused.
    pub fn from_der(der: &[u8]) -> Result<Self, CertificateError> {
        if der.len() > MAX_BYTES {
            return Err(CertificateError::TooLong { len: der.len() });
        }
        let parsed = x509_cert::Certificate::from_der(der)?;
        let tbs = signed_part(der)?.to_owned();
        let contents = parsed.tbs_certificate();
        if contents.version() != Version::V3 {
            return Err(CertificateError::Version);
        }
        if contents.signature() != parsed.signature_algorithm() {
            return Err(CertificateError::Algorithms);
        }
        check_name(contents.issuer())?;
        check_name(contents.subject())?;
        let known_critical = [BASIC_CONSTRAINTS, KEY_USAGE];
        check_extensions(contents.extensions().map(Vec::as_slice), &known_critical)?;
        let common_name = common_name(contents.subject()).ok_or(CertificateError::CommonName)?.to_owned();
        Ok(Self(Arc::new(Parsed {
            der: der.to_owned(),
            tbs,
            parsed,
            common_name,
            subject_text: OnceLock::new(),
            fingerprint: OnceLock::new(),
        })))
    }

    fn contents(&self) -> &TbsCertificate {
        self.0.parsed.tbs_certificate()
    }

    /// The bytes that it was read from.
    pub fn der(&self) -> &[u8] {
        &self.0.der
    }

    /// SHA-256 of them.
    pub fn fingerprint(&self) -> [u8; 32] {
        *self.0.fingerprint.get_or_init(|| Sha256::digest(self.der()).into())
    }

    /// The common name of its subject.
    pub fn common_name(&self) -> &str {
        &self.0.common_name
    }

    /// Its subject.
    pub fn subject(&self) -> &Name {
        self.contents().subject()
    }

    /// Its subject as people write it (RFC 4514).
    pub fn subject_text(&self) -> &str {
        self.0.subject_text.get_or_init(|| self.subject().to_string())
    }

    /// Its issuer.
    pub fn issuer(&self) -> &Name {
        self.contents().issuer()
    }

    /// Its serial number, big-endian. AMD issues endorsement keys with serial number zero, which RFC 5280
    /// forbids.
    pub fn serial(&self) -> &[u8] {
        self.contents().serial_number().as_bytes()
    }

    /// First second of its validity.
    pub fn not_before(&self) -> UnixTime {
        (&self.contents().validity().not_before).into()
    }

    /// Last second of its validity.
    pub fn not_after(&self) -> UnixTime {
        (&self.contents().validity().not_after).into()
    }

    /// The subject's key.
    pub fn public_key(&self) -> &SubjectPublicKeyInfoOwned {
        self.contents().subject_public_key_info()
    }

    /// The subject's key as SEC 1 writes it, if it is one on P-256.
    pub fn p256_point(&self) -> Option<&[u8]> {
        use der::referenced::OwnedToRef;
        super::ecdsa::point(&self.public_key().owned_to_ref())
    }

    /// The value of an extension.
    pub fn extension(&self, oid: ObjectIdentifier) -> Option<&[u8]> {
        let mut extensions = self.contents().extensions().into_iter().flatten();
        extensions.find(|extension| extension.extn_id == oid).map(|e| e.extn_value.as_bytes())
    }

    /// Whether it says that `issuer` issued it, name by name.
    pub fn names_issuer(&self, issuer: &Self) -> bool {
        self.issuer() == issuer.subject()
    }

    /// Checks that `issuer`'s key signed it. ECDSA is `backend`'s.
    pub fn verify_signed_by(&self, issuer: &Self, backend: &Backend) -> Result<(), SignatureError> {
        let Parsed { parsed, tbs, .. } = &*self.0;
        issuer.verify_signature(parsed.signature_algorithm(), tbs, parsed.signature(), backend)
    }

    /// Checks that its own key signed it.
    pub fn verify_self_signed(&self) -> Result<(), SignatureError> {
        if self.names_issuer(self) {
            self.verify_signed_by(self, &Backend::default())
        } else {
            Err(SignatureError::Mismatch)
        }
    }

    /// Checks a signature of `message` by this certificate's key.
    pub(super) fn verify_signature(
        &self,
        algorithm: &spki::AlgorithmIdentifierOwned,
        message: &[u8],
        signature: &der::asn1::BitString,
        backend: &Backend,
    ) -> Result<(), SignatureError> {
        use der::referenced::OwnedToRef;
        let signature = signature.as_bytes().ok_or(SignatureError::Mismatch)?;
        signed::verify(
            self.public_key().owned_to_ref(),
            algorithm.owned_to_ref(),
            message,
            signature,
            backend,
        )
    }

    /// Checks that it may have `authorities_below` authorities and then an end entity below it.
    pub fn check_authority(&self, authorities_below: u8) -> Result<(), CaProfileError> {
        let constraints = self.decode::<BasicConstraints>(BASIC_CONSTRAINTS).filter(|c| c.ca);
        let constraints = constraints.ok_or(CaProfileError::NotAnAuthority)?;
        if constraints.path_len_constraint.is_some_and(|most| most < authorities_below) {
            return Err(CaProfileError::PathLength);
        }
        match self.allows(KeyUsages::KeyCertSign) {
            true => Ok(()),
            false => Err(CaProfileError::KeyUsage),
        }
    }

    /// Whether it is the certificate of an authority.
    pub fn is_authority(&self) -> bool {
        // What cannot be read is not known not to be one.
        self.extension(BASIC_CONSTRAINTS)
            .is_some_and(|value| BasicConstraints::from_der(value).map_or(true, |constraints| constraints.ca))
    }

    /// Whether its key may sign CRLs.
    pub fn may_sign_crls(&self) -> bool {
        self.allows(KeyUsages::CRLSign)
    }

    /// Whether its key may sign data: key usage says so or there is none.
    pub fn may_sign_data(&self) -> bool {
        self.extension(KEY_USAGE).is_none() || self.allows(KeyUsages::DigitalSignature)
    }

    fn allows(&self, usage: KeyUsages) -> bool {
        self.decode::<KeyUsage>(KEY_USAGE).is_some_and(|allowed| allowed.0.contains(usage))
    }

    fn decode<'a, T: Decode<'a>>(&'a self, oid: ObjectIdentifier) -> Option<T> {
        T::from_der(self.extension(oid)?).ok()
    }
}

impl PartialEq for Certificate {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0) || self.der() == other.der()
    }
}

/// The first element of the outer sequence, header included: what a certificate's or CRL's signature is of.
pub(super) fn signed_part(der: &[u8]) -> der::Result<&[u8]> {
    let mut reader = SliceReader::new(der)?;
    reader.sequence(|inner| {
        let signed = inner.tlv_bytes()?;
        while !inner.is_finished() {
            inner.tlv_bytes()?;
        }
        Ok(signed)
    })
}

pub(super) fn check_extensions(
    extensions: Option<&[Extension]>,
    known_critical: &[ObjectIdentifier],
) -> Result<(), CertificateError> {
    let extensions = extensions.unwrap_or_default();
    for (index, Extension { extn_id: oid, critical, .. }) in extensions.iter().enumerate() {
        if extensions.iter().take(index).any(|other| other.extn_id == *oid) {
            return Err(CertificateError::DuplicateExtension(*oid));
        }
        if *critical && !known_critical.contains(oid) {
            return Err(CertificateError::CriticalExtension(*oid));
        }
    }
    Ok(())
}

/// A component of a name is a set, in which nothing is twice (X.501, 9.3); `der` leaves that to its users.
pub(super) fn check_name(name: &Name) -> der::Result<()> {
    // They are sorted.
    let mut neighbours = name.iter_rdn().flat_map(|set| set.iter().zip(set.iter().skip(1)));
    match neighbours.any(|(one, next)| one == next) {
        true => Err(Tag::Set.value_error().into()),
        false => Ok(()),
    }
}

/// The only common name in `name`.
fn common_name(name: &Name) -> Option<&str> {
    let mut names = name.iter().filter(|part| part.oid == COMMON_NAME);
    let (first, None) = (names.next()?, names.next()) else { return None };
    core::str::from_utf8(first.value.value()).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_component_of_a_name_has_nothing_twice() {
        for (text, good) in [
            ("CN=a,O=b,OU=b", true),
            ("CN=a,O=b,O=b", true),
            ("CN=a,O=b+OU=b", true),
            ("CN=a,O=b+O=b", false),
            ("CN=a+O=b+OU=c+O=b", false),
        ] {
            let name: Name = text.parse().unwrap();
            assert_eq!(check_name(&name).is_ok(), good, "{text}");
        }
    }
}
