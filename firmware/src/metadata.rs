//! What the ROM tells the launcher about itself: OVMF's GUIDed table, read backwards from 32 bytes below 4 GiB.
//!
//! QEMU, cloister and `sev-snp-measure` all find the pages to launch, the place of the hash table and the entry point
//! of the application processors here; launchers of TDs find the TDVF descriptor (Intel TDX Virtual Firmware Design
//! Guide, section 11).

use zerocopy::byteorder::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::layout::{
    GUID_TABLE, KERNEL_HASHES, KERNEL_HASHES_SIZE, LAUNCHED, LAUNCHED_TD, ROM, Range, TDVF_BFV,
};

/// A GUID in its mixed-endian wire form.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(transparent)]
pub struct Guid(pub [u8; 16]);

/// The GUID with this text. Evaluated at compile time: a malformed text does not compile.
#[allow(
    clippy::indexing_slicing,
    clippy::arithmetic_side_effects,
    clippy::panic,
    reason = "evaluated at compile time"
)]
pub const fn guid(text: &str) -> Guid {
    /// Where each byte of the text goes.
    const ORDER: [usize; 16] = [3, 2, 1, 0, 5, 4, 7, 6, 8, 9, 10, 11, 12, 13, 14, 15];
    const fn digit(c: u8) -> u8 {
        match c {
            b'0'..=b'9' => c - b'0',
            b'a'..=b'f' => c - b'a' + 10,
            _ => panic!("not a lower-case hexadecimal digit"),
        }
    }
    let text = text.as_bytes();
    assert!(text.len() == 36);
    let mut bytes = [0; 16];
    let (mut at, mut index) = (0, 0);
    while index < 16 {
        if text[at] == b'-' {
            at += 1;
        }
        bytes[ORDER[index]] = digit(text[at]) << 4 | digit(text[at + 1]);
        at += 2;
        index += 1;
    }
    Guid(bytes)
}

const FOOTER: Guid = guid("96b582de-1fb2-45f7-baea-a366c55a082d");
const SEV_METADATA: Guid = guid("dc886566-984a-4798-a75e-5585a7bf67cc");
const TDX_METADATA: Guid = guid("e47a6535-984a-4798-865e-4685a7bf8ec2");
const SEV_HASH_TABLE: Guid = guid("7255371f-3a3b-4b04-927b-1da6efa8d454");
const SEV_ES_RESET: Guid = guid("00f771de-1a7e-4fcb-890e-68c77e2fb44e");

/// One of the page ranges to launch.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct Section {
    gpa: U32,
    size: U32,
    kind: U32,
}

/// SEV metadata: the page ranges to launch.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct SevMetadata {
    signature: [u8; 4],
    length: U32,
    version: U32,
    count: U32,
    sections: [Section; LAUNCHED.len()],
}
const _: () = assert!(size_of::<SevMetadata>() == 64);

/// A section of the TDVF descriptor.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct TdvfSection {
    data_offset: U32,
    data_size: U32,
    gpa: U64,
    size: U64,
    kind: U32,
    attributes: U32,
}
const _: () = assert!(size_of::<TdvfSection>() == 32);

impl TdvfSection {
    /// MR.EXTEND: the contents go into MRTD.
    const MEASURED: u32 = 1 << 0;

    /// The ROM is the volume whose data is in the file, from its start; all else has none.
    const fn new(range: Range, kind: u32) -> Self {
        let volume = kind == TDVF_BFV;
        Self {
            data_offset: U32::new(0),
            data_size: U32::new(if volume { ROM.len() as u32 } else { 0 }),
            gpa: U64::new(range.start),
            size: U64::new(range.len()),
            kind: U32::new(kind),
            attributes: U32::new(if volume { Self::MEASURED } else { 0 }),
        }
    }
}

/// TDVF descriptor: the ranges to launch in a TD.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct Tdvf {
    signature: [u8; 4],
    length: U32,
    version: U32,
    count: U32,
    sections: [TdvfSection; LAUNCHED_TD.len()],
}
const _: () = assert!(size_of::<Tdvf>() == 16 + 4 * 32);

/// An entry of the table: its data, then the size of both, then the name.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct Entry<T> {
    data: T,
    length: U16,
    guid: Guid,
}

impl<T> Entry<T> {
    const fn new(data: T, guid: Guid) -> Self {
        Self { data, length: U16::new(size_of::<Self>() as u16), guid }
    }
}

/// The end of the ROM's address space below the reset vector: padding, TDVF descriptor, SEV metadata, GUIDed
/// table.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct GuidTable {
    padding: [u8; PADDING],
    tdvf: Tdvf,
    metadata: SevMetadata,
    tdvf_offset: Entry<U32>,
    metadata_offset: Entry<U32>,
    hash_table: Entry<[U32; 2]>,
    reset: Entry<U32>,
    footer: Entry<()>,
}

const TABLE: usize = size_of::<Entry<U32>>() * 3 + size_of::<Entry<[U32; 2]>>() + size_of::<Entry<()>>();
const AREA: usize = (GUID_TABLE.end - GUID_TABLE.start) as usize;
const PADDING: usize = AREA - size_of::<Tdvf>() - size_of::<SevMetadata>() - TABLE;
const _: () = assert!(size_of::<GuidTable>() == AREA);

/// The table for a ROM whose application processors start at `ap_entry`.
#[allow(clippy::indexing_slicing, clippy::arithmetic_side_effects, reason = "evaluated at compile time")]
pub const fn guid_table(ap_entry: u32) -> GuidTable {
    let mut sections = [Section { gpa: U32::new(0), size: U32::new(0), kind: U32::new(0) }; LAUNCHED.len()];
    let mut index = 0;
    while index < LAUNCHED.len() {
        let (range, kind) = LAUNCHED[index];
        sections[index] = Section {
            gpa: U32::new(range.start as u32),
            size: U32::new(range.len() as u32),
            kind: U32::new(kind),
        };
        index += 1;
    }
    let mut td_sections = [TdvfSection::new(ROM, TDVF_BFV); LAUNCHED_TD.len()];
    index = 0;
    while index < LAUNCHED_TD.len() {
        let (range, kind) = LAUNCHED_TD[index];
        td_sections[index] = TdvfSection::new(range, kind);
        index += 1;
    }
    let tdvf_offset = 0x1_0000_0000 - GUID_TABLE.start - PADDING as u64;
    let offset = tdvf_offset - size_of::<Tdvf>() as u64;
    GuidTable {
        padding: [0; PADDING],
        tdvf: Tdvf {
            signature: *b"TDVF",
            length: U32::new(size_of::<Tdvf>() as u32),
            version: U32::new(1),
            count: U32::new(LAUNCHED_TD.len() as u32),
            sections: td_sections,
        },
        tdvf_offset: Entry::new(U32::new(tdvf_offset as u32), TDX_METADATA),
        metadata: SevMetadata {
            signature: *b"ASEV",
            length: U32::new(size_of::<SevMetadata>() as u32),
            version: U32::new(1),
            count: U32::new(LAUNCHED.len() as u32),
            sections,
        },
        metadata_offset: Entry::new(U32::new(offset as u32), SEV_METADATA),
        hash_table: Entry::new(
            [U32::new(KERNEL_HASHES.start as u32), U32::new(KERNEL_HASHES_SIZE as u32)],
            SEV_HASH_TABLE,
        ),
        reset: Entry::new(U32::new(ap_entry), SEV_ES_RESET),
        footer: Entry { data: (), length: U16::new(TABLE as u16), guid: FOOTER },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn guids_have_their_wire_form() {
        assert_eq!(
            guid("00f771de-1a7e-4fcb-890e-68c77e2fb44e").0,
            [0xde, 0x71, 0xf7, 0, 0x7e, 0x1a, 0xcb, 0x4f, 0x89, 0x0e, 0x68, 0xc7, 0x7e, 0x2f, 0xb4, 0x4e]
        );
    }

    /// Walks the table backwards as a launcher does.
    #[test]
    fn a_launcher_finds_every_entry_from_the_end() {
        let table = guid_table(0xFFFF_F123);
        let mut rom = table.as_bytes().to_vec();
        rom.extend([0; 32]);
        let mut end = rom.len() - 32;
        let take = |end: usize| {
            let name = Guid(rom[end - 16..end].try_into().unwrap());
            (name, usize::from(u16::from_le_bytes(rom[end - 18..end - 16].try_into().unwrap())))
        };
        let (name, total) = take(end);
        assert_eq!(name, FOOTER);
        let start = end - total;
        end -= 18;
        let mut found = Vec::new();
        while end > start {
            let (name, length) = take(end);
            found.push((name, rom[end - length..end - 18].to_vec()));
            end -= length;
        }
        assert_eq!(end, start);
        assert_eq!(
            found.iter().map(|f| f.0).collect::<Vec<_>>(),
            [SEV_ES_RESET, SEV_HASH_TABLE, SEV_METADATA, TDX_METADATA]
        );
        assert_eq!(found[0].1, 0xFFFF_F123_u32.to_le_bytes());
        assert_eq!(found[1].1, [0x00, 0xC0, 0, 0, 0x00, 0x04, 0, 0]);
        let offset = u32::from_le_bytes(found[2].1[..].try_into().unwrap()) as usize;
        let metadata = &rom[rom.len() - offset..];
        assert_eq!(&metadata[..4], b"ASEV");
        assert_eq!(metadata[12], LAUNCHED.len() as u8);
        assert_eq!(&metadata[16..28], [0x00, 0x10, 0, 0, 0x00, 0x90, 0, 0, 1, 0, 0, 0]);
    }
}
