//! PID 1 of a minimal guest: mounts, modules, the secret that the kernel command line asks for, then a command or power-off.
//!
//! The command line is measured by the firmware, so what it says is the guest owner's word:
//! `cloister.broker=vsock:2:8080 cloister.secret=repository/type/tag cloister.exec=/path`.

use std::fs;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::Command;

use sha2::{Digest, Sha256};

use crate::transport::Address;
use crate::{evidence, kbs, system};

/// Where the secret is left for `cloister.exec`: a tmpfs, which is private memory.
const SECRET: &str = "/run/secret";
/// Where configfs goes.
const CONFIGFS: &str = "/sys/kernel/config";
/// Decompressed modules, and the order in which to load them.
const MODULES: &str = "/modules";

/// What the kernel command line asks for.
#[derive(Debug, Default, PartialEq, Eq)]
struct Wishes {
    broker: Option<Address>,
    secret: Option<String>,
    exec: Option<String>,
}

impl Wishes {
    fn parse(command_line: &str) -> Result<Self, String> {
        let mut wishes = Self::default();
        for word in command_line.split_ascii_whitespace() {
            match word.split_once('=') {
                Some(("cloister.broker", value)) => {
                    wishes.broker = Some(value.parse().map_err(|e| format!("cloister.broker: {e}"))?);
                }
                Some(("cloister.secret", value)) => wishes.secret = Some(value.to_owned()),
                Some(("cloister.exec", value)) => wishes.exec = Some(value.to_owned()),
                Some((name, _)) if name.starts_with("cloister.") => {
                    return Err(format!("{name} is not known"));
                }
                _ => {}
            }
        }
        Ok(wishes)
    }
}

/// Runs as PID 1. Never returns: the machine powers off, with an exit code for the VMM.
pub fn run() -> ! {
    let code = match guest() {
        Ok(code) => code,
        Err(error) => {
            say(&error);
            1
        }
    };
    system::power_off(code)
}

/// To the kernel log, so that the line stands among the kernel's own; to standard error where there is none.
fn say(line: &str) {
    // Priority 5, notice.
    if fs::write("/dev/kmsg", format!("<5>cloister-guest: {line}\n")).is_err() {
        eprintln!("cloister-guest: {line}");
    }
}

fn guest() -> Result<u8, String> {
    mounts(&[("devtmpfs", "/dev"), ("proc", "/proc"), ("sysfs", "/sys"), ("tmpfs", "/run")])?;
    load_modules()?;
    // configfs is a module in some kernels; its mount point appears with it.
    if Path::new(CONFIGFS).is_dir() {
        mounts(&[("configfs", CONFIGFS)])?;
    }
    let command_line = fs::read_to_string("/proc/cmdline").map_err(|e| format!("/proc/cmdline: {e}"))?;
    let wishes = Wishes::parse(&command_line)?;
    // Consoles that start late miss what the kernel said first.
    for line in system::kernel_log("Memory Encryption Features active") {
        say(&format!("kernel log: {line}"));
    }
    if let Some(resource) = &wishes.secret {
        let broker = wishes.broker.clone().unwrap_or(Address::Vsock(2, 8080));
        fetch(&broker, resource)?;
    } else {
        report();
    }
    match &wishes.exec {
        Some(program) => execute(program),
        None => Ok(0),
    }
}

fn mounts(table: &[(&str, &str)]) -> Result<(), String> {
    for (kind, target) in table {
        // A kernel may have mounted /dev itself.
        if let Err(error) = system::mount(kind, target)
            && error.raw_os_error() != Some(libc::EBUSY)
        {
            return Err(format!("mounting {kind} on {target}: {error}"));
        }
    }
    Ok(())
}

fn load_modules() -> Result<(), String> {
    let order = Path::new(MODULES).join("order");
    let Ok(list) = fs::read_to_string(&order) else { return Ok(()) };
    for name in list.lines().filter(|line| !line.is_empty()) {
        match system::load_module(&Path::new(MODULES).join(name)) {
            Ok(()) => {}
            // Loaded or built in already; or for hardware that this guest has not (sev-guest without SEV).
            Err(error) if matches!(error.raw_os_error(), Some(libc::EEXIST | libc::ENODEV)) => {}
            Err(error) => return Err(format!("module {name}: {error}")),
        }
    }
    Ok(())
}

/// Says what the guest's own evidence is.
fn report() {
    match evidence::get(&[0; 64]) {
        Ok(evidence) => {
            say(&format!("measurement {} ({})", hex::encode(evidence.measurement()), evidence.source))
        }
        Err(error) => say(&format!("no evidence: {error}")),
    }
}

fn fetch(broker: &Address, resource: &str) -> Result<(), String> {
    let mut session = kbs::Session::attest(broker).map_err(|e| e.to_string())?;
    say(&format!(
        "measurement {} ({})",
        hex::encode(session.evidence().measurement()),
        session.evidence().source
    ));
    let secret = session.secret(resource).map_err(|e| e.to_string())?;
    system::write_private(Path::new(SECRET), &secret).map_err(|e| format!("{SECRET}: {e}"))?;
    // A digest over a label and the secret lets its owner see that the right one arrived; secrets are keys, not passwords.
    let proof = Sha256::new().chain_update("cloister secret proof\n").chain_update(&*secret).finalize();
    say(&format!("secret {resource}: {} bytes, proof {}", secret.len(), hex::encode(proof)));
    Ok(())
}

fn execute(program: &str) -> Result<u8, String> {
    let status = Command::new(program)
        .env("CLOISTER_SECRET_FILE", SECRET)
        .status()
        .map_err(|e| format!("{program}: {e}"))?;
    // As shells do: 128 and the signal's number.
    let code = status.code().or_else(|| status.signal().map(|s| s.saturating_add(128))).unwrap_or(1);
    Ok(u8::try_from(code).unwrap_or(255))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wishes_are_read_from_the_command_line_and_typos_are_refused() {
        let wishes =
            Wishes::parse("console=hvc0 cloister.broker=vsock:2:99 cloister.secret=a/b/c quiet").unwrap();
        let expected =
            Wishes { broker: Some(Address::Vsock(2, 99)), secret: Some("a/b/c".into()), exec: None };
        assert_eq!(wishes, expected);
        assert!(Wishes::parse("cloister.secrets=a/b/c").is_err());
        assert!(Wishes::parse("cloister.broker=carrier-pigeon").is_err());
    }
}
