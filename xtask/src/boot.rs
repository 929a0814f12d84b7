//! A kernel from nothing to `init`, for benchmarks and for clients of softkvm that are not ours.

use std::fs;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

/// The line that says that the kernel is done.
pub const INIT: &str = "Run /init as init process";
/// The kernel's command line: the console is virtio's.
pub const COMMAND_LINE: &str = "console=hvc0 panic=-1 cryptomgr.notests";

/// `prefix` and a path, as one argument.
pub fn option(prefix: &str, path: &Path) -> std::ffi::OsString {
    let mut option = std::ffi::OsString::from(prefix);
    option.push(path);
    option
}

/// A guest that has come so far. It ends with this.
pub struct Booted {
    /// From the start of the process.
    pub seconds: f64,
    process: Child,
}

impl Booted {
    /// The process's ID.
    pub fn pid(&self) -> u32 {
        self.process.id()
    }
}

impl Drop for Booted {
    fn drop(&mut self) {
        // Already ended is as good.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// Starts `command`, whose guest's console is the file `console`, and waits until `line` is there.
pub fn until(line: &str, mut command: Command, console: &Path, patience: Duration) -> Result<Booted> {
    let _ = fs::remove_file(console);
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    let start = Instant::now();
    let mut booted = Booted { seconds: f64::NAN, process: command.spawn().context("cannot start")? };
    while start.elapsed() < patience {
        let ended = booted.process.try_wait()?;
        if fs::read(console).is_ok_and(|text| memchr::memmem::find(&text, line.as_bytes()).is_some()) {
            booted.seconds = start.elapsed().as_secs_f64();
            return Ok(booted);
        }
        if let Some(status) = ended {
            bail!("ended before {line:?} ({status}): {command:?}");
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    bail!("no {line:?} within {} s: {command:?}", patience.as_secs())
}
