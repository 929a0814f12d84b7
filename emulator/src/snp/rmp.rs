//! The reverse map: one 64-bit word per guest_memfd page, changed atomically.

use std::sync::atomic::{AtomicU64, Ordering};

const ASSIGNED: u64 = 1 << 0;
const VALIDATED: u64 = 1 << 1;
const VMSA: u64 = 1 << 2;
/// The page belongs to a 2 MiB entry.
const LARGE: u64 = 1 << 3;
const PERMISSIONS_SHIFT: u32 = 8;
const GFN_SHIFT: u32 = 24;

/// VMPL permission bits (AMD APM volume 2, "VMPL Permissions"; bits 15 to 8 of RMPADJUST's RDX).
pub mod permission {
    pub const READ: u8 = 1;
    pub const WRITE: u8 = 2;
    pub const EXECUTE_USER: u8 = 4;
    pub const EXECUTE_SUPERVISOR: u8 = 8;
    pub const ALL: u8 = 15;
}

/// A snapshot of an RMP entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry(u64);

impl Entry {
    /// Reads an entry.
    pub fn load(word: &AtomicU64) -> Self {
        Self(word.load(Ordering::SeqCst))
    }

    /// The entry of a page that the hypervisor just gave to the guest at this frame: VMPL0 may do all, others nothing.
    pub fn assigned_to(gfn: u64, large: bool) -> Self {
        let permissions = u64::from(permission::ALL) << PERMISSIONS_SHIFT;
        Self(ASSIGNED | if large { LARGE } else { 0 } | permissions | gfn << GFN_SHIFT)
    }

    /// The word.
    pub fn raw(self) -> u64 {
        self.0
    }

    /// Stores the entry if it is still what `before` was.
    pub fn replace(self, word: &AtomicU64, before: Self) -> bool {
        word.compare_exchange(before.0, self.0, Ordering::SeqCst, Ordering::SeqCst).is_ok()
    }

    /// Stores the entry.
    pub fn store(self, word: &AtomicU64) {
        word.store(self.0, Ordering::SeqCst);
    }

    /// Does the page belong to the guest?
    pub fn assigned(self) -> bool {
        self.0 & ASSIGNED != 0
    }
    /// Did the guest accept it?
    pub fn validated(self) -> bool {
        self.0 & VALIDATED != 0
    }
    /// Is it a VMSA?
    pub fn vmsa(self) -> bool {
        self.0 & VMSA != 0
    }
    /// Part of a 2 MiB entry?
    pub fn large(self) -> bool {
        self.0 & LARGE != 0
    }
    /// The frame that it is assigned to.
    pub fn gfn(self) -> u64 {
        self.0 >> GFN_SHIFT
    }
    /// What a VMPL may do.
    pub fn permissions(self, vmpl: u8) -> u8 {
        (self.0 >> (PERMISSIONS_SHIFT + 4 * u32::from(vmpl & 3)) & 15) as u8
    }

    /// With another validated bit.
    pub fn with_validated(self, on: bool) -> Self {
        Self(self.0 & !VALIDATED | if on { VALIDATED } else { 0 })
    }
    /// With another VMSA bit.
    pub fn with_vmsa(self, on: bool) -> Self {
        Self(self.0 & !VMSA | if on { VMSA } else { 0 })
    }
    /// As part of 4 KiB entries (PSMASH).
    pub fn smashed(self) -> Self {
        Self(self.0 & !LARGE)
    }
    /// With other permissions for a VMPL.
    pub fn with_permissions(self, vmpl: u8, bits: u8) -> Self {
        let shift = PERMISSIONS_SHIFT + 4 * u32::from(vmpl & 3);
        Self(self.0 & !(15 << shift) | u64::from(bits & 15) << shift)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_do_not_overlap() {
        let entry = Entry::assigned_to(0xf_ffff_ffff, true)
            .with_validated(true)
            .with_vmsa(true)
            .with_permissions(1, 0b0101)
            .with_permissions(3, 0b1010);
        assert!(entry.assigned() && entry.validated() && entry.vmsa() && entry.large());
        assert_eq!(entry.gfn(), 0xf_ffff_ffff);
        assert_eq!([0, 1, 2, 3].map(|v| entry.permissions(v)), [15, 5, 0, 10]);
        let entry = entry.with_validated(false).with_vmsa(false).smashed();
        assert!(entry.assigned() && !entry.validated() && !entry.vmsa() && !entry.large());
    }
}
