//! Real evidence that has been tampered with, through the program: each refused for its reason.

mod common;
#[path = "../../tests/vectors/negatives.rs"]
mod negatives;

use std::path::Path;

use common::{codes, json, run, vectors, write};
use negatives::{NEGATIVES, Negative, sorted};
use serde_json::Value;

fn verify(negative: &Negative, folder: &Path, temporary: &Path) -> (i32, Value) {
    let read = |name: &str| std::fs::read(folder.join(name)).unwrap();
    let (mut report, mut vek) = (read(negative.report), read(negative.vek));
    (negative.change)(&mut report, &mut vek);
    let (report, vek) = (write(temporary, "report", report), write(temporary, "vek", vek));
    let policy = write(temporary, "policy.toml", negative.policy());
    let certificates = if negative.in_table() { "--cert-table" } else { "--vek" };
    let mut arguments = vec!["verify", "snp", "--json", "--at", negative.at, "--report", &report];
    arguments.extend([certificates, &vek, "--policy", &policy]);
    let path = |name: &&str| folder.join(name).to_str().unwrap().to_owned();
    let (roots, crls): (Vec<_>, Vec<_>) =
        (negative.root.iter().map(path).collect(), negative.crls.iter().map(path).collect());
    arguments.extend(roots.iter().flat_map(|root| ["--trust-root", root]));
    arguments.extend(crls.iter().flat_map(|crl| ["--crl", crl]));
    run(&arguments)
}

#[test]
fn every_derived_snp_negative_is_refused_for_its_reason() {
    let Some(folder) = vectors("snp") else { return };
    let temporary = tempfile::tempdir().unwrap();
    for negative in NEGATIVES {
        let (code, verdict) = verify(negative, &folder, temporary.path());
        assert_eq!((code, &verdict["verdict"]), (1, &"rejected".into()), "{}", negative.name);
        // Each part of a TCB has a reason of its own.
        let mut codes = sorted(codes(&verdict));
        codes.dedup();
        assert_eq!(codes, sorted(negative.codes.to_vec()), "{}", negative.name);
        // Nothing of it is authentic, so that it claims nothing. (A CRL is demanded by the policy.)
        let only_crl = negative
            .codes
            .iter()
            .all(|code| ["crl-missing", "crl-expired", "crl-not-yet-valid"].contains(code));
        assert!(verdict["claims"].is_null() || only_crl, "{}", negative.name);
    }
}

#[test]
fn a_quote_with_the_collateral_of_another_fmspc_is_refused_for_it() {
    let Some(folder) = vectors("tdx") else { return };
    let expected = json(&folder.join("expected.json"));
    let cases = expected["cases"].as_array().unwrap();
    let fmspc = |collateral: &Value| collateral.as_str().unwrap().split('-').next().unwrap().to_owned();
    let mut pairs = 0;
    for (index, case) in cases.iter().enumerate() {
        let first = cases.iter().position(|other| other["quote"] == case["quote"]) == Some(index);
        for other in
            cases.iter().filter(|other| first && fmspc(&other["collateral"]) != fmspc(&case["collateral"]))
        {
            let path = |name: &Value| folder.join(name.as_str().unwrap()).to_str().unwrap().to_owned();
            let (quote, collateral) = (path(&case["quote"]), path(&other["collateral"]));
            // The time is the collateral's; whether it is the quote's, too, is another reason.
            let at = other["at_iso"].as_str().unwrap();
            let (code, verdict) =
                run(&["verify", "tdx", "--json", "--quote", &quote, "--collateral", &collateral, "--at", at]);
            assert_eq!(code, 1, "{quote} {collateral}");
            assert!(codes(&verdict).contains(&"fmspc-mismatch"), "{quote} {collateral}: {verdict}");
            assert!(verdict["claims"].is_null(), "{quote} {collateral}");
            pairs += 1;
        }
    }
    assert!(pairs >= 40, "{pairs} pairs");
}
