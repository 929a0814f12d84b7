//! Kicks. A VMM stops a vCPU with a signal; in the kernel that alone makes KVM_RUN return EINTR. Here the
//! handler would run on the vCPU thread and return into the interpreter, so each handler that the client
//! installs is wrapped: the wrapper first tells the vCPU that this thread is running, then calls the client's.
//!
//! Memory faults. The TLB fill asks whether the client has the memory ([`crate::machine::memory::Slot::grant`]), but a
//! client may unmap, protect or truncate it later, and an access of the guest's is then a SIGSEGV or SIGBUS of this
//! process. The wrapper skips that one instruction and the vCPU's KVM_RUN is EFAULT from then on.

use std::cell::Cell;
use std::ffi::{c_int, c_void};
use std::sync::atomic::{AtomicBool, AtomicPtr, AtomicUsize, Ordering};

use super::{cpuid, real};
use crate::machine::vcpu::VcpuShared;
use crate::machine::vm::Vm;
use crate::uapi::user;

const SIGNALS: usize = 65;
static HANDLERS: [AtomicUsize; SIGNALS] = [const { AtomicUsize::new(0) }; SIGNALS];
/// Signals that are ours before they are the client's.
static KEPT: [AtomicBool; SIGNALS] = [const { AtomicBool::new(false) }; SIGNALS];

/// What this thread runs.
type Running = Option<(*const VcpuShared, *const Vm)>;

thread_local! {
    static RUNNING: Cell<Running> = const { Cell::new(None) };
}
/// Touched once so that the thread-local is never first initialised inside a handler.
static ANCHOR: AtomicPtr<c_void> = AtomicPtr::new(std::ptr::null_mut());

/// Marks this thread as being inside KVM_RUN of `vcpu` for the guard's life.
pub struct InKvmRun(());

impl InKvmRun {
    /// Enters. The references must outlive the guard, which the borrow at the one call site ensures.
    pub fn enter(vcpu: &VcpuShared, vm: &Vm) -> Self {
        RUNNING.with(|cell| {
            ANCHOR.store(cell.as_ptr().cast::<c_void>(), Ordering::Relaxed);
            cell.set(Some((vcpu, vm)));
        });
        Self(())
    }
}

impl Drop for InKvmRun {
    fn drop(&mut self) {
        RUNNING.with(|cell| cell.set(None));
    }
}

extern "C" fn trampoline(signal: c_int, info: *mut libc::siginfo_t, context: *mut c_void) {
    if cpuid::answer(signal, context) {
        return;
    }
    if matches!(signal, libc::SIGSEGV | libc::SIGBUS) && memory_fault(info, context).is_some() {
        return;
    }
    if let Some((vcpu, _)) = RUNNING.with(Cell::get) {
        // SAFETY: set only while `InKvmRun` of this very thread borrows the vCPU.
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
    } else if kept(signal) {
        // Not ours after all, and no handler of the client's: the instruction runs again, and the default ends the process.
        install(signal, libc::SIG_DFL);
    }
}

fn kept(signal: c_int) -> bool {
    usize::try_from(signal).ok().and_then(|s| KEPT.get(s)).is_some_and(|kept| kept.load(Ordering::Acquire))
}

/// A fault of this thread in the shared view of a memslot, while it runs a vCPU: skips the access, and tells the vCPU.
///
/// Guest memory is touched by single instructions whose results are plain values (`softkvm_cpu`'s `mem`), so one that
/// did nothing leaves nothing half done but what the guest sees. Nothing here allocates or waits.
fn memory_fault(info: *mut libc::siginfo_t, context: *mut c_void) -> Option<()> {
    let (vcpu, vm) = RUNNING.with(Cell::get)?;
    // SAFETY: the kernel passes both, for signals of its own with an address; sent ones have a code that is not positive.
    let (address, context) = unsafe {
        if (*info).si_code <= 0 {
            return None;
        }
        ((*info).si_addr() as u64, &mut *context.cast::<libc::ucontext_t>())
    };
    // SAFETY: as in `trampoline`.
    let slots = unsafe { (*vm).slots_now() }?;
    slots.iter().find(|slot| (slot.hva..slot.hva.saturating_add(slot.bytes)).contains(&address))?;
    let rip = &mut context.uc_mcontext.gregs[libc::REG_RIP as usize];
    let mut code = [0; 15];
    user::read_bytes(*rip as usize, &mut code).ok()?;
    *rip += softkvm_cpu::length_of_host_instruction(&code)? as i64;
    // SAFETY: as in `trampoline`.
    unsafe { (*vcpu).host_fault() };
    Some(())
}

fn install(signal: c_int, handler: libc::sighandler_t) -> bool {
    // SAFETY: all-zero is a valid sigaction: no flags, nothing blocked.
    let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
    action.sa_sigaction = handler;
    action.sa_flags = libc::SA_SIGINFO | libc::SA_NODEFER | libc::SA_ONSTACK;
    // SAFETY: the action is complete, and the handler the default or the trampoline.
    unsafe { real::sigaction()(signal, &raw const action, std::ptr::null_mut()) == 0 }
}

/// A signal is ours before it is the client's, whatever the client makes of it later.
fn keep(signal: c_int) -> bool {
    let Some(slot) = usize::try_from(signal).ok() else { return false };
    // SAFETY: all-zero is a valid sigaction, and asking changes nothing.
    let mut old: libc::sigaction = unsafe { std::mem::zeroed() };
    // SAFETY: as above.
    let asked = unsafe { real::sigaction()(signal, std::ptr::null(), &raw mut old) } == 0;
    KEPT[slot].store(true, Ordering::Release);
    if !asked || old.sa_sigaction == trampoline as *const () as usize {
        return asked;
    }
    if old.sa_sigaction > 1 {
        // Installed before this library was asked.
        HANDLERS[slot].store(old.sa_sigaction, Ordering::Release);
    }
    install(signal, trampoline as *const () as usize)
}

/// For `cpuid`, which answers instructions of the client's.
pub fn catch_illegal_instructions() -> bool {
    keep(libc::SIGILL)
}

/// Once a process has guests: see the module's description.
pub fn catch_memory_faults() {
    for signal in [libc::SIGSEGV, libc::SIGBUS] {
        if !kept(signal) {
            keep(signal);
        }
    }
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
        if !own || kept(signal) {
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
