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
    let (apt, package) = Apt::find(&SUITES, newest_kernel)?;
    drop(step);

    let step = progress::step(format!("fetching {package}"));
    let download = paths::cache().join("download");
    fs::create_dir_all(&download)?;
    apt.download(&[&package], &download)?;
    let archive = newest_file(&download, &package).context("apt fetched no package file")?;
    drop(step);

    let _step = progress::step(format!("unpacking {package}"));
    let unpacked = paths::cache().join("unpacked");
    let _ = fs::remove_dir_all(&unpacked);
    apt::unpack(&archive, &unpacked)?;
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

/// Name of the newest signed cloud kernel that an apt can see.
fn newest_kernel(apt: &Apt) -> Result<Option<String>> {
    let mut names: Vec<String> =
        apt.names("linux-image-6.")?.into_iter().filter(|name| is_wanted(name)).collect();
    names.sort_by(|a, b| compare_versions(b, a));
    for name in names {
        if apt.candidate(&name)?.is_some() {
            return Ok(Some(name));
        }
    }
    Ok(None)
}

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
    fn a_kernel_that_is_not_there_is_a_clear_error() {
        let options = Options { kernel: Some("/nonexistent/vmlinuz".into()), modules: None };
        assert!(obtain(&options).unwrap_err().to_string().contains("/nonexistent/vmlinuz"));
    }
}
