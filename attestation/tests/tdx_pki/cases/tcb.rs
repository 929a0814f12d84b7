//! Documents that are wrong, and what right ones refuse.

use cloister_attestation::tdx::TcbStatus;
use serde_json::{Value, json};

use super::{Case, svn};
use crate::tdx_pki::der::*;
use crate::tdx_pki::quote::*;
use crate::tdx_pki::{CertSpec, Key, NOW, SgxExtension};

pub const DOCUMENTS: &[Case] = &[
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

pub const ENCLAVE: &[Case] = &[
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
pub const TCB: &[Case] = &[
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
        "out of date within its grace, beside an enclave that is old and up to date",
        |s| {
            svn(s, &[4, 1, 3]);
            s.qe_identity.value["tcbLevels"][0]["tcbDate"] = "2020-01-01T00:00:00Z".into();
            s.policy.tcb.out_of_date_grace_days = 52;
        },
        &[],
    ),
    (
        "two parts out of date, one of them beyond its grace",
        |s| {
            svn(s, &[4, 1, 2]);
            s.tcb_info.value["tdxModuleIdentities"][1]["tcbLevels"][1]["tcbDate"] =
                "2026-09-30T00:00:00Z".into();
            s.policy.tcb.out_of_date_grace_days = 52;
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
