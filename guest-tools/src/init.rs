//! PID 1 of a minimal guest: mounts, modules, the secrets that the kernel command line asks for, then a command or power-off.
//!
//! The command line is measured by the firmware, so what it says is the guest owner's word:
//! `cloister.broker=vsock:2:8080 cloister.broker-key=sha256:… cloister.secret=repository/type/tag cloister.exec=/path`.

use std::fs;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use cloister_kbs::jws::Pins;
use zeroize::Zeroizing;

use crate::console::{self, Openings, say};
use crate::transport::Address;
use crate::{evidence, kbs, proof, system};

/// Where the first secret is left for `cloister.exec`: a tmpfs, which is private memory.
const SECRET: &str = "/run/secret";
/// Below this, every secret by its name.
const SECRETS: &str = "/run/secrets";
/// Where configfs goes.
const CONFIGFS: &str = "/sys/kernel/config";
/// Decompressed modules, and the order in which to load them.
const MODULES: &str = "/modules";

/// Where `cloister.exec` and its children look for programs: `cargo xtask image` puts them there.
const PATH: &str = "/bin:/sbin:/usr/bin:/usr/sbin";
/// Words that mean something to a distribution's initramfs and nothing to this one: who writes them expects another root or
/// another first program, and would get neither.
const OTHERS: &[(&str, &str)] = &[
    (
        "root",
        "this init mounts no root: it stays in the initramfs. Mount the disk in the program that cloister.exec names, or take the distribution's own initramfs",
    ),
    ("init", "the first program is /init of the initramfs. Name yours with cloister.exec"),
];

/// What the kernel command line asks for.
#[derive(Debug, Default, PartialEq, Eq)]
struct Orders {
    broker: Option<Address>,
    /// Whom to believe; several while keys rotate.
    pins: Pins,
    /// In order; a name may come again.
    secrets: Vec<String>,
    /// The resource that is the key of proofs.
    proof: Option<String>,
    /// A program, and its arguments.
    exec: Vec<String>,
    console: Openings,
}

impl Orders {
    fn parse(command_line: &str) -> Result<Self, String> {
        let mut orders = Self::default();
        for word in command_line.split_ascii_whitespace() {
            let (name, value) = word.split_once('=').unwrap_or((word, ""));
            let wrong = |why: &dyn std::fmt::Display| format!("{name}: {why}");
            if let Some((_, why)) = OTHERS.iter().find(|(other, _)| *other == name) {
                return Err(format!("{word}: {why}"));
            }
            match name {
                "cloister.broker" => orders.broker = Some(value.parse().map_err(|e| wrong(&e))?),
                "cloister.broker-key" => pin(&mut orders.pins, value).map_err(|e| wrong(&e))?,
                "cloister.secret" => orders.secrets.push(value.to_owned()),
                "cloister.proof" => orders.proof = Some(value.to_owned()),
                "cloister.exec" => orders.exec = program(value).map_err(|e| wrong(&e))?,
                "cloister.console" => orders.console = value.parse().map_err(|e| wrong(&e))?,
                _ if name.starts_with("cloister.") => return Err(format!("{name} is not known")),
                _ => {}
            }
        }
        Ok(orders)
    }
}

/// `PATH[,ARGUMENT]…`. The kernel's command line has no better separator; a script in the initramfs can say the rest.
fn program(text: &str) -> Result<Vec<String>, String> {
    match text.starts_with('/') {
        true => Ok(text.split(',').map(str::to_owned).collect()),
        false => Err(format!("{text:?} is not PATH[,ARGUMENT]… with a path that begins with /")),
    }
}

/// Adds `sha256:…`, or the keys of a JWK set in a `file:` of the initrd, which is measured.
pub fn pin(pins: &mut Pins, text: &str) -> Result<(), String> {
    if let Some(path) = text.strip_prefix("file:") {
        let document = fs::read(path).map_err(|e| format!("{path}: {e}"))?;
        return pins.add_jwks(&document).map_err(|e| format!("{path}: {e}"));
    }
    match pins.add(text.parse().map_err(|e| format!("{text:?}: {e}, or file: and a path"))?) {
        true => Ok(()),
        false => Err("too many keys".to_owned()),
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

fn guest() -> Result<u8, String> {
    // Before anything else that takes time: the host may type already.
    mounts(&[("proc", "/proc")])?;
    let command_line = fs::read_to_string("/proc/cmdline").map_err(|e| format!("/proc/cmdline: {e}"))?;
    let orders = Orders::parse(&command_line);
    let openings = orders.as_ref().map_or(Openings::default(), |orders| orders.console);
    console::close(openings)?;
    let orders = orders?;
    mounts(&[("devtmpfs", "/dev"), ("sysfs", "/sys"), ("tmpfs", "/run")])?;
    if !openings.input {
        system::close_input().map_err(|e| format!("the console's input cannot be closed: {e}"))?;
    }
    load_modules()?;
    // configfs is a module in some kernels; its mount point appears with it.
    if Path::new(CONFIGFS).is_dir() {
        mounts(&[("configfs", CONFIGFS)])?;
    }
    // Consoles that start late miss what the kernel said first.
    for line in system::kernel_log("Memory Encryption Features active") {
        say(&format!("kernel log: {line}"));
    }
    match orders.secrets.is_empty() {
        true => report(),
        false => fetch(&orders)?,
    }
    match orders.exec.split_first() {
        Some((program, arguments)) => execute(program, arguments),
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

fn fetch(orders: &Orders) -> Result<(), String> {
    let broker = orders.broker.clone().unwrap_or(Address::Vsock(2, 8080));
    let mut session = kbs::Session::attest(&broker, &orders.pins).map_err(|e| e.to_string())?;
    say(&format!(
        "measurement {} ({})",
        hex::encode(session.evidence().measurement()),
        session.evidence().source
    ));
    let key = match &orders.proof {
        Some(resource) => {
            let key = session.secret(resource).map_err(|e| e.to_string())?;
            Some(proof::Key::new(key).map_err(|e| format!("{resource}: {e}"))?)
        }
        None => None,
    };
    for (at, resource) in orders.secrets.iter().enumerate() {
        let secret = session.secret(resource).map_err(|e| e.to_string())?;
        keep(resource, &secret, at == 0)?;
        let shown = key.as_ref().map(|key| format!(", proof {}", key.proof(resource, &secret)));
        say(&format!("secret {resource}: {} bytes{}", secret.len(), shown.unwrap_or_default()));
    }
    Ok(())
}

/// Leaves a secret where programs find it.
fn keep(resource: &str, secret: &Zeroizing<Vec<u8>>, first: bool) -> Result<(), String> {
    // A resource's name is three plain words, none of them dots.
    let by_name = Path::new(SECRETS).join(resource);
    if let Some(folder) = by_name.parent() {
        fs::create_dir_all(folder).map_err(|e| format!("{}: {e}", folder.display()))?;
    }
    let paths = [Some(by_name), first.then(|| PathBuf::from(SECRET))];
    for path in paths.into_iter().flatten() {
        system::write_private(&path, secret).map_err(|e| format!("{}: {e}", path.display()))?;
    }
    Ok(())
}

fn execute(program: &str, arguments: &[String]) -> Result<u8, String> {
    let status = Command::new(program)
        .args(arguments)
        .env("PATH", PATH)
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

    const PIN: &str = "sha256:NzbLsXh8uDCcd-6MNwXF4W_7noWXFZAfHkxZsRGC9Xs";

    #[test]
    fn orders_are_read_from_the_command_line_and_typos_are_refused() {
        let line = format!(
            "console=hvc0 cloister.broker=vsock:2:99 cloister.broker-key={PIN} cloister.secret=a/b/c \
             cloister.secret=d/e/f cloister.proof=p/r/f cloister.console=input quiet"
        );
        let mut pins = Pins::default();
        assert!(pins.add(PIN.parse().unwrap()));
        let expected = Orders {
            broker: Some(Address::Vsock(2, 99)),
            pins,
            secrets: vec!["a/b/c".into(), "d/e/f".into()],
            proof: Some("p/r/f".into()),
            exec: Vec::new(),
            console: Openings { input: true, verbose: false },
        };
        assert_eq!(Orders::parse(&line), Ok(expected));
        for bad in [
            "cloister.secrets=a/b/c",
            "cloister.broker=carrier-pigeon",
            "cloister.broker-key=sha256:short",
            "cloister.broker-key=file:/nonexistent",
            "cloister.console=login",
            "cloister.exec",
            "cloister.exec=relative",
            "cloister.secret=a/b/c cloister.typo",
            "root=/dev/vda1",
            "console=hvc0 init=/bin/sh",
        ] {
            assert!(Orders::parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_program_has_arguments_behind_commas() {
        for (line, expected) in [
            ("cloister.exec=/bin/prog", &["/bin/prog"][..]),
            ("cloister.exec=/bin/sh,-c,ls", &["/bin/sh", "-c", "ls"]),
            ("cloister.exec=/bin/prog,,--x=y", &["/bin/prog", "", "--x=y"]),
            ("console=hvc0", &[]),
        ] {
            assert_eq!(Orders::parse(line).unwrap().exec, expected, "{line}");
        }
    }

    #[test]
    fn words_that_would_have_no_effect_say_what_to_do_instead() {
        for (line, hint) in [("root=/dev/vda1 ro", "cloister.exec"), ("init=/sbin/init", "cloister.exec")] {
            let error = Orders::parse(line).unwrap_err();
            assert!(error.contains(line.split(' ').next().unwrap()) && error.contains(hint), "{error}");
        }
        // Words that only look like them.
        assert!(Orders::parse("rootwait rootflags=x rdinit=/init initcall_debug ro").is_ok());
    }

    /// What the match in `Orders::parse` knows is what the book lists, and the other way round.
    #[test]
    fn the_book_lists_every_word() {
        let words = |text: &str, quote: char| -> std::collections::BTreeSet<String> {
            let end =
                |rest: &str| rest.find(|c: char| !(c.is_ascii_lowercase() || c == '-')).unwrap_or(rest.len());
            let starts = text.match_indices("cloister.").filter(|(at, _)| text[..*at].ends_with(quote));
            starts
                .map(|(at, found)| &text[at + found.len()..])
                .map(|rest| rest[..end(rest)].to_owned())
                .collect()
        };
        let code = include_str!("init.rs");
        let known = &code[code.find("match name {").unwrap()..code.find("is not known").unwrap()];
        let known = known.rsplit_once("_ if").unwrap().0;
        let book = include_str!("../../docs/src/your-own-guest.md");
        let rows: String = book.lines().filter(|line| line.starts_with("| `cloister.")).collect();
        assert!(words(known, '"').len() >= 6);
        assert_eq!(words(known, '"'), words(&rows, '`'));
    }

    #[test]
    fn keys_may_be_in_a_file() {
        let path = std::env::temp_dir().join(format!("cloister-jwks-{}", std::process::id()));
        let text = format!("file:{}", path.display());
        // RFC 7515, appendix A.3.1.
        let jwk = r#"{"kty":"EC","crv":"P-256","x":"f83OJ3D2xF1Bg8vub9tLe1gHMzV76e8Tus9uPHvRVEU","y":"x_FEzRu9m36HLN_tue659LNpXW6pCyStikYjKIWI5a0"}"#;
        for (document, good) in
            [(format!(r#"{{"keys":[{jwk}]}}"#), true), (jwk.to_owned(), true), ("{}".into(), false)]
        {
            fs::write(&path, &document).unwrap();
            let mut pins = Pins::default();
            assert_eq!(pin(&mut pins, &text).is_ok(), good, "{document}");
            assert_eq!(pins.is_empty(), !good);
        }
        fs::remove_file(path).unwrap();
    }
}
