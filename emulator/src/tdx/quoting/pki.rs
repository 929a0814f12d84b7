//! The emulated certificate hierarchy, in the shape of Intel's: root, PCK platform CA, PCK leaf with the SGX extensions,
//! TCB signing (Intel SGX PCK Certificate and Certificate Revocation List Profile Specification).

use std::path::Path;

use der::asn1::{Any, ObjectIdentifier, OctetString};
use der::{Encode, EncodePem, Tag};
use p256::ecdsa::SigningKey;
use sha2::{Digest, Sha256};
use spki::SubjectPublicKeyInfoOwned;
use x509_cert::Certificate;
use x509_cert::crl::CertificateList;
use x509_cert::ext::Extension;
use x509_cert::name::Name;
use x509_cert::serial_number::SerialNumber;

use super::platform::{Model, key};
use crate::platform::x509::{Issuer, YEAR, ca_extensions, extension, name, public};
use crate::platform::{Error, cached, crypto};

/// FMSPC of the emulated platform: "SKVM", and zeros.
pub const FMSPC: [u8; 6] = *b"SKVM\0\0";
/// PCE-ID.
pub const PCE_ID: [u8; 2] = [0, 0];

/// Certificates and the keys that sign.
pub struct Pki {
    /// Root, self-signed.
    pub root: Certificate,
    /// Signed by the root.
    pub platform_ca: Certificate,
    /// Signed by the root.
    pub tcb_signing: Certificate,
    /// Signed by the platform CA.
    pub pck: Certificate,
    /// The PCK's private key.
    pub pck_key: SigningKey,
    /// The TCB signing key.
    pub tcb_signing_key: SigningKey,
    root_key: SigningKey,
    platform_ca_key: SigningKey,
}

fn common_name(common: &str) -> Result<Name, Error> {
    name(&format!("C=US,ST=CA,L=Santa Clara,O=Cloister softkvm\\, emulated\\, NOT Intel,CN={common}"))
}

/// RFC 5280, 4.2.1.2: the SHA-1 of the key is customary; any unique value will do.
fn key_identifier(key: &SubjectPublicKeyInfoOwned) -> Vec<u8> {
    Sha256::digest(key.subject_public_key.raw_bytes()).into_iter().take(20).collect()
}

fn subject_key(key: &SubjectPublicKeyInfoOwned) -> Result<Extension, Error> {
    extension("2.5.29.14", false, &OctetString::new(key_identifier(key)).map_err(crypto)?)
}

fn authority_key(key: &SubjectPublicKeyInfoOwned) -> Result<Extension, Error> {
    use x509_cert::ext::pkix::AuthorityKeyIdentifier;
    let identifier = OctetString::new(key_identifier(key)).map_err(crypto)?;
    let value = AuthorityKeyIdentifier { key_identifier: Some(identifier), ..Default::default() };
    extension("2.5.29.35", false, &value)
}

/// Where a relying party would find a CRL. There is nothing there: the collateral brings the lists along.
fn crl_location() -> Result<Extension, Error> {
    use der::asn1::Ia5String;
    use x509_cert::ext::pkix::CrlDistributionPoints;
    use x509_cert::ext::pkix::crl::dp::DistributionPoint;
    use x509_cert::ext::pkix::name::{DistributionPointName, GeneralName};
    let uri = Ia5String::new("https://softkvm.invalid/crl.der").map_err(crypto)?;
    let full = DistributionPointName::FullName(vec![GeneralName::UniformResourceIdentifier(uri)]);
    let point = DistributionPoint { distribution_point: Some(full), reasons: None, crl_issuer: None };
    extension("2.5.29.31", false, &CrlDistributionPoints(vec![point]))
}

fn leaf_extensions() -> Result<Vec<Extension>, Error> {
    use x509_cert::ext::pkix::{BasicConstraints, KeyUsage, KeyUsages};
    Ok(vec![
        extension("2.5.29.15", true, &KeyUsage(KeyUsages::DigitalSignature | KeyUsages::NonRepudiation))?,
        extension("2.5.29.19", true, &BasicConstraints { ca: false, path_len_constraint: None })?,
    ])
}

/// Intel's arc of SGX extensions.
const SGX: &str = "1.2.840.113741.1.13.1";

/// SEQUENCE of already encoded values.
fn sequence(parts: &[Vec<u8>]) -> Result<Vec<u8>, Error> {
    Any::new(Tag::Sequence, parts.concat()).and_then(|any| any.to_der()).map_err(crypto)
}

/// SEQUENCE { OID, value }.
fn member<T: Encode>(arc: &str, value: &T) -> Result<Vec<u8>, Error> {
    member_raw(arc, value.to_der().map_err(crypto)?)
}

fn member_raw(arc: &str, value: Vec<u8>) -> Result<Vec<u8>, Error> {
    let oid = ObjectIdentifier::new(&format!("{SGX}.{arc}")).map_err(crypto)?;
    sequence(&[oid.to_der().map_err(crypto)?, value])
}

fn octets(bytes: &[u8]) -> Result<OctetString, Error> {
    OctetString::new(bytes).map_err(crypto)
}

/// The SGX extensions of a PCK certificate for a platform with instances.
fn sgx_extensions(model: &Model, ppid: &[u8; 16], instance: &[u8; 16]) -> Result<Extension, Error> {
    let versions = &model.versions;
    let mut tcb = Vec::new();
    for (i, svn) in versions.sgx.iter().enumerate() {
        tcb.push(member(&format!("2.{}", i + 1), svn)?);
    }
    tcb.push(member("2.17", &versions.pcesvn)?);
    tcb.push(member("2.18", &octets(&versions.sgx)?)?);
    /// SGX type "scalable".
    const SCALABLE: u8 = 1;
    let kind = Any::new(Tag::Enumerated, [SCALABLE]).map_err(crypto)?;
    let configuration = [member("7.1", &true)?, member("7.2", &false)?, member("7.3", &true)?];
    let all = sequence(&[
        member("1", &octets(ppid)?)?,
        member_raw("2", sequence(&tcb)?)?,
        member("3", &octets(&PCE_ID)?)?,
        member("4", &octets(&FMSPC)?)?,
        member("5", &kind)?,
        member("6", &octets(instance)?)?,
        member_raw("7", sequence(&configuration)?)?,
    ])?;
    crate::platform::x509::raw_extension(SGX, false, &all)
}

/// A positive serial number of 20 bytes at most.
fn serial(parts: &[u8]) -> Result<SerialNumber, Error> {
    let mut bytes: Vec<u8> = Sha256::digest(parts).into_iter().take(19).collect();
    bytes.insert(0, 0x53);
    SerialNumber::new(&bytes).map_err(crypto)
}

impl Pki {
    /// Opens or makes the certificates.
    pub(super) fn open(
        dir: &Path,
        model: &Model,
        (ppid, instance): ([u8; 16], [u8; 16]),
        seed: &[u8; 32],
        versions: &[u8],
    ) -> Result<Self, Error> {
        let derived = |what: &[u8]| key(&[what, seed]);
        let (root_key, platform_ca_key) = (derived(b"root")?, derived(b"platform CA")?);
        let tcb_signing_key = derived(b"TCB signing")?;
        let pck_key = key(&[b"PCK", seed, versions])?;
        let root_public = public(root_key.verifying_key())?;
        let root_name = common_name("softkvm SGX Root CA")?;
        let ca_name = common_name("softkvm SGX PCK Platform CA")?;
        let root = Issuer { name: root_name.clone(), key: &root_key };
        let ca = Issuer { name: ca_name.clone(), key: &platform_ca_key };
        let with = |mut list: Vec<Extension>, own: &SubjectPublicKeyInfoOwned, issuer| {
            list.insert(0, authority_key(issuer)?);
            list.insert(1, crl_location()?);
            list.push(subject_key(own)?);
            Ok::<_, Error>(list)
        };
        let own = cached(&dir.join("tdx-root.der"), || {
            let list = with(ca_extensions(Some(1))?, &root_public, &root_public)?;
            root.certify(
                root_name.clone(),
                serial(&public_bytes(&root_public))?,
                25 * YEAR,
                root_public.clone(),
                list,
            )
        })?;
        let ca_public = public(platform_ca_key.verifying_key())?;
        let platform_ca = cached(&dir.join("tdx-platform-ca.der"), || {
            let list = with(ca_extensions(Some(0))?, &ca_public, &root_public)?;
            root.certify(ca_name, serial(&public_bytes(&ca_public))?, 15 * YEAR, ca_public.clone(), list)
        })?;
        let signing_public = public(tcb_signing_key.verifying_key())?;
        let tcb_signing = cached(&dir.join("tdx-tcb-signing.der"), || {
            let list = with(leaf_extensions()?, &signing_public, &root_public)?;
            let subject = common_name("softkvm SGX TCB Signing")?;
            root.certify(
                subject,
                serial(&public_bytes(&signing_public))?,
                7 * YEAR,
                signing_public.clone(),
                list,
            )
        })?;
        let pck_public = public(pck_key.verifying_key())?;
        let tag: String = Sha256::digest(versions).iter().take(8).map(|b| format!("{b:02x}")).collect();
        let pck = cached(&dir.join(format!("tdx-pck-{tag}.der")), || {
            let mut list = with(leaf_extensions()?, &pck_public, &ca_public)?;
            list.push(sgx_extensions(model, &ppid, &instance)?);
            let subject = common_name("softkvm SGX PCK Certificate")?;
            ca.certify(subject, serial(&public_bytes(&pck_public))?, 7 * YEAR, pck_public.clone(), list)
        })?;
        Ok(Self {
            root: own,
            platform_ca,
            tcb_signing,
            pck,
            pck_key,
            tcb_signing_key,
            root_key,
            platform_ca_key,
        })
    }

    /// The root's CRL (nothing revoked) and the platform CA's, fresh.
    pub fn crls(&self, pck_revoked: bool) -> Result<(CertificateList, CertificateList), Error> {
        let issuer = |certificate: &Certificate, key| Issuer {
            name: certificate.tbs_certificate().subject().clone(),
            key,
        };
        let authority = |certificate: &Certificate| {
            Ok::<_, Error>(vec![authority_key(certificate.tbs_certificate().subject_public_key_info())?])
        };
        let root = issuer(&self.root, &self.root_key).crl(Vec::new(), YEAR, authority(&self.root)?)?;
        let revoked =
            if pck_revoked { vec![self.pck.tbs_certificate().serial_number().clone()] } else { Vec::new() };
        let pck = issuer(&self.platform_ca, &self.platform_ca_key).crl(
            revoked,
            30,
            authority(&self.platform_ca)?,
        )?;
        Ok((root, pck))
    }

    /// PEM, one after the other.
    pub fn chain(certificates: &[&Certificate]) -> Result<String, Error> {
        certificates.iter().map(|c| c.to_pem(der::pem::LineEnding::LF).map_err(crypto)).collect()
    }
}

fn public_bytes(key: &SubjectPublicKeyInfoOwned) -> Vec<u8> {
    key.subject_public_key.raw_bytes().to_vec()
}
