//! The little of ELF64 that is needed: program headers of the firmware, `.modinfo` of kernel modules.

use anyhow::{Context, Result, bail};

/// An ELF64 little-endian file.
pub struct Elf<'a>(&'a [u8]);

/// A loadable part.
#[derive(Debug)]
pub struct Load<'a> {
    /// Physical address.
    pub address: u64,
    /// Contents.
    pub bytes: &'a [u8],
    /// Bytes in memory.
    pub memory: u64,
}

impl<'a> Elf<'a> {
    /// Checks the identification.
    pub fn parse(file: &'a [u8]) -> Result<Self> {
        if file.len() < 64 || !file.starts_with(b"\x7fELF\x02\x01") {
            bail!("not an ELF64 file");
        }
        Ok(Self(file))
    }

    fn slice(&self, at: u64, length: u64) -> Result<&'a [u8]> {
        usize::try_from(at)
            .ok()
            .zip(at.checked_add(length).and_then(|end| usize::try_from(end).ok()))
            .and_then(|(start, end)| self.0.get(start..end))
            .context("ELF file is truncated")
    }

    fn number<const N: usize>(&self, at: u64) -> Result<u64> {
        let mut bytes = [0; 8];
        bytes[..N].copy_from_slice(self.slice(at, N as u64)?);
        Ok(u64::from_le_bytes(bytes))
    }

    /// Offsets of the entries of a header table that the file header describes.
    fn table(&self, offset: u64, size: u64, count: u64) -> Result<impl Iterator<Item = u64> + use<>> {
        let (start, size, count) =
            (self.number::<8>(offset)?, self.number::<2>(size)?, self.number::<2>(count)?);
        Ok((0..count).map(move |index| start.saturating_add(index * size)))
    }

    /// The loadable parts.
    pub fn loads(&self) -> Result<Vec<Load<'a>>> {
        const PT_LOAD: u64 = 1;
        let mut loads = Vec::new();
        for at in self.table(32, 54, 56)? {
            if self.number::<4>(at)? == PT_LOAD {
                loads.push(Load {
                    address: self.number::<8>(at + 24)?,
                    bytes: self.slice(self.number::<8>(at + 8)?, self.number::<8>(at + 32)?)?,
                    memory: self.number::<8>(at + 40)?,
                });
            }
        }
        Ok(loads)
    }

    /// The dynamic linker that the program asks for; a static one asks for none.
    pub fn interpreter(&self) -> Result<Option<String>> {
        const PT_INTERP: u64 = 3;
        for at in self.table(32, 54, 56)? {
            if self.number::<4>(at)? == PT_INTERP {
                let name = self.slice(self.number::<8>(at + 8)?, self.number::<8>(at + 32)?)?;
                return Ok(Some(String::from_utf8_lossy(name).trim_end_matches('\0').to_owned()));
            }
        }
        Ok(None)
    }

    /// A section's contents.
    pub fn section(&self, name: &str) -> Result<Option<&'a [u8]>> {
        let headers: Vec<u64> = self.table(40, 58, 60)?.collect();
        let contents = |at: u64| self.slice(self.number::<8>(at + 24)?, self.number::<8>(at + 32)?);
        let names = headers.get(self.number::<2>(62)? as usize).context("ELF file has no section names")?;
        let names = contents(*names)?;
        for at in headers {
            let start = self.number::<4>(at)? as usize;
            let found = names.get(start..).and_then(|rest| rest.split(|&b| b == 0).next());
            if found == Some(name.as_bytes()) {
                return contents(at).map(Some);
            }
        }
        Ok(None)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_this_very_program() {
        let file = std::fs::read(std::env::current_exe().unwrap()).unwrap();
        let elf = Elf::parse(&file).unwrap();
        assert!(elf.loads().unwrap().iter().any(|load| !load.bytes.is_empty()));
        assert!(elf.section(".text").unwrap().is_some_and(|text| !text.is_empty()));
        assert!(elf.section(".no such section").unwrap().is_none());
    }

    #[test]
    fn refuses_what_is_no_elf_or_cut_short() {
        let file = std::fs::read(std::env::current_exe().unwrap()).unwrap();
        assert!(Elf::parse(b"").is_err());
        assert!(Elf::parse(&[0; 100]).is_err());
        assert!(Elf::parse(&file[..64]).unwrap().loads().is_err());
    }
}
