//! Kernel modules: found by name, decompressed, in an order in which they can be loaded.
//!
//! A kernel package that was unpacked and not installed has no `modules.dep`; each module names what it depends on. What is
//! built in, the package's `modules.builtin` says. Which of both a driver is, and whether there is one of that name at all, differs
//! from kernel to kernel.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::{Cursor, ErrorKind};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use crate::elf::Elf;

/// A module, ready to be loaded.
#[derive(Debug)]
pub struct Module {
    /// Its name, with underscores.
    pub name: String,
    /// The object file, decompressed.
    pub bytes: Vec<u8>,
}

/// A driver that somebody wants.
#[derive(Clone, Copy, Debug)]
pub enum Wanted<'a> {
    /// Without it there is nothing to do.
    Needed(&'a str),
    /// Kernels that do without it have no module of that name.
    IfThere(&'a str),
}

/// The wanted modules that are not built in, and all that they depend on, dependencies first.
pub fn collect(directory: &Path, wanted: &[Wanted<'_>]) -> Result<Vec<Module>> {
    let unreadable = || format!("cannot read modules in {}", directory.display());
    let mut files = BTreeMap::new();
    index(directory, &mut files).with_context(unreadable)?;
    let builtin = builtin(directory).with_context(unreadable)?;
    let mut collected = Vec::new();
    for wanted in wanted {
        let (Wanted::Needed(name) | Wanted::IfThere(name)) = wanted;
        let name = normal(name);
        let there = files.contains_key(&name);
        let absent = matches!(wanted, Wanted::IfThere(_)) || builtin.contains(&name);
        if there || !absent {
            add(&name, &files, &builtin, &mut collected, &mut Vec::new())?;
        }
    }
    Ok(collected)
}

/// Names of the drivers in the kernel itself. A tree without the list is taken to have none.
fn builtin(directory: &Path) -> Result<BTreeSet<String>> {
    match fs::read_to_string(directory.join("modules.builtin")) {
        Ok(list) => {
            let names = list.lines().filter_map(|line| line.rsplit('/').next()?.strip_suffix(".ko"));
            Ok(names.map(normal).collect())
        }
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(BTreeSet::new()),
        Err(error) => Err(error.into()),
    }
}

fn add(
    name: &str,
    files: &BTreeMap<String, PathBuf>,
    builtin: &BTreeSet<String>,
    collected: &mut Vec<Module>,
    path: &mut Vec<String>,
) -> Result<()> {
    if builtin.contains(name) || collected.iter().any(|module| module.name == name) {
        return Ok(());
    }
    if path.iter().any(|above| above == name) {
        bail!("modules depend on each other: {} and {name}", path.join(", "));
    }
    let file = files.get(name).with_context(|| format!("the kernel has no module {name}"))?;
    let bytes = read(file).with_context(|| format!("cannot read {}", file.display()))?;
    path.push(name.to_owned());
    for dependency in dependencies(&bytes).with_context(|| format!("{} is no module", file.display()))? {
        add(&dependency, files, builtin, collected, path)?;
    }
    path.pop();
    collected.push(Module { name: name.to_owned(), bytes });
    Ok(())
}

/// Module names write `-` and `_` alike.
fn normal(name: &str) -> String {
    name.replace('-', "_")
}

fn index(directory: &Path, files: &mut BTreeMap<String, PathBuf>) -> Result<()> {
    for entry in fs::read_dir(directory)? {
        let path = entry?.path();
        if path.is_dir() && !path.is_symlink() {
            index(&path, files)?;
        } else if let Some((name, _)) = path.file_name().and_then(|name| name.to_str()?.split_once(".ko")) {
            files.insert(normal(name), path);
        }
    }
    Ok(())
}

fn read(file: &Path) -> Result<Vec<u8>> {
    let bytes = fs::read(file)?;
    match file.extension().and_then(|extension| extension.to_str()) {
        Some("ko") => Ok(bytes),
        Some("xz") => {
            let mut decompressed = Vec::new();
            lzma_rs::xz_decompress(&mut Cursor::new(bytes), &mut decompressed)
                .map_err(|error| anyhow::anyhow!("{error}"))?;
            Ok(decompressed)
        }
        _ => bail!("modules compressed like this are not understood (plain and xz are)"),
    }
}

/// The `depends=` of `.modinfo`.
fn dependencies(module: &[u8]) -> Result<Vec<String>> {
    let info = Elf::parse(module)?.section(".modinfo")?.context("no .modinfo")?;
    let depends = info.split(|&b| b == 0).find_map(|line| line.strip_prefix(b"depends=")).unwrap_or_default();
    let depends = std::str::from_utf8(depends)?;
    Ok(depends.split(',').filter(|name| !name.is_empty()).map(normal).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An ELF file with nothing but a `.modinfo`.
    fn module(depends: &str) -> Vec<u8> {
        let info = format!("license=GPL\0depends={depends}\0");
        let names = b"\0.modinfo\0.shstrtab\0";
        let mut file = vec![0; 64];
        file[..6].copy_from_slice(b"\x7fELF\x02\x01");
        let (info_at, names_at) = (64, 64 + info.len());
        let headers_at = names_at + names.len();
        file[40..48].copy_from_slice(&(headers_at as u64).to_le_bytes());
        file[58] = 64;
        file[60] = 3;
        file[62] = 2;
        file.extend(info.as_bytes());
        file.extend(names);
        for (name, at, size) in [(0, 0, 0), (1, info_at, info.len()), (10, names_at, names.len())] {
            let mut header = [0; 64];
            header[0] = name;
            header[24..32].copy_from_slice(&(at as u64).to_le_bytes());
            header[32..40].copy_from_slice(&(size as u64).to_le_bytes());
            file.extend(header);
        }
        file
    }

    fn tree(modules: &[(&str, &str)]) -> tempfile::TempDir {
        let directory = tempfile::tempdir().unwrap();
        fs::create_dir_all(directory.path().join("kernel/drivers")).unwrap();
        for (name, depends) in modules {
            let path = directory.path().join("kernel/drivers").join(format!("{name}.ko.xz"));
            let mut compressed = Vec::new();
            lzma_rs::xz_compress(&mut Cursor::new(module(depends)), &mut compressed).unwrap();
            fs::write(path, compressed).unwrap();
        }
        directory
    }

    #[test]
    fn dependencies_come_first_and_once() {
        let tree =
            tree(&[("sev-guest", "tsm"), ("tsm", "configfs"), ("configfs", ""), ("other", "configfs")]);
        let wanted = ["sev-guest", "other", "tsm"].map(Wanted::Needed);
        let modules = collect(tree.path(), &wanted).unwrap();
        let names: Vec<_> = modules.iter().map(|module| module.name.as_str()).collect();
        assert_eq!(names, ["configfs", "tsm", "sev_guest", "other"]);
        assert_eq!(modules[0].bytes, module(""));
    }

    #[test]
    fn missing_and_circular_modules_are_refused() {
        let tree = tree(&[("a", "b"), ("b", "a"), ("c", "gone")]);
        let refused = |wanted| collect(tree.path(), &[wanted]).unwrap_err().to_string();
        assert!(refused(Wanted::Needed("a")).contains("depend on each other"));
        assert!(refused(Wanted::Needed("c")).contains("no module gone"));
        assert!(refused(Wanted::IfThere("c")).contains("no module gone"), "what is there must be whole");
        assert!(refused(Wanted::Needed("d")).contains("no module d"));
    }

    #[test]
    fn the_kernel_says_what_it_has_built_in_and_what_it_does_without() {
        let tree = tree(&[("gcm", "ghash_generic,gf128mul"), ("gf128mul", "")]);
        let list = "kernel/crypto/ghash-generic.ko\nkernel/fs/configfs/configfs.ko\n";
        fs::write(tree.path().join("modules.builtin"), list).unwrap();
        let wanted = [Wanted::Needed("configfs"), Wanted::IfThere("gone"), Wanted::IfThere("gcm")];
        let modules = collect(tree.path(), &wanted).unwrap();
        let names: Vec<_> = modules.iter().map(|module| module.name.as_str()).collect();
        assert_eq!(names, ["gf128mul", "gcm"]);
    }
}
