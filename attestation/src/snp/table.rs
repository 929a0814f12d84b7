//! The certificate table that a host hands to its guests with an extended report (GHCB specification,
//! "SNP Extended Guest Request").
//!
//! Entries of GUID, offset and length, ended by one of zeros, then the blobs. GUIDs are stored in the
//! byte order of their text; blobs are DER or PEM, whatever the host was given.

use alloc::vec::Vec;
use core::fmt;

use zerocopy::little_endian::U32;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// No host's table has more entries than this.
const MAX_ENTRIES: usize = 16;
/// No host's table is longer than this.
const MAX_BYTES: usize = 1 << 20;

/// What an entry holds: a GUID in the byte order of its text.
#[derive(Clone, Copy, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(transparent)]
pub struct EntryKind([u8; 16]);

impl EntryKind {
    /// The VCEK.
    pub const VCEK: Self = Self::from_guid(0x63da758d_e664_4564_adc5_f4b93be8accd);
    /// The VLEK.
    pub const VLEK: Self = Self::from_guid(0xa8074bc2_a25a_483e_aae6_39c045a0b8a1);
    /// The ASK or ASVK.
    pub const ASK: Self = Self::from_guid(0x4ab7b379_bbac_4fe4_a02f_05aef327c782);
    /// The ARK.
    pub const ARK: Self = Self::from_guid(0xc0b406a4_a803_4952_9743_3fb6014cd0ae);

    const NAMES: &'static [(Self, &'static str)] =
        &[(Self::VCEK, "VCEK"), (Self::VLEK, "VLEK"), (Self::ASK, "ASK"), (Self::ARK, "ARK")];

    /// The kind with this GUID, written as one number.
    pub const fn from_guid(guid: u128) -> Self {
        Self(guid.to_be_bytes())
    }

    /// The name of a known kind.
    pub fn name(self) -> Option<&'static str> {
        Self::NAMES.iter().find(|(kind, _)| *kind == self).map(|&(_, name)| name)
    }
}

impl fmt::Display for EntryKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, byte) in self.0.iter().enumerate() {
            if matches!(index, 4 | 6 | 8 | 10) {
                f.write_str("-")?;
            }
            write!(f, "{byte:02x}")?;
        }
        Ok(())
    }
}

impl fmt::Debug for EntryKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct RawEntry {
    kind: EntryKind,
    offset: U32,
    length: U32,
}
const _: () = assert!(size_of::<RawEntry>() == 24);

const END: RawEntry = RawEntry { kind: EntryKind([0; 16]), offset: U32::ZERO, length: U32::ZERO };

/// Why bytes are not a certificate table, or entries do not make one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TableError {
    /// Longer than any real table.
    #[error("a certificate table of {len} bytes is longer than any real one ({MAX_BYTES})")]
    TooLong {
        /// Its length.
        len: usize,
    },
    /// No entry of zeros.
    #[error("the certificate table does not end: no entry of zeros within its {MAX_ENTRIES} first")]
    Unterminated,
    /// A blob leaves the table or lies among the entries.
    #[error("the {kind} entry's blob, {length} bytes at {offset}, is not inside the certificate table")]
    Blob {
        /// Whose.
        kind: EntryKind,
        /// Its place.
        offset: u32,
        /// Its length.
        length: u32,
    },
    /// One kind, two blobs: which one is meant?
    #[error("the certificate table has two entries for {0}")]
    Duplicate(EntryKind),
}

/// An entry: what it is, and its bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry<'a> {
    /// What the host says that it is.
    pub kind: EntryKind,
    /// DER or PEM, or anything.
    pub blob: &'a [u8],
}

/// Whether bytes begin with an entry of a known kind. They need not be a table for that.
pub fn recognises(bytes: &[u8]) -> bool {
    EntryKind::ref_from_prefix(bytes).is_ok_and(|(kind, _)| kind.name().is_some())
}

/// Reads a certificate table.
pub fn parse(bytes: &[u8]) -> Result<Vec<Entry<'_>>, TableError> {
    if bytes.len() > MAX_BYTES {
        return Err(TableError::TooLong { len: bytes.len() });
    }
    let mut raw = Vec::new();
    let mut rest = bytes;
    loop {
        let (entry, tail) = RawEntry::ref_from_prefix(rest).map_err(|_| TableError::Unterminated)?;
        rest = tail;
        if entry.as_bytes() == END.as_bytes() {
            break;
        }
        if raw.len() == MAX_ENTRIES {
            return Err(TableError::Unterminated);
        }
        raw.push(entry);
    }
    let entries_end = bytes.len().saturating_sub(rest.len());
    let mut entries: Vec<Entry<'_>> = Vec::new();
    for &RawEntry { kind, offset, length } in raw {
        let (offset, length) = (offset.get(), length.get());
        let start = offset as usize;
        let blob = start
            .checked_add(length as usize)
            .and_then(|end| bytes.get(start..end))
            .filter(|blob| start >= entries_end && !blob.is_empty())
            .ok_or(TableError::Blob { kind, offset, length })?;
        if entries.iter().any(|entry| entry.kind == kind) {
            return Err(TableError::Duplicate(kind));
        }
        entries.push(Entry { kind, blob });
    }
    Ok(entries)
}

/// Writes the table of `entries`, for the side that hands it out.
pub fn build(entries: &[Entry<'_>]) -> Result<Vec<u8>, TableError> {
    let too_long = |len| TableError::TooLong { len };
    if entries.len() > MAX_ENTRIES {
        return Err(TableError::Unterminated);
    }
    let mut offset = entries.len().saturating_add(1).saturating_mul(size_of::<RawEntry>());
    let mut table = Vec::new();
    for (index, entry) in entries.iter().enumerate() {
        if entries.iter().take(index).any(|other| other.kind == entry.kind) {
            return Err(TableError::Duplicate(entry.kind));
        }
        let end = offset.saturating_add(entry.blob.len());
        let wire = |value: usize| u32::try_from(value).map(U32::new).map_err(|_| too_long(end));
        let raw = RawEntry { kind: entry.kind, offset: wire(offset)?, length: wire(entry.blob.len())? };
        table.extend_from_slice(raw.as_bytes());
        offset = end;
    }
    if offset > MAX_BYTES {
        return Err(too_long(offset));
    }
    table.extend_from_slice(END.as_bytes());
    entries.iter().for_each(|entry| table.extend_from_slice(entry.blob));
    Ok(table)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(kind: EntryKind, blob: &[u8]) -> Entry<'_> {
        Entry { kind, blob }
    }

    #[test]
    fn a_table_reads_back_as_it_was_built() {
        let entries =
            [entry(EntryKind::VCEK, b"vcek"), entry(EntryKind::ASK, b"a"), entry(EntryKind::ARK, b"k")];
        for count in 0..=entries.len() {
            let table = build(&entries[..count]).unwrap();
            assert_eq!(parse(&table).unwrap(), &entries[..count]);
            assert_eq!(recognises(&table), count > 0);
        }
        assert_eq!(EntryKind::VCEK.to_string(), "63da758d-e664-4564-adc5-f4b93be8accd");
        let table = build(&entries).unwrap();
        assert_eq!(table[..4], [0x63, 0xda, 0x75, 0x8d], "GUIDs are stored in the order of their text");
    }

    #[test]
    fn damaged_tables_are_refused() {
        let table = build(&[entry(EntryKind::VCEK, b"vcek")]).unwrap();
        let with = |at: usize, bytes: &[u8]| {
            let mut table = table.clone();
            table[at..at + bytes.len()].copy_from_slice(bytes);
            table
        };
        let blob = |offset, length| TableError::Blob { kind: EntryKind::VCEK, offset, length };
        for (table, error) in [
            (Vec::new(), TableError::Unterminated),
            (table[..47].to_vec(), TableError::Unterminated),
            (table[..51].to_vec(), blob(48, 4)),
            (with(16, &47u32.to_le_bytes()), blob(47, 4)),
            (with(16, &u32::MAX.to_le_bytes()), blob(u32::MAX, 4)),
            (with(20, &u32::MAX.to_le_bytes()), blob(48, u32::MAX)),
            (with(20, &0u32.to_le_bytes()), blob(48, 0)),
            (vec![1; 24 * 20], TableError::Unterminated),
            (vec![0; MAX_BYTES + 1], TableError::TooLong { len: MAX_BYTES + 1 }),
        ] {
            assert_eq!(parse(&table), Err(error));
        }
    }

    #[test]
    fn no_kind_may_appear_twice() {
        let twice = [entry(EntryKind::ASK, b"1"), entry(EntryKind::ASK, b"2")];
        assert_eq!(build(&twice), Err(TableError::Duplicate(EntryKind::ASK)));
        let mut table = build(&[twice[0], entry(EntryKind::ARK, b"2")]).unwrap();
        table.copy_within(0..16, 24);
        assert_eq!(parse(&table), Err(TableError::Duplicate(EntryKind::ASK)));
    }
}
