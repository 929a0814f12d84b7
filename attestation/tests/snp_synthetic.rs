//! Evidence of our own making, for every product: right, and wrong in one way at a time. Each case must be
//! refused for exactly its reason.

mod pki;

use cloister_attestation::snp::{Policy, Product, RevocationRule, TcbMinimum, TcbRules, VekKind};
use pki::cases::{ALL, flip_last};
use pki::*;

fn codes(scenario: &Scenario) -> Vec<&'static str> {
    let verdict = scenario.verify();
    assert_eq!(verdict.is_accepted(), verdict.reasons.is_empty());
    verdict.reasons.codes().into_iter().map(|code| code.as_str()).collect()
}

#[test]
fn right_evidence_is_accepted() {
    for product in Product::ALL {
        for version in 2..=5 {
            for kind in [VekKind::Vcek, VekKind::Vlek] {
                let mut scenario = Scenario::new(product, version, kind);
                assert_eq!(codes(&scenario), [""; 0], "{product} v{version} {kind:?}");
                scenario.crls.push(CrlSpec::new(product));
                scenario.policy.revocation = RevocationRule::Required;
                scenario.in_table = true;
                assert_eq!(codes(&scenario), [""; 0], "{product} v{version} {kind:?} table, CRL");
            }
        }
    }
}

#[test]
fn wrong_evidence_is_refused_for_exactly_its_reason() {
    let mut wrong = Vec::new();
    let mut count = 0;
    for product in FULL {
        for (group, cases) in ALL {
            for (name, change, expected) in *cases {
                let mut scenario = Scenario::new(product, 4, VekKind::Vcek);
                change(&mut scenario);
                let found = codes(&scenario);
                let mut expected = expected.to_vec();
                expected.sort_unstable();
                let mut sorted = found.clone();
                sorted.sort_unstable();
                if sorted != expected {
                    wrong.push(format!("{product}, {group}, {name}: {found:?} instead of {expected:?}"));
                }
                count += 1;
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    println!("{count} cases");
}

#[test]
fn what_only_some_products_have_is_checked_on_them() {
    let turin = || Scenario::new(Product::Turin, 5, VekKind::Vcek);
    let mut no_fmc = turin();
    no_fmc.vek.remove(amd!("3.9"));
    assert_eq!(codes(&no_fmc), ["vek-extension-malformed"]);
    let mut other_fmc = turin();
    other_fmc.report[0x180] += 1;
    assert_eq!(codes(&other_fmc), ["tcb-mismatch"]);
    let mut fmc_too_low = turin();
    let rules = TcbRules { reported: TcbMinimum { fmc: 2, ..Default::default() }, ..Default::default() };
    fmc_too_low.policy.tcb.insert(Product::Turin, rules);
    assert_eq!(codes(&fmc_too_low), ["tcb-too-low"]);
    // A minimum that the product cannot have is never met.
    let mut milan = Scenario::new(Product::Milan, 5, VekKind::Vcek);
    milan.policy.tcb.insert(Product::Milan, rules);
    assert_eq!(codes(&milan), ["tcb-too-low"]);
}

#[test]
fn a_certificate_of_another_product_is_refused() {
    for (report, certificate) in
        [(Product::Milan, Product::Genoa), (Product::Genoa, Product::Turin), (Product::Turin, Product::Milan)]
    {
        let mut scenario = Scenario::new(certificate, 3, VekKind::Vcek);
        let other = Scenario::new(report, 3, VekKind::Vcek);
        scenario.report[0x188..0x18b].copy_from_slice(&other.report[0x188..0x18b]);
        assert_eq!(codes(&scenario), ["product-mismatch"], "{report} {certificate}");
    }
}

#[test]
fn both_encodings_of_hwid_are_read() {
    for product in Product::ALL {
        let mut scenario = Scenario::new(product, 3, VekKind::Vcek);
        let hwid = scenario.vek.extension(amd!("4"));
        *hwid = [&[4, hwid.len() as u8], &hwid[..]].concat();
        assert_eq!(codes(&scenario), [""; 0], "{product}");
        flip_last(scenario.vek.extension(amd!("4")));
        assert_eq!(codes(&scenario), ["chip-id-mismatch"], "{product}");
    }
}

#[test]
fn a_vlek_is_its_providers_and_nobody_elses() {
    for product in Product::ALL {
        let vlek = || Scenario::new(product, 3, VekKind::Vlek);
        let with = |policy: Policy| codes(&Scenario { policy, ..vlek() });
        let csp = |id: &str| Policy { csp_id: Some(vec![id.into()]), ..Policy::default() };
        assert_eq!(with(csp("CN=cloud.example")), [""; 0]);
        assert_eq!(with(csp("CN=other.example")), ["csp-id"]);
        assert_eq!(with(Policy { signing_key: vec![VekKind::Vcek], ..Policy::default() }), ["signing-key"]);
        let mut anonymous = vlek();
        anonymous.vek.remove(amd!("5"));
        assert_eq!(codes(&anonymous), ["vek-extension-malformed"]);
        let mut vcek_issued = vlek();
        vcek_issued.ask = CertSpec::ask(product, VekKind::Vcek);
        vcek_issued.vek.issuer = vcek_issued.ask.names[0].clone();
        assert_eq!(codes(&vcek_issued), ["intermediate-missing"]);
    }
}

#[test]
fn several_faults_are_all_named() {
    let mut scenario = Scenario::new(Product::Genoa, 5, VekKind::Vcek);
    scenario.report[0x180] -= 1;
    scenario.report[0x1a0] ^= 1;
    scenario.report_signer = 2;
    scenario.vek.not_after = "2026-11-01T00:00:00Z";
    scenario.ask.signer = RsaKey::Rogue;
    let expected = [
        "certificate-signature",
        "tcb-mismatch",
        "chip-id-mismatch",
        "report-signature",
        "certificate-expired",
    ];
    assert_eq!(codes(&scenario), expected);
    let mut scenario = Scenario::new(Product::Genoa, 5, VekKind::Vcek);
    scenario.report[0x0a] |= 8;
    scenario.report[0x30] = 3;
    scenario.policy.measurement = Some(vec![]);
    assert_eq!(codes(&scenario), ["measurement", "vmpl", "guest-policy-forbidden"]);
}

#[test]
fn reserved_bits_of_old_reports_are_reserved() {
    let mut scenario = Scenario::new(Product::Milan, 2, VekKind::Vcek);
    scenario.report[0x188] = 0x19;
    assert_eq!(codes(&scenario), ["report-malformed"]);
    let mut scenario = Scenario::new(Product::Milan, 5, VekKind::Vcek);
    scenario.policy.mitigations.launch = 0xb;
    scenario.policy.mitigations.current = 0x3b;
    assert_eq!(codes(&scenario), [""; 0]);
}

#[test]
fn venice_needs_a_root_of_the_callers() {
    let mut scenario = Scenario::new(Product::Venice, 5, VekKind::Vcek);
    assert_eq!(codes(&scenario), [""; 0]);
    scenario.trusted = Scenario::new(Product::Turin, 5, VekKind::Vcek).trusted;
    assert_eq!(codes(&scenario), ["root-untrusted"]);
    let mut microcode = Scenario::new(Product::Venice, 5, VekKind::Vcek);
    microcode.report[0x187] = 1;
    assert_eq!(codes(&microcode), ["tcb-mismatch"]);
}

#[test]
fn a_verified_key_vouches_for_its_own_reports_while_its_chain_is_valid() {
    let first = Scenario::new(Product::Genoa, 5, VekKind::Vcek);
    let key = first.authenticate().unwrap().verified_vek().clone();
    let at = |text: &str| text.parse().unwrap();
    let codes = |report: &[u8], time| match key.authenticate(report, time) {
        Ok(authentic) => {
            assert_eq!(authentic.claims().tee, "snp");
            Vec::new()
        }
        Err(reasons) => reasons.codes().into_iter().map(|code| code.as_str()).collect(),
    };
    let mut second = first.clone();
    second.report[0x50] ^= 1;
    assert_eq!(codes(&first.signed_report(), at(NOW)), [""; 0]);
    assert_eq!(codes(&second.signed_report(), at(NOW)), [""; 0]);
    assert_eq!(codes(&first.signed_report(), at("2000-01-01T00:00:00Z"))[0], "certificate-not-yet-valid");
    assert_eq!(codes(&first.signed_report(), at("2100-01-01T00:00:00Z"))[0], "certificate-expired");
    assert_eq!(codes(b"", at(NOW)), ["report-malformed"]);
    let mut forged = first.signed_report();
    forged[0x50] ^= 1;
    assert_eq!(codes(&forged, at(NOW)), ["report-signature"]);
    let mut stranger = first.clone();
    stranger.report_signer = 2;
    assert_eq!(codes(&stranger.signed_report(), at(NOW)), ["report-signature"]);
    let turin = Scenario::new(Product::Turin, 5, VekKind::Vcek).signed_report();
    assert_eq!(codes(&turin, at(NOW))[..2], ["product-mismatch", "tcb-mismatch"]);
    let vlek = Scenario::new(Product::Genoa, 5, VekKind::Vlek).signed_report();
    assert!(codes(&vlek, at(NOW)).contains(&"vek-missing"));
}
