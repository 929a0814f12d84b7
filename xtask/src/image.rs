//! The guest's initramfs: `cloister-guest` as /init, and the kernel modules that it loads.
//!
//! `/modules` holds the modules, decompressed; `/modules/order` names them one a line, dependencies first. Loading
//! them in that order is all that init has to know.

use std::fs;
use std::path::PathBuf;

use anyhow::{Context, Result, bail, ensure};

use crate::cpio::Archive;
use crate::kernel::Kernel;
use crate::modules::Wanted;
use crate::{additions, command, modules, paths, progress};

/// What the guest loads: reports, disks, vsock, randomness, and the encryption of reports where it is a module (a library
/// since Linux 6.13). Kernels before 6.7 have no configfs-tsm, nor a driver for quotes.
const MODULES: [Wanted<'_>; 8] = [
    Wanted::IfThere("gcm"),
    Wanted::IfThere("ghash-generic"),
    Wanted::Needed("sev-guest"),
    Wanted::IfThere("tdx-guest"),
    Wanted::IfThere("virtio_blk"),
    Wanted::Needed("vmw_vsock_virtio_transport"),
    Wanted::IfThere("virtio-rng"),
    Wanted::IfThere("configfs"),
];

/// Builds the initramfs with nothing of one's own in it; its path.
pub fn build(kernel: &Kernel, output: Option<PathBuf>) -> Result<PathBuf> {
    build_with(kernel, &additions::Options::default(), output)
}

/// Builds the initramfs; its path.
pub fn build_with(
    kernel: &Kernel,
    additions: &additions::Options,
    output: Option<PathBuf>,
) -> Result<PathBuf> {
    let init = guest_tools()?;
    let step = progress::step("building the initramfs");
    let archive = archive(kernel, &init, additions)?;
    drop(step);
    let path = output.unwrap_or_else(|| paths::target().join("cloister-initrd.img"));
    fs::write(&path, archive).with_context(|| format!("cannot write {}", path.display()))?;
    Ok(path)
}

fn archive(kernel: &Kernel, init: &[u8], additions: &additions::Options) -> Result<Vec<u8>> {
    let modules = match &kernel.modules {
        Some(directory) => {
            let own = additions.module.iter().map(|name| Wanted::Needed(name));
            modules::collect(directory, &MODULES.into_iter().chain(own).collect::<Vec<_>>())?
        }
        None if !additions.module.is_empty() => bail!("--module: where are the kernel's? Say --modules DIR"),
        None => Vec::new(),
    };
    let mut archive = Archive::default();
    for directory in ["dev", "modules", "proc", "run", "sys", "tmp"] {
        archive.directory(directory, 0o755);
    }
    archive.character_device("dev/console", 0o600, (5, 1));
    archive.file("init", 0o755, init);
    let mut order = String::new();
    for module in &modules {
        order += &format!("{}.ko\n", module.name);
        archive.file(&format!("modules/{}.ko", module.name), 0o644, &module.bytes);
    }
    archive.file("modules/order", 0o644, order.as_bytes());
    additions::write(additions, &mut archive)?;
    Ok(archive.finish())
}

/// Builds `cloister-guest` as a static binary: the initramfs has no libraries.
fn guest_tools() -> Result<Vec<u8>> {
    let _step = progress::step("building the guest tools");
    let target = paths::target().join("guest");
    let mut cargo = command::cargo();
    cargo
        .current_dir(paths::workspace())
        .args([
            "build",
            "--quiet",
            "--locked",
            "--release",
            "--package",
            "cloister-guest",
            "--bin",
            "cloister-guest",
        ])
        .args(["--target", paths::TARGET])
        .arg("--target-dir")
        .arg(&target)
        .env_remove("RUSTFLAGS")
        .env("CARGO_ENCODED_RUSTFLAGS", ["-Ctarget-feature=+crt-static", "-Cstrip=symbols"].join("\u{1f}"));
    command::output(&mut cargo)?;
    let binary = target.join(paths::TARGET).join("release/cloister-guest");
    let bytes = fs::read(&binary).with_context(|| format!("cannot read {}", binary.display()))?;
    ensure!(bytes.starts_with(b"\x7fELF"), "{} is no program", binary.display());
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_inputs_give_the_same_bytes() {
        let kernel = Kernel { image: PathBuf::new(), modules: None, version: String::new() };
        let first = archive(&kernel, b"\x7fELF init", &additions::Options::default()).unwrap();
        assert_eq!(first, archive(&kernel, b"\x7fELF init", &additions::Options::default()).unwrap());
        assert_ne!(first, archive(&kernel, b"\x7fELF other", &additions::Options::default()).unwrap());
    }

    #[test]
    fn a_kernel_without_the_modules_is_refused() {
        let empty = tempfile::tempdir().unwrap();
        let modules = Some(empty.path().to_owned());
        let kernel = Kernel { image: PathBuf::new(), modules, version: String::new() };
        let none = additions::Options::default();
        assert!(archive(&kernel, b"init", &none).unwrap_err().to_string().contains("no module"));
        let kernel = Kernel { modules: None, ..kernel };
        let own = additions::Options { module: vec!["dm-crypt".into()], ..none };
        assert!(archive(&kernel, b"init", &own).unwrap_err().to_string().contains("--modules DIR"));
    }
}
