//! QEMU: the peer of the benchmarks, and an independent client of softkvm.
//!
//! The machine's own is used if it has one; otherwise its package is fetched and unpacked below the target directory.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use crate::apt::{self, Apt};
use crate::demo::Parts;
use crate::{boot, command, kernel, measurement, paths, progress};

const PROGRAM: &str = "qemu-system-x86_64";
const PACKAGE: &str = "qemu-system-x86";
const COMPANIONS: [&str; 3] = ["qemu-system-common", "qemu-system-data", "seabios"];
/// SeaBIOS and the option ROMs, in Debian's layout.
const DATA: [&str; 2] = ["usr/share/qemu", "usr/share/seabios"];
const PATIENCE: Duration = Duration::from_secs(120);

/// A QEMU that runs.
pub struct Qemu {
    /// Where it was unpacked; `None` for the machine's own.
    root: Option<PathBuf>,
}

/// What it is wanted for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Need {
    /// Plain guests.
    Emulator,
    /// Launching SEV-SNP guests.
    Snp,
}

impl Need {
    /// The first version that can.
    const fn version(self) -> (u32, u32) {
        match self {
            Self::Emulator => (0, 0),
            Self::Snp => (9, 1),
        }
    }

    /// Where a fetched one is kept.
    fn cache(self) -> PathBuf {
        paths::cache().join(match self {
            Self::Emulator => "qemu",
            Self::Snp => "qemu-snp",
        })
    }
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
                format!(
                    "no QEMU of version {major}.{minor} or later: it is Debian's {PACKAGE}, fetched through apt; or install it"
                )
            })?;
        }
        Ok(Self { root: Some(root) })
    }

    /// A command that runs `launcher`, if there is one, with QEMU as its last argument, or QEMU itself.
    pub fn command(&self, launcher: Option<Command>) -> Command {
        let program =
            self.root.as_ref().map_or(PathBuf::from(PROGRAM), |root| root.join("usr/bin").join(PROGRAM));
        let mut command = match launcher {
            Some(mut launcher) => {
                launcher.arg(program);
                launcher
            }
            None => Command::new(program),
        };
        if let Some(root) = &self.root {
            command.env("LD_LIBRARY_PATH", root.join("usr/lib/x86_64-linux-gnu"));
            for data in DATA {
                command.arg("-L").arg(root.join(data));
            }
        }
        command
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
    // Its libraries must be those of this machine's own release.
    let release = apt::release().context("/etc/os-release names no release")?;
    let (apt, ()) = Apt::find(&[&release, &format!("{release}-backports")], has_it)?;
    let download = root.join("packages");
    let _ = fs::remove_dir_all(root);
    fs::create_dir_all(&download)?;
    // QEMU looks for its modules and ROMs beside itself, even where the machine has those packages already.
    let mut packages: BTreeSet<String> = apt.missing_for(PACKAGE)?.into_iter().collect();
    packages.extend(COMPANIONS.map(str::to_owned));
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

/// An unmodified QEMU boots the demo's kernel on softkvm, however it divides the interrupt chips with KVM, and launches it as
/// an SEV-SNP guest.
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
    let qemu = Qemu::obtain(Need::Snp)?;
    [1, 2].into_iter().try_for_each(|cpus| snp(&qemu, &parts, &console, cpus))
}

/// QEMU launches our ROM as an SEV-SNP guest, and the guest's report says what sev-snp-measure predicts: of these three programs
/// only the machine is this project's.
fn snp(qemu: &Qemu, parts: &Parts, console: &Path, cpus: u32) -> Result<()> {
    const MACHINE: &str = "q35,accel=kvm,confidential-guest-support=sev,memory-backend=ram";
    const SEV: &str = "sev-snp-guest,id=sev,cbitpos=51,reduced-phys-bits=1,policy=0x30000,kernel-hashes=on";
    let predicted = measurement::by_sev_snp_measure(parts, SERIAL, cpus)?;
    let _step = progress::step(format!("QEMU, SEV-SNP guest, {cpus} CPUs"));
    let mut softkvm = parts.tool("softkvm");
    softkvm.arg("--state").arg(paths::cache().join("softkvm-state")).args(["--tee", "snp", "--"]);
    let mut command = with_serial_console(qemu.command(Some(softkvm)), MACHINE, parts, console);
    command.args(["-cpu", "host", "-smp", &cpus.to_string(), "-object", SEV]);
    command.args(["-object", "memory-backend-memfd,id=ram,size=512M,share=true"]);
    command.arg("-bios").arg(&parts.rom);
    let said = format!("cloister-guest: measurement {predicted}");
    let booted = boot::until(&said, command, console, PATIENCE).context("SEV-SNP guest")?;
    println!("QEMU, SEV-SNP guest, {cpus} CPUs: reports {predicted} after {:.1} s", booted.seconds);
    Ok(())
}
