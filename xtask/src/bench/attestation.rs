//! Verification and launch digests: what the library does beside the crates `sev` and `dcap-qvl`, beside the P-384 arithmetic
//! that it stands on, and beside sev-snp-measure, both as programs and as libraries.

use std::collections::BTreeMap;
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use super::Figure;
use crate::qemu::{Need, Qemu};
use crate::{command, firmware, measurement, paths, progress};

const ROM_BYTES: usize = 4 << 20;
const PAGE_BYTES: usize = 4096;
const ROUNDS: usize = 10;

/// Reference values are made for every size of guest that a fleet has.
const MOST_CPUS: u32 = 64;

/// Runs the benchmark.
pub fn run() -> Result<Vec<Figure>> {
    let roms = [("no padding", dense_rom()?), ("OVMF", ovmf()?)];
    let ours = ours(&roms)?;
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
    let mut figures = vec![
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
    ];
    for (name, rom) in &roms {
        let what = format!("launch digest of {} KiB ({name})", std::fs::metadata(rom)?.len() >> 10);
        let (digest, digests) =
            (get(&format!("launch digest {name}"))?, get(&format!("launch digests {name}"))?);
        let (chain, hash) = (get(&format!("chain {name}"))?, get(&format!("hash {name}"))?);
        let (theirs, their_program) = (sev_snp_measure(rom)?, sev_snp_measure_runs(rom, 1..=1)?);
        let program = cloister_attest(rom, "1")?;
        let each = format!("{what}, each of 1 to {MOST_CPUS} CPUs");
        let (program_each, theirs_each) =
            (cloister_attest(rom, &format!("1-{MOST_CPUS}"))?, sev_snp_measure_runs(rom, 1..=MOST_CPUS)?);
        for (figure, ours, peer, theirs) in [
            (format!("{what}, in one process"), digest, "sev-snp-measure", theirs.digest),
            (format!("{what}, in one process"), digest, "SHA-384 on all processors", hash),
            (format!("{what}, in one process"), digest, "its chain of pages alone", chain),
            (format!("{what}, a process each"), program, "sev-snp-measure", their_program),
            (format!("{what}, a call beside a run"), digest, "sev-snp-measure", their_program),
            (format!("{each}, in one process"), digests, "sev-snp-measure, hash known", theirs.digests),
            (format!("{each}, as programs"), program_each, "sev-snp-measure", theirs_each),
        ] {
            figures.push(rate(&figure, ours, peer, theirs));
        }
    }
    for (name, backend, peer, theirs) in [
        ("pure Rust", "RustCrypto", "dcap-qvl, RustCrypto", "rust"),
        ("aws-lc", "aws-lc", "dcap-qvl, ring", "ring"),
    ] {
        for (temperature, what) in [
            ("cold", "cold"),
            ("file", "cold from a file"),
            ("cached", "cached collateral"),
            ("known", "known platform"),
        ] {
            figures.push(rate(
                &format!("TDX, {what}, {name}"),
                get(&format!("tdx {temperature} {backend}"))?,
                peer,
                get(&format!("tdx {theirs} {backend}"))?,
            ));
        }
    }
    Ok(figures)
}

/// Our ROM with as much before it as makes 4 MiB, no page like the one before it: its metadata counts from the end.
fn dense_rom() -> Result<PathBuf> {
    let rom = std::fs::read(firmware::build()?)?;
    let before = ROM_BYTES.saturating_sub(rom.len());
    let mut dense: Vec<u8> = (0..before).map(|at| (at / 3 + at / PAGE_BYTES) as u8).collect();
    dense.extend(rom);
    let path = paths::target().join("bench-rom.bin");
    std::fs::write(&path, dense)?;
    Ok(path)
}

/// A firmware image as Debian ships it.
fn ovmf() -> Result<PathBuf> {
    let image = Qemu::obtain(Need::Confidential)?.edk2();
    let bytes = std::fs::metadata(&image).with_context(|| format!("there is no {}", image.display()))?;
    ensure!(bytes.len() == ROM_BYTES as u64, "{} has not 4 MiB", image.display());
    Ok(image)
}

/// What the library's own benchmarks print, by name.
fn ours(roms: &[(&str, PathBuf); 2]) -> Result<BTreeMap<String, f64>> {
    let [(_, dense), (_, ovmf)] = roms;
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
        "--bench",
        "tdx",
    ]);
    let text = command::output(cargo.env("CLOISTER_BENCH_ROM", dense).env("CLOISTER_BENCH_OVMF", ovmf))?;
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
    // +F4:<number>:<bits>:<signatures a second>:<verifications a second>
    let line =
        text.lines().find(|line| line.starts_with("+F4:")).context("openssl speed prints no +F4 line")?;
    line.rsplit(':').next().unwrap_or_default().trim().parse().context("openssl speed")
}

/// What sev-snp-measure does in a second, as a library in one interpreter that has imported everything.
struct Theirs {
    digest: f64,
    /// For 1 to [`MOST_CPUS`] processors, with its own way not to hash the firmware again.
    digests: f64,
}

fn sev_snp_measure(rom: &Path) -> Result<Theirs> {
    const LOOP: &str = "import sys, time\n\
        from sevsnpmeasure import guest\n\
        from sevsnpmeasure.sev_mode import SevMode\n\
        rom, most = sys.argv[1], int(sys.argv[2])\n\
        def digest(cpus=1, **known):\n\
        \x20   return guest.calc_launch_digest(SevMode.SEV_SNP, cpus, 0xa10f11, rom, None, None, None, 0x1, **known)\n\
        def digests():\n\
        \x20   known = guest.calc_snp_ovmf_hash(rom).hex()\n\
        \x20   return [digest(cpus, snp_ovmf_hash_str=known) for cpus in range(1, most + 1)]\n\
        for work in digest, digests:\n\
        \x20   work()\n\
        \x20   best = 0\n\
        \x20   for _ in range(3):\n\
        \x20       start, count = time.perf_counter(), 0\n\
        \x20       while time.perf_counter() - start < 0.4:\n\
        \x20           work()\n\
        \x20           count += 1\n\
        \x20       best = max(best, count / (time.perf_counter() - start))\n\
        \x20   print(best)\n";
    let python = measurement::witness()?.with_file_name("python3");
    let _step = progress::step("sev-snp-measure, as a library");
    let mut program = Command::new(python);
    let text = command::output(program.args(["-c", LOOP]).arg(rom).arg(MOST_CPUS.to_string()))?;
    let mut rates = text.lines().map(str::parse);
    let mut next = || rates.next().context("no rate")?.context("no number");
    let mut theirs = || anyhow::Ok(Theirs { digest: next()?, digests: next()? });
    theirs().context("sev-snp-measure's rates")
}

/// How often it runs for all these numbers of processors in a second, once for each, interpreter and imports included.
fn sev_snp_measure_runs(rom: &Path, cpus: RangeInclusive<u32>) -> Result<f64> {
    const LAUNCH: [&str; 8] =
        ["--mode", "snp", "--vmm-type", "QEMU", "--vcpu-sig", "0xa10f11", "--guest-features", "0x1"];
    let tool = measurement::witness()?;
    let _step = progress::step("sev-snp-measure, as a program");
    let rounds = if cpus.start() == cpus.end() { ROUNDS } else { 1 };
    best_rate(rounds, || {
        for cpus in cpus.clone() {
            let mut program = Command::new(&tool);
            command::output(
                program.args(LAUNCH).args(["--vcpus", &cpus.to_string()]).arg("--ovmf").arg(rom),
            )?;
        }
        Ok(())
    })
}

/// How often our program runs in a second, for the same launches.
fn cloister_attest(rom: &Path, cpus: &str) -> Result<f64> {
    const LAUNCH: [&str; 8] =
        ["measure", "snp", "--vmm", "qemu", "--cpu-sig", "0xa10f11", "--guest-features", "0x1"];
    let _step = progress::step("cloister-attest");
    command::run(command::cargo().args(["build", "--quiet", "--release", "-p", "cloister-attest"]))?;
    let tool = paths::target().join("release/cloister-attest");
    best_rate(ROUNDS, || {
        let mut program = Command::new(&tool);
        command::output(program.args(LAUNCH).args(["--cpus", cpus]).arg("--firmware").arg(rom))?;
        Ok(())
    })
}

/// How often something is done in a second, at best.
fn best_rate(rounds: usize, mut work: impl FnMut() -> Result<()>) -> Result<f64> {
    let mut best = f64::MAX;
    for _ in 0..rounds {
        let start = Instant::now();
        work()?;
        best = best.min(start.elapsed().as_secs_f64());
    }
    Ok(1.0 / best)
}
