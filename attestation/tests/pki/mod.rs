//! A vendor of our own: roots, intermediates, endorsement keys, CRLs and reports of every product, right
//! unless a test makes them wrong.
#![allow(dead_code)]

pub mod cases;
mod der;

use std::collections::HashMap;
use std::path::Path;
use std::sync::{Mutex, OnceLock};

use cloister_attestation::snp::table::{self, Entry, EntryKind};
use cloister_attestation::snp::{
    Authentic, Collateral, Evidence, Policy, Product, Report, TcbPart, TrustRoots, VekKind, Verdict,
    authenticate, verify,
};
use cloister_attestation::verdict::Reasons;
use cloister_attestation::x509::{Moment, UnixTime};
use p384::ecdsa::Signature;
use p384::ecdsa::signature::hazmat::PrehashSigner;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use rsa::RsaPrivateKey;
use rsa::pkcs8::{DecodePrivateKey, EncodePrivateKey};
use rsa::rand_core::{self, CryptoRng, RngCore};
use rsa::signature::{RandomizedSigner, SignatureEncoding};
use rsa::traits::PublicKeyParts;
use sha2::{Digest, Sha384};

pub use der::{BASIC_CONSTRAINTS, CERT_SIGN, CRL_SIGN, KEY_USAGE, key_usage};
use der::{bits, explicit, extension, name, oid, seq, time, tlv, uint};

pub const ORGANISATION: &str = "Cloister tests, NOT AMD";
/// Products whose TCB versions have every part that the cases make wrong.
pub const FULL: [Product; 3] = [Product::Milan, Product::Genoa, Product::Turin];
pub const NOW: &str = "2026-11-21T07:00:00Z";
pub const SIGNED: usize = Report::SIGNED_BYTES;

/// Whose RSA key signs or is certified. Generated once and kept in cargo's directory for tests: primes of
/// 2048 bits take their time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum RsaKey {
    Ark,
    Ask,
    Rogue,
    /// Of 2048 bits.
    Small,
}

/// A reproducible generator as the `rsa` crate takes one: by an older release's trait.
struct Seeded(StdRng);

impl Seeded {
    fn new(seed: u64) -> Self {
        Self(StdRng::seed_from_u64(seed))
    }
}

impl RngCore for Seeded {
    fn next_u32(&mut self) -> u32 {
        self.0.next_u32()
    }

    fn next_u64(&mut self) -> u64 {
        self.0.next_u64()
    }

    fn fill_bytes(&mut self, bytes: &mut [u8]) {
        self.0.fill_bytes(bytes);
    }

    fn try_fill_bytes(&mut self, bytes: &mut [u8]) -> Result<(), rand_core::Error> {
        self.0.fill_bytes(bytes);
        Ok(())
    }
}

impl CryptoRng for Seeded {}

impl RsaKey {
    fn get(self) -> &'static RsaPrivateKey {
        static KEYS: [OnceLock<RsaPrivateKey>; 4] = [const { OnceLock::new() }; 4];
        KEYS[self as usize].get_or_init(|| {
            let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("test-rsa-{self:?}.der"));
            let cached = std::fs::read(&path).ok().and_then(|der| RsaPrivateKey::from_pkcs8_der(&der).ok());
            cached.unwrap_or_else(|| {
                let mut rng = Seeded::new(self as u64);
                let size = if self == Self::Small { 2048 } else { 4096 };
                let key = RsaPrivateKey::new(&mut rng, size).unwrap();
                let partial = path.with_extension(format!("{}", std::process::id()));
                std::fs::write(&partial, key.to_pkcs8_der().unwrap().as_bytes()).unwrap();
                std::fs::rename(partial, path).unwrap();
                key
            })
        })
    }

    fn public(self) -> Vec<u8> {
        let key = self.get();
        let numbers = seq(&[uint(&key.n().to_bytes_be()), uint(&key.e().to_bytes_be())]);
        seq(&[seq(&[oid("1.2.840.113549.1.1.1"), tlv(0x05, &[])]), bits(&numbers)])
    }

    /// Signatures by what they are of: making one takes longer than checking many.
    fn sign(self, message: &[u8]) -> Vec<u8> {
        type Made = HashMap<(RsaKey, Vec<u8>), Vec<u8>>;
        static MADE: Mutex<Option<Made>> = Mutex::new(None);
        let id = (self, message.to_vec());
        if let Some(made) = MADE.lock().unwrap().get_or_insert_default().get(&id) {
            return made.clone();
        }
        let key = rsa::pss::SigningKey::<rsa::sha2::Sha384>::new(self.get().clone());
        let signature = key.sign_with_rng(&mut Seeded::new(9), message).to_vec();
        MADE.lock().unwrap().get_or_insert_default().insert(id, signature.clone());
        signature
    }
}

/// The algorithm identifier of RSASSA-PSS with SHA-384 and this salt, the hash as given.
pub fn pss(hash: &str, salt: u8) -> Vec<u8> {
    let hash = seq(&[oid(hash), tlv(0x05, &[])]);
    let mgf = seq(&[oid("1.2.840.113549.1.1.8"), hash.clone()]);
    let parameters = [explicit(0, &hash), explicit(1, &mgf), explicit(2, &uint(&[salt]))];
    seq(&[oid("1.2.840.113549.1.1.10"), seq(&parameters)])
}

pub const SHA384: &str = "2.16.840.1.101.3.4.2.2";
pub const SHA256: &str = "2.16.840.1.101.3.4.2.1";

fn vek_key(index: u8) -> p384::ecdsa::SigningKey {
    p384::ecdsa::SigningKey::from_slice(&[index; 48]).unwrap()
}

#[derive(Clone)]
pub enum Subject {
    Rsa(RsaKey),
    /// A P-384 key by number.
    Vek(u8),
    /// This SubjectPublicKeyInfo.
    Raw(Vec<u8>),
}

#[derive(Clone)]
pub struct CertSpec {
    /// As encoded: 2 is version 3.
    pub version: u8,
    pub serial: Vec<u8>,
    pub names: Vec<String>,
    pub issuer: String,
    pub organisation: &'static str,
    pub issuer_organisation: &'static str,
    pub not_before: &'static str,
    pub not_after: &'static str,
    /// OID, critical, value.
    pub extensions: Vec<(String, bool, Vec<u8>)>,
    pub key: Subject,
    pub signer: RsaKey,
    pub algorithm: Vec<u8>,
    pub outer_algorithm: Option<Vec<u8>>,
}

impl CertSpec {
    fn new(name: String, issuer: String, key: Subject, signer: RsaKey) -> Self {
        Self {
            version: 2,
            serial: vec![1, 0, 1],
            names: vec![name],
            issuer,
            organisation: ORGANISATION,
            issuer_organisation: ORGANISATION,
            not_before: "2026-01-01T00:00:00Z",
            not_after: "2046-01-01T00:00:00Z",
            extensions: Vec::new(),
            key,
            signer,
            algorithm: pss(SHA384, 48),
            outer_algorithm: None,
        }
    }

    fn authority(mut self, path_len: Option<u8>) -> Self {
        let path_len = path_len.map(|len| uint(&[len])).unwrap_or_default();
        let constraints = seq(&[tlv(0x01, &[0xff]), path_len]);
        self.extensions.push((BASIC_CONSTRAINTS.into(), true, constraints));
        self.extensions.push((KEY_USAGE.into(), true, key_usage(CERT_SIGN | CRL_SIGN)));
        self
    }

    pub fn ark(product: Product) -> Self {
        let name = format!("ARK-{product}");
        Self::new(name.clone(), name, Subject::Rsa(RsaKey::Ark), RsaKey::Ark).authority(None)
    }

    pub fn ask(product: Product, kind: VekKind) -> Self {
        let name = match kind {
            VekKind::Vcek => format!("SEV-{product}"),
            VekKind::Vlek => format!("SEV-VLEK-{product}"),
        };
        Self::new(name, format!("ARK-{product}"), Subject::Rsa(RsaKey::Ask), RsaKey::Ark).authority(Some(0))
    }

    fn vek(product: Product, kind: VekKind, tcb: [u8; 8]) -> Self {
        let issuer = Self::ask(product, kind).names.remove(0);
        let mut spec = Self::new(kind.common_name().into(), issuer, Subject::Vek(1), RsaKey::Ask);
        spec.serial = vec![0];
        let turin = matches!(product, Product::Turin | Product::Venice);
        let amd = |arc: &str| format!("1.3.6.1.4.1.3704.1.{arc}");
        spec.extensions.push((amd("1"), false, uint(&[u8::from(turin)])));
        spec.extensions.push((amd("2"), false, tlv(0x16, product.name().as_bytes())));
        for (part, level) in product.tcb_layout().iter().zip(tcb) {
            let arc = match part {
                TcbPart::Bootloader => 1,
                TcbPart::Tee => 2,
                TcbPart::Snp => 3,
                TcbPart::Reserved(8..) => continue,
                TcbPart::Reserved(number) => *number,
                TcbPart::Microcode => 8,
                TcbPart::Fmc => 9,
            };
            spec.extensions.push((amd(&format!("3.{arc}")), false, uint(&[level])));
        }
        match kind {
            VekKind::Vcek => {
                let hwid = chip_id(product)[..product.chip_id_bytes()].to_vec();
                spec.extensions.push((amd("4"), false, hwid));
            }
            VekKind::Vlek => spec.extensions.push((amd("5"), false, tlv(0x16, b"CN=cloud.example"))),
        }
        spec
    }

    pub fn extension(&mut self, oid: &str) -> &mut Vec<u8> {
        &mut self.extensions.iter_mut().find(|(own, ..)| own == oid).unwrap().2
    }

    pub fn remove(&mut self, oid: &str) {
        let count = self.extensions.len();
        self.extensions.retain(|(own, ..)| own != oid);
        assert_eq!(self.extensions.len() + 1, count, "{oid}");
    }

    pub fn der(&self) -> Vec<u8> {
        let key = match &self.key {
            Subject::Rsa(key) => key.public(),
            Subject::Vek(index) => {
                let point = vek_key(*index).verifying_key().to_sec1_point(false);
                let algorithm = seq(&[oid("1.2.840.10045.2.1"), oid("1.3.132.0.34")]);
                seq(&[algorithm, bits(point.as_bytes())])
            }
            Subject::Raw(der) => der.clone(),
        };
        let version = if self.version == 0 { vec![] } else { explicit(0, &uint(&[self.version])) };
        let issuer = name(self.issuer_organisation, std::slice::from_ref(&self.issuer));
        let extensions = explicit(3, &seq(&self.extensions.iter().map(extension).collect::<Vec<_>>()));
        let tbs = seq(&[
            version,
            uint(&self.serial),
            self.algorithm.clone(),
            issuer,
            seq(&[time(self.not_before), time(self.not_after)]),
            name(self.organisation, &self.names),
            key,
            if self.version == 2 { extensions } else { vec![] },
        ]);
        let signature = bits(&self.signer.sign(&tbs));
        seq(&[tbs, self.outer_algorithm.clone().unwrap_or(self.algorithm.clone()), signature])
    }
}

#[derive(Clone)]
pub struct CrlSpec {
    pub issuer: String,
    pub organisation: &'static str,
    pub this_update: &'static str,
    pub next_update: Option<&'static str>,
    pub revoked: Vec<Vec<u8>>,
    pub signer: RsaKey,
    pub algorithm: Vec<u8>,
    pub extensions: Vec<(String, bool, Vec<u8>)>,
}

impl CrlSpec {
    pub fn new(product: Product) -> Self {
        Self {
            issuer: format!("ARK-{product}"),
            organisation: ORGANISATION,
            this_update: "2026-11-01T00:00:00Z",
            next_update: Some("2027-11-01T00:00:00Z"),
            revoked: Vec::new(),
            signer: RsaKey::Ark,
            algorithm: pss(SHA384, 48),
            extensions: vec![("2.5.29.20".into(), false, uint(&[1]))],
        }
    }

    pub fn der(&self) -> Vec<u8> {
        let entries: Vec<_> =
            self.revoked.iter().map(|serial| seq(&[uint(serial), time("2026-10-01T00:00:00Z")])).collect();
        let extensions = seq(&self.extensions.iter().map(extension).collect::<Vec<_>>());
        let tbs = seq(&[
            uint(&[1]),
            self.algorithm.clone(),
            name(self.organisation, std::slice::from_ref(&self.issuer)),
            time(self.this_update),
            self.next_update.map(time).unwrap_or_default(),
            if entries.is_empty() { vec![] } else { seq(&entries) },
            explicit(0, &extensions),
        ]);
        let signature = bits(&self.signer.sign(&tbs));
        seq(&[tbs, self.algorithm.clone(), signature])
    }
}

fn chip_id(product: Product) -> [u8; 64] {
    let mut id = [0; 64];
    for (index, byte) in id.iter_mut().take(product.chip_id_bytes()).enumerate() {
        *byte = index as u8 + 1;
    }
    id
}

/// A whole attestation: evidence, what it is checked against, and when.
#[derive(Clone)]
pub struct Scenario {
    pub product: Product,
    /// Before it is signed.
    pub report: Vec<u8>,
    /// Offsets and masks of bits that flip after it is signed.
    pub flips: Vec<(usize, u8)>,
    /// A signature instead of the right one.
    pub signature: Option<[u8; 144]>,
    /// The P-384 key, by number, that signs the report.
    pub report_signer: u8,
    pub vek: CertSpec,
    pub ask: CertSpec,
    pub send_vek: bool,
    pub send_ask: bool,
    /// Beside the endorsement key and its issuer.
    pub more: Vec<Vec<u8>>,
    /// Everything in a certificate table instead.
    pub in_table: bool,
    /// A table that is none.
    pub raw_table: Option<Vec<u8>>,
    pub trusted: CertSpec,
    pub crls: Vec<CrlSpec>,
    pub raw_crls: Vec<Vec<u8>>,
    pub policy: Policy,
    pub at: &'static str,
}

impl Scenario {
    pub fn new(product: Product, version: u32, kind: VekKind) -> Self {
        let tcb = match product {
            Product::Milan => [4, 0, 0, 0, 0, 0, 24, 219],
            Product::Genoa => [10, 0, 0, 0, 0, 0, 23, 84],
            Product::Turin => [1, 1, 1, 4, 0, 0, 0, 81],
            Product::Venice => [1, 0, 1, 4, 0, 0, 0, 0],
        };
        Self {
            product,
            report: report(product, version, kind, tcb),
            flips: Vec::new(),
            signature: None,
            report_signer: 1,
            vek: CertSpec::vek(product, kind, tcb),
            ask: CertSpec::ask(product, kind),
            send_vek: true,
            send_ask: true,
            more: Vec::new(),
            in_table: false,
            raw_table: None,
            trusted: CertSpec::ark(product),
            crls: Vec::new(),
            raw_crls: Vec::new(),
            // To the second: cases are made at both ends of what holds.
            policy: Policy { clock_tolerance_seconds: 0, ..Policy::default() },
            at: NOW,
        }
    }

    pub fn set(&mut self, at: usize, bytes: &[u8]) {
        self.report[at..at + bytes.len()].copy_from_slice(bytes);
    }

    pub fn signed_report(&self) -> Vec<u8> {
        let mut report = self.report.clone();
        let digest = Sha384::digest(&report[..SIGNED]);
        let signature: Signature = vek_key(self.report_signer).sign_prehash(&digest).unwrap();
        let (r, s) = signature.split_bytes();
        let mut wire = [0; 144];
        for (at, scalar) in [(0, r), (72, s)] {
            wire[at..at + 48].copy_from_slice(&scalar);
            wire[at..at + 48].reverse();
        }
        report[SIGNED..SIGNED + 144].copy_from_slice(&self.signature.unwrap_or(wire));
        for (at, mask) in &self.flips {
            report[*at] ^= mask;
        }
        report
    }

    pub fn verify(&self) -> Verdict {
        self.ask(|evidence, roots, collateral, at| verify(evidence, roots, collateral, at, &self.policy))
    }

    pub fn authenticate(&self) -> Result<Authentic, Reasons> {
        self.ask(|evidence, roots, collateral, at| {
            authenticate(evidence, roots, collateral, Moment::exactly(at))
        })
    }

    fn ask<T>(&self, question: impl FnOnce(&Evidence<'_>, &TrustRoots, &Collateral<'_>, UnixTime) -> T) -> T {
        let report = self.signed_report();
        let mut sent = Vec::new();
        sent.extend(self.send_vek.then(|| self.vek.der()));
        sent.extend(self.send_ask.then(|| self.ask.der()));
        sent.extend(self.more.iter().cloned());
        let sent: Vec<_> = sent.iter().map(Vec::as_slice).collect();
        let kinds = [EntryKind::VCEK, EntryKind::ASK, EntryKind::ARK];
        let entries: Vec<_> = kinds.into_iter().zip(&sent).map(|(kind, blob)| Entry { kind, blob }).collect();
        let table = match &self.raw_table {
            Some(table) => Some(table.clone()),
            None => self.in_table.then(|| table::build(&entries).unwrap()),
        };
        let certificates = if self.in_table { &[][..] } else { &sent };
        let evidence = Evidence { report: &report, certificates, certificate_table: table.as_deref() };
        let crls: Vec<_> = self.crls.iter().map(CrlSpec::der).chain(self.raw_crls.iter().cloned()).collect();
        let crls: Vec<_> = crls.iter().map(Vec::as_slice).collect();
        let roots = TrustRoots::from_bytes(&self.trusted.der()).unwrap();
        let at: UnixTime = self.at.parse().unwrap();
        question(&evidence, &roots, &Collateral { crls: &crls }, at)
    }
}

fn report(product: Product, version: u32, kind: VekKind, tcb: [u8; 8]) -> Vec<u8> {
    let mut report = vec![0; Report::BYTES];
    let mut set = |at: usize, bytes: &[u8]| report[at..at + bytes.len()].copy_from_slice(bytes);
    set(0x00, &version.to_le_bytes());
    set(0x08, &0x30000u64.to_le_bytes());
    set(0x34, &1u32.to_le_bytes());
    set(0x40, &0x25u64.to_le_bytes());
    set(0x48, &(u32::from(kind == VekKind::Vlek) << 2).to_le_bytes());
    set(0x50, &[0xda; 64]);
    set(0x90, &[0x3e; 48]);
    for at in [0x38, 0x180, 0x1e0, 0x1f0] {
        set(at, &tcb);
    }
    if version >= 3 {
        set(
            0x188,
            match product {
                Product::Milan => &[0x19, 0x01, 0x01],
                Product::Genoa => &[0x19, 0x11, 0x01],
                Product::Turin => &[0x1a, 0x02, 0x01],
                Product::Venice => &[0x1a, 0x50, 0x01],
            },
        );
    }
    if kind == VekKind::Vcek {
        set(0x1a0, &chip_id(product));
    }
    for at in [0x1e8, 0x1ec] {
        set(at, &[40, 55, 1]);
    }
    if version >= 5 {
        set(0x1f8, &0xbu64.to_le_bytes());
        set(0x200, &0x3bu64.to_le_bytes());
    }
    report
}
