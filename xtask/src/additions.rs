//! Files of one's own in the initramfs: `cargo xtask image --add FILE[:PATH]`, and `--shell`.
//!
//! What could only fail in the guest is refused here: a program whose dynamic linker or interpreter is not there, a place that
//! init mounts something over, a name that is taken.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::str::FromStr;

use anyhow::{Context, Result, bail, ensure};

use crate::apt::{self, Apt};
use crate::cpio::Archive;
use crate::elf::Elf;
use crate::{command, paths, progress};

/// Where programs are that came without a place of their own, and what PATH says in the guest.
pub const BIN: &str = "bin";
/// What init has there itself, or mounts over.
const TAKEN: [&str; 7] = ["init", "modules", "dev", "proc", "run", "sys", "tmp"];

/// `FILE[:PATH]`: a file of the host's, and where it goes in the guest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Addition {
    file: PathBuf,
    /// Without the leading slash, as archives have it.
    to: String,
}

impl FromStr for Addition {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (file, to) = match text.rsplit_once(":/") {
            Some((file, to)) => (file, to.to_owned()),
            None => {
                let name = Path::new(text).file_name().and_then(|name| name.to_str());
                (text, format!("{BIN}/{}", name.ok_or("no file name")?))
            }
        };
        let parts: Vec<&str> = to.split('/').collect();
        if file.is_empty() || parts.iter().any(|part| matches!(*part, "" | "." | "..")) {
            return Err(format!("{text:?}: FILE, or FILE:/PATH with a path without empty parts, . and .."));
        }
        if TAKEN.contains(&parts[0]) {
            return Err(format!("/{to}: /{} is init's own; take another place", parts[0]));
        }
        Ok(Self { file: file.into(), to })
    }
}

/// What `image` takes.
#[derive(clap::Args, Clone, Debug, Default)]
#[group(id = "additions")]
pub struct Options {
    /// Add a file, with its mode, at PATH, which begins with `/` (else in /bin); may come again.
    #[arg(long, value_name = "FILE[:PATH]")]
    pub add: Vec<Addition>,
    /// Add a kernel module, and what it depends on; init loads it. May come again.
    #[arg(long, value_name = "NAME")]
    pub module: Vec<String>,
    /// Add Debian's busybox-static, with its commands in /bin.
    #[arg(long)]
    pub shell: bool,
}

/// Writes them behind what is there.
pub fn write(options: &Options, archive: &mut Archive) -> Result<()> {
    let mut writer = Writer { archive, directories: TAKEN.map(str::to_owned).into(), names: BTreeSet::new() };
    writer.link(&format!("{BIN}/cloister-guest"), "/init")?;
    if options.shell {
        shell(&mut writer)?;
    }
    let mut programs = Vec::new();
    for Addition { file, to } in &options.add {
        let contents = fs::read(file).with_context(|| format!("--add {}", file.display()))?;
        let mode = fs::metadata(file)?.permissions().mode() & 0o7777;
        writer.file(to, mode, &contents)?;
        programs.extend(interpreter(&contents)?.map(|interpreter| (to, interpreter)));
    }
    for (program, interpreter) in programs {
        ensure!(
            writer.names.contains(interpreter.trim_start_matches('/')),
            "/{program} needs {interpreter}, which the initramfs has not: link it statically, or --add that as well \
             (and, for a dynamic linker, the libraries that `ldd` names)"
        );
    }
    Ok(())
}

/// The program that Linux starts for this one: a dynamic linker, or a script's interpreter.
fn interpreter(contents: &[u8]) -> Result<Option<String>> {
    if let Some(script) = contents.strip_prefix(b"#!") {
        let line = script.split(|&byte| byte == b'\n').next().unwrap_or_default();
        let line = String::from_utf8_lossy(line);
        return Ok(line.split_ascii_whitespace().next().map(str::to_owned));
    }
    match contents.starts_with(b"\x7fELF") {
        true => Elf::parse(contents)?.interpreter(),
        false => Ok(None),
    }
}

struct Writer<'a> {
    archive: &'a mut Archive,
    directories: BTreeSet<String>,
    names: BTreeSet<String>,
}

impl Writer<'_> {
    /// Makes the directories that a name needs, once.
    fn place(&mut self, to: &str) -> Result<()> {
        ensure!(!self.directories.contains(to), "/{to} is a directory");
        ensure!(self.names.insert(to.to_owned()), "/{to} comes twice");
        for (at, _) in to.match_indices('/') {
            let directory = &to[..at];
            ensure!(!self.names.contains(directory), "/{directory} is a file, and no place for /{to}");
            if self.directories.insert(directory.to_owned()) {
                self.archive.directory(directory, 0o755);
            }
        }
        Ok(())
    }

    fn file(&mut self, to: &str, mode: u32, contents: &[u8]) -> Result<()> {
        self.place(to)?;
        self.archive.file(to, mode, contents);
        Ok(())
    }

    fn link(&mut self, to: &str, target: &str) -> Result<()> {
        self.place(to)?;
        self.archive.link(to, target);
        Ok(())
    }
}

/// busybox, and a link for each of its commands, which it names itself.
fn shell(writer: &mut Writer<'_>) -> Result<()> {
    let binary = busybox()?;
    writer.file(&format!("{BIN}/busybox"), 0o755, &fs::read(&binary)?)?;
    let commands = command::output(Command::new(&binary).arg("--list"))?;
    for name in commands.lines().filter(|name| *name != "busybox") {
        writer.link(&format!("{BIN}/{name}"), "busybox")?;
    }
    Ok(())
}

/// Debian's `busybox-static`, by name through apt, kept.
fn busybox() -> Result<PathBuf> {
    const PACKAGE: &str = "busybox-static";
    let directory = paths::cache().join("busybox");
    // Debian 13 has it below /usr.
    let find = || {
        ["bin", "usr/bin"].map(|bin| directory.join(bin).join("busybox")).into_iter().find(|p| p.is_file())
    };
    if let Some(found) = find() {
        return Ok(found);
    }
    let _step = progress::step(format!("fetching {PACKAGE}"));
    let download = paths::cache().join("download-busybox");
    fs::create_dir_all(&download)?;
    let (apt, _) = Apt::find(&["bookworm", "trixie"], |apt| apt.candidate(PACKAGE))
        .context("no shell: add one of your own with --add /path/to/a/static/busybox")?;
    apt.download(&[PACKAGE], &download)?;
    let packages = fs::read_dir(&download)?.filter_map(|entry| Some(entry.ok()?.path()));
    let package = packages.max().context("apt fetched no package file")?;
    apt::unpack(&package, &directory)?;
    let _ = fs::remove_dir_all(&download);
    match find() {
        Some(found) => Ok(found),
        None => bail!("{PACKAGE} has no busybox"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn archive(additions: &[String]) -> Result<Vec<u8>> {
        let add =
            additions.iter().map(|text| text.parse().map_err(anyhow::Error::msg)).collect::<Result<_>>()?;
        let mut archive = Archive::default();
        write(&Options { add, ..Options::default() }, &mut archive)?;
        Ok(archive.finish())
    }

    fn has(archive: &[u8], text: &str) -> bool {
        archive.windows(text.len()).any(|window| window == text.as_bytes())
    }

    #[test]
    fn a_file_goes_to_bin_or_where_it_is_told_to() {
        for (text, file, to) in [
            ("a/prog", "a/prog", "bin/prog"),
            ("a/prog:/opt/x/p", "a/prog", "opt/x/p"),
            ("a:b", "a:b", "bin/a:b"),
            ("a:/b:/c", "a:/b", "c"),
        ] {
            assert_eq!(text.parse(), Ok(Addition { file: file.into(), to: to.into() }), "{text}");
        }
        for bad in ["", ":/x", "a:/", "a:/x/../y", "a:/x//y", "a:/init", "a:/modules/order", "a:/dev/x", "/"]
        {
            assert!(bad.parse::<Addition>().is_err(), "{bad}");
        }
    }

    #[test]
    fn modes_are_kept_and_directories_made() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("data");
        fs::write(&file, "contents of it").unwrap();
        fs::set_permissions(&file, fs::Permissions::from_mode(0o640)).unwrap();
        let bytes = archive(&[format!("{}:/etc/x/data", file.display())]).unwrap();
        assert!(has(&bytes, "contents of it") && has(&bytes, "etc/x\0") && has(&bytes, "etc/x/data\0"));
        // The entry's second field is the mode: a regular file's, 0640.
        assert!(has(&bytes, &format!("{:08X}", 0o100_640)));
    }

    #[test]
    fn what_could_not_start_or_would_hide_another_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name).display().to_string();
        fs::write(at("script"), "#!/bin/interpreter -x\n").unwrap();
        fs::write(at("interpreter"), "anything").unwrap();
        fs::copy(std::env::current_exe().unwrap(), at("dynamic")).unwrap();
        let refused = |additions: &[String]| archive(additions).unwrap_err().to_string();
        assert!(refused(&[at("script")]).contains("/bin/script needs /bin/interpreter"));
        assert!(archive(&[at("script"), at("interpreter")]).is_ok());
        assert!(refused(&[at("dynamic")]).contains("/bin/dynamic needs /lib"));
        assert!(refused(&[at("interpreter"), at("interpreter")]).contains("twice"));
        assert!(refused(&[at("interpreter"), at("interpreter") + ":/bin"]).contains("a directory"));
        assert!(
            refused(&[at("interpreter"), at("interpreter") + ":/bin/interpreter/x"]).contains("is a file")
        );
        assert!(refused(&[at("absent")]).contains("absent"));
    }
}
