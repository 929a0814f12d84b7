//! Calls to the host through the GHCB and its MSR.

use crate::{cpu, paging};
use cloister_firmware::ghcb::{self, Ghcb, Registers, Request};
use cloister_firmware::layout::{BOUNCE, GHCB, PAGE};
use cloister_firmware::{PortAccess, Stop, TerminationReason};

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

/// Takes bounce buffer and GHCB back. No call through the GHCB is possible afterwards.
pub fn stop() -> Result<(), Stop> {
    for page in (BOUNCE.start..BOUNCE.end).chain(GHCB.start..GHCB.end).step_by(PAGE as usize) {
        unshare(page)?;
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

fn unshare(page: u64) -> Result<(), Stop> {
    // SAFETY: the page is mapped; only raw pointers lead to shared pages, and none of them is used any more.
    unsafe {
        cpu::flush_page(page);
        paging::set_shared(page, false);
    }
    request(Request::MakePrivate(page))?;
    // SAFETY: the page is mapped privately.
    match unsafe { cpu::pvalidate(page, false, true) } {
        (0, false) => {
            // It holds what the host put there, before it was shared or now. SAFETY: nothing refers to the page.
            unsafe { cpu::clear(page, PAGE) };
            Ok(())
        }
        _ => Err(Stop::because(
            TerminationReason::PageValidationFailed,
            "a shared page could not be taken back",
        )),
    }
}

/// A port access as an NAE event. The answer is read once.
pub fn port(access: PortAccess) -> Result<u32, Stop> {
    let block = block();
    let send = ghcb::port_request(access);
    // SAFETY: the block is mapped shared since `start`; every access is a volatile one through a raw pointer, as the
    // host may write at any time.
    let answer = unsafe {
        (&raw mut (*block).rax).write_volatile(send.rax);
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
            exit_code: (&raw const (*block).exit_code).read_volatile(),
            exit_info_1: (&raw const (*block).exit_info_1).read_volatile(),
            exit_info_2: (&raw const (*block).exit_info_2).read_volatile(),
            valid: (&raw const (*block).valid).read_volatile(),
        }
    };
    ghcb::port_response(access, &answer)
}

/// Asks the host to end the guest.
pub fn terminate(reason: TerminationReason) {
    // SAFETY: the GHCB MSR exists; nothing follows that could be harmed.
    unsafe {
        cpu::wrmsr(ghcb::MSR, ghcb::terminate(reason));
        cpu::vmgexit();
    }
}
