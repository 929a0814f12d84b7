//! The memory map that the host tells (fw_cfg "etc/e820"), checked, and the map that Linux gets.
//!
//! In a TD, too. A launcher of TDs leaves the same word of the host in a TD HOB, and a firmware that goes by that has to
//! measure it into RTMR0 (TDX Virtual Firmware Design Guide). This one has one map for every kind of
//! guest and one set of checks; what came out of them is measured into RTMR0 (`Event::PLATFORM`), and the HOB is not read.

use cloister_attestation::abi;
use zerocopy::byteorder::little_endian::{U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::layout::{
    ACPI, ECAM, HIGH_RAM_START, LARGE_PAGE, LAUNCH_STACK, LOW_RAM_END, PAGE, RAM_ABOVE_4G, RAM_BELOW_4G_END,
    RAM_END_MAX, ROM, Range, SECRETS, TD_KEPT, VECTORS,
};
use crate::machine::Guest;
use crate::termination::{Stop, TerminationReason};

/// Entry of an e820 map, as fw_cfg tells it and `boot_params` wants it.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned, PartialEq, Eq)]
#[repr(C)]
pub struct E820Entry {
    address: U64,
    length: U64,
    kind: U32,
}
const _: () = assert!(size_of::<E820Entry>() == 20);
// The linker script's table of addresses is by itself; the VMM and the verifier have the machine's.
const _: () = assert!(RAM_BELOW_4G_END == abi::LOW_RAM_MAX && RAM_ABOVE_4G == abi::HIGH_RAM);
const _: () = assert!(RAM_END_MAX == abi::RAM_END_MAX);

impl E820Entry {
    /// Usable RAM.
    pub const RAM: u32 = 1;
    /// Not to be touched, or only by those who know.
    pub const RESERVED: u32 = 2;
    /// ACPI tables. Linux maps these as private memory; what is merely reserved it maps shared when asked to.
    pub const ACPI: u32 = 3;

    /// ACPI's non-volatile storage: what ACPI tables point at, private to Linux as well.
    pub const ACPI_NVS: u32 = 4;

    /// An entry for `range`.
    pub fn new(range: Range, kind: u32) -> Self {
        Self { address: U64::new(range.start), length: U64::new(range.len()), kind: U32::new(kind) }
    }

    /// Whether it covers nothing.
    pub fn is_empty(&self) -> bool {
        self.length.get() == 0
    }

    fn range(&self) -> Option<Range> {
        Some(Range::new(self.address.get(), self.address.get().checked_add(self.length.get())?))
    }
}

/// Entries that the host may tell.
pub const ENTRIES_MAX: usize = 64;
/// Entries that Linux is told.
pub const FINAL_ENTRIES_MAX: usize = 12;
/// Below this no distribution's kernel starts.
const RAM_MIN: u64 = 32 << 20;

/// RAM that was found acceptable: from 0 to `below_4g_end`, and from 4 GiB to `above_4g_end`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ram {
    /// End of the RAM that starts at 0.
    pub below_4g_end: u64,
    /// End of the RAM that starts at 4 GiB; 4 GiB if there is none.
    pub above_4g_end: u64,
}

const fn refused(detail: &'static str) -> Stop {
    Stop::because(TerminationReason::MemoryMapRefused, detail)
}

impl Ram {
    /// Checks the host's map against the machine model: sorted and disjoint, RAM only where RAM can be, no hole in
    /// either part, as much of it as the host says elsewhere. Entries that are not RAM must only keep out of its way.
    pub fn check(entries: &[E820Entry], ram_size: u64) -> Result<Self, Stop> {
        if entries.is_empty() || entries.len() > ENTRIES_MAX {
            return Err(refused("memory map is empty or too long"));
        }
        let mut ram = Self { below_4g_end: 0, above_4g_end: RAM_ABOVE_4G };
        let mut last_ram_end = 0;
        for (index, entry) in entries.iter().enumerate() {
            let range = entry.range().ok_or(refused("memory map entry wraps"))?;
            if range.is_empty() {
                return Err(refused("memory map entry is empty"));
            }
            let earlier = entries.get(..index).unwrap_or_default();
            if earlier.iter().any(|other| other.range().is_none_or(|other| other.overlaps(&range))) {
                return Err(refused("memory map entries overlap"));
            }
            if entry.kind.get() != E820Entry::RAM {
                continue;
            }
            if range.start < last_ram_end {
                return Err(refused("memory map is not sorted"));
            }
            last_ram_end = range.end;
            ram.extend(range)?;
        }
        if ram.below_4g_end < RAM_MIN {
            return Err(refused("less than 32 MiB of RAM below 4 GiB"));
        }
        if ram.total() != Some(ram_size) {
            return Err(refused("memory map and RAM size disagree"));
        }
        Ok(ram)
    }

    fn extend(&mut self, range: Range) -> Result<(), Stop> {
        if !range.start.is_multiple_of(PAGE) || !range.end.is_multiple_of(PAGE) {
            return Err(refused("RAM is not page-aligned"));
        }
        if range.start == self.below_4g_end && range.end <= RAM_BELOW_4G_END {
            self.below_4g_end = range.end;
            Ok(())
        } else if range.start == self.above_4g_end && range.end <= RAM_END_MAX {
            self.above_4g_end = range.end;
            Ok(())
        } else {
            Err(refused("RAM where none can be"))
        }
    }

    fn total(&self) -> Option<u64> {
        self.below_4g_end.checked_add(self.above_4g_end.checked_sub(RAM_ABOVE_4G)?)
    }

    /// Both parts, of which the second may be empty.
    pub fn ranges(&self) -> [Range; 2] {
        [Range::new(0, self.below_4g_end), Range::new(RAM_ABOVE_4G, self.above_4g_end)]
    }

    /// The RAM above the first 2 MiB, which large pages may cover.
    pub fn above_2m(&self) -> [Range; 2] {
        [Range::new(LARGE_PAGE, self.below_4g_end), Range::new(RAM_ABOVE_4G, self.above_4g_end)]
    }

    /// The map that Linux gets: RAM as checked, minus what must outlive the firmware.
    pub fn for_linux(&self, guest: Guest) -> [E820Entry; FINAL_ENTRIES_MAX] {
        let kept = match guest {
            Guest::Td { .. } => TD_KEPT,
            Guest::Plain | Guest::Snp { .. } => Range::new(ACPI.end, ACPI.end),
        };
        [
            (VECTORS, E820Entry::RESERVED),
            (Range::new(VECTORS.end, SECRETS.start), E820Entry::RAM),
            // With one page more than what outlives the firmware, so that the entry reaches to the page that is no RAM.
            (Range::new(SECRETS.start, LAUNCH_STACK.end), E820Entry::RESERVED),
            (Range::new(LAUNCH_STACK.end, ACPI.start), E820Entry::RAM),
            (ACPI, E820Entry::ACPI),
            (kept, E820Entry::ACPI_NVS),
            (Range::new(kept.end, LOW_RAM_END), E820Entry::RAM),
            (Range::new(LOW_RAM_END, HIGH_RAM_START), E820Entry::RESERVED),
            (Range::new(HIGH_RAM_START, self.below_4g_end), E820Entry::RAM),
            (ECAM, E820Entry::RESERVED),
            (ROM, E820Entry::RESERVED),
            (Range::new(RAM_ABOVE_4G, self.above_4g_end), E820Entry::RAM),
        ]
        .map(|(range, kind)| E820Entry::new(range, kind))
    }
}
