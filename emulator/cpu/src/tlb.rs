//! The soft TLB: guest-linear page to host pointer, one tag per kind of access.
//!
//! A tag is the page's linear address. A lookup compares it with the page of the access's *last* byte while the
//! slot was chosen by its *first*, so that one comparison refuses misses, page-crossing accesses and
//! non-canonical addresses alike.

/// Entries per set.
const SLOTS: usize = 1024;
const PAGE: u64 = !0xfff;
/// Never equal to a page address.
const INVALID: u64 = 1;

/// Supervisor accesses with EFLAGS.AC clear, and implicit ones (descriptor tables, page-fault frames).
pub(crate) const SUPERVISOR: usize = 0;
/// Supervisor accesses with EFLAGS.AC set: SMAP does not apply.
pub(crate) const SUPERVISOR_AC: usize = 1;
/// User accesses.
pub(crate) const USER: usize = 2;
const SETS: usize = 4;

/// What an access needs of an entry.
#[derive(Clone, Copy)]
#[repr(C, align(32))]
pub(crate) struct Entry {
    pub(crate) read: u64,
    pub(crate) write: u64,
    pub(crate) exec: u64,
    /// Host address minus linear address.
    pub(crate) addend: u64,
}

impl Entry {
    const EMPTY: Self = Self { read: INVALID, write: INVALID, exec: INVALID, addend: 0 };
}

/// What [`Tlb::insert`] records.
pub(crate) struct Fill {
    pub(crate) linear: u64,
    pub(crate) host: *mut u8,
    pub(crate) read: bool,
    pub(crate) write: bool,
    pub(crate) exec: bool,
    pub(crate) global: bool,
    /// Size of the mapping in the guest's tables minus one.
    pub(crate) span: u64,
}

/// All sets of one processor.
pub(crate) struct Tlb {
    entries: Box<[Entry; SLOTS * SETS]>,
    global: Box<[bool; SLOTS * SETS]>,
    /// Slots that may hold something.
    filled: Vec<u16>,
    /// Linear range covered by mappings larger than 4 KiB, for the lower and upper half of the address space.
    large: [(u64, u64); 2],
}

const NO_RANGE: (u64, u64) = (u64::MAX, 0);

#[inline(always)]
fn slot(set: usize, linear: u64) -> usize {
    (set * SLOTS + ((linear >> 12) as usize & (SLOTS - 1))) & (SLOTS * SETS - 1)
}

/// The tag that an access of `bytes` at `linear` must find.
#[inline(always)]
pub(crate) fn tag(linear: u64, bytes: u64) -> u64 {
    linear.wrapping_add(bytes - 1) & PAGE
}

impl Tlb {
    pub(crate) fn new() -> Self {
        Self {
            entries: Box::new([Entry::EMPTY; SLOTS * SETS]),
            global: Box::new([false; SLOTS * SETS]),
            filled: Vec::new(),
            large: [NO_RANGE; 2],
        }
    }

    #[inline(always)]
    pub(crate) fn entry(&self, set: usize, linear: u64) -> &Entry {
        &self.entries[slot(set, linear)]
    }

    pub(crate) fn insert(&mut self, set: usize, fill: &Fill) {
        let page = fill.linear & PAGE;
        let addend = (fill.host as u64).wrapping_sub(page);
        let index = slot(set, page);
        let entry = &mut self.entries[index];
        let tags = [entry.read, entry.write, entry.exec];
        if tags == [INVALID; 3] {
            self.filled.push(index as u16);
        }
        if entry.addend != addend || tags.iter().any(|&t| t != INVALID && t != page) {
            *entry = Entry { addend, ..Entry::EMPTY };
        }
        if fill.read {
            entry.read = page;
        }
        if fill.write {
            entry.write = page;
        }
        if fill.exec {
            entry.exec = page;
        }
        self.global[index] = fill.global;
        if fill.span > 0xfff {
            let range = &mut self.large[(page >> 63) as usize];
            range.0 = range.0.min(page & !fill.span);
            range.1 = range.1.max(page | fill.span);
        }
    }

    /// Drops everything, or everything but global pages.
    pub(crate) fn flush(&mut self, keep_global: bool) {
        let (entries, global) = (&mut self.entries, &self.global);
        self.filled.retain(|&i| {
            let i = usize::from(i);
            let keep = keep_global && global[i];
            if !keep {
                entries[i] = Entry::EMPTY;
            }
            keep
        });
        if !keep_global {
            self.large = [NO_RANGE; 2];
        }
    }

    /// INVLPG.
    pub(crate) fn flush_page(&mut self, linear: u64) {
        let (low, high) = self.large[(linear >> 63) as usize];
        if linear >= low && linear <= high {
            // Part of a large mapping perhaps, whose other 4 KiB pieces must go too.
            self.flush(false);
            return;
        }
        for set in 0..SETS {
            let entry = &mut self.entries[slot(set, linear)];
            let page = linear & PAGE;
            if [entry.read, entry.write, entry.exec].contains(&page) {
                // The slot stays listed in `filled`; listing it twice later is harmless.
                *entry = Entry::EMPTY;
            }
        }
    }

    /// Takes write permission from every mapping of a host page: it now holds decoded code.
    pub(crate) fn protect(&mut self, host_page: u64) {
        for &i in &self.filled {
            let entry = &mut self.entries[usize::from(i)];
            if entry.write != INVALID && entry.write.wrapping_add(entry.addend) == host_page {
                entry.write = INVALID;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fill(linear: u64) -> Fill {
        let host = 0x7000_0000 as *mut u8;
        Fill { linear, host, read: true, write: true, exec: false, global: false, span: 0xfff }
    }

    #[test]
    fn a_page_crossing_access_never_hits() {
        let mut tlb = Tlb::new();
        tlb.insert(USER, &fill(0x1000));
        tlb.insert(USER, &fill(0x2000));
        assert_eq!(tlb.entry(USER, 0x1ff8).read, tag(0x1ff8, 8));
        assert_ne!(tlb.entry(USER, 0x1ff9).read, tag(0x1ff9, 8));
        assert_ne!(tlb.entry(SUPERVISOR, 0x1ff8).read, tag(0x1ff8, 8));
    }

    #[test]
    fn global_pages_outlive_a_cr3_write_only() {
        let mut tlb = Tlb::new();
        tlb.insert(SUPERVISOR, &Fill { global: true, ..fill(0x1000) });
        tlb.insert(SUPERVISOR, &fill(0x2000));
        tlb.flush(true);
        assert_eq!(tlb.entry(SUPERVISOR, 0x1000).read, 0x1000);
        assert_ne!(tlb.entry(SUPERVISOR, 0x2000).read, 0x2000);
        tlb.flush_page(0x1234);
        assert_ne!(tlb.entry(SUPERVISOR, 0x1000).read, 0x1000);
    }

    #[test]
    fn protecting_a_page_leaves_reads() {
        let mut tlb = Tlb::new();
        tlb.insert(USER, &fill(0x5000));
        tlb.protect(0x7000_0000);
        assert_eq!(tlb.entry(USER, 0x5000).read, 0x5000);
        assert_ne!(tlb.entry(USER, 0x5000).write, 0x5000);
    }
}
