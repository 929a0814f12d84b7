//! The launch digest of our own ROM, computed by a tool that this project did not write.

use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};

use crate::demo::{self, Parts, Tee};
use crate::{command, paths, progress};

/// The independent witness and its version.
const WITNESS: &str = "sev-snp-measure==0.0.13";
const CPUS: &[u32] = &[1, 2, 8];

/// The witness, installed if need be.
pub fn witness() -> Result<std::path::PathBuf> {
    let environment = paths::cache().join("tools/python");
    let tool = environment.join("bin/sev-snp-measure");
    if !tool.exists() {
        let _step = progress::step("installing sev-snp-measure (once)");
        command::output(Command::new("python3").args(["-m", "venv"]).arg(&environment))
            .context("python3 -m venv")?;
        let pip = environment.join("bin/pip");
        command::output(Command::new(pip).args([
            "install",
            "--quiet",
            "--disable-pip-version-check",
            WITNESS,
        ]))?;
    }
    Ok(tool)
}

/// What the witness computes for a firmware that is to load the demo's kernel and initrd: with their hashes, if it has a place
/// for them.
pub fn by_sev_snp_measure(firmware: &Path, kernel: Option<(&Parts, &str)>, cpus: u32) -> Result<String> {
    const LAUNCH: [&str; 8] =
        ["--mode", "snp", "--vmm-type", "QEMU", "--guest-features", "0x1", "--vcpu-sig", "0xa10f11"];
    let mut witness = Command::new(witness()?);
    witness.args(LAUNCH).args(["--vcpus", &cpus.to_string()]).arg("--ovmf").arg(firmware);
    if let Some((parts, command_line)) = kernel {
        witness.arg("--kernel").arg(&parts.kernel).arg("--initrd").arg(&parts.initrd);
        witness.args(["--append", command_line]);
    }
    Ok(command::output(&mut witness)?.trim().to_owned())
}

/// Compares `cloister-attest measure snp` with the witness.
pub fn check(parts: &Parts) -> Result<()> {
    for &cpus in CPUS {
        let line = demo::command_line(demo::EXAMPLE_PIN);
        let reference = paths::target().join("reference.json");
        let ours = demo::measure(parts, (Tee::Snp, cpus), &line, &reference)?;
        let theirs = by_sev_snp_measure(&parts.rom, Some((parts, &line)), cpus)?;
        ensure!(ours == theirs, "{cpus} CPUs: cloister-attest says {ours}, sev-snp-measure {theirs}");
        println!("{cpus} CPUs: {ours}, as sev-snp-measure says");
    }
    Ok(())
}
