//! The CPUID page of an SNP guest (SEV-SNP firmware ABI 56860, 7.1 and 8.14.2.6).
//!
//! The secure processor compares each value with what the processor can do. It refuses what is more, and shows what
//! it would have accepted; a launch with a corrected page would be one that nobody asked for, so it is refused here too.

use kvm_bindings::kvm_cpuid_entry2;
use zerocopy::byteorder::little_endian::{U32, U64};
use zerocopy::{FromBytes, FromZeros, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::LaunchError;

/// Functions that fit.
const FUNCTIONS: usize = 64;
const XSAVE_LEAF: u32 = 0xd;
/// What leaf 0xD has in EBX with only x87 and SSE state enabled: legacy area and header.
const XSAVE_MIN_BYTES: u32 = 0x240;

#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct Function {
    eax_in: U32,
    ecx_in: U32,
    xcr0_in: U64,
    xss_in: U64,
    eax: U32,
    ebx: U32,
    ecx: U32,
    edx: U32,
    reserved: U64,
}
const _: () = assert!(size_of::<Function>() == 48);

/// The page.
#[derive(Clone, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct CpuidPage {
    count: U32,
    reserved_1: U32,
    reserved_2: U64,
    functions: [Function; FUNCTIONS],
    padding: [u8; 1008],
}
const _: () = assert!(size_of::<CpuidPage>() == 4096);

impl CpuidPage {
    /// The page for a vCPU with these entries. Leaves of nothing but zeros are left out: a leaf that the page lacks reads as
    /// zero.
    pub fn new(entries: &[kvm_cpuid_entry2]) -> Result<Self, LaunchError> {
        let mut page = Self::new_zeroed();
        let filled = entries.iter().filter(|entry| (entry.eax | entry.ebx | entry.ecx | entry.edx) != 0);
        let mut count = 0;
        for entry in filled {
            let slot = page.functions.get_mut(count).ok_or(LaunchError::CpuidTooLong { max: FUNCTIONS })?;
            *slot = function(entry);
            count += 1;
        }
        page.count = (count as u32).into();
        Ok(page)
    }

    /// What the secure processor changed, in words.
    pub fn differences(&self, corrected: &Self) -> Vec<String> {
        let mut differences = Vec::new();
        for (ours, theirs) in self.functions.iter().zip(&corrected.functions).take(self.count.get() as usize)
        {
            let registers = [
                ("eax", ours.eax, theirs.eax),
                ("ebx", ours.ebx, theirs.ebx),
                ("ecx", ours.ecx, theirs.ecx),
                ("edx", ours.edx, theirs.edx),
            ];
            for (name, ours_value, theirs_value) in registers.into_iter().filter(|(_, a, b)| a != b) {
                differences.push(format!(
                    "leaf {:#x}.{:#x} {name} {:#x} instead of {:#x}",
                    ours.eax_in.get(),
                    ours.ecx_in.get(),
                    ours_value.get(),
                    theirs_value.get()
                ));
            }
        }
        differences
    }

    /// Adds a second, different entry for leaf 1. A host that lies; see [`crate::hostile`].
    pub fn contradict_itself(&mut self) {
        let count = self.count.get() as usize;
        let first = self.functions.iter().find(|function| function.eax_in.get() == 1).copied();
        if let (Some(mut second), Some(slot)) = (first, self.functions.get_mut(count)) {
            second.ecx = 0.into();
            *slot = second;
            self.count = (count as u32 + 1).into();
        }
    }
}

fn function(entry: &kvm_cpuid_entry2) -> Function {
    let mut function = Function {
        eax_in: entry.function.into(),
        ecx_in: entry.index.into(),
        eax: entry.eax.into(),
        ebx: entry.ebx.into(),
        ecx: entry.ecx.into(),
        edx: entry.edx.into(),
        ..Function::new_zeroed()
    };
    // Sizes depend on XCR0 and XSS. Those of reset are given; the guest computes others from sub-leaves 2 on.
    if entry.function == XSAVE_LEAF && entry.index <= 1 {
        function.ebx = XSAVE_MIN_BYTES.into();
        function.xcr0_in = 1.into();
    }
    function
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(function: u32, index: u32, value: u32) -> kvm_cpuid_entry2 {
        let (eax, ebx, ecx, edx) = (value, value, value, value);
        kvm_cpuid_entry2 { function, index, eax, ebx, ecx, edx, ..Default::default() }
    }

    #[test]
    fn leaves_are_copied_and_empty_ones_left_out() {
        let page =
            CpuidPage::new(&[entry(0, 0, 7), entry(1, 0, 0), entry(0xd, 1, 9), entry(0xd, 2, 9)]).unwrap();
        assert_eq!(page.count.get(), 3);
        assert_eq!(page.functions[0], function(&entry(0, 0, 7)));
        let (xsave, component) = (&page.functions[1], &page.functions[2]);
        assert_eq!((xsave.ebx.get(), xsave.xcr0_in.get(), xsave.eax.get()), (0x240, 1, 9));
        assert_eq!((component.ebx.get(), component.xcr0_in.get()), (9, 0));
    }

    #[test]
    fn a_table_that_does_not_fit_is_refused() {
        let entries: Vec<_> = (0..65).map(|index| entry(4, index, 1)).collect();
        assert!(CpuidPage::new(&entries[..64]).is_ok());
        assert!(CpuidPage::new(&entries).is_err());
    }

    #[test]
    fn a_correction_is_spelt_out() {
        let ours = CpuidPage::new(&[entry(0, 0, 7), entry(7, 1, 0xff)]).unwrap();
        let mut theirs = ours.clone();
        assert!(ours.differences(&theirs).is_empty());
        theirs.functions[1].ebx = 0xf0.into();
        assert_eq!(ours.differences(&theirs), ["leaf 0x7.0x1 ebx 0xff instead of 0xf0"]);
    }
}
