//! Whatever is done to the bytes: no panic, and nothing tampered with is accepted.

mod pki;

use std::sync::OnceLock;

use cloister_attestation::measure::snp::Rom;
use cloister_attestation::snp::{
    Collateral, Evidence, Policy, Product, Report, RevocationRule, TrustRoots, Vek, VekKind, table, verify,
};
use cloister_attestation::x509::{Certificate, Crl, UnixTime, certificates, crls};
use pki::{CrlSpec, NOW, Scenario};
use proptest::prelude::*;
use proptest::sample::Index;

/// Right evidence: report, endorsement key, intermediate, CRL.
struct Right {
    parts: [Vec<u8>; 4],
    roots: TrustRoots,
}

fn right() -> &'static Right {
    static RIGHT: OnceLock<Right> = OnceLock::new();
    RIGHT.get_or_init(|| {
        let s = Scenario::new(Product::Turin, 5, VekKind::Vcek);
        let crl = CrlSpec::new(s.product).der();
        let roots = TrustRoots::from_bytes(&s.trusted.der()).unwrap();
        Right { parts: [s.signed_report(), s.vek.der(), s.ask.der(), crl], roots }
    })
}

fn accepted([report, vek, ask, crl]: &[Vec<u8>; 4]) -> bool {
    let evidence = Evidence { report, certificates: &[vek, ask], certificate_table: None };
    let at: UnixTime = NOW.parse().unwrap();
    // A CRL with another issuer's name on it is another root's, and missed only by those who need one.
    let policy = Policy { revocation: RevocationRule::Required, ..Policy::default() };
    verify(&evidence, &right().roots, &Collateral { crls: &[crl] }, at, &policy).is_accepted()
}

/// Everything that reads bytes from elsewhere.
fn read_as_everything(bytes: &[u8]) {
    let _ = Report::parse(bytes);
    let _ = table::parse(bytes);
    let _ = Rom::parse(bytes);
    let _ = TrustRoots::from_bytes(bytes);
    let _ = crls(bytes);
    let _ = certificates(bytes);
    if let Ok(certificate) = Certificate::from_der(bytes) {
        let _ = Vek::new(VekKind::Vcek, &certificate);
        let _ = Vek::new(VekKind::Vlek, &certificate);
        let _ = certificate.check_authority(0);
    }
    if let Ok(crl) = Crl::from_der(bytes) {
        let _ = (crl.number(), crl.next_update(), crl.revoked_serials().count());
    }
}

#[test]
fn right_evidence_is_accepted_before_anything_is_done_to_it() {
    assert!(accepted(&right().parts));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_flipped_bit_anywhere_is_refused(part in 0..4usize, at: Index, bit in 0..8u32) {
        let mut parts = right().parts.clone();
        *at.get_mut(&mut parts[part]) ^= 1 << bit;
        prop_assert!(!accepted(&parts), "part {part} byte {}", at.index(parts[part].len()));
    }

    #[test]
    fn a_missing_or_additional_end_is_refused(part in 0..4usize, at: Index, more in proptest::collection::vec(any::<u8>(), 1..8)) {
        let mut parts = right().parts.clone();
        let len = at.index(parts[part].len());
        parts[part].truncate(len);
        prop_assert!(!accepted(&parts), "part {part} cut to {len}");
        let mut parts = right().parts.clone();
        parts[part].extend(more);
        prop_assert!(!accepted(&parts), "part {part} with more behind it");
    }

    #[test]
    fn no_bytes_make_a_parser_panic(bytes in proptest::collection::vec(any::<u8>(), 0..2048)) {
        read_as_everything(&bytes);
    }

    #[test]
    fn no_change_to_a_certificate_makes_a_parser_panic(
        part in 0..4usize,
        changes in proptest::collection::vec((any::<Index>(), any::<u8>()), 1..6),
        cut: Option<Index>,
    ) {
        let mut bytes = right().parts[part].clone();
        changes.iter().for_each(|(at, value)| *at.get_mut(&mut bytes) = *value);
        if let Some(cut) = cut {
            bytes.truncate(cut.index(bytes.len()));
        }
        read_as_everything(&bytes);
    }

    #[test]
    fn no_table_of_entries_makes_a_parser_panic(
        entries in proptest::collection::vec((any::<u8>(), 0..2048u32, 0..2048u32), 0..18),
        tail in proptest::collection::vec(any::<u8>(), 0..512),
    ) {
        let mut bytes = Vec::new();
        for (kind, offset, length) in entries {
            bytes.extend([kind; 16]);
            bytes.extend(offset.to_le_bytes());
            bytes.extend(length.to_le_bytes());
        }
        bytes.extend([0; 24]);
        bytes.extend(tail);
        for entry in table::parse(&bytes).unwrap_or_default() {
            prop_assert!(!entry.blob.is_empty() && entry.blob.len() < bytes.len());
        }
    }
}
