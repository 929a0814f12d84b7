//! The same evidence before the `dcap-qvl` crate, an independent implementation. It answers the first question, and
//! refuses what no policy of its own can allow. What we accept it must accept, and what we refuse as not
//! authentic or fresh it must refuse; where it does otherwise, the reason is named here.

mod tdx_pki;

use std::path::PathBuf;

use cloister_attestation::tdx::{Collateral, Evidence, Policy, TrustRoots, verify};
use cloister_attestation::verdict::Kind;
use cloister_attestation::x509::UnixTime;
use dcap_qvl::QuoteCollateralV3;
use dcap_qvl::verify::{QuoteVerifier, VerifiedReport};
use serde_json::Value;
use tdx_pki::Scenario;
use tdx_pki::cases::{ALL, Case, TDX_1_5, TDX_1_5_EX, VERSION_5};

fn peer(
    quote: &[u8],
    collateral: &[u8],
    root: Option<Vec<u8>>,
    time: UnixTime,
) -> Result<VerifiedReport, String> {
    let collateral: QuoteCollateralV3 =
        serde_json::from_slice(collateral).map_err(|error| error.to_string())?;
    let verifier = root.map_or_else(QuoteVerifier::new_prod, QuoteVerifier::new);
    verifier.verify(quote, &collateral, time.0).map_err(|error| format!("{error:#}"))
}

/// Where the peer accepts what we refuse as not authentic, and why.
const PEER_ACCEPTS: &[(&str, &str)] = &[
    ("signature data longer than what is in it", "it does not compare a length with what is in it"),
    ("inner certification data too short", "likewise; its PEM reader stops at what it can read"),
    ("certification data without a QE report", "it does not look at the outer type"),
    ("far too long", "it sets no bound"),
    ("five certificates", "it sets no bound"),
    ("something else behind the chain", "it passes over what is no PEM block"),
    ("QE report data longer than a hash", "it compares the hash and not the zeros behind it"),
    ("PCK of another name", "it looks at no names"),
    ("TCB signer of another name", "it looks at no names: any key that the root certified may sign TCB info"),
    ("authority for something else", "it looks at no names"),
    ("PCK may not sign", "webpki does not look at an end entity's key usage"),
    ("TCB signer may not sign", "likewise"),
    ("authority may not sign certificates", "webpki does not look at an authority's key usage"),
    ("root before the authority", "it tries them in any order"),
    ("a stranger's certificate behind the root", "it does not use it, and does not mind"),
    ("quote brings a root of its own", "it does not use it, and does not mind"),
    ("root expired", "webpki's trust anchors have no dates"),
    ("SGX type no enumeration", "it takes any tag"),
    ("FMSPC twice", "it takes the first"),
    ("platform instance ID too long", "it takes it as absent"),
    ("configuration without its flags", "it takes them as unknown"),
    ("PCEID of another", "it does not compare PCEIDs; Intel's library does"),
    ("PCK CRL of the future", "webpki does not look at thisUpdate"),
    ("TCB info of version 4", "it takes 3 as a minimum"),
    ("TCB info of another type", "it does not look at tcbType"),
    ("TCB info with a field that nobody knows", "it passes over it"),
    ("QE identity of version 3", "it takes version 3, of which nothing has been published"),
    ("SGX component below what CPUSVN says", "it compares CPUSVN; Intel's library, and we, the components"),
];

/// Where the peer refuses what we accept, or what we refuse for a policy's sake only, and why.
const PEER_REFUSES: &[(&str, &str)] = &[
    ("quote without the authority, which the collateral has", "it looks for it in the quote only"),
    ("levels in another order", "it orders the platform's levels, and neither modules' nor the QE's"),
    ("debug", "attributes and service TDs are part of its first question, of our second"),
    ("debug, allowed", "likewise"),
    ("profiling", "likewise"),
    ("migratable", "likewise"),
    ("an attribute that nobody knows", "likewise"),
    ("no SEPT_VE_DISABLE", "likewise"),
    ("no SEPT_VE_DISABLE, allowed", "likewise"),
    ("a service TD", "likewise"),
    ("a service TD on the list", "likewise"),
    ("extended service TDs", "likewise"),
    ("another service TD now than at launch", "likewise"),
    ("service TDs of then and now on the list", "likewise"),
];

fn compare(
    group: &str,
    cases: &[Case],
    kinds: &[(u16, u16)],
    seen: &mut Vec<&'static str>,
    unexplained: &mut Vec<String>,
) {
    for (version, body) in kinds {
        for (name, change, _) in cases {
            let mut s = Scenario::new(*version, *body);
            change(&mut s);
            // It trusts one root, and knows nothing of event logs.
            let Some(root) = s.trusted.last().map(|root| root.der()) else { continue };
            s.event_log = None;
            let ours = s.verify();
            let authentic = ours.reasons.iter().all(|reason| reason.code.kind() == Kind::Policy);
            let theirs = peer(&s.quote_bytes(), &s.collateral(), Some(root), s.time());
            let known = match (authentic, theirs.is_ok()) {
                (false, true) => PEER_ACCEPTS,
                (true, false) => PEER_REFUSES,
                _ => continue,
            };
            seen.push(name);
            if !known.iter().any(|(known, _)| known == name) {
                let codes = ours.reasons.codes();
                unexplained.push(format!(
                    "v{version} type {body}, {group}, {name}: {codes:?}, peer {:?}",
                    theirs.err()
                ));
            }
        }
    }
}

#[test]
fn disagreements_are_all_named() {
    const KINDS: [(u16, u16); 3] = [(4, 2), (5, 3), (5, 4)];
    let (mut seen, mut unexplained) = (Vec::new(), Vec::new());
    for (group, cases) in ALL {
        compare(group, cases, &KINDS[..2], &mut seen, &mut unexplained);
    }
    compare("version 5", VERSION_5, &KINDS[1..], &mut seen, &mut unexplained);
    compare("TDX 1.5", TDX_1_5, &KINDS[1..], &mut seen, &mut unexplained);
    compare("TDX 1.5ex", TDX_1_5_EX, &KINDS[2..], &mut seen, &mut unexplained);
    for (known, _) in PEER_ACCEPTS.iter().chain(PEER_REFUSES).filter(|(known, _)| !seen.contains(known)) {
        unexplained.push(format!("{known}: named as a disagreement and none"));
    }
    assert!(unexplained.is_empty(), "{}", unexplained.join("\n"));
}

#[test]
fn both_come_to_the_same_status_and_advisories() {
    let mut count = 0;
    for (_, cases) in ALL {
        for (name, change, _) in *cases {
            let mut s = Scenario::new(5, 3);
            change(&mut s);
            let (Some(root), Some(claims)) = (s.trusted.last(), s.verify().claims) else { continue };
            let Ok(theirs) = peer(&s.quote_bytes(), &s.collateral(), Some(root.der()), s.time()) else {
                continue;
            };
            assert_eq!(claims.tcb.status.to_string(), theirs.status, "{name}");
            assert_eq!(claims.tcb.advisories, theirs.advisory_ids, "{name}");
            count += 1;
        }
    }
    assert!(count > 50, "{count}");
}

#[test]
fn real_quotes_get_the_same_answer_from_both() {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../shared/vectors/tdx");
    let Ok(expected) = std::fs::read(folder.join("expected.json")) else {
        eprintln!("SKIPPED: no {}", folder.display());
        return;
    };
    let expected: Value = serde_json::from_slice(&expected).unwrap();
    let roots = TrustRoots::intel();
    // The peer knows no tolerance.
    let policy = Policy { clock_tolerance_seconds: 0, ..Policy::default() };
    for case in expected["cases"].as_array().unwrap() {
        let read = |key: &str| std::fs::read(folder.join(case[key].as_str().unwrap())).unwrap();
        let (quote, document, name) = (read("quote"), read("collateral"), &case["quote"]);
        let collateral = Collateral::new(&document, &roots);
        let evidence = Evidence { quote: &quote, event_log: None };
        let window =
            ["not_before", "not_after"].map(|key| case[key].as_str().unwrap().parse::<UnixTime>().unwrap());
        let at = UnixTime(case["at"].as_u64().unwrap());
        let outside = [UnixTime(window[0].0 - 1), UnixTime(window[1].0 + 1)];
        for time in [at, window[0], UnixTime(window[1].0 - 1), outside[0], outside[1]] {
            let ours = verify(&evidence, &collateral, time, &policy);
            // webpki does not look at a CRL's thisUpdate.
            if ours.reasons.codes().iter().all(|code| code.as_str() == "crl-not-yet-valid")
                && !ours.is_accepted()
            {
                continue;
            }
            // Debug and #VE are for our policy to refuse and for its verification itself.
            let attributes = ["td-attributes-forbidden", "td-attributes-required"];
            let acceptable = !ours.reasons.codes().iter().any(|code| attributes.contains(&code.as_str()));
            match (peer(&quote, &document, None, time), ours.claims) {
                (Ok(theirs), Some(claims)) => {
                    assert_eq!(claims.tcb.status.to_string(), theirs.status, "{name} at {time}");
                    assert_eq!(claims.tcb.advisories, theirs.advisory_ids, "{name} at {time}");
                }
                (theirs, claims) => {
                    let ours = claims.is_some() && acceptable;
                    assert_eq!(ours, theirs.is_ok(), "{name} at {time}: {:?} {:?}", ours, theirs.err());
                }
            }
        }
    }
}
