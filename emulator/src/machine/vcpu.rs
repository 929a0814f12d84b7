//! A virtual CPU: the part that other threads touch ([`VcpuShared`]), and the run loop.

use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};

use kvm_bindings::{
    KVM_EXIT_HLT, KVM_EXIT_INTR, KVM_EXIT_IRQ_WINDOW_OPEN, KVM_EXIT_SHUTDOWN, KVM_MP_STATE_HALTED,
    KVM_MP_STATE_INIT_RECEIVED, KVM_MP_STATE_RUNNABLE, KVM_MP_STATE_UNINITIALIZED,
};
use softkvm_cpu::{Cpu, Event};

use super::ctx::Ctx;
use super::env::VcpuEnv;
use super::exit::Outcome;
use super::irq::Message;
use super::lapic::Lapic;
use super::tee::Tee;
use super::vm::Vm;
use crate::preload::signals::InKvmRun;
use crate::uapi::errno::Errno;

/// Bits of the processor's attention word.
pub mod attention {
    /// A signal arrived on the vCPU thread.
    pub const SIGNAL: u32 = 1;
    /// The LAPIC may have something deliverable.
    pub const IRQ: u32 = 2;
    /// Drop the TLB.
    pub const FLUSH: u32 = 4;
    /// An NMI is pending.
    pub const NMI: u32 = 8;
    /// INIT or SIPI arrived, or an SNP AP event.
    pub const INIT: u32 = 16;
    /// The LAPIC timer is due.
    pub const TIMER: u32 = 32;
    /// Look at the client's injection requests at the next boundary.
    pub const INJECT: u32 = 64;
    /// An access of the guest's met memory that the client has taken away. Never cleared.
    pub const HOST_FAULT: u32 = 128;
}

/// What other threads may touch of a vCPU.
pub struct VcpuShared {
    /// The vCPU's and its APIC's ID.
    pub id: u32,
    /// Polled by the processor once a block.
    pub attention: Arc<AtomicU32>,
    wake: OwnedFd,
    in_guest: AtomicBool,
    flush_wanted: AtomicU64,
    flush_done: AtomicU64,
    /// The local APIC.
    pub lapic: Mutex<Lapic>,
    /// KVM_MP_STATE_*.
    pub mp_state: AtomicU32,
    /// INIT received and not yet acted on.
    pub init_pending: AtomicBool,
    /// SIPI vector + 1, 0 for none.
    pub sipi: AtomicU32,
    /// NMIs not yet delivered, two at most.
    pub nmis: AtomicU32,
    /// SNP: the guest asked that this vCPU start from a VMSA (see `snp::ap`).
    pub ap_request: Mutex<Option<crate::snp::ap::ApRequest>>,
}

impl VcpuShared {
    fn new(id: u32, attention: Arc<AtomicU32>, bus_ns: u64) -> Result<Self, Errno> {
        // SAFETY: the result is checked and owned.
        let wake = unsafe {
            let raw = libc::eventfd(0, libc::EFD_CLOEXEC | libc::EFD_NONBLOCK);
            if raw < 0 {
                return Err(Errno::last());
            }
            OwnedFd::from_raw_fd(raw)
        };
        Ok(Self {
            id,
            attention,
            wake,
            in_guest: AtomicBool::new(false),
            flush_wanted: AtomicU64::new(0),
            flush_done: AtomicU64::new(0),
            lapic: Mutex::new(Lapic::new(id, bus_ns)),
            mp_state: AtomicU32::new(KVM_MP_STATE_RUNNABLE),
            init_pending: AtomicBool::new(false),
            sipi: AtomicU32::new(0),
            nmis: AtomicU32::new(0),
            ap_request: Mutex::new(None),
        })
    }

    /// The LAPIC. A panic elsewhere cannot leave it half-changed: its methods do not panic.
    pub fn lapic(&self) -> MutexGuard<'_, Lapic> {
        self.lapic.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    /// Sets attention bits and wakes the vCPU if it sleeps. Async-signal-safe.
    pub fn notify(&self, bits: u32) {
        self.attention.fetch_or(bits, Ordering::SeqCst);
        if !self.in_guest.load(Ordering::SeqCst) {
            let one = 1u64.to_ne_bytes();
            // SAFETY: eight bytes from this frame; a full counter is as good as a write.
            unsafe { libc::write(self.wake.as_raw_fd(), one.as_ptr().cast(), 8) };
        }
    }

    /// Called by the signal trampoline on the vCPU thread.
    pub fn signalled(&self) {
        self.notify(attention::SIGNAL);
    }

    /// Called by the signal trampoline on the vCPU thread: an access of the guest's was skipped. What the guest makes of
    /// it is not to be believed, so this vCPU does not run again.
    pub fn host_fault(&self) {
        self.notify(attention::HOST_FAULT);
    }

    /// Called by the timer thread.
    pub fn timer_due(&self) {
        self.notify(attention::TIMER);
    }

    /// Asks for a TLB flush; the ticket is for [`VcpuShared::wait_flushed`].
    pub fn request_flush(&self) -> u64 {
        let ticket = self.flush_wanted.fetch_add(1, Ordering::SeqCst) + 1;
        self.attention.fetch_or(attention::FLUSH, Ordering::SeqCst);
        ticket
    }

    /// Waits until no TLB entry from before the request can be used.
    pub fn wait_flushed(&self, ticket: u64) {
        while self.in_guest.load(Ordering::SeqCst) && self.flush_done.load(Ordering::SeqCst) < ticket {
            std::thread::yield_now();
        }
    }

    /// The vCPU thread drops its TLB if anybody asked.
    pub fn flush_if_asked(&self, cpu: &mut Cpu) {
        self.attention.fetch_and(!attention::FLUSH, Ordering::SeqCst);
        let wanted = self.flush_wanted.load(Ordering::SeqCst);
        if self.flush_done.load(Ordering::SeqCst) != wanted {
            cpu.flush_tlb();
            self.flush_done.store(wanted, Ordering::SeqCst);
        }
    }

    /// Is this vCPU addressed by a message?
    pub fn matches(&self, message: &Message) -> bool {
        self.lapic().matches(message.destination, message.logical)
    }

    /// Takes an interrupt message that is addressed to this vCPU.
    pub fn receive(&self, message: &Message) {
        match message.mode {
            0 | 1 if self.lapic().accept(message.vector, message.level) => {
                self.notify(attention::IRQ);
            }
            4 => self.raise_nmi(),
            5 if (message.level || message.vector == 0) => {
                self.init_pending.store(true, Ordering::SeqCst);
                self.notify(attention::INIT);
            }
            6 => {
                self.sipi.store(u32::from(message.vector) + 1, Ordering::SeqCst);
                self.notify(attention::INIT);
            }
            _ => {}
        }
    }

    /// One more NMI; a third while two wait is lost, as on hardware.
    pub fn raise_nmi(&self) {
        let _ = self.nmis.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |n| (n < 2).then_some(n + 1));
        self.notify(attention::NMI);
    }

    /// Sleeps until notified or until `deadline_ns` (host monotonic); signals end it too.
    fn sleep(&self, timeout_ns: Option<u64>) {
        let mut poll = libc::pollfd { fd: self.wake.as_raw_fd(), events: libc::POLLIN, revents: 0 };
        let timeout = timeout_ns.map(|ns| libc::timespec {
            tv_sec: (ns / 1_000_000_000) as libc::time_t,
            tv_nsec: (ns % 1_000_000_000) as libc::c_long,
        });
        let pointer = timeout.as_ref().map_or(std::ptr::null(), std::ptr::from_ref);
        let mut counter = [0u8; 8];
        // SAFETY: all pointers are to this frame.
        unsafe {
            libc::ppoll(&raw mut poll, 1, pointer, std::ptr::null());
            libc::read(self.wake.as_raw_fd(), counter.as_mut_ptr().cast(), 8);
        }
    }
}

/// The part that belongs to whoever holds the vCPU's mutex.
pub struct Inner {
    /// The processor.
    pub cpu: Cpu,
    /// Its surroundings.
    pub ctx: Ctx,
}

/// A vCPU as its descriptor sees it.
pub struct Vcpu {
    /// The VM.
    pub vm: Arc<Vm>,
    /// The shared part.
    pub shared: Arc<VcpuShared>,
    inner: Mutex<Inner>,
}

impl Vcpu {
    /// KVM_CREATE_VCPU.
    pub fn new(vm: &Arc<Vm>, id: u32) -> Result<Arc<Self>, Errno> {
        crate::preload::signals::catch_memory_faults();
        let attention = Arc::new(AtomicU32::new(0));
        let shared =
            Arc::new(VcpuShared::new(id, Arc::clone(&attention), vm.apic_bus_ns.load(Ordering::Relaxed))?);
        if vm.lapic_in_kernel() && id != 0 {
            shared.mp_state.store(KVM_MP_STATE_UNINITIALIZED, Ordering::SeqCst);
        }
        let mut ctx = Ctx::new(Arc::clone(vm), Arc::clone(&shared))?;
        ctx.state_protected = vm.tee.born_protected();
        let mut cpu = Cpu::new(attention);
        vm.tee.prepare(&mut cpu.state);
        vm.add_vcpu(Arc::clone(&shared))?;
        Ok(Arc::new(Self { vm: Arc::clone(vm), shared, inner: Mutex::new(Inner { cpu, ctx }) }))
    }

    /// The registers, for ioctls; waits while the vCPU runs, as the kernel's vcpu mutex does.
    pub fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    /// KVM_RUN.
    pub fn run(&self) -> Result<(), Errno> {
        let mut guard = self.lock();
        let inner = &mut *guard;
        self.vm.tee.may_run(&inner.ctx)?;
        let _mask = inner.ctx.apply_signal_mask();
        let _running = InKvmRun::enter(&self.shared, &self.vm);
        let result = self.run_locked(inner);
        self.shared.attention.fetch_and(!attention::SIGNAL, Ordering::SeqCst);
        inner.ctx.publish_state(&inner.cpu);
        result
    }

    fn run_locked(&self, inner: &mut Inner) -> Result<(), Errno> {
        inner.ctx.run.set_reason(kvm_bindings::KVM_EXIT_UNKNOWN);
        // What the client was asked for is completed before anything may interrupt: VMMs rely on it to drain I/O.
        if let Some(outcome) = inner.complete()
            && let Some(result) = self.settle(inner, outcome)
        {
            return result;
        }
        if inner.ctx.run.immediate_exit() {
            return Err(Errno::EINTR);
        }
        if self.shared.attention.load(Ordering::SeqCst) & attention::HOST_FAULT != 0 {
            return Err(Errno::EFAULT);
        }
        inner.ctx.queue_client_events(&inner.cpu);
        loop {
            if let Some(result) = self.wait_until_runnable(inner) {
                return result;
            }
            let outcome = self.enter_guest(inner);
            if let Some(result) = self.settle(inner, outcome) {
                return result;
            }
        }
    }

    fn enter_guest(&self, inner: &mut Inner) -> Outcome {
        self.shared.in_guest.store(true, Ordering::SeqCst);
        self.shared.flush_if_asked(&mut inner.cpu);
        let mut env = VcpuEnv::new(&mut inner.ctx);
        inner.cpu.run(&mut env);
        self.shared.in_guest.store(false, Ordering::SeqCst);
        let outcome = inner.ctx.take_outcome();
        // Whatever the guest has come to since.
        let fault = self.shared.attention.load(Ordering::SeqCst) & attention::HOST_FAULT != 0;
        if fault { Outcome::ClientFault } else { outcome }
    }

    /// Turns an outcome into KVM_RUN's result, or `None` to go on.
    fn settle(&self, inner: &mut Inner, outcome: Outcome) -> Option<Result<(), Errno>> {
        match outcome {
            Outcome::Continue => None,
            Outcome::Client => Some(Ok(())),
            Outcome::ClientFault => Some(Err(Errno::EFAULT)),
            Outcome::Dead => {
                self.vm.dead.store(true, Ordering::SeqCst);
                Some(Err(Errno::EIO))
            }
            Outcome::Signal => {
                inner.ctx.run.set_reason(KVM_EXIT_INTR);
                Some(Err(Errno::EINTR))
            }
            Outcome::Halt if self.vm.lapic_in_kernel() => {
                self.shared.mp_state.store(KVM_MP_STATE_HALTED, Ordering::SeqCst);
                None
            }
            Outcome::Halt => {
                inner.ctx.run.set_reason(KVM_EXIT_HLT);
                Some(Ok(()))
            }
            Outcome::Window => {
                inner.ctx.run.set_reason(KVM_EXIT_IRQ_WINDOW_OPEN);
                Some(Ok(()))
            }
            Outcome::Shutdown => {
                inner.ctx.run.set_reason(KVM_EXIT_SHUTDOWN);
                Some(Ok(()))
            }
        }
    }

    /// Sleeps while halted or waiting for INIT, SIPI or an SNP AP event.
    fn wait_until_runnable(&self, inner: &mut Inner) -> Option<Result<(), Errno>> {
        loop {
            let bits = self.shared.attention.load(Ordering::SeqCst);
            if bits & attention::INIT != 0 {
                self.shared.attention.fetch_and(!attention::INIT, Ordering::SeqCst);
                inner.handle_init(&self.vm);
            }
            if bits & attention::FLUSH != 0 {
                self.shared.flush_if_asked(&mut inner.cpu);
            }
            inner.ctx.run_timer();
            let state = self.shared.mp_state.load(Ordering::SeqCst);
            if state == KVM_MP_STATE_RUNNABLE {
                return None;
            }
            if state == KVM_MP_STATE_HALTED && inner.can_wake() {
                self.shared.mp_state.store(KVM_MP_STATE_RUNNABLE, Ordering::SeqCst);
                return None;
            }
            if bits & attention::SIGNAL != 0 || inner.ctx.run.immediate_exit() {
                return self.settle(inner, Outcome::Signal);
            }
            if bits & (attention::INIT | attention::FLUSH) == 0 {
                self.shared.sleep(inner.ctx.ns_to_deadline());
            }
        }
    }
}

impl Drop for Vcpu {
    fn drop(&mut self) {
        self.vm.timers.arm(&self.shared, None);
        self.vm.remove_vcpu(self.shared.id);
    }
}

impl Inner {
    /// Finishes what the last exit began.
    fn complete(&mut self) -> Option<Outcome> {
        if let Some(completion) = self.ctx.completion.take()
            && let Some(outcome) = completion.finish(&mut self.cpu, &mut self.ctx)
        {
            return Some(outcome);
        }
        if !self.ctx.replay.answer(&mut self.ctx.run) {
            return None;
        }
        // The instruction that asked is executed again, alone, with the client's answers.
        self.ctx.shared.in_guest.store(true, Ordering::SeqCst);
        self.ctx.shared.flush_if_asked(&mut self.cpu);
        let mut env = VcpuEnv::new(&mut self.ctx);
        let retired = self.cpu.step(&mut env);
        self.ctx.shared.in_guest.store(false, Ordering::SeqCst);
        if retired {
            self.ctx.replay.clear();
        }
        Some(self.ctx.take_outcome())
    }

    /// HLT ends with an interrupt that could be taken, an NMI, or an INIT.
    fn can_wake(&self) -> bool {
        let shared = &self.ctx.shared;
        shared.nmis.load(Ordering::SeqCst) > 0
            || self.ctx.has_queued_event()
            || (self.cpu.state.rflags & 0x200 != 0 || self.ctx.wakes_with_if_clear)
                && self.ctx.interrupt_waits()
    }

    fn handle_init(&mut self, vm: &Vm) {
        let shared = Arc::clone(&self.ctx.shared);
        if let Some(request) = shared.ap_request.lock().ok().and_then(|mut r| r.take()) {
            crate::snp::ap::apply(self, request);
            return;
        }
        // The registers of a confidential guest are its own: INIT and SIPI cannot touch them.
        let plain = match vm.tee {
            Tee::None => true,
            Tee::Snp(_) => false,
            // KVM takes neither for a TD: its firmware brings up the processors.
            Tee::Tdx(_) => {
                shared.init_pending.store(false, Ordering::SeqCst);
                shared.sipi.store(0, Ordering::SeqCst);
                return;
            }
        };
        if shared.init_pending.swap(false, Ordering::SeqCst) {
            if plain {
                self.reset();
            }
            shared.lapic().init();
            let state = if shared.id == 0 { KVM_MP_STATE_RUNNABLE } else { KVM_MP_STATE_INIT_RECEIVED };
            shared.mp_state.store(state, Ordering::SeqCst);
        }
        let sipi = shared.sipi.swap(0, Ordering::SeqCst);
        if sipi != 0 && shared.mp_state.load(Ordering::SeqCst) == KVM_MP_STATE_INIT_RECEIVED {
            if plain {
                let vector = u64::from(sipi - 1);
                let cs = &mut self.cpu.state.seg[1];
                cs.selector = (vector << 8) as u16;
                cs.base = vector << 12;
                self.cpu.state.rip = 0;
                self.cpu.state_changed();
            } else if !crate::snp::ap::startup(&mut self.ctx) {
                return;
            }
            shared.mp_state.store(KVM_MP_STATE_RUNNABLE, Ordering::SeqCst);
        }
    }

    /// INIT's effect on the registers.
    fn reset(&mut self) {
        let keep_fpu = self.cpu.state.fpu.clone();
        let signature = self.ctx.cpuid_signature();
        self.cpu.state = softkvm_cpu::CpuState::reset();
        self.cpu.state.fpu = keep_fpu;
        self.cpu.state.gpr[softkvm_cpu::CpuState::RDX] = u64::from(signature);
        self.cpu.state_changed();
    }
}

/// Delivers whatever waits, at an instruction boundary inside the guest. `Err` leaves the guest.
pub fn deliver_pending(ctx: &mut Ctx, cpu: &mut Cpu) -> Result<(), softkvm_cpu::Stop> {
    if ctx.take_exception().is_some_and(|exception| {
        let mut env = VcpuEnv::new(ctx);
        cpu.deliver(&mut env, Event::Exception(exception));
        true
    }) {
        return Ok(());
    }
    let shared = Arc::clone(&ctx.shared);
    let nmi_open = !cpu.state.nmi_blocked && !cpu.state.interrupt_shadow && !ctx.tdx.ve.valid;
    if shared.nmis.load(Ordering::SeqCst) > 0 && nmi_open {
        shared.nmis.fetch_sub(1, Ordering::SeqCst);
        let mut env = VcpuEnv::new(ctx);
        cpu.deliver(&mut env, Event::Nmi);
        return Ok(());
    }
    let waiting = ctx.interrupt_waits();
    if waiting && !cpu.interrupt_window_open() {
        cpu.request_interrupt_window();
        return Ok(());
    }
    if waiting {
        let vector = ctx.acknowledge_interrupt();
        if let Some(vector) = vector {
            let mut env = VcpuEnv::new(ctx);
            cpu.deliver(&mut env, Event::Interrupt(vector));
        }
        // A further one waits for the window to open again.
        if ctx.interrupt_waits() {
            cpu.request_interrupt_window();
        }
        return Ok(());
    }
    if ctx.client_interrupts() && ctx.run.wants_interrupt_window() {
        if cpu.interrupt_window_open() {
            ctx.outcome = Outcome::Window;
            return Err(softkvm_cpu::Stop::Exit);
        }
        cpu.request_interrupt_window();
    }
    Ok(())
}
