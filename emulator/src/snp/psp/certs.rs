//! The emulated chain: ARK and ASK (RSA-4096, RSASSA-PSS with SHA-384), VCEK (P-384) with AMD's extensions, and a CRL.

use std::path::Path;
use std::str::FromStr;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use der::asn1::{BitString, GeneralizedTime, Ia5String, ObjectIdentifier, OctetString, UtcTime};
use der::{Decode, Encode, EncodePem};
use rsa::RsaPrivateKey;
use rsa::pkcs8::{DecodePrivateKey, EncodePrivateKey};
use rsa::pss::SigningKey;
use rsa::signature::{Keypair, RandomizedSigner, SignatureEncoding};
use sha2::Sha384;
use spki::{DynSignatureAlgorithmIdentifier, EncodePublicKey, SubjectPublicKeyInfoOwned};
use x509_cert::crl::{CertificateList, TbsCertList};
use x509_cert::ext::Extension;
use x509_cert::name::Name;
use x509_cert::serial_number::SerialNumber;
use x509_cert::time::{Time, Validity};
use x509_cert::{Certificate, TbsCertificate, Version};

use super::Error;
use super::platform::{Model, create_private, read};

/// The product whose names the chain carries.
const PRODUCT: &str = "Genoa";

/// The chain of this platform.
#[derive(Clone, Debug)]
pub struct Certs {
    /// Root, self-signed.
    pub ark: Certificate,
    /// Signed by the ARK.
    pub ask: Certificate,
    /// Signed by the ASK.
    pub vcek: Certificate,
    /// Signed by the ARK; nothing is revoked.
    pub crl: CertificateList,
}

fn crypto<E: std::fmt::Display>(error: E) -> Error {
    Error::Crypto(error.to_string())
}

fn name(common: &str) -> Result<Name, Error> {
    // RFC 4514: the last component comes first in the encoding.
    Name::from_str(&format!("CN={common},O=Cloister softkvm\\, emulated\\, NOT AMD,OU=Engineering"))
        .map_err(crypto)
}

fn validity(years: u64) -> Result<Validity, Error> {
    let year = Duration::from_secs(365 * 24 * 3600);
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_err(crypto)?;
    // A day back: clocks differ.
    let start = Duration::from_secs((now.as_secs() / 86400).saturating_sub(1) * 86400);
    Ok(Validity { not_before: time(start)?, not_after: time(start + year * years as u32)? })
}

/// UTCTime up to 2049, GeneralizedTime from then on (RFC 5280, 4.1.2.5).
fn time(since_epoch: Duration) -> Result<Time, Error> {
    match UtcTime::from_unix_duration(since_epoch) {
        Ok(time) => Ok(Time::UtcTime(time)),
        Err(_) => GeneralizedTime::from_unix_duration(since_epoch).map(Time::GeneralTime).map_err(crypto),
    }
}

/// Who signs.
struct Issuer<'a> {
    name: Name,
    key: &'a SigningKey<Sha384>,
}

impl Issuer<'_> {
    fn sign(&self, message: &[u8]) -> Result<BitString, Error> {
        let signature = self.key.sign_with_rng(&mut rand::thread_rng(), message);
        BitString::from_bytes(&signature.to_vec()).map_err(crypto)
    }

    fn certify(
        &self,
        subject: Name,
        serial: u64,
        years: u64,
        key: SubjectPublicKeyInfoOwned,
        extensions: Vec<Extension>,
    ) -> Result<Certificate, Error> {
        let algorithm = self.key.signature_algorithm_identifier().map_err(crypto)?;
        let tbs = TbsCertificate {
            version: Version::V3,
            serial_number: SerialNumber::from(serial),
            signature: algorithm.clone(),
            issuer: self.name.clone(),
            validity: validity(years)?,
            subject,
            subject_public_key_info: key,
            issuer_unique_id: None,
            subject_unique_id: None,
            extensions: Some(extensions),
        };
        let signature = self.sign(&tbs.to_der().map_err(crypto)?)?;
        Ok(Certificate { tbs_certificate: tbs, signature_algorithm: algorithm, signature })
    }

    fn crl(&self) -> Result<CertificateList, Error> {
        let algorithm = self.key.signature_algorithm_identifier().map_err(crypto)?;
        let window = validity(1)?;
        let number = extension("2.5.29.20", false, &1u8)?;
        let tbs = TbsCertList {
            version: Version::V2,
            signature: algorithm.clone(),
            issuer: self.name.clone(),
            this_update: window.not_before,
            next_update: Some(window.not_after),
            revoked_certificates: None,
            crl_extensions: Some(vec![number]),
        };
        let signature = self.sign(&tbs.to_der().map_err(crypto)?)?;
        Ok(CertificateList { tbs_cert_list: tbs, signature_algorithm: algorithm, signature })
    }
}

fn raw_extension(oid: &str, critical: bool, value: &[u8]) -> Result<Extension, Error> {
    let extn_id = ObjectIdentifier::new(oid).map_err(crypto)?;
    Ok(Extension { extn_id, critical, extn_value: OctetString::new(value).map_err(crypto)? })
}

fn extension<T: Encode>(oid: &str, critical: bool, value: &T) -> Result<Extension, Error> {
    raw_extension(oid, critical, &value.to_der().map_err(crypto)?)
}

/// Basic constraints and key usage of a CA.
fn ca_extensions(path_length: Option<u8>) -> Result<Vec<Extension>, Error> {
    use x509_cert::ext::pkix::{BasicConstraints, KeyUsage, KeyUsages};
    Ok(vec![
        extension("2.5.29.19", true, &BasicConstraints { ca: true, path_len_constraint: path_length })?,
        extension("2.5.29.15", true, &KeyUsage(KeyUsages::KeyCertSign | KeyUsages::CRLSign))?,
    ])
}

/// AMD's VCEK extensions (AMD 57230, "VCEK Certificate Extensions").
fn vcek_extensions(model: &Model, chip_id: &[u8; 64]) -> Result<Vec<Extension>, Error> {
    const ARC: &str = "1.3.6.1.4.1.3704.1";
    let tcb = model.tcb;
    let mut list = vec![
        extension(&format!("{ARC}.1"), false, &0u8)?,
        extension(&format!("{ARC}.2"), false, &Ia5String::new(PRODUCT).map_err(crypto)?)?,
    ];
    let levels = [
        (1, tcb.boot_loader),
        (2, tcb.tee),
        (3, tcb.snp),
        (4, 0),
        (5, 0),
        (6, 0),
        (7, 0),
        (8, tcb.microcode),
    ];
    for (arc, level) in levels {
        list.push(extension(&format!("{ARC}.3.{arc}"), false, &level)?);
    }
    list.push(raw_extension(&format!("{ARC}.4"), false, chip_id)?);
    Ok(list)
}

fn load_key(dir: &Path, file: &str) -> Result<RsaPrivateKey, Error> {
    let path = dir.join(file);
    if !path.exists() {
        eprintln!("softkvm: making {file} (RSA 4096, once; this takes some seconds)");
        let key = RsaPrivateKey::new(&mut rand::thread_rng(), 4096).map_err(crypto)?;
        let pem = key.to_pkcs8_pem(rsa::pkcs8::LineEnding::LF).map_err(crypto)?;
        create_private(&path, pem.as_bytes())?;
        return Ok(key);
    }
    let text = read(&path)?;
    let damaged = |why: String| Error::Damaged { path: path.clone(), why };
    let text = std::str::from_utf8(&text).map_err(|e| damaged(e.to_string()))?;
    RsaPrivateKey::from_pkcs8_pem(text).map_err(|e| damaged(e.to_string()))
}

/// Reads a DER file, or makes it.
fn cached<T: Encode + for<'a> Decode<'a>>(
    path: &Path,
    make: impl FnOnce() -> Result<T, Error>,
) -> Result<T, Error> {
    if path.exists() {
        let bytes = read(path)?;
        return T::from_der(&bytes).map_err(|e| Error::Damaged { path: path.to_owned(), why: e.to_string() });
    }
    let value = make()?;
    create_private(path, &value.to_der().map_err(crypto)?)?;
    Ok(value)
}

fn public<K: EncodePublicKey>(key: &K) -> Result<SubjectPublicKeyInfoOwned, Error> {
    let der = key.to_public_key_der().map_err(crypto)?;
    SubjectPublicKeyInfoOwned::from_der(der.as_bytes()).map_err(crypto)
}

impl Certs {
    /// Opens or makes the chain.
    pub(super) fn open(
        dir: &Path,
        model: &Model,
        chip_id: &[u8; 64],
        vcek: &p384::ecdsa::SigningKey,
    ) -> Result<Self, Error> {
        let ark_key = SigningKey::<Sha384>::new(load_key(dir, "ark.key.pem")?);
        let ask_key = SigningKey::<Sha384>::new(load_key(dir, "ask.key.pem")?);
        let ark_name = name(&format!("ARK-{PRODUCT}"))?;
        let ask_name = name(&format!("SEV-{PRODUCT}"))?;
        let root = Issuer { name: ark_name.clone(), key: &ark_key };
        let intermediate = Issuer { name: ask_name.clone(), key: &ask_key };
        let ark = cached(&dir.join("ark.der"), || {
            root.certify(ark_name, 0x1_0000, 25, public(&ark_key.verifying_key())?, ca_extensions(None)?)
        })?;
        let ask = cached(&dir.join("ask.der"), || {
            root.certify(ask_name, 0x1_0001, 25, public(&ask_key.verifying_key())?, ca_extensions(Some(0))?)
        })?;
        let leaf = cached(&dir.join(format!("vcek-{:016x}.der", model.tcb.packed())), || {
            // AMD's VCEKs have serial number 0.
            let key = public(vcek.verifying_key())?;
            intermediate.certify(name("SEV-VCEK")?, 0, 7, key, vcek_extensions(model, chip_id)?)
        })?;
        let crl = cached(&dir.join("crl.der"), || root.crl())?;
        Ok(Self { ark, ask, vcek: leaf, crl })
    }

    /// The certificate table (GHCB specification, "Certificate Table"): GUID, offset, length; DER behind it.
    pub fn table(&self) -> Vec<u8> {
        const VCEK: [u8; 16] = *b"\x63\xda\x75\x8d\xe6\x64\x45\x64\xad\xc5\xf4\xb9\x3b\xe8\xac\xcd";
        const ASK: [u8; 16] = *b"\x4a\xb7\xb3\x79\xbb\xac\x4f\xe4\xa0\x2f\x05\xae\xf3\x27\xc7\x82";
        const ARK: [u8; 16] = *b"\xc0\xb4\x06\xa4\xa8\x03\x49\x52\x97\x43\x3f\xb6\x01\x4c\xd0\xae";
        let entries = [(VCEK, &self.vcek), (ASK, &self.ask), (ARK, &self.ark)];
        let ders: Vec<([u8; 16], Vec<u8>)> =
            entries.into_iter().filter_map(|(guid, cert)| Some((guid, cert.to_der().ok()?))).collect();
        let mut offset = 24 * (ders.len() + 1);
        let mut table = Vec::new();
        for (guid, der) in &ders {
            table.extend_from_slice(guid);
            table.extend_from_slice(&(offset as u32).to_le_bytes());
            table.extend_from_slice(&(der.len() as u32).to_le_bytes());
            offset += der.len();
        }
        table.extend_from_slice(&[0; 24]);
        ders.iter().for_each(|(_, der)| table.extend_from_slice(der));
        table
    }

    /// `softkvm export-certs`: ark.pem, ask.pem, vcek.pem, crl.der.
    pub fn export(&self, dir: &Path) -> Result<(), Error> {
        let io = |path: &Path| {
            let path = path.to_owned();
            move |source| Error::Io { path, source }
        };
        std::fs::create_dir_all(dir).map_err(io(dir))?;
        for (file, cert) in [("ark.pem", &self.ark), ("ask.pem", &self.ask), ("vcek.pem", &self.vcek)] {
            let path = dir.join(file);
            let pem = cert.to_pem(der::pem::LineEnding::LF).map_err(crypto)?;
            std::fs::write(&path, pem).map_err(io(&path))?;
        }
        let path = dir.join("crl.der");
        std::fs::write(&path, self.crl.to_der().map_err(crypto)?).map_err(io(&path))
    }
}
