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
use crate::{boot, command, kernel, paths, progress};

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

impl Qemu {
    /// The machine's, the cached, or a fetched one.
    pub fn obtain() -> Result<Self> {
        if command::output(Command::new(PROGRAM).arg("--version")).is_ok() {
            return Ok(Self { root: None });
        }
        let root = paths::cache().join("qemu");
        if !root.join("complete").is_file() {
            fetch(&root)
                .context("no QEMU: it is Debian's qemu-system-x86, fetched through apt; or install it")?;
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

fn fetch(root: &Path) -> Result<()> {
    let _step = progress::step(format!("fetching {PACKAGE}"));
    let has_it = |apt: &Apt| Ok(apt.has_candidate(PACKAGE)?.then_some(()));
    // Its libraries must be those of this machine's own release.
    let release = apt::release().context("/etc/os-release names no release")?;
    let (apt, ()) = Apt::find(&[&release], has_it)?;
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
    command.args(["-append", "console=ttyS0 panic=-1 cryptomgr.notests"]);
    command.arg("-serial").arg(boot::option("file:", console));
    command
}

/// Where the interrupt chips are, and what else differs: what QEMU then asks of KVM is different each time.
const MACHINES: &[(&str, &str)] = &[
    ("pc,accel=kvm", "1"),
    ("q35,accel=kvm", "2"),
    ("q35,accel=kvm,kernel-irqchip=split", "2"),
    ("pc,accel=kvm,kernel-irqchip=off", "1"),
];

/// An unmodified QEMU boots the demo's kernel on softkvm, however it divides the interrupt chips with KVM.
pub fn check() -> Result<()> {
    let parts = Parts::build(&kernel::Options::default())?;
    let qemu = Qemu::obtain()?;
    let console = paths::target().join("qemu-console.log");
    for (machine, cpus) in MACHINES {
        let _step = progress::step(format!("QEMU, {machine}"));
        let mut softkvm = parts.tool("softkvm");
        softkvm.args(["--tee", "none", "--"]);
        let mut command = with_serial_console(qemu.command(Some(softkvm)), machine, &parts, &console);
        command.args(["-smp", cpus]);
        let booted = boot::to_init(command, &console, PATIENCE).with_context(|| (*machine).to_owned())?;
        let text = fs::read_to_string(&console).unwrap_or_default();
        let brought_up = format!("Brought up 1 node, {cpus} CPU");
        ensure!(text.contains(&brought_up), "{machine}: the kernel did not say {brought_up:?}");
        println!("QEMU, {machine}, {cpus} CPUs: init after {:.1} s", booted.seconds);
    }
    Ok(())
}
