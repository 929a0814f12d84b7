//! Control-register and EFER bits that the core interprets.

pub(crate) mod cr0 {
    pub(crate) const PE: u64 = 1 << 0;
    pub(crate) const MP: u64 = 1 << 1;
    pub(crate) const EM: u64 = 1 << 2;
    pub(crate) const TS: u64 = 1 << 3;
    pub(crate) const ET: u64 = 1 << 4;
    pub(crate) const NE: u64 = 1 << 5;
    pub(crate) const WP: u64 = 1 << 16;
    pub(crate) const AM: u64 = 1 << 18;
    pub(crate) const NW: u64 = 1 << 29;
    pub(crate) const CD: u64 = 1 << 30;
    pub(crate) const PG: u64 = 1 << 31;
}

pub(crate) mod cr4 {
    pub(crate) const TSD: u64 = 1 << 2;
    pub(crate) const PSE: u64 = 1 << 4;
    pub(crate) const PAE: u64 = 1 << 5;
    pub(crate) const PGE: u64 = 1 << 7;
    pub(crate) const PCE: u64 = 1 << 8;
    pub(crate) const OSFXSR: u64 = 1 << 9;
    pub(crate) const OSXMMEXCPT: u64 = 1 << 10;
    pub(crate) const UMIP: u64 = 1 << 11;
    pub(crate) const FSGSBASE: u64 = 1 << 16;
    pub(crate) const OSXSAVE: u64 = 1 << 18;
    pub(crate) const SMEP: u64 = 1 << 20;
    pub(crate) const SMAP: u64 = 1 << 21;
    /// VME, PVI, TSD, DE, PSE, PAE, MCE, PGE, PCE, OSFXSR, OSXMMEXCPT, UMIP, FSGSBASE, SMEP, SMAP.
    pub(crate) const IMPLEMENTED: u64 = 0xfff | FSGSBASE | SMEP | SMAP;
}

pub(crate) mod efer {
    pub(crate) const SCE: u64 = 1 << 0;
    pub(crate) const LME: u64 = 1 << 8;
    pub(crate) const LMA: u64 = 1 << 10;
    pub(crate) const NXE: u64 = 1 << 11;
    pub(crate) const SVME: u64 = 1 << 12;
    pub(crate) const IMPLEMENTED: u64 = SCE | LME | LMA | NXE | SVME;
}

/// Segment attributes in VMCB packing.
pub(crate) mod attr {
    /// Writable data, or readable code.
    pub(crate) const RW: u16 = 1 << 1;
    /// Expand-down data, or conforming code.
    pub(crate) const DC: u16 = 1 << 2;
    pub(crate) const CODE: u16 = 1 << 3;
    pub(crate) const S: u16 = 1 << 4;
    pub(crate) const P: u16 = 1 << 7;
    pub(crate) const L: u16 = 1 << 9;
    pub(crate) const DB: u16 = 1 << 10;
}

/// Is the address canonical for 48-bit linear addresses?
#[inline(always)]
pub(crate) fn canonical(address: u64) -> bool {
    (address as i64) << 16 >> 16 == address as i64
}
