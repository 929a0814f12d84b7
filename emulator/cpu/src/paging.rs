//! The page walker: legacy 32-bit, PAE and four-level tables.
//!
//! It reads table entries through [`crate::Env::resolve`] with `walk` set, decides which view (private or
//! shared) each table and the page itself is reached through, and never judges the target page: that is the
//! TLB fill's part.

use crate::bits::{canonical, cr0, cr4, efer};
use crate::cpu::{Cpu, Leave, Result};
use crate::env::{Access, PageRequest, Stop};
use crate::mem::{self, Width};
use crate::state::{Exception, MemoryEncryption};

const PRESENT: u64 = 1 << 0;
const WRITABLE: u64 = 1 << 1;
const USER: u64 = 1 << 2;
const ACCESSED: u64 = 1 << 5;
const DIRTY: u64 = 1 << 6;
const PAGE_SIZE: u64 = 1 << 7;
const GLOBAL: u64 = 1 << 8;
const NX: u64 = 1 << 63;
const ADDRESS: u64 = 0x000f_ffff_ffff_f000;

mod error {
    pub(super) const PRESENT: u32 = 1;
    pub(super) const WRITE: u32 = 2;
    pub(super) const USER: u32 = 4;
    pub(super) const RESERVED: u32 = 8;
    pub(super) const FETCH: u32 = 16;
}

/// Who makes an access, and how.
#[derive(Clone, Copy)]
pub(crate) struct Mode {
    pub(crate) access: Access,
    pub(crate) user: bool,
    /// SMAP does not apply: EFLAGS.AC is set and the access is explicit.
    pub(crate) smap_off: bool,
}

/// Where a linear address leads.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Translation {
    pub(crate) gpa: u64,
    pub(crate) private: bool,
    /// A later write needs no further walk: it is permitted and the dirty bit is set.
    pub(crate) write_ready: bool,
    pub(crate) global: bool,
    /// Size of the mapping minus one.
    pub(crate) span: u64,
}

/// A table page that `resolve` has granted the walker.
#[derive(Clone, Copy)]
pub(crate) struct TablePage {
    key: u64,
    host: *mut u8,
    writable: bool,
}

/// Table pages seen lately; dropped by [`Cpu::flush_tlb`].
pub(crate) struct WalkCache([TablePage; WALK_SLOTS]);

const WALK_SLOTS: usize = 128;
const NO_TABLE: TablePage = TablePage { key: u64::MAX, host: core::ptr::null_mut(), writable: false };

impl WalkCache {
    pub(crate) const EMPTY: Self = Self([NO_TABLE; WALK_SLOTS]);

    fn slot(&mut self, key: u64) -> &mut TablePage {
        &mut self.0[(key >> 12 ^ key >> 21) as usize % WALK_SLOTS]
    }
}

/// One level of one paging mode.
struct Level {
    shift: u32,
    index_bits: u32,
    large: bool,
    /// PAE's page-directory pointers carry no permissions.
    pointers_only: bool,
}

const fn level(shift: u32, index_bits: u32, large: bool, pointers_only: bool) -> Level {
    Level { shift, index_bits, large, pointers_only }
}

static LONG: [Level; 4] = [
    level(39, 9, false, false),
    level(30, 9, true, false),
    level(21, 9, true, false),
    level(12, 9, false, false),
];
static PAE: [Level; 3] = [level(30, 2, false, true), level(21, 9, true, false), level(12, 9, false, false)];
static LEGACY: [Level; 2] = [level(22, 10, false, false), level(12, 10, false, false)];
static LEGACY_PSE: [Level; 2] = [level(22, 10, true, false), level(12, 10, false, false)];

struct Visited {
    gpa: u64,
    entry: u64,
}

impl Cpu {
    /// The view of accesses whose page tables cannot say (AMD APM volume 2, 15.34.5; TDX module: shared bit clear).
    fn default_private(&self) -> bool {
        self.state.memory_encryption != MemoryEncryption::None
    }

    /// Splits an address field of a table entry, or CR3, into guest-physical address and view.
    fn split(&self, field: u64) -> (u64, bool) {
        match self.state.memory_encryption {
            MemoryEncryption::None => (field, false),
            MemoryEncryption::CBit(n) => (field & !(1 << (n & 63)), field >> (n & 63) & 1 != 0),
            MemoryEncryption::SharedBit(n) => (field & !(1 << (n & 63)), field >> (n & 63) & 1 == 0),
        }
    }

    fn page_fault(&mut self, linear: u64, mode: Mode, code: u32) -> Leave {
        let fetch = mode.access == Access::Execute
            && (self.state.efer & efer::NXE != 0 && self.state.cr4 & cr4::PAE != 0
                || self.state.cr4 & cr4::SMEP != 0);
        let code = code
            | if mode.access == Access::Write { error::WRITE } else { 0 }
            | if mode.user { error::USER } else { 0 }
            | if fetch { error::FETCH } else { 0 };
        self.fault(Exception::page_fault(code, linear))
    }

    /// Translates a linear address, setting accessed and dirty bits.
    pub(crate) fn walk(&mut self, linear: u64, mode: Mode) -> Result<Translation> {
        let s = &self.state;
        if s.cr0 & cr0::PG == 0 {
            let gpa = linear & 0xffff_ffff;
            let private = self.default_private();
            return Ok(Translation { gpa, private, write_ready: true, global: false, span: 0xfff });
        }
        let long = s.efer & efer::LMA != 0;
        if long && !canonical(linear) {
            return Err(self.non_canonical());
        }
        let levels: &'static [Level] = match (long, s.cr4 & cr4::PAE != 0, s.cr4 & cr4::PSE != 0) {
            (true, ..) => &LONG,
            (_, true, _) => &PAE,
            (_, _, true) => &LEGACY_PSE,
            _ => &LEGACY,
        };
        loop {
            if let Some(t) = self.walk_levels(linear, mode, levels)? {
                return Ok(t);
            }
        }
    }

    /// One attempt; `None` if another processor changed an entry under our hands.
    fn walk_levels(
        &mut self,
        linear: u64,
        mode: Mode,
        levels: &'static [Level],
    ) -> Result<Option<Translation>> {
        let long = levels.len() == 4;
        let wide = levels.len() > 2;
        let cr3 = match levels.len() {
            4 => self.state.cr3 & ADDRESS,
            3 => self.state.cr3 & 0xffff_ffe0,
            _ => self.state.cr3 & 0xffff_f000,
        };
        let (mut table, mut private) = if long { self.split(cr3) } else { (cr3, self.default_private()) };
        let mut visited: [Visited; 4] = [const { Visited { gpa: 0, entry: 0 } }; 4];
        let (mut allowed, mut no_execute) = (WRITABLE | USER, false);
        for (depth, level) in levels.iter().enumerate() {
            let index = linear >> level.shift & ((1 << level.index_bits) - 1);
            let gpa = table + index * if wide { 8 } else { 4 };
            let table_private = self.table_view(private);
            let entry = self.read_table(gpa, linear, table_private, wide)?;
            if entry & PRESENT == 0 {
                return Err(self.page_fault(linear, mode, 0));
            }
            let last = level.shift == 12 || level.large && entry & PAGE_SIZE != 0;
            if wide && entry & self.reserved(level, last) != 0 {
                return Err(self.page_fault(linear, mode, error::PRESENT | error::RESERVED));
            }
            if !level.pointers_only {
                allowed &= entry;
                no_execute |= wide && entry & NX != 0;
                visited[depth] = Visited { gpa: gpa | u64::from(table_private) << 63, entry };
            }
            (table, private) =
                if wide { self.split(entry & ADDRESS) } else { (entry & 0xffff_f000, private) };
            if last {
                self.check(linear, mode, allowed, no_execute)?;
                let set_dirty = mode.access == Access::Write;
                for (d, v) in visited.iter().enumerate().take(depth + 1) {
                    let bits = ACCESSED | if d == depth && set_dirty { DIRTY } else { 0 };
                    if v.entry != 0 && v.entry & bits != bits && !self.mark_table(v, bits, linear, wide)? {
                        return Ok(None);
                    }
                }
                let span = (1u64 << level.shift) - 1;
                let high = if !wide && level.shift == 22 { (entry >> 13 & 0xff) << 32 } else { 0 };
                let write = self.write_allowed(mode.user, allowed) && (set_dirty || entry & DIRTY != 0);
                return Ok(Some(Translation {
                    gpa: table & !span | high | linear & span,
                    private,
                    write_ready: write,
                    global: entry & GLOBAL != 0 && self.state.cr4 & cr4::PGE != 0,
                    span,
                }));
            }
        }
        // Every table of levels ends with a 4 KiB level, which is always last.
        Err(self.page_fault(linear, mode, error::RESERVED))
    }

    /// SEV: table walks are always private. TDX: as the entry's shared bit says.
    fn table_view(&self, private: bool) -> bool {
        match self.state.memory_encryption {
            MemoryEncryption::None => false,
            MemoryEncryption::CBit(_) => true,
            MemoryEncryption::SharedBit(_) => private,
        }
    }

    fn reserved(&self, level: &Level, last: bool) -> u64 {
        let width = u32::from(self.state.physical_address_bits.clamp(32, 52));
        let mut bits = ADDRESS & !((1 << width) - 1);
        if let MemoryEncryption::CBit(n) | MemoryEncryption::SharedBit(n) = self.state.memory_encryption {
            bits &= !(1 << (n & 63));
        }
        if self.state.efer & efer::NXE == 0 {
            bits |= NX;
        }
        if level.pointers_only {
            bits |= 0x1e6 | NX;
        } else if level.shift != 12 && !level.large {
            bits |= PAGE_SIZE;
        } else if last && level.shift != 12 {
            // Bit 12 is PAT in a large page.
            bits |= ((1 << level.shift) - 1) & ADDRESS & !(1 << 12);
        }
        bits
    }

    fn write_allowed(&self, user: bool, allowed: u64) -> bool {
        allowed & WRITABLE != 0 || !user && self.state.cr0 & cr0::WP == 0
    }

    fn check(&mut self, linear: u64, mode: Mode, allowed: u64, no_execute: bool) -> Result<()> {
        let user_page = allowed & USER != 0;
        let smep = self.state.cr4 & cr4::SMEP != 0;
        let smap = self.state.cr4 & cr4::SMAP != 0 && !mode.smap_off;
        let refused = mode.user && !user_page
            || match mode.access {
                Access::Execute => no_execute || smep && !mode.user && user_page,
                Access::Write => !self.write_allowed(mode.user, allowed) || smap && !mode.user && user_page,
                Access::Read => smap && !mode.user && user_page,
            };
        if refused { Err(self.page_fault(linear, mode, error::PRESENT)) } else { Ok(()) }
    }

    /// The host address of a table entry, or `None` for MMIO.
    fn table_entry(&mut self, gpa: u64, linear: u64, private: bool, write: bool) -> Result<Option<*mut u8>> {
        let key = gpa & !0xfff | u64::from(private);
        let cached = *self.walk_cache.slot(key);
        let page = if cached.key == key && (cached.writable || !write) {
            cached
        } else {
            let access = if write { Access::Write } else { Access::Read };
            let request = PageRequest { gpa, gva: linear, access, private, user: false, walk: true };
            match self.ask(|env, cpu| env.resolve(cpu, &request)) {
                Ok(page) => {
                    let page = TablePage { key, host: page.host, writable: page.writable || write };
                    *self.walk_cache.slot(key) = page;
                    page
                }
                Err(Stop::Mmio) => return Ok(None),
                Err(stop) => return Err(self.leave(stop)),
            }
        };
        Ok(Some(page.host.wrapping_add((gpa & 0xfff) as usize)))
    }

    fn read_table(&mut self, gpa: u64, linear: u64, private: bool, wide: bool) -> Result<u64> {
        match self.table_entry(gpa, linear, private, false)? {
            // SAFETY: `resolve` granted the page; entries are aligned and so stay inside it.
            Some(p) => Ok(unsafe { if wide { u64::load(p) } else { u64::from(u32::load(p)) } }),
            None => {
                let mut bytes = [0; 8];
                let n = if wide { 8 } else { 4 };
                self.env(|env, cpu| env.mmio_read(cpu, gpa, &mut bytes[..n]))?;
                Ok(u64::from_le_bytes(bytes))
            }
        }
    }

    fn mark_table(&mut self, v: &Visited, bits: u64, linear: u64, wide: bool) -> Result<bool> {
        let (gpa, private) = (v.gpa & !(1 << 63), v.gpa >> 63 != 0);
        match self.table_entry(gpa, linear, private, true)? {
            // SAFETY: `resolve` granted the page for writing; entries are aligned and so stay inside it.
            Some(p) => Ok(unsafe { mem::update_entry(p, v.entry, v.entry | bits, wide) }),
            None => Ok(true),
        }
    }
}
