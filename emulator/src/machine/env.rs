//! What a vCPU's instructions find outside of the processor: [`VcpuEnv`] implements the processor's `Env`.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use softkvm_cpu::{Cpu, CpuState, Env, Exception, HostPage, PageRequest, Stop};

use super::ctx::Ctx;
use super::exit::{Outcome, Pending};
use super::tee::{Intercept, Tee};
use super::vcpu::{attention, deliver_pending};
use crate::{snp, tdx};

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

    /// An instruction that the TEE of a confidential guest may keep from the processor.
    fn intercept(&mut self, cpu: &CpuState, what: Intercept) -> Result<(), Stop> {
        match self.ctx.vm.tee {
            Tee::None => Ok(()),
            Tee::Snp(_) => snp::vc::intercept(what),
            Tee::Tdx(_) => tdx::ve::intercept(self.ctx, cpu, what),
        }
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
        match slot.grant(request.gpa, request.access) {
            Some(page) => Ok(page),
            None => self.ctx.leave(Outcome::ClientFault),
        }
    }
}

impl Env for VcpuEnv<'_> {
    fn resolve(&mut self, cpu: &CpuState, request: &PageRequest) -> Result<HostPage, Stop> {
        if self.lapic_register(request.gpa).is_some() {
            self.intercept(cpu, Intercept::Apic)?;
            return Err(Stop::Mmio);
        }
        match self.ctx.vm.tee {
            Tee::Snp(_) => snp::memory::resolve(self.ctx, cpu, request),
            Tee::Tdx(_) => tdx::memory::resolve(self.ctx, cpu, request),
            Tee::None => self.plain_resolve(request),
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

    fn port_in(&mut self, cpu: &CpuState, port: u16, bytes: u8, string: bool) -> Result<u32, Stop> {
        self.intercept(cpu, Intercept::Port { port, bytes, input: true, string })?;
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
        cpu: &CpuState,
        port: u16,
        bytes: u8,
        value: u32,
        string: bool,
    ) -> Result<(), Stop> {
        self.intercept(cpu, Intercept::Port { port, bytes, input: false, string })?;
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
        if self.ctx.vm.tdx().is_some() {
            return tdx::cpuid::execute(self.ctx, cpu, leaf, subleaf);
        }
        self.intercept(cpu, Intercept::Cpuid)?;
        Ok(self.table_cpuid(leaf, subleaf, cpu.cr4, cpu.xcr0))
    }

    fn rdmsr(&mut self, cpu: &mut CpuState, index: u32) -> Result<u64, Stop> {
        match self.ctx.vm.tee {
            Tee::Snp(_) => return snp::vc::rdmsr(self, cpu, index),
            Tee::Tdx(_) => return tdx::msr::rdmsr(self, cpu, index),
            Tee::None => {}
        }
        self.machine_rdmsr(index).ok_or_else(|| unknown_msr("RDMSR", index))
    }

    fn wrmsr(&mut self, cpu: &mut CpuState, index: u32, value: u64) -> Result<(), Stop> {
        match self.ctx.vm.tee {
            Tee::Snp(_) => return snp::vc::wrmsr(self, cpu, index, value),
            Tee::Tdx(_) => return tdx::msr::wrmsr(self, cpu, index, value),
            Tee::None => {}
        }
        if self.machine_wrmsr(index, value)? { Ok(()) } else { Err(unknown_msr("WRMSR", index)) }
    }

    fn msr_intercept(&mut self, cpu: &CpuState, index: u32, write: Option<u64>) -> Result<(), Stop> {
        if self.ctx.vm.tdx().is_some() { tdx::msr::intercept(self, cpu, index, write) } else { Ok(()) }
    }

    fn cr_write(&mut self, cpu: &CpuState, cr: u8, value: u64) -> Result<(), Stop> {
        if self.ctx.vm.tdx().is_some() { tdx::ve::cr_write(self.ctx, cpu, cr, value) } else { Ok(()) }
    }

    fn dr_access(&mut self, cpu: &CpuState, dr: u8, write: Option<u64>) -> Result<(), Stop> {
        match dr {
            7 => self.intercept(cpu, Intercept::Dr7 { write: write.is_some() }),
            _ => Ok(()),
        }
    }

    fn rdtsc(&mut self, _cpu: &CpuState) -> Result<u64, Stop> {
        Ok(self.ctx.tsc())
    }

    fn rdpmc(&mut self, cpu: &CpuState) -> Result<u64, Stop> {
        self.intercept(cpu, Intercept::Rdpmc)?;
        Err(Stop::Fault(Exception::GP0))
    }

    fn hlt(&mut self, cpu: &mut CpuState) -> Result<(), Stop> {
        self.intercept(cpu, Intercept::Hlt)?;
        self.ctx.outcome = Outcome::Halt;
        Err(Stop::ExitRetired)
    }

    fn mwait(&mut self, cpu: &CpuState, monitor: bool) -> Result<(), Stop> {
        self.intercept(cpu, if monitor { Intercept::Monitor } else { Intercept::Mwait })?;
        Err(Stop::Fault(Exception::UD))
    }

    fn wbinvd(&mut self, cpu: &CpuState, invd: bool) -> Result<(), Stop> {
        self.intercept(cpu, if invd { Intercept::Invd } else { Intercept::Wbinvd })
    }

    fn vmcall(&mut self, cpu: &mut CpuState, intel: bool) -> Result<(), Stop> {
        self.intercept(cpu, Intercept::Vmcall { intel })?;
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
        if self.ctx.vm.snp().is_some() { snp::ghcb::vmgexit(self, cpu) } else { self.vmcall(cpu, false) }
    }

    fn pvalidate(
        &mut self,
        cpu: &mut CpuState,
        gva: u64,
        gpa: u64,
        private: bool,
        large: bool,
    ) -> Result<(), Stop> {
        if self.ctx.vm.snp().is_none() {
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
        if self.ctx.vm.snp().is_none() {
            return Err(Stop::Fault(Exception::UD));
        }
        snp::memory::rmpadjust(self.ctx, cpu, gva, gpa, private, query)
    }

    fn tdcall(&mut self, cpu: &mut CpuState) -> Result<(), Stop> {
        if self.ctx.vm.tdx().is_none() {
            return Err(Stop::Fault(Exception::UD));
        }
        tdx::tdcall::execute(self, cpu)
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
        if bits & attention::HOST_FAULT != 0 {
            return self.ctx.leave(Outcome::ClientFault);
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

fn unknown_msr(what: &str, index: u32) -> Stop {
    if index & 0xffff_0000 != 0xc001_0000 {
        crate::note_once!("{what} of unknown MSR {index:#x} raises #GP (further ones are not reported)");
    }
    Stop::Fault(Exception::GP0)
}
