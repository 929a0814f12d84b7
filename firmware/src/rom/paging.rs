//! The page tables that the reset code built and this code goes on changing, in place at their fixed addresses.

use crate::cpu;
use cloister_firmware::Guest;
use cloister_firmware::layout::{GIB, LARGE_PAGE, PAGE, PD_1, PD_2, PD_WINDOW, PDPT, PML4, PT_LOW, TD_GPAW};

const PRESENT_WRITABLE: u64 = 0b11;
const LARGE: u64 = 1 << 7;
const ENTRIES: u64 = 512;
/// The C-bit is one of these (the reset code accepts no other).
const C_BIT_RANGE: u64 = 0x000F_FFFF_0000_0000;

fn entry(table: u64, index: u64) -> *mut u64 {
    (table + index * 8) as *mut u64
}

/// What the reset code found out.
pub fn guest() -> Guest {
    // SAFETY: the reset code wrote both before it turned paging on.
    let (gpaw, first) =
        unsafe { ((TD_GPAW as *const u32).read_volatile(), entry(PML4, 0).read_volatile() & C_BIT_RANGE) };
    match (gpaw, first) {
        (0, 0) => Guest::Plain,
        (0, c_bit) => Guest::Snp { c_bit: c_bit.trailing_zeros() },
        (gpaw, _) => Guest::Td { gpaw },
    }
}

fn private_mask() -> u64 {
    guest().private_mask()
}

/// Whether a page below 2 MiB is mapped as shared.
pub fn is_shared(page: u64) -> bool {
    // SAFETY: the table is there since reset.
    let value = unsafe { entry(PT_LOW, page / PAGE).read_volatile() };
    let guest = guest();
    guest.is_confidential() && value & (guest.private_mask() | guest.shared_mask()) == guest.shared_mask()
}

/// Maps a page below 2 MiB as shared or private.
///
/// # Safety
/// No reference to the page may exist.
pub unsafe fn set_shared(page: u64, shared: bool) {
    let guest = guest();
    let value = page | PRESENT_WRITABLE | if shared { guest.shared_mask() } else { guest.private_mask() };
    // SAFETY: the table is there since reset, and the page stays mapped at the same address.
    unsafe {
        entry(PT_LOW, page / PAGE).write_volatile(value);
        cpu::flush_translations();
    }
}

/// Maps page 0, which is the stack's guard as long as it is not there, at one of two addresses: where its owner may fill
/// it, which is the address of the page that is never accepted, or at its own for the kernel.
pub fn map_page_0(at: u64) {
    set_page_0(at, PRESENT_WRITABLE | private_mask());
}

/// Unmaps it there.
pub fn unmap_page_0(at: u64) {
    set_page_0(at, 0);
}

fn set_page_0(at: u64, value: u64) {
    // SAFETY: nothing lives in page 0, and nothing uses either address.
    unsafe {
        entry(PT_LOW, at / PAGE).write_volatile(value);
        cpu::flush_translations();
    }
}

/// Maps a GiB beyond those that the reset code mapped; `window` remembers which one the sliding directory maps.
///
/// # Safety
/// The directories' pages must be validated, and nothing may refer to memory in the GiB that the window leaves.
pub unsafe fn map(gib: u64, window: &mut Option<u64>) {
    let directory = match gib {
        0 | 3 => return,
        1 => PD_1,
        2 => PD_2,
        _ => PD_WINDOW,
    };
    // SAFETY: the caller vouches for the directory's page; entries are written whole before they are hooked in.
    unsafe {
        if directory == PD_WINDOW
            && let Some(old) = window.replace(gib)
        {
            entry(PDPT, old).write_volatile(0);
        }
        for index in 0..ENTRIES {
            let base = gib * GIB + index * LARGE_PAGE;
            entry(directory, index).write_volatile(base | LARGE | PRESENT_WRITABLE | private_mask());
        }
        entry(PDPT, gib).write_volatile(directory | PRESENT_WRITABLE | private_mask());
        cpu::flush_translations();
    }
}
