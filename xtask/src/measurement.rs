//! The launch digest of our own ROM, computed by a tool that this project did not write.

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

/// Compares `cloister-attest measure snp` with the witness.
pub fn check() -> Result<()> {
    let parts = Parts::build(&crate::kernel::Options::default())?;
    let tool = witness()?;
    for &cpus in CPUS {
        let ours = demo::measure(&parts, Tee::Snp, cpus, &paths::target().join("reference.json"))?;
        let mut other = Command::new(&tool);
        other.args([
            "--mode",
            "snp",
            "--vmm-type",
            "QEMU",
            "--guest-features",
            "0x1",
            "--vcpu-sig",
            "0xa10f11",
        ]);
        other
            .args(["--vcpus", &cpus.to_string()])
            .arg("--ovmf")
            .arg(&parts.rom)
            .arg("--kernel")
            .arg(&parts.kernel);
        other.arg("--initrd").arg(&parts.initrd).arg("--append").arg(demo::command_line());
        let theirs = command::output(&mut other)?;
        ensure!(
            ours == theirs.trim(),
            "{cpus} CPUs: cloister-attest says {ours}, sev-snp-measure {}",
            theirs.trim()
        );
        println!("{cpus} CPUs: {ours}, as sev-snp-measure says");
    }
    Ok(())
}
