//! Packages by name, through the machine's own apt.
//!
//! Where the machine's package sources have what is looked for, they are used as they are. Where they do not, apt is run
//! with a private configuration (its own source list, state and cache below the target directory) that names the
//! machine's own mirror and a suite that has it, and knows of no installed package. Signatures are checked by apt with the
//! machine's keyring in both cases. Nothing is installed: packages are downloaded and unpacked below the target directory.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::{command, paths};

/// apt with a configuration.
pub struct Apt {
    options: Vec<String>,
}

impl Apt {
    /// The first apt for which `look` finds something: the machine's own, then a private one for each of `suites`.
    pub fn find<T>(suites: &[&str], look: impl Fn(&Self) -> Result<Option<T>>) -> Result<(Self, T)> {
        let machine = Self { options: Vec::new() };
        if let Some(found) = look(&machine)? {
            return Ok((machine, found));
        }
        Self::find_in(suites, look)
    }

    /// As [`Apt::find`], with the machine's own left out.
    pub fn find_in<T>(suites: &[&str], look: impl Fn(&Self) -> Result<Option<T>>) -> Result<(Self, T)> {
        let mirror = mirror().context("the machine's apt sources name no Debian mirror")?;
        for suite in suites {
            let apt = Self::private(&paths::cache().join("apt").join(suite), &mirror, suite)?;
            if command::output(apt.command("apt-get").arg("update")).is_ok()
                && let Some(found) = look(&apt)?
            {
                return Ok((apt, found));
            }
        }
        bail!("none of the suites {} has it, or the mirror {mirror} cannot be reached", suites.join(", "))
    }

    /// With sources, state and cache of its own: one suite of the mirror that the machine uses, and what it builds on.
    fn private(directory: &Path, mirror: &str, suite: &str) -> Result<Self> {
        for part in ["state/lists/partial", "cache/archives/partial", "parts"] {
            fs::create_dir_all(directory.join(part))?;
        }
        let suites = suite.strip_suffix("-backports").into_iter().chain([suite]);
        let sources: String =
            suites.map(|suite| format!("deb [signed-by={KEYRING}] {mirror} {suite} main\n")).collect();
        fs::write(directory.join("sources.list"), sources)?;
        // Programs of another suite need its libraries, down to libc, whatever the machine has installed.
        fs::write(directory.join("status"), "")?;
        let at = |part: &str| directory.join(part).display().to_string();
        Ok(Self {
            options: vec![
                format!("Dir::Etc::sourcelist={}", at("sources.list")),
                format!("Dir::Etc::sourceparts={}", at("parts")),
                format!("Dir::State={}", at("state")),
                format!("Dir::State::lists={}", at("state/lists")),
                format!("Dir::Cache={}", at("cache")),
                "APT::Get::List-Cleanup=false".to_owned(),
                format!("Dir::State::status={}", at("status")),
                format!("APT::Default-Release={suite}"),
            ],
        })
    }

    fn command(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        for option in &self.options {
            command.arg("-o").arg(option);
        }
        command
    }

    /// Names of packages that begin with `prefix`.
    pub fn names(&self, prefix: &str) -> Result<Vec<String>> {
        let names = command::output(self.command("apt-cache").args(["pkgnames", prefix]))?;
        Ok(names.lines().map(str::to_owned).collect())
    }

    /// The version that would be installed. A name without one is known only from an installed package or a stale list.
    pub fn candidate(&self, name: &str) -> Result<Option<String>> {
        let policy = command::output(self.command("apt-cache").args(["policy", name]))?;
        Ok(candidate_in(&policy).map(str::to_owned))
    }

    /// What would be installed with `name`, itself included; what the machine has already is not.
    pub fn missing_for(&self, name: &str) -> Result<Vec<String>> {
        let arguments = ["--simulate", "--no-install-recommends", "install", name];
        let plan = command::output(self.command("apt-get").args(arguments))?;
        Ok(plan.lines().filter_map(planned).map(str::to_owned).collect())
    }

    /// Downloads packages into a directory.
    pub fn download(&self, names: &[impl AsRef<str>], directory: &Path) -> Result<()> {
        let mut apt = self.command("apt-get");
        apt.current_dir(directory).arg("download").args(names.iter().map(AsRef::as_ref));
        command::output(&mut apt).map(drop)
    }
}

/// The package that a line of `apt-get --simulate` would install: `Inst NAME (VERSION …)`.
fn planned(line: &str) -> Option<&str> {
    line.strip_prefix("Inst ")?.split_whitespace().next()
}

/// The candidate in what `apt-cache policy` prints.
fn candidate_in(policy: &str) -> Option<&str> {
    policy.lines().find_map(|line| line.trim_start().strip_prefix("Candidate: ")).filter(|v| *v != "(none)")
}

/// Major and minor version of a package: `10.0` of `1:10.0.2+ds-2`.
pub fn major_and_minor(version: &str) -> Option<(u32, u32)> {
    let upstream = version.split_once(':').map_or(version, |(_epoch, rest)| rest);
    let mut numbers = upstream.split(|c: char| !c.is_ascii_digit()).map(str::parse);
    Some((numbers.next()?.ok()?, numbers.next()?.ok()?))
}

/// The code name of the machine's own release.
pub fn release() -> Option<String> {
    let text = fs::read_to_string("/etc/os-release").ok()?;
    text.lines().find_map(|line| Some(line.strip_prefix("VERSION_CODENAME=")?.trim_matches('"').to_owned()))
}

/// Unpacks a package file over a directory.
pub fn unpack(archive: &Path, directory: &Path) -> Result<()> {
    command::output(Command::new("dpkg-deb").arg("--extract").arg(archive).arg(directory)).map(drop)
}

/// Debian's keyring, wherever its mirror is.
const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";

/// The mirror that the machine's sources name for Debian itself (not for its security updates).
fn mirror() -> Option<String> {
    let mut files: Vec<PathBuf> = vec!["/etc/apt/sources.list".into()];
    let parts = fs::read_dir("/etc/apt/sources.list.d").into_iter().flatten();
    files.extend(parts.filter_map(|entry| Some(entry.ok()?.path())));
    files.sort();
    files.iter().filter_map(|file| fs::read_to_string(file).ok()).find_map(|text| mirror_in(&text))
}

/// The mirror that one sources file names, in deb822 or in one-line form.
fn mirror_in(text: &str) -> Option<String> {
    let words = text.lines().map(|line| line.split('#').next().unwrap_or_default());
    let uris = words.flat_map(|line| {
        let line = line.trim();
        let deb822 = line.strip_prefix("URIs:").or_else(|| line.strip_prefix("uris:"));
        let one_line = line.strip_prefix("deb ").or_else(|| line.strip_prefix("deb-src "));
        deb822.or(one_line).unwrap_or_default().split_whitespace()
    });
    let mut uris = uris.filter(|word| word.contains("://"));
    uris.find(|uri| uri.trim_end_matches('/').ends_with("/debian"))
        .map(|uri| uri.trim_end_matches('/').to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mirrors_are_found_in_both_forms_and_comments_are_not() {
        // Any scheme will do: nothing is fetched here.
        for (text, expected) in [
            ("Types: deb\nURIs: x://one/debian\nSuites: bookworm\n", Some("x://one/debian")),
            ("deb [arch=amd64] x://one/debian/ trixie main\n", Some("x://one/debian")),
            ("deb x://one/debian-security x main\ndeb x://two/debian y main", Some("x://two/debian")),
            ("# deb x://one/debian bookworm main\n", None),
            ("URIs: x://one/node_20.x\n", None),
            ("", None),
        ] {
            assert_eq!(mirror_in(text).as_deref(), expected, "{text}");
        }
    }

    #[test]
    fn versions_are_those_of_the_candidate() {
        let policy = "qemu:\n  Installed: (none)\n  Candidate: 1:7.2+dfsg-7\n  Version table:\n     1:10.0.2+ds-2 100\n";
        assert_eq!(candidate_in(policy), Some("1:7.2+dfsg-7"));
        assert_eq!(candidate_in("qemu:\n  Installed: 1\n  Candidate: (none)\n"), None);
        for (version, expected) in [
            ("1:7.2+dfsg-7", Some((7, 2))),
            ("1:10.0.2+ds-2+deb13u1~bpo12+1", Some((10, 0))),
            ("9.1", Some((9, 1))),
            ("1:git", None),
        ] {
            assert_eq!(major_and_minor(version), expected, "{version}");
        }
    }

    #[test]
    fn only_what_would_be_installed_is_fetched() {
        assert_eq!(planned("Inst seabios (1.16.2-1 Debian:12.1/stable [all])"), Some("seabios"));
        assert_eq!(planned("Conf seabios (1.16.2-1 Debian:12.1/stable [all])"), None);
        assert_eq!(planned("0 upgraded, 3 newly installed"), None);
    }
}
