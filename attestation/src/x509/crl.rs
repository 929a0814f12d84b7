//! A certificate revocation list with the bytes that it came in.

use alloc::borrow::ToOwned;
use alloc::vec::Vec;

use const_oid::ObjectIdentifier;
use der::Decode;
use x509_cert::certificate::Version;
use x509_cert::crl::CertificateList;
use x509_cert::name::Name;

use super::certificate::{Certificate, CertificateError, check_extensions, check_name, signed_part};
use super::signed::SignatureError;
use super::time::UnixTime;
use crate::signature::Backend;

const CRL_NUMBER: ObjectIdentifier = ObjectIdentifier::new_unwrap("2.5.29.20");
/// No vendor's list is longer.
const MAX_BYTES: usize = 1 << 20;

/// Why bytes are not a CRL that can be judged.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CrlError {
    /// Longer than anything real.
    #[error("a CRL of {len} bytes is longer than any real one")]
    TooLong {
        /// Its length.
        len: usize,
    },
    /// Not a CRL.
    #[error("not an X.509 CRL: {0}")]
    Der(#[from] der::Error),
    /// Not version 2.
    #[error("not an X.509 version 2 CRL")]
    Version,
    /// Inner and outer algorithm differ.
    #[error("the CRL names two different signature algorithms")]
    Algorithms,
    /// Partial, indirect or otherwise special lists are marked by critical extensions.
    #[error("the CRL is none that can be judged: {0}")]
    Extensions(CertificateError),
}

/// A complete, direct CRL.
#[derive(Clone, Debug)]
pub struct Crl {
    tbs: Vec<u8>,
    parsed: CertificateList,
}

impl Crl {
    /// Reads one CRL; bytes after it are refused.
    pub fn from_der(der: &[u8]) -> Result<Self, CrlError> {
        if der.len() > MAX_BYTES {
            return Err(CrlError::TooLong { len: der.len() });
        }
        let parsed = CertificateList::from_der(der)?;
        let tbs = signed_part(der)?.to_owned();
        let list = &parsed.tbs_cert_list;
        if list.version != Version::V2 {
            return Err(CrlError::Version);
        }
        if list.signature != parsed.signature_algorithm {
            return Err(CrlError::Algorithms);
        }
        check_name(&list.issuer)?;
        check_extensions(list.crl_extensions.as_deref(), &[]).map_err(CrlError::Extensions)?;
        for revoked in list.revoked_certificates.as_deref().unwrap_or_default() {
            check_extensions(revoked.crl_entry_extensions.as_deref(), &[]).map_err(CrlError::Extensions)?;
        }
        Ok(Self { tbs, parsed })
    }

    /// Whose list it is.
    pub fn issuer(&self) -> &Name {
        &self.parsed.tbs_cert_list.issuer
    }

    /// When it was issued.
    pub fn this_update(&self) -> UnixTime {
        (&self.parsed.tbs_cert_list.this_update).into()
    }

    /// When it is replaced at the latest: from then on it is out of date.
    pub fn next_update(&self) -> Option<UnixTime> {
        self.parsed.tbs_cert_list.next_update.as_ref().map(UnixTime::from)
    }

    /// Its number, where it has one that fits.
    pub fn number(&self) -> Option<u64> {
        let extensions = self.parsed.tbs_cert_list.crl_extensions.as_deref().unwrap_or_default();
        let number = extensions.iter().find(|extension| extension.extn_id == CRL_NUMBER)?;
        u64::from_der(number.extn_value.as_bytes()).ok()
    }

    /// The serial numbers on it, big-endian.
    pub fn revoked_serials(&self) -> impl Iterator<Item = &[u8]> {
        let revoked = self.parsed.tbs_cert_list.revoked_certificates.as_deref().unwrap_or_default();
        revoked.iter().map(|entry| entry.serial_number.as_bytes())
    }

    /// Whether a certificate of its issuer is on it.
    pub fn revokes(&self, certificate: &Certificate) -> bool {
        let mut revoked = self.revoked_serials();
        certificate.issuer() == self.issuer() && revoked.any(|serial| serial == certificate.serial())
    }

    /// Checks that `issuer`'s key signed it. ECDSA is `backend`'s.
    pub fn verify_signed_by(&self, issuer: &Certificate, backend: &Backend) -> Result<(), SignatureError> {
        let Self { parsed, tbs, .. } = self;
        issuer.verify_signature(&parsed.signature_algorithm, tbs, &parsed.signature, backend)
    }
}
