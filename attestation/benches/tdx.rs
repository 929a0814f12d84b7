//! TDX verifications a second beside `dcap-qvl`, on the same evidence in turns: one JSON object a line, `{"name", "value"}`
//! with values per second. Run by `cargo xtask bench attestation`.
//!
//! *Cold* judges the collateral for every quote, as the peer must, from the same texts that the peer is given; *file* reads these from
//! the JSON file first, which the peer's caller has to do; *cached* judges it once, and *known* the platform, too. Both run with both of their
//! backends: C and assembly (`ring`, aws-lc) and RustCrypto, which is Rust. Beside each of our backends the peer's are timed again.

#[path = "../tests/tdx_pki/mod.rs"]
mod tdx_pki;

use std::hint::black_box;
use std::time::{Duration, Instant};

use cloister_attestation::signature::{AWS_LC, RUSTCRYPTO};
use cloister_attestation::tdx::{
    Collateral, CollateralDocument, Evidence, Policy, appraise, authenticate, verify,
};
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
    let texts = CollateralDocument::from_json(&document).unwrap();
    let theirs: QuoteCollateralV3 = serde_json::from_slice(&document).unwrap();
    let ring = QuoteVerifier::new(scenario.root.der()).with_config::<RingConfig>();
    let rust = QuoteVerifier::new(scenario.root.der()).with_config::<RustCryptoConfig>();
    for backend in [RUSTCRYPTO, AWS_LC] {
        let collateral = Collateral::with_backend(&backend, &document, &roots);
        let platform = authenticate(&evidence, &collateral, time).ok().unwrap().verified_platform().clone();
        let [known, cached, cold, file, ring, rust] = best([
            &mut || {
                let authentic = platform.authenticate(black_box(&evidence), &collateral, time).ok().unwrap();
                assert!(appraise(&authentic, &policy).is_empty());
                drop(black_box(authentic.claims()));
            },
            &mut || assert!(verify(black_box(&evidence), &collateral, time, &policy).is_accepted()),
            &mut || {
                let collateral = Collateral::from_document(&backend, black_box(&texts), &roots);
                assert!(verify(&evidence, &collateral, time, &policy).is_accepted());
            },
            &mut || {
                let collateral = Collateral::with_backend(&backend, black_box(&document), &roots);
                assert!(verify(&evidence, &collateral, time, &policy).is_accepted());
            },
            &mut || drop(black_box(ring.verify(black_box(&quote), &theirs, time.0)).unwrap()),
            &mut || drop(black_box(rust.verify(black_box(&quote), &theirs, time.0)).unwrap()),
        ]);
        let name = backend.name;
        for (figure, value) in [
            ("known", known),
            ("cached", cached),
            ("cold", cold),
            ("file", file),
            ("ring", ring),
            ("rust", rust),
        ] {
            println!("{}", serde_json::json!({"name": format!("tdx {figure} {name}"), "value": value}));
        }
    }
}
