//! Verification and launch digests: what the library does beside the crates `sev` and `dcap-qvl`, beside the P-384 arithmetic
//! that it stands on, and beside sev-snp-measure, both as programs and as libraries.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use anyhow::{Context, Result};
use serde_json::Value;

use super::Figure;
use crate::apt::{self, Apt};
use crate::{command, firmware, measurement, paths, progress};

const ROM_BYTES: usize = 4 << 20;
const ROUNDS: usize = 10;

/// Debian's package of OVMF, and where its image with SEV metadata is in it.
const OVMF_PACKAGE: &str = "ovmf";
const OVMF_FILES: [&str; 2] = ["usr/share/ovmf/OVMF.amdsev.fd", "usr/share/ovmf/OVMF.fd"];

/// Runs the benchmark.
pub fn run() -> Result<Vec<Figure>> {
    let roms = [("padded", padded_rom()?), ("OVMF", ovmf()?)];
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
        let digest = get(&format!("launch digest {name}"))?;
        let (their_digest, their_program) = sev_snp_measure(rom)?;
        figures.push(rate(&format!("{what}, in one process"), digest, "sev-snp-measure", their_digest));
        let limit = get(&format!("hash {name}"))?;
        figures.push(rate(&format!("{what}, in one process"), digest, "SHA-384 on all processors", limit));
        let program = cloister_attest(rom)?;
        figures.push(rate(&format!("{what}, a process each"), program, "sev-snp-measure", their_program));
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

/// Our ROM with as much before it as makes 4 MiB: its metadata counts from the end.
fn padded_rom() -> Result<PathBuf> {
    let rom = std::fs::read(firmware::build()?)?;
    let mut padded: Vec<u8> = (0..ROM_BYTES.saturating_sub(rom.len())).map(|at| (at / 3) as u8).collect();
    padded.extend(rom);
    let path = paths::target().join("bench-rom.bin");
    std::fs::write(&path, padded)?;
    Ok(path)
}

/// A firmware image as distributions ship it: the machine's own, or that of the package.
fn ovmf() -> Result<PathBuf> {
    let unpacked = paths::cache().join("ovmf");
    let found = || {
        let roots = [Path::new("/"), &unpacked];
        let files = OVMF_FILES.iter().flat_map(|file| roots.map(|root| root.join(file)));
        files.into_iter().find(|path| path.is_file())
    };
    if let Some(path) = found() {
        return Ok(path);
    }
    let _step = progress::step("fetching OVMF (once)");
    std::fs::create_dir_all(&unpacked)?;
    let (apt, _) = Apt::find(&["bookworm", "trixie"], |apt| apt.candidate(OVMF_PACKAGE))?;
    apt.download(&[OVMF_PACKAGE], &unpacked)?;
    for file in std::fs::read_dir(&unpacked)?.filter_map(|entry| Some(entry.ok()?.path())) {
        if file.extension().is_some_and(|extension| extension == "deb") {
            apt::unpack(&file, &unpacked)?;
        }
    }
    found().with_context(|| format!("the package {OVMF_PACKAGE} has none of {}", OVMF_FILES.join(", ")))
}

/// What the library's own benchmarks print, by name.
fn ours(roms: &[(&str, PathBuf); 2]) -> Result<BTreeMap<String, f64>> {
    let [(_, padded), (_, ovmf)] = roms;
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
    let text = command::output(cargo.env("CLOISTER_BENCH_ROM", padded).env("CLOISTER_BENCH_OVMF", ovmf))?;
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

/// What sev-snp-measure does in a second: as a library in one interpreter that has imported everything and made one digest, and
/// as the program that it is, interpreter and imports included.
fn sev_snp_measure(rom: &Path) -> Result<(f64, f64)> {
    const LOOP: &str = "import sys, time\n\
        from sevsnpmeasure import guest\n\
        from sevsnpmeasure.sev_mode import SevMode\n\
        def digest():\n\
        \x20   return guest.calc_launch_digest(SevMode.SEV_SNP, 1, 0xa10f11, sys.argv[1], None, None, None, 0x1)\n\
        digest()\n\
        best = 0\n\
        for _ in range(3):\n\
        \x20   start, count = time.perf_counter(), 0\n\
        \x20   while time.perf_counter() - start < 0.4:\n\
        \x20       digest()\n\
        \x20       count += 1\n\
        \x20   best = max(best, count / (time.perf_counter() - start))\n\
        print(best)\n";
    let tool = measurement::witness()?;
    let _step = progress::step("sev-snp-measure");
    let python = tool.with_file_name("python3");
    let library = command::output(Command::new(python).args(["-c", LOOP]).arg(rom))?;
    let arguments = [
        "--mode",
        "snp",
        "--vmm-type",
        "QEMU",
        "--vcpus",
        "1",
        "--vcpu-sig",
        "0xa10f11",
        "--guest-features",
        "0x1",
    ];
    let program = runs(&tool, &arguments, "--ovmf", rom)?;
    Ok((library.trim().parse().context("sev-snp-measure's rate")?, program))
}

/// Our program, for the same launch.
fn cloister_attest(rom: &Path) -> Result<f64> {
    let _step = progress::step("cloister-attest");
    command::run(command::cargo().args(["build", "--quiet", "--release", "-p", "cloister-attest"]))?;
    let tool = paths::target().join("release/cloister-attest");
    let arguments = [
        "measure",
        "snp",
        "--vmm",
        "qemu",
        "--cpus",
        "1",
        "--cpu-sig",
        "0xa10f11",
        "--guest-features",
        "0x1",
    ];
    runs(&tool, &arguments, "--firmware", rom)
}

/// How often a program runs in a second, at best.
fn runs(tool: &Path, arguments: &[&str], firmware: &str, rom: &Path) -> Result<f64> {
    let mut best = f64::MAX;
    for _ in 0..ROUNDS {
        let start = Instant::now();
        let mut program = Command::new(tool);
        command::output(program.args(arguments).arg(firmware).arg(rom))?;
        best = best.min(start.elapsed().as_secs_f64());
    }
    Ok(1.0 / best)
}
