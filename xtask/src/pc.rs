//! What Linux expects of every PC, seen from inside: the time of day, and that a reset ends it.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, bail, ensure};

use crate::boot::{self, option};
use crate::demo::Parts;
use crate::{kernel, paths, progress};

const PATIENCE: Duration = Duration::from_secs(120);
/// What Linux says of the CMOS clock, with the time since 1970 in parentheses.
const CLOCK: &str = "setting system clock to ";
/// `reboot=` on the kernel's command line, and how the VMM calls it.
const RESETS: &[(&str, &str)] = &[
    ("acpi", "ACPI"),
    ("kbd", "the keyboard controller"),
    ("pci", "port 0xCF9"),
    ("triple", "a triple fault"),
    // FFFF:0, where the VMM has put code that writes ACPI's register.
    ("bios", "ACPI"),
];

/// The kernel's time of day in each kind of guest, and each of its ways to reset a plain one.
pub fn check() -> Result<()> {
    let parts = Parts::build(&kernel::Options::default())?;
    let console = paths::target().join("pc-console.log");
    for tee in ["none", "snp", "tdx"] {
        let _step = progress::step(format!("the clock of a guest, {tee}"));
        let mut command = guest(&parts, tee, &console, "");
        command.arg("--initrd").arg(&parts.initrd);
        let booted = boot::until(boot::INIT, command, &console, PATIENCE).context(tee)?;
        drop(booted);
        let text = fs::read_to_string(&console)?;
        let time = clock(&text).with_context(|| format!("{tee}: the kernel did not set its clock"))?;
        let host = SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs();
        ensure!(
            time.abs_diff(host) < 24 * 60 * 60,
            "{tee}: the guest's clock says {time}, the host's {host}"
        );
        println!("{tee}: the kernel's clock is {} s from the host's", time.abs_diff(host));
    }
    for (way, name) in RESETS {
        let _step = progress::step(format!("reboot={way}"));
        // Without an initrd it panics, and resets at once.
        let _ = fs::remove_file(&console);
        let said = ended(guest(&parts, "none", &console, &format!("reboot={way}")))?;
        let wanted = format!("guest asked for a reset (by {name})");
        ensure!(said.contains(&wanted), "reboot={way}: not {wanted:?}: {said}");
        println!("reboot={way}: {wanted}");
    }
    Ok(())
}

fn guest(parts: &Parts, tee: &str, console: &Path, more: &str) -> Command {
    let mut command = parts.tool("softkvm");
    command.arg("--state").arg(paths::cache().join("softkvm-state")).args(["--tee", tee, "--"]);
    command
        .arg(parts.bin.join("cloister"))
        .args(["run", "--tee", tee, "--memory", "512M", "--serial", "null"]);
    command.arg("--firmware").arg(&parts.rom).arg("--kernel").arg(&parts.kernel);
    command.arg("--cmdline").arg(format!("{} {more}", boot::COMMAND_LINE));
    command.arg("--console").arg(option("file=", console));
    command
}

/// Seconds since 1970 in the kernel's line.
fn clock(console: &str) -> Option<u64> {
    let (_, line) = console.split_once(CLOCK)?;
    let (_, seconds) = line.lines().next()?.split_once('(')?;
    seconds.split_once(')')?.0.parse().ok()
}

/// What a guest's VMM said until it ended.
fn ended(mut command: Command) -> Result<String> {
    let log = paths::target().join("pc-vmm.log");
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(fs::File::create(&log)?);
    let mut process = command.spawn().context("cannot start")?;
    let start = Instant::now();
    while process.try_wait()?.is_none() {
        if start.elapsed() > PATIENCE {
            process.kill()?;
            process.wait()?;
            bail!("it does not end: {command:?}");
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    Ok(fs::read_to_string(log)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernel_s_line_is_read() {
        let line = "[    5.9] rtc_cmos 00:01: setting system clock to 2026-11-28T02:01:53 UTC (1795831313)\n";
        assert_eq!(clock(line), Some(1_795_831_313));
        assert_eq!(clock("setting system clock to nothing"), None);
        assert_eq!(clock(""), None);
    }
}
