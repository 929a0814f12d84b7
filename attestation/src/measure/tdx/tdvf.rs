//! TDVF metadata of a firmware ROM (Intel TDX Virtual Firmware Design Guide 344991, section 11).
//!
//! An entry of OVMF's GUIDed table says how many bytes before the end of the ROM the `TDVF` descriptor lies; its
//! sections say what the VMM is to put where before the guest runs.

use alloc::vec::Vec;

use zerocopy::little_endian::{U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::measure::guided::{self, TableError, first_u32};
use crate::measure::{Gpa, Guid, PAGE_SIZE};

pub(super) const TDX_METADATA_OFFSET_GUID: Guid = Guid::parse("e47a6535-984a-4798-865e-4685a7bf8ec2");
/// Sections beyond this are nobody's firmware.
const MAX_SECTIONS: u32 = 64;
/// Private guest physical addresses end here at the latest: one below the shared bit of a 52-bit guest.
const GPA_END: u64 = 1 << 51;

#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub(super) struct Descriptor {
    pub signature: [u8; 4],
    pub length: U32,
    pub version: U32,
    pub section_count: U32,
}
const _: () = assert!(size_of::<Descriptor>() == 16);

#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub(super) struct WireSection {
    pub data_offset: U32,
    pub raw_data_size: U32,
    pub memory_address: U64,
    pub memory_data_size: U64,
    pub kind: U32,
    pub attributes: U32,
}
const _: () = assert!(size_of::<WireSection>() == 32);

/// Attribute: the contents go into MRTD.
pub(super) const MR_EXTEND: u32 = 1 << 0;
/// Attribute: the VMM adds nothing; the guest accepts the pages later.
pub(super) const PAGE_AUG: u32 = 1 << 1;

/// What a section is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "std", derive(serde::Serialize, serde::Deserialize), serde(rename_all = "snake_case"))]
pub enum SectionKind {
    /// Boot firmware volume: code, from the ROM.
    Bfv,
    /// Configuration firmware volume: variables, from the ROM.
    Cfv,
    /// Where the VMM describes the machine.
    TdHob,
    /// Stack, heap and mailbox: zeros.
    TempMem,
    /// Memory that stays in use: zeros, or accepted by the guest.
    PermMem,
}

impl SectionKind {
    const fn from_wire(kind: u32) -> Option<Self> {
        Some(match kind {
            0 => Self::Bfv,
            1 => Self::Cfv,
            2 => Self::TdHob,
            3 => Self::TempMem,
            4 => Self::PermMem,
            _ => return None,
        })
    }

    /// Whether its contents come out of the ROM.
    pub const fn has_data(self) -> bool {
        matches!(self, Self::Bfv | Self::Cfv)
    }
}

/// A range of guest memory that the ROM declares.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Section<'a> {
    /// What it is for.
    pub kind: SectionKind,
    /// First byte; page aligned.
    pub gpa: Gpa,
    /// Length in bytes; whole pages, at least one.
    pub len: u64,
    /// What the ROM puts there, at most `len` bytes; empty for the kinds that have none.
    pub data: &'a [u8],
    /// Whether the contents go into MRTD.
    pub measured: bool,
    /// Whether the VMM leaves the range to the guest (TDH.MEM.PAGE.AUG).
    pub page_aug: bool,
}

/// The sections of Cloister's firmware (`LAUNCHED_TD` of its layout, which its tests hold against this): kind, first byte,
/// length, measured, left to the guest.
const CLOISTER: [(SectionKind, u64, u64, bool, bool); 4] = [
    (SectionKind::Bfv, 0xffff_0000, 0x1_0000, true, false),
    (SectionKind::TempMem, 0x1000, 0x9000, false, false),
    (SectionKind::TdHob, 0x2_6000, 0x1000, false, false),
    (SectionKind::TempMem, 0x6_8000, 0x5000, false, false),
];

/// Why a ROM is not usable for TDX.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TdvfError {
    /// No ROM, or a damaged table.
    #[error(transparent)]
    Table(#[from] TableError),
    /// The ROM was not made for TDX.
    #[error("the ROM carries no TDVF metadata, so it cannot start a TDX guest")]
    NoMetadata,
    /// The descriptor lies outside of the ROM.
    #[error("the ROM's TDVF descriptor lies {offset:#x} bytes before its end, where there is none")]
    Offset {
        /// Claimed distance from the end of the ROM.
        offset: u32,
    },
    /// Not "TDVF" version 1, or sections beyond its length.
    #[error("the ROM's TDVF descriptor is not \"TDVF\" version 1 with room for 1 to {MAX_SECTIONS} sections")]
    Descriptor,
    /// A section of no kind that can be launched here.
    #[error("the ROM's TDVF section {index} has type {kind}, which no launch here knows")]
    Kind {
        /// Its place in the descriptor.
        index: usize,
        /// The type on the wire.
        kind: u32,
    },
    /// Attributes that are not defined, or contradict each other.
    #[error("the ROM's TDVF section {index} has attributes {attributes:#x}, which make no sense for it")]
    Attributes {
        /// Its place in the descriptor.
        index: usize,
        /// Its attributes.
        attributes: u32,
    },
    /// Memory that is empty, not made of whole pages, or no private memory.
    #[error(
        "the ROM's TDVF section {index} covers {len:#x} bytes at {gpa}: not whole pages of private memory"
    )]
    Memory {
        /// Its place in the descriptor.
        index: usize,
        /// First byte.
        gpa: Gpa,
        /// Its length in bytes.
        len: u64,
    },
    /// Data outside of the ROM, more data than memory, or data where there should be none.
    #[error("the data of the ROM's TDVF section {index} is missing, misplaced or too long")]
    Data {
        /// Its place in the descriptor.
        index: usize,
    },
    /// Two sections share a page: no page can be added twice.
    #[error("the ROM's TDVF section {index} overlaps an earlier one")]
    Overlap {
        /// Its place in the descriptor.
        index: usize,
    },
    /// There is nothing to run, or two places to describe the machine at.
    #[error(
        "the ROM's TDVF metadata has {bfv} boot firmware volumes and {td_hob} TD HOBs: at least one, at most one"
    )]
    Count {
        /// Boot firmware volumes.
        bfv: usize,
        /// TD HOBs.
        td_hob: usize,
    },
}

/// A firmware image and its TDVF sections.
#[derive(Clone, Debug)]
pub struct Tdvf<'a> {
    bytes: &'a [u8],
    sections: Vec<Section<'a>>,
}

impl<'a> Tdvf<'a> {
    /// Reads the metadata of `bytes`; a ROM without any is refused.
    pub fn parse(bytes: &'a [u8]) -> Result<Self, TdvfError> {
        let entries = guided::entries(bytes)?.unwrap_or_default();
        let entry = entries.into_iter().find(|(guid, _)| *guid == TDX_METADATA_OFFSET_GUID);
        let (guid, data) = entry.ok_or(TdvfError::NoMetadata)?;
        let offset = first_u32(guid, data)?;
        let metadata = guided::from_end(bytes, offset).ok_or(TdvfError::Offset { offset })?;
        let sections = sections(bytes, metadata)?;
        check_together(&sections)?;
        Ok(Self { bytes, sections })
    }

    /// The whole image.
    pub fn bytes(&self) -> &'a [u8] {
        self.bytes
    }

    /// The sections in file order, which is the order of the launch.
    pub fn sections(&self) -> &[Section<'a>] {
        &self.sections
    }

    /// Whether this is Cloister's firmware: only of that it is known what it measures into the RTMRs ([`super::events`]).
    /// It is told by the ranges that its metadata ask for, which no other firmware's do: the ROM as one measured volume of
    /// 64 KiB, and what it uses of the first megabyte.
    pub fn is_cloister(&self) -> bool {
        let rows = self.sections.iter().map(|s| (s.kind, s.gpa.0, s.len, s.measured, s.page_aug));
        let whole = self.sections.iter().take(1).all(|volume| volume.data == self.bytes);
        whole && rows.eq(CLOISTER)
    }
}

fn sections<'a>(rom: &'a [u8], metadata: &[u8]) -> Result<Vec<Section<'a>>, TdvfError> {
    let (descriptor, _) = Descriptor::ref_from_prefix(metadata).map_err(|_| TdvfError::Descriptor)?;
    let count = descriptor.section_count.get();
    if descriptor.signature != *b"TDVF"
        || descriptor.version.get() != 1
        || !(1..=MAX_SECTIONS).contains(&count)
    {
        return Err(TdvfError::Descriptor);
    }
    let items = usize::try_from(descriptor.length.get())
        .ok()
        .and_then(|length| metadata.get(size_of::<Descriptor>()..length))
        .ok_or(TdvfError::Descriptor)?;
    let (items, _) = <[WireSection]>::ref_from_prefix_with_elems(items, count as usize)
        .map_err(|_| TdvfError::Descriptor)?;
    items.iter().enumerate().map(|(index, item)| section(rom, index, item)).collect()
}

fn section<'a>(rom: &'a [u8], index: usize, item: &WireSection) -> Result<Section<'a>, TdvfError> {
    let (kind, attributes) = (item.kind.get(), item.attributes.get());
    let kind = SectionKind::from_wire(kind).ok_or(TdvfError::Kind { index, kind })?;
    let (measured, page_aug) = (attributes & MR_EXTEND != 0, attributes & PAGE_AUG != 0);
    // What the guest accepts later has no contents that a launch could add or measure, and the hand-off block's
    // are the host's.
    let sensible = match kind {
        SectionKind::Bfv | SectionKind::Cfv | SectionKind::TempMem => !page_aug,
        SectionKind::TdHob => !page_aug && !measured,
        SectionKind::PermMem => !(page_aug && measured),
    };
    if attributes & !(MR_EXTEND | PAGE_AUG) != 0 || !sensible {
        return Err(TdvfError::Attributes { index, attributes });
    }
    let (gpa, len) = (Gpa(item.memory_address.get()), item.memory_data_size.get());
    let page = PAGE_SIZE as u64;
    let end = gpa.0.checked_add(len).filter(|&end| end <= GPA_END);
    if len == 0 || !gpa.0.is_multiple_of(page) || !len.is_multiple_of(page) || end.is_none() {
        return Err(TdvfError::Memory { index, gpa, len });
    }
    let data = data(rom, item).filter(|data| data.is_empty() != kind.has_data() && data.len() as u64 <= len);
    let data = data.ok_or(TdvfError::Data { index })?;
    Ok(Section { kind, gpa, len, data, measured, page_aug })
}

fn data<'a>(rom: &'a [u8], item: &WireSection) -> Option<&'a [u8]> {
    let start = usize::try_from(item.data_offset.get()).ok()?;
    let end = start.checked_add(usize::try_from(item.raw_data_size.get()).ok()?)?;
    rom.get(start..end)
}

fn check_together(sections: &[Section<'_>]) -> Result<(), TdvfError> {
    for (index, section) in sections.iter().enumerate() {
        let overlaps = |other: &Section<'_>| {
            section.gpa.0 < other.gpa.0.saturating_add(other.len)
                && other.gpa.0 < section.gpa.0.saturating_add(section.len)
        };
        if sections.iter().take(index).any(overlaps) {
            return Err(TdvfError::Overlap { index });
        }
    }
    let count = |kind| sections.iter().filter(|section| section.kind == kind).count();
    let (bfv, td_hob) = (count(SectionKind::Bfv), count(SectionKind::TdHob));
    if bfv == 0 || td_hob > 1 { Err(TdvfError::Count { bfv, td_hob }) } else { Ok(()) }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::measure::guided::tests::write_table;

    /// Data offset, raw data size, address, memory size, type, attributes.
    pub type Row = (u32, u32, u64, u64, u32, u32);

    pub const BFV: Row = (0x2000, 0x2000, 0xffff_e000, 0x2000, 0, MR_EXTEND);
    pub const CFV: Row = (0x1000, 0x0f00, 0xffff_d000, 0x1000, 1, 0);
    pub const TD_HOB: Row = (0, 0, 0x80_9000, 0x2000, 2, 0);
    pub const TEMP_MEM: Row = (0, 0, 0x81_0000, 0x3000, 3, 0);
    pub const PERM_MEM: Row = (0, 0, 0x90_0000, 0x1000, 4, PAGE_AUG);
    const METADATA: usize = 0x2100;
    const LEN: usize = 0x4000;

    /// What Cloister's firmware asks for.
    pub const CLOISTER_ROWS: [Row; 4] = [
        (0, 0x1_0000, 0xffff_0000, 0x1_0000, 0, MR_EXTEND),
        (0, 0, 0x1000, 0x9000, 3, 0),
        (0, 0, 0x2_6000, 0x1000, 2, 0),
        (0, 0, 0x6_8000, 0x5000, 3, 0),
    ];

    /// A ROM of four pages with `rows` in its metadata; the rest is a pattern that no page shares.
    pub fn rom_with(rows: &[Row]) -> Vec<u8> {
        rom_of(LEN, rows)
    }

    /// The same, of `len` bytes.
    pub fn rom_of(len: usize, rows: &[Row]) -> Vec<u8> {
        let mut rom: Vec<u8> =
            (0..len).map(|at| (at as u32).wrapping_mul(0x9e37_79b1).to_be_bytes()[0]).collect();
        let count = rows.len() as u32;
        let descriptor = Descriptor {
            signature: *b"TDVF",
            length: (16 + 32 * count).into(),
            version: 1.into(),
            section_count: count.into(),
        };
        let mut metadata = descriptor.as_bytes().to_vec();
        for &(data_offset, raw_data_size, memory_address, memory_data_size, kind, attributes) in rows {
            let section = WireSection {
                data_offset: data_offset.into(),
                raw_data_size: raw_data_size.into(),
                memory_address: memory_address.into(),
                memory_data_size: memory_data_size.into(),
                kind: kind.into(),
                attributes: attributes.into(),
            };
            metadata.extend_from_slice(section.as_bytes());
        }
        rom[METADATA..METADATA + metadata.len()].copy_from_slice(&metadata);
        write_table(&mut rom, &[(TDX_METADATA_OFFSET_GUID, &((len - METADATA) as u32).to_le_bytes())]);
        rom
    }

    #[test]
    fn only_the_very_sections_of_our_firmware_are_taken_for_it() {
        let ours = |len, rows: &[Row]| Tdvf::parse(&rom_of(len, rows)).unwrap().is_cloister();
        let [volume, memory, hob, waiting] = CLOISTER_ROWS;
        assert!(ours(0x1_0000, &CLOISTER_ROWS));
        for (len, rows) in [
            (LEN, &[BFV, CFV, TD_HOB, TEMP_MEM][..]),
            (0x1_0000, &[volume, memory, hob]),
            (0x1_0000, &[volume, memory, hob, waiting, PERM_MEM]),
            (0x1_0000, &[volume, hob, memory, waiting]),
            (0x1_0000, &[(0, 0x1_0000, 0xffff_0000, 0x1_0000, 0, 0), memory, hob, waiting]),
            (0x1_0000, &[volume, memory, hob, (0, 0, 0x6_8000, 0x6000, 3, 0)]),
            // A larger ROM of which the volume is a part.
            (0x2_0000, &CLOISTER_ROWS),
        ] {
            assert!(!ours(len, rows), "{rows:x?}");
        }
    }

    fn refused(rom: &[u8]) -> TdvfError {
        Tdvf::parse(rom).expect_err("the ROM must be refused")
    }

    #[test]
    fn sections_are_read_in_file_order_with_their_data() {
        let rom = rom_with(&[BFV, CFV, TD_HOB, TEMP_MEM, PERM_MEM]);
        let tdvf = Tdvf::parse(&rom).unwrap();
        let seen: Vec<_> =
            tdvf.sections().iter().map(|s| (s.kind, s.gpa.0, s.data.len(), s.measured)).collect();
        let expected = [
            (SectionKind::Bfv, 0xffff_e000, 0x2000, true),
            (SectionKind::Cfv, 0xffff_d000, 0xf00, false),
            (SectionKind::TdHob, 0x80_9000, 0, false),
            (SectionKind::TempMem, 0x81_0000, 0, false),
            (SectionKind::PermMem, 0x90_0000, 0, false),
        ];
        assert_eq!(seen, expected);
        assert_eq!(tdvf.sections()[1].data, &rom[0x1000..0x1f00]);
    }

    #[test]
    fn sections_that_cannot_be_launched_are_refused() {
        let attributes = |index, attributes| TdvfError::Attributes { index, attributes };
        let memory = |index, gpa, len| TdvfError::Memory { index, gpa: Gpa(gpa), len };
        for (rows, error) in [
            (&[][..], TdvfError::Descriptor),
            (&[BFV, (0, 0, 0, 0x1000, 5, 0)], TdvfError::Kind { index: 1, kind: 5 }),
            (&[BFV, (0, 0, 0, 0x1000, 3, 4)], attributes(1, 4)),
            (&[BFV, (0, 0, 0, 0x1000, 3, PAGE_AUG)], attributes(1, PAGE_AUG)),
            (&[BFV, (0, 0, 0, 0x1000, 2, MR_EXTEND)], attributes(1, MR_EXTEND)),
            (&[BFV, (0, 0, 0, 0x1000, 4, 3)], attributes(1, 3)),
            (&[BFV, (0, 0, 0, 0, 3, 0)], memory(1, 0, 0)),
            (&[BFV, (0, 0, 0x800, 0x1000, 3, 0)], memory(1, 0x800, 0x1000)),
            (&[BFV, (0, 0, 0, 0x1001, 3, 0)], memory(1, 0, 0x1001)),
            (&[BFV, (0, 0, u64::MAX - 0xfff, 0x1000, 3, 0)], memory(1, u64::MAX - 0xfff, 0x1000)),
            (&[BFV, (0, 0, GPA_END, 0x1000, 3, 0)], memory(1, GPA_END, 0x1000)),
            (&[(0x2000, 0x2001, 0, 0x3000, 0, 1)], TdvfError::Data { index: 0 }),
            (&[(0x1000, 0x1001, 0, 0x1000, 0, 1)], TdvfError::Data { index: 0 }),
            (&[(u32::MAX, u32::MAX, 0, 0x1000, 0, 1)], TdvfError::Data { index: 0 }),
            (&[(0, 0, 0, 0x1000, 0, 1)], TdvfError::Data { index: 0 }),
            (&[BFV, (0, 1, 0, 0x1000, 3, 0)], TdvfError::Data { index: 1 }),
            (&[BFV, (0, 0, 0xffff_d000, 0x2000, 3, 0)], TdvfError::Overlap { index: 1 }),
            (&[TEMP_MEM], TdvfError::Count { bfv: 0, td_hob: 0 }),
            (&[BFV, TD_HOB, (0, 0, 0, 0x1000, 2, 0)], TdvfError::Count { bfv: 1, td_hob: 2 }),
        ] {
            assert_eq!(refused(&rom_with(rows)), error, "{rows:x?}");
        }
    }

    #[test]
    fn damaged_metadata_is_refused_and_never_panics() {
        assert_eq!(refused(&[0; PAGE_SIZE]), TdvfError::NoMetadata);
        let good = rom_with(&[BFV, CFV, TD_HOB, TEMP_MEM]);
        for (at, value) in [(0, b'X'), (4, 0x8f), (8, 2), (12, 65), (12, 0), (12, 5)] {
            let mut rom = good.clone();
            rom[METADATA + at] = value;
            assert_eq!(refused(&rom), TdvfError::Descriptor, "byte {at}");
        }
        let mut rom = good.clone();
        rom[LEN - 32 - 18 - 18 - 4..][..4].copy_from_slice(&(LEN as u32 + 1).to_le_bytes());
        assert_eq!(refused(&rom), TdvfError::Offset { offset: LEN as u32 + 1 });
        for at in (METADATA..METADATA + 0x90).chain(LEN - 0x80..LEN) {
            for bit in 0..8 {
                let mut rom = good.clone();
                rom[at] ^= 1 << bit;
                let _ = Tdvf::parse(&rom);
            }
        }
    }
}
