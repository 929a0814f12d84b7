//! The threads that run vCPUs.

use std::collections::BTreeSet;
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::Duration;

use kvm_ioctls::VcpuFd;
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EventFd};

use super::exits::{Handled, Handler};
use super::kick::Kick;
use crate::outcome::Outcome;

/// What the threads share: whether to go on, how the guest ended, and which of them are through.
#[derive(Debug)]
struct Shared {
    stop: AtomicBool,
    outcome: Mutex<Option<Outcome>>,
    ended: EventFd,
    /// Threads that run no more, by their vCPU's number.
    through: Mutex<BTreeSet<usize>>,
    one_more: Condvar,
}

impl Shared {
    /// Records how the guest ended; the first one counts.
    fn end(&self, outcome: Outcome) {
        self.outcome.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(outcome);
        self.stop.store(true, Ordering::Release);
        // A full eventfd is readable, which is all that is wanted.
        let _ = self.ended.write(1);
    }
}

/// Says that a thread is through, also where it panicked, which ends the guest.
struct Through {
    shared: Arc<Shared>,
    index: usize,
}

impl Drop for Through {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.shared.end(Outcome::Failed(format!("the thread of vCPU {} died", self.index)));
        }
        self.shared.through.lock().unwrap_or_else(PoisonError::into_inner).insert(self.index);
        self.shared.one_more.notify_all();
    }
}

/// All vCPUs of a guest.
pub struct VcpuThreads {
    shared: Arc<Shared>,
    kicks: Vec<Kick>,
}

impl VcpuThreads {
    /// Starts one thread per vCPU.
    pub fn start(vcpus: Vec<VcpuFd>, handler: &Arc<Handler>) -> io::Result<Self> {
        let shared = Arc::new(Shared {
            stop: AtomicBool::new(false),
            outcome: Mutex::new(None),
            ended: EventFd::new(EFD_CLOEXEC)?,
            through: Mutex::new(BTreeSet::new()),
            one_more: Condvar::new(),
        });
        let mut all = Self { shared, kicks: Vec::new() };
        for (index, mut vcpu) in vcpus.into_iter().enumerate() {
            let (kick, handler) = (Kick::default(), handler.clone());
            let through = Through { shared: all.shared.clone(), index };
            let registered = kick.clone();
            let body = move || {
                let shared = &through.shared;
                let registration = registered.register(&mut vcpu);
                let outcome = run(&mut vcpu, index as u32, shared, &handler);
                drop(registration);
                if let Some(outcome) = outcome {
                    shared.end(outcome);
                }
            };
            // Threads that started before one that could not are told to stop.
            let spawned = std::thread::Builder::new().name(format!("vcpu{index}")).spawn(body);
            if let Err(error) = spawned {
                all.stop(Outcome::Failed("a vCPU thread could not start".into()));
                return Err(error);
            }
            all.kicks.push(kick);
        }
        Ok(all)
    }

    /// Readable once the guest has ended.
    pub fn ended(&self) -> &EventFd {
        &self.shared.ended
    }

    /// Ends the guest from outside, if it has not ended yet; gets every thread out of KVM. Returns how it ended.
    pub fn stop(&self, outcome: Outcome) -> Outcome {
        self.shared.end(outcome.clone());
        self.kicks.iter().for_each(Kick::kick);
        self.shared.outcome.lock().unwrap_or_else(PoisonError::into_inner).clone().unwrap_or(outcome)
    }

    /// Waits for the threads of a guest that has ended, at most for `time`; the numbers of those that hang.
    pub fn wait(&self, time: Duration) -> Vec<usize> {
        let through = self.shared.through.lock().unwrap_or_else(PoisonError::into_inner);
        let all = self.kicks.len();
        let waited = self.shared.one_more.wait_timeout_while(through, time, |through| through.len() < all);
        let (through, _) = waited.unwrap_or_else(PoisonError::into_inner);
        (0..all).filter(|index| !through.contains(index)).collect()
    }
}

/// Runs one vCPU until the guest ends, here or elsewhere.
fn run(vcpu: &mut VcpuFd, apic_id: u32, shared: &Shared, handler: &Handler) -> Option<Outcome> {
    while !shared.stop.load(Ordering::Acquire) {
        let handled = match vcpu.run() {
            Ok(exit) => handler.handle(exit),
            Err(error) if matches!(error.errno(), libc::EINTR | libc::EAGAIN) => Handled::Resume,
            Err(error) => Handled::End(Outcome::Failed(format!("KVM_RUN: {error}"))),
        };
        match handled {
            Handled::Resume => {}
            Handled::End(outcome) => return Some(outcome),
            Handled::InternalError => return Some(internal_error(vcpu)),
            Handled::Tdx => tdx_exit(vcpu, apic_id, handler),
        }
    }
    None
}

/// KVM_EXIT_TDX: words of the exit's union, which the handler answers in place.
fn tdx_exit(vcpu: &mut VcpuFd, apic_id: u32, handler: &Handler) {
    let run = vcpu.get_kvm_run();
    // SAFETY: the union is as wide as its padding, 256 bytes, and all of its members are made of integers.
    let bytes: &mut [u8; 256] = unsafe { &mut *(&raw mut run.__bindgen_anon_1.padding).cast() };
    let (words, _) = bytes.as_chunks_mut::<8>();
    let mut tdx = [0; 8];
    for (to, from) in tdx.iter_mut().zip(&*words) {
        *to = u64::from_le_bytes(*from);
    }
    if let Some(exits) = &handler.tdx {
        exits.handle(&mut tdx, apic_id);
    }
    for (to, from) in words.iter_mut().zip(tdx) {
        *to = from.to_le_bytes();
    }
}

/// Says what KVM could not do, and where the guest was (unless its registers are its own).
fn internal_error(vcpu: &mut VcpuFd) -> Outcome {
    let rip = vcpu.get_regs().map(|regs| format!(" at RIP {:#x}", regs.rip)).unwrap_or_default();
    let run = vcpu.get_kvm_run();
    // SAFETY: the exit reason was KVM_EXIT_INTERNAL_ERROR, so KVM filled this member.
    let suberror = unsafe { run.__bindgen_anon_1.internal }.suberror;
    let what = match suberror {
        kvm_bindings::KVM_INTERNAL_ERROR_EMULATION => "instruction emulation failed",
        kvm_bindings::KVM_INTERNAL_ERROR_SIMUL_EX => "simultaneous exceptions",
        kvm_bindings::KVM_INTERNAL_ERROR_DELIVERY_EV => "event delivery failed",
        kvm_bindings::KVM_INTERNAL_ERROR_UNEXPECTED_EXIT_REASON => "unexpected exit reason",
        _ => "unknown",
    };
    Outcome::Failed(format!("KVM internal error {suberror} ({what}){rip}"))
}
