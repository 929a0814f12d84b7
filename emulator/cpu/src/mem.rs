//! Raw access to guest memory through host pointers.
//!
//! No Rust reference to guest memory ever exists: other virtual processors and the VMM write it at any time.
//! Each access is one host instruction, so that the guest sees the host's own memory model (TSO, and atomicity
//! of aligned accesses).

use core::arch::asm;
use core::fmt::Debug;

/// An operand width.
pub(crate) trait Width: Copy + Eq + Ord + Debug + 'static {
    /// Size in bytes.
    const BYTES: u64;
    /// Truncates.
    fn truncate(v: u64) -> Self;
    /// Zero-extends.
    fn zero_extend(self) -> u64;
    /// Sign-extends.
    fn sign_extend(self) -> u64;
    /// Reads a general register; byte registers AH, CH, DH, BH are `index | 0x80`.
    fn get(gpr: &[u64; 16], r: u8) -> Self;
    /// Writes a general register with the architecture's merging and zero-extension.
    fn set(gpr: &mut [u64; 16], r: u8, v: Self);
    /// Loads.
    ///
    /// # Safety
    /// `p` must be readable for the width.
    unsafe fn load(p: *const u8) -> Self;
    /// Stores.
    ///
    /// # Safety
    /// `p` must be writable for the width.
    unsafe fn store(p: *mut u8, v: Self);
    /// Atomic compare and exchange, any alignment; returns what was there.
    ///
    /// # Safety
    /// `p` must be writable for the width.
    unsafe fn compare_exchange(p: *mut u8, old: Self, new: Self) -> Self;
}

macro_rules! memory_ops {
    ($class:ident, $m:literal, $acc:tt) => {
        #[inline(always)]
        unsafe fn load(p: *const u8) -> Self {
            let v;
            // SAFETY: the caller promises that `p` is readable.
            unsafe {
                asm!(concat!("mov {v", $m, "}, [{p}]"), v = out($class) v, p = in(reg) p,
                    options(nostack, preserves_flags, readonly));
            }
            v
        }

        #[inline(always)]
        unsafe fn store(p: *mut u8, v: Self) {
            // SAFETY: the caller promises that `p` is writable.
            unsafe {
                asm!(concat!("mov [{p}], {v", $m, "}"), v = in($class) v, p = in(reg) p,
                    options(nostack, preserves_flags));
            }
        }

        #[inline(always)]
        unsafe fn compare_exchange(p: *mut u8, old: Self, new: Self) -> Self {
            let mut acc = old;
            // SAFETY: the caller promises that `p` is writable.
            unsafe {
                asm!(concat!("lock cmpxchg [{p}], {v", $m, "}"), v = in($class) new, p = in(reg) p,
                    inout($acc) acc, options(nostack));
            }
            acc
        }
    };
}

macro_rules! width {
    ($t:ty, $signed:ty, $class:ident, $m:literal, $acc:tt, $get:expr, $set:expr) => {
        impl Width for $t {
            const BYTES: u64 = size_of::<$t>() as u64;

            #[inline(always)]
            fn truncate(v: u64) -> Self {
                v as Self
            }

            #[inline(always)]
            fn zero_extend(self) -> u64 {
                self as u64
            }

            #[inline(always)]
            fn sign_extend(self) -> u64 {
                self as $signed as i64 as u64
            }

            #[inline(always)]
            fn get(gpr: &[u64; 16], r: u8) -> Self {
                let f: fn(&[u64; 16], u8) -> Self = $get;
                f(gpr, r)
            }

            #[inline(always)]
            fn set(gpr: &mut [u64; 16], r: u8, v: Self) {
                let f: fn(&mut [u64; 16], u8, Self) = $set;
                f(gpr, r, v)
            }

            memory_ops!($class, $m, $acc);
        }
    };
}

width!(u8, i8, reg_byte, "", "al", |g, r| (g[usize::from(r & 15)] >> (r >> 4 & 8)) as u8, |g, r, v| {
    let shift = r >> 4 & 8;
    let slot = &mut g[usize::from(r & 15)];
    *slot = *slot & !(0xff << shift) | u64::from(v) << shift;
});
width!(u16, i16, reg, ":x", "ax", |g, r| g[usize::from(r & 15)] as u16, |g, r, v| {
    let slot = &mut g[usize::from(r & 15)];
    *slot = *slot & !0xffff | u64::from(v);
});
width!(u32, i32, reg, ":e", "eax", |g, r| g[usize::from(r & 15)] as u32, |g, r, v| {
    g[usize::from(r & 15)] = u64::from(v);
});
width!(u64, i64, reg, ":r", "rax", |g, r| g[usize::from(r & 15)], |g, r, v| g[usize::from(r & 15)] = v);

/// CMPXCHG16B. Returns what was there.
///
/// # Safety
/// `p` must be writable for 16 bytes and 16-byte aligned.
pub(crate) unsafe fn compare_exchange_16(p: *mut u8, old: u128, new: u128) -> u128 {
    let (mut lo, mut hi) = (old as u64, (old >> 64) as u64);
    // SAFETY: the caller promises the access. RBX is reserved by LLVM, hence the exchange around it.
    unsafe {
        asm!("xchg {b}, rbx", "lock cmpxchg16b [rdi]", "mov rbx, {b}",
            b = inout(reg) new as u64 => _, in("rdi") p,
            in("rcx") (new >> 64) as u64, inout("rax") lo, inout("rdx") hi, options(nostack));
    }
    u128::from(hi) << 64 | u128::from(lo)
}

/// Copies guest memory to or from a buffer of ours, or between non-overlapping guest ranges.
///
/// # Safety
/// Both ranges must be accessible for `n` bytes.
#[inline(always)]
pub(crate) unsafe fn copy(to: *mut u8, from: *const u8, n: usize) {
    // SAFETY: the caller promises the ranges. Byte-wise forward semantics are REP MOVSB's own.
    unsafe {
        asm!("rep movsb", inout("rdi") to => _, inout("rsi") from => _, inout("rcx") n => _,
            options(nostack, preserves_flags));
    }
}

/// Fills guest memory with a repeated element.
///
/// # Safety
/// `to` must be writable for `n` elements.
#[inline(always)]
pub(crate) unsafe fn fill<W: Width>(to: *mut u8, v: W, n: usize) {
    let v = v.zero_extend();
    // SAFETY: the caller promises the range.
    unsafe {
        match W::BYTES {
            1 => asm!("rep stosb", inout("rdi") to => _, inout("rcx") n => _, in("al") v as u8,
                options(nostack, preserves_flags)),
            2 => asm!("rep stosw", inout("rdi") to => _, inout("rcx") n => _, in("ax") v as u16,
                options(nostack, preserves_flags)),
            4 => asm!("rep stosd", inout("rdi") to => _, inout("rcx") n => _, in("eax") v as u32,
                options(nostack, preserves_flags)),
            _ => asm!("rep stosq", inout("rdi") to => _, inout("rcx") n => _, in("rax") v,
                options(nostack, preserves_flags)),
        }
    }
}

/// Atomically sets bits of a page-table entry if it still holds `old`.
///
/// # Safety
/// `p` must be writable for 8 bytes (`wide`) or 4.
pub(crate) unsafe fn update_entry(p: *mut u8, old: u64, new: u64, wide: bool) -> bool {
    // SAFETY: the caller promises the access.
    unsafe {
        if wide {
            u64::compare_exchange(p, old, new) == old
        } else {
            u32::compare_exchange(p, old as u32, new as u32) == old as u32
        }
    }
}

/// Compares guest memory with bytes of ours.
///
/// # Safety
/// `p` must be readable for `bytes.len()` bytes.
pub(crate) unsafe fn equal(p: *const u8, bytes: &[u8]) -> bool {
    let mut words = bytes.chunks_exact(8);
    let mut at = p;
    for word in &mut words {
        // SAFETY: inside the range that the caller promises.
        if unsafe { u64::load(at) } != u64::from_le_bytes(word.try_into().unwrap_or_default()) {
            return false;
        }
        at = at.wrapping_add(8);
    }
    for &byte in words.remainder() {
        // SAFETY: as above.
        if unsafe { u8::load(at) } != byte {
            return false;
        }
        at = at.wrapping_add(1);
    }
    true
}

/// Copies elements in order, with REP MOVS's own semantics for overlapping ranges.
///
/// # Safety
/// Both ranges must be accessible for `n` elements.
pub(crate) unsafe fn copy_elements<W: Width>(to: *mut u8, from: *const u8, n: usize) {
    // SAFETY: the caller promises the ranges.
    unsafe {
        match W::BYTES {
            1 => asm!("rep movsb", inout("rdi") to => _, inout("rsi") from => _, inout("rcx") n => _,
                options(nostack, preserves_flags)),
            2 => asm!("rep movsw", inout("rdi") to => _, inout("rsi") from => _, inout("rcx") n => _,
                options(nostack, preserves_flags)),
            4 => asm!("rep movsd", inout("rdi") to => _, inout("rsi") from => _, inout("rcx") n => _,
                options(nostack, preserves_flags)),
            _ => asm!("rep movsq", inout("rdi") to => _, inout("rsi") from => _, inout("rcx") n => _,
                options(nostack, preserves_flags)),
        }
    }
}

/// Loads 16 bytes.
///
/// # Safety
/// `p` must be readable for 16 bytes.
#[inline(always)]
pub(crate) unsafe fn load_16(p: *const u8) -> [u8; 16] {
    let mut v = [0; 16];
    // SAFETY: the caller promises that `p` is readable; `v` is ours.
    unsafe {
        asm!("movups {x}, [{p}]", "movups [{v}], {x}", x = out(xmm_reg) _, p = in(reg) p, v = in(reg) v.as_mut_ptr(),
            options(nostack, preserves_flags));
    }
    v
}

/// Stores 16 bytes.
///
/// # Safety
/// `p` must be writable and `v` readable for 16 bytes.
#[inline(always)]
pub(crate) unsafe fn store_16(p: *mut u8, v: *const u8) {
    // SAFETY: the caller promises both.
    unsafe {
        asm!("movups {x}, [{v}]", "movups [{p}], {x}", x = out(xmm_reg) _, p = in(reg) p, v = in(reg) v,
            options(nostack, preserves_flags));
    }
}
