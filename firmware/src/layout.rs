//! Every address that the firmware uses, in one table: the linker script, the reset code and Rust all read it here.
//!
//! All scratch memory is below 640 KiB: Linux is loaded at 16 MiB, and its own early reservations keep the first
//! megabyte out of the way of the decompressor. Nothing here may be decided by the host.

/// Bytes in a page.
pub const PAGE: u64 = 4096;
/// Bytes in a large page.
pub const LARGE_PAGE: u64 = 2 << 20;
/// Bytes that one page directory maps.
pub const GIB: u64 = 1 << 30;

/// A half-open range of guest-physical addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Range {
    /// First byte.
    pub start: u64,
    /// One past the last byte.
    pub end: u64,
}

impl Range {
    /// The range from `start` up to `end`.
    pub const fn new(start: u64, end: u64) -> Self {
        Self { start, end }
    }

    /// Bytes in the range; none if it is inverted.
    pub const fn len(&self) -> u64 {
        self.end.saturating_sub(self.start)
    }

    /// Whether it holds no byte.
    pub const fn is_empty(&self) -> bool {
        self.end <= self.start
    }

    /// Whether both have a byte in common.
    pub const fn overlaps(&self, other: &Self) -> bool {
        self.start < other.end && other.start < self.end && !self.is_empty() && !other.is_empty()
    }

    /// Whether all of `other` is inside.
    pub const fn contains(&self, other: &Self) -> bool {
        self.start <= other.start && other.end <= self.end
    }
}

/// What a processor in real mode reads when it is interrupted: the interrupt vectors. Filled by the firmware before it
/// takes any word of the host's, and nobody's afterwards; see [`crate::vectors`].
pub const VECTORS: Range = Range::new(0, PAGE);
/// Stack. Page 0 below it is never mapped at its own address while the firmware runs, so an overflow faults. Its lowest
/// words are not the stack's: first the flag of a failure, then what the reset code found ([`TD_GPAW`]).
pub const STACK: Range = Range::new(0x1000, 0x5000);
/// Guest-physical address width of a TD, as the reset code was told by the TDX module; 0 in other guests.
pub const TD_GPAW: u64 = STACK.start + 8;
/// Page tables that the reset code builds: PML4, PDPT, page directories of the first and fourth GiB, and the table of the first 2 MiB.
pub const PML4: u64 = 0x5000;
/// Page-directory-pointer table of the lowest 512 GiB.
pub const PDPT: u64 = 0x6000;
/// Page directory of the first GiB.
pub const PD_0: u64 = 0x7000;
/// Page directory of the fourth GiB, where the ROM is.
pub const PD_3: u64 = 0x8000;
/// Page table of the first 2 MiB.
pub const PT_LOW: u64 = 0x9000;
/// What the launch must have validated before the first instruction: stack and first page tables.
pub const SEC_MEM: Range = Range::new(0x1000, 0xA000);
/// The secure processor's secrets page. Linux goes on using it.
pub const SECRETS: Range = Range::new(0xA000, 0xB000);
/// The CPUID page, checked by the secure processor. Linux goes on using it.
pub const CPUID: Range = Range::new(0xB000, 0xC000);
/// The measured hashes of kernel, initrd and command line.
pub const KERNEL_HASHES: Range = Range::new(0xC000, 0xD000);
/// Bytes of the hash page that the launcher may fill, as the GUIDed table declares.
pub const KERNEL_HASHES_SIZE: u64 = 0x400;
/// `cc_blob_sev_info` for Linux.
pub const CC_BLOB: Range = Range::new(0xD000, 0xE000);
/// Page directory of the second GiB.
pub const PD_1: u64 = 0xE000;
/// The page to which a processor pushes that is interrupted in its launched state, SS:SP = 0:0. No guest ever accepts it,
/// here or in Linux, so that the first push faults, whatever the host injects and whenever it does; see [`crate::vectors`].
pub const LAUNCH_STACK: Range = Range::new(0xF000, 0x1_0000);
/// Page directory that slides over RAM above 4 GiB.
pub const PD_WINDOW: u64 = 0x1_0000;
/// Guest-host communication block, shared with the host while the firmware runs.
pub const GHCB: Range = Range::new(0x1_1000, 0x1_2000);
/// fw_cfg's DMA descriptor and data, shared with the host while the firmware runs.
pub const BOUNCE: Range = Range::new(0x1_2000, 0x2_3000);
/// `boot_params`.
pub const BOOT_PARAMS: Range = Range::new(0x2_3000, 0x2_4000);
/// `setup_data` nodes.
pub const SETUP_DATA: Range = Range::new(0x2_4000, 0x2_5000);
/// Kernel command line.
pub const CMDLINE: Range = Range::new(0x2_5000, 0x2_6000);
/// Where a launcher describes a TD's memory. Nobody reads it here, see `memory_map`; it is asked for because QEMU
/// starts no TD whose firmware does not.
pub const TD_HOB: Range = Range::new(0x2_6000, 0x2_7000);
/// Page directory of the third GiB.
pub const PD_2: u64 = 0x2_7000;
/// The bzImage's real-mode part, whose header is parsed and handed on.
pub const SETUP: Range = Range::new(0x2_8000, 0x4_8000);
/// ACPI tables.
pub const ACPI: Range = Range::new(0x4_8000, 0x5_8000);
/// A TD's event log.
pub const EVENT_LOG: Range = Range::new(0x5_8000, 0x6_8000);
/// Where a TD's application processors wait for Linux (ACPI 6.4, 5.2.12.19).
pub const MAILBOX: Range = Range::new(0x6_8000, 0x6_9000);
/// Page tables of those processors: PML4, PDPT, page directories of the first and fourth GiB.
pub const AP_TABLES: Range = Range::new(0x6_9000, 0x6_D000);
/// What a TD's application processors use from their first instruction to their last here.
pub const AP_MEM: Range = Range::new(MAILBOX.start, AP_TABLES.end);
/// What Linux goes on using in a TD, or its waiting processors, beside the ACPI tables.
pub const TD_KEPT: Range = Range::new(EVENT_LOG.start, AP_TABLES.end);

/// What is never handed out as RAM while the firmware runs: it is in use, shared, or not accepted.
pub const NOT_RAM: [Range; 5] = [
    Range::new(0, SEC_MEM.end),
    Range::new(PD_1, PD_WINDOW + PAGE),
    GHCB,
    BOUNCE,
    Range::new(PD_2, PD_2 + PAGE),
];

/// Conventional memory below the legacy hole.
pub const LOW_RAM_END: u64 = 0xA_0000;
/// The legacy BIOS area. It is no RAM to Linux, which scans it all the same (for an iSCSI boot table), so it is accepted.
pub const BIOS_AREA: Range = Range::new(0xC_0000, 0x10_0000);
/// First megabyte: RAM above it is Linux's without exception.
pub const HIGH_RAM_START: u64 = 0x10_0000;
/// RAM below 4 GiB ends here at the latest; the PCI window follows.
pub const RAM_BELOW_4G_END: u64 = 0xC000_0000;
/// Where RAM goes on above the hole.
pub const RAM_ABOVE_4G: u64 = 0x1_0000_0000;
/// RAM ends here at the latest: what one page-directory-pointer table maps.
pub const RAM_END_MAX: u64 = 512 * GIB;
/// 32-bit PCI window.
pub const PCI_WINDOW: Range = Range::new(0xC000_0000, 0xE000_0000);
/// PCI configuration space of bus 0.
pub const ECAM: Range = Range::new(0xE000_0000, 0xE010_0000);
/// I/O APIC.
pub const IOAPIC: u64 = 0xFEC0_0000;
/// Local APIC.
pub const LAPIC: u64 = 0xFEE0_0000;

/// The ROM: measured whole, so kept to what QEMU's 64 KiB granularity of `-bios` allows.
pub const ROM: Range = Range::new(0xFFFF_0000, 0x1_0000_0000);
/// Its last page: reset code, descriptor tables, GUIDed table.
pub const RESET_PAGE: Range = Range::new(0xFFFF_F000, 0x1_0000_0000);
/// Where application processors start: the first code of the reset page.
pub const AP_ENTRY: u64 = RESET_PAGE.start;
/// The GUIDed table, which ends 32 bytes below 4 GiB.
pub const GUID_TABLE: Range = Range::new(0xFFFF_FE00, 0xFFFF_FFE0);
/// First instruction of the boot processor.
pub const RESET_VECTOR: u64 = 0xFFFF_FFF0;

/// What each launched page range is, in launch order: (range, section type of the SEV metadata).
pub const LAUNCHED: [(Range, u32); 4] = [
    (SEC_MEM, SECTION_SEC_MEM),
    (SECRETS, SECTION_SECRETS),
    (CPUID, SECTION_CPUID),
    (KERNEL_HASHES, SECTION_KERNEL_HASHES),
];
/// Zeroed, validated memory.
pub const SECTION_SEC_MEM: u32 = 1;
/// Secrets page.
pub const SECTION_SECRETS: u32 = 2;
/// CPUID page.
pub const SECTION_CPUID: u32 = 3;
/// Kernel-hashes page.
pub const SECTION_KERNEL_HASHES: u32 = 0x10;

/// What each range launched in a TD is, in launch order: (range, section type of the TDVF metadata). The first is the
/// ROM, which alone is measured.
pub const LAUNCHED_TD: [(Range, u32); 4] =
    [(ROM, TDVF_BFV), (SEC_MEM, TDVF_TEMP_MEM), (TD_HOB, TDVF_TD_HOB), (AP_MEM, TDVF_TEMP_MEM)];
/// Boot firmware volume.
pub const TDVF_BFV: u32 = 0;
/// The host's description of the machine.
pub const TDVF_TD_HOB: u32 = 2;
/// Memory that is the TD's from the start. The launch measures where it is and not what is in it: the host chooses that,
/// so the firmware writes such memory before it reads it.
pub const TDVF_TEMP_MEM: u32 = 3;

#[cfg(test)]
mod tests {
    use super::*;

    /// Everything that has a place below 640 KiB.
    fn places() -> Vec<(&'static str, Range)> {
        let page = |at: u64| Range::new(at, at + PAGE);
        vec![
            ("vectors", VECTORS),
            ("stack", STACK),
            ("PML4", page(PML4)),
            ("PDPT", page(PDPT)),
            ("PD 0", page(PD_0)),
            ("PD 3", page(PD_3)),
            ("PT low", page(PT_LOW)),
            ("secrets", SECRETS),
            ("CPUID", CPUID),
            ("kernel hashes", KERNEL_HASHES),
            ("CC blob", CC_BLOB),
            ("PD 1", page(PD_1)),
            ("launch stack", LAUNCH_STACK),
            ("PD 2", page(PD_2)),
            ("PD window", page(PD_WINDOW)),
            ("GHCB", GHCB),
            ("bounce", BOUNCE),
            ("boot_params", BOOT_PARAMS),
            ("setup_data", SETUP_DATA),
            ("command line", CMDLINE),
            ("setup", SETUP),
            ("ACPI", ACPI),
            ("TD HOB", TD_HOB),
            ("event log", EVENT_LOG),
            ("mailbox", MAILBOX),
            ("AP tables", AP_TABLES),
        ]
    }

    #[test]
    fn places_are_whole_pages_in_low_memory_and_disjoint() {
        let places = places();
        for (index, (name, range)) in places.iter().enumerate() {
            assert!(!range.is_empty() && range.start % PAGE == 0 && range.end % PAGE == 0, "{name}");
            assert!(Range::new(0, LOW_RAM_END).contains(range), "{name}");
            for (other, second) in &places[..index] {
                assert!(!range.overlaps(second), "{name} and {other}");
            }
        }
    }

    #[test]
    fn what_runs_before_acceptance_is_launched() {
        let launched = |range: &Range| LAUNCHED.iter().any(|(l, _)| l.contains(range));
        for (name, range) in places() {
            let early =
                ["stack", "PML4", "PDPT", "PD 0", "PD 3", "PT low", "secrets", "CPUID", "kernel hashes"];
            assert_eq!(launched(&range), early.contains(&name), "{name}");
            let launched = LAUNCHED_TD.iter().any(|(l, _)| l.contains(&range));
            let early = ["stack", "PML4", "PDPT", "PD 0", "PD 3", "PT low", "TD HOB", "mailbox", "AP tables"];
            assert_eq!(launched, early.contains(&name), "{name} of a TD");
        }
        for launched in [LAUNCHED, LAUNCHED_TD] {
            for (index, (range, _)) in launched.iter().enumerate() {
                assert!(launched[..index].iter().all(|(other, _)| !range.overlaps(other)));
            }
        }
    }

    #[test]
    fn what_the_launch_state_pushes_lands_in_the_page_that_nobody_accepts() {
        // SS:SP = 0:0, a 16-bit stack: three words in real mode, four doublewords at most in protected mode.
        for bytes in [2, 6, 16] {
            let at = u64::from(0_u16.wrapping_sub(bytes));
            assert!(LAUNCH_STACK.contains(&Range::new(at, at + u64::from(bytes))), "{bytes} bytes");
        }
        for launched in LAUNCHED.iter().chain(&LAUNCHED_TD) {
            assert!(!launched.0.overlaps(&LAUNCH_STACK), "{:x?} is accepted by the launch", launched.0);
        }
    }

    #[test]
    fn one_processor_launches_with_at_most_forty_measured_pages() {
        let pages = (ROM.len() + LAUNCHED.iter().map(|(range, _)| range.len()).sum::<u64>()) / PAGE;
        assert!(pages < 40, "{pages} pages and a VMSA");
    }

    #[test]
    fn shared_pages_are_where_single_pages_are_mapped() {
        for shared in [GHCB, BOUNCE] {
            assert!(Range::new(0, LARGE_PAGE).contains(&shared));
        }
    }

    #[test]
    fn the_rom_ends_at_4_gib_in_the_order_that_the_reset_needs() {
        assert_eq!(ROM.end, 1 << 32);
        assert_eq!(ROM.len() % (64 << 10), 0);
        assert_eq!(RESET_VECTOR, ROM.end - 16);
        assert_eq!(GUID_TABLE.end, ROM.end - 32);
        assert!(ROM.contains(&RESET_PAGE) && RESET_PAGE.contains(&GUID_TABLE));
        assert_eq!(AP_ENTRY, RESET_PAGE.start);
    }

    #[test]
    fn ranges_know_what_they_share() {
        let range = Range::new(2, 4);
        for (other, overlaps, contains) in [
            (Range::new(2, 4), true, true),
            (Range::new(3, 4), true, true),
            (Range::new(1, 3), true, false),
            (Range::new(4, 5), false, false),
            (Range::new(0, 2), false, false),
            (Range::new(3, 3), false, true),
        ] {
            assert_eq!((range.overlaps(&other), range.contains(&other)), (overlaps, contains), "{other:?}");
        }
        assert_eq!(Range::new(4, 2).len(), 0);
    }
}
