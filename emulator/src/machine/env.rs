//! What a vCPU's instructions find outside of the processor: [`VcpuEnv`] implements the processor's `Env`.
//!
//! An access that the client must answer leaves the guest with the instruction not yet done. On the next KVM_RUN the
//! client's answer joins [`Replay`], and that one instruction is executed again; it finds its answers there. So exits have
//! a precise RIP, string and multi-access instructions need no special case, and registers change only when all is known.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use kvm_bindings::kvm_cpuid_entry2;
use softkvm_cpu::{Cpu, CpuState, Env, Exception, HostPage, PageRequest, Stop};

use super::clock::host_ns;
use super::lapic::{self, Effect};
use super::msr::Msrs;
use super::run_page::RunPage;
use super::vcpu::{VcpuShared, attention, deliver_pending};
use super::vm::Vm;
use crate::snp;
use crate::uapi::errno::Errno;

/// Why the processor left the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// For nothing that concerns the client.
    Continue,
    /// `kvm_run` describes an exit.
    Client,
    /// As `Client`, but KVM_RUN fails with EFAULT (KVM_EXIT_MEMORY_FAULT).
    ClientFault,
    /// A signal.
    Signal,
    /// HLT.
    Halt,
    /// The interrupt window that the client asked for is open.
    Window,
    /// Triple fault.
    Shutdown,
}

/// A request that left for the client.
#[derive(Clone, Copy, Debug)]
enum Pending {
    In(u8),
    Read,
    Write,
    Hypercall,
}

/// Answers for the one instruction that is being executed again.
#[derive(Debug, Default)]
pub struct Replay {
    answers: Vec<u64>,
    next: usize,
    pending: Option<Pending>,
}

impl Replay {
    /// Takes the client's answer, if one was asked for.
    pub fn answer(&mut self, run: &mut RunPage) -> bool {
        let Some(pending) = self.pending.take() else { return false };
        self.answers.push(match pending {
            Pending::In(bytes) => u64::from(run.io_value(bytes)),
            Pending::Read => u64::from_le_bytes(run.mmio_data()),
            Pending::Write => 0,
            Pending::Hypercall => run.hypercall_result(),
        });
        self.next = 0;
        true
    }

    /// The instruction is done.
    pub fn clear(&mut self) {
        self.answers.clear();
        self.next = 0;
    }

    fn take(&mut self) -> Option<u64> {
        let answer = self.answers.get(self.next).copied()?;
        self.next += 1;
        Some(answer)
    }
}

/// An event that user space or a restored state wants delivered.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Queued {
    /// Exception to inject.
    pub exception: Option<Exception>,
}

/// The machine's side of a vCPU.
pub struct Ctx {
    /// The VM.
    pub vm: Arc<Vm>,
    /// The part that other threads touch.
    pub shared: Arc<VcpuShared>,
    /// The client's page.
    pub run: RunPage,
    /// KVM_SET_CPUID2.
    pub cpuid: Vec<kvm_cpuid_entry2>,
    /// MSRs of the table.
    pub msrs: Msrs,
    /// See the module's description.
    pub replay: Replay,
    /// Why the guest was left.
    pub outcome: Outcome,
    /// What to do first on the next KVM_RUN.
    pub completion: Option<snp::Completion>,
    /// Guest TSC minus the VM's.
    pub tsc_offset: u64,
    /// MSR_KVM_SYSTEM_TIME_NEW.
    pub kvmclock: u64,
    kvmclock_version: u32,
    /// KVM_INTERRUPT's or KVM_SET_VCPU_EVENTS' vector.
    pub injected_interrupt: Option<u8>,
    /// KVM_SET_VCPU_EVENTS' exception.
    pub queued: Queued,
    /// CR8 without an in-kernel LAPIC.
    user_cr8: u64,
    /// KVM_SET_SIGNAL_MASK.
    pub signal_mask: Option<u64>,
    /// SEV-SNP state of this vCPU.
    pub snp: snp::SnpVcpu,
}

/// Restores the thread's signal mask.
pub struct MaskGuard(Option<libc::sigset_t>);

impl Drop for MaskGuard {
    fn drop(&mut self) {
        if let Some(mask) = &self.0 {
            // SAFETY: a mask that pthread_sigmask gave us.
            unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, mask, std::ptr::null_mut()) };
        }
    }
}

impl Ctx {
    /// The surroundings of a new vCPU.
    pub fn new(vm: Arc<Vm>, shared: Arc<VcpuShared>) -> Result<Self, Errno> {
        Ok(Self {
            run: RunPage::new()?,
            vm,
            shared,
            cpuid: Vec::new(),
            msrs: Msrs::default(),
            replay: Replay::default(),
            outcome: Outcome::Continue,
            completion: None,
            tsc_offset: 0,
            kvmclock: 0,
            kvmclock_version: 0,
            injected_interrupt: None,
            queued: Queued::default(),
            user_cr8: 0,
            signal_mask: None,
            snp: snp::SnpVcpu::default(),
        })
    }

    /// The outcome since the last call.
    pub fn take_outcome(&mut self) -> Outcome {
        std::mem::replace(&mut self.outcome, Outcome::Continue)
    }

    /// Leaves the guest with an outcome.
    pub fn leave<T>(&mut self, outcome: Outcome) -> Result<T, Stop> {
        self.outcome = outcome;
        Err(Stop::Exit)
    }

    /// CPUID(1).EAX as the client set it, 0x600 without (as KVM's reset does).
    pub fn cpuid_signature(&self) -> u32 {
        self.cpuid.iter().find(|e| e.function == 1).map_or(0x600, |e| e.eax)
    }

    /// Guest TSC.
    pub fn tsc(&self) -> u64 {
        self.vm.clock.tsc().wrapping_add(self.tsc_offset)
    }

    /// KVM_SET_SIGNAL_MASK's mask, for the time of KVM_RUN.
    pub fn apply_signal_mask(&self) -> MaskGuard {
        let Some(mask) = self.signal_mask else { return MaskGuard(None) };
        // SAFETY: sigset_t begins with the kernel's 64-bit mask on x86-64 Linux; the rest is zero.
        unsafe {
            let (mut new, mut old): (libc::sigset_t, libc::sigset_t) =
                (std::mem::zeroed(), std::mem::zeroed());
            (&raw mut new).cast::<u64>().write(mask);
            libc::pthread_sigmask(libc::SIG_SETMASK, &raw const new, &raw mut old);
            MaskGuard(Some(old))
        }
    }

    /// The fields of `kvm_run` that every return refreshes.
    pub fn publish_state(&mut self, cpu: &Cpu) {
        let (cr8, base) = {
            let lapic = self.shared.lapic();
            (if self.vm.lapic_in_kernel() { lapic.cr8() } else { self.user_cr8 }, lapic.base)
        };
        let ready =
            self.injected_interrupt.is_none() && self.client_interrupts() && cpu.interrupt_window_open();
        self.run.set_state(cpu.state.rflags & 0x200 != 0, ready, cr8, base);
    }

    /// Requests that the client left in `kvm_run` or with an ioctl.
    pub fn queue_client_events(&mut self, _cpu: &Cpu) {
        if !self.vm.lapic_in_kernel() {
            self.user_cr8 = self.run.cr8();
        }
        let anything = self.has_queued_event()
            || self.run.wants_interrupt_window()
            || self.shared.nmis.load(Ordering::SeqCst) > 0
            || self.interrupt_waits();
        if anything {
            self.shared.attention.fetch_or(attention::INJECT, Ordering::SeqCst);
        }
    }

    /// May the client inject vectors? Without a LAPIC always; with LAPICs only, past one that takes external interrupts.
    pub fn client_interrupts(&self) -> bool {
        !self.vm.lapic_in_kernel() || self.vm.irqchips().is_none() && self.shared.lapic().accepts_extint()
    }

    /// Does the in-kernel PIC ask for this vCPU?
    fn pic_waits(&self) -> bool {
        self.vm.irqchips().is_some_and(|chips| self.shared.lapic().accepts_extint() && chips.pic_output())
    }

    /// Is there an interrupt that the processor should take as soon as it can?
    pub fn interrupt_waits(&self) -> bool {
        let injected = self.injected_interrupt.is_some() && self.client_interrupts();
        let local = self.vm.lapic_in_kernel() && self.shared.lapic().pending().is_some();
        injected || local || self.pic_waits()
    }

    /// The vector of the interrupt that [`Self::interrupt_waits`] saw. External ones come first, as in KVM.
    pub fn acknowledge_interrupt(&mut self) -> Option<u8> {
        if self.client_interrupts()
            && let Some(vector) = self.injected_interrupt.take()
        {
            return Some(vector);
        }
        match self.vm.irqchips() {
            Some(chips) if self.pic_waits() => Some(chips.pic_acknowledge()),
            _ => self.shared.lapic().acknowledge(),
        }
    }

    /// A write that an in-kernel device or an ioeventfd takes. `true` if one did.
    pub fn kernel_port_out(&self, port: u16, value: u32, bytes: u8) -> bool {
        let data = value.to_le_bytes();
        let data = data.get(..usize::from(bytes)).unwrap_or(&data);
        let taken = self.vm.irqchips().is_some_and(|chips| chips.write_port(&self.vm, port, value as u8));
        taken || self.vm.irqs.io_event_write(true, u64::from(port), data)
    }

    /// A read that an in-kernel device answers.
    pub fn kernel_port_in(&self, port: u16) -> Option<u32> {
        self.vm.irqchips()?.read_port(&self.vm, port).map(u32::from)
    }

    /// As [`Self::kernel_port_out`], for memory.
    pub fn kernel_memory_write(&self, gpa: u64, data: &[u8]) -> bool {
        let taken = self.vm.irqchips().is_some_and(|chips| chips.write_memory(&self.vm, gpa, data));
        taken || self.vm.irqs.io_event_write(false, gpa, data)
    }

    /// As [`Self::kernel_port_in`], for memory.
    pub fn kernel_memory_read(&self, gpa: u64, data: &mut [u8]) -> bool {
        self.vm.irqchips().is_some_and(|chips| chips.read_memory(gpa, data))
    }

    /// Something was injected by ioctl.
    pub fn has_queued_event(&self) -> bool {
        self.injected_interrupt.is_some() || self.queued.exception.is_some()
    }

    /// The injected exception.
    pub fn take_exception(&mut self) -> Option<Exception> {
        self.queued.exception.take()
    }

    /// Fires the LAPIC timer if it is due.
    pub fn run_timer(&mut self) {
        if !self.vm.lapic_in_kernel() {
            return;
        }
        let now = self.vm.clock.tsc();
        let fired = self.shared.lapic().run_timer(now);
        if fired {
            self.rearm();
            // The interrupt must be taken before the guest's next instruction can close its window: `sti; hlt; cli` is
            // how an idle loop waits.
            self.shared.attention.fetch_or(attention::IRQ, Ordering::SeqCst);
        }
    }

    /// Nanoseconds to the LAPIC timer's deadline.
    pub fn ns_to_deadline(&self) -> Option<u64> {
        let at = self.shared.lapic().deadline()?;
        Some(at.saturating_sub(self.vm.clock.tsc()))
    }

    /// Tells the timer thread about the LAPIC's deadline.
    pub fn rearm(&self) {
        let deadline = self.ns_to_deadline().map(|ns| host_ns().saturating_add(ns));
        self.vm.timers.arm(&self.shared, deadline);
    }

    /// What a LAPIC register write set off.
    pub fn lapic_effect(&mut self, effect: Effect) -> Result<(), Stop> {
        match effect {
            Effect::None => {}
            Effect::Timer => self.rearm(),
            Effect::Ipi(icr) => self.send_ipi(icr),
            Effect::Eoi(vector, level) => {
                if let Some(chips) = self.vm.irqchips().filter(|_| level) {
                    chips.end_of_interrupt(&self.vm, vector);
                } else if level && self.vm.irqs.wants_eoi(vector) {
                    self.run.set_reason(kvm_bindings::KVM_EXIT_IOAPIC_EOI);
                    self.run.detail(|d| d.eoi.vector = vector);
                    self.outcome = Outcome::Client;
                    return Err(Stop::ExitRetired);
                }
            }
        }
        // A lower priority may have become deliverable.
        if self.interrupt_waits() {
            self.shared.attention.fetch_or(attention::IRQ, Ordering::SeqCst);
        }
        Ok(())
    }

    fn send_ipi(&self, icr: u64) {
        let low = icr as u32;
        let message = super::irq::Message {
            destination: (icr >> 32) as u32,
            logical: low & (1 << 11) != 0,
            mode: (low >> 8 & 7) as u8,
            vector: low as u8,
            level: low & (1 << 14) != 0,
        };
        let everybody = super::irq::Message { destination: u32::MAX, logical: false, ..message };
        match low >> 18 & 3 {
            0 => {
                self.vm.deliver(&message, None);
            }
            1 => self.shared.receive(&message),
            2 => {
                self.vm.deliver(&everybody, None);
            }
            _ => {
                self.vm.deliver(&everybody, Some(self.shared.id));
            }
        }
    }

    /// Writes the kvmclock page, if the guest registered one.
    pub fn update_kvmclock(&mut self) {
        if self.kvmclock & 1 == 0 {
            return;
        }
        self.kvmclock_version = self.kvmclock_version.wrapping_add(2);
        let page = self.vm.clock.pvclock(self.kvmclock_version, self.tsc_offset);
        // A guest that registers an address outside of its memory gets no clock.
        let _ = self.vm.write_shared(self.kvmclock & !1, &page);
    }
}

/// A vCPU's environment while the processor runs.
pub struct VcpuEnv<'a> {
    /// The machine's side.
    pub ctx: &'a mut Ctx,
}

impl<'a> VcpuEnv<'a> {
    /// Borrowed for one entry.
    pub fn new(ctx: &'a mut Ctx) -> Self {
        Self { ctx }
    }

    /// Is this an SNP guest?
    fn confidential(&self) -> bool {
        self.ctx.vm.snp.is_some()
    }

    /// For an SNP guest: intercepted instructions raise #VC with the intercept's exit code.
    fn vc(&self, exit_code: u32) -> Result<(), Stop> {
        if self.confidential() { Err(Stop::Fault(Exception::vc(exit_code))) } else { Ok(()) }
    }

    /// The register of an xAPIC access, if the address is in the LAPIC's page.
    fn lapic_register(&self, gpa: u64) -> Option<u32> {
        if !self.ctx.vm.lapic_in_kernel() {
            return None;
        }
        let lapic = self.ctx.shared.lapic();
        let here = lapic.base & lapic::BASE_ENABLE != 0
            && !lapic.x2apic()
            && gpa & !0xfff == lapic.base & !0xfff & ((1 << 52) - 1);
        here.then_some((gpa as u32 & 0xfff) >> 4)
    }

    /// A read of the LAPIC's page; `false` if the address is elsewhere.
    pub fn lapic_read(&mut self, gpa: u64, data: &mut [u8]) -> bool {
        let Some(register) = self.lapic_register(gpa) else { return false };
        let now = self.ctx.vm.clock.tsc();
        let value = self.ctx.shared.lapic().read(register, now).unwrap_or(0);
        for (to, from) in data.iter_mut().zip(value.to_le_bytes()) {
            *to = from;
        }
        true
    }

    /// A write of the LAPIC's page; `None` if the address is elsewhere.
    pub fn lapic_write(&mut self, gpa: u64, data: &[u8]) -> Option<Result<(), Stop>> {
        let register = self.lapic_register(gpa)?;
        // Registers are 32 bits wide and 16 bytes apart; anything else is ignored, as hardware does.
        if gpa & 0xf != 0 || data.len() < 4 {
            return Some(Ok(()));
        }
        let value = data.iter().take(4).rev().fold(0u64, |acc, &b| acc << 8 | u64::from(b));
        let now = self.ctx.vm.clock.tsc();
        let effect = self.ctx.shared.lapic().write(register, value, now).unwrap_or(Effect::None);
        Some(self.ctx.lapic_effect(effect))
    }

    /// KVM's own MSRs, then the table's.
    pub fn machine_rdmsr(&mut self, index: u32) -> Option<u64> {
        let ctx = &mut *self.ctx;
        match index {
            0x10 => Some(ctx.tsc()),
            0x1b => Some(ctx.shared.lapic().base),
            0x11 | 0x4b56_4d00 => Some(0),
            0x12 | 0x4b56_4d01 => Some(ctx.kvmclock),
            0x6e0 => Some(ctx.shared.lapic().tsc_deadline),
            0x800..=0x8ff => {
                let lapic = ctx.shared.lapic();
                let allowed = lapic.x2apic() && !matches!(index, 0x80b | 0x83f);
                if allowed { lapic.read(index - 0x800, ctx.vm.clock.tsc()).ok() } else { None }
            }
            _ => ctx.msrs.read(index),
        }
    }

    /// As [`Self::machine_rdmsr`]; `Ok(false)` means #GP.
    pub fn machine_wrmsr(&mut self, index: u32, value: u64) -> Result<bool, Stop> {
        let ctx = &mut *self.ctx;
        match index {
            0x10 => ctx.tsc_offset = value.wrapping_sub(ctx.vm.clock.tsc()),
            0x1b => return Ok(ctx.shared.lapic().set_base(value).is_ok()),
            0x11 | 0x4b56_4d00 => {
                let wall = ctx.vm.clock.wall_clock(2);
                return Ok(ctx.vm.write_shared(value, &wall).is_ok());
            }
            0x12 | 0x4b56_4d01 => {
                ctx.kvmclock = value;
                ctx.update_kvmclock();
            }
            0x6e0 => {
                let (guest, now) = (ctx.tsc(), ctx.vm.clock.tsc());
                ctx.shared.lapic().set_tsc_deadline(value, guest, now);
                ctx.rearm();
            }
            0x800..=0x8ff => {
                let now = ctx.vm.clock.tsc();
                let effect = {
                    let mut lapic = ctx.shared.lapic();
                    if !lapic.x2apic() {
                        return Ok(false);
                    }
                    lapic.write(index - 0x800, value, now)
                };
                match effect {
                    Ok(effect) => ctx.lapic_effect(effect)?,
                    Err(lapic::Refused) => return Ok(false),
                }
            }
            _ => return Ok(ctx.msrs.write(index, value, false)),
        }
        Ok(true)
    }

    /// CPUID from the client's table, with the bits that follow the machine's state.
    pub fn table_cpuid(&self, leaf: u32, subleaf: u32, cr4: u64, xcr0: u64) -> [u32; 4] {
        crate::uapi::cpuid::lookup(&self.ctx.cpuid, leaf, subleaf, cr4, xcr0, self.ctx.shared.lapic().base)
    }

    fn plain_resolve(&mut self, request: &PageRequest) -> Result<HostPage, Stop> {
        let slots = self.ctx.vm.slots();
        let Some(slot) = slots.find(request.gpa) else { return Err(Stop::Mmio) };
        let write = request.access == softkvm_cpu::Access::Write;
        if write && slot.read_only() {
            return Err(Stop::Mmio);
        }
        if self.ctx.vm.is_private(request.gpa) {
            // KVM_X86_SW_PROTECTED_VM: private memory is plain memory that the client cannot map.
            let host = slot.private(request.gpa).and_then(|(memory, offset)| memory.host(offset & !0xfff));
            let Some(host) = host else {
                self.ctx.run.exit_memory_fault(request.gpa, true);
                return self.ctx.leave(Outcome::ClientFault);
            };
            return Ok(HostPage { host, writable: true, executable: true });
        }
        if write {
            slot.mark_dirty(request.gpa);
        }
        let writable = !slot.read_only() && (write || slot.dirty.is_none());
        Ok(HostPage { host: slot.shared(request.gpa & !0xfff), writable, executable: true })
    }
}

impl Env for VcpuEnv<'_> {
    fn resolve(&mut self, cpu: &CpuState, request: &PageRequest) -> Result<HostPage, Stop> {
        if self.lapic_register(request.gpa).is_some() {
            self.vc(snp::exit::NPF)?;
            return Err(Stop::Mmio);
        }
        if self.confidential() {
            snp::memory::resolve(self.ctx, cpu, request)
        } else {
            self.plain_resolve(request)
        }
    }

    fn mmio_read(&mut self, _cpu: &CpuState, gpa: u64, data: &mut [u8]) -> Result<(), Stop> {
        if self.lapic_read(gpa, data) || self.ctx.kernel_memory_read(gpa, data) {
            return Ok(());
        }
        // The exit carries eight bytes at most: KVM, too, splits wider accesses.
        for (i, chunk) in data.chunks_mut(8).enumerate() {
            let Some(answer) = self.ctx.replay.take() else {
                self.ctx.run.exit_mmio(gpa + 8 * i as u64, None, chunk.len());
                self.ctx.replay.pending = Some(Pending::Read);
                return self.ctx.leave(Outcome::Client);
            };
            for (to, from) in chunk.iter_mut().zip(answer.to_le_bytes()) {
                *to = from;
            }
        }
        Ok(())
    }

    fn mmio_write(&mut self, _cpu: &CpuState, gpa: u64, data: &[u8]) -> Result<(), Stop> {
        if let Some(done) = self.lapic_write(gpa, data) {
            return done;
        }
        if self.ctx.kernel_memory_write(gpa, data) {
            return Ok(());
        }
        for (i, chunk) in data.chunks(8).enumerate() {
            if self.ctx.replay.take().is_none() {
                self.ctx.run.exit_mmio(gpa + 8 * i as u64, Some(chunk), chunk.len());
                self.ctx.replay.pending = Some(Pending::Write);
                return self.ctx.leave(Outcome::Client);
            }
        }
        Ok(())
    }

    fn port_in(&mut self, _cpu: &CpuState, port: u16, bytes: u8, _string: bool) -> Result<u32, Stop> {
        self.vc(snp::exit::IOIO)?;
        if let Some(answer) = self.ctx.kernel_port_in(port) {
            return Ok(answer);
        }
        if let Some(answer) = self.ctx.replay.take() {
            return Ok(answer as u32);
        }
        self.ctx.run.exit_io(None, port, bytes);
        self.ctx.replay.pending = Some(Pending::In(bytes));
        self.ctx.leave(Outcome::Client)
    }

    fn port_out(
        &mut self,
        _cpu: &CpuState,
        port: u16,
        bytes: u8,
        value: u32,
        _string: bool,
    ) -> Result<(), Stop> {
        self.vc(snp::exit::IOIO)?;
        if self.ctx.replay.take().is_some() {
            return Ok(());
        }
        if self.ctx.kernel_port_out(port, value, bytes) {
            return Ok(());
        }
        self.ctx.run.exit_io(Some(value), port, bytes);
        self.ctx.replay.pending = Some(Pending::Write);
        self.ctx.leave(Outcome::Client)
    }

    fn cpuid(&mut self, cpu: &CpuState, leaf: u32, subleaf: u32) -> Result<[u32; 4], Stop> {
        self.vc(snp::exit::CPUID)?;
        Ok(self.table_cpuid(leaf, subleaf, cpu.cr4, cpu.xcr0))
    }

    fn rdmsr(&mut self, cpu: &mut CpuState, index: u32) -> Result<u64, Stop> {
        if self.confidential() {
            return snp::vc::rdmsr(self, cpu, index);
        }
        self.machine_rdmsr(index).ok_or_else(|| unknown_msr("RDMSR", index))
    }

    fn wrmsr(&mut self, cpu: &mut CpuState, index: u32, value: u64) -> Result<(), Stop> {
        if self.confidential() {
            return snp::vc::wrmsr(self, cpu, index, value);
        }
        if self.machine_wrmsr(index, value)? { Ok(()) } else { Err(unknown_msr("WRMSR", index)) }
    }

    fn dr_access(&mut self, _cpu: &CpuState, dr: u8, write: Option<u64>) -> Result<(), Stop> {
        if dr == 7 {
            self.vc(if write.is_some() { snp::exit::WRITE_DR7 } else { snp::exit::READ_DR7 })
        } else {
            Ok(())
        }
    }

    fn rdtsc(&mut self, _cpu: &CpuState) -> Result<u64, Stop> {
        Ok(self.ctx.tsc())
    }

    fn rdpmc(&mut self, _cpu: &CpuState) -> Result<u64, Stop> {
        self.vc(snp::exit::RDPMC)?;
        Err(Stop::Fault(Exception::GP0))
    }

    fn hlt(&mut self, _cpu: &mut CpuState) -> Result<(), Stop> {
        self.ctx.outcome = Outcome::Halt;
        Err(Stop::ExitRetired)
    }

    fn mwait(&mut self, _cpu: &CpuState, monitor: bool) -> Result<(), Stop> {
        self.vc(if monitor { snp::exit::MONITOR } else { snp::exit::MWAIT })?;
        Err(Stop::Fault(Exception::UD))
    }

    fn wbinvd(&mut self, _cpu: &CpuState, invd: bool) -> Result<(), Stop> {
        self.vc(if invd { snp::exit::INVD } else { snp::exit::WBINVD })
    }

    fn vmcall(&mut self, cpu: &mut CpuState, _intel: bool) -> Result<(), Stop> {
        self.vc(snp::exit::VMMCALL)?;
        if cpu.cpl != 0 {
            cpu.gpr[CpuState::RAX] = -1i64 as u64;
            return Ok(());
        }
        let long = cpu.efer & 0x400 != 0;
        let mask = if long { u64::MAX } else { 0xffff_ffff };
        let arg = |r: usize| cpu.gpr[r] & mask;
        let result = self
            .hypercall(arg(0), [arg(CpuState::RBX), arg(CpuState::RCX), arg(CpuState::RDX), arg(6), 0, 0])?;
        cpu.gpr[CpuState::RAX] = result;
        Ok(())
    }

    fn vmgexit(&mut self, cpu: &mut CpuState) -> Result<(), Stop> {
        if self.confidential() { snp::ghcb::vmgexit(self, cpu) } else { self.vmcall(cpu, false) }
    }

    fn pvalidate(
        &mut self,
        cpu: &mut CpuState,
        gva: u64,
        gpa: u64,
        private: bool,
        large: bool,
    ) -> Result<(), Stop> {
        if !self.confidential() {
            return Err(Stop::Fault(Exception::UD));
        }
        snp::memory::pvalidate(self.ctx, cpu, gva, gpa, private, large)
    }

    fn rmpadjust(
        &mut self,
        cpu: &mut CpuState,
        gva: u64,
        gpa: u64,
        private: bool,
        query: bool,
    ) -> Result<(), Stop> {
        if !self.confidential() {
            return Err(Stop::Fault(Exception::UD));
        }
        snp::memory::rmpadjust(self.ctx, cpu, gva, gpa, private, query)
    }

    fn tdcall(&mut self, _cpu: &mut CpuState) -> Result<(), Stop> {
        Err(Stop::Fault(Exception::UD))
    }

    fn read_cr8(&mut self, _cpu: &CpuState) -> Result<u64, Stop> {
        Ok(if self.ctx.vm.lapic_in_kernel() { self.ctx.shared.lapic().cr8() } else { self.ctx.user_cr8 })
    }

    fn write_cr8(&mut self, _cpu: &CpuState, value: u64) -> Result<(), Stop> {
        if self.ctx.vm.lapic_in_kernel() {
            self.ctx.shared.lapic().set_cr8(value);
            self.ctx.shared.attention.fetch_or(attention::IRQ, Ordering::SeqCst);
            return Ok(());
        }
        self.ctx.user_cr8 = value;
        Ok(())
    }

    fn attention(&mut self, cpu: &mut Cpu) -> Result<(), Stop> {
        let shared = Arc::clone(&self.ctx.shared);
        let bits = shared.attention.load(Ordering::SeqCst);
        if bits & attention::FLUSH != 0 {
            shared.flush_if_asked(cpu);
        }
        if bits & attention::SIGNAL != 0 {
            return self.ctx.leave(Outcome::Signal);
        }
        if bits & attention::INIT != 0 {
            // The run loop acts on it: registers may change under the processor.
            return self.ctx.leave(Outcome::Continue);
        }
        let taken = attention::IRQ | attention::NMI | attention::TIMER | attention::INJECT;
        shared.attention.fetch_and(!taken, Ordering::SeqCst);
        if bits & attention::TIMER != 0 {
            self.ctx.run_timer();
        }
        deliver_pending(self.ctx, cpu)
    }

    fn shutdown(&mut self, _cpu: &CpuState) {
        self.ctx.outcome = Outcome::Shutdown;
    }
}

impl VcpuEnv<'_> {
    /// KVM's hypercalls (Documentation/virt/kvm/x86/hypercalls.rst).
    pub fn hypercall(&mut self, number: u64, args: [u64; 6]) -> Result<u64, Stop> {
        const ENOSYS: i64 = 1000;
        match number {
            // KVM_HC_VAPIC_POLL_IRQ
            1 => Ok(0),
            // KVM_HC_MAP_GPA_RANGE goes to the client, if it wants it.
            12 if self.ctx.vm.hypercall_exits.load(Ordering::Relaxed) & (1 << 12) != 0 => {
                if let Some(answer) = self.ctx.replay.take() {
                    return Ok(answer);
                }
                self.ctx.run.exit_hypercall(number, args);
                self.ctx.replay.pending = Some(Pending::Hypercall);
                self.ctx.leave(Outcome::Client)
            }
            _ => Ok(-ENOSYS as u64),
        }
    }
}

fn unknown_msr(what: &str, index: u32) -> Stop {
    if index & 0xffff_0000 != 0xc001_0000 {
        crate::note_once!("{what} of unknown MSR {index:#x} raises #GP (further ones are not reported)");
    }
    Stop::Fault(Exception::GP0)
}
