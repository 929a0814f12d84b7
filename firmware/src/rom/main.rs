//! The ROM: what the library decides, done to the real machine.
//!
//! No mutable statics (there is no RAM behind them), no allocation, and under SEV-SNP and TDX no instruction that a host
//! may intercept: all I/O is an explicit call, through the GHCB or by TDCALL.
#![no_std]
#![no_main]

mod cpu;
mod memory;
mod paging;
mod platform;
mod tdcall;
mod vmgexit;

use cloister_firmware::{Stop, TerminationReason, boot, console, layout, metadata};
use platform::Platform;

// Feature detection would execute CPUID (a #VC) and write to a static (there is no RAM for statics).
#[cfg(not(sha2_backend = "soft"))]
compile_error!("the ROM is built with --cfg sha2_backend=\"soft\": use cargo xtask firmware");

core::arch::global_asm!(
    include_str!("reset.s"),
    reset_page = const layout::RESET_PAGE.start,
    reset_vector = const layout::RESET_VECTOR,
    stack = const layout::STACK.start,
    stack_top = const layout::STACK.end,
    cpuid_page = const layout::CPUID.start,
    secrets_page = const layout::SECRETS.start,
    pml4 = const layout::PML4,
    pdpt = const layout::PDPT,
    pd_0 = const layout::PD_0,
    pd_3 = const layout::PD_3,
    pt_low = const layout::PT_LOW,
    page_tables_end = const layout::SEC_MEM.end,
    ap_entry = const layout::AP_ENTRY,
    td_gpaw = const layout::TD_GPAW,
    ap_mem = const layout::AP_MEM.start,
    ap_mem_end = const layout::AP_MEM.end,
    ap_tables = const layout::AP_TABLES.start,
    mailbox = const layout::MAILBOX.start,
    cpuid_refused = const TerminationReason::CpuidPageRefused.code(),
    options(att_syntax),
);

#[unsafe(link_section = ".guid")]
#[used]
static GUID_TABLE: metadata::GuidTable = metadata::guid_table(layout::AP_ENTRY as u32);

/// Called by the reset code, once, on the boot processor.
#[unsafe(no_mangle)]
extern "C" fn rom_main() -> ! {
    let mut platform = match Platform::start() {
        Ok(platform) => platform,
        // Without a GHCB there is no console either.
        Err((mut platform, stop)) => platform.terminate(&stop),
    };
    match boot(&mut platform) {
        Ok(handoff) => platform.enter(handoff),
        Err(stop) => give_up(&mut platform, stop),
    }
}

/// Called by the exception stubs. What was running is not resumed.
#[unsafe(no_mangle)]
extern "C" fn rom_exception(vector: u64, error: u64, rip: u64, address: u64) -> ! {
    let mut platform = Platform::resume();
    let stop = Stop::because(TerminationReason::UnexpectedException, "unexpected exception");
    if platform.is_first_failure() {
        for (what, value) in
            [("exception", vector), ("error code", error), ("instruction", rip), ("address", address)]
        {
            console::line_hex(&mut platform, what, value);
        }
        give_up(&mut platform, stop);
    }
    platform.terminate(&stop)
}

fn give_up(platform: &mut Platform, stop: Stop) -> ! {
    console::line(platform, stop.detail);
    console::line_hex(platform, "stopped, reason", u64::from(stop.reason.code()));
    platform.terminate(&stop)
}

/// Nothing that the library does can panic on what the host says; should this be wrong, it ends the guest.
#[panic_handler]
fn panic(info: &core::panic::PanicInfo) -> ! {
    let mut platform = Platform::resume();
    let line = info.location().map_or(0, |location| location.line());
    if platform.is_first_failure() {
        console::line_hex(&mut platform, "internal error at line", u64::from(line));
    }
    platform.terminate(&Stop::because(TerminationReason::UnexpectedException, "internal error"))
}
