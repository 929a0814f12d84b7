//! Single instructions. Each function is exactly what its name says.

use core::arch::asm;

/// OUT, 8 bits.
///
/// # Safety
/// The device behind the port must not break memory safety, and the guest must not be an SEV-ES one.
pub unsafe fn out8(port: u16, value: u8) {
    // SAFETY: the caller answers for the device.
    unsafe { asm!("out dx, al", in("dx") port, in("al") value, options(nostack, preserves_flags)) }
}

/// OUT, 16 bits.
///
/// # Safety
/// As [`out8`].
pub unsafe fn out16(port: u16, value: u16) {
    // SAFETY: the caller answers for the device.
    unsafe { asm!("out dx, ax", in("dx") port, in("ax") value, options(nostack, preserves_flags)) }
}

/// OUT, 32 bits.
///
/// # Safety
/// As [`out8`].
pub unsafe fn out32(port: u16, value: u32) {
    // SAFETY: the caller answers for the device.
    unsafe { asm!("out dx, eax", in("dx") port, in("eax") value, options(nostack, preserves_flags)) }
}

/// IN, 8 bits.
///
/// # Safety
/// As [`out8`].
pub unsafe fn in8(port: u16) -> u8 {
    let value;
    // SAFETY: the caller answers for the device.
    unsafe { asm!("in al, dx", in("dx") port, out("al") value, options(nostack, preserves_flags)) }
    value
}

/// IN, 16 bits.
///
/// # Safety
/// As [`out8`].
pub unsafe fn in16(port: u16) -> u16 {
    let value;
    // SAFETY: the caller answers for the device.
    unsafe { asm!("in ax, dx", in("dx") port, out("ax") value, options(nostack, preserves_flags)) }
    value
}

/// IN, 32 bits.
///
/// # Safety
/// As [`out8`].
pub unsafe fn in32(port: u16) -> u32 {
    let value;
    // SAFETY: the caller answers for the device.
    unsafe { asm!("in eax, dx", in("dx") port, out("eax") value, options(nostack, preserves_flags)) }
    value
}

/// RDMSR.
///
/// # Safety
/// The MSR must exist.
pub unsafe fn rdmsr(msr: u32) -> u64 {
    let (low, high): (u32, u32);
    // SAFETY: the caller knows that the MSR exists; reading it changes nothing.
    unsafe {
        asm!("rdmsr", in("ecx") msr, out("eax") low, out("edx") high, options(nostack, preserves_flags))
    }
    u64::from(high) << 32 | u64::from(low)
}

/// WRMSR.
///
/// # Safety
/// The MSR must exist, and the value must not change how memory is addressed.
pub unsafe fn wrmsr(msr: u32, value: u64) {
    let (low, high) = (value as u32, (value >> 32) as u32);
    // SAFETY: the caller answers for MSR and value.
    unsafe { asm!("wrmsr", in("ecx") msr, in("eax") low, in("edx") high, options(nostack, preserves_flags)) }
}

/// VMGEXIT: hands the GHCB, or the request in its MSR, to the host.
///
/// # Safety
/// The guest must be an SEV-ES one, and whatever the host was asked to do must leave this code's memory alone.
pub unsafe fn vmgexit() {
    // SAFETY: the host can change shared memory and the MSR only; the asm is a barrier for memory.
    unsafe { asm!("rep; vmmcall", options(nostack)) }
}

/// PVALIDATE: the return code, and whether nothing changed.
///
/// # Safety
/// The page must be mapped privately, and if it is rescinded nothing may use it as private memory any more.
pub unsafe fn pvalidate(address: u64, large: bool, validate: bool) -> (u32, bool) {
    let (code, unchanged): (u64, u8);
    // SAFETY: the caller answers for the page. The instruction has no mnemonic that every assembler knows.
    unsafe {
        asm!(
            ".byte 0xf2, 0x0f, 0x01, 0xff",
            "setc {unchanged}",
            unchanged = out(reg_byte) unchanged,
            inout("rax") address => code,
            in("ecx") u32::from(large),
            in("edx") u32::from(validate),
            options(nostack)
        );
    }
    (code as u32, unchanged != 0)
}

/// Reads the first and the last byte of each 4 KiB page of a range that was validated just now. Where CPUID
/// 0x8000001F EBX[31] (COHERENCY_SFW_NO) is clear, the caches may still hold lines of such a page from when it was not the
/// guest's; a read of these two with the guest's key evicts all of them (CVE-2025-38560, and what Linux does about it).
/// It is done everywhere, before anything is written there: a store need not read the line first.
///
/// # Safety
/// The range must be mapped privately and validated.
pub unsafe fn evict_stale_lines(address: u64, bytes: u64) {
    for page in (address..address + bytes).step_by(4096) {
        // SAFETY: both bytes are the page's; what they hold is not used.
        unsafe {
            (page as *const u8).read_volatile();
            ((page + 4095) as *const u8).read_volatile();
        }
    }
}

/// Reloads CR3, which drops every translation: no page is global.
///
/// # Safety
/// The page tables must map everything that is in use.
pub unsafe fn flush_translations() {
    // SAFETY: the caller answers for the page tables.
    unsafe { asm!("mov {cr3}, cr3", "mov cr3, {cr3}", cr3 = out(reg) _, options(nostack, preserves_flags)) }
}

/// Writes a page's cache lines back: a page that changes between private and shared must not be cached as the other.
///
/// # Safety
/// The page must be mapped.
pub unsafe fn flush_page(address: u64) {
    for line in (address..address + 4096).step_by(64) {
        // SAFETY: flushing a line changes no value.
        unsafe { asm!("clflush [{line}]", line = in(reg) line, options(nostack, preserves_flags)) }
    }
}

/// Zeroes memory in the widest steps that a string instruction has.
///
/// # Safety
/// The range must be mapped, of whole quadwords, and nothing may refer to it.
pub unsafe fn clear(address: u64, bytes: u64) {
    // SAFETY: the caller vouches for the range; the direction flag is clear by the ABI.
    unsafe {
        asm!("rep stosq", inout("rcx") bytes / 8 => _, inout("rdi") address => _, in("rax") 0_u64,
             options(nostack, preserves_flags));
    }
}

/// Stops this processor for good. Whatever interrupts it ends the guest.
pub fn halt() -> ! {
    // SAFETY: nothing follows.
    unsafe { halt64() }
}

unsafe extern "C" {
    /// See `reset.s`.
    fn halt64() -> !;
}
