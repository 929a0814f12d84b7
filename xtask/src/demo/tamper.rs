//! What can be tampered with, how it is done, and who must refuse.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use super::{Parts, command_line};
use crate::paths;

/// An attack.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Tamper {
    /// Another firmware.
    Firmware,
    /// Another kernel.
    Kernel,
    /// Another initial RAM disk.
    Initrd,
    /// Another command line.
    Cmdline,
    /// A guest policy that lets the host debug the guest.
    PolicyDebug,
    /// A CPUID page that the processor does not support.
    CpuidPage,
    /// Evidence from another session.
    ReplayNonce,
    /// The host's key in place of the guest's.
    OtherKey,
    /// Firmware of the platform that was rolled back.
    StaleTcb,
    /// A validated page swapped for another.
    RamRemap,
    /// A private page declared shared.
    SharedCode,
}

/// Who must refuse, and the words by which one knows it.
pub struct Expected {
    /// Who.
    pub who: &'static str,
    /// In the broker's log, the VMM's output or the guest's console.
    pub evidence: &'static [&'static str],
}

impl Tamper {
    /// Who must refuse this.
    pub fn expected(self) -> Expected {
        let (who, evidence): (_, &[_]) = match self {
            Self::Firmware => ("broker", &["release denied by policy"]),
            Self::Kernel => ("firmware", &["kernel hash mismatch"]),
            Self::Initrd => ("firmware", &["initrd hash mismatch"]),
            Self::Cmdline => ("firmware", &["command line hash mismatch"]),
            Self::PolicyDebug => ("broker", &["attestation refused", "debug"]),
            Self::CpuidPage => ("firmware", &["CPUID page refused"]),
            Self::ReplayNonce => ("broker", &["attestation refused", "nonce-mismatch"]),
            Self::OtherKey => ("broker", &["attestation refused", "report-data"]),
            Self::StaleTcb => ("broker", &["attestation refused", "tcb"]),
            Self::RamRemap => ("kernel", &["HOSTILE", "guest terminated"]),
            Self::SharedCode => ("secure processor", &["HOSTILE", "the processor does not let the guest"]),
        };
        Expected { who, evidence }
    }
}

/// What the host launches.
pub struct Launch {
    pub rom: PathBuf,
    pub kernel: PathBuf,
    pub initrd: PathBuf,
    pub command_line: String,
    pub memory: &'static str,
    /// Further arguments of `cloister run`.
    pub arguments: Vec<&'static str>,
}

impl Launch {
    /// The parts as the owner built them, but for what is tampered with.
    pub fn prepare(tamper: Option<Tamper>, parts: &Parts, dir: &Path) -> Result<Self> {
        let mut launch = Self {
            rom: parts.rom.clone(),
            kernel: parts.kernel.clone(),
            initrd: parts.initrd.clone(),
            command_line: command_line(),
            memory: "512M",
            arguments: Vec::new(),
        };
        match tamper {
            // The first bytes of the ROM are never executed: the guest runs as ever, and only its measurement tells.
            Some(Tamper::Firmware) => launch.rom = changed(&parts.rom, dir, |bytes| bytes[0] ^= 1)?,
            // The host has the good files measured, and serves others.
            Some(Tamper::Kernel) => launch.arguments.extend(["--hostile", "kernel"]),
            Some(Tamper::Initrd) => launch.arguments.extend(["--hostile", "initrd"]),
            Some(Tamper::Cmdline) => launch.arguments.extend(["--hostile", "cmdline"]),
            Some(Tamper::PolicyDebug) => {
                launch.arguments.extend(["--snp-policy", "0xb0000", "--allow-debug"])
            }
            Some(Tamper::CpuidPage) => launch.arguments.extend(["--hostile", "cpuid-page"]),
            Some(Tamper::RamRemap) => {
                // The kernel must be where the attack does not hit its own fault handler.
                launch.command_line.push_str(" nokaslr");
                // So little memory that Linux needs the swapped pages before it is done.
                launch.memory = "224M";
                launch.arguments.extend(["--hostile", "ram-remap"]);
            }
            Some(Tamper::SharedCode) => launch.arguments.extend(["--hostile", "shared-code"]),
            Some(Tamper::ReplayNonce | Tamper::OtherKey | Tamper::StaleTcb) | None => {}
        }
        Ok(launch)
    }
}

fn changed(path: &Path, dir: &Path, change: impl FnOnce(&mut Vec<u8>)) -> Result<PathBuf> {
    let mut bytes = fs::read(path).with_context(|| path.display().to_string())?;
    change(&mut bytes);
    let target = dir.join("tampered");
    fs::write(&target, bytes).with_context(|| target.display().to_string())?;
    Ok(target)
}

/// The emulated platform: keys are made once and kept. A rolled-back platform is the same chip with older firmware.
pub fn state_directory(tamper: Option<Tamper>) -> Result<PathBuf> {
    let usual = paths::cache().join("softkvm-state");
    if tamper != Some(Tamper::StaleTcb) {
        return Ok(usual);
    }
    let stale = paths::cache().join("softkvm-state-stale");
    if !stale.exists() {
        fs::create_dir_all(&stale)?;
        for file in ["ark.key.pem", "ask.key.pem", "ark.der", "ask.der", "crl.der", "chip.seed"] {
            if let Ok(bytes) = fs::read(usual.join(file)) {
                fs::write(stale.join(file), bytes)?;
            }
        }
        let model = r#"{"report_version":3,"tcb":{"boot_loader":7,"tee":0,"snp":14,"microcode":72},"platform_info":33}"#;
        fs::write(stale.join("platform.json"), model)?;
    }
    Ok(stale)
}
