//! Numbers that the Cloister firmware and the VMM agree on: where RAM lies, I/O ports and
//! termination reasons.
//!
//! Under SNP the firmware ends the guest with the GHCB termination request (GHCB specification,
//! section "Termination Request", MSR protocol 0x100), reason set [`TERMINATION_SET`]. A plain VM has no
//! GHCB, so the same code goes through [`TERMINATION_PORT`]; a TD reports it as [`TDX_FATAL_FIRMWARE`].

use core::fmt;
use core::ops::Range;

/// RAM below 4 GiB ends here at the latest; the rest continues at [`HIGH_RAM`].
pub const LOW_RAM_MAX: u64 = 0xc000_0000;
/// Where RAM continues above the 32-bit hole.
pub const HIGH_RAM: u64 = 1 << 32;
/// RAM ends here at the latest: what the firmware's page tables map.
pub const RAM_END_MAX: u64 = 512 << 30;
/// The smallest machine that the firmware can do anything with.
pub const MEMORY_MIN: u64 = 16 << 20;
/// The largest: up to [`RAM_END_MAX`], without the hole below 4 GiB.
pub const MEMORY_MAX: u64 = LOW_RAM_MAX + (RAM_END_MAX - HIGH_RAM);

/// Where `bytes` of guest RAM lie: below the 32-bit hole, the rest above 4 GiB. Ranges may be empty.
pub const fn ram_ranges(bytes: u64) -> [Range<u64>; 2] {
    let low = if bytes < LOW_RAM_MAX { bytes } else { LOW_RAM_MAX };
    [0..low, HIGH_RAM..HIGH_RAM.saturating_add(bytes.saturating_sub(low))]
}

/// MTRRs as a PC's firmware leaves them, for a processor with physical addresses of this width: RAM is write-back, the hole
/// below 4 GiB is not cached. MSRs and their values, in the order in which they are written: nothing is in force before the
/// last. The firmware sets them on the boot processor; the others never run it, so the VMM sets them on all.
pub const fn memory_types(address_bits: u32) -> [(u32, u64); 3] {
    const BASE_0: u32 = 0x200;
    const MASK_0: u32 = 0x201;
    const DEFAULT_TYPE: u32 = 0x2ff;
    const WRITE_BACK: u64 = 6;
    const UNCACHED: u64 = 0;
    const VALID: u64 = 1 << 11;
    const ENABLED: u64 = 1 << 11;
    const HOLE: u64 = HIGH_RAM - LOW_RAM_MAX;
    const _: () = assert!(HOLE.is_power_of_two() && LOW_RAM_MAX.is_multiple_of(HOLE));
    let unused = match 64_u32.saturating_sub(address_bits) {
        ..12 => 12,
        unused @ 12..=28 => unused,
        _ => 28,
    };
    let mask = u64::MAX.wrapping_shr(unused) & !(HOLE - 1);
    [(BASE_0, LOW_RAM_MAX | UNCACHED), (MASK_0, mask | VALID), (DEFAULT_TYPE, ENABLED | WRITE_BACK)]
}

/// ACPI hardware-reduced `SLEEP_CONTROL_REG` (ACPI 6.5, 4.8.3.7).
pub const SLEEP_CONTROL_PORT: u16 = 0x600;
/// ACPI hardware-reduced `SLEEP_STATUS_REG`.
pub const SLEEP_STATUS_PORT: u16 = 0x601;
/// The FADT's `RESET_REG`; [`RESET_VALUE`] written here resets the machine.
pub const RESET_PORT: u16 = 0x602;
/// A byte written here becomes the exit code of the VMM at the next clean power-off. ACPI has no such thing.
pub const EXIT_CODE_PORT: u16 = 0x603;
/// `0x80 | code` written here by the firmware of a plain VM says why it powers the machine off.
pub const TERMINATION_PORT: u16 = 0x604;
/// The FADT's `RESET_VALUE`.
pub const RESET_VALUE: u8 = 1;
/// What powers the machine off at [`SLEEP_CONTROL_PORT`]: `SLP_TYPx` 5 and `SLP_EN`.
pub const SLEEP_S5: u8 = (5 << 2) | 0x20;
/// Bit that marks a byte at [`TERMINATION_PORT`] as a termination reason.
pub const TERMINATION_FLAG: u8 = 0x80;

/// The GHCB termination reason set that the firmware uses; 0 is the specification's, 1 is Linux's.
pub const TERMINATION_SET: u8 = 2;

/// Error code of a TD's ReportFatalError (Intel GHCI: bit 31 marks codes that are the TD's own): this, and the
/// [`TerminationReason`]'s code in the lowest byte.
pub const TDX_FATAL_FIRMWARE: u32 = 1 << 31 | (TERMINATION_SET as u32) << 8;

macro_rules! termination_reasons {
    ($($(#[$doc:meta])* $name:ident = $code:literal, $text:literal;)*) => {
        /// Why the firmware refused to go on. The discriminant is the reason code on the wire.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        #[repr(u8)]
        pub enum TerminationReason { $($(#[$doc])* $name = $code,)* }

        impl TerminationReason {
            /// Every reason, in the order of their codes.
            pub const ALL: &'static [Self] = &[$(Self::$name,)*];

            /// The reason of a wire code; codes that this version does not know are `None`.
            pub const fn from_code(code: u8) -> Option<Self> {
                match code { $($code => Some(Self::$name),)* _ => None }
            }

            /// The reason in words, as the host prints it.
            pub const fn as_str(self) -> &'static str {
                match self { $(Self::$name => $text,)* }
            }
        }
    };
}

termination_reasons! {
    /// SHA-256 of the kernel differs from the measured table.
    KernelHashMismatch = 1, "kernel hash mismatch";
    /// SHA-256 of the initrd differs from the measured table.
    InitrdHashMismatch = 2, "initrd hash mismatch";
    /// SHA-256 of the command line differs from the measured table.
    CmdlineHashMismatch = 3, "command line hash mismatch";
    /// The measured page holds no table of kernel hashes.
    NoHashTable = 4, "no kernel hash table";
    /// The host's memory map overlaps, overflows or covers what it must not.
    MemoryMapRefused = 5, "memory map refused";
    /// The host's CPU count is zero or more than the firmware supports.
    CpuCountRefused = 6, "CPU count refused";
    /// PVALIDATE failed or changed nothing: the page was validated before, or remapped since.
    PageValidationFailed = 7, "page validation failed (already validated or remapped)";
    /// The hypervisor refused a page state change.
    PageStateChangeRefused = 8, "page state change refused";
    /// The kernel is neither a bzImage nor an ELF vmlinux that can be placed.
    KernelUnusable = 9, "kernel image unusable";
    /// fw_cfg answered nonsense or reported an error.
    FwCfgFailed = 10, "fw_cfg failed";
    /// The CPUID page contradicts itself or the processor.
    CpuidPageRefused = 11, "CPUID page refused";
    /// An exception that the firmware does not handle.
    UnexpectedException = 12, "unexpected exception";
    /// Kernel, initrd and tables do not fit into RAM.
    OutOfMemory = 13, "out of memory";
    /// The hypervisor broke the GHCB protocol.
    GhcbProtocol = 14, "GHCB protocol violated";
    /// The hypervisor or the TDX module did not serve a TDCALL.
    TdcallFailed = 15, "TDCALL failed";
    /// An event could not be measured into an RTMR or logged.
    MeasurementFailed = 16, "measurement failed";
}

impl TerminationReason {
    /// The reason code on the wire.
    pub const fn code(self) -> u8 {
        self as u8
    }
}

impl fmt::Display for TerminationReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ram_is_write_back_and_the_hole_is_not_cached() {
        for (bits, mask) in [(36, 0xf_c000_0800), (48, 0xffff_c000_0800), (52, 0xf_ffff_c000_0800)] {
            assert_eq!(memory_types(bits), [(0x200, 0xc000_0000), (0x201, mask), (0x2ff, 0x806)], "{bits}");
        }
        for (absurd, sane) in [(0, 36), (255, 52)] {
            assert_eq!(memory_types(absurd), memory_types(sane));
        }
    }

    #[test]
    fn termination_codes_are_dense_and_round_trip() {
        for (index, &reason) in TerminationReason::ALL.iter().enumerate() {
            assert_eq!(usize::from(reason.code()), index + 1);
            assert_eq!(TerminationReason::from_code(reason.code()), Some(reason));
        }
        assert_eq!(TerminationReason::from_code(0), None);
        assert_eq!(TerminationReason::from_code(17), None);
    }

    #[test]
    fn termination_codes_fit_beside_the_flag_of_the_port() {
        assert!(TerminationReason::ALL.iter().all(|r| r.code() & TERMINATION_FLAG == 0));
    }
}
