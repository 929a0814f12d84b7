//! The emulated chain: ARK and ASK (RSA-4096, RSASSA-PSS with SHA-384), VCEK (P-384) with AMD's extensions, and a CRL.
//!
//! The `rsa` crate writes DER and hashes with older releases of `der` and `sha2` than the rest: what it re-exports is what
//! it is spoken to in, and encoded bytes are what goes in and out.

use std::path::Path;

use der::asn1::Ia5String;
use der::{Decode, Encode, EncodePem};
use rsa::RsaPrivateKey;
use rsa::pkcs8::der::Encode as _;
use rsa::pkcs8::spki::DynSignatureAlgorithmIdentifier;
use rsa::pkcs8::{DecodePrivateKey, EncodePrivateKey, EncodePublicKey};
use rsa::pss::SigningKey;
use rsa::rand_core::OsRng;
use rsa::sha2::Sha384;
use rsa::signature::{Keypair, RandomizedSigner, SignatureEncoding};
use spki::{AlgorithmIdentifierOwned, SubjectPublicKeyInfoOwned};
use x509_cert::Certificate;
use x509_cert::crl::CertificateList;
use x509_cert::ext::Extension;
use x509_cert::name::Name;

use super::platform::Model;
use crate::platform::x509::{Issuer, Signer, YEAR, ca_extensions, extension, name, public, raw_extension};
use crate::platform::{Error, cached, create_private, crypto, io, read, write_public};

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

fn common_name(common: &str) -> Result<Name, Error> {
    name(&format!("CN={common},O=Cloister softkvm\\, emulated\\, NOT AMD,OU=Engineering"))
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
        let key = RsaPrivateKey::new(&mut OsRng, 4096).map_err(crypto)?;
        let pem = key.to_pkcs8_pem(rsa::pkcs8::LineEnding::LF).map_err(crypto)?;
        create_private(&path, pem.as_bytes())?;
        return Ok(key);
    }
    let text = read(&path)?;
    let damaged = |why: String| Error::Damaged { path: path.clone(), why };
    let text = std::str::from_utf8(&text).map_err(|e| damaged(e.to_string()))?;
    RsaPrivateKey::from_pkcs8_pem(text).map_err(|e| damaged(e.to_string()))
}

impl Signer for SigningKey<Sha384> {
    fn algorithm(&self) -> Result<AlgorithmIdentifierOwned, Error> {
        let der = self.signature_algorithm_identifier().map_err(crypto)?.to_der().map_err(crypto)?;
        AlgorithmIdentifierOwned::from_der(&der).map_err(crypto)
    }

    fn sign(&self, message: &[u8]) -> Result<Vec<u8>, Error> {
        Ok(self.sign_with_rng(&mut OsRng, message).to_vec())
    }
}

fn rsa_public(key: &SigningKey<Sha384>) -> Result<SubjectPublicKeyInfoOwned, Error> {
    let der = key.verifying_key().to_public_key_der().map_err(crypto)?;
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
        let ark_name = common_name(&format!("ARK-{PRODUCT}"))?;
        let ask_name = common_name(&format!("SEV-{PRODUCT}"))?;
        let root = Issuer { name: ark_name.clone(), key: &ark_key };
        let intermediate = Issuer { name: ask_name.clone(), key: &ask_key };
        let ark = cached(&dir.join("ark.der"), || {
            root.certify(ark_name, 0x1_0000u64.into(), 25 * YEAR, rsa_public(&ark_key)?, ca_extensions(None)?)
        })?;
        let ask = cached(&dir.join("ask.der"), || {
            root.certify(
                ask_name,
                0x1_0001u64.into(),
                25 * YEAR,
                rsa_public(&ask_key)?,
                ca_extensions(Some(0))?,
            )
        })?;
        let leaf = cached(&dir.join(format!("vcek-{:016x}.der", model.tcb.packed())), || {
            // AMD's VCEKs have serial number 0.
            let key = public(vcek.verifying_key())?;
            intermediate.certify(
                common_name("SEV-VCEK")?,
                0u64.into(),
                7 * YEAR,
                key,
                vcek_extensions(model, chip_id)?,
            )
        })?;
        let crl = cached(&dir.join("crl.der"), || root.crl(Vec::new(), YEAR, Vec::new()))?;
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
        std::fs::create_dir_all(dir).map_err(io(dir))?;
        for (file, cert) in [("ark.pem", &self.ark), ("ask.pem", &self.ask), ("vcek.pem", &self.vcek)] {
            let path = dir.join(file);
            let pem = cert.to_pem(der::pem::LineEnding::LF).map_err(crypto)?;
            write_public(&path, pem)?;
        }
        let path = dir.join("crl.der");
        write_public(&path, self.crl.to_der().map_err(crypto)?)
    }
}
