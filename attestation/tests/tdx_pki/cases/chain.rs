//! Certificates and CRLs that are wrong.

use super::Case;
use crate::tdx_pki::der::*;
use crate::tdx_pki::{CertSpec, Key, NOW, SGX, SgxExtension};

pub const CHAIN: &[Case] = &[
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

pub const SGX_EXTENSION: &[Case] = &[
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

pub const CRLS: &[Case] = &[
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
