//! Kicks. A VMM stops a vCPU with a signal; in the kernel that alone makes KVM_RUN return EINTR. Here the
//! handler would run on the vCPU thread and return into the interpreter, so each handler that the client
//! installs is wrapped: the wrapper first tells the vCPU that this thread is running, then calls the client's.

use std::cell::Cell;
use std::ffi::{c_int, c_void};
use std::sync::atomic::{AtomicBool, AtomicPtr, AtomicUsize, Ordering};

use super::{cpuid, real};
use crate::machine::vcpu::VcpuShared;

const SIGNALS: usize = 65;
static HANDLERS: [AtomicUsize; SIGNALS] = [const { AtomicUsize::new(0) }; SIGNALS];
/// [`cpuid`] answers instructions of the client's.
static ILLEGAL_INSTRUCTIONS: AtomicBool = AtomicBool::new(false);

thread_local! {
    static RUNNING: Cell<*const VcpuShared> = const { Cell::new(std::ptr::null()) };
}
/// Touched once so that the thread-local is never first initialised inside a handler.
static ANCHOR: AtomicPtr<c_void> = AtomicPtr::new(std::ptr::null_mut());

/// Marks this thread as being inside KVM_RUN of `vcpu` for the guard's life.
pub struct InKvmRun(());

impl InKvmRun {
    /// Enters. The reference must outlive the guard, which the borrow at the one call site ensures.
    pub fn enter(vcpu: &VcpuShared) -> Self {
        RUNNING.with(|cell| {
            ANCHOR.store(cell.as_ptr().cast::<c_void>(), Ordering::Relaxed);
            cell.set(vcpu);
        });
        Self(())
    }
}

impl Drop for InKvmRun {
    fn drop(&mut self) {
        RUNNING.with(|cell| cell.set(std::ptr::null()));
    }
}

extern "C" fn trampoline(signal: c_int, info: *mut libc::siginfo_t, context: *mut c_void) {
    if cpuid::answer(signal, context) {
        return;
    }
    let vcpu = RUNNING.with(Cell::get);
    if !vcpu.is_null() {
        // SAFETY: non-null only while `InKvmRun` of this very thread borrows the vCPU.
        unsafe { (*vcpu).signalled() };
    }
    let handler =
        usize::try_from(signal).ok().and_then(|s| HANDLERS.get(s)).map_or(0, |h| h.load(Ordering::Acquire));
    if handler > 1 {
        // SAFETY: the client registered this address as the handler of this signal. A one-argument handler ignores the
        // two further argument registers (System V ABI).
        unsafe {
            let function: extern "C" fn(c_int, *mut libc::siginfo_t, *mut c_void) =
                std::mem::transmute(handler);
            function(signal, info, context);
        }
    } else if signal == libc::SIGILL {
        // Not a CPUID, and no handler of the client's: the instruction runs again, and the default ends the process.
        install(signal, libc::SIG_DFL);
    }
}

fn install(signal: c_int, handler: libc::sighandler_t) -> bool {
    // SAFETY: all-zero is a valid sigaction: no flags, nothing blocked.
    let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
    action.sa_sigaction = handler;
    action.sa_flags = libc::SA_SIGINFO | libc::SA_NODEFER;
    // SAFETY: the action is complete, and the handler the default or the trampoline.
    unsafe { real::sigaction()(signal, &raw const action, std::ptr::null_mut()) == 0 }
}

/// SIGILL is ours before it is the client's, whatever the client makes of it later.
pub fn catch_illegal_instructions() -> bool {
    // SAFETY: all-zero is a valid sigaction, and asking changes nothing.
    let mut old: libc::sigaction = unsafe { std::mem::zeroed() };
    // SAFETY: as above.
    let asked = unsafe { real::sigaction()(libc::SIGILL, std::ptr::null(), &raw mut old) } == 0;
    ILLEGAL_INSTRUCTIONS.store(true, Ordering::Release);
    let ours = old.sa_sigaction == trampoline as *const () as usize;
    asked && (ours || install(libc::SIGILL, trampoline as *const () as usize))
}

/// `sigaction` as the client sees it.
///
/// # Safety
/// As sigaction(2).
pub unsafe fn sigaction(signal: c_int, new: *const libc::sigaction, old: *mut libc::sigaction) -> c_int {
    let slot = usize::try_from(signal).ok().and_then(|s| HANDLERS.get(s));
    let Some(slot) = slot else {
        // SAFETY: passed on unchanged.
        return unsafe { real::sigaction()(signal, new, old) };
    };
    let before = slot.load(Ordering::Acquire);
    let result = if new.is_null() {
        // SAFETY: passed on unchanged.
        unsafe { real::sigaction()(signal, new, old) }
    } else {
        // SAFETY: the client's pointer is readable by sigaction's contract.
        let mut wrapped = unsafe { *new };
        let handler = wrapped.sa_sigaction;
        let own = handler == libc::SIG_DFL || handler == libc::SIG_IGN;
        let kept = signal == libc::SIGILL && ILLEGAL_INSTRUCTIONS.load(Ordering::Acquire);
        if !own || kept {
            wrapped.sa_sigaction = trampoline as *const () as usize;
            wrapped.sa_flags |= libc::SA_SIGINFO;
            // Published before the trampoline can run for it.
            slot.store(handler, Ordering::Release);
        }
        // SAFETY: as the client's call, with our trampoline in the handler's place.
        let result = unsafe { real::sigaction()(signal, &raw const wrapped, old) };
        if result != 0 {
            slot.store(before, Ordering::Release);
        } else if own {
            slot.store(0, Ordering::Release);
        }
        result
    };
    // SAFETY: `old`, if given, was just written by the real call.
    if result == 0 && !old.is_null() && unsafe { (*old).sa_sigaction } == trampoline as *const () as usize {
        // SAFETY: as above.
        unsafe { (*old).sa_sigaction = before };
    }
    result
}
