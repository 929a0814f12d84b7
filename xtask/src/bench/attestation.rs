//! Verification and launch digests: what the library does beside the crate `sev`, beside the P-384 arithmetic that it stands
//! on, and beside sev-snp-measure.

use std::collections::BTreeMap;
use std::process::Command;
use std::time::Instant;

use anyhow::{Context, Result};
use serde_json::Value;

use super::Figure;
use crate::{command, firmware, measurement, paths, progress};

const ROM_BYTES: usize = 4 << 20;
const ROUNDS: usize = 3;

/// Runs the benchmark.
pub fn run() -> Result<Vec<Figure>> {
    let rom = padded_rom()?;
    let ours = ours(&rom)?;
    let get = |name: &str| ours.get(name).copied().with_context(|| format!("no figure {name:?}"));
    let rate = |figure: &str, value: f64, peer: &'static str, peer_value: f64| Figure {
        bench: "attestation",
        figure: figure.to_owned(),
        value,
        unit: "1/s",
        peer: Some(peer),
        peer_value: Some(peer_value),
        ratio: Some(value / peer_value),
    };
    let openssl = openssl_p384()?;
    let peer_digest = sev_snp_measure(&rom)?;
    Ok(vec![
        rate("SNP, cold chain, pure Rust", get("cold RustCrypto")?, "sev", get("cold sev")?),
        rate("SNP, cold chain, aws-lc", get("cold aws-lc")?, "sev", get("cold sev")?),
        rate(
            "SNP, cached chain, pure Rust",
            get("cached RustCrypto")?,
            "its P-384 verify",
            get("p384 RustCrypto")?,
        ),
        rate("SNP, cached chain, aws-lc", get("cached aws-lc")?, "its P-384 verify", get("p384 aws-lc")?),
        rate("SNP, cached chain, aws-lc", get("cached aws-lc")?, "openssl speed ecdsap384", openssl),
        rate("launch digest of 4 MiB", get("launch digest")?, "sev-snp-measure", peer_digest),
    ])
}

/// Our ROM with as much before it as makes 4 MiB: its metadata counts from the end.
fn padded_rom() -> Result<std::path::PathBuf> {
    let rom = std::fs::read(firmware::build()?)?;
    let mut padded: Vec<u8> = (0..ROM_BYTES.saturating_sub(rom.len())).map(|at| (at / 3) as u8).collect();
    padded.extend(rom);
    let path = paths::target().join("bench-rom.bin");
    std::fs::write(&path, padded)?;
    Ok(path)
}

/// What the library's own benchmark prints, by name.
fn ours(rom: &std::path::Path) -> Result<BTreeMap<String, f64>> {
    let _step = progress::step("attestation, our figures and those of peers that are crates");
    let mut cargo = command::cargo();
    cargo.args([
        "bench",
        "--quiet",
        "-p",
        "cloister-attestation",
        "--features",
        "aws-lc",
        "--bench",
        "attestation",
    ]);
    let text = command::output(cargo.env("CLOISTER_BENCH_ROM", rom))?;
    let figure = |line: &str| -> Option<(String, f64)> {
        let line: Value = serde_json::from_str(line).ok()?;
        Some((line["name"].as_str()?.to_owned(), line["value"].as_f64()?))
    };
    Ok(text.lines().filter_map(figure).collect())
}

/// Verifications a second, as OpenSSL's own benchmark counts them.
fn openssl_p384() -> Result<f64> {
    let _step = progress::step("openssl speed");
    let mut openssl = Command::new("openssl");
    let text = command::output(openssl.args(["speed", "-mr", "-seconds", "1", "ecdsap384"]))?;
    // +F4:<number>:<bits>:<seconds a signature>:<seconds a verification>
    let line =
        text.lines().find(|line| line.starts_with("+F4:")).context("openssl speed prints no +F4 line")?;
    let seconds: f64 = line.rsplit(':').next().unwrap_or_default().trim().parse().context("openssl speed")?;
    Ok(1.0 / seconds)
}

/// Runs a second of the tool that others use, process included: that is how it is used.
fn sev_snp_measure(rom: &std::path::Path) -> Result<f64> {
    let tool = measurement::witness()?;
    let _step = progress::step("sev-snp-measure");
    let mut best = f64::MAX;
    for _ in 0..ROUNDS {
        let start = Instant::now();
        let mut peer = Command::new(&tool);
        peer.args(["--mode", "snp", "--vmm-type", "QEMU", "--vcpus", "1", "--vcpu-sig", "0xa10f11"]);
        command::output(peer.args(["--guest-features", "0x1", "--ovmf"]).arg(rom))?;
        best = best.min(start.elapsed().as_secs_f64());
    }
    Ok(1.0 / best)
}
