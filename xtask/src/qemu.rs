//! QEMU: the peer of the benchmarks, and an independent client of softkvm.
//!
//! The machine's own is used if it has one; otherwise its package is fetched and unpacked below the target directory.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use crate::apt::{self, Apt};
use crate::demo::{Parts, QuoteService, Tee};
use crate::{boot, command, kernel, measurement, paths, progress};

const PROGRAM: &str = "qemu-system-x86_64";
const PACKAGE: &str = "qemu-system-x86";
const COMPANIONS: [&str; 3] = ["qemu-system-common", "qemu-system-data", "seabios"];
/// EDK II for guests, in Debian's package.
const FIRMWARE: &str = "ovmf";
/// SeaBIOS and the option ROMs, in Debian's layout.
const DATA: [&str; 2] = ["usr/share/qemu", "usr/share/seabios"];
/// The dynamic linker of a tree that has its own libc.
const LOADER: &str = "usr/lib64/ld-linux-x86-64.so.2";
/// Suites that have a QEMU for confidential guests.
const SUITES: [&str; 2] = ["trixie-backports", "forky"];
const PATIENCE: Duration = Duration::from_secs(120);

/// What it is wanted for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Need {
    /// Plain guests.
    Emulator,
    /// Launching SEV-SNP guests and TDs.
    Confidential,
}

impl Need {
    /// The first version that can.
    const fn version(self) -> (u32, u32) {
        match self {
            Self::Emulator => (0, 0),
            Self::Confidential => (10, 1),
        }
    }

    /// Where a fetched one is kept.
    fn cache(self) -> PathBuf {
        paths::cache().join(match self {
            Self::Emulator => "qemu",
            Self::Confidential => "qemu-confidential",
        })
    }
}

/// A QEMU that runs.
pub struct Qemu {
    /// Where it was unpacked; `None` for the machine's own.
    root: Option<PathBuf>,
}

impl Qemu {
    /// The machine's, the cached, or a fetched one.
    pub fn obtain(need: Need) -> Result<Self> {
        let own = command::output(Command::new(PROGRAM).arg("--version")).unwrap_or_default();
        if program_version(&own).is_some_and(|version| version >= need.version()) {
            return Ok(Self { root: None });
        }
        let root = need.cache();
        if !root.join("complete").is_file() {
            fetch(need, &root).with_context(|| {
                let (major, minor) = need.version();
                format!("no QEMU {major}.{minor} or later: it is Debian's {PACKAGE}, fetched through apt; or install it")
            })?;
        }
        Ok(Self { root: Some(root) })
    }

    /// A command that runs `launcher`, if there is one, with QEMU as its last argument, or QEMU itself.
    pub fn command(&self, launcher: Option<Command>) -> Command {
        let mut words: Vec<OsString> = Vec::new();
        let mut library_path = None;
        match &self.root {
            None => words.push(PROGRAM.into()),
            Some(root) => {
                // Packages of releases before the merged /usr have some of theirs below /lib.
                let libraries = ["", "usr"].map(|prefix| root.join(prefix).join("lib/x86_64-linux-gnu"));
                let libraries = libraries.map(OsString::from).join(&OsString::from(":"));
                let loader = root.join(LOADER);
                if loader.exists() {
                    words.extend([loader.into(), "--library-path".into(), libraries]);
                } else {
                    library_path = Some(libraries);
                }
                words.push(root.join("usr/bin").join(PROGRAM).into());
                words.extend(DATA.iter().flat_map(|data| ["-L".into(), root.join(data).into()]));
            }
        }
        let mut words = words.into_iter();
        let mut command =
            launcher.unwrap_or_else(|| Command::new(words.next().unwrap_or_else(|| PROGRAM.into())));
        command.args(words);
        command.envs(library_path.map(|path| ("LD_LIBRARY_PATH", path)));
        command
    }

    /// EDK II, as Debian builds it for guests of this QEMU.
    pub fn edk2(&self) -> PathBuf {
        self.root.as_deref().unwrap_or(Path::new("/")).join("usr/share/ovmf/OVMF.fd")
    }
}

/// From what QEMU prints first: `QEMU emulator version 10.0.2 (Debian …)`.
fn program_version(text: &str) -> Option<(u32, u32)> {
    apt::major_and_minor(text.strip_prefix("QEMU emulator version ")?)
}

fn fetch(need: Need, root: &Path) -> Result<()> {
    let _step = progress::step(format!("fetching {PACKAGE}"));
    let has_it = |apt: &Apt| {
        let version = apt.candidate(PACKAGE)?.as_deref().and_then(apt::major_and_minor);
        Ok(version.filter(|version| *version >= need.version()).map(drop))
    };
    let release = apt::release().context("/etc/os-release names no release")?;
    let (apt, ()) = match need {
        Need::Emulator => Apt::find(&[&release], has_it)?,
        Need::Confidential => Apt::find(&SUITES, has_it)?,
    };
    let download = root.join("packages");
    let _ = fs::remove_dir_all(root);
    fs::create_dir_all(&download)?;
    // QEMU looks for its modules and ROMs beside itself, even where the machine has those packages already.
    let mut packages: BTreeSet<String> = apt.missing_for(PACKAGE)?.into_iter().collect();
    packages.extend(COMPANIONS.map(str::to_owned));
    if need == Need::Confidential {
        packages.insert(FIRMWARE.to_owned());
    }
    apt.download(&Vec::from_iter(packages), &download)?;
    for entry in fs::read_dir(&download)? {
        apt::unpack(&entry?.path(), root)?;
    }
    fs::remove_dir_all(&download)?;
    // Written last: it is what makes the cache complete.
    fs::write(root.join("complete"), "")?;
    Ok(())
}

/// The demo's kernel and initrd on a PC, for which the kernel's console is yet to be added.
fn pc(mut command: Command, machine: &str, parts: &Parts) -> Command {
    command.args(["-machine", machine, "-m", "512", "-nodefaults", "-no-reboot", "-display", "none"]);
    command.arg("-kernel").arg(&parts.kernel).arg("-initrd").arg(&parts.initrd);
    command
}

/// As the benchmark's guests: the kernel's console is virtio's, and goes to a file.
pub fn with_virtio_console(command: Command, machine: &str, parts: &Parts, console: &Path) -> Command {
    let mut command = pc(command, machine, parts);
    command.args(["-append", boot::COMMAND_LINE]);
    command.arg("-chardev").arg(boot::option("file,id=console,path=", console));
    command.args(["-device", "virtio-serial-pci", "-device", "virtconsole,chardev=console"]);
    command
}

/// The kernel's console is a serial port: one more device and its interrupt, and lines from the beginning.
fn with_serial_console(command: Command, machine: &str, parts: &Parts, console: &Path) -> Command {
    let mut command = pc(command, machine, parts);
    command.args(["-append", SERIAL]);
    command.arg("-serial").arg(boot::option("file:", console));
    command
}

/// The command line for a kernel whose console is a serial port.
const SERIAL: &str = "console=ttyS0 panic=-1 cryptomgr.notests";

/// Where the interrupt chips are, and what else differs: what QEMU then asks of KVM is different each time.
const MACHINES: &[(&str, &str)] = &[
    ("pc,accel=kvm", "1"),
    ("q35,accel=kvm", "2"),
    ("q35,accel=kvm,kernel-irqchip=split", "2"),
    ("pc,accel=kvm,kernel-irqchip=off", "1"),
];

/// The machine of a confidential guest.
const PROTECTED: &str = "q35,accel=kvm,kernel-irqchip=split";

/// An unmodified QEMU boots the demo's kernel on softkvm, however it divides the interrupt chips with KVM, and launches it as
/// an SEV-SNP guest and as a TD.
pub fn check() -> Result<()> {
    let parts = Parts::build(&kernel::Options::default())?;
    let console = paths::target().join("qemu-console.log");
    let qemu = Qemu::obtain(Need::Emulator)?;
    for (machine, cpus) in MACHINES {
        let _step = progress::step(format!("QEMU, {machine}"));
        let mut softkvm = parts.tool("softkvm");
        softkvm.args(["--tee", "none", "--"]);
        let mut command = with_serial_console(qemu.command(Some(softkvm)), machine, &parts, &console);
        command.args(["-smp", cpus]);
        let booted =
            boot::until(boot::INIT, command, &console, PATIENCE).with_context(|| (*machine).to_owned())?;
        let text = fs::read_to_string(&console).unwrap_or_default();
        let brought_up = format!("Brought up 1 node, {cpus} CPU");
        ensure!(text.contains(&brought_up), "{machine}: the kernel did not say {brought_up:?}");
        println!("QEMU, {machine}, {cpus} CPUs: init after {:.1} s", booted.seconds);
    }
    confidential(&parts, &console)
}

/// QEMU launches our ROM and EDK II as SEV-SNP guests and as TDs; the guest's report or quote says what a witness predicts.
/// The witnesses are sev-snp-measure and a program that shares nothing with `cloister-attest`.
fn confidential(parts: &Parts, console: &Path) -> Result<()> {
    let qemu = Qemu::obtain(Need::Confidential)?;
    let state = paths::cache().join("softkvm-state");
    let socket = paths::target().join("qemu-qgs");
    let _ = fs::remove_file(&socket);
    let _quotes = QuoteService::start(Tee::Tdx, parts, &state, socket.clone())?;
    let edk2 = qemu.edk2();
    for (tee, firmware, cpus) in [
        (Tee::Snp, &parts.rom, 1),
        (Tee::Snp, &parts.rom, 2),
        (Tee::Tdx, &parts.rom, 1),
        (Tee::Tdx, &parts.rom, 2),
        (Tee::Snp, &edk2, 2),
        (Tee::Tdx, &edk2, 2),
    ] {
        let ours = firmware == &parts.rom;
        let guest = format!("{}, {}, {cpus} CPUs", tee.name(), if ours { "our ROM" } else { "EDK II" });
        let predicted = match tee {
            Tee::Snp => measurement::by_sev_snp_measure(firmware, ours.then_some((parts, SERIAL)), cpus)?,
            Tee::Tdx => measurement::mrtd_apart(firmware, "page-by-page")?,
        };
        let _step = progress::step(format!("QEMU, {guest}"));
        let mut softkvm = parts.tool("softkvm");
        softkvm.arg("--state").arg(&state).args(["--tee", tee.name(), "--"]);
        let machine = format!("{PROTECTED},confidential-guest-support=tee,memory-backend=ram");
        let mut command = with_serial_console(qemu.command(Some(softkvm)), &machine, parts, console);
        command.args(["-cpu", "host", "-smp", &cpus.to_string(), "-object", &tee_object(tee, ours, &socket)]);
        command.args(["-object", "memory-backend-memfd,id=ram,size=512M,share=true"]);
        command.arg("-bios").arg(firmware);
        let said = format!("cloister-guest: measurement {predicted}");
        let booted = boot::until(&said, command, console, PATIENCE).with_context(|| guest.clone())?;
        println!("QEMU, {guest}: reports {predicted} after {:.1} s", booted.seconds);
    }
    let _ = fs::remove_file(&socket);
    Ok(())
}

/// The object that makes QEMU's guest confidential. Debian's EDK II has no place for a kernel's hashes.
fn tee_object(tee: Tee, kernel_hashes: bool, quotes: &Path) -> String {
    match tee {
        Tee::Snp => {
            let hashes = if kernel_hashes { "on" } else { "off" };
            format!(
                "sev-snp-guest,id=tee,cbitpos=51,reduced-phys-bits=1,policy=0x30000,kernel-hashes={hashes}"
            )
        }
        Tee::Tdx => {
            let socket = serde_json::json!({"type": "unix", "path": quotes});
            serde_json::json!({"qom-type": "tdx-guest", "id": "tee", "quote-generation-socket": socket})
                .to_string()
        }
    }
}
