//! The same evidence before the `sev` crate, an independent implementation. It answers a smaller question: do
//! these three certificates form a chain of signatures, and did the last one's key sign this report? So whatever
//! it refuses must be refused here, and what only we refuse must be for reasons that it does not look at: each is named.

mod pki;

use std::collections::BTreeSet;
use std::path::PathBuf;

use cloister_attestation::snp::table::{self, EntryKind};
use cloister_attestation::snp::{Product, VekKind};
use cloister_attestation::verdict::Kind;
use cloister_attestation::x509::certificates;
use pki::Scenario;
use pki::cases::{ALL, SOME};
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

/// Kinds of reasons that the peer knows none of.
const NO_QUESTION: &[(Kind, &str)] =
    &[(Kind::Policy, "it has no policy"), (Kind::Freshness, "it has no time, and no CRLs")];

/// Reasons that it does not look for, by code.
const NOT_LOOKED_AT: &[(&str, &str)] = &[
    ("report-unsigned", "it does not look at KEY_INFO"),
    ("signing-key-unknown", "likewise"),
    ("product-unknown", "it does not compare the report's processor with the certificate's product"),
    ("vek-missing", "it takes the certificate that it is given, whatever its name and extensions"),
    ("vek-extension-malformed", "it does not read AMD's extensions when it verifies a chain"),
    ("tcb-mismatch", "likewise"),
    ("chip-id-mismatch", "likewise"),
    ("intermediate-missing", "it does not compare names"),
    ("root-untrusted", "it believes the root that it is given"),
    ("certificate-profile", "it reads neither basic constraints nor key usage"),
    ("certificate-malformed", "it reads less of a certificate, and no others than the three"),
    ("certificate-table-malformed", "it is not asked about tables"),
    ("crl-malformed", "it has no CRLs"),
    ("crl-signature", "likewise"),
    ("certificate-revoked", "likewise"),
];

/// Where it accepts although we refuse for a reason that it does look for, and why.
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

/// Where only it refuses, and why.
const ONLY_THE_PEER: &[(&str, &str)] = &[];

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

/// Every row of the tables above must be some case's reason, and every difference have its row.
#[test]
fn disagreements_over_wrong_evidence_are_all_named() {
    let everywhere = pki::FULL.into_iter().flat_map(|product| {
        ALL.iter().map(move |(group, cases)| (*group, (product, 4, VekKind::Vcek), *cases))
    });
    let (mut unexplained, mut seen) = (Vec::new(), BTreeSet::new());
    for (group, (product, version, kind), cases) in everywhere.chain(SOME.iter().copied()) {
        for (name, change, _) in cases {
            let mut s = Scenario::new(product, version, kind);
            change(&mut s);
            let ours = s.verify();
            let peer = sev_accepts(&s.trusted.der(), &s.ask.der(), &s.vek.der(), &s.signed_report());
            if ours.is_accepted() == peer {
                continue;
            }
            let place = format!("{product} v{version} {kind:?}, {group}, {name}");
            if !peer {
                match ONLY_THE_PEER.iter().find(|(known, _)| known == name) {
                    Some((known, _)) => drop(seen.insert(*known)),
                    None => unexplained.push(format!("{place}: only the peer refuses")),
                }
                continue;
            }
            for reason in &ours.reasons {
                let code = reason.code.as_str();
                if NO_QUESTION.iter().any(|(kind, _)| *kind == reason.code.kind()) {
                    continue;
                }
                let by_code = NOT_LOOKED_AT.iter().map(|(known, _)| *known).find(|known| *known == code);
                let by_name = KNOWN.iter().map(|(known, _)| *known).find(|known| known == name);
                match by_name.or(by_code) {
                    Some(known) => drop(seen.insert(known)),
                    None => unexplained.push(format!("{place}: only we refuse, for {code}")),
                }
            }
        }
    }
    for (known, _) in [NOT_LOOKED_AT, KNOWN, ONLY_THE_PEER].concat() {
        if !seen.contains(known) {
            unexplained.push(format!("{known}: named as a disagreement and none"));
        }
    }
    assert!(unexplained.is_empty(), "{}", unexplained.join("\n"));
}

#[test]
fn real_reports_verify_with_both() {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../shared/vectors/snp");
    let read = |name: &str| std::fs::read(folder.join(name)).ok();
    for (name, vek, roots) in [
        ("milan-v2", "vcek.der", "milan"),
        ("milan-v2-idblock", "vcek.der", "milan"),
        ("milan-v3", "vcek.der", "milan"),
        ("milan-v3-vlek", "vlek.der", "milan_vlek"),
        ("genoa-v3", "auxblob-certtable.bin", "genoa"),
        ("genoa-v5-siena", "vcek.der", "genoa"),
        ("turin-v5", "vcek.pem", "turin_vcek"),
    ] {
        let (Some(report), Some(vek)) = (read(&format!("{name}.report.bin")), read(&format!("{name}.{vek}")))
        else {
            eprintln!("SKIPPED: no {name} in {}", folder.display());
            return;
        };
        let entries = table::parse(&vek).unwrap_or_default();
        let vek = entries.iter().find(|e| e.kind == EntryKind::VCEK).map_or(&vek[..], |entry| entry.blob);
        let vek = certificates(vek).unwrap();
        let roots = read(&format!("roots/ask_ark_{roots}.pem")).unwrap();
        let roots = certificates(&roots).unwrap();
        let [ask, ark] = &roots[..] else { panic!("{name}: two certificates") };
        assert!(sev_accepts(ark, ask, &vek[0], &report), "{name}");
        let mut forged = report.clone();
        forged[0x90] ^= 1;
        assert!(!sev_accepts(ark, ask, &vek[0], &forged), "{name}");
    }
}
