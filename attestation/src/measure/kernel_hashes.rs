//! The table of kernel hashes that QEMU, OVMF's AmdSev build and our firmware share.
//!
//! Layout (QEMU `target/i386/sev.c`, "kernel-hashes"): a header of GUID and length, then one entry
//! each for command line, initrd and kernel, each GUID, length and SHA-256, padded to 16 bytes.

use sha2::{Digest, Sha256};
use zerocopy::little_endian::U16;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::Guid;
use super::PAGE_SIZE;

const TABLE_GUID: Guid = Guid::parse("9438d606-4f22-4cc9-b479-a793d411fd21");
const CMDLINE_GUID: Guid = Guid::parse("97d02dd8-bd20-4c94-aa78-e7714d36ab2a");
const INITRD_GUID: Guid = Guid::parse("44baf731-3a2f-4bd7-9af1-41e29169781d");
const KERNEL_GUID: Guid = Guid::parse("4de79437-abd2-427f-b835-d5b172d2045b");

#[derive(Clone, Copy, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct Entry {
    guid: Guid,
    length: U16,
    hash: [u8; 32],
}
const _: () = assert!(size_of::<Entry>() == 50);

#[derive(Clone, Copy, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct Table {
    guid: Guid,
    length: U16,
    cmdline: Entry,
    initrd: Entry,
    kernel: Entry,
    padding: [u8; 8],
}
const _: () = assert!(size_of::<Table>() == 176);

/// The part of [`Table`] that its `length` counts: all but the padding to 16 bytes.
const TABLE_LENGTH: u16 = 168;
const ENTRY_LENGTH: u16 = size_of::<Entry>() as u16;

/// SHA-256 of what the firmware loads from the untrusted host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KernelHashes {
    /// Of the kernel file, whole and unmodified.
    pub kernel: [u8; 32],
    /// Of the initrd; of nothing where there is none.
    pub initrd: [u8; 32],
    /// Of the command line with its terminating NUL.
    pub cmdline: [u8; 32],
}

/// Why a measured page does not hold a table of kernel hashes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum KernelHashTableError {
    /// The table ends after the page does.
    #[error("the kernel hash table does not fit into its page at offset {offset:#x}")]
    OutOfPage {
        /// Offset of the table in the page.
        offset: usize,
    },
    /// No table was filled in.
    #[error("the kernel hash table has the wrong GUID or length")]
    Header,
    /// An entry is not the one expected at its place.
    #[error("the {0} entry of the kernel hash table has the wrong GUID or length")]
    Entry(&'static str),
}

impl KernelHashes {
    /// Size of the table in the measured page.
    pub const TABLE_BYTES: usize = size_of::<Table>();

    /// Hashes the three inputs as QEMU does: no initrd is the empty initrd, and the command line
    /// gets its NUL.
    pub fn of(kernel: &[u8], initrd: Option<&[u8]>, cmdline: &str) -> Self {
        Self {
            kernel: Sha256::digest(kernel).into(),
            initrd: Sha256::digest(initrd.unwrap_or_default()).into(),
            cmdline: Sha256::new_with_prefix(cmdline).chain_update([0]).finalize().into(),
        }
    }

    /// The table, padded to 16 bytes.
    pub fn to_table(&self) -> [u8; Self::TABLE_BYTES] {
        let entry = |guid, hash| Entry { guid, length: ENTRY_LENGTH.into(), hash };
        let table = Table {
            guid: TABLE_GUID,
            length: TABLE_LENGTH.into(),
            cmdline: entry(CMDLINE_GUID, self.cmdline),
            initrd: entry(INITRD_GUID, self.initrd),
            kernel: entry(KERNEL_GUID, self.kernel),
            padding: [0; 8],
        };
        zerocopy::transmute!(table)
    }

    /// The measured page: zeros with the table at `offset`.
    pub fn to_page(&self, offset: usize) -> Result<[u8; PAGE_SIZE], KernelHashTableError> {
        let mut page = [0; PAGE_SIZE];
        page.get_mut(offset..)
            .and_then(|tail| tail.get_mut(..Self::TABLE_BYTES))
            .ok_or(KernelHashTableError::OutOfPage { offset })?
            .copy_from_slice(&self.to_table());
        Ok(page)
    }

    /// Reads the table at `offset` of a measured page.
    pub fn from_page(page: &[u8], offset: usize) -> Result<Self, KernelHashTableError> {
        let tail = page.get(offset..).ok_or(KernelHashTableError::OutOfPage { offset })?;
        let (table, _) =
            Table::ref_from_prefix(tail).map_err(|_| KernelHashTableError::OutOfPage { offset })?;
        if table.guid != TABLE_GUID || table.length.get() != TABLE_LENGTH {
            return Err(KernelHashTableError::Header);
        }
        let hash = |entry: &Entry, guid, name| {
            if entry.guid == guid && entry.length.get() == ENTRY_LENGTH {
                Ok(entry.hash)
            } else {
                Err(KernelHashTableError::Entry(name))
            }
        };
        Ok(Self {
            kernel: hash(&table.kernel, KERNEL_GUID, "kernel")?,
            initrd: hash(&table.initrd, INITRD_GUID, "initrd")?,
            cmdline: hash(&table.cmdline, CMDLINE_GUID, "cmdline")?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_reads_back_from_where_it_was_put() {
        let hashes = KernelHashes::of(b"kernel", None, "quiet");
        for offset in [0, 1, 0xc00, PAGE_SIZE - KernelHashes::TABLE_BYTES] {
            let page = hashes.to_page(offset).unwrap();
            assert_eq!(KernelHashes::from_page(&page, offset), Ok(hashes));
        }
    }

    #[test]
    fn a_table_outside_its_page_is_refused() {
        let hashes = KernelHashes::of(b"kernel", None, "");
        for offset in [PAGE_SIZE - KernelHashes::TABLE_BYTES + 1, PAGE_SIZE, usize::MAX] {
            assert_eq!(hashes.to_page(offset), Err(KernelHashTableError::OutOfPage { offset }));
            let error = KernelHashes::from_page(&[0; PAGE_SIZE], offset);
            assert_eq!(error, Err(KernelHashTableError::OutOfPage { offset }));
        }
    }

    #[test]
    fn every_damaged_guid_or_length_is_refused() {
        let table = KernelHashes::of(b"kernel", Some(b"initrd"), "quiet").to_table();
        for (byte, error) in [
            (0, KernelHashTableError::Header),
            (16, KernelHashTableError::Header),
            (18, KernelHashTableError::Entry("cmdline")),
            (68, KernelHashTableError::Entry("initrd")),
            (134, KernelHashTableError::Entry("kernel")),
        ] {
            let mut damaged = table;
            damaged[byte] ^= 1;
            assert_eq!(KernelHashes::from_page(&damaged, 0), Err(error), "byte {byte}");
        }
        assert_eq!(KernelHashes::from_page(&[0; PAGE_SIZE], 0), Err(KernelHashTableError::Header));
    }
}
