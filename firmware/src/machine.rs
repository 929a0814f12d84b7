//! What the firmware needs of the machine below it.

use crate::layout::Range;
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

/// Page size of a PVALIDATE.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PageSize {
    /// 4 KiB.
    Small,
    /// 2 MiB.
    Large,
}

/// What PVALIDATE said (APM volume 3, PVALIDATE).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Validation {
    /// The page was not validated and now is.
    Changed,
    /// CF set: it was validated already.
    Unchanged,
    /// FAIL_SIZEMISMATCH: the host backs a large page with small ones, or the other way round.
    SizeMismatch,
    /// Any other return code.
    Failed(u32),
}

/// The processor and its memory as the firmware uses them. The ROM implements it with instructions, the tests with a
/// machine whose host misbehaves on request.
pub trait Machine {
    /// Position of the C-bit in an SNP guest; `None` in a guest without confidentiality.
    fn c_bit(&self) -> Option<u32>;

    /// OUT.
    fn write_port(&mut self, port: u16, width: Width, value: u32) -> Result<(), Stop>;

    /// IN.
    fn read_port(&mut self, port: u16, width: Width) -> Result<u32, Stop>;

    /// PVALIDATE of one page that [`Machine::map`] has mapped. Called in SNP guests only.
    fn validate(&mut self, gpa: u64, size: PageSize) -> Validation;

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
