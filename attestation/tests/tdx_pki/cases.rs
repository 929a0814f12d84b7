//! Every way to be wrong, one at a time, and the reasons that evidence is refused for then.

use cloister_attestation::snp::{BitRule, Hex};
use cloister_attestation::tdx::{EventLogRule, PaddingRule, TcbStatus};
use serde_json::{Value, json};

use super::der::*;
use super::quote::*;
use super::*;

pub type Case = (&'static str, fn(&mut Scenario), &'static [&'static str]);

fn flip_last(bytes: &mut [u8]) {
    *bytes.last_mut().unwrap() ^= 1;
}

const FORM: &[Case] = &[
    ("version 3", |s| s.quote.header[0] = 3, &["quote-malformed"]),
    ("version 6", |s| s.quote.header[0] = 6, &["quote-malformed"]),
    ("an SGX quote", |s| s.quote.header[4] = 0, &["quote-malformed"]),
    ("key on P-384", |s| s.quote.header[2] = 3, &["quote-malformed"]),
    ("another vendor's quoting enclave", |s| flip_last(&mut s.quote.header[12..28]), &["qe-vendor"]),
    ("empty", |s| s.quote.cut = Some(0), &["quote-malformed"]),
    ("cut in the header", |s| s.quote.cut = Some(47), &["quote-malformed"]),
    ("cut in the body", |s| s.quote.cut = Some(500), &["quote-malformed"]),
    (
        "cut behind the body",
        |s| s.quote.cut = Some(s.quote.body_offset() + s.quote.body.len()),
        &["quote-malformed"],
    ),
    ("cut in the chain", |s| s.quote.cut = Some(2000), &["quote-malformed"]),
    ("signature data longer than the quote", |s| s.quote.length_lies[0] = 1, &["quote-malformed"]),
    (
        "signature data longer than what is in it",
        |s| {
            s.quote.length_lies[0] = 1;
            s.quote.padding = vec![0];
        },
        &["quote-malformed"],
    ),
    ("signature data too short", |s| s.quote.length_lies[0] = -1, &["quote-malformed"]),
    ("signature data of more than there can be", |s| s.quote.length_lies[0] = i32::MIN, &["quote-malformed"]),
    ("outer certification data too long", |s| s.quote.length_lies[1] = 1, &["quote-malformed"]),
    ("outer certification data too short", |s| s.quote.length_lies[1] = -1, &["quote-malformed"]),
    ("inner certification data too long", |s| s.quote.length_lies[2] = 1, &["quote-malformed"]),
    ("inner certification data too short", |s| s.quote.length_lies[2] = -1, &["quote-malformed"]),
    ("certification data without a QE report", |s| s.quote.outer_type = 5, &["quote-malformed"]),
    ("encrypted PPID instead of a chain", |s| s.quote.inner_type = 3, &["quote-malformed"]),
    ("far too long", |s| s.quote.padding = vec![0; 64 << 10], &["quote-malformed"]),
    ("chain that is none", |s| s.pck_chain = Some(vec![]), &["certificate-malformed"]),
    (
        "five certificates",
        |s| {
            s.pck_chain = Some(vec![s.pck.clone(), s.ca.clone(), s.root.clone(), s.ca.clone(), s.ca.clone()]);
        },
        &["certificate-malformed"],
    ),
    (
        "something else behind the chain",
        |s| {
            s.quote.after_chain = b"-----BEGIN CERTIFICATE-----".to_vec();
        },
        &["certificate-malformed"],
    ),
];

const SIGNATURES: &[Case] = &[
    (
        "MRTD changed",
        |s| {
            let at = s.quote.body_offset() + MRTD;
            s.quote.flips.push((at, 1));
        },
        &["quote-signature"],
    ),
    (
        "report data changed",
        |s| {
            let at = s.quote.body_offset() + REPORT_DATA + 63;
            s.quote.flips.push((at, 0x80));
        },
        &["quote-signature"],
    ),
    ("user data changed", |s| s.quote.flips.push((47, 1)), &["quote-signature"]),
    ("quote signed by another", |s| s.quote.quote_signer = Key::Rogue, &["quote-signature"]),
    (
        "attestation key of another",
        |s| {
            s.quote.attestation_key = Key::Rogue;
            s.quote.qe_report_data = Some(bound_to(Key::Attestation));
        },
        &["attestation-key", "quote-signature"],
    ),
    (
        "attestation key that the QE does not vouch for",
        |s| {
            s.quote.attestation_key = Key::Rogue;
            s.quote.quote_signer = Key::Rogue;
            s.quote.qe_report_data = Some(bound_to(Key::Attestation));
        },
        &["attestation-key"],
    ),
    (
        "QE report data longer than a hash",
        |s| {
            let mut data = bound_to(Key::Attestation);
            data[63] = 1;
            s.quote.qe_report_data = Some(data);
        },
        &["attestation-key"],
    ),
    (
        "QE authentication data changed",
        |s| {
            let at = s.quote.body_offset() + s.quote.body.len() + 4 + 128 + 6 + 384 + 64 + 2;
            s.quote.flips.push((at, 1));
        },
        &["attestation-key"],
    ),
    ("QE report signed by another", |s| s.quote.qe_report_signer = Key::Rogue, &["qe-report-signature"]),
    ("PCK of another platform", |s| s.pck.key = Key::Rogue, &["qe-report-signature"]),
];

/// What the quoting enclave says of a key.
fn bound_to(key: Key) -> [u8; 64] {
    use sha2::{Digest, Sha256};
    let auth: Vec<u8> = (0..32).collect();
    let mut data = [0; 64];
    data[..32].copy_from_slice(&Sha256::digest([&key.point()[..], &auth].concat()));
    data
}

const CHAIN: &[Case] = &[
    ("PCK signed by another", |s| s.pck.signer = Key::Rogue, &["certificate-signature"]),
    ("PCK issued by nobody here", |s| s.pck.issuer = "SGX PCK Other CA".into(), &["intermediate-missing"]),
    (
        "quote without the authority, which the collateral has",
        |s| {
            s.pck_chain = Some(vec![s.pck.clone()]);
        },
        &[],
    ),
    ("PCK expired", |s| s.pck.not_after = "2026-11-21T06:59:59Z", &["certificate-expired"]),
    ("PCK not yet valid", |s| s.pck.not_before = "2026-11-21T07:00:01Z", &["certificate-not-yet-valid"]),
    (
        "PCK at the ends of its time",
        |s| {
            s.pck.not_before = NOW;
            s.pck.not_after = NOW;
        },
        &[],
    ),
    ("PCK of another name", |s| s.pck.name = "SGX Something".into(), &["certificate-profile"]),
    (
        "PCK is an authority",
        |s| {
            *s.pck.extension(BASIC_CONSTRAINTS) = seq(&[tlv(1, &[0xff])]);
        },
        &["certificate-profile"],
    ),
    ("PCK may not sign", |s| *s.pck.extension(KEY_USAGE) = key_usage(CERT_SIGN), &["certificate-profile"]),
    (
        "PCK on another curve",
        |s| {
            let algorithm = seq(&[oid("1.2.840.10045.2.1"), oid("1.3.132.0.34")]);
            s.pck.raw_key = Some(seq(&[algorithm, bits(&[&[4][..], &[1; 96]].concat())]));
        },
        &["certificate-profile"],
    ),
    (
        "PCK with an unknown critical extension",
        |s| {
            s.pck.extensions.push(("1.2.3.4".into(), true, vec![5, 0]));
        },
        &["certificate-malformed"],
    ),
    (
        "PCK with an extension twice",
        |s| {
            let sgx = s.pck.extensions.last().unwrap().clone();
            s.pck.extensions.push(sgx);
        },
        &["certificate-malformed"],
    ),
    (
        "PCK claims another signature algorithm",
        |s| {
            s.pck.algorithm = seq(&[oid("1.2.840.10045.4.3.3")]);
        },
        &["certificate-signature"],
    ),
    (
        "PCK's signature algorithm has parameters",
        |s| {
            s.pck.algorithm = seq(&[oid("1.2.840.10045.4.3.2"), tlv(5, &[])]);
        },
        &["certificate-signature"],
    ),
    ("authority signed by another", |s| s.ca.signer = Key::Rogue, &["certificate-signature"]),
    ("authority expired", |s| s.ca.not_after = "2026-11-21T06:59:59Z", &["certificate-expired"]),
    ("authority is none", |s| *s.ca.extension(BASIC_CONSTRAINTS) = seq(&[]), &["certificate-profile"]),
    (
        "authority may not sign certificates",
        |s| {
            *s.ca.extension(KEY_USAGE) = key_usage(CRL_SIGN);
        },
        &["certificate-profile"],
    ),
    (
        "authority may not sign CRLs",
        |s| *s.ca.extension(KEY_USAGE) = key_usage(CERT_SIGN),
        &["crl-signature"],
    ),
    (
        "authority for something else",
        |s| {
            for name in [&mut s.ca.name, &mut s.pck.issuer, &mut s.pck_crl.issuer] {
                *name = "SGX Something CA".into();
            }
        },
        &["certificate-profile"],
    ),
    (
        "authority for processors",
        |s| {
            for name in [&mut s.ca.name, &mut s.pck.issuer, &mut s.pck_crl.issuer] {
                *name = "SGX PCK Processor CA".into();
            }
        },
        &[],
    ),
    (
        "authority with another certificate in the collateral",
        |s| {
            s.crl_ca = Some(CertSpec { serial: vec![9], ..s.ca.clone() });
        },
        &[],
    ),
    (
        "another's authority of the same name in the quote",
        |s| {
            s.crl_ca = Some(s.ca.clone());
            s.ca.key = Key::Rogue;
            s.ca.signer = Key::Rogue;
            s.pck.signer = Key::Rogue;
        },
        &["certificate-signature"],
    ),
    (
        "another authority of the same root and name in the quote",
        |s| {
            s.crl_ca = Some(s.ca.clone());
            s.ca.key = Key::Rogue;
            s.pck.signer = Key::Rogue;
        },
        &["crl-signature"],
    ),
    (
        "renewed authority in the quote, expired",
        |s| {
            s.crl_ca = Some(s.ca.clone());
            s.ca.not_after = "2026-11-21T06:59:59Z";
        },
        &["certificate-expired"],
    ),
    (
        "authority that the root revoked, in the quote only",
        |s| {
            s.crl_ca = Some(CertSpec { serial: vec![9], ..s.ca.clone() });
            s.root_crl.revoked.push(s.ca.serial.clone());
        },
        &["certificate-revoked"],
    ),
    ("no root is trusted", |s| s.trusted = vec![], &["root-untrusted"]),
    (
        "another root is trusted",
        |s| {
            let mut other = CertSpec::root();
            other.name = "SGX Root CA (others)".into();
            other.issuer = other.name.clone();
            s.trusted = vec![other];
        },
        &["root-untrusted"],
    ),
    (
        "another root of the same name is trusted",
        |s| {
            let mut other = CertSpec::root();
            other.key = Key::Rogue;
            other.signer = Key::Rogue;
            s.trusted = vec![other];
        },
        &["root-untrusted", "certificate-signature"],
    ),
    (
        "two roots are trusted",
        |s| {
            let mut other = CertSpec::root();
            other.key = Key::Rogue;
            other.signer = Key::Rogue;
            s.trusted.insert(0, other);
        },
        &[],
    ),
    (
        "root before the authority",
        |s| s.pck_chain = Some(vec![s.pck.clone(), s.root.clone(), s.ca.clone()]),
        &["intermediate-missing"],
    ),
    (
        "a stranger's certificate behind the root",
        |s| s.pck_chain = Some(vec![s.pck.clone(), s.ca.clone(), s.root.clone(), s.pck.clone()]),
        &["intermediate-missing", "root-untrusted"],
    ),
    (
        "quote brings a root of its own",
        |s| {
            let mut own = CertSpec::root();
            own.name = "SGX Root CA (own)".into();
            own.issuer = own.name.clone();
            s.pck_chain = Some(vec![s.pck.clone(), s.ca.clone(), own]);
        },
        &["root-untrusted", "intermediate-missing"],
    ),
    (
        "root expired",
        |s| {
            s.root.not_after = "2026-11-21T06:59:59Z";
            s.trusted = vec![s.root.clone()];
        },
        &["certificate-expired"],
    ),
];

const SGX_EXTENSION: &[Case] = &[
    ("no SGX extension", |s| s.pck.extensions.retain(|(own, ..)| own != SGX), &["pck-extension-malformed"]),
    ("SGX extension that is none", |s| *s.pck.extension(SGX) = vec![5, 0], &["pck-extension-malformed"]),
    ("no PPID", |s| s.sgx(SgxExtension::default().without("1")), &["pck-extension-malformed"]),
    ("no TCB", |s| s.sgx(SgxExtension::default().without("2")), &["pck-extension-malformed"]),
    ("no PCEID", |s| s.sgx(SgxExtension::default().without("3")), &["pck-extension-malformed"]),
    ("no FMSPC", |s| s.sgx(SgxExtension::default().without("4")), &["pck-extension-malformed"]),
    ("no SGX type", |s| s.sgx(SgxExtension::default().without("5")), &["pck-extension-malformed"]),
    (
        "TCB without components",
        |s| {
            s.sgx(SgxExtension::default().set("2", seq(&[])));
        },
        &["pck-extension-malformed"],
    ),
    (
        "FMSPC too short",
        |s| s.sgx(SgxExtension::default().set("4", tlv(4, &[1; 5]))),
        &["pck-extension-malformed"],
    ),
    (
        "FMSPC no octets",
        |s| s.sgx(SgxExtension::default().set("4", tlv(0x0c, &[1; 6]))),
        &["pck-extension-malformed"],
    ),
    (
        "SGX type no enumeration",
        |s| {
            s.sgx(SgxExtension::default().set("5", uint(&[1])));
        },
        &["pck-extension-malformed"],
    ),
    (
        "FMSPC twice",
        |s| {
            let mut extension = SgxExtension::default();
            extension.entries.push(("4".into(), tlv(4, &[1; 6])));
            s.sgx(extension);
        },
        &["pck-extension-malformed"],
    ),
    (
        "platform instance ID too long",
        |s| {
            s.sgx(SgxExtension::default().set("6", tlv(4, &[1; 17])));
        },
        &["pck-extension-malformed"],
    ),
    (
        "configuration without its flags",
        |s| {
            s.sgx(SgxExtension::default().set("7", seq(&[])));
        },
        &["pck-extension-malformed"],
    ),
    (
        "a single processor's, without instance and configuration",
        |s| {
            s.sgx(SgxExtension::default().without("6").without("7"));
        },
        &[],
    ),
    (
        "FMSPC of another model",
        |s| {
            s.sgx(SgxExtension::default().set("4", tlv(4, &[0xb0, 0xc0, 0x6f, 0, 0, 0])));
        },
        &["fmspc-mismatch"],
    ),
    ("PCEID of another", |s| s.sgx(SgxExtension::default().set("3", tlv(4, &[0, 1]))), &["pceid-mismatch"]),
];

const CRLS: &[Case] = &[
    ("PCK revoked", |s| s.pck_crl.revoked.push(s.pck.serial.clone()), &["certificate-revoked"]),
    ("authority revoked", |s| s.root_crl.revoked.push(s.ca.serial.clone()), &["certificate-revoked"]),
    (
        "TCB signer revoked",
        |s| s.root_crl.revoked.push(s.tcb_signer.serial.clone()),
        &["certificate-revoked"],
    ),
    ("root revoked by itself", |s| s.root_crl.revoked.push(s.root.serial.clone()), &["certificate-revoked"]),
    ("PCK's serial revoked by the root", |s| s.root_crl.revoked.push(s.pck.serial.clone()), &[]),
    ("nothing revoked", |s| s.root_crl.revoked.clear(), &[]),
    ("root's CRL signed by another", |s| s.root_crl.signer = Key::Rogue, &["crl-signature"]),
    ("PCK CRL signed by another", |s| s.pck_crl.signer = Key::Rogue, &["crl-signature"]),
    ("root's CRL of another", |s| s.root_crl.issuer = "Nobody".into(), &["crl-missing"]),
    ("PCK CRL of another", |s| s.pck_crl.issuer = "Nobody".into(), &["crl-missing"]),
    (
        "PCK CRL of the processors' authority",
        |s| {
            let mut processor = s.ca.clone();
            processor.name = "SGX PCK Processor CA".into();
            s.pck_crl.issuer = processor.name.clone();
            s.crl_ca = Some(processor);
        },
        &["crl-missing"],
    ),
    ("root's CRL expired", |s| s.root_crl.next_update = Some("2026-11-21T07:00:00Z"), &["crl-expired"]),
    ("PCK CRL expired", |s| s.pck_crl.next_update = Some("2026-11-21T07:00:00Z"), &["crl-expired"]),
    ("PCK CRL about to expire", |s| s.pck_crl.next_update = Some("2026-11-21T07:00:01Z"), &[]),
    ("PCK CRL of the future", |s| s.pck_crl.this_update = "2026-11-21T07:00:01Z", &["crl-not-yet-valid"]),
    ("PCK CRL for ever", |s| s.pck_crl.next_update = None, &["crl-expired"]),
    (
        "PCK CRL is a delta",
        |s| {
            s.pck_crl.extensions.push(("2.5.29.27".into(), true, vec![2, 1, 1]));
        },
        &["crl-malformed"],
    ),
    ("PCK CRL is none", |s| s.document = |d| d["pck_crl"] = "3000".into(), &["crl-malformed"]),
];

const DOCUMENTS: &[Case] = &[
    (
        "collateral without TCB info",
        |s| {
            s.document = |d| drop(d.as_object_mut().unwrap().remove("tcb_info"));
        },
        &["collateral-malformed"],
    ),
    ("collateral that is an array", |s| s.document = |d| *d = json!([]), &["collateral-malformed"]),
    (
        "CRL that is not hexadecimal",
        |s| s.document = |d| d["pck_crl"] = "zz".into(),
        &["collateral-malformed"],
    ),
    (
        "signature too short",
        |s| {
            s.document = |d| d["tcb_info_signature"] = "00".into();
        },
        &["collateral-malformed"],
    ),
    (
        "signer's chain that is none",
        |s| {
            s.document = |d| d["tcb_info_issuer_chain"] = "PEM".into();
        },
        &["certificate-malformed"],
    ),
    (
        "TCB info written again",
        |s| {
            s.tcb_info.tamper =
                |text| serde_json::to_string_pretty(&serde_json::from_str::<Value>(&text).unwrap()).unwrap();
        },
        &["tcb-info-signature"],
    ),
    (
        "TCB info changed",
        |s| s.tcb_info.tamper = |text| text.replace("OutOfDate", "UpToDate"),
        &["tcb-info-signature"],
    ),
    ("TCB info signed by another", |s| s.tcb_info.signer = Key::Rogue, &["tcb-info-signature"]),
    ("QE identity changed", |s| s.qe_identity.tamper = |text| text + " ", &["qe-identity-signature"]),
    ("QE identity signed by another", |s| s.qe_identity.signer = Key::Ca, &["qe-identity-signature"]),
    (
        "TCB info signed by the platforms' authority",
        |s| {
            s.tcb_signer = CertSpec {
                key: Key::TcbSigner,
                issuer: s.ca.name.clone(),
                signer: Key::Ca,
                ..s.tcb_signer.clone()
            };
            s.tcb_signer_issuer = Some(s.ca.clone());
        },
        &["collateral-signer"],
    ),
    (
        "TCB signer of another name",
        |s| s.tcb_signer.name = "SGX PCK Certificate".into(),
        &["collateral-signer"],
    ),
    (
        "TCB signer is an authority",
        |s| {
            *s.tcb_signer.extension(BASIC_CONSTRAINTS) = seq(&[tlv(1, &[0xff])]);
        },
        &["certificate-profile"],
    ),
    (
        "TCB signer may not sign",
        |s| {
            *s.tcb_signer.extension(KEY_USAGE) = key_usage(CRL_SIGN);
        },
        &["certificate-profile"],
    ),
    ("TCB signer signed by another", |s| s.tcb_signer.signer = Key::Rogue, &["certificate-signature"]),
    ("TCB signer expired", |s| s.tcb_signer.not_after = "2026-11-21T06:59:59Z", &["certificate-expired"]),
    (
        "QE identity with a signer of its own",
        |s| {
            let signer = CertSpec { serial: vec![8], key: Key::Rogue, ..s.tcb_signer.clone() };
            s.qe_identity.signer = Key::Rogue;
            s.qe_signer = Some(signer);
        },
        &[],
    ),
    (
        "QE identity's own signer revoked",
        |s| {
            let signer = CertSpec { serial: vec![8], key: Key::Rogue, ..s.tcb_signer.clone() };
            s.qe_identity.signer = Key::Rogue;
            s.root_crl.revoked.push(vec![8]);
            s.qe_signer = Some(signer);
        },
        &["certificate-revoked"],
    ),
    (
        "QE identity's own signer appointed by nobody",
        |s| {
            let signer =
                CertSpec { serial: vec![8], key: Key::Rogue, signer: Key::Rogue, ..s.tcb_signer.clone() };
            s.qe_identity.signer = Key::Rogue;
            s.qe_signer = Some(signer);
        },
        &["certificate-signature"],
    ),
    (
        "TCB info expired",
        |s| s.tcb_info.value["nextUpdate"] = "2026-11-21T06:59:59Z".into(),
        &["collateral-expired"],
    ),
    ("TCB info at its last second", |s| s.tcb_info.value["nextUpdate"] = NOW.into(), &[]),
    (
        "TCB info of the future",
        |s| {
            s.tcb_info.value["issueDate"] = "2026-11-21T07:00:01Z".into();
        },
        &["collateral-not-yet-valid"],
    ),
    (
        "QE identity expired",
        |s| {
            s.qe_identity.value["nextUpdate"] = "2026-11-21T06:59:59Z".into();
        },
        &["collateral-expired"],
    ),
    (
        "QE identity of the future",
        |s| {
            s.qe_identity.value["issueDate"] = "2026-11-21T07:00:01Z".into();
        },
        &["collateral-not-yet-valid"],
    ),
    ("TCB info for SGX", |s| s.tcb_info.value["id"] = "SGX".into(), &["collateral-malformed"]),
    ("TCB info of version 2", |s| s.tcb_info.value["version"] = 2.into(), &["collateral-malformed"]),
    ("TCB info of version 4", |s| s.tcb_info.value["version"] = 4.into(), &["collateral-malformed"]),
    ("TCB info of another type", |s| s.tcb_info.value["tcbType"] = 1.into(), &["collateral-malformed"]),
    (
        "TCB info with a field that nobody knows",
        |s| {
            s.tcb_info.value["tcbLevelsExcept"] = json!([]);
        },
        &["collateral-malformed"],
    ),
    (
        "TCB info with fifteen components",
        |s| {
            s.tcb_info.value["tcbLevels"][0]["tcb"]["tdxtcbcomponents"].as_array_mut().unwrap().pop();
        },
        &["collateral-malformed"],
    ),
    (
        "TCB info without a module",
        |s| {
            s.tcb_info.value.as_object_mut().unwrap().remove("tdxModule");
        },
        &["collateral-malformed"],
    ),
    (
        "TCB info with a status that is none",
        |s| {
            s.tcb_info.value["tcbLevels"][0]["tcbStatus"] = "TDRelaunchAdvised".into();
        },
        &["collateral-malformed"],
    ),
    (
        "QE identity of the SGX quoting enclave",
        |s| s.qe_identity.value["id"] = "QE".into(),
        &["collateral-malformed"],
    ),
    ("QE identity of version 3", |s| s.qe_identity.value["version"] = 3.into(), &["collateral-malformed"]),
    (
        "QE identity with a date that is none",
        |s| {
            s.qe_identity.value["nextUpdate"] = "tomorrow".into();
        },
        &["collateral-malformed"],
    ),
];

const ENCLAVE: &[Case] = &[
    ("QE of another signer", |s| s.quote.qe(QE_MRSIGNER, &[1]), &["qe-identity"]),
    ("QE is another product", |s| s.quote.qe(QE_ISVPRODID, &[1]), &["qe-identity"]),
    ("QE with MISCSELECT", |s| s.quote.qe(QE_MISCSELECT, &[1]), &["qe-identity"]),
    ("QE without an attribute", |s| s.quote.qe(QE_ATTRIBUTES, &[0x10]), &["qe-identity"]),
    ("QE with another attribute", |s| s.quote.qe(QE_ATTRIBUTES + 1, &[1]), &["qe-identity"]),
    ("QE with an attribute that the mask leaves open", |s| s.quote.qe(QE_ATTRIBUTES, &[0x15]), &[]),
    ("QE that can be debugged", |s| s.quote.qe(QE_ATTRIBUTES, &[0x13]), &["qe-identity"]),
    (
        "QE that can be debugged, which the mask leaves open",
        |s| {
            s.qe_identity.value["attributesMask"] = "F9FFFFFFFFFFFFFF0000000000000000".into();
            s.quote.qe(QE_ATTRIBUTES, &[0x13]);
        },
        &["qe-identity"],
    ),
    ("QE out of date", |s| s.quote.qe(QE_ISVSVN, &[3]), &["tcb-status"]),
    ("QE revoked", |s| s.quote.qe(QE_ISVSVN, &[2]), &["tcb-revoked"]),
    ("QE below every level", |s| s.quote.qe(QE_ISVSVN, &[0]), &["tcb-level"]),
    ("QE newer than every level", |s| s.quote.qe(QE_ISVSVN, &[0, 1]), &[]),
];

/// Sets both TEE_TCB_SVNs, as far as the report has them.
fn svn(s: &mut Scenario, svns: &[u8]) {
    s.quote.set(TEE_TCB_SVN, svns);
    if s.quote.body.len() > 584 {
        s.quote.set(TEE_TCB_SVN2, svns);
    }
}

const TCB: &[Case] = &[
    ("module signed by another", |s| s.quote.set(MRSIGNERSEAM, &[1]), &["tdx-module"]),
    ("module with attributes", |s| s.quote.set(SEAM_ATTRIBUTES, &[1]), &["tdx-module"]),
    (
        "module with attributes that the mask leaves open",
        |s| {
            s.tcb_info.value["tdxModuleIdentities"][1]["attributesMask"] = "00".repeat(8).into();
            s.quote.set(SEAM_ATTRIBUTES, &[1]);
        },
        &["tdx-module"],
    ),
    (
        "module's identity has another signer",
        |s| {
            s.tcb_info.value["tdxModuleIdentities"][1]["mrsigner"] = "11".repeat(48).into();
        },
        &["tdx-module"],
    ),
    (
        "another module's identity has another signer",
        |s| {
            s.tcb_info.value["tdxModuleIdentities"][0]["mrsigner"] = "11".repeat(48).into();
            s.tcb_info.value["tdxModule"]["mrsigner"] = "11".repeat(48).into();
        },
        &[],
    ),
    ("module of the first kind, by the platform's levels", |s| svn(s, &[5, 0, 3]), &[]),
    (
        "module of the first kind with another signer",
        |s| {
            svn(s, &[5, 0, 3]);
            s.tcb_info.value["tdxModule"]["mrsigner"] = "11".repeat(48).into();
        },
        &["tdx-module"],
    ),
    ("module of the first kind, out of date", |s| svn(s, &[4, 0, 3]), &["tcb-revoked"]),
    ("module of another version", |s| svn(s, &[3, 3, 3]), &[]),
    ("module of a version that nobody knows", |s| svn(s, &[9, 2, 3]), &["tcb-level"]),
    (
        "no identities for modules at all",
        |s| {
            s.tcb_info.value.as_object_mut().unwrap().remove("tdxModuleIdentities");
        },
        &["tcb-level"],
    ),
    ("module out of date", |s| svn(s, &[4, 1, 3]), &["tcb-status"]),
    ("module revoked", |s| svn(s, &[2, 1, 3]), &["tcb-revoked"]),
    ("module below every level", |s| svn(s, &[1, 1, 3]), &["tcb-level"]),
    ("platform's TDX component out of date", |s| svn(s, &[6, 1, 2]), &["tcb-status"]),
    ("platform's TDX component below every level", |s| svn(s, &[6, 1, 0]), &["tcb-level"]),
    ("platform's SGX component out of date", |s| s.sgx(SgxExtension::default().svn(1, 2)), &["tcb-status"]),
    (
        "SGX component below what CPUSVN says",
        |s| s.sgx(SgxExtension::default().svn_alone(8, 4)),
        &["tcb-level"],
    ),
    (
        "platform's last SGX component below every level",
        |s| {
            s.sgx(SgxExtension::default().svn(8, 4));
        },
        &["tcb-level"],
    ),
    (
        "PCE too old for all but a revoked level",
        |s| s.sgx(SgxExtension::default().svn(17, 12)),
        &["tcb-revoked"],
    ),
    ("PCE below every level", |s| s.sgx(SgxExtension::default().svn(17, 4)), &["tcb-level"]),
    ("platform revoked", |s| s.sgx(SgxExtension::default().svn(2, 1)), &["tcb-revoked"]),
    (
        "revoked, accepted by a policy",
        |s| {
            s.sgx(SgxExtension::default().svn(2, 1));
            s.policy.tcb.accepted.push(TcbStatus::Revoked);
        },
        &["tcb-revoked"],
    ),
    ("platform newer than every level", |s| s.sgx(SgxExtension::default().svn(1, 9)), &[]),
    (
        "levels in another order",
        |s| {
            s.tcb_info.value["tcbLevels"].as_array_mut().unwrap().reverse();
            s.tcb_info.value["tdxModuleIdentities"][1]["tcbLevels"].as_array_mut().unwrap().reverse();
            s.qe_identity.value["tcbLevels"].as_array_mut().unwrap().reverse();
        },
        &[],
    ),
    ("no levels", |s| s.tcb_info.value["tcbLevels"] = json!([]), &["tcb-level"]),
    (
        "configuration needed",
        |s| {
            s.tcb_info.value["tcbLevels"][0]["tcbStatus"] = "ConfigurationNeeded".into();
        },
        &["tcb-status"],
    ),
    (
        "hardening needed and accepted",
        |s| {
            s.tcb_info.value["tcbLevels"][0]["tcbStatus"] = "SWHardeningNeeded".into();
            s.policy.tcb.accepted.push(TcbStatus::SWHardeningNeeded);
        },
        &[],
    ),
    (
        "out of date and accepted",
        |s| {
            svn(s, &[4, 1, 3]);
            s.policy.tcb.accepted.push(TcbStatus::OutOfDate);
        },
        &[],
    ),
    (
        "configuration needed and out of date, either accepted alone",
        |s| {
            s.tcb_info.value["tcbLevels"][0]["tcbStatus"] = "ConfigurationNeeded".into();
            svn(s, &[4, 1, 3]);
            s.policy.tcb.accepted.extend([TcbStatus::OutOfDate, TcbStatus::ConfigurationNeeded]);
        },
        &["tcb-status"],
    ),
    (
        "out of date within its grace",
        |s| {
            svn(s, &[4, 1, 3]);
            s.policy.tcb.out_of_date_grace_days = 52;
        },
        &[],
    ),
    (
        "out of date beyond its grace",
        |s| {
            svn(s, &[4, 1, 3]);
            s.policy.tcb.out_of_date_grace_days = 51;
        },
        &["tcb-status"],
    ),
    (
        "configuration needed within a grace that is not for that",
        |s| {
            s.tcb_info.value["tcbLevels"][0]["tcbStatus"] = "ConfigurationNeeded".into();
            s.policy.tcb.out_of_date_grace_days = 1000;
        },
        &["tcb-status"],
    ),
];

const POLICY: &[Case] = &[
    ("MRTD on the list", |s| s.policy.mrtd = Some(vec![Hex([0; 48]), Hex([0x3e; 48])]), &[]),
    ("MRTD not on the list", |s| s.policy.mrtd = Some(vec![Hex([0; 48])]), &["mrtd"]),
    (
        "RTMRs on the lists",
        |s| {
            s.policy.rtmr0 = Some(vec![Hex([0xa0; 48])]);
            s.policy.rtmr1 = Some(vec![Hex([0xa1; 48])]);
            s.policy.rtmr2 = Some(vec![Hex([0xa2; 48])]);
            s.policy.rtmr3 = Some(vec![Hex([0xa3; 48])]);
        },
        &[],
    ),
    ("RTMR0 not on the list", |s| s.policy.rtmr0 = Some(vec![Hex([0xa1; 48])]), &["rtmr"]),
    ("RTMR1 not on the list", |s| s.policy.rtmr1 = Some(vec![]), &["rtmr"]),
    ("RTMR2 not on the list", |s| s.policy.rtmr2 = Some(vec![]), &["rtmr"]),
    ("RTMR3 not on the list", |s| s.policy.rtmr3 = Some(vec![]), &["rtmr"]),
    ("report data as expected", |s| s.policy.report_data = Some(Hex([0xda; 64])), &[]),
    ("report data of another question", |s| s.policy.report_data = Some(Hex([0; 64])), &["report-data"]),
    ("report data that begins as expected", |s| s.quote.set(REPORT_DATA + 32, &[0; 32]), &[]),
    (
        "report data as expected in its first half only",
        |s| {
            s.quote.set(REPORT_DATA + 63, &[0]);
            s.policy.report_data = Some(Hex([0xda; 64]));
        },
        &["report-data"],
    ),
    ("module not on the list", |s| s.policy.mrseam = Some(vec![Hex([0; 48])]), &["mrseam"]),
    ("module on the list", |s| s.policy.mrseam = Some(vec![Hex([0x5e; 48])]), &[]),
    (
        "MRCONFIGID not on the list",
        |s| {
            s.quote.set(MRCONFIGID, &[1]);
            s.policy.mrconfigid = Some(vec![Hex([0; 48])]);
        },
        &["mrconfigid"],
    ),
    (
        "MROWNER not on the list",
        |s| {
            s.quote.set(MROWNER, &[1]);
            s.policy.mrowner = Some(vec![Hex([0; 48])]);
        },
        &["mrowner"],
    ),
    (
        "MROWNERCONFIG not on the list",
        |s| {
            s.quote.set(MROWNERCONFIG, &[1]);
            s.policy.mrownerconfig = Some(vec![Hex([0; 48])]);
        },
        &["mrownerconfig"],
    ),
    ("XFAM not on the list", |s| s.policy.xfam = Some(vec![Hex([3, 0, 0, 0, 0, 0, 0, 0])]), &["xfam"]),
    ("XFAM on the list", |s| s.policy.xfam = Some(vec![Hex([0xe7, 2, 6, 0, 0, 0, 0, 0])]), &[]),
    ("debug", |s| s.quote.set(TD_ATTRIBUTES, &[1]), &["td-attributes-forbidden"]),
    (
        "debug, allowed",
        |s| {
            s.quote.set(TD_ATTRIBUTES, &[1]);
            s.policy.td_attributes.debug = BitRule::Allowed;
        },
        &[],
    ),
    ("profiling", |s| s.quote.set(TD_ATTRIBUTES, &[0x20]), &["td-attributes-forbidden"]),
    ("migratable", |s| s.quote.set(TD_ATTRIBUTES + 3, &[0x30]), &["td-attributes-forbidden"]),
    ("PKS", |s| s.quote.set(TD_ATTRIBUTES + 3, &[0x50]), &[]),
    (
        "PKS, forbidden",
        |s| {
            s.quote.set(TD_ATTRIBUTES + 3, &[0x50]);
            s.policy.td_attributes.pks = BitRule::Forbidden;
        },
        &["td-attributes-forbidden"],
    ),
    ("PERFMON", |s| s.quote.set(TD_ATTRIBUTES + 7, &[0x80]), &[]),
    (
        "PERFMON, forbidden",
        |s| {
            s.quote.set(TD_ATTRIBUTES + 7, &[0x80]);
            s.policy.td_attributes.perfmon = BitRule::Forbidden;
        },
        &["td-attributes-forbidden"],
    ),
    (
        "an attribute that nobody knows",
        |s| s.quote.set(TD_ATTRIBUTES + 5, &[1]),
        &["td-attributes-forbidden"],
    ),
    ("no SEPT_VE_DISABLE", |s| s.quote.set(TD_ATTRIBUTES + 3, &[0]), &["td-attributes-required"]),
    (
        "no SEPT_VE_DISABLE, allowed",
        |s| {
            s.quote.set(TD_ATTRIBUTES + 3, &[0]);
            s.policy.td_attributes.sept_ve_disable = BitRule::Allowed;
        },
        &[],
    ),
    (
        "TEE_TCB_SVN too low",
        |s| {
            let mut least = [0; 16];
            least[2] = 4;
            s.policy.min_tee_tcb_svn = Some(Hex(least));
        },
        &["tee-tcb-svn"],
    ),
    (
        "TEE_TCB_SVN high enough",
        |s| {
            let mut least = [0; 16];
            least[2] = 3;
            s.policy.min_tee_tcb_svn = Some(Hex(least));
        },
        &[],
    ),
    (
        "advisory that is refused",
        |s| {
            svn(s, &[4, 1, 3]);
            s.policy.tcb.accepted.push(TcbStatus::OutOfDate);
            s.policy.tcb.refused_advisories = vec!["intel-sa-00002".into()];
        },
        &["tcb-advisory"],
    ),
    (
        "advisory that does not apply",
        |s| s.policy.tcb.refused_advisories = vec!["INTEL-SA-00002".into()],
        &[],
    ),
    ("evaluation too old", |s| s.policy.tcb.min_evaluation_number = 19, &["tcb-evaluation-number"]),
    (
        "QE identity's evaluation too old",
        |s| {
            s.qe_identity.value["tcbEvaluationDataNumber"] = 17.into();
            s.policy.tcb.min_evaluation_number = 18;
        },
        &["tcb-evaluation-number"],
    ),
    (
        "platform not on the list",
        |s| {
            s.policy.platform_instance_id = Some(vec![Hex([0; 16])]);
        },
        &["platform-instance-id"],
    ),
    ("platform on the list", |s| s.policy.platform_instance_id = Some(vec![Hex([0x66; 16])]), &[]),
    (
        "platform without an ID and a list",
        |s| {
            s.sgx(SgxExtension::default().without("6"));
            s.policy.platform_instance_id = Some(vec![Hex([0; 16])]);
        },
        &["platform-instance-id"],
    ),
    ("model not on the list", |s| s.policy.fmspc = Some(vec![Hex([0; 6])]), &["fmspc"]),
    ("model on the list", |s| s.policy.fmspc = Some(vec![Hex(FMSPC)]), &[]),
    ("SMT, forbidden", |s| s.policy.platform.smt_enabled = BitRule::Forbidden, &["platform-configuration"]),
    (
        "dynamic platform, forbidden",
        |s| {
            s.policy.platform.dynamic_platform = BitRule::Forbidden;
        },
        &["platform-configuration"],
    ),
    (
        "cached keys, required",
        |s| s.policy.platform.cached_keys = BitRule::Required,
        &["platform-configuration"],
    ),
    ("zeros behind the quote", |s| s.quote.padding = vec![0; 3000], &[]),
    (
        "zeros behind the quote, none allowed",
        |s| {
            s.quote.padding = vec![0];
            s.policy.quote_padding = PaddingRule::None;
        },
        &["quote-padding"],
    ),
    ("something behind the quote", |s| s.quote.padding = vec![0, 1], &["quote-padding"]),
    (
        "something behind the quote, allowed",
        |s| {
            s.quote.padding = vec![0, 1];
            s.policy.quote_padding = PaddingRule::Any;
        },
        &[],
    ),
];

const EVENT_LOG: &[Case] = &[
    ("log that leads to the RTMRs", |s| s.event_log = Some(s.quote.measure(&usual_events())), &[]),
    (
        "log in a padded area",
        |s| {
            let mut log = s.quote.measure(&usual_events());
            log.resize(4096, 0xff);
            s.event_log = Some(log);
        },
        &[],
    ),
    (
        "log required and given",
        |s| {
            s.event_log = Some(s.quote.measure(&usual_events()));
            s.policy.event_log = EventLogRule::Required;
        },
        &[],
    ),
    ("log required and not given", |s| s.policy.event_log = EventLogRule::Required, &["event-log-missing"]),
    ("log that is none", |s| s.event_log = Some(b"log".to_vec()), &["event-log-malformed"]),
    (
        "log cut short",
        |s| {
            let mut log = s.quote.measure(&usual_events());
            log.pop();
            s.event_log = Some(log);
        },
        &["event-log-malformed"],
    ),
    ("log of another guest", |s| s.event_log = Some(log(&usual_events())), &["event-log-replay"]),
    (
        "log with an event less",
        |s| {
            s.quote.measure(&usual_events());
            s.event_log = Some(log(&usual_events()[..5]));
        },
        &["event-log-replay"],
    ),
    (
        "log with two events swapped",
        |s| {
            let mut events = usual_events();
            s.quote.measure(&events);
            events.swap(2, 3);
            s.event_log = Some(log(&events));
        },
        &["event-log-replay"],
    ),
    (
        "log with an event in another register",
        |s| {
            let mut events = usual_events();
            s.quote.measure(&events);
            events[2].register = 3;
            s.event_log = Some(log(&events));
        },
        &["event-log-replay"],
    ),
    (
        "log that tells another command line",
        |s| {
            let mut events = usual_events();
            s.quote.measure(&events);
            events[5].data = b"kernel_cmdline: root=/dev/evil\0".to_vec();
            s.event_log = Some(log(&events));
        },
        &["event-log-inconsistent"],
    ),
    (
        "log that tells another variable",
        |s| {
            let mut events = usual_events();
            s.quote.measure(&events);
            events[0].data = b"SecureToot".to_vec();
            s.event_log = Some(log(&events));
        },
        &["event-log-inconsistent"],
    ),
    (
        "log with a second separator",
        |s| {
            let mut events = usual_events();
            events.push(event(1, 4, &[0; 4]));
            s.event_log = Some(s.quote.measure(&events));
        },
        &["event-log-inconsistent"],
    ),
    (
        "log with events that extend nothing",
        |s| {
            let mut events = usual_events();
            events.push(LogEvent { register: 0, kind: 3, digest: [0; 48], data: b"nothing".to_vec() });
            s.event_log = Some(s.quote.measure(&events));
        },
        &[],
    ),
];

/// All of them, for quotes of every kind.
pub const ALL: &[(&str, &[Case])] = &[
    ("form", FORM),
    ("signatures", SIGNATURES),
    ("chain", CHAIN),
    ("SGX extension", SGX_EXTENSION),
    ("CRLs", CRLS),
    ("documents", DOCUMENTS),
    ("enclave", ENCLAVE),
    ("TCB", TCB),
    ("policy", POLICY),
    ("event log", EVENT_LOG),
];

/// Those that only quotes of version 5 can have.
pub const VERSION_5: &[Case] = &[
    ("body of a type that nobody knows", |s| s.quote.descriptor = Some((5, 648)), &["quote-malformed"]),
    ("body of an enclave", |s| s.quote.descriptor = Some((1, 384)), &["quote-malformed"]),
    ("body of another type's size", |s| s.quote.descriptor.as_mut().unwrap().1 += 1, &["quote-malformed"]),
    ("body of no size", |s| s.quote.descriptor.as_mut().unwrap().1 = 0, &["quote-malformed"]),
];

/// Those that only TD reports of TDX 1.5 can have.
pub const TDX_1_5: &[Case] = &[
    ("launched out of date, updated since", |s| s.quote.set(TEE_TCB_SVN, &[4, 1, 3]), &["tcb-status"]),
    (
        "launched out of date, updated since, accepted",
        |s| {
            s.quote.set(TEE_TCB_SVN, &[4, 1, 3]);
            s.policy.tcb.accepted.push(TcbStatus::TDRelaunchAdvised);
        },
        &[],
    ),
    (
        "launched out of date, updated since, configuration needed",
        |s| {
            s.quote.set(TEE_TCB_SVN, &[4, 1, 3]);
            s.tcb_info.value["tcbLevels"][0]["tcbStatus"] = "ConfigurationNeeded".into();
            s.policy.tcb.accepted.push(TcbStatus::TDRelaunchAdvised);
        },
        &["tcb-status"],
    ),
    ("launched revoked, updated since", |s| s.quote.set(TEE_TCB_SVN, &[2, 1, 3]), &["tcb-revoked"]),
    ("out of date now", |s| s.quote.set(TEE_TCB_SVN2, &[4, 1, 3]), &["tcb-status"]),
    ("revoked now", |s| s.quote.set(TEE_TCB_SVN2, &[2, 1, 3]), &["tcb-revoked"]),
    ("below every level now", |s| s.quote.set(TEE_TCB_SVN2, &[1, 1, 3]), &["tcb-level"]),
    ("of a module now that nobody knows", |s| s.quote.set(TEE_TCB_SVN2, &[6, 2, 3]), &["tcb-level"]),
    (
        "advisory to what runs now",
        |s| {
            s.quote.set(TEE_TCB_SVN2, &[4, 1, 3]);
            s.policy.tcb.accepted.push(TcbStatus::OutOfDate);
            s.policy.tcb.refused_advisories = vec!["INTEL-SA-00002".into()];
        },
        &["tcb-advisory"],
    ),
    (
        "TEE_TCB_SVN2 too low",
        |s| {
            s.quote.set(TEE_TCB_SVN, &[7, 1, 3]);
            let mut least = [0; 16];
            least[0] = 7;
            s.policy.min_tee_tcb_svn = Some(Hex(least));
        },
        &["tee-tcb-svn"],
    ),
    ("a service TD", |s| s.quote.set(MRSERVICETD, &[1]), &["mrservicetd"]),
    (
        "a service TD on the list",
        |s| {
            s.quote.set(MRSERVICETD, &[1; 48]);
            s.policy.mrservicetd = Some(vec![Hex([1; 48])]);
        },
        &[],
    ),
    (
        "no service TD where one must be",
        |s| s.policy.mrservicetd = Some(vec![Hex([1; 48])]),
        &["mrservicetd"],
    ),
];

/// Those that only TD reports of TDX 1.5ex can have.
pub const TDX_1_5_EX: &[Case] = &[
    ("extended service TDs", |s| s.quote.set(TD_ATTRIBUTES + 2, &[2]), &["td-attributes-forbidden"]),
    (
        "another service TD now than at launch",
        |s| {
            s.quote.set(TD_ATTRIBUTES + 2, &[2]);
            s.policy.td_attributes.servtd_ext = BitRule::Allowed;
            s.quote.set(MRSERVICETD, &[1; 48]);
            s.quote.set(CUR_SERVTD_HASH, &[2; 48]);
            s.policy.mrservicetd = Some(vec![Hex([1; 48])]);
        },
        &["mrservicetd"],
    ),
    (
        "service TDs of then and now on the list",
        |s| {
            s.quote.set(TD_ATTRIBUTES + 2, &[2]);
            s.policy.td_attributes.servtd_ext = BitRule::Allowed;
            s.quote.set(MRSERVICETD, &[1; 48]);
            s.quote.set(CUR_SERVTD_HASH, &[2; 48]);
            s.policy.mrservicetd = Some(vec![Hex([1; 48]), Hex([2; 48])]);
        },
        &[],
    ),
];
