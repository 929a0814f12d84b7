//! Calls to the host through the GHCB and its MSR.

use crate::{cpu, paging};
use cloister_firmware::ghcb::{self, Ghcb, Registers, Request};
use cloister_firmware::layout::{BOUNCE, GHCB, PAGE, Range};
use cloister_firmware::{PageSize, PortAccess, Stop, TerminationReason, Validation};

fn block() -> *mut Ghcb {
    GHCB.start as *mut Ghcb
}

/// One request by the MSR protocol.
pub fn request(request: Request) -> Result<(), Stop> {
    // SAFETY: the GHCB MSR exists in every SEV-ES guest and holds no address while the protocol is in use.
    let response = unsafe {
        cpu::wrmsr(ghcb::MSR, request.encode());
        cpu::vmgexit();
        cpu::rdmsr(ghcb::MSR)
    };
    request.check(response)
}

/// Agrees on a protocol version and makes the GHCB, then the bounce buffer, shared.
pub fn start() -> Result<(), Stop> {
    request(Request::SevInfo)?;
    request(Request::Features)?;
    share(GHCB.start)?;
    // SAFETY: the page is this code's alone.
    unsafe { block().write_bytes(0, 1) };
    request(Request::Register(GHCB.start))?;
    for page in (BOUNCE.start..BOUNCE.end).step_by(PAGE as usize) {
        share(page)?;
    }
    Ok(())
}

/// The page was never validated, so there is nothing to rescind before it becomes shared.
fn share(page: u64) -> Result<(), Stop> {
    request(Request::MakeShared(page))?;
    // SAFETY: only raw pointers lead to shared pages.
    unsafe { paging::set_shared(page, true) };
    Ok(())
}

/// Makes shared pages private. Without the GHCB's own page no call through it is possible any more.
pub fn make_private(range: Range) -> Result<(), Stop> {
    for page in (range.start..range.end).step_by(PAGE as usize) {
        // SAFETY: the page is mapped; only raw pointers lead to shared pages, and none of them is used any more.
        unsafe {
            cpu::flush_page(page);
            paging::set_shared(page, false);
        }
        request(Request::MakePrivate(page))?;
    }
    Ok(())
}

/// PVALIDATE of a page that is mapped privately at this address.
#[inline(never)]
pub fn validate(address: u64, size: PageSize) -> Validation {
    const SIZE_MISMATCH: u32 = 6;
    // SAFETY: nothing uses a page that is not validated yet.
    match unsafe { cpu::pvalidate(address, size == PageSize::Large, true) } {
        (0, false) => {
            // SAFETY: the page is mapped, and it is valid now.
            unsafe { cpu::evict_stale_lines(address, size.bytes()) };
            Validation::Changed
        }
        (0, true) => Validation::Unchanged,
        (SIZE_MISMATCH, _) => Validation::SizeMismatch,
        (code, _) => Validation::Failed(code),
    }
}

/// A port access as an NAE event.
pub fn port(access: PortAccess) -> Result<u32, Stop> {
    ghcb::port_response(access, &call(&ghcb::port_request(access))?)
}

/// WRMSR as an NAE event.
pub fn write_msr(index: u32, value: u64) -> Result<(), Stop> {
    ghcb::msr_write_response(&call(&ghcb::msr_write_request(index, value))?)
}

/// One call through the GHCB. The answer is read once.
#[inline(never)]
fn call(send: &Registers) -> Result<Registers, Stop> {
    // It is in use from when it is mapped as shared until it is taken back.
    if !paging::is_shared(GHCB.start) {
        return Err(Stop::because(TerminationReason::GhcbProtocol, "no GHCB"));
    }
    let block = block();
    // SAFETY: the block is mapped shared since `start`; every access is a volatile one through a raw pointer, as the
    // host may write at any time.
    Ok(unsafe {
        (&raw mut (*block).rax).write_volatile(send.rax);
        (&raw mut (*block).rcx).write_volatile(send.rcx);
        (&raw mut (*block).rdx).write_volatile(send.rdx);
        (&raw mut (*block).exit_code).write_volatile(send.exit_code);
        (&raw mut (*block).exit_info_1).write_volatile(send.exit_info_1);
        (&raw mut (*block).exit_info_2).write_volatile(send.exit_info_2);
        (&raw mut (*block).valid).write_volatile(send.valid);
        (&raw mut (*block).version).write_volatile(ghcb::VERSION as u16);
        (&raw mut (*block).usage).write_volatile(0);
        cpu::wrmsr(ghcb::MSR, GHCB.start);
        cpu::vmgexit();
        Registers {
            rax: (&raw const (*block).rax).read_volatile(),
            rcx: (&raw const (*block).rcx).read_volatile(),
            rdx: (&raw const (*block).rdx).read_volatile(),
            exit_code: (&raw const (*block).exit_code).read_volatile(),
            exit_info_1: (&raw const (*block).exit_info_1).read_volatile(),
            exit_info_2: (&raw const (*block).exit_info_2).read_volatile(),
            valid: (&raw const (*block).valid).read_volatile(),
        }
    })
}

/// Asks the host to end the guest.
pub fn terminate(reason: TerminationReason) {
    // SAFETY: the GHCB MSR exists; nothing follows that could be harmed.
    unsafe {
        cpu::wrmsr(ghcb::MSR, ghcb::terminate(reason));
        cpu::vmgexit();
    }
}
