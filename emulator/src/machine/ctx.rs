//! A vCPU's surroundings that outlive an entry into the guest: the client's page, events, clocks, interrupts.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use kvm_bindings::kvm_cpuid_entry2;
use softkvm_cpu::{Cpu, Exception, Stop};

use super::clock::host_ns;
use super::exit::{Outcome, Replay};
use super::lapic::Effect;
use super::msr::Msrs;
use super::run_page::{KVM_HC_MAP_GPA_RANGE, RunPage};
use super::tee::Completion;
use super::vcpu::{VcpuShared, attention};
use super::vm::Vm;
use crate::snp::SnpVcpu;
use crate::tdx::TdxVcpu;
use crate::uapi::errno::Errno;

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
    pub completion: Option<Completion>,
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
    pub(super) user_cr8: u64,
    /// The halt that the guest asked for ends with an interrupt although IF is clear: it will open the window itself.
    pub wakes_with_if_clear: bool,
    /// KVM_SET_SIGNAL_MASK.
    pub signal_mask: Option<u64>,
    /// The registers belong to a confidential guest: KVM_GET_REGS and its siblings are refused.
    pub state_protected: bool,
    /// SEV-SNP state of this vCPU.
    pub snp: SnpVcpu,
    /// TDX state of this vCPU.
    pub tdx: TdxVcpu,
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
            wakes_with_if_clear: false,
            signal_mask: None,
            state_protected: false,
            snp: SnpVcpu::default(),
            tdx: TdxVcpu::default(),
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

    /// Does the client want to hear of KVM_HC_MAP_GPA_RANGE?
    pub fn client_maps_ranges(&self) -> bool {
        self.vm.hypercall_exits.load(Ordering::Relaxed) & (1 << KVM_HC_MAP_GPA_RANGE) != 0
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
                } else if level && self.vm.tdx().is_none() && self.vm.irqs.wants_eoi(vector) {
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
