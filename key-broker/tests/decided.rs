//! Nothing is left open by default: what a configuration does not decide about TCB and revocation, the broker refuses to start
//! with, for both TEEs alike; and what was current at the start counts as absent when it has expired.
//!
//! The evidence is of the attestation crate's tests' own making.
// Each maker of evidence brings the one DER writer.
#![allow(clippy::duplicate_mod)]

#[path = "../../attestation/tests/pki/mod.rs"]
mod pki;
#[path = "../../attestation/tests/tdx_pki/mod.rs"]
mod tdx_pki;

use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use cloister_attestation::snp::{Product, VekKind, table};
use cloister_attestation::x509::UnixTime;
use cloister_broker::config::Config;
use cloister_broker::verify::{Judge, Judgement, Verifier};
use cloister_kbs::Tee;
use serde_json::{Value, json};

/// What the evidence of both has.
const REPORT_DATA: [u8; 64] = [0xda; 64];
const MINIMUM: &str = "[tcb.genoa.reported]\nbootloader = 10\nsnp = 23\nmicrocode = 84\n";
/// After everything that has an end has ended.
const LATE: &str = "2028-01-01T00:00:00Z";

fn at(time: &str) -> SystemTime {
    let UnixTime(seconds) = time.parse().unwrap();
    UNIX_EPOCH + Duration::from_secs(seconds)
}

fn open(dir: &Path, text: &str, time: &str) -> Result<Verifier, String> {
    let path = dir.join("broker.toml");
    let fixed = "listen = [\"unix:x\"]\n";
    std::fs::write(&path, format!("{fixed}{text}\n[store]\npath = \"s\"\nkey_file = \"k\"\n")).unwrap();
    Verifier::open(&Config::load(&path).map_err(|e| e.to_string())?, at(time))
}

fn judge(verifier: &Verifier, tee: Tee, evidence: &Value, time: &str) -> Result<Judgement, String> {
    verifier
        .judge(tee, evidence.clone(), &REPORT_DATA, at(time))
        .map_err(|problem| problem.detail().to_owned())
}

fn snp_scenario() -> pki::Scenario {
    pki::Scenario::new(Product::Genoa, 3, VekKind::Vcek)
}

fn snp_evidence(scenario: &pki::Scenario) -> Value {
    let (vek, ask) = (scenario.vek.der(), scenario.ask.der());
    let entries = [(table::EntryKind::VCEK, &vek), (table::EntryKind::ASK, &ask)];
    let entries = entries.map(|(kind, blob)| table::Entry { kind, blob });
    json!({
        "report": BASE64_STANDARD.encode(scenario.signed_report()),
        "certificate_table": BASE64_STANDARD.encode(table::build(&entries).unwrap()),
    })
}

/// A configuration that serves SEV-SNP.
fn snp(policy: Option<&str>, crl: Option<&pki::CrlSpec>, accepted: &str, dir: &Path) -> String {
    std::fs::write(dir.join("ark.der"), snp_scenario().trusted.der()).unwrap();
    let crls = crl.map(|crl| std::fs::write(dir.join("crl.der"), crl.der()).unwrap());
    let evidence = policy.map(|text| std::fs::write(dir.join("evidence.toml"), text).unwrap());
    format!(
        "[trust]\nroots = [\"ark.der\"]\n{}\n[policy]\n{}\naccept_unchecked = [{accepted}]\n",
        crls.map_or("", |()| "crls = [\"crl.der\"]"),
        evidence.map_or("", |()| "evidence = \"evidence.toml\""),
    )
}

#[test]
fn for_snp_a_minimum_tcb_and_a_current_crl_or_words() {
    let dir = tempfile::tempdir().unwrap();
    let current = pki::CrlSpec::new(Product::Genoa);
    let stale = pki::CrlSpec { next_update: Some("2026-11-20T00:00:00Z"), ..current.clone() };
    let endless = pki::CrlSpec { next_update: None, ..current.clone() };
    let early = pki::CrlSpec { this_update: "2026-11-22T00:00:00Z", ..current.clone() };
    let forged = pki::CrlSpec { signer: pki::RsaKey::Ask, ..current.clone() };
    let policies = [
        ("no policy", None, false),
        ("an empty policy", Some(""), false),
        ("a product without minimum", Some("[tcb.genoa]\n"), false),
        ("a minimum of zeros", Some("[tcb.genoa.reported]\nsnp = 0\n"), false),
        ("one product of two", Some("[tcb.genoa.reported]\nsnp = 23\n[tcb.milan]\n"), false),
        ("a minimum", Some(MINIMUM), true),
    ];
    let lists = [
        ("no CRL", None, false),
        ("a stale CRL", Some(&stale), false),
        ("a CRL without end", Some(&endless), false),
        ("a CRL of tomorrow", Some(&early), false),
        ("somebody's CRL", Some(&forged), false),
        ("a current CRL", Some(&current), true),
    ];
    for (policy_name, policy, has_minimum) in policies {
        for (crl_name, crl, has_crl) in lists {
            for (accepted, tcb, revocation) in [
                ("", false, false),
                ("\"tcb\"", true, false),
                ("\"revocation\"", false, true),
                ("\"tcb\", \"revocation\"", true, true),
            ] {
                let text = snp(policy, crl, accepted, dir.path());
                let opened = open(dir.path(), &text, pki::NOW);
                let name = format!("{policy_name}, {crl_name}, accepting [{accepted}]");
                match (has_minimum || tcb, has_crl || revocation) {
                    (true, true) => assert!(opened.is_ok(), "{name}: {:?}", opened.err()),
                    (false, _) => {
                        let error = opened.err().expect(&name);
                        assert!(
                            error.contains("minimum TCB") && error.contains("[\"tcb\"]"),
                            "{name}: {error}"
                        );
                    }
                    (true, false) => {
                        let error = opened.err().expect(&name);
                        assert!(
                            error.contains("CRL") && error.contains("[\"revocation\"]"),
                            "{name}: {error}"
                        );
                    }
                }
                for file in ["crl.der", "evidence.toml"] {
                    let _ = std::fs::remove_file(dir.path().join(file));
                }
            }
        }
    }
    let typo = snp(Some(MINIMUM), Some(&current), "\"everything\"", dir.path());
    assert!(open(dir.path(), &typo, pki::NOW).is_err());
}

#[test]
fn for_snp_each_attestation_decides_again() {
    let dir = tempfile::tempdir().unwrap();
    let (current, evidence) = (pki::CrlSpec::new(Product::Genoa), snp_evidence(&snp_scenario()));
    let strict = open(dir.path(), &snp(Some(MINIMUM), Some(&current), "", dir.path()), pki::NOW).unwrap();
    let good = judge(&strict, Tee::Snp, &evidence, pki::NOW).unwrap();
    assert!(good.unchecked.is_empty());
    let late = judge(&strict, Tee::Snp, &evidence, LATE).unwrap_err();
    assert!(late.contains("crl-expired"), "the CRL expired while the broker ran: {late}");
    assert!(judge(&strict, Tee::Tdx, &json!({}), pki::NOW).is_err(), "TDX is not configured");

    let mut rolled_back = snp_scenario();
    rolled_back.set(0x180, &[9, 0, 0, 0, 0, 0, 23, 84]);
    let low = judge(&strict, Tee::Snp, &snp_evidence(&rolled_back), pki::NOW).unwrap_err();
    assert!(low.contains("tcb"), "{low}");

    // In words, it is accepted, and said of each.
    let both = "\"tcb\", \"revocation\"";
    let lax = open(dir.path(), &snp(None, Some(&current), both, dir.path()), LATE).unwrap();
    assert_eq!(judge(&lax, Tee::Snp, &evidence, LATE).unwrap().unchecked, ["tcb", "revocation"]);
    let zeros = snp(Some("[tcb.genoa]\n"), Some(&current), "\"tcb\"", dir.path());
    let zeros = open(dir.path(), &zeros, pki::NOW).unwrap();
    assert_eq!(judge(&zeros, Tee::Snp, &evidence, pki::NOW).unwrap().unchecked, ["tcb"]);
    // What a CRL revokes is refused whatever its age, and whatever is accepted without.
    let revoked = pki::CrlSpec {
        revoked: vec![snp_scenario().ask.serial.clone()],
        next_update: Some("2026-11-20T00:00:00Z"),
        ..current
    };
    let lax = open(dir.path(), &snp(None, Some(&revoked), both, dir.path()), pki::NOW).unwrap();
    assert!(judge(&lax, Tee::Snp, &evidence, pki::NOW).unwrap_err().contains("certificate-revoked"));
}

fn tdx(scenario: &tdx_pki::Scenario, accepted: &str, dir: &Path) -> String {
    std::fs::write(dir.join("root.der"), scenario.root.der()).unwrap();
    std::fs::write(dir.join("collateral.json"), scenario.collateral()).unwrap();
    let policy = match accepted {
        "" => String::new(),
        words => format!("[policy]\naccept_unchecked = [{words}]\n"),
    };
    format!("[trust.tdx]\nroots = [\"root.der\"]\ncollateral = [\"collateral.json\"]\n{policy}")
}

#[test]
fn for_tdx_nothing_can_be_left_open() {
    let dir = tempfile::tempdir().unwrap();
    type Change = (&'static str, fn(&mut tdx_pki::Scenario));
    let changes: [Change; 6] = [
        ("a stale CRL of the root", |s| s.root_crl.next_update = Some("2026-11-20T00:00:00Z")),
        ("a stale CRL of the authority", |s| s.pck_crl.next_update = Some("2026-11-20T00:00:00Z")),
        ("somebody's CRL", |s| s.pck_crl.signer = tdx_pki::Key::Rogue),
        ("no CRL", |s| s.document = |document| document["pck_crl"] = json!("")),
        ("no CRL of the root", |s| s.document = |document| document["root_ca_crl"] = json!("")),
        ("an old TCB info", |s| s.tcb_info.value["nextUpdate"] = json!("2026-11-20T00:00:00Z")),
    ];
    for (name, change) in changes {
        for accepted in ["", "\"tcb\", \"revocation\""] {
            let mut scenario = tdx_pki::Scenario::new(4, 2);
            change(&mut scenario);
            // With words, SEV-SNP is served too, and says nothing against it.
            let opened = open(dir.path(), &tdx(&scenario, accepted, dir.path()), tdx_pki::NOW);
            let error = opened.err().expect(name);
            assert!(error.contains("TDX"), "{name}, accepting [{accepted}]: {error}");
        }
    }
    let scenario = tdx_pki::Scenario::new(4, 2);
    let strict = open(dir.path(), &tdx(&scenario, "", dir.path()), tdx_pki::NOW).unwrap();
    assert!(strict.serves(Tee::Tdx) && !strict.serves(Tee::Snp));
    let late = open(dir.path(), &tdx(&scenario, "", dir.path()), LATE).err().unwrap();
    assert!(late.contains("another time"), "{late}");
}

#[test]
fn for_tdx_each_attestation_decides_again() {
    let dir = tempfile::tempdir().unwrap();
    let scenario = tdx_pki::Scenario::new(4, 2);
    let evidence = json!({"quote": BASE64_STANDARD.encode(scenario.quote_bytes())});
    let strict = open(dir.path(), &tdx(&scenario, "", dir.path()), tdx_pki::NOW).unwrap();
    let good = judge(&strict, Tee::Tdx, &evidence, tdx_pki::NOW).unwrap();
    assert!(good.unchecked.is_empty());
    let late = judge(&strict, Tee::Tdx, &evidence, LATE).unwrap_err();
    assert!(late.contains("expired"), "{late}");
}

#[test]
fn a_configuration_that_says_nothing_serves_nobody() {
    let dir = tempfile::tempdir().unwrap();
    assert!(open(dir.path(), "", pki::NOW).err().unwrap().contains("no evidence can be judged"));
}
