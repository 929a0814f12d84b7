//! The guest kernel: an unmodified distribution's, fetched by name through apt.
//!
//! Where the machine's own package sources have it, they are used as they are; where they do not, a private apt looks in
//! suites that do (see [`crate::apt`]).

use std::cmp::Ordering;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};

use crate::apt::{self, Apt};
use crate::{paths, progress};

/// Options that name a kernel.
#[derive(clap::Args, Debug, Default)]
pub struct Options {
    /// A kernel of one's own (bzImage or vmlinux) instead of the distribution's.
    #[arg(long, value_name = "PATH")]
    pub kernel: Option<PathBuf>,
    /// Where that kernel's modules are (the directory that `uname -r` names).
    #[arg(long, value_name = "DIR", requires = "kernel")]
    pub modules: Option<PathBuf>,
    /// Which of the distribution's kernels.
    #[arg(long, value_enum, default_value = "usual", conflicts_with = "kernel")]
    pub debian: Debian,
}

/// Kernels that Debian offers.
#[derive(clap::ValueEnum, Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Debian {
    /// Debian 12's own, 6.1: it has no configfs-tsm and is no TD with quotes.
    Oldest,
    /// 6.12 or later of a release.
    #[default]
    Usual,
    /// The newest of all, in Debian's unstable suite.
    Newest,
}

impl Debian {
    /// Where it is kept.
    fn directory(self) -> PathBuf {
        paths::cache().join(match self {
            Self::Oldest => "kernel-oldest",
            Self::Usual => "kernel",
            Self::Newest => "kernel-newest",
        })
    }

    /// Suites that have it.
    fn suites(self) -> &'static [&'static str] {
        match self {
            Self::Oldest => &["bookworm"],
            Self::Usual => &["bookworm-backports", "trixie", "bookworm-security"],
            Self::Newest => &["sid"],
        }
    }

    /// Whether the machine's own sources may have it: which kernel is the newest, only unstable knows.
    fn may_be_the_machines(self) -> bool {
        self != Self::Newest
    }

    /// Whether a kernel of this version is meant.
    fn is(self, version: (u32, u32)) -> bool {
        match self {
            Self::Oldest => version == (6, 1),
            Self::Usual => ((6, 12)..(6, 20)).contains(&version),
            Self::Newest => (6, 12) <= version,
        }
    }
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
    let directory = options.debian.directory();
    if let Some(kernel) = cached(&directory) {
        return Ok(kernel);
    }
    fetch(options.debian, &directory).context(
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

fn fetch(debian: Debian, directory: &Path) -> Result<()> {
    let step = progress::step("looking for a kernel package");
    let look = |apt: &Apt| newest_kernel(debian, apt);
    let (apt, package) = match debian.may_be_the_machines() {
        true => Apt::find(debian.suites(), look)?,
        false => Apt::find_in(debian.suites(), look)?,
    };
    drop(step);

    let step = progress::step(format!("fetching {package}"));
    let download = paths::cache().join("download");
    fs::create_dir_all(&download)?;
    let version = package.strip_prefix("linux-image-").unwrap_or(&package);
    let packages = parts(&apt, version)?;
    apt.download(&packages, &download)?;
    drop(step);

    let _step = progress::step(format!("unpacking {package}"));
    let unpacked = paths::cache().join("unpacked");
    let _ = fs::remove_dir_all(&unpacked);
    for package in &packages {
        let archive = newest_file(&download, package).context("apt fetched no package file")?;
        apt::unpack(&archive, &unpacked)?;
    }
    let _ = fs::remove_dir_all(directory);
    fs::create_dir_all(directory)?;
    let image = [format!("boot/vmlinuz-{version}"), format!("usr/lib/modules/{version}/vmlinuz")];
    let image = image.map(|path| unpacked.join(path)).into_iter().find(|path| path.is_file());
    rename(&image.context("the kernel package has no vmlinuz")?, &directory.join("vmlinuz"))?;
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

/// The packages that a kernel is in: one, or, from Debian 14 on, one for the kernel and one for its modules.
fn parts(apt: &Apt, version: &str) -> Result<Vec<String>> {
    let mut packages = vec![format!("linux-image-{version}")];
    for part in ["binary", "modules"] {
        let package = format!("linux-{part}-{version}");
        if apt.candidate(&package)?.is_some() {
            packages.push(package);
        }
    }
    Ok(packages)
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

/// Name of the newest signed cloud kernel that an apt can see.
fn newest_kernel(debian: Debian, apt: &Apt) -> Result<Option<String>> {
    let mut names: Vec<String> = apt
        .names("linux-image-")?
        .into_iter()
        .filter(|name| version(name).is_some_and(|v| debian.is(v)))
        .collect();
    names.sort_by(|a, b| compare_versions(b, a));
    for name in names {
        if apt.candidate(&name)?.is_some() {
            return Ok(Some(name));
        }
    }
    Ok(None)
}

/// Major and minor version in `linux-image-6.MINOR.PATCH+debN[~bpoM]-cloud-amd64`: a versioned, signed package, no meta-package.
fn version(name: &str) -> Option<(u32, u32)> {
    let version = name.strip_prefix("linux-image-")?.strip_suffix("-cloud-amd64")?;
    let (major, rest) = version.split_once('.')?;
    let (minor, patch) = rest.split_once('.')?;
    let numbers = (major.parse().ok()?, minor.parse().ok()?);
    patch.starts_with(|c: char| c.is_ascii_digit()).then_some(numbers)
}

/// Compares names by the numbers in them.
fn compare_versions(a: &str, b: &str) -> Ordering {
    let numbers = |name: &str| -> Vec<u64> {
        name.split(|c: char| !c.is_ascii_digit()).filter_map(|number| number.parse().ok()).collect()
    };
    numbers(a).cmp(&numbers(b))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_choice_means_signed_cloud_kernels_of_its_versions() {
        use Debian::{Newest, Oldest, Usual};
        for (name, of) in [
            ("linux-image-6.12.117+deb12-cloud-amd64", &[Usual, Newest][..]),
            ("linux-image-6.12.9+bpo-cloud-amd64", &[Usual, Newest]),
            ("linux-image-6.16.3+deb13-cloud-amd64", &[Usual, Newest]),
            ("linux-image-7.2.13+deb14-cloud-amd64", &[Newest]),
            ("linux-image-6.1.0-53-cloud-amd64", &[Oldest]),
            ("linux-image-6.12-cloud-amd64", &[]),
            ("linux-image-cloud-amd64", &[]),
            ("linux-image-6.12.117+deb12-cloud-amd64-unsigned", &[]),
            ("linux-image-6.12.117+deb12-cloud-amd64-dbg", &[]),
            ("linux-image-6.12.117+deb12-amd64", &[]),
        ] {
            for debian in [Oldest, Usual, Newest] {
                let meant = version(name).is_some_and(|version| debian.is(version));
                assert_eq!(meant, of.contains(&debian), "{name} {debian:?}");
            }
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
    fn a_kernel_that_is_not_there_is_a_clear_error() {
        let options = Options { kernel: Some("/nonexistent/vmlinuz".into()), ..Options::default() };
        assert!(obtain(&options).unwrap_err().to_string().contains("/nonexistent/vmlinuz"));
    }
}
