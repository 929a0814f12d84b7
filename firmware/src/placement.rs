//! Where kernel and initrd go in RAM. The kernel as low as it wants to be, everything else as high as it may.

use crate::bytes::round_down;
use crate::layout::{HIGH_RAM_START, PAGE, Range};
use crate::termination::{Stop, TerminationReason};

/// RAM above the first megabyte that nobody has taken yet.
#[derive(Clone, Copy, Debug)]
pub struct FreeRam(Range);

impl FreeRam {
    /// All RAM from the first megabyte up to `end`.
    pub const fn below(end: u64) -> Self {
        Self(Range::new(HIGH_RAM_START, end))
    }

    /// What is still free.
    pub const fn range(&self) -> Range {
        self.0
    }

    /// Gives up everything below `end`.
    pub fn keep_above(&mut self, end: u64) -> Result<(), Stop> {
        if end > self.0.end {
            return Err(Stop::because(TerminationReason::OutOfMemory, "RAM is too small for the kernel"));
        }
        self.0.start = self.0.start.max(end);
        Ok(())
    }

    /// Takes `length` bytes, page-aligned, as high as possible but not beyond `limit`.
    pub fn take_high(&mut self, length: u64, limit: u64) -> Result<Range, Stop> {
        let too_large =
            Stop::because(TerminationReason::OutOfMemory, "RAM is too small for kernel and initrd");
        let start = round_down(self.0.end.min(limit).checked_sub(length).ok_or(too_large)?, PAGE);
        if start < self.0.start {
            return Err(too_large);
        }
        self.0.end = start;
        Ok(Range::new(start, start.checked_add(length).ok_or(too_large)?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn takes_from_the_top_down_and_respects_the_limit() {
        let mut free = FreeRam::below(0x800_0000);
        assert_eq!(free.take_high(0x1001, u64::MAX), Ok(Range::new(0x7FF_E000, 0x7FF_F001)));
        assert_eq!(free.take_high(0x1000, 0x400_0000), Ok(Range::new(0x3FF_F000, 0x400_0000)));
        assert_eq!(free.range(), Range::new(0x10_0000, 0x3FF_F000));
    }

    #[test]
    fn refuses_what_does_not_fit() {
        let mut free = FreeRam::below(0x800_0000);
        for length in [0x800_0000, 0x7F0_0001, u64::MAX] {
            assert_eq!(free.take_high(length, u64::MAX).unwrap_err().reason, TerminationReason::OutOfMemory);
        }
        assert!(free.take_high(0x7F0_0000, u64::MAX).is_ok());
    }
}
