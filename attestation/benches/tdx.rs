//! TDX verifications a second beside `dcap-qvl`, on the same evidence in the same minute: one JSON object a line.
//! `cargo bench -p cloister-attestation --bench tdx`.
//!
//! *Cold* reads and judges the collateral for every quote, as the peer must; *cached* judges it once, and *known* the
//! platform, too. The peer
//! runs with both of its backends: `ring`, which is C and assembly, and RustCrypto, which is Rust as ours.

#[path = "../tests/tdx_pki/mod.rs"]
mod tdx_pki;

use std::hint::black_box;
use std::time::{Duration, Instant};

use cloister_attestation::tdx::{Collateral, Evidence, Policy, appraise, authenticate, verify};
use dcap_qvl::QuoteCollateralV3;
use dcap_qvl::configs::{RingConfig, RustCryptoConfig};
use dcap_qvl::verify::QuoteVerifier;
use tdx_pki::Scenario;

/// Times a second, over at least a second.
fn rate(mut once: impl FnMut()) -> f64 {
    (0..20).for_each(|_| once());
    let (start, mut count) = (Instant::now(), 0u32);
    while start.elapsed() < Duration::from_secs(1) {
        once();
        count += 1;
    }
    f64::from(count) / start.elapsed().as_secs_f64()
}

/// The best of several rates, taken in turns: others use the machine, too.
fn best<const N: usize>(mut contestants: [&mut dyn FnMut(); N]) -> [f64; N] {
    let mut rates = [0.0; N];
    for _ in 0..3 {
        for (rate_of, contestant) in rates.iter_mut().zip(&mut contestants) {
            *rate_of = rate(&mut **contestant).max(*rate_of);
        }
    }
    rates
}

fn main() {
    // `cargo test --benches` only wants to know that it runs.
    if std::env::args().any(|argument| argument == "--test") {
        return;
    }
    let scenario = Scenario::new(4, 2);
    let (quote, document, time) = (scenario.quote_bytes(), scenario.collateral(), scenario.time());
    let (roots, policy) = (scenario.roots(), Policy::default());
    let evidence = Evidence { quote: &quote, event_log: None };
    let collateral = Collateral::new(&document, &roots);
    let theirs: QuoteCollateralV3 = serde_json::from_slice(&document).unwrap();
    let ring = QuoteVerifier::new(scenario.root.der()).with_config::<RingConfig>();
    let rust = QuoteVerifier::new(scenario.root.der()).with_config::<RustCryptoConfig>();
    let platform = authenticate(&evidence, &collateral, time).ok().unwrap().verified_platform().clone();
    let [known, cached, cold, ring, rust] = best([
        &mut || {
            let authentic = platform.authenticate(black_box(&evidence), &collateral, time).ok().unwrap();
            assert!(appraise(&authentic, &policy).is_empty());
            drop(black_box(authentic.claims()));
        },
        &mut || assert!(verify(black_box(&evidence), &collateral, time, &policy).is_accepted()),
        &mut || {
            let collateral = Collateral::new(black_box(&document), &roots);
            assert!(verify(&evidence, &collateral, time, &policy).is_accepted());
        },
        &mut || drop(black_box(ring.verify(black_box(&quote), &theirs, time.0)).unwrap()),
        &mut || drop(black_box(rust.verify(black_box(&quote), &theirs, time.0)).unwrap()),
    ]);
    for (figure, value) in [
        ("tdx verifications, known platform", known),
        ("tdx verifications, cached collateral", cached),
        ("tdx verifications, cold", cold),
    ] {
        for (peer, peer_value) in [("dcap-qvl (ring)", ring), ("dcap-qvl (RustCrypto)", rust)] {
            let line = serde_json::json!({
                "bench": "attestation", "figure": figure, "value": value, "unit": "1/s",
                "peer": peer, "peer_value": peer_value, "ratio": value / peer_value,
            });
            println!("{line}");
        }
    }
}
