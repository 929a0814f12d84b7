//! The same evidence before the `sev` crate, an independent implementation. It answers a smaller question: do
//! these three certificates form a chain of signatures, and did the last one's key sign this report? So whatever
//! it refuses must be refused here, and what only we refuse must be for a reason that it does not look at.

mod pki;

use std::path::PathBuf;

use cloister_attestation::snp::{Product, VekKind};
use pki::Scenario;
use pki::cases::ALL;
use sev::certs::snp::{Chain, Verifiable};
use sev::firmware::guest::AttestationReport;
use sev::parser::ByteParser;

fn sev_accepts(ark: &[u8], ask: &[u8], vek: &[u8], report: &[u8]) -> bool {
    let verify = || {
        let chain = Chain::from_der(ark, ask, vek).ok()?;
        let report = AttestationReport::from_bytes(report).ok()?;
        (&chain, &report).verify().ok()
    };
    verify().is_some()
}

/// Reasons that the peer looks at too. It must refuse what we refuse for one of these, but for [`KNOWN`].
const SHARED: &[&str] =
    &["report-malformed", "signature-malformed", "report-signature", "certificate-signature"];

/// Where the peer accepts although we refuse for a shared reason, and why.
const KNOWN: &[(&str, &str)] = &[
    ("version 6", "it reads a version that it does not know as version 5"),
    ("another algorithm", "it does not look at SIGNATURE_ALGO"),
    ("reserved after the signature in use", "it does not read what follows the signature"),
    ("reserved KEY_INFO", "it does not look at KEY_INFO"),
    ("r too wide", "it uses the first 48 of the 72 bytes"),
    ("s too wide", "likewise"),
    ("salt of another length declared", "it takes the parameters of the signature for granted"),
    ("another hash declared", "likewise"),
    ("intermediate with a short key", "it accepts keys of 2048 bits"),
];

#[test]
fn the_peer_refuses_nothing_that_is_accepted_here_but_old_reports_without_a_chip() {
    for product in Product::ALL {
        for version in 2..=5 {
            for kind in [VekKind::Vcek, VekKind::Vlek] {
                let s = Scenario::new(product, version, kind);
                assert!(s.verify().is_accepted());
                let accepted = sev_accepts(&s.trusted.der(), &s.ask.der(), &s.vek.der(), &s.signed_report());
                // It guesses the product of a version 2 report from CHIP_ID, which is zero under a VLEK.
                let guesses = version == 2 && kind == VekKind::Vlek;
                assert_eq!(accepted, !guesses, "{product} v{version} {kind:?}");
            }
        }
    }
}

#[test]
fn disagreements_over_wrong_evidence_are_all_named() {
    let mut unexplained = Vec::new();
    let mut seen = Vec::new();
    for product in pki::FULL {
        for (group, cases) in ALL {
            for (name, change, _) in *cases {
                let mut s = Scenario::new(product, 4, VekKind::Vcek);
                change(&mut s);
                let ours = s.verify();
                let peer = sev_accepts(&s.trusted.der(), &s.ask.der(), &s.vek.der(), &s.signed_report());
                if ours.is_accepted() && !peer {
                    unexplained.push(format!("{product}, {group}, {name}: only the peer refuses"));
                }
                let shared = ours.reasons.iter().any(|reason| SHARED.contains(&reason.code.as_str()));
                if !(shared && peer) {
                    continue;
                }
                seen.push(name);
                if !KNOWN.iter().any(|(known, _)| known == name) {
                    unexplained.push(format!(
                        "{product}, {group}, {name}: only we refuse: {:?}",
                        ours.reasons.codes()
                    ));
                }
            }
        }
    }
    for (known, _) in KNOWN.iter().filter(|(known, _)| !seen.contains(&known)) {
        unexplained.push(format!("{known}: named as a disagreement and none"));
    }
    assert!(unexplained.is_empty(), "{}", unexplained.join("\n"));
}

#[test]
fn real_reports_verify_with_both() {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../shared/vectors/snp");
    let read = |name: &str| std::fs::read(folder.join(name)).ok();
    for (name, roots) in [
        ("milan-v2", "ask_ark_milan.pem"),
        ("milan-v2-idblock", "ask_ark_milan.pem"),
        ("milan-v3", "ask_ark_milan.pem"),
        ("genoa-v5-siena", "ask_ark_genoa.pem"),
    ] {
        let (Some(report), Some(vek)) =
            (read(&format!("{name}.report.bin")), read(&format!("{name}.vcek.der")))
        else {
            eprintln!("SKIPPED: no {name} in {}", folder.display());
            return;
        };
        let roots = read(&format!("roots/{roots}")).unwrap();
        let roots = cloister_attestation::x509::certificates(&roots).unwrap();
        let [ask, ark] = &roots[..] else { panic!("{name}: two certificates") };
        assert!(sev_accepts(ark, ask, &vek, &report), "{name}");
    }
}
