//! The firmware ROM: cargo builds an ELF file linked to the end of 4 GiB, and its bytes are the ROM.

use std::fs;
use std::path::PathBuf;

use anyhow::{Context, Result, bail, ensure};

use crate::elf::{Elf, Load};
use crate::{command, paths, progress};

/// The ROM ends here.
const END: u64 = 1 << 32;
/// QEMU takes ROMs in units of this.
const UNIT: usize = 64 << 10;

/// Builds the ROM; its path. The same sources give the same bytes, and so the same launch measurement, wherever
/// they are built: paths of the machine are kept out, and the profile is the firmware's own.
pub fn build() -> Result<PathBuf> {
    let step = progress::step("building the firmware");
    // Rounds in loops: unrolled ones are a third of the ROM.
    let mut flags =
        [r#"--cfg=sha2_backend="soft""#, r#"--cfg=sha2_backend_soft="compact""#].map(str::to_owned).to_vec();
    for (from, to) in [(Some(paths::workspace()), "."), (cargo_home(), "cargo")] {
        if let Some(from) = from {
            flags.push(format!("--remap-path-prefix={}={to}", from.display()));
        }
    }
    let mut cargo = command::cargo();
    cargo
        .current_dir(paths::workspace())
        .args([
            "build",
            "--quiet",
            "--locked",
            "--package",
            "cloister-firmware",
            "--bin",
            "cloister-firmware",
        ])
        .args(["--features", "rom", "--profile", "firmware", "--target", paths::TARGET])
        .arg("--target-dir")
        .arg(paths::target())
        .env_remove("RUSTFLAGS")
        .env("CARGO_ENCODED_RUSTFLAGS", flags.join("\u{1f}"));
    command::output(&mut cargo)?;
    drop(step);

    let elf = paths::target().join(paths::TARGET).join("firmware/cloister-firmware");
    let file = fs::read(&elf).with_context(|| format!("cannot read {}", elf.display()))?;
    let rom =
        flatten(&Elf::parse(&file)?.loads()?).with_context(|| format!("{} is no ROM", elf.display()))?;
    let path = paths::target().join("cloister-firmware.bin");
    fs::write(&path, rom).with_context(|| format!("cannot write {}", path.display()))?;
    Ok(path)
}

fn cargo_home() -> Option<PathBuf> {
    std::env::var_os("CARGO_HOME")
        .map(PathBuf::from)
        .or_else(|| Some(PathBuf::from(std::env::var_os("HOME")?).join(".cargo")))
}

/// The bytes from the lowest loaded address up to 4 GiB.
fn flatten(loads: &[Load]) -> Result<Vec<u8>> {
    let Some(start) = loads.iter().filter(|load| load.memory != 0).map(|load| load.address).min() else {
        bail!("nothing to load");
    };
    let length = END.checked_sub(start).context("it is loaded above 4 GiB")?;
    let mut rom = vec![0; usize::try_from(length)?];
    for load in loads {
        ensure!(load.memory == load.bytes.len() as u64, "it has memory that the ROM does not fill");
        let offset = usize::try_from(load.address.checked_sub(start).context("it wraps")?)?;
        rom.get_mut(offset..offset + load.bytes.len())
            .context("it reaches beyond 4 GiB")?
            .copy_from_slice(load.bytes);
    }
    ensure!(rom.len() % UNIT == 0, "its size {:#x} is not a multiple of 64 KiB", rom.len());
    Ok(rom)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn load(address: u64, bytes: &[u8], memory: u64) -> Load<'_> {
        Load { address, bytes, memory }
    }

    #[test]
    fn parts_land_where_they_are_linked_to() {
        let all = flatten(&[load(0xFFFF_0000, &[1, 2], 2), load(0xFFFF_FFFF, &[3], 1)]).unwrap();
        assert_eq!((all.len(), all[0], all[1], all[2], all[0xFFFF]), (0x1_0000, 1, 2, 0, 3));
    }

    #[test]
    fn what_is_no_rom_is_refused() {
        for (loads, why) in [
            (vec![], "nothing"),
            (vec![load(0xFFFF_0000, &[1], 2)], "memory that the ROM does not fill"),
            (vec![load(0xFFFF_0000, &[], 0)], "nothing"),
            (vec![load(0xFFFF_8000, &[1], 1)], "multiple"),
            (vec![load(0xFFFF_0000, &[0; 0x1_0001], 0x1_0001)], "beyond"),
            (vec![load(0x1_0000_0001, &[1], 1)], "above"),
        ] {
            let error = flatten(&loads).unwrap_err().to_string();
            assert!(error.contains(why), "{error}");
        }
    }
}
