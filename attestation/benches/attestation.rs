//! How fast evidence is verified and launches are hashed, beside the peers that are crates. Prints one JSON object a line:
//! `{"name", "value"}` with values per second. `cargo xtask bench attestation` adds the peers that are programs.

#[path = "../tests/pki/mod.rs"]
mod pki;

use std::hint::black_box;
use std::time::{Duration, Instant};

use cloister_attestation::measure::snp::{
    DigestChain, LaunchInputs, LaunchPlan, PageType, Rom, VcpuModel, VmmFlavour,
};
use cloister_attestation::measure::{Gpa, PAGE_SIZE};
use cloister_attestation::signature::{AWS_LC, Backend, RUSTCRYPTO};
use cloister_attestation::signing::SigningKey;
use cloister_attestation::snp::{
    Collateral, Evidence, Policy, Product, TrustRoots, VekKind, appraise, authenticate_with,
};
use cloister_attestation::x509::UnixTime;
use pki::{NOW, Scenario};
use sev::certs::snp::{Chain, Verifiable};
use sev::firmware::guest::AttestationReport;
use sev::parser::ByteParser;
use sha2::{Digest, Sha384};

const ROUND: Duration = Duration::from_millis(400);
const ROUNDS: usize = 3;
/// As many as `cargo xtask bench` asks the peer for.
const MOST_CPUS: u32 = 64;

/// The best of some rounds: what slows a round down is not the program.
fn per_second(name: &str, mut once: impl FnMut() -> bool) {
    let mut best = 0.0f64;
    for _ in 0..ROUNDS {
        let (start, mut count) = (Instant::now(), 0u32);
        while start.elapsed() < ROUND {
            assert!(black_box(once()), "{name} must succeed");
            count += 1;
        }
        best = best.max(f64::from(count) / start.elapsed().as_secs_f64());
    }
    println!("{}", serde_json::json!({"name": name, "value": best}));
}

fn main() {
    let scenario = Scenario::new(Product::Genoa, 5, VekKind::Vcek);
    let (report, vek, ask) = (scenario.signed_report(), scenario.vek.der(), scenario.ask.der());
    let ark = scenario.trusted.der();
    let roots = TrustRoots::from_bytes(&ark).unwrap();
    let at: UnixTime = NOW.parse().unwrap();
    let policy = Policy::default();
    let certificates = [&vek[..], &ask];
    let evidence = Evidence { report: &report, certificates: &certificates, certificate_table: None };
    for backend in [RUSTCRYPTO, AWS_LC] {
        let cold = || authenticate_with(&backend, &evidence, &roots, &Collateral::default(), at);
        per_second(&format!("cold {}", backend.name), || {
            cold().is_ok_and(|authentic| appraise(&authentic, &policy).is_empty())
        });
        let key = cold().unwrap().verified_vek().clone();
        per_second(&format!("cached {}", backend.name), || {
            key.authenticate(&report, at).is_ok_and(|authentic| appraise(&authentic, &policy).is_empty())
        });
        p384(&backend);
    }
    per_second("cold sev", || {
        let chain = Chain::from_der(&ark, &ask, &vek).unwrap();
        let report = AttestationReport::from_bytes(&report[..]).unwrap();
        (&chain, &report).verify().is_ok()
    });
    // ROMs that are given, since one with metadata cannot be made up here.
    for (name, variable) in [("no padding", "CLOISTER_BENCH_ROM"), ("OVMF", "CLOISTER_BENCH_OVMF")] {
        let Some(path) = std::env::var_os(variable) else { continue };
        let rom = std::fs::read(path).unwrap();
        per_second(&format!("launch digest {name}"), || launch(&rom, 1, |plan| plan.digest().0 != [0; 48]));
        per_second(&format!("launch digests {name}"), || {
            launch(&rom, MOST_CPUS, |plan| plan.digests().len() == MOST_CPUS as usize)
        });
        per_second(&format!("chain {name}"), || chain(&rom));
        per_second(&format!("hash {name}"), || hash(&rom));
    }
}

/// SHA-384 of as many bytes on all processors, by the same library: what a digest without any shortcut is bound by.
fn hash(bytes: &[u8]) -> bool {
    let processors = std::thread::available_parallelism().map_or(1, usize::from);
    std::thread::scope(|scope| {
        let shares = bytes.chunks(bytes.len().div_ceil(processors));
        let threads: Vec<_> = shares.map(|share| scope.spawn(move || Sha384::digest(share))).collect();
        threads.into_iter().all(|thread| thread.join().unwrap()[..] != [0; 48])
    })
}

fn p384(backend: &Backend) {
    let key = SigningKey::generate_p384(|bytes| bytes.fill(1)).unwrap();
    let message = [7; 0x2a0];
    let (point, signature) = (key.public_point(), key.sign(&message));
    per_second(&format!("p384 {}", backend.name), || (backend.p384)(&point, &message, &signature));
}

/// The chain over the digests of the ROM's pages, were these known: no processor can help with that.
fn chain(rom: &[u8]) -> bool {
    let mut chain = DigestChain::default();
    let pages = (0..rom.len() as u64).step_by(PAGE_SIZE);
    pages.for_each(|at| chain.page_with_digest(PageType::Normal, Gpa(at), [7; 48]));
    chain.value().0 != [0; 48]
}

fn launch(rom: &[u8], vcpus: u32, then: impl Fn(&LaunchPlan<'_>) -> bool) -> bool {
    let rom = Rom::parse(rom).unwrap();
    let inputs = LaunchInputs {
        rom: &rom,
        kernel: None,
        vcpus,
        cpu: VcpuModel(0xa1_0f11),
        sev_features: 1,
        flavour: VmmFlavour::Qemu,
    };
    then(&LaunchPlan::new(&inputs).unwrap())
}
