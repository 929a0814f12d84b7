//! What the firmware needs of the machine below it.

use crate::layout::{GIB, LARGE_PAGE, PAGE, Range};
use crate::termination::Stop;

/// Width of a port access.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Width {
    /// 8 bits.
    Byte,
    /// 16 bits.
    Word,
    /// 32 bits.
    Dword,
}

impl Width {
    /// Bytes.
    pub const fn bytes(self) -> u8 {
        match self {
            Self::Byte => 1,
            Self::Word => 2,
            Self::Dword => 4,
        }
    }

    /// The bits of a register that such an access has.
    pub const fn mask(self) -> u64 {
        match self {
            Self::Byte => 0xFF,
            Self::Word => 0xFFFF,
            Self::Dword => 0xFFFF_FFFF,
        }
    }
}

/// A port access, as a confidential guest asks its host for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PortAccess {
    /// Port.
    pub port: u16,
    /// Width.
    pub width: Width,
    /// The value of an OUT; `None` for an IN.
    pub out: Option<u32>,
}

/// What protects this guest from its host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Guest {
    /// Nothing.
    Plain,
    /// SEV-SNP.
    Snp {
        /// Position of the C-bit.
        c_bit: u32,
    },
    /// TDX.
    Td {
        /// Width of guest-physical addresses; the highest bit is the shared bit.
        gpaw: u32,
    },
}

impl Guest {
    /// Whether anything does.
    pub const fn is_confidential(self) -> bool {
        !matches!(self, Self::Plain)
    }

    /// What a page-table entry of a private page has set.
    pub const fn private_mask(self) -> u64 {
        match self {
            Self::Snp { c_bit } => 1_u64.wrapping_shl(c_bit),
            Self::Plain | Self::Td { .. } => 0,
        }
    }

    /// What a page-table entry of a shared page has set.
    pub const fn shared_mask(self) -> u64 {
        match self {
            Self::Td { gpaw } => 1_u64.wrapping_shl(gpaw.saturating_sub(1)),
            Self::Plain | Self::Snp { .. } => 0,
        }
    }
}

/// Page size of an acceptance.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PageSize {
    /// 4 KiB.
    Small,
    /// 2 MiB.
    Large,
    /// 1 GiB: in TDs only.
    Huge,
}

impl PageSize {
    /// Bytes.
    pub const fn bytes(self) -> u64 {
        match self {
            Self::Small => PAGE,
            Self::Large => LARGE_PAGE,
            Self::Huge => GIB,
        }
    }
}

/// What PVALIDATE said (APM volume 3, PVALIDATE), or TDG.MEM.PAGE.ACCEPT (TDX module ABI specification).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Validation {
    /// The page was not validated and now is.
    Changed,
    /// It was validated already: CF set, or TDX_PAGE_ALREADY_ACCEPTED.
    Unchanged,
    /// FAIL_SIZEMISMATCH or TDX_PAGE_SIZE_MISMATCH: the host backs a large page with small ones, or the other way round.
    SizeMismatch,
    /// Any other return code.
    Failed(u32),
}

/// The processor and its memory as the firmware uses them. The ROM implements it with instructions, the tests with a
/// machine whose host misbehaves on request.
pub trait Machine {
    /// What protects this guest.
    fn guest(&self) -> Guest;

    /// OUT.
    fn write_port(&mut self, port: u16, width: Width, value: u32) -> Result<(), Stop>;

    /// IN.
    fn read_port(&mut self, port: u16, width: Width) -> Result<u32, Stop>;

    /// The CPUID instruction, if the processor has the leaf. Called in plain guests only: elsewhere the host would answer.
    fn cpuid(&self, leaf: u32) -> Option<[u32; 4]>;

    /// WRMSR of a register that the host keeps. Not called in TDs.
    fn write_msr(&mut self, index: u32, value: u64) -> Result<(), Stop>;

    /// PVALIDATE of one page that [`Machine::map`] has mapped, or TDG.MEM.PAGE.ACCEPT. Not called in plain guests.
    fn validate(&mut self, gpa: u64, size: PageSize) -> Validation;

    /// Makes a page zero that [`Machine::validate`] has just changed. PVALIDATE leaves in it what the host put there; the
    /// TDX module zeroes a page when it is accepted, so this is for SNP guests only.
    fn clear(&mut self, gpa: u64, size: PageSize);

    /// Makes shared pages private and not yet accepted. Nothing is read from or written to them any more.
    fn make_private(&mut self, range: Range) -> Result<(), Stop>;

    /// Validates page 0 and fills it, without mapping it at its own address: it is the stack's guard.
    fn take_page_0(&mut self, fill: fn(&mut [u8; 4096])) -> Validation;

    /// TDG.MR.RTMR.EXTEND. Called in TDs only.
    fn extend_rtmr(&mut self, rtmr: u8, digest: &[u8; 48]) -> Result<(), Stop>;

    /// Makes this GiB of guest-physical memory addressable, privately.
    fn map(&mut self, gib: u64) -> Result<(), Stop>;

    /// Tells where the RAM that [`Machine::ram`] may hand out ends (below 4 GiB), once all of it is accepted.
    fn set_ram_end(&mut self, end: u64);

    /// Private RAM; refused outside RAM and inside the firmware's own stack, page tables and shared pages.
    fn ram(&mut self, range: Range) -> Result<&mut [u8], Stop>;

    /// Copies from private memory to the shared bounce buffer.
    fn share(&mut self, offset: usize, bytes: &[u8]) -> Result<(), Stop>;

    /// Copies from the shared bounce buffer to private memory: what came out is a private copy, read once.
    fn unshare(&mut self, offset: usize, bytes: &mut [u8]) -> Result<(), Stop>;

    /// As [`Machine::unshare`], straight into RAM.
    fn unshare_to_ram(&mut self, offset: usize, to: Range) -> Result<(), Stop>;
}
