//! OVMF's table of GUIDed entries, through which a firmware ROM says what it needs of its launch.
//!
//! The table ends 32 bytes before the ROM does and is read backwards: each entry is its data, its
//! size (u16, counting itself and the GUID) and its GUID; the last one, the footer, counts them all
//! (edk2 `OvmfPkg/ResetVector/Ia16/ResetVectorVtf0.asm`). SEV and TDX metadata are entries of the same table.

use alloc::vec::Vec;

use zerocopy::little_endian::{U16, U32};
use zerocopy::{FromBytes, Immutable, KnownLayout, Unaligned};

use super::{Gpa, Guid, PAGE_SIZE};

const FOOTER_GUID: Guid = Guid::parse("96b582de-1fb2-45f7-baea-a366c55a082d");
/// The reset vector and what follows the table.
pub(super) const TABLE_END_FROM_ROM_END: usize = 32;
const FOUR_GIB: u64 = 1 << 32;
/// No firmware is bigger.
const MAX_PAGES: usize = 4096;

#[derive(FromBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct EntryTail {
    size: U16,
    guid: Guid,
}
const _: () = assert!(size_of::<EntryTail>() == 18);

/// Why a ROM's table cannot be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TableError {
    /// No ROM is this small or big, or ends inside a page.
    #[error("a ROM is 1 to {MAX_PAGES} whole pages of 4 KiB; this file has {len} bytes")]
    Size {
        /// The file's length.
        len: usize,
    },
    /// An entry of the GUIDed table leaves the table.
    #[error("the ROM's GUIDed table is damaged: an entry of {size} bytes does not fit")]
    Entry {
        /// The entry's claimed size.
        size: u16,
    },
    /// The entry with this GUID holds less than it should.
    #[error("the ROM's GUIDed entry {0} is too short")]
    ShortEntry(Guid),
}

/// Entries of the GUIDed table: what they are and their data.
pub(super) type Entries<'a> = Vec<(Guid, &'a [u8])>;

/// Where a ROM of `len` bytes lies: it ends at 4 GiB.
pub(super) const fn rom_gpa(len: usize) -> Gpa {
    Gpa(FOUR_GIB.saturating_sub(len as u64))
}

/// The entries of the GUIDed table, last first; none where there is no footer.
pub(super) fn entries(bytes: &[u8]) -> Result<Option<Entries<'_>>, TableError> {
    if bytes.is_empty() || !bytes.len().is_multiple_of(PAGE_SIZE) || bytes.len() / PAGE_SIZE > MAX_PAGES {
        return Err(TableError::Size { len: bytes.len() });
    }
    let split = |bytes: &'_ [u8]| -> Option<(usize, u16, Guid)> {
        let (rest, tail) = EntryTail::ref_from_suffix(bytes).ok()?;
        Some((rest.len(), tail.size.get(), tail.guid))
    };
    let before_vector = bytes.len().checked_sub(TABLE_END_FROM_ROM_END).and_then(|end| bytes.get(..end));
    let Some((before, (end, size, FOOTER_GUID))) = before_vector.and_then(|b| Some((b, split(b)?))) else {
        return Ok(None);
    };
    let entry = |from: &'_ [u8], end: usize, size: u16| {
        let len = usize::from(size).checked_sub(size_of::<EntryTail>());
        let start = len.and_then(|len| end.checked_sub(len));
        start.filter(|_| end <= from.len()).ok_or(TableError::Entry { size })
    };
    let start = entry(before, end, size)?;
    let mut rest = before.get(start..end).unwrap_or_default();
    let mut entries = Vec::new();
    while let Some((end, size, guid)) = split(rest) {
        let start = entry(rest, end, size)?;
        entries.push((guid, rest.get(start..end).unwrap_or_default()));
        rest = rest.get(..start).unwrap_or_default();
    }
    Ok(Some(entries))
}

/// The number that an entry starts with.
pub(super) fn first_u32(guid: Guid, data: &[u8]) -> Result<u32, TableError> {
    let (value, _) = U32::ref_from_prefix(data).map_err(|_| TableError::ShortEntry(guid))?;
    Ok(value.get())
}

/// The ROM from `offset` bytes before its end on, as the table's entries count.
pub(super) fn from_end(bytes: &[u8], offset: u32) -> Option<&[u8]> {
    let start = bytes.len().checked_sub(usize::try_from(offset).ok()?)?;
    bytes.get(start..)
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use zerocopy::IntoBytes;

    /// Puts a table of `entries` where it belongs in `rom`.
    pub fn write_table(rom: &mut [u8], entries: &[(Guid, &[u8])]) {
        let mut table = Vec::new();
        for (guid, data) in entries {
            table.extend_from_slice(data);
            table.extend((data.len() as u16 + 18).to_le_bytes());
            table.extend_from_slice(guid.as_bytes());
        }
        let size = table.len() as u16 + 18;
        table.extend(size.to_le_bytes());
        table.extend_from_slice(FOOTER_GUID.as_bytes());
        let end = rom.len() - TABLE_END_FROM_ROM_END;
        rom[end - table.len()..end].copy_from_slice(&table);
    }

    #[test]
    fn entries_are_read_last_first() {
        let (a, b) = (Guid::parse("00112233-4455-6677-8899-aabbccddeeff"), FOOTER_GUID);
        let mut rom = alloc::vec![0; PAGE_SIZE];
        assert_eq!(entries(&rom), Ok(None));
        write_table(&mut rom, &[(a, &[1, 0, 0, 0]), (b, &[])]);
        assert_eq!(entries(&rom).unwrap().unwrap(), [(b, &[][..]), (a, &[1, 0, 0, 0])]);
        assert_eq!(first_u32(a, &[1, 0, 0, 0]), Ok(1));
        assert_eq!(first_u32(a, &[1, 0, 0]), Err(TableError::ShortEntry(a)));
    }

    #[test]
    fn sizes_that_no_rom_has_are_refused() {
        for len in [0, 1, PAGE_SIZE - 1, PAGE_SIZE + 1, (MAX_PAGES + 1) * PAGE_SIZE] {
            assert_eq!(entries(&alloc::vec![0; len]), Err(TableError::Size { len }));
        }
    }

    #[test]
    fn entries_that_leave_the_table_are_refused() {
        let mut good = alloc::vec![0; PAGE_SIZE];
        write_table(&mut good, &[(FOOTER_GUID, &[0; 4])]);
        for size in [0u16, 17, 0xffff] {
            let mut rom = good.clone();
            rom[PAGE_SIZE - 50..PAGE_SIZE - 48].copy_from_slice(&size.to_le_bytes());
            assert_eq!(entries(&rom), Err(TableError::Entry { size }));
        }
    }
}
