//! What can be tampered with, how it is done, and who must refuse.

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use super::tee::QuoteService;
use super::{MEMORY, Parts, RESOURCE, Tee, sysrq};
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
    /// Attributes that let the host debug the TD.
    DebugAttribute,
    /// A CPUID page that the processor does not support.
    CpuidPage,
    /// Evidence from another session.
    ReplayNonce,
    /// The host's key in place of the guest's.
    OtherKey,
    /// Firmware of the platform that was rolled back.
    StaleTcb,
    /// Security versions of the platform for which there is an update.
    TcbOutOfDate,
    /// A platform whose certificate was revoked.
    TcbRevoked,
    /// A quoting enclave that is not Intel's.
    QeIdentity,
    /// An event log that says something else than what was measured.
    EventLog,
    /// A validated page swapped for another.
    RamRemap,
    /// A private page declared shared.
    SharedCode,
    /// Pages that the launch adds unmeasured, filled with what would wake a processor into them.
    LaunchMemory,
    /// Interrupt vectors of the host's in memory, and an NMI for the parked second processor.
    ApNmi,
    /// The same, with that processor started as it was launched when Linux runs already.
    LateApStart,
    /// Memory below 1 MiB that the host has filled before the guest accepts it.
    StalePage,
    /// A secret of the host's own in place of the broker's.
    ForgedSecret,
    /// Another secret of the broker's under the wanted name.
    SwappedSecret,
    /// The broker's answer to an earlier request of the same guest.
    OldSecret,
    /// Magic SysRq typed at the guest's console.
    Sysrq,
}

/// Who must refuse, and the words by which one knows it.
pub struct Expected {
    /// Who.
    pub who: &'static str,
    /// In the broker's log, the VMM's output or the guest's console.
    pub evidence: &'static [&'static str],
    /// In none of them: what they would say if the attack had succeeded.
    pub never: &'static [&'static str],
}

impl Tamper {
    /// Who must refuse this; `None` if it is no attack on a guest of that kind.
    pub fn expected(self, tee: Tee) -> Option<Expected> {
        const BY_POLICY: &[&str] = &["release denied by policy"];
        let (who, evidence): (_, &[_]) = match (self, tee) {
            (Self::Firmware, _) => ("broker", BY_POLICY),
            (Self::Kernel, Tee::Snp) => ("firmware", &["kernel hash mismatch"]),
            (Self::Initrd, Tee::Snp) => ("firmware", &["initrd hash mismatch"]),
            (Self::Cmdline, Tee::Snp) => ("firmware", &["command line hash mismatch"]),
            // The firmware of a TD measures what it is given; the RTMRs tell.
            (Self::Kernel | Self::Initrd | Self::Cmdline, Tee::Tdx) => ("broker", BY_POLICY),
            (Self::PolicyDebug, Tee::Snp) => ("broker", &["attestation refused", "debug"]),
            (Self::DebugAttribute, Tee::Tdx) => {
                ("broker", &["attestation refused", "td-attributes-forbidden"])
            }
            (Self::CpuidPage, Tee::Snp) => ("firmware", &["CPUID page refused"]),
            (Self::ReplayNonce, _) => ("broker", &["attestation refused", "nonce-mismatch"]),
            (Self::OtherKey, _) => ("broker", &["attestation refused", "report-data"]),
            (Self::StaleTcb, Tee::Snp) => ("broker", &["attestation refused", "tcb"]),
            (Self::TcbOutOfDate, Tee::Tdx) => ("broker", &["attestation refused", "tcb-status"]),
            (Self::TcbRevoked, Tee::Tdx) => ("broker", &["attestation refused", "certificate-revoked"]),
            (Self::QeIdentity, Tee::Tdx) => ("broker", &["attestation refused", "qe-identity"]),
            (Self::EventLog, Tee::Tdx) => ("broker", &["attestation refused", "event-log"]),
            (Self::RamRemap, Tee::Snp) => ("kernel", &["HOSTILE", "guest terminated"]),
            (Self::RamRemap, Tee::Tdx) => ("TDX module", &["HOSTILE", "KVM_RUN"]),
            (Self::SharedCode, Tee::Snp) => ("secure processor", SHARED_CODE),
            (Self::SharedCode, Tee::Tdx) => ("TDX module", SHARED_CODE),
            (Self::LaunchMemory, Tee::Tdx) => (NOBODY, &["HOSTILE"]),
            // An interrupt that the launch state cannot take shuts the processor down; see the firmware's `vectors`.
            (Self::ApNmi, _) | (Self::LateApStart, Tee::Snp) => ("processor", &["HOSTILE", "triple fault"]),
            (Self::StalePage, _) => (NOBODY, &["HOSTILE"]),
            (Self::ForgedSecret, _) => (GUEST, &["is not believed: it is for another message"]),
            (Self::SwappedSecret, _) => (GUEST, &["is not believed: it is for another resource"]),
            (Self::OldSecret, _) => (GUEST, &["is not believed: it is for another request"]),
            (Self::Sysrq, _) => (NOBODY, &[sysrq::MARK]),
            _ => return None,
        };
        let never: &[_] = match self {
            Self::ApNmi => &["hostile/key/disk"],
            Self::LateApStart => &["terminated: 15:173"],
            Self::StalePage => &["iBFT found"],
            _ => &[],
        };
        Some(Expected { who, evidence, never })
    }

    /// Processors that a guest must have for this attack.
    pub fn cpus(self) -> u32 {
        match self {
            // It is on the second.
            Self::LaunchMemory | Self::ApNmi | Self::LateApStart => 2,
            _ => 1,
        }
    }
}

/// Refuses what a guest goes through unharmed.
pub const NOBODY: &str = "nobody";
/// Refuses what the broker gave for it, or what the host did.
pub const GUEST: &str = "guest";

const SHARED_CODE: &[&str] = &["HOSTILE", "the processor does not let the guest"];

/// The command line that the owner has measured.
pub fn command_line(tamper: Option<Tamper>, pin: &str) -> String {
    let usual = super::command_line(pin);
    match tamper {
        // What Linux finds in low memory it says before there is an hvc0; a serial console repeats all that was said.
        Some(Tamper::StalePage) => format!("console=ttyS0 {usual}"),
        // This guest's owner has it ask again.
        Some(Tamper::OldSecret) => format!("{usual} cloister.secret={RESOURCE}"),
        _ => usual,
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
    pub arguments: Vec<OsString>,
}

impl Launch {
    /// The parts as the owner built them, but for what is tampered with.
    pub fn prepare(
        tamper: Option<Tamper>,
        parts: &Parts,
        dir: &Path,
        quotes: Option<&QuoteService>,
        command_line: String,
    ) -> Result<Self> {
        let mut launch = Self {
            rom: parts.rom.clone(),
            kernel: parts.kernel.clone(),
            initrd: parts.initrd.clone(),
            command_line,
            memory: MEMORY,
            arguments: Vec::new(),
        };
        if let Some(service) = quotes {
            let mut address = OsString::from("unix:");
            address.push(&service.socket);
            launch.arguments.extend(["--quote-service".into(), address]);
        }
        let mut say = |arguments: &[&str]| launch.arguments.extend(arguments.iter().map(OsString::from));
        match tamper {
            // The first bytes of the ROM are never executed: the guest runs as ever, and only its measurement tells.
            Some(Tamper::Firmware) => launch.rom = changed(&parts.rom, dir, |bytes| bytes[0] ^= 1)?,
            // The host has the good files measured, and serves others.
            Some(Tamper::Kernel) => say(&["--hostile", "kernel"]),
            Some(Tamper::Initrd) => say(&["--hostile", "initrd"]),
            Some(Tamper::Cmdline) => say(&["--hostile", "cmdline"]),
            Some(Tamper::PolicyDebug) => say(&["--snp-policy", "0xb0000", "--allow-debug"]),
            Some(Tamper::DebugAttribute) => say(&["--tdx-attributes", "0x10000001", "--allow-debug"]),
            Some(Tamper::CpuidPage) => say(&["--hostile", "cpuid-page"]),
            Some(Tamper::RamRemap) => {
                say(&["--hostile", "ram-remap"]);
                // The kernel must be where the attack does not hit its own fault handler.
                launch.command_line.push_str(" nokaslr");
                // So little memory that Linux needs the swapped pages before it is done.
                launch.memory = "224M";
            }
            Some(Tamper::SharedCode) => say(&["--hostile", "shared-code"]),
            Some(Tamper::LaunchMemory) => say(&["--hostile", "launch-memory"]),
            Some(Tamper::ApNmi) => say(&["--hostile", "ap-nmi"]),
            Some(Tamper::LateApStart) => say(&["--hostile", "late-ap-start"]),
            Some(Tamper::StalePage) => say(&["--hostile", "stale-page"]),
            // These are the platform's, or happen on the way to the broker.
            Some(
                Tamper::ReplayNonce
                | Tamper::OtherKey
                | Tamper::StaleTcb
                | Tamper::TcbOutOfDate
                | Tamper::TcbRevoked
                | Tamper::QeIdentity
                | Tamper::EventLog
                | Tamper::ForgedSecret
                | Tamper::SwappedSecret
                | Tamper::OldSecret
                | Tamper::Sysrq,
            )
            | None => {}
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

/// A platform that is bad: whose model says so, and how it differs from the usual one.
struct BadPlatform {
    tee: Tee,
    directory: &'static str,
    model: &'static str,
}

impl Tamper {
    fn platform(self) -> Option<BadPlatform> {
        let (tee, directory, model) = match self {
            Self::StaleTcb => (
                Tee::Snp,
                "softkvm-state-stale",
                r#"{"report_version":3,"tcb":{"boot_loader":7,"tee":0,"snp":14,"microcode":72},"platform_info":33}"#,
            ),
            Self::TcbOutOfDate => (
                Tee::Tdx,
                "softkvm-state-out-of-date",
                r#"{"versions":{"sgx":[2,2,2,2,3,1,0,3,0,0,0,0,0,0,0,0],"pcesvn":11,"qe_isvsvn":4},
                    "tee_tcb_svn":[3,1,2,0,0,0,0,0,0,0,0,0,0,0,0,0]}"#,
            ),
            Self::TcbRevoked => (Tee::Tdx, "softkvm-state-revoked", r#"{"pck_revoked":true}"#),
            Self::QeIdentity => (Tee::Tdx, "softkvm-state-alien-qe", r#"{"alien_qe":true}"#),
            // A KVM that lets its client have such TDs; Linux's does not.
            Self::DebugAttribute => (Tee::Tdx, "softkvm-state-debug", r#"{"kvm_allows_debug":true}"#),
            _ => return None,
        };
        Some(BadPlatform { tee, directory, model })
    }
}

/// Keys of the emulated AMD chip: a rolled-back platform is the same chip with older firmware.
const CHIP: [&str; 6] = ["ark.key.pem", "ask.key.pem", "ark.der", "ask.der", "crl.der", "chip.seed"];

/// The emulated platform: keys are made once and kept. A bad platform has a directory of its own.
pub fn state_directory(tee: Tee, tamper: Option<Tamper>) -> Result<PathBuf> {
    let usual = paths::cache().join("softkvm-state");
    let Some(bad) = tamper.and_then(Tamper::platform).filter(|bad| bad.tee == tee) else { return Ok(usual) };
    let directory = paths::cache().join(bad.directory);
    if !directory.exists() {
        fs::create_dir_all(&directory)?;
        let model = match bad.tee {
            Tee::Snp => "platform.json",
            Tee::Tdx => "tdx-platform.json",
        };
        for file in CHIP.iter().filter(|_| bad.tee == Tee::Snp) {
            if let Ok(bytes) = fs::read(usual.join(file)) {
                fs::write(directory.join(file), bytes)?;
            }
        }
        fs::write(directory.join(model), bad.model)?;
    }
    Ok(directory)
}
