//! The guest kernel: an unmodified distribution's, fetched by name through apt.
//!
//! Where the machine's own package sources have it, they are used as they are. Where they do not, apt is run with a
//! private configuration (its own source list, state and cache below the target directory) that names the machine's
//! own mirror and a suite that has it. Signatures are checked by apt with the machine's keyring in both cases.

use std::cmp::Ordering;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};

use crate::{command, paths, progress};

/// Options that name a kernel.
#[derive(clap::Args, Debug, Default)]
pub struct Options {
    /// A kernel of one's own (bzImage or vmlinux) instead of the distribution's.
    #[arg(long, value_name = "PATH")]
    pub kernel: Option<PathBuf>,
    /// Where that kernel's modules are (the directory that `uname -r` names).
    #[arg(long, value_name = "DIR", requires = "kernel")]
    pub modules: Option<PathBuf>,
}

/// A kernel at hand.
#[derive(Debug)]
pub struct Kernel {
    /// bzImage or vmlinux.
    pub image: PathBuf,
    /// Directory with its modules; a kernel of one's own may have none.
    pub modules: Option<PathBuf>,
    /// Version, as in the package's name.
    pub version: String,
}

/// The oldest kernel with all that a confidential guest needs, and the last minor version looked for by name.
const MINOR: std::ops::RangeInclusive<u32> = 12..=19;
/// Suites that have such a kernel.
const SUITES: [&str; 3] = ["bookworm-backports", "trixie", "bookworm-security"];

/// Gets the kernel: the given one, the cached one, or the newest that apt has.
pub fn obtain(options: &Options) -> Result<Kernel> {
    if let Some(image) = &options.kernel {
        ensure!(image.is_file(), "no kernel at {}", image.display());
        return Ok(Kernel {
            image: image.clone(),
            modules: options.modules.clone(),
            version: "own".to_owned(),
        });
    }
    let directory = paths::cache().join("kernel");
    if let Some(kernel) = cached(&directory) {
        return Ok(kernel);
    }
    fetch(&directory).context(
        "no guest kernel: it is a Debian linux-image-6.12 (or later) cloud package, fetched through apt; on a machine \
         without apt or such a package, pass --kernel PATH (bzImage or vmlinux) and --modules DIR",
    )?;
    cached(&directory).context("the kernel package lacks a kernel")
}

fn cached(directory: &Path) -> Option<Kernel> {
    let kernel = Kernel {
        image: directory.join("vmlinuz"),
        modules: Some(directory.join("modules")),
        version: fs::read_to_string(directory.join("version")).ok()?,
    };
    kernel.image.is_file().then_some(kernel)
}

fn fetch(directory: &Path) -> Result<()> {
    let step = progress::step("looking for a kernel package");
    let mut apt = Apt::machine();
    let package = match apt.newest_kernel()? {
        Some(package) => package,
        None => {
            apt = Apt::private(&paths::cache().join("apt"))?;
            apt.newest_kernel()?.context("no package source has one")?
        }
    };
    drop(step);

    let step = progress::step(format!("fetching {package}"));
    let download = paths::cache().join("download");
    fs::create_dir_all(&download)?;
    command::output(apt.command("apt-get").current_dir(&download).args(["download", &package]))?;
    let archive = newest_file(&download, &package).context("apt fetched no package file")?;
    drop(step);

    let _step = progress::step(format!("unpacking {package}"));
    let unpacked = paths::cache().join("unpacked");
    let _ = fs::remove_dir_all(&unpacked);
    command::output(Command::new("dpkg-deb").arg("--extract").arg(&archive).arg(&unpacked))?;
    let version = package.strip_prefix("linux-image-").unwrap_or(&package);
    let _ = fs::remove_dir_all(directory);
    fs::create_dir_all(directory)?;
    rename(&unpacked.join("boot").join(format!("vmlinuz-{version}")), &directory.join("vmlinuz"))?;
    let modules = ["lib", "usr/lib"]
        .map(|base| unpacked.join(base).join("modules").join(version))
        .into_iter()
        .find(|path| path.is_dir())
        .context("the kernel package has no modules")?;
    rename(&modules, &directory.join("modules"))?;
    // Written last: it is what makes the cache complete.
    fs::write(directory.join("version"), version)?;
    let _ = fs::remove_dir_all(&unpacked);
    let _ = fs::remove_dir_all(&download);
    Ok(())
}

fn rename(from: &Path, to: &Path) -> Result<()> {
    fs::rename(from, to).with_context(|| format!("the kernel package has no {}", from.display()))
}

fn newest_file(directory: &Path, package: &str) -> Option<PathBuf> {
    fs::read_dir(directory)
        .ok()?
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|path| {
            path.file_name().is_some_and(|name| name.to_string_lossy().starts_with(&format!("{package}_")))
        })
        .max()
}

/// apt with a configuration.
struct Apt {
    options: Vec<String>,
}

impl Apt {
    /// As the machine has it.
    fn machine() -> Self {
        Self { options: Vec::new() }
    }

    /// With sources, state and cache of its own: suites that have the kernel, from the mirror that the machine uses.
    fn private(directory: &Path) -> Result<Self> {
        let mirror = mirror().context("the machine's apt sources name no Debian mirror")?;
        for part in ["state/lists/partial", "cache/archives/partial", "parts"] {
            fs::create_dir_all(directory.join(part))?;
        }
        for suite in SUITES {
            let source = format!("deb [signed-by={KEYRING}] {mirror} {suite} main\n");
            fs::write(directory.join("sources.list"), source)?;
            let at = |part: &str| directory.join(part).display().to_string();
            let apt = Self {
                options: vec![
                    format!("Dir::Etc::sourcelist={}", at("sources.list")),
                    format!("Dir::Etc::sourceparts={}", at("parts")),
                    format!("Dir::State={}", at("state")),
                    format!("Dir::State::lists={}", at("state/lists")),
                    format!("Dir::Cache={}", at("cache")),
                    "APT::Get::List-Cleanup=false".to_owned(),
                ],
            };
            if command::output(apt.command("apt-get").arg("update")).is_ok() && apt.newest_kernel()?.is_some()
            {
                return Ok(apt);
            }
        }
        bail!("none of the suites {} has one, or the mirror {mirror} cannot be reached", SUITES.join(", "))
    }

    fn command(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        for option in &self.options {
            command.arg("-o").arg(option);
        }
        command
    }

    /// Name of the newest signed cloud kernel that this apt can see.
    fn newest_kernel(&self) -> Result<Option<String>> {
        let names = command::output(self.command("apt-cache").args(["pkgnames", "linux-image-6."]))?;
        let mut names: Vec<&str> = names.lines().filter(|name| is_wanted(name)).collect();
        names.sort_by(|a, b| compare_versions(b, a));
        // A name without a candidate is one that only an installed package or a stale list knows.
        for name in names {
            let policy = command::output(self.command("apt-cache").args(["policy", name]))?;
            if policy
                .lines()
                .any(|line| line.trim_start().starts_with("Candidate:") && !line.contains("(none)"))
            {
                return Ok(Some(name.to_owned()));
            }
        }
        Ok(None)
    }
}

/// Debian's keyring, wherever its mirror is.
const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";

/// `linux-image-6.MINOR.PATCH+debN[~bpoM]-cloud-amd64`: a versioned, signed package, no meta-package.
fn is_wanted(name: &str) -> bool {
    let version = name.strip_prefix("linux-image-6.").and_then(|rest| rest.strip_suffix("-cloud-amd64"));
    version.and_then(|v| v.split_once('.')).is_some_and(|(minor, patch)| {
        minor.parse().is_ok_and(|minor| MINOR.contains(&minor))
            && patch.starts_with(|c: char| c.is_ascii_digit())
    })
}

/// Compares names by the numbers in them.
fn compare_versions(a: &str, b: &str) -> Ordering {
    let numbers = |name: &str| -> Vec<u64> {
        name.split(|c: char| !c.is_ascii_digit()).filter_map(|number| number.parse().ok()).collect()
    };
    numbers(a).cmp(&numbers(b))
}

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
    fn only_signed_cloud_kernels_from_6_12_on_are_wanted() {
        for (name, wanted) in [
            ("linux-image-6.12.117+deb12-cloud-amd64", true),
            ("linux-image-6.12.9+bpo-cloud-amd64", true),
            ("linux-image-6.16.3+deb13-cloud-amd64", true),
            ("linux-image-6.1.0-53-cloud-amd64", false),
            ("linux-image-6.12-cloud-amd64", false),
            ("linux-image-6.12.117+deb12-cloud-amd64-unsigned", false),
            ("linux-image-6.12.117+deb12-cloud-amd64-dbg", false),
            ("linux-image-6.12.117+deb12-amd64", false),
        ] {
            assert_eq!(is_wanted(name), wanted, "{name}");
        }
    }

    #[test]
    fn versions_compare_as_numbers() {
        let newer = "linux-image-6.12.117+deb12-cloud-amd64";
        for older in ["linux-image-6.12.9+deb12-cloud-amd64", "linux-image-6.12.111+deb12-cloud-amd64"] {
            assert_eq!(compare_versions(newer, older), Ordering::Greater, "{older}");
        }
    }

    #[test]
    fn mirrors_are_found_in_both_forms_and_comments_are_not() {
        for (text, expected) in [
            (
                "Types: deb\nURIs: http://mirror.example/debian\nSuites: bookworm\n",
                Some("http://mirror.example/debian"),
            ),
            ("deb [arch=amd64] https://m.example/debian/ trixie main\n", Some("https://m.example/debian")),
            (
                "deb http://m.example/debian-security x main\ndeb http://n.example/debian y main",
                Some("http://n.example/debian"),
            ),
            ("# deb http://m.example/debian bookworm main\n", None),
            ("URIs: https://other.example/node_20.x\n", None),
            ("", None),
        ] {
            assert_eq!(mirror_in(text).as_deref(), expected, "{text}");
        }
    }

    #[test]
    fn a_kernel_that_is_not_there_is_a_clear_error() {
        let options = Options { kernel: Some("/nonexistent/vmlinuz".into()), modules: None };
        assert!(obtain(&options).unwrap_err().to_string().contains("/nonexistent/vmlinuz"));
    }
}
