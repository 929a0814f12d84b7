//! Why the firmware gave up: a code for the host, words for the console.

/// Reason codes of set 2 in the GHCB MSR protocol's termination request (GHCB 2.3.1), this project's own set.
///
/// A guest without confidentiality writes `0x80 | code` to I/O port 0x604.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum TerminationReason {
    /// The kernel is not the measured one.
    KernelHash = 1,
    /// The initrd is not the measured one.
    InitrdHash = 2,
    /// The command line is not the measured one.
    CmdlineHash = 3,
    /// The launch measured no hash table.
    NoHashTable = 4,
    /// The host's memory map was refused.
    MemoryMap = 5,
    /// The host's processor count was refused.
    CpuCount = 6,
    /// A page could not be validated, or was validated already: the host remapped it.
    PageValidation = 7,
    /// The host refused to change a page between private and shared.
    PageStateChange = 8,
    /// The kernel is not one that can be started.
    KernelUnusable = 9,
    /// fw_cfg is missing or failed.
    FwCfg = 10,
    /// The CPUID page was refused.
    CpuidPage = 11,
    /// An exception that no instruction of the firmware should cause.
    Exception = 12,
    /// RAM is too small for what should be loaded.
    OutOfMemory = 13,
    /// The host broke the GHCB protocol.
    GhcbProtocol = 14,
    /// The host or the TDX module did not serve a TDCALL.
    Tdcall = 15,
    /// Something could not be measured.
    Measurement = 16,
}

/// The set that [`TerminationReason`] belongs to.
pub const REASON_SET: u8 = 2;

/// Where a guest without confidentiality says why it ends.
pub const TERMINATION_PORT: u16 = 0x604;

/// What such a guest writes there.
pub const fn termination_code(reason: TerminationReason) -> u8 {
    0x80 | reason.code()
}

/// The end of a boot: the code that the host sees, and one line that says what exactly was wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stop {
    /// Code for the host.
    pub reason: TerminationReason,
    /// Words for the console.
    pub detail: &'static str,
}

impl TerminationReason {
    /// This reason with the words that explain it.
    pub const fn because(self, detail: &'static str) -> Stop {
        Stop { reason: self, detail }
    }

    /// The code as the host sees it.
    pub const fn code(self) -> u8 {
        self as u8
    }
}
