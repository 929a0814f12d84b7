//! SEV metadata of a firmware ROM: the entries of its GUIDed table that concern SEV, and the sections they point to
//! (edk2 `OvmfPkg/ResetVector/X64/OvmfSevMetadata.asm`).

use alloc::vec::Vec;

use zerocopy::little_endian::U32;
use zerocopy::{FromBytes, Immutable, KnownLayout, Unaligned};

use crate::measure::guided::{self, TableError, first_u32};
use crate::measure::{Gpa, Guid, PAGE_SIZE};

const HASH_TABLE_RV_GUID: Guid = Guid::parse("7255371f-3a3b-4b04-927b-1da6efa8d454");
const SEV_ES_RESET_BLOCK_GUID: Guid = Guid::parse("00f771de-1a7e-4fcb-890e-68c77e2fb44e");
const SEV_METADATA_GUID: Guid = Guid::parse("dc886566-984a-4798-a75e-5585a7bf67cc");

/// Entries or sections beyond this are nobody's firmware.
const MAX_ITEMS: u32 = 64;

#[derive(FromBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct MetadataHeader {
    signature: [u8; 4],
    size: U32,
    version: U32,
    num_items: U32,
}
const _: () = assert!(size_of::<MetadataHeader>() == 16);

#[derive(FromBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct MetadataSection {
    gpa: U32,
    size: U32,
    kind: U32,
}
const _: () = assert!(size_of::<MetadataSection>() == 12);

/// What a section of the SEV metadata is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "std", derive(serde::Serialize), serde(rename_all = "snake_case"))]
pub enum SectionKind {
    /// Memory that the firmware uses before it validates any: zero pages.
    SecMem,
    /// The secrets page.
    Secrets,
    /// The CPUID page.
    Cpuid,
    /// The SVSM calling area: a zero page.
    SvsmCaa,
    /// The table of kernel hashes.
    KernelHashes,
}

impl SectionKind {
    const fn from_wire(kind: u32) -> Option<Self> {
        Some(match kind {
            1 => Self::SecMem,
            2 => Self::Secrets,
            3 => Self::Cpuid,
            4 => Self::SvsmCaa,
            0x10 => Self::KernelHashes,
            _ => return None,
        })
    }
}

/// A range of guest memory that the ROM declares.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Section {
    /// First byte; page aligned.
    pub gpa: Gpa,
    /// Length in bytes; whole pages, at least one.
    pub len: u64,
    /// What it is for.
    pub kind: SectionKind,
}

/// Why a ROM is not usable.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RomError {
    /// No ROM, or a damaged table.
    #[error(transparent)]
    Table(#[from] TableError),
    /// The metadata lies outside of the ROM.
    #[error("the ROM's SEV metadata lies {offset:#x} bytes before its end, where there is none")]
    MetadataOffset {
        /// Claimed distance from the end of the ROM.
        offset: u32,
    },
    /// Not "ASEV" version 1, or sections beyond its size.
    #[error("the ROM's SEV metadata header is not \"ASEV\" version 1 with room for its sections")]
    MetadataHeader,
    /// A section of no known kind.
    #[error("the ROM's SEV metadata has a section of unknown kind {kind:#x} at {gpa}")]
    SectionKind {
        /// Where.
        gpa: Gpa,
        /// The kind on the wire.
        kind: u32,
    },
    /// A section that is empty or not made of whole pages.
    #[error("the ROM's SEV section at {gpa} has {len:#x} bytes: not whole pages")]
    SectionRange {
        /// Where.
        gpa: Gpa,
        /// Its length in bytes.
        len: u64,
    },
    /// Two sections share a page, or one lies in the ROM: no page can be added twice to a launch.
    #[error("the ROM's SEV section at {gpa} overlaps another one or the ROM itself")]
    SectionOverlap {
        /// Where.
        gpa: Gpa,
    },
}

/// A firmware image and the metadata found in it.
#[derive(Clone, Debug)]
pub struct Rom<'a> {
    bytes: &'a [u8],
    sections: Vec<Section>,
    hash_table: Option<Gpa>,
    ap_reset_eip: Option<u32>,
    has_table: bool,
}

impl<'a> Rom<'a> {
    /// Whether this is a firmware image with a table of GUIDed entries, be that a damaged one.
    pub fn recognises(bytes: &[u8]) -> bool {
        matches!(guided::entries(bytes), Ok(Some(_)) | Err(TableError::Entry { .. }))
    }

    /// Reads the metadata of `bytes`. A ROM without a table is a ROM for plain guests.
    pub fn parse(bytes: &'a [u8]) -> Result<Self, RomError> {
        let mut rom =
            Self { bytes, sections: Vec::new(), hash_table: None, ap_reset_eip: None, has_table: false };
        let Some(entries) = guided::entries(bytes)? else { return Ok(rom) };
        rom.has_table = true;
        for (guid, data) in entries {
            match guid {
                HASH_TABLE_RV_GUID => {
                    // OVMF builds without kernel hashes keep the entry and leave it zero.
                    let gpa = first_u32(guid, data)?;
                    rom.hash_table = (gpa != 0).then_some(Gpa(u64::from(gpa)));
                }
                SEV_ES_RESET_BLOCK_GUID => rom.ap_reset_eip = Some(first_u32(guid, data)?),
                SEV_METADATA_GUID => rom.sections = sections(bytes, first_u32(guid, data)?)?,
                _ => {}
            }
        }
        rom.check_overlaps()?;
        Ok(rom)
    }

    /// The whole image.
    pub fn bytes(&self) -> &'a [u8] {
        self.bytes
    }

    /// Where the image lies: it ends at 4 GiB.
    pub fn gpa(&self) -> Gpa {
        guided::rom_gpa(self.bytes.len())
    }

    /// The SEV sections in file order, which is the order of the launch.
    pub fn sections(&self) -> &[Section] {
        &self.sections
    }

    /// Where the ROM wants the table of kernel hashes.
    pub fn kernel_hash_area(&self) -> Option<Gpa> {
        self.hash_table
    }

    /// Whether there is a table of GUIDed entries at all: every firmware for this machine has one.
    pub fn has_table(&self) -> bool {
        self.has_table
    }

    /// Where application processors start.
    pub fn ap_reset_eip(&self) -> Option<u32> {
        self.ap_reset_eip
    }

    fn check_overlaps(&self) -> Result<(), RomError> {
        for (index, section) in self.sections.iter().enumerate() {
            let overlaps = |gpa: Gpa, len: u64| {
                section.gpa.0 < gpa.0.saturating_add(len) && gpa.0 < section.gpa.0.saturating_add(section.len)
            };
            if overlaps(self.gpa(), self.bytes.len() as u64)
                || self.sections.iter().take(index).any(|other| overlaps(other.gpa, other.len))
            {
                return Err(RomError::SectionOverlap { gpa: section.gpa });
            }
        }
        Ok(())
    }
}

fn sections(bytes: &[u8], offset: u32) -> Result<Vec<Section>, RomError> {
    let metadata = guided::from_end(bytes, offset).ok_or(RomError::MetadataOffset { offset })?;
    let (header, _) = MetadataHeader::ref_from_prefix(metadata).map_err(|_| RomError::MetadataHeader)?;
    let count = header.num_items.get();
    if &header.signature != b"ASEV" || header.version.get() != 1 || count > MAX_ITEMS {
        return Err(RomError::MetadataHeader);
    }
    let items = usize::try_from(header.size.get())
        .ok()
        .and_then(|size| metadata.get(size_of::<MetadataHeader>()..size))
        .ok_or(RomError::MetadataHeader)?;
    let (items, _) = <[MetadataSection]>::ref_from_prefix_with_elems(items, count as usize)
        .map_err(|_| RomError::MetadataHeader)?;
    items.iter().map(section).collect()
}

fn section(item: &MetadataSection) -> Result<Section, RomError> {
    let (gpa, len) = (u64::from(item.gpa.get()), u64::from(item.size.get()));
    let kind = item.kind.get();
    let kind = SectionKind::from_wire(kind).ok_or(RomError::SectionKind { gpa: Gpa(gpa), kind })?;
    let page = PAGE_SIZE as u64;
    if len == 0 || !gpa.is_multiple_of(page) || !len.is_multiple_of(page) {
        return Err(RomError::SectionRange { gpa: Gpa(gpa), len });
    }
    Ok(Section { gpa: Gpa(gpa), len, kind })
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::measure::guided::tests::write_table;

    /// A ROM of one page with `sections` in its metadata.
    pub fn rom_with(sections: &[[u32; 3]]) -> Vec<u8> {
        let mut rom = vec![0u8; PAGE_SIZE];
        let mut metadata = b"ASEV".to_vec();
        let size = 16 + 12 * sections.len() as u32;
        for word in [size, 1, sections.len() as u32].into_iter().chain(sections.iter().copied().flatten()) {
            metadata.extend(word.to_le_bytes());
        }
        rom[..metadata.len()].copy_from_slice(&metadata);
        let entries: [(Guid, &[u8]); 3] = [
            (SEV_METADATA_GUID, &(PAGE_SIZE as u32).to_le_bytes()),
            (SEV_ES_RESET_BLOCK_GUID, &0xffff_f100u32.to_le_bytes()),
            (HASH_TABLE_RV_GUID, &[0x00, 0x0c, 0x01, 0x00, 0x00, 0x04, 0, 0]),
        ];
        write_table(&mut rom, &entries);
        rom
    }

    fn refused(rom: &[u8]) -> RomError {
        Rom::parse(rom).expect_err("the ROM must be refused")
    }

    #[test]
    fn metadata_is_read_in_file_order() {
        let bytes = rom_with(&[[0x3000, 0x1000, 2], [0x1000, 0x2000, 1]]);
        let rom = Rom::parse(&bytes).unwrap();
        assert_eq!(rom.gpa(), Gpa(0xffff_f000));
        assert_eq!(rom.ap_reset_eip(), Some(0xffff_f100));
        assert_eq!(rom.kernel_hash_area(), Some(Gpa(0x10c00)));
        let section = |gpa, len, kind| Section { gpa: Gpa(gpa), len, kind };
        let expected =
            [section(0x3000, 0x1000, SectionKind::Secrets), section(0x1000, 0x2000, SectionKind::SecMem)];
        assert_eq!(rom.sections(), expected);
    }

    #[test]
    fn a_rom_without_a_table_is_a_plain_rom() {
        let rom = Rom::parse(&[0; PAGE_SIZE]).unwrap();
        assert!(rom.sections().is_empty() && rom.ap_reset_eip().is_none() && !rom.has_table());
    }

    #[test]
    fn sections_that_cannot_be_launched_are_refused() {
        let gpa = Gpa(0x1000);
        for (sections, error) in [
            (&[[0x1000, 0x1000, 7]][..], RomError::SectionKind { gpa, kind: 7 }),
            (&[[0x1000, 0, 1]], RomError::SectionRange { gpa, len: 0 }),
            (&[[0x1000, 0x800, 1]], RomError::SectionRange { gpa, len: 0x800 }),
            (&[[0x1800, 0x1000, 1]], RomError::SectionRange { gpa: Gpa(0x1800), len: 0x1000 }),
            (&[[0, 0x2000, 1], [0x1000, 0x1000, 2]], RomError::SectionOverlap { gpa }),
            (&[[0xffff_f000, 0x1000, 1]], RomError::SectionOverlap { gpa: Gpa(0xffff_f000) }),
        ] {
            assert_eq!(refused(&rom_with(sections)), error);
        }
    }

    #[test]
    fn damaged_tables_and_headers_are_refused_and_never_panic() {
        let good = rom_with(&[[0x1000, 0x1000, 1]]);
        for (at, value, error) in [
            (0, b'B', RomError::MetadataHeader),
            (4, 0x10, RomError::MetadataHeader), // the size leaves no room for the section
            (8, 2, RomError::MetadataHeader),
            (12, 65, RomError::MetadataHeader),
        ] {
            let mut rom = good.clone();
            rom[at] = value;
            assert_eq!(refused(&rom), error, "byte {at}");
        }
        for at in 0..good.len() {
            for bit in 0..8 {
                let mut rom = good.clone();
                rom[at] ^= 1 << bit;
                let _ = Rom::parse(&rom);
            }
        }
    }
}
