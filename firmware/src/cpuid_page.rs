//! The CPUID page (SEV-SNP firmware ABI, CPUID page structure). The secure processor has refused values that the real
//! processor could not have; here it is checked for being complete and consistent enough to run on.

use zerocopy::byteorder::little_endian::{U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::bytes;
use crate::termination::{Stop, TerminationReason};

/// Entries that fit.
pub const FUNCTIONS_MAX: u32 = 64;

#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct Header {
    count: U32,
    reserved_1: U32,
    reserved_2: U64,
}
const _: () = assert!(size_of::<Header>() == 16);

#[derive(Clone, Copy, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
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

impl Function {
    fn input(&self) -> (u32, u32, u64, u64) {
        (self.eax_in.get(), self.ecx_in.get(), self.xcr0_in.get(), self.xss_in.get())
    }
}

const MAX_BASIC: u32 = 0;
const MAX_HYPERVISOR: u32 = 0x4000_0000;
const MAX_EXTENDED: u32 = 0x8000_0000;
const ENCRYPTED_MEMORY: u32 = 0x8000_001F;
/// EAX of 0x8000001F: SEV, SEV-ES, SEV-SNP.
const SEV_BITS: u32 = 1 << 1 | 1 << 3 | 1 << 4;

const fn refused(detail: &'static str) -> Stop {
    Stop::because(TerminationReason::CpuidPageRefused, detail)
}

/// EAX, EBX, ECX and EDX of a leaf of a page that was checked; the first subleaf, if it has several.
pub fn leaf(page: &[u8], leaf: u32) -> Option<[u32; 4]> {
    let count: U32 = bytes::read(page, 0)?;
    (0..count.get().min(FUNCTIONS_MAX) as usize)
        .map_while(|index| {
            let at = index.saturating_mul(size_of::<Function>()).saturating_add(size_of::<Header>());
            bytes::read::<Function>(page, at)
        })
        .find(|function| function.eax_in.get() == leaf)
        .map(|f| [f.eax.get(), f.ebx.get(), f.ecx.get(), f.edx.get()])
}

/// What the firmware makes use of where it is there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Features {
    /// SHA extensions, and the SSE that goes with them.
    pub sha: bool,
}

/// Leaf 1, ECX: SSSE3 and SSE4.1.
const SSE_BITS: u32 = 1 << 9 | 1 << 19;
/// Leaf 7, EBX: SHA extensions.
const SHA_BIT: u32 = 1 << 29;

/// Checks the page against what the reset code already used of it.
pub fn check(page: &[u8], c_bit: u32) -> Result<Features, Stop> {
    let header: Header = bytes::read(page, 0).ok_or(refused("CPUID page is short"))?;
    let count = header.count.get();
    if count == 0 || count > FUNCTIONS_MAX || header.reserved_1.get() != 0 || header.reserved_2.get() != 0 {
        return Err(refused("CPUID page has a bad header"));
    }
    let functions = page.get(size_of::<Header>()..).unwrap_or_default();
    let function = |index: u32| -> Result<Function, Stop> {
        bytes::read(functions, (index as usize).saturating_mul(size_of::<Function>()))
            .ok_or(refused("CPUID page is short"))
    };
    let mut highest_hypervisor = None;
    for index in 0..count {
        let this = function(index)?;
        let leaf = this.eax_in.get();
        if this.reserved.get() != 0 {
            return Err(refused("CPUID page has reserved bits set"));
        }
        match leaf & 0xFFFF_0000 {
            0 | 0x8000_0000 => {}
            0x4000_0000 => highest_hypervisor = highest_hypervisor.max(Some(leaf)),
            _ => return Err(refused("CPUID page has a leaf of no known range")),
        }
        for earlier in 0..index {
            if function(earlier)?.input() == this.input() {
                return Err(refused("CPUID page has a leaf twice"));
            }
        }
    }
    let find =
        |leaf: u32| (0..count).find_map(|index| function(index).ok().filter(|f| f.eax_in.get() == leaf));

    let Some(basic) = find(1).filter(|_| find(MAX_BASIC).is_some_and(|f| f.eax.get() >= 1)) else {
        return Err(refused("CPUID page lacks the basic leaves"));
    };
    if find(MAX_EXTENDED).is_none_or(|f| f.eax.get() < ENCRYPTED_MEMORY) {
        return Err(refused("CPUID page lacks the extended leaves"));
    }
    if highest_hypervisor.is_some() && find(MAX_HYPERVISOR).is_none_or(|f| f.eax.get() < MAX_HYPERVISOR) {
        return Err(refused("CPUID page has hypervisor leaves without their maximum"));
    }
    let sev = find(ENCRYPTED_MEMORY).ok_or(refused("CPUID page lacks leaf 0x8000001F"))?;
    if sev.eax.get() & SEV_BITS != SEV_BITS {
        return Err(refused("CPUID page does not say SEV-SNP"));
    }
    if sev.ebx.get() & 0x3F != c_bit {
        return Err(refused("CPUID page names another C-bit than is in use"));
    }
    let sha = basic.ecx.get() & SSE_BITS == SSE_BITS
        && find(7).is_some_and(|f| f.ecx_in.get() == 0 && f.ebx.get() & SHA_BIT != 0);
    Ok(Features { sha })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fake::cpuid_page;

    fn set(page: &mut [u8], offset: usize, value: u32) {
        page[offset..offset + 4].copy_from_slice(&value.to_le_bytes());
    }

    /// Offset of a field of the n-th function.
    fn at(function: usize, field: usize) -> usize {
        16 + function * 48 + field
    }

    #[test]
    fn a_complete_page_is_accepted() {
        assert_eq!(check(&cpuid_page(51), 51), Ok(Features { sha: false }));
        assert_eq!(check(&cpuid_page(47), 47), Ok(Features { sha: false }));
    }

    #[test]
    fn a_leaf_is_found_by_its_number() {
        let page = cpuid_page(51);
        assert_eq!(leaf(&page, 0x8000_001F), Some([0b1_1010, 51 | 6 << 6, 0, 0]));
        assert_eq!(leaf(&page, 0x8000_0008), Some([48, 0, 0, 0]));
        assert_eq!(leaf(&page, 7), None);
        assert_eq!(leaf(&page[..100], 0x8000_0008), None);
    }

    #[test]
    fn sha_extensions_count_only_with_their_sse() {
        for (sse, sha, expected) in
            [(SSE_BITS, SHA_BIT, true), (1 << 9, SHA_BIT, false), (SSE_BITS, 0, false)]
        {
            let mut page = cpuid_page(51);
            set(&mut page, at(1, 32), sse);
            set(&mut page, at(4, 0), 7);
            set(&mut page, at(4, 28), sha);
            assert_eq!(check(&page, 51), Ok(Features { sha: expected }));
        }
    }

    #[test]
    fn incomplete_or_contradictory_pages_are_refused() {
        type Damage = fn(&mut Vec<u8>);
        let cases: [(&str, Damage); 14] = [
            ("count 0", |p| set(p, 0, 0)),
            ("count 65", |p| set(p, 0, 65)),
            ("reserved header word", |p| set(p, 4, 1)),
            ("reserved header quad", |p| set(p, 8, 1)),
            ("short", |p| p.truncate(100)),
            ("reserved function field", |p| set(p, at(1, 40), 1)),
            ("unknown range", |p| set(p, at(4, 0), 0x2000_0000)),
            ("twice", |p| set(p, at(4, 0), 1)),
            ("no leaf 0", |p| set(p, at(0, 0), 2)),
            ("no leaf 1", |p| set(p, at(1, 0), 2)),
            ("extended maximum too low", |p| set(p, at(2, 24), 0x8000_001E)),
            ("hypervisor leaf without maximum", |p| set(p, at(4, 0), 0x4000_0001)),
            ("not SNP", |p| set(p, at(3, 24), 0b1010)),
            ("another C-bit", |p| set(p, at(3, 28), 50)),
        ];
        for (name, damage) in cases {
            let mut page = cpuid_page(51);
            damage(&mut page);
            assert_eq!(check(&page, 51).unwrap_err().reason, TerminationReason::CpuidPageRefused, "{name}");
        }
    }
}
