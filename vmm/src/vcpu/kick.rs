//! Getting a vCPU thread out of KVM_RUN.

use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use kvm_ioctls::VcpuFd;

use crate::sys::signals;

/// A running vCPU thread, as others see it.
#[derive(Clone, Debug, Default)]
pub struct Kick(Arc<Mutex<Option<Target>>>);

#[derive(Debug)]
struct Target {
    thread: libc::pthread_t,
    immediate_exit: *const AtomicU8,
}

// SAFETY: the pointer is only followed under the lock and while `Registration` keeps the target alive.
unsafe impl Send for Target {}

/// Ends when the vCPU thread stops running its vCPU; afterwards kicks do nothing.
pub struct Registration<'a> {
    kick: &'a Kick,
}

impl Kick {
    /// Registers the calling thread, which runs `vcpu`. The caller must not drop `vcpu` before what this returns.
    pub fn register(&self, vcpu: &mut VcpuFd) -> Registration<'_> {
        let immediate_exit = (&raw mut vcpu.get_kvm_run().immediate_exit).cast::<AtomicU8>().cast_const();
        // SAFETY: pthread_self has no preconditions.
        let thread = unsafe { libc::pthread_self() };
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(Target { thread, immediate_exit });
        Registration { kick: self }
    }

    /// Makes the thread return from KVM_RUN, now or at its next entry.
    pub fn kick(&self) {
        if let Some(target) = &*self.0.lock().unwrap_or_else(PoisonError::into_inner) {
            // The flag first: a thread that is about to enter KVM sees it, one that is inside gets the signal.
            // SAFETY: the kvm_run mapping lives while the target is registered, and the kernel reads this byte only.
            unsafe { &*target.immediate_exit }.store(1, Ordering::Release);
            // SAFETY: the thread is registered, so it has not ended.
            unsafe { libc::pthread_kill(target.thread, signals::kick_signal()) };
        }
    }
}

impl Drop for Registration<'_> {
    fn drop(&mut self) {
        *self.kick.0.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }
}
