//! Calls to the TDX module and, through it, to the host.

use crate::paging;
use cloister_firmware::layout::{BOUNCE, PAGE, Range};
use cloister_firmware::tdcall::{self, Registers, TRIES};
use cloister_firmware::{PageSize, PortAccess, Stop, TerminationReason, Validation};

unsafe extern "C" {
    /// Executes TDCALL with these registers, and leaves the answer in them.
    fn tdcall_with(registers: &mut Registers);
}

/// # Safety
/// The guest must be a TD, and what is called for must leave this code's memory alone.
unsafe fn call(mut registers: Registers) -> Registers {
    // SAFETY: the code loads and stores exactly these registers; the caller answers for the leaf.
    unsafe { tdcall_with(&mut registers) };
    registers
}

/// Makes the bounce buffer shared. It was never accepted, so there is nothing to give up.
pub fn start(shared_bit: u64) -> Result<(), Stop> {
    map_gpa(BOUNCE, shared_bit, shared_bit)?;
    for page in (BOUNCE.start..BOUNCE.end).step_by(PAGE as usize) {
        // SAFETY: only raw pointers lead to shared pages.
        unsafe { paging::set_shared(page, true) };
    }
    Ok(())
}

/// Makes shared pages private, to be accepted.
pub fn make_private(range: Range, shared_bit: u64) -> Result<(), Stop> {
    map_gpa(range, 0, shared_bit)?;
    for page in (range.start..range.end).step_by(PAGE as usize) {
        // SAFETY: the page is mapped, and no raw pointer to it is used any more.
        unsafe { paging::set_shared(page, false) };
    }
    Ok(())
}

/// Asks until the whole range is done; `bit` is `shared_bit` or, for private pages, 0.
fn map_gpa(range: Range, bit: u64, shared_bit: u64) -> Result<(), Stop> {
    let mut rest = range;
    for _ in 0..TRIES {
        // SAFETY: the pages are the bounce buffer's, to which only raw pointers lead.
        let answer = unsafe { call(tdcall::map_gpa(rest, bit)) };
        rest = tdcall::map_gpa_response(rest, shared_bit, &answer)?;
        if rest.is_empty() {
            return Ok(());
        }
    }
    Err(Stop::because(TerminationReason::PageStateChangeRefused, "host does not finish a page state change"))
}

/// TDG.MEM.PAGE.ACCEPT. The page becomes zero if it was not accepted yet, and stays as it is if it was.
pub fn accept(gpa: u64, size: PageSize) -> Validation {
    for _ in 0..TRIES {
        // SAFETY: only pages that nobody has used change.
        let answer = unsafe { call(tdcall::accept(gpa, size)) };
        if let Some(validation) = tdcall::accepted(size, &answer) {
            return validation;
        }
    }
    Validation::Failed(0)
}

/// TDG.MR.RTMR.EXTEND.
pub fn extend(rtmr: u8, digest: &[u8; 48]) -> Result<(), Stop> {
    /// The module wants the digest on a boundary of 64 bytes.
    #[repr(align(64))]
    struct Aligned([u8; 48]);
    let digest = Aligned(*digest);
    for _ in 0..TRIES {
        // SAFETY: the module reads the digest, which is mapped at its own physical address.
        let answer = unsafe { call(tdcall::extend(digest.0.as_ptr() as u64, rtmr)) };
        if let Some(result) = tdcall::extended(&answer) {
            return result;
        }
    }
    Err(Stop::because(TerminationReason::MeasurementFailed, "an RTMR stays busy"))
}

/// A port access.
pub fn port(access: PortAccess) -> Result<u32, Stop> {
    // SAFETY: the host can change the registers of the answer only, and shared memory.
    let answer = unsafe { call(tdcall::port_request(access)) };
    tdcall::port_response(access, &answer)
}

/// Asks the host to end the TD.
pub fn terminate(stop: &Stop) {
    // SAFETY: nothing follows that could be harmed.
    unsafe { call(tdcall::fatal(stop)) };
}
