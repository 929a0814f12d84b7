//! The JSON schemas of policies and claims, held against what serde reads and writes and against the claims of whole evidence
//! of both TEEs, by a validator that knows nothing of either.
#![allow(clippy::duplicate_mod, reason = "what either vendor makes is written by the same DER writer")]

mod pki;
mod tdx_pki;

use boon::{Compiler, SchemaIndex, Schemas};
use cloister_attestation::claims::Claims;
use cloister_attestation::schema::{claims, snp_policy, tdx_policy};
use cloister_attestation::snp::{self, FirmwareVersion, Hex, Product, VekKind};
use cloister_attestation::tdx;
use cloister_attestation::x509::UnixTime;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

struct Validator(Schemas, SchemaIndex);

impl Validator {
    fn new(schema: Value) -> Self {
        let (mut schemas, mut compiler) = (Schemas::new(), Compiler::new());
        compiler.add_resource("schema.json", schema).unwrap();
        let index = compiler.compile("schema.json", &mut schemas).unwrap();
        Self(schemas, index)
    }

    fn accepts(&self, document: &Value) -> bool {
        self.0.validate(document, self.1).is_ok()
    }
}

/// Both serde and the schema must judge each document as the table says. (What no policy can mean, such as an empty list or a
/// minimum above its maximum, serde alone refuses.)
fn check_policies<P: DeserializeOwned>(schema: Value, rows: &[(Value, bool)]) {
    let schema = Validator::new(schema);
    for (document, good) in rows {
        let serde = serde_json::from_value::<P>(document.clone()).is_ok();
        assert_eq!((serde, schema.accepts(document)), (*good, *good), "{document}");
    }
}

#[test]
fn the_schema_of_snp_policies_accepts_what_serde_accepts() {
    let digest = "aB".repeat(48);
    check_policies::<snp::Policy>(
        snp_policy(),
        &[
            (json!({}), true),
            (serde_json::to_value(snp::Policy::default()).unwrap(), true),
            (json!({"measurement": [digest], "report_data": "00".repeat(64), "vmpl": [0, 1]}), true),
            (json!({"measurement": null}), true),
            (json!({"measurement": ["00"]}), false),
            (json!({"measurement": "00"}), false),
            (json!({"mesurement": []}), false),
            (json!({"report_data": "zz".repeat(64)}), false),
            (json!({"product": ["milan", "genoa", "turin", "venice"]}), true),
            (json!({"product": ["rome"]}), false),
            (json!({"signing_key": ["vlek"], "csp_id": ["x"]}), true),
            (json!({"signing_key": ["ask"]}), false),
            (json!({"revocation": "required"}), true),
            (json!({"revocation": "maybe"}), false),
            (json!({"guest_policy": {"debug": "allowed", "min_abi": "1.51"}}), true),
            (json!({"guest_policy": {"min_abi": "1"}}), false),
            (json!({"guest_policy": {"min_abi": "1.256"}}), false),
            (json!({"guest_policy": {"min_abi": "1.+05"}}), true),
            (json!({"guest_policy": {"debgu": "allowed"}}), false),
            (
                json!({"guest_policy": {"unknown": "allowed"}, "platform_info": {"unknown": "forbidden"}}),
                true,
            ),
            (json!({"guest_policy": {"unknown": "required"}}), false),
            (json!({"platform_info": {"tsme_en": "required"}}), true),
            (json!({"platform_info": {"tsme_en": true}}), false),
            (json!({"firmware": {"min_current": "1.55.39"}}), true),
            (json!({"firmware": {"min_current": "1.300.0"}}), false),
            (json!({"tcb": {"genoa": {"reported": {"snp": 255}}}}), true),
            (json!({"tcb": {"genoa": {"reported": {"snp": 256}}}}), false),
            (json!({"tcb": {"genoa": {"reported": {"ucode": 1}}}}), false),
            (json!({"tcb": {"genoa": {"max_reported": {"snp": 255, "fmc": null}}}}), true),
            (json!({"tcb": {"genoa": {"max_reported": {"snp": 256}}}}), false),
            (json!({"max_guest_svn": 7, "max_report_version": null}), true),
            (json!({"max_guest_svn": "7"}), false),
            (json!({"firmware": {"max_committed": "1.55.39"}, "guest_policy": {"max_abi": "1.55"}}), true),
            (json!({"firmware": {"max_committed": 1}}), false),
            (json!({"tcb": {"rome": {}}}), false),
            (json!({"mitigations": {"launch": 3}}), true),
            (json!({"mitigations": {"launch": -3}}), false),
            (json!({"min_guest_svn": 7, "allow_masked_chip_id": true}), true),
            (json!({"allow_masked_chip_id": 1}), false),
        ],
    );
}

/// The fields of an object, by dotted path, with `$ref`s followed; a map's keys are `<product>`. What is in a TCB version stays out.
fn fields(root: &Value, object: &Value, prefix: &str, found: &mut Vec<String>) {
    let object = match object["$ref"].as_str() {
        Some(reference) => root.pointer(reference.trim_start_matches('#')).unwrap(),
        None => object,
    };
    let levels = object["properties"]["bootloader"].is_object();
    let nested = object["additionalProperties"].is_object();
    match (levels, nested, object["properties"].as_object()) {
        (false, true, _) => {
            fields(root, &object["additionalProperties"], &format!("{prefix}.<product>"), found)
        }
        (false, false, Some(properties)) => {
            for (name, property) in properties {
                let path = if prefix.is_empty() { name.clone() } else { format!("{prefix}.{name}") };
                fields(root, property, &path, found);
            }
        }
        _ => found.push(prefix.to_owned()),
    }
}

#[test]
fn the_guide_has_every_field_of_a_policy_and_no_other() {
    let page = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/src/verification.md");
    let page = std::fs::read_to_string(page).unwrap();
    let (_, section) = page.split_once("### Every field").unwrap();
    let rows = section
        .lines()
        .take_while(|line| !line.starts_with("To trust"))
        .filter_map(|line| line.strip_prefix("| `")?.split_once('`').map(|(field, _)| field.to_owned()));
    let (schema, mut expected, mut rows) = (snp_policy(), Vec::new(), rows.collect::<Vec<_>>());
    fields(&schema, &schema, "", &mut expected);
    expected.sort();
    rows.sort();
    assert!(expected.len() > 50 && expected.iter().any(|field| field == "tcb.<product>.max_launch"));
    assert_eq!(rows, expected);
    for part in ["fmc", "bootloader", "tee", "snp", "microcode"] {
        assert!(section.contains(&format!("`{part}`")), "{part}");
    }
}

#[test]
fn times_and_versions_are_written_as_the_schema_says() {
    for (schema, value) in [
        (schemars::schema_for!(UnixTime), serde_json::to_value(UnixTime(1_700_000_000)).unwrap()),
        (
            schemars::schema_for!(FirmwareVersion),
            serde_json::to_value(FirmwareVersion { major: 1, minor: 0, build: 255 }).unwrap(),
        ),
        (schemars::schema_for!(Hex<2>), serde_json::to_value(Hex([0xab, 0])).unwrap()),
    ] {
        let validator = Validator::new(schema.to_value());
        assert!(validator.accepts(&value), "{value}");
        assert!(!validator.accepts(&json!(7)) && !validator.accepts(&json!("7")));
    }
}

#[test]
fn the_schema_of_tdx_policies_accepts_what_serde_accepts() {
    let digest = "aB".repeat(48);
    check_policies::<tdx::Policy>(
        tdx_policy(),
        &[
            (json!({}), true),
            (serde_json::to_value(tdx::Policy::default()).unwrap(), true),
            (
                json!({"mrtd": [digest], "rtmr0": [digest], "rtmr3": null, "report_data": "00".repeat(64)}),
                true,
            ),
            (json!({"mrtd": ["00"]}), false),
            (json!({"mrtd": "00"}), false),
            (json!({"mrdt": []}), false),
            (json!({"measurement": []}), false),
            (json!({"rtmr4": []}), false),
            (json!({"mrseam": [digest], "mrconfigid": [digest], "mrowner": [digest]}), true),
            (json!({"mrownerconfig": [digest], "mrservicetd": [digest]}), true),
            (json!({"xfam": ["e700060000000000"], "min_tee_tcb_svn": "03".repeat(16)}), true),
            (json!({"xfam": ["0x1", "0x602e7"]}), true),
            (json!({"xfam": null}), true),
            (json!({"xfam": ["0x"]}), false),
            (json!({"xfam": ["0x+1"]}), false),
            (json!({"xfam": ["602e7"]}), false),
            (json!({"xfam": ["0x000000000000602e7"]}), false),
            (json!({"min_tee_tcb_svn": "03"}), false),
            (json!({"platform_instance_id": ["66".repeat(16)], "fmspc": ["00806f050000"]}), true),
            (json!({"fmspc": "00806f050000"}), false),
            (json!({"quote_padding": "zero", "event_log": "if-given"}), true),
            (json!({"quote_padding": "some"}), false),
            (json!({"event_log": "maybe"}), false),
            (json!({"td_attributes": {"debug": "forbidden", "unknown": "allowed"}}), true),
            (json!({"td_attributes": {"unknown": "required"}}), false),
            (json!({"td_attributes": {"debgu": "forbidden"}}), false),
            (json!({"td_attributes": {"debug": "maybe"}}), false),
            (json!({"tcb": {"accepted": ["UpToDate", "SWHardeningNeeded", "TDRelaunchAdvised"]}}), true),
            (json!({"tcb": {"accepted": ["Fine"]}}), false),
            (json!({"tcb": {"min_evaluation_number": 18, "out_of_date_grace_days": 30}}), true),
            (json!({"tcb": {"min_evaluation_number": -1}}), false),
            (json!({"tcb": {"refused_advisories": ["INTEL-SA-01036"]}}), true),
            (json!({"tcb": {"refused_advisories": [1036]}}), false),
            (json!({"platform": {"smt_enabled": "forbidden"}}), true),
            (json!({"platform": {"smt": "allowed"}}), false),
        ],
    );
}

/// The claims of authentic evidence: every product and version of SNP reports, every version and type of TDX quotes.
fn all_claims() -> Vec<(String, Claims)> {
    let mut all = Vec::new();
    for product in Product::ALL {
        for (version, kind) in
            (2..=5).flat_map(|version| [(version, VekKind::Vcek), (version, VekKind::Vlek)])
        {
            let claims = pki::Scenario::new(product, version, kind).verify().claims.unwrap();
            all.push((format!("{product} v{version} {kind:?}"), claims.into()));
        }
    }
    for (version, body) in tdx_pki::KINDS {
        for log in [false, true] {
            let mut scenario = tdx_pki::Scenario::new(version, body);
            if log {
                scenario.event_log = Some(scenario.quote.measure(&tdx_pki::quote::usual_events()));
            }
            all.push((
                format!("v{version} type {body}, log {log}"),
                scenario.verify().claims.unwrap().into(),
            ));
        }
    }
    all
}

#[test]
fn the_claims_of_both_tees_are_of_one_schema() {
    let schema = Validator::new(claims());
    for (name, claims) in all_claims() {
        let document = serde_json::to_value(&claims).unwrap();
        assert!(schema.accepts(&document), "{name}: {document:#}");
        assert_eq!(document["tee"], claims.tee(), "{name}");
        // The name of the TEE decides what the rest must be, and what must be there is.
        let other = if claims.tee() == "snp" { "tdx" } else { "snp" };
        for (field, value) in [
            ("tee", json!(other)),
            ("tee", json!("none")),
            ("report_data", json!("00")),
            ("verified_at", json!(0)),
        ] {
            let mut wrong = document.clone();
            wrong[field] = value;
            assert!(!schema.accepts(&wrong), "{name}: wrong {field}");
        }
        for field in ["tee", "report_data", "trust_root", "verified_at"] {
            let mut without = document.clone();
            without.as_object_mut().unwrap().remove(field);
            assert!(!schema.accepts(&without), "{name}: without {field}");
        }
    }
}
