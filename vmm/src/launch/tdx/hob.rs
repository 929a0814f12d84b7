//! The TD HOB: the list in which a TD's firmware finds its memory (UEFI Platform Initialization specification, volume 3;
//! TDX Virtual Firmware Design Guide, section 8). The launch does not measure it: a firmware that goes by it (OVMF) checks it
//! and measures it into RTMR0; ours does not read it.

use std::ops::Range;

use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{Immutable, IntoBytes};

const HANDOFF: u16 = 1;
const RESOURCE_DESCRIPTOR: u16 = 3;
const END_OF_LIST: u16 = 0xffff;
/// Present, initialised, tested.
const ATTRIBUTES: u32 = 0b111;
const SYSTEM_MEMORY: u32 = 0;
/// EFI_RESOURCE_MEMORY_UNACCEPTED.
const UNACCEPTED: u32 = 7;

#[derive(IntoBytes, Immutable)]
#[repr(C)]
struct Header {
    kind: U16,
    length: U16,
    reserved: U32,
}

#[derive(IntoBytes, Immutable)]
#[repr(C)]
struct Handoff {
    header: Header,
    version: U32,
    boot_mode: U32,
    memory_top: U64,
    memory_bottom: U64,
    free_memory_top: U64,
    free_memory_bottom: U64,
    end_of_list: U64,
}
const _: () = assert!(size_of::<Handoff>() == 56);

#[derive(IntoBytes, Immutable)]
#[repr(C)]
struct Resource {
    header: Header,
    owner: [u8; 16],
    kind: U32,
    attributes: U32,
    start: U64,
    length: U64,
}
const _: () = assert!(size_of::<Resource>() == 48);

fn header(kind: u16, length: usize) -> Header {
    Header { kind: U16::new(kind), length: U16::new(length as u16), reserved: U32::new(0) }
}

/// The HOB list for `ram`, placed at `gpa`; `added` are the ranges that the launch gives the TD accepted.
pub fn list(gpa: u64, ram: &[Range<u64>], added: &[Range<u64>]) -> Vec<u8> {
    let resources: Vec<Resource> = ram
        .iter()
        .flat_map(|range| split(range, added))
        .map(|(range, kind)| resource(&range, kind))
        .collect();
    let end = gpa + (size_of::<Handoff>() + size_of_val(&resources[..]) + size_of::<Header>()) as u64;
    let top = ram.first().map_or(0, |low| low.end);
    let handoff = Handoff {
        header: header(HANDOFF, size_of::<Handoff>()),
        version: U32::new(9),
        boot_mode: U32::new(0),
        memory_top: U64::new(top),
        memory_bottom: U64::new(0),
        free_memory_top: U64::new(top),
        free_memory_bottom: U64::new(end),
        end_of_list: U64::new(end),
    };
    let last = header(END_OF_LIST, size_of::<Header>());
    [handoff.as_bytes(), resources.as_bytes(), last.as_bytes()].concat()
}

fn resource(range: &Range<u64>, kind: u32) -> Resource {
    Resource {
        header: header(RESOURCE_DESCRIPTOR, size_of::<Resource>()),
        owner: [0; 16],
        kind: U32::new(kind),
        attributes: U32::new(ATTRIBUTES),
        start: U64::new(range.start),
        length: U64::new(range.end - range.start),
    }
}

/// A range of RAM, cut where its pages begin or cease to be accepted.
fn split(ram: &Range<u64>, added: &[Range<u64>]) -> Vec<(Range<u64>, u32)> {
    let inside = |range: &&Range<u64>| range.start < ram.end && ram.start < range.end;
    let mut cuts: Vec<&Range<u64>> = added.iter().filter(inside).collect();
    cuts.sort_by_key(|range| range.start);
    let mut pieces = Vec::new();
    let mut at = ram.start;
    for cut in cuts {
        let (start, end) = (cut.start.max(at), cut.end.min(ram.end));
        pieces.push((at..start, UNACCEPTED));
        pieces.push((start..end, SYSTEM_MEMORY));
        at = end.max(at);
    }
    pieces.push((at..ram.end, UNACCEPTED));
    pieces.retain(|(range, _)| !range.is_empty());
    pieces
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_byte_of_ram_is_described_once() {
        let pieces = split(&(0..0x10_0000), &[0x8000..0x9000, 0x2000..0x3000, 0xf_f000..0x20_0000]);
        assert_eq!(
            pieces,
            [
                (0..0x2000, UNACCEPTED),
                (0x2000..0x3000, SYSTEM_MEMORY),
                (0x3000..0x8000, UNACCEPTED),
                (0x8000..0x9000, SYSTEM_MEMORY),
                (0x9000..0xf_f000, UNACCEPTED),
                (0xf_f000..0x10_0000, SYSTEM_MEMORY),
            ]
        );
    }

    /// Written out from the PI specification's structures (volume 3, "HOB Code Definitions"), in words of 32 bits.
    #[test]
    fn a_list_has_these_bytes() {
        let resource = |kind, start, length| [3 | 48 << 16, 0, 0, 0, 0, 0, kind, 7, start, 0, length, 0];
        let handoff = [1 | 56 << 16, 0, 9, 0, 0x30_0000, 0, 0, 0, 0x30_0000, 0, 0x1_00d0, 0, 0x1_00d0, 0];
        let words = [
            &handoff[..],
            &resource(7, 0, 0x1_0000),
            &resource(0, 0x1_0000, 0x1000),
            &resource(7, 0x1_1000, 0x2e_f000),
            &[0xffff | 8 << 16, 0],
        ]
        .concat();
        let expected: Vec<u8> = words.iter().flat_map(|word: &u32| word.to_le_bytes()).collect();
        let (ram, added) = (0..0x30_0000, 0x1_0000..0x1_1000);
        assert_eq!(list(0x1_0000, &[ram], &[added]), expected);
    }

    #[test]
    fn the_list_ends_where_its_first_entry_says() {
        const GPA: u64 = 0x8_0000;
        let bytes = list(GPA, &[0..1 << 30, 1 << 32..5 << 30], std::slice::from_ref(&(GPA..GPA + 0x2000)));
        let word = |at: usize| u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap());
        assert_eq!(word(48), GPA + bytes.len() as u64);
        // Four resources: three in low RAM, one above 4 GiB.
        assert_eq!(bytes.len(), 56 + 4 * 48 + 8);
        let (mut at, mut kinds) = (0, Vec::new());
        while at < bytes.len() {
            kinds.push(u16::from_le_bytes([bytes[at], bytes[at + 1]]));
            at += usize::from(u16::from_le_bytes([bytes[at + 2], bytes[at + 3]]));
        }
        assert_eq!(kinds, [1, 3, 3, 3, 3, 0xffff]);
    }
}
