//! Whatever is done to the bytes of TDX evidence: no panic, and nothing tampered with is accepted.

mod tdx_pki;

use std::sync::OnceLock;

use cloister_attestation::tdx::{
    Collateral, CollateralDocument, EventLog, EventLogClaims, EventLogRule, Evidence, PaddingRule, Pck,
    Policy, QeIdentity, Quote, TcbInfo, TrustRoots, verify,
};
use cloister_attestation::x509::Certificate;
use proptest::prelude::*;
use proptest::sample::Index;
use serde_json::Value;
use tdx_pki::quote::{claims_no_more, usual_events};
use tdx_pki::{Scenario, qe_identity, tcb_info};

/// Right evidence: quote, collateral, event log.
struct Right {
    scenario: Scenario,
    quote: Vec<u8>,
    document: Vec<u8>,
    collateral: Collateral,
    roots: TrustRoots,
    log: Vec<u8>,
}

fn right() -> &'static Right {
    static RIGHT: OnceLock<Right> = OnceLock::new();
    RIGHT.get_or_init(|| {
        let mut scenario = Scenario::new(5, 4);
        let log = scenario.quote.measure(&usual_events());
        let (document, roots) = (scenario.collateral(), scenario.roots());
        let collateral = Collateral::new(&document, &roots);
        Right { quote: scenario.quote_bytes(), document, collateral, roots, log, scenario }
    })
}

fn accepted(quote: &[u8], collateral: &Collateral, log: &[u8]) -> bool {
    let evidence = Evidence { quote, event_log: Some(log) };
    let policy =
        Policy { quote_padding: PaddingRule::None, event_log: EventLogRule::Required, ..Policy::default() };
    verify(&evidence, collateral, right().scenario.time(), &policy).is_accepted()
}

fn document_accepted(document: &[u8]) -> bool {
    accepted(&right().quote, &Collateral::new(document, &right().roots), &right().log)
}

/// Everything that reads bytes from elsewhere.
fn read_as_everything(bytes: &[u8]) {
    let _ = Quote::recognises(bytes);
    let _ = Quote::parse(bytes);
    let _ = EventLog::recognises(bytes);
    let _ = EventLog::read(bytes).map(|log| (log.replay(), EventLogClaims::new(&log)));
    let _ = CollateralDocument::from_json(bytes);
    let _ = TrustRoots::from_bytes(bytes);
    let text = String::from_utf8_lossy(bytes);
    let _ = TcbInfo::from_json(&text);
    let _ = QeIdentity::from_json(&text);
    if let Ok(certificate) = Certificate::from_der(bytes) {
        let _ = Pck::new(&certificate);
    }
}

#[test]
fn right_evidence_is_accepted_before_anything_is_done_to_it() {
    let right = right();
    assert!(accepted(&right.quote, &right.collateral, &right.log));
    assert!(document_accepted(&right.document));
}

/// Chains without the root at their end, which whoever trusts it has: a damaged BEGIN line hides a certificate.
fn without_root(mut chain: Vec<String>) -> Vec<String> {
    let root = hex::encode(right().scenario.root.der());
    chain.pop_if(|last| *last == root);
    chain
}

/// The same document to whoever reads it: PEM ignores white space and hexadecimal digits have two cases.
fn means_the_same(document: &[u8]) -> bool {
    let read = |bytes: &[u8]| {
        let mut value: Value = serde_json::from_slice(bytes).ok()?;
        for (name, field) in value.as_object_mut()?.iter_mut() {
            let text = field.as_str()?.to_owned();
            *field = match name.as_str() {
                "pck_crl_issuer_chain" | "tcb_info_issuer_chain" | "qe_identity_issuer_chain" => {
                    let blocks = cloister_attestation::x509::certificates(text.as_bytes()).ok()?;
                    without_root(blocks.iter().map(hex::encode).collect()).into()
                }
                "tcb_info" | "qe_identity" => text.into(),
                _ => text.to_lowercase().into(),
            };
        }
        Some(value)
    };
    read(document) == read(&right().document)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 150, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_flipped_bit_in_a_quote_is_refused(at: Index, bit in 0..8u32) {
        let right = right();
        let mut quote = right.quote.clone();
        *at.get_mut(&mut quote) ^= 1 << bit;
        let at = at.index(quote.len());
        let chain = |bytes| Quote::parse(bytes).ok().and_then(|quote| {
            let ders = cloister_attestation::x509::certificates(quote.pck_chain()).ok()?;
            Some(without_root(ders.iter().map(hex::encode).collect()))
        });
        // White space between PEM lines means nothing; all else is signed or a signature.
        let chain_begins = right.quote.len() - Quote::parse(&right.quote).unwrap().pck_chain().len();
        let harmless = at >= chain_begins && chain(&quote) == chain(&right.quote);
        prop_assert!(harmless || !accepted(&quote, &right.collateral, &right.log), "byte {at}");
    }

    #[test]
    fn a_missing_or_additional_end_of_a_quote_is_refused(at: Index, more in proptest::collection::vec(any::<u8>(), 1..8)) {
        let right = right();
        let mut quote = right.quote.clone();
        quote.truncate(at.index(quote.len()));
        prop_assert!(!accepted(&quote, &right.collateral, &right.log), "cut to {}", quote.len());
        let quote = [&right.quote[..], &more].concat();
        prop_assert!(!accepted(&quote, &right.collateral, &right.log), "with more behind it");
    }

    #[test]
    fn a_change_to_collateral_is_refused_or_none(at: Index, byte: u8) {
        let mut document = right().document.clone();
        *at.get_mut(&mut document) = byte;
        let harmless = means_the_same(&document);
        let at = at.index(document.len());
        let near = String::from_utf8_lossy(&document[at.saturating_sub(40)..document.len().min(at + 40)]);
        prop_assert!(harmless || !document_accepted(&document), "byte {at}: {near}");
    }

    #[test]
    fn a_change_to_an_event_log_is_refused_or_tells_nothing_else(at: Index, bit in 0..8u32) {
        let right = right();
        let mut log = right.log.clone();
        *at.get_mut(&mut log) ^= 1 << bit;
        if accepted(&right.quote, &right.collateral, &log) {
            // Only what nobody measured can have changed: the log's first event, types, labels, descriptions.
            let claims = |log| EventLogClaims::new(&EventLog::parse(log).unwrap());
            let (changed, own) = (claims(&log), claims(&right.log));
            prop_assert!(claims_no_more(&changed, &own), "byte {}: {changed:#?}", at.index(log.len()));
        }
    }

    #[test]
    fn no_bytes_make_a_parser_panic(bytes in proptest::collection::vec(any::<u8>(), 0..2048)) {
        read_as_everything(&bytes);
    }

    #[test]
    fn no_change_to_evidence_makes_a_parser_panic(
        part in 0..3usize,
        changes in proptest::collection::vec((any::<Index>(), any::<u8>()), 1..6),
        cut: Option<Index>,
    ) {
        let right = right();
        let mut bytes = [&right.quote, &right.document, &right.log][part].clone();
        changes.iter().for_each(|(at, value)| *at.get_mut(&mut bytes) = *value);
        if let Some(cut) = cut {
            bytes.truncate(cut.index(bytes.len()));
        }
        read_as_everything(&bytes);
        match part {
            0 => drop(accepted(&bytes, &right.collateral, &right.log)),
            1 => drop(document_accepted(&bytes)),
            _ => drop(accepted(&right.quote, &right.collateral, &bytes)),
        }
    }

    #[test]
    fn no_change_to_a_pck_certificate_makes_its_reader_panic(
        changes in proptest::collection::vec((any::<Index>(), any::<u8>()), 1..6),
    ) {
        let mut der = right().scenario.pck.der();
        changes.iter().for_each(|(at, value)| *at.get_mut(&mut der) = *value);
        read_as_everything(&der);
    }

    #[test]
    fn no_value_in_a_document_makes_its_reader_panic(identity: bool, path: Index, value in proptest::sample::select(VALUES)) {
        let mut document = if identity { qe_identity() } else { tcb_info() };
        let mut leaves = Vec::new();
        collect("", &document, &mut leaves);
        *document.pointer_mut(&leaves[path.index(leaves.len())]).unwrap() = serde_json::from_str(value).unwrap();
        let text = document.to_string();
        let _ = (TcbInfo::from_json(&text).is_ok(), QeIdentity::from_json(&text).is_ok());
    }
}

/// What a field may be replaced by.
const VALUES: &[&str] = &[
    "null",
    "true",
    "0",
    "-1",
    "255",
    "256",
    "65536",
    "4294967296",
    "1e300",
    "\"\"",
    "\"00\"",
    "\"9999-12-31T23:59:59Z\"",
    "\"0000-01-01T00:00:00Z\"",
    "[]",
    "{}",
    "[[[[[[[[]]]]]]]]",
];

fn collect(path: &str, value: &Value, leaves: &mut Vec<String>) {
    leaves.extend((!path.is_empty()).then(|| path.to_owned()));
    match value {
        Value::Object(fields) => {
            fields.iter().for_each(|(name, value)| collect(&format!("{path}/{name}"), value, leaves));
        }
        Value::Array(items) => {
            items.iter().enumerate().for_each(|(at, value)| collect(&format!("{path}/{at}"), value, leaves));
        }
        _ => {}
    }
}
