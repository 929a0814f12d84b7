//! Evidence of our own making, for every product: right, and wrong in one way at a time. Each case must be
//! refused for exactly its reason.

mod pki;

use std::collections::BTreeSet;

use cloister_attestation::ear::{Attested, Flaw};
use cloister_attestation::snp::{
    Collateral, Evidence, Product, RevocationRule, TrustRoots, VekKind, authenticate,
};
use cloister_attestation::x509::{Moment, UnixTime};
use pki::cases::{ALL, SOME, flip_last};
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
fn what_a_policy_puts_up_with_is_known_of_the_claims() {
    type Row = (&'static str, fn(&mut Scenario), &'static [Flaw]);
    let rows: [Row; 6] = [
        ("nothing", |_| (), &[]),
        ("debug", |s| s.report[0x0a] |= 8, &[Flaw::HostMayLook]),
        ("migration agent", |s| s.report[0x0a] |= 4, &[Flaw::MayBeMoved]),
        ("unknown bit", |s| s.report[0x0f] |= 0x80, &[Flaw::UnknownBit]),
        ("provisional TCB", |s| s.report[0x1e0 + 7] -= 1, &[Flaw::FirmwareProvisional]),
        ("provisional firmware", |s| s.report[0x1ec] -= 1, &[Flaw::FirmwareProvisional]),
    ];
    for (name, change, flaws) in rows {
        let mut scenario = Scenario::new(Product::Genoa, 4, VekKind::Vcek);
        let allowed =
            r#"{"guest_policy": {"debug": "allowed", "migrate_ma": "allowed", "unknown": "allowed"}}"#;
        scenario.policy = serde_json::from_str(allowed).unwrap();
        scenario.policy.allow_provisional_firmware = true;
        change(&mut scenario);
        let verdict = scenario.verify();
        assert!(verdict.is_accepted(), "{name}: {:?}", verdict.reasons);
        assert_eq!(verdict.claims.unwrap().flaws(), flaws, "{name}");
    }
}

#[test]
fn wrong_evidence_is_refused_for_exactly_its_reason() {
    let everywhere = FULL.into_iter().flat_map(|product| {
        ALL.iter().map(move |(group, cases)| (*group, (product, 4, VekKind::Vcek), *cases))
    });
    let (mut wrong, mut names, mut count) = (Vec::new(), BTreeSet::new(), 0);
    for (group, (product, version, kind), cases) in everywhere.chain(SOME.iter().copied()) {
        for (name, change, expected) in cases {
            let mut scenario = Scenario::new(product, version, kind);
            change(&mut scenario);
            let mut found = codes(&scenario);
            found.sort_unstable();
            let mut expected = expected.to_vec();
            expected.sort_unstable();
            if found != expected {
                wrong.push(format!("{product}, {group}, {name}: {found:?} instead of {expected:?}"));
            }
            names.insert(*name);
            count += 1;
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    println!("SEV-SNP: {count} cases of {} names", names.len());
    assert!(names.len() >= 150, "{} names", names.len());
}

#[test]
fn there_are_no_two_cases_of_one_name() {
    let mut names = BTreeSet::new();
    // The VLEK's cases are the same for each product.
    let groups = SOME.iter().filter(|(group, ..)| !group.starts_with("VLEK of") || *group == "VLEK of Milan");
    for (name, ..) in ALL.iter().flat_map(|(_, cases)| *cases).chain(groups.flat_map(|(.., cases)| *cases)) {
        assert!(names.insert(name), "{name}");
    }
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

/// What the host may send beside what it should: certificates of the same names, and some of the same keys.
fn strangers(product: Product) -> [Vec<u8>; 5] {
    let scenario = Scenario::new(product, 5, VekKind::Vcek);
    let mut of_another_chip = scenario.vek.clone();
    of_another_chip.key = Subject::Vek(2);
    flip_last(of_another_chip.extension(amd!("4")));
    let mut expired = scenario.vek.clone();
    expired.not_after = "2026-11-01T00:00:00Z";
    let mut forged = scenario.vek.clone();
    forged.signer = RsaKey::Rogue;
    let mut expired_ask = scenario.ask.clone();
    expired_ask.not_after = "2026-11-01T00:00:00Z";
    let mut forged_ask = scenario.ask.clone();
    (forged_ask.key, forged_ask.signer) = (Subject::Rsa(RsaKey::Rogue), RsaKey::Rogue);
    [of_another_chip, expired, forged, expired_ask, forged_ask].map(|spec| spec.der())
}

#[test]
fn the_order_of_certificates_decides_nothing() {
    for product in FULL {
        let mut scenario = Scenario::new(product, 5, VekKind::Vcek);
        (scenario.send_vek, scenario.send_ask) = (false, false);
        let (vek, ask) = (scenario.vek.der(), scenario.ask.der());
        let [another, expired, forged, expired_ask, forged_ask] = strangers(product);
        let all = [vek, ask, another, expired, forged, expired_ask, forged_ask];
        for (left_out, expected) in [
            (&[][..], &[][..]),
            // Of the key that signed the report there are one that has expired and one that no authority signed.
            (&[0], &["certificate-signature"]),
            (&[0, 4], &["certificate-expired"]),
            (&[0, 3, 4], &["chip-id-mismatch", "report-signature"]),
            (&[1, 3, 4], &["certificate-expired"]),
            (&[1, 3, 4, 5], &["certificate-signature"]),
            (&[1, 3, 4, 5, 6], &["intermediate-missing"]),
        ] {
            let mut kept: Vec<_> =
                (0..all.len()).filter(|index| !left_out.contains(index)).map(|at| all[at].clone()).collect();
            for _ in 0..kept.len() {
                kept.rotate_left(1);
                for reversed in [false, true] {
                    scenario.more = kept.clone();
                    if reversed {
                        scenario.more.reverse();
                    }
                    assert_eq!(codes(&scenario), expected, "{product}, without {left_out:?}");
                }
            }
        }
    }
}

#[test]
fn a_revoked_or_expired_issuer_does_not_hide_the_one_that_is_good() {
    let mut scenario = Scenario::new(Product::Genoa, 5, VekKind::Vcek);
    let mut revoked = scenario.ask.clone();
    revoked.serial = vec![7];
    let mut crl = CrlSpec::new(Product::Genoa);
    crl.revoked = vec![vec![7]];
    scenario.crls = vec![crl];
    let good = std::mem::replace(&mut scenario.ask, revoked);
    assert_eq!(codes(&scenario), ["certificate-revoked"]);
    scenario.more = vec![good.der()];
    assert_eq!(codes(&scenario), [""; 0]);
    // Among roots of one key, too.
    let mut expired = scenario.trusted.clone();
    expired.not_after = "2026-11-01T00:00:00Z";
    let roots = |specs: &[&CertSpec]| {
        let mut roots = TrustRoots::none();
        specs.iter().for_each(|spec| roots.add(&spec.der()).unwrap());
        roots
    };
    for (trusted, expected) in [
        (&[&expired][..], &["certificate-expired"][..]),
        (&[&expired, &scenario.trusted], &[]),
        (&[&scenario.trusted, &expired], &[]),
    ] {
        let (report, vek, ask) = (scenario.signed_report(), scenario.vek.der(), good.der());
        let certificates = [&vek[..], &ask];
        let evidence = Evidence { report: &report, certificates: &certificates, certificate_table: None };
        let now: UnixTime = NOW.parse().unwrap();
        let verdict = authenticate(&evidence, &roots(trusted), &Collateral::default(), now);
        let found = verdict.map_or_else(|reasons| reasons.codes(), |_| Vec::new());
        assert_eq!(found.iter().map(|code| code.as_str()).collect::<Vec<_>>(), expected);
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
fn a_provider_may_be_required() {
    for product in Product::ALL {
        let mut scenario = Scenario::new(product, 3, VekKind::Vlek);
        scenario.policy.csp_id = Some(vec!["CN=cloud.example".into()]);
        assert_eq!(codes(&scenario), [""; 0], "{product}");
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
fn mitigations_that_are_in_place_are_enough() {
    let mut scenario = Scenario::new(Product::Milan, 5, VekKind::Vcek);
    scenario.policy.mitigations.launch = 0xb;
    scenario.policy.mitigations.current = 0x3b;
    assert_eq!(codes(&scenario), [""; 0]);
}

#[test]
fn a_verified_key_vouches_for_its_own_reports_while_its_chain_is_valid() {
    let first = Scenario::new(Product::Genoa, 5, VekKind::Vcek);
    let key = first.authenticate().unwrap().verified_vek().clone();
    let at = |text: &str| Moment::exactly(text.parse().unwrap());
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
