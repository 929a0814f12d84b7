//! The demo's kernel, initrd and command line to `init`: plain, SNP and TDX on softkvm, beside QEMU's TCG.
//!
//! Each is run in turn, three rounds, and the fastest counts: what slows a round down is not the program.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Result, bail};

use super::Figure;
use crate::boot::{self, COMMAND_LINE, option};
use crate::demo::{Parts, guest_files};
use crate::qemu::{self, Need, Qemu};
use crate::{kernel, paths, progress};

const PATIENCE: Duration = Duration::from_secs(60);
const ROUNDS: usize = 3;
const PEER: &str = "qemu-system-x86_64 -accel tcg";

struct Measured {
    seconds: f64,
    /// Resident memory of the VMM that is not the guest's, in MiB.
    own_mib: f64,
}

/// Runs the benchmark.
pub fn run() -> Result<Vec<Figure>> {
    let qemu = Qemu::obtain(Need::Emulator)?;
    let parts = Parts::build(&kernel::Options::default())?;
    let console = paths::target().join("bench-console.log");
    let mut best: [Option<Measured>; 4] = [None, None, None, None];
    for round in 1..=ROUNDS {
        let _step = progress::step(format!("boot, round {round} of {ROUNDS}"));
        let peer = qemu::with_virtio_console(qemu.command(None), "q35,accel=tcg", &parts, &console);
        let [none, snp, tdx] = ["none", "snp", "tdx"].map(|tee| cloister(&parts, tee, &console));
        let commands = [none, snp, tdx, peer];
        for (slot, command) in best.iter_mut().zip(commands) {
            let measured = match measure(command, &console) {
                Ok(measured) => measured,
                // It was seen to happen to the peer.
                Err(error) => {
                    eprintln!("xtask: bench boot, round {round}: {error:#}");
                    continue;
                }
            };
            if slot.as_ref().is_none_or(|b| measured.seconds < b.seconds) {
                *slot = Some(measured);
            }
        }
    }
    let [Some(none), Some(snp), Some(tdx), Some(peer)] = best else {
        bail!("no round of one of them was measured")
    };
    let time = |figure: &str, seconds: f64| Figure {
        bench: "boot",
        figure: figure.to_owned(),
        value: seconds,
        unit: "s",
        peer: Some(PEER),
        peer_value: Some(peer.seconds),
        ratio: Some(seconds / peer.seconds),
    };
    let memory = |figure: &str, mib: f64| Figure {
        bench: "boot",
        figure: figure.to_owned(),
        value: mib,
        unit: "MiB",
        peer: None,
        peer_value: None,
        ratio: None,
    };
    Ok(vec![
        time("softkvm, --tee none, to init", none.seconds),
        time("softkvm, --tee snp, to init", snp.seconds),
        time("softkvm, --tee tdx, to init", tdx.seconds),
        memory("softkvm and cloister beyond the guest's memory, none", none.own_mib),
        memory("softkvm and cloister beyond the guest's memory, snp", snp.own_mib),
        memory("softkvm and cloister beyond the guest's memory, tdx", tdx.own_mib),
    ])
}

fn cloister(parts: &Parts, tee: &str, console: &Path) -> Command {
    let mut command = parts.tool("softkvm");
    command.arg("--state").arg(paths::cache().join("softkvm-state")).args(["--tee", tee, "--"]);
    command
        .arg(parts.bin.join("cloister"))
        .args(["run", "--tee", tee, "--memory", "512M", "--serial", "null"]);
    guest_files(&mut command, &parts.rom, &parts.kernel, &parts.initrd);
    command.args(["--cmdline", COMMAND_LINE, "--console"]).arg(option("file=", console));
    command
}

fn measure(command: Command, console: &Path) -> Result<Measured> {
    let booted = boot::until(boot::INIT, command, console, PATIENCE)?;
    Ok(Measured { seconds: booted.seconds, own_mib: own_memory(booted.pid()).unwrap_or(f64::NAN) })
}

/// Resident memory outside of the guest's RAM: everything but guest_memfd and the one mapping as large as the guest.
fn own_memory(pid: u32) -> Option<f64> {
    let maps = fs::read_to_string(format!("/proc/{pid}/smaps")).ok()?;
    let (mut guest, mut size_kib, mut total_kib) = (false, 0u64, 0u64);
    for line in maps.lines() {
        let number =
            |rest: &str| rest.split_whitespace().next().and_then(|n| n.parse::<u64>().ok()).unwrap_or(0);
        if let Some(rest) = line.strip_prefix("Size:") {
            size_kib = number(rest);
        } else if let Some(rest) = line.strip_prefix("Rss:") {
            let ram = guest || size_kib >= 400 << 10;
            total_kib += if ram { 0 } else { number(rest) };
        } else if line.split_once(' ').is_some_and(|(range, _)| range.contains('-')) {
            guest = line.contains("guest_memfd");
        }
    }
    Some(total_kib as f64 / 1024.0)
}
