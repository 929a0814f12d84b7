//! Certificates and revocation lists of the emulated roots, whoever signs.

use std::str::FromStr;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use der::asn1::{BitString, GeneralizedTime, ObjectIdentifier, OctetString, UtcTime};
use der::{Decode, Encode, Sequence};
use spki::{AlgorithmIdentifierOwned, EncodePublicKey, SubjectPublicKeyInfoOwned};
use x509_cert::crl::{CertificateList, RevokedCert, TbsCertList};
use x509_cert::ext::Extension;
use x509_cert::name::Name;
use x509_cert::serial_number::SerialNumber;
use x509_cert::time::{Time, Validity};
use x509_cert::{Certificate, Version};

use super::{Error, crypto};

/// A key that certifies.
pub trait Signer {
    /// The signature algorithm's identifier.
    fn algorithm(&self) -> Result<AlgorithmIdentifierOwned, Error>;
    /// A signature as a certificate carries it.
    fn sign(&self, message: &[u8]) -> Result<Vec<u8>, Error>;
}

impl Signer for p256::ecdsa::SigningKey {
    fn algorithm(&self) -> Result<AlgorithmIdentifierOwned, Error> {
        // ecdsa-with-SHA256
        let oid = ObjectIdentifier::new("1.2.840.10045.4.3.2").map_err(crypto)?;
        Ok(AlgorithmIdentifierOwned { oid, parameters: None })
    }

    fn sign(&self, message: &[u8]) -> Result<Vec<u8>, Error> {
        let signature: p256::ecdsa::Signature = p256::ecdsa::signature::Signer::sign(self, message);
        Ok(signature.to_der().as_bytes().to_vec())
    }
}

/// A name, from RFC 4514's text: the last component comes first in the encoding.
pub fn name(text: &str) -> Result<Name, Error> {
    Name::from_str(text).map_err(crypto)
}

/// From the beginning of yesterday (clocks differ) for so many days.
pub fn validity(days: u64) -> Result<Validity, Error> {
    let day = Duration::from_secs(24 * 3600);
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_err(crypto)?;
    let start = Duration::from_secs((now.as_secs() / 86400).saturating_sub(1) * 86400);
    Ok(Validity::new(time(start)?, time(start + day * days as u32)?))
}

/// UTCTime up to 2049, GeneralizedTime from then on (RFC 5280, 4.1.2.5).
fn time(since_epoch: Duration) -> Result<Time, Error> {
    match UtcTime::from_unix_duration(since_epoch) {
        Ok(time) => Ok(Time::UtcTime(time)),
        Err(_) => GeneralizedTime::from_unix_duration(since_epoch).map(Time::GeneralTime).map_err(crypto),
    }
}

/// Days of a year, near enough.
pub const YEAR: u64 = 365;

/// An extension with a value that is already encoded.
pub fn raw_extension(oid: &str, critical: bool, value: &[u8]) -> Result<Extension, Error> {
    let extn_id = ObjectIdentifier::new(oid).map_err(crypto)?;
    Ok(Extension { extn_id, critical, extn_value: OctetString::new(value).map_err(crypto)? })
}

/// An extension.
pub fn extension<T: Encode>(oid: &str, critical: bool, value: &T) -> Result<Extension, Error> {
    raw_extension(oid, critical, &value.to_der().map_err(crypto)?)
}

/// Basic constraints and key usage of a CA.
pub fn ca_extensions(path_length: Option<u8>) -> Result<Vec<Extension>, Error> {
    use x509_cert::ext::pkix::{BasicConstraints, KeyUsage, KeyUsages};
    Ok(vec![
        extension("2.5.29.19", true, &BasicConstraints { ca: true, path_len_constraint: path_length })?,
        extension("2.5.29.15", true, &KeyUsage(KeyUsages::KeyCertSign | KeyUsages::CRLSign))?,
    ])
}

/// A key's public half.
pub fn public<K: EncodePublicKey>(key: &K) -> Result<SubjectPublicKeyInfoOwned, Error> {
    let der = key.to_public_key_der().map_err(crypto)?;
    SubjectPublicKeyInfoOwned::from_der(der.as_bytes()).map_err(crypto)
}

/// What is signed in a certificate (RFC 5280, 4.1), to be written: `x509_cert`'s is only for reading.
#[derive(Sequence)]
struct TbsCertificate {
    #[asn1(context_specific = "0")]
    version: Version,
    serial_number: SerialNumber,
    signature: AlgorithmIdentifierOwned,
    issuer: Name,
    validity: Validity,
    subject: Name,
    subject_public_key_info: SubjectPublicKeyInfoOwned,
    #[asn1(context_specific = "3")]
    extensions: Vec<Extension>,
}

/// A certificate, to be written.
#[derive(Sequence)]
struct SignedCertificate {
    contents: TbsCertificate,
    algorithm: AlgorithmIdentifierOwned,
    signature: BitString,
}

/// Who signs.
pub struct Issuer<'a> {
    /// Its name.
    pub name: Name,
    /// Its key.
    pub key: &'a dyn Signer,
}

impl Issuer<'_> {
    fn sign(&self, message: &[u8]) -> Result<BitString, Error> {
        BitString::from_bytes(&self.key.sign(message)?).map_err(crypto)
    }

    /// A certificate.
    pub fn certify(
        &self,
        subject: Name,
        serial: SerialNumber,
        days: u64,
        key: SubjectPublicKeyInfoOwned,
        extensions: Vec<Extension>,
    ) -> Result<Certificate, Error> {
        let algorithm = self.key.algorithm()?;
        let contents = TbsCertificate {
            version: Version::V3,
            serial_number: serial,
            signature: algorithm.clone(),
            issuer: self.name.clone(),
            validity: validity(days)?,
            subject,
            subject_public_key_info: key,
            extensions,
        };
        let signature = self.sign(&contents.to_der().map_err(crypto)?)?;
        let der = SignedCertificate { contents, algorithm, signature }.to_der().map_err(crypto)?;
        Certificate::from_der(&der).map_err(crypto)
    }

    /// A revocation list.
    pub fn crl(
        &self,
        revoked: Vec<SerialNumber>,
        days: u64,
        mut extensions: Vec<Extension>,
    ) -> Result<CertificateList, Error> {
        let algorithm = self.key.algorithm()?;
        let window = validity(days)?;
        extensions.insert(0, extension("2.5.29.20", false, &1u8)?);
        let entries: Vec<RevokedCert> = revoked
            .into_iter()
            .map(|serial_number| RevokedCert {
                serial_number,
                revocation_date: window.not_before,
                crl_entry_extensions: None,
            })
            .collect();
        let tbs = TbsCertList {
            version: Version::V2,
            signature: algorithm.clone(),
            issuer: self.name.clone(),
            this_update: window.not_before,
            next_update: Some(window.not_after),
            revoked_certificates: (!entries.is_empty()).then_some(entries),
            crl_extensions: Some(extensions),
        };
        let signature = self.sign(&tbs.to_der().map_err(crypto)?)?;
        Ok(CertificateList { tbs_cert_list: tbs, signature_algorithm: algorithm, signature })
    }
}
