//! An Intel of our own: root, platform authority, PCKs, TCB signer, CRLs, TCB info, QE identity, a quoting enclave
//! and TDs of every kind, right unless a test makes them wrong.
#![allow(dead_code)]

pub mod cases;
#[path = "../pki/der.rs"]
pub mod der;
pub mod quote;

use std::collections::HashMap;
use std::sync::Mutex;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use cloister_attestation::tdx::{Collateral, Evidence, Policy, TrustRoots, Verdict, verify};
use cloister_attestation::x509::UnixTime;
use p256::ecdsa::signature::Signer;
use p256::ecdsa::{Signature, SigningKey};
use serde_json::{Value, json};

use der::{
    BASIC_CONSTRAINTS, CERT_SIGN, CRL_SIGN, DIGITAL_SIGNATURE, KEY_USAGE, bits, explicit, extension,
    key_usage, name, oid, seq, time, tlv, uint,
};
use quote::QuoteSpec;

pub const ORGANISATION: &str = "Cloister tests, NOT Intel";
pub const NOW: &str = "2026-11-21T07:00:00Z";
pub const SGX: &str = "1.2.840.113741.1.13.1";
/// Version and body type of every kind of quote.
pub const KINDS: [(u16, u16); 4] = [(4, 2), (5, 2), (5, 3), (5, 4)];
pub const FMSPC: [u8; 6] = [0x90, 0xc0, 0x6f, 0, 0, 0];

/// Whose P-256 key signs or is certified.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Key {
    Root = 1,
    Ca,
    Pck,
    TcbSigner,
    Attestation,
    Rogue,
}

impl Key {
    fn get(self) -> SigningKey {
        SigningKey::from_slice(&[self as u8; 32]).unwrap()
    }

    /// x and y.
    pub fn point(self) -> [u8; 64] {
        self.get().verifying_key().to_sec1_point(false).as_bytes()[1..].try_into().unwrap()
    }

    /// Signatures by what they are of: most cases differ in one of ten.
    fn sign(self, message: &[u8]) -> Signature {
        type Made = HashMap<(u8, Vec<u8>), Signature>;
        static MADE: Mutex<Option<Made>> = Mutex::new(None);
        let mut made = MADE.lock().unwrap();
        let sign = || self.get().sign(message);
        *made.get_or_insert_default().entry((self as u8, message.to_vec())).or_insert_with(sign)
    }

    /// r and s.
    pub fn sign_raw(self, message: &[u8]) -> [u8; 64] {
        self.sign(message).to_bytes().into()
    }

    fn sign_der(self, message: &[u8]) -> Vec<u8> {
        self.sign(message).to_der().as_bytes().to_vec()
    }

    fn public(self) -> Vec<u8> {
        let algorithm = seq(&[oid("1.2.840.10045.2.1"), oid("1.2.840.10045.3.1.7")]);
        seq(&[algorithm, bits(&[&[4][..], &self.point()].concat())])
    }
}

pub fn ecdsa_with_sha256() -> Vec<u8> {
    seq(&[oid("1.2.840.10045.4.3.2")])
}

#[derive(Clone)]
pub struct CertSpec {
    pub serial: Vec<u8>,
    pub name: String,
    pub issuer: String,
    pub organisation: &'static str,
    pub issuer_organisation: &'static str,
    pub not_before: &'static str,
    pub not_after: &'static str,
    /// OID, critical, value.
    pub extensions: Vec<(String, bool, Vec<u8>)>,
    pub key: Key,
    /// This SubjectPublicKeyInfo instead.
    pub raw_key: Option<Vec<u8>>,
    pub signer: Key,
    pub algorithm: Vec<u8>,
}

impl CertSpec {
    fn new(name: &str, issuer: &str, key: Key, signer: Key) -> Self {
        Self {
            serial: vec![0x51, key as u8],
            name: name.into(),
            issuer: issuer.into(),
            organisation: ORGANISATION,
            issuer_organisation: ORGANISATION,
            not_before: "2026-01-01T00:00:00Z",
            not_after: "2033-01-01T00:00:00Z",
            extensions: Vec::new(),
            key,
            raw_key: None,
            signer,
            algorithm: ecdsa_with_sha256(),
        }
    }

    fn with_constraints(mut self, path_len: Option<u8>, usage: u8) -> Self {
        let constraints = match path_len {
            Some(len) => seq(&[tlv(0x01, &[0xff]), uint(&[len])]),
            None => seq(&[]),
        };
        self.extensions.push((BASIC_CONSTRAINTS.into(), true, constraints));
        self.extensions.push((KEY_USAGE.into(), true, key_usage(usage)));
        self
    }

    pub fn root() -> Self {
        let mut spec = Self::new("SGX Root CA (tests)", "SGX Root CA (tests)", Key::Root, Key::Root);
        spec.not_after = "2049-12-31T23:59:59Z";
        spec.with_constraints(Some(1), CERT_SIGN | CRL_SIGN)
    }

    pub fn ca() -> Self {
        Self::new("SGX PCK Platform CA", "SGX Root CA (tests)", Key::Ca, Key::Root)
            .with_constraints(Some(0), CERT_SIGN | CRL_SIGN)
    }

    pub fn tcb_signer() -> Self {
        Self::new("SGX TCB Signing", "SGX Root CA (tests)", Key::TcbSigner, Key::Root)
            .with_constraints(None, DIGITAL_SIGNATURE)
    }

    pub fn pck() -> Self {
        let spec = Self::new("SGX PCK Certificate", "SGX PCK Platform CA", Key::Pck, Key::Ca);
        let mut spec = spec.with_constraints(None, DIGITAL_SIGNATURE);
        spec.extensions.push((SGX.into(), false, SgxExtension::default().der()));
        spec
    }

    pub fn extension(&mut self, oid: &str) -> &mut Vec<u8> {
        &mut self.extensions.iter_mut().find(|(own, ..)| own == oid).unwrap().2
    }

    pub fn der(&self) -> Vec<u8> {
        let extensions: Vec<_> = self.extensions.iter().map(extension).collect();
        let extensions = if extensions.is_empty() { vec![] } else { explicit(3, &seq(&extensions)) };
        let tbs = seq(&[
            explicit(0, &uint(&[2])),
            uint(&self.serial),
            self.algorithm.clone(),
            name(self.issuer_organisation, std::slice::from_ref(&self.issuer)),
            seq(&[time(self.not_before), time(self.not_after)]),
            name(self.organisation, std::slice::from_ref(&self.name)),
            self.raw_key.clone().unwrap_or_else(|| self.key.public()),
            extensions,
        ]);
        let signature = bits(&self.signer.sign_der(&tbs));
        seq(&[tbs, self.algorithm.clone(), signature])
    }
}

pub fn pem(certificates: &[&CertSpec]) -> String {
    let block = |spec: &&CertSpec| {
        let text = STANDARD.encode(spec.der());
        let lines: Vec<_> =
            text.as_bytes().chunks(64).map(|line| std::str::from_utf8(line).unwrap()).collect();
        format!("-----BEGIN CERTIFICATE-----\n{}\n-----END CERTIFICATE-----\n", lines.join("\n"))
    };
    certificates.iter().map(block).collect()
}

/// Intel's extension of a PCK certificate, entry by entry.
#[derive(Clone)]
pub struct SgxExtension {
    /// The arc below the extension's own, and the value.
    pub entries: Vec<(String, Vec<u8>)>,
}

impl Default for SgxExtension {
    fn default() -> Self {
        let svns = [3, 3, 2, 2, 4, 1, 0, 5, 0, 0, 0, 0, 0, 0, 0, 0];
        let mut tcb: Vec<_> =
            svns.iter().enumerate().map(|(at, svn)| entry(&format!("2.{}", at + 1), uint(&[*svn]))).collect();
        tcb.push(entry("2.17", uint(&[13])));
        tcb.push(entry("2.18", tlv(4, &svns)));
        let flag = |arc, value| entry(arc, tlv(1, &[value]));
        let configuration = [flag("7.1", 0xff), flag("7.2", 0), flag("7.3", 0xff)];
        Self {
            entries: vec![
                ("1".into(), tlv(4, &[0x11; 16])),
                ("2".into(), seq(&tcb)),
                ("3".into(), tlv(4, &[0, 0])),
                ("4".into(), tlv(4, &FMSPC)),
                ("5".into(), tlv(0x0a, &[1])),
                ("6".into(), tlv(4, &[0x66; 16])),
                ("7".into(), seq(&configuration)),
            ],
        }
    }
}

fn entry(arc: &str, value: Vec<u8>) -> Vec<u8> {
    seq(&[oid(&format!("{SGX}.{arc}")), value])
}

impl SgxExtension {
    pub fn der(&self) -> Vec<u8> {
        seq(&self.entries.iter().map(|(arc, value)| entry(arc, value.clone())).collect::<Vec<_>>())
    }

    pub fn set(mut self, arc: &str, value: Vec<u8>) -> Self {
        self.entries.iter_mut().find(|(own, _)| own == arc).unwrap().1 = value;
        self
    }

    pub fn without(mut self, arc: &str) -> Self {
        self.entries.retain(|(own, _)| own != arc);
        self
    }

    /// Sets an SVN of the TCB entry: 1 to 16 are components, which CPUSVN has too, 17 is PCESVN.
    pub fn svn(self, number: usize, svn: u8) -> Self {
        let changed = self.svn_alone(number, svn);
        if number > 16 {
            return changed;
        }
        changed.patch_tcb(18, number - 1, svn)
    }

    /// Sets an SVN of the TCB entry, and not in CPUSVN.
    pub fn svn_alone(self, number: usize, svn: u8) -> Self {
        self.patch_tcb(number, 0, svn)
    }

    fn patch_tcb(self, number: usize, offset: usize, value: u8) -> Self {
        let mut tcb = self.entries[1].1.clone();
        let id = oid(&format!("{SGX}.2.{number}"));
        let header_bytes = 2;
        let at = tcb.windows(id.len()).position(|window| window == id).unwrap() + id.len() + header_bytes;
        tcb[at + offset] = value;
        self.set("2", tcb)
    }
}

#[derive(Clone)]
pub struct CrlSpec {
    pub issuer: String,
    pub this_update: &'static str,
    pub next_update: Option<&'static str>,
    pub revoked: Vec<Vec<u8>>,
    pub signer: Key,
    pub extensions: Vec<(String, bool, Vec<u8>)>,
}

impl CrlSpec {
    fn new(issuer: &CertSpec) -> Self {
        Self {
            issuer: issuer.name.clone(),
            this_update: "2026-11-01T00:00:00Z",
            next_update: Some("2026-12-01T00:00:00Z"),
            revoked: vec![vec![0x77]],
            signer: issuer.key,
            extensions: vec![("2.5.29.20".into(), false, uint(&[1]))],
        }
    }

    pub fn der(&self) -> Vec<u8> {
        let entry = |serial: &Vec<u8>| seq(&[uint(serial), time("2026-10-01T00:00:00Z")]);
        let entries: Vec<_> = self.revoked.iter().map(entry).collect();
        let extensions: Vec<_> = self.extensions.iter().map(extension).collect();
        let tbs = seq(&[
            uint(&[1]),
            ecdsa_with_sha256(),
            name(ORGANISATION, std::slice::from_ref(&self.issuer)),
            time(self.this_update),
            self.next_update.map(time).unwrap_or_default(),
            if entries.is_empty() { vec![] } else { seq(&entries) },
            explicit(0, &seq(&extensions)),
        ]);
        let signature = bits(&self.signer.sign_der(&tbs));
        seq(&[tbs, ecdsa_with_sha256(), signature])
    }
}

fn components(svns: &[u8]) -> Value {
    (0..16).map(|at| json!({"svn": svns.get(at).copied().unwrap_or(0), "category": "BIOS"})).collect()
}

/// TCB info with an up-to-date, an out-of-date and a revoked level, for the platform and for modules 1.x.
pub fn tcb_info() -> Value {
    let level = |sgx: &[u8], pce: u8, tdx: &[u8], status: &str, advisories: &[&str]| {
        json!({
            "tcb": {"sgxtcbcomponents": components(sgx), "pcesvn": pce, "tdxtcbcomponents": components(tdx)},
            "tcbDate": "2026-10-01T00:00:00Z", "tcbStatus": status, "advisoryIDs": advisories,
        })
    };
    let module = |svn: u8, status: &str, advisories: &[&str]| {
        json!({
            "tcb": {"isvsvn": svn}, "tcbDate": "2026-10-01T00:00:00Z", "tcbStatus": status,
            "advisoryIDs": advisories,
        })
    };
    let signer = "00".repeat(48);
    json!({
        "id": "TDX", "version": 3,
        "issueDate": "2026-11-10T00:00:00Z", "nextUpdate": "2026-12-10T00:00:00Z",
        "fmspc": "90C06F000000", "pceId": "0000", "tcbType": 0, "tcbEvaluationDataNumber": 18,
        "tdxModule": {"mrsigner": signer, "attributes": "00".repeat(8), "attributesMask": "FF".repeat(8)},
        "tdxModuleIdentities": [
            {
                "id": "TDX_03", "mrsigner": signer, "attributes": "00".repeat(8), "attributesMask": "FF".repeat(8),
                "tcbLevels": [module(3, "UpToDate", &[])],
            },
            {
                "id": "TDX_01", "mrsigner": signer, "attributes": "00".repeat(8), "attributesMask": "FF".repeat(8),
                "tcbLevels": [
                    module(6, "UpToDate", &[]),
                    module(4, "OutOfDate", &["INTEL-SA-00002"]),
                    module(2, "Revoked", &["INTEL-SA-00003"]),
                ],
            },
        ],
        "tcbLevels": [
            level(&[3, 3, 2, 2, 4, 1, 0, 5], 13, &[5, 0, 3], "UpToDate", &[]),
            level(&[2, 2, 2, 2, 3, 1, 0, 5], 13, &[5, 0, 2], "OutOfDate", &["INTEL-SA-00001"]),
            level(&[1, 1, 2, 2, 3, 1, 0, 5], 5, &[4, 0, 1], "Revoked", &["INTEL-SA-00009"]),
        ],
    })
}

pub fn qe_identity() -> Value {
    let level = |svn: u16, status: &str| json!({"tcb": {"isvsvn": svn}, "tcbDate": "2026-10-01T00:00:00Z", "tcbStatus": status});
    json!({
        "id": "TD_QE", "version": 2,
        "issueDate": "2026-11-10T00:00:00Z", "nextUpdate": "2026-12-10T00:00:00Z",
        "tcbEvaluationDataNumber": 18,
        "miscselect": "00000000", "miscselectMask": "FFFFFFFF",
        "attributes": "11000000000000000000000000000000", "attributesMask": "FBFFFFFFFFFFFFFF0000000000000000",
        "mrsigner": "DC".repeat(32), "isvprodid": 2,
        "tcbLevels": [level(4, "UpToDate"), level(3, "OutOfDate"), level(1, "Revoked")],
    })
}

/// A signed document: what is signed, and what is sent.
#[derive(Clone)]
pub struct Signed {
    pub value: Value,
    pub signer: Key,
    /// Done to the text after it is signed.
    pub tamper: fn(String) -> String,
}

impl Signed {
    fn new(value: Value) -> Self {
        Self { value, signer: Key::TcbSigner, tamper: |text| text }
    }

    fn text_and_signature(&self) -> (String, String) {
        let text = self.value.to_string();
        let signature = hex::encode(self.signer.sign_raw(text.as_bytes()));
        ((self.tamper)(text), signature)
    }
}

/// A whole attestation: evidence, what it is checked against, and when.
#[derive(Clone)]
pub struct Scenario {
    pub quote: QuoteSpec,
    pub root: CertSpec,
    pub ca: CertSpec,
    pub pck: CertSpec,
    /// What the quote has instead of PCK, authority and root.
    pub pck_chain: Option<Vec<CertSpec>>,
    pub tcb_signer: CertSpec,
    /// Between root and TCB signer.
    pub tcb_signer_issuer: Option<CertSpec>,
    /// Another signer for the QE identity.
    pub qe_signer: Option<CertSpec>,
    /// The authority as the collateral has it, if not as the quote has it.
    pub crl_ca: Option<CertSpec>,
    pub root_crl: CrlSpec,
    pub pck_crl: CrlSpec,
    pub tcb_info: Signed,
    pub qe_identity: Signed,
    /// Done to the collateral's file.
    pub document: fn(&mut Value),
    pub trusted: Vec<CertSpec>,
    pub event_log: Option<Vec<u8>>,
    pub policy: Policy,
    pub at: &'static str,
}

impl Scenario {
    /// A quote of this version with a body of this type.
    pub fn new(version: u16, body: u16) -> Self {
        let (root, ca) = (CertSpec::root(), CertSpec::ca());
        Self {
            quote: QuoteSpec::new(version, body),
            pck: CertSpec::pck(),
            pck_chain: None,
            tcb_signer: CertSpec::tcb_signer(),
            tcb_signer_issuer: None,
            qe_signer: None,
            crl_ca: None,
            root_crl: CrlSpec::new(&root),
            pck_crl: CrlSpec::new(&ca),
            tcb_info: Signed::new(tcb_info()),
            qe_identity: Signed::new(qe_identity()),
            document: |_| {},
            trusted: vec![root.clone()],
            event_log: None,
            // To the second: cases are made at both ends of what holds.
            policy: Policy { clock_tolerance_seconds: 0, ..Policy::default() },
            at: NOW,
            root,
            ca,
        }
    }

    /// Replaces Intel's extension of the PCK certificate.
    pub fn sgx(&mut self, extension: SgxExtension) {
        *self.pck.extension(SGX) = extension.der();
    }

    pub fn quote_bytes(&self) -> Vec<u8> {
        let chain = match &self.pck_chain {
            Some(chain) => chain.iter().collect(),
            None => vec![&self.pck, &self.ca, &self.root],
        };
        self.quote.bytes(pem(&chain).as_bytes())
    }

    pub fn collateral(&self) -> Vec<u8> {
        let signer_chain: Vec<_> =
            [Some(&self.tcb_signer), self.tcb_signer_issuer.as_ref(), Some(&self.root)]
                .into_iter()
                .flatten()
                .collect();
        let tcb_chain = pem(&signer_chain);
        let qe_chain = match &self.qe_signer {
            Some(signer) => pem(&[signer, &self.root]),
            None => tcb_chain.clone(),
        };
        let (tcb_info, tcb_info_signature) = self.tcb_info.text_and_signature();
        let (qe_identity, qe_identity_signature) = self.qe_identity.text_and_signature();
        let mut document = json!({
            "pck_crl_issuer_chain": pem(&[self.crl_ca.as_ref().unwrap_or(&self.ca), &self.root]),
            "root_ca_crl": hex::encode(self.root_crl.der()),
            "pck_crl": hex::encode(self.pck_crl.der()),
            "tcb_info_issuer_chain": tcb_chain,
            "tcb_info": tcb_info,
            "tcb_info_signature": tcb_info_signature,
            "qe_identity_issuer_chain": qe_chain,
            "qe_identity": qe_identity,
            "qe_identity_signature": qe_identity_signature,
        });
        (self.document)(&mut document);
        document.to_string().into_bytes()
    }

    pub fn roots(&self) -> TrustRoots {
        let mut roots = TrustRoots::none();
        self.trusted.iter().for_each(|root| roots.add(&root.der()).unwrap());
        roots
    }

    pub fn time(&self) -> UnixTime {
        self.at.parse().unwrap()
    }

    pub fn verify(&self) -> Verdict {
        let quote = self.quote_bytes();
        let collateral = Collateral::new(&self.collateral(), &self.roots());
        let evidence = Evidence { quote: &quote, event_log: self.event_log.as_deref() };
        verify(&evidence, &collateral, self.time(), &self.policy)
    }

    pub fn codes(&self) -> Vec<&'static str> {
        let verdict = self.verify();
        assert_eq!(verdict.is_accepted(), verdict.reasons.is_empty());
        verdict.reasons.codes().into_iter().map(|code| code.as_str()).collect()
    }
}
