//! TDX: the module's two faces (what KVM asks of it with SEAMCALL, what a guest asks with TDCALL), secure EPT, #VE,
//! measurements, and KVM's half of the guest-host interface.
//!
//! Facts are those of the TDX module 1.5 ("Intel TDX Module ABI Reference", and its published source) and of KVM's
//! `Documentation/virt/kvm/x86/intel-tdx.rst`.
//!
//! Must never: show a guest a private page that it has not accepted; change private memory on behalf of the host after
//! KVM_TDX_FINALIZE_VM; let the host choose what CPUID says of the processor's features.

pub mod cpuid;
pub mod launch;
pub mod memory;
pub mod metadata;
pub mod mr;
pub mod msr;
pub mod quoting;
pub mod report;
pub mod sept;
pub mod status;
pub mod tdcall;
pub mod ve;
pub mod vmcall;

#[cfg(test)]
mod coverage;

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, OnceLock};

use kvm_bindings::KVM_MP_STATE_RUNNABLE;
use softkvm_cpu::{CpuState, MemoryEncryption, Segment, SegmentTable};

use crate::machine::clock::TSC_KHZ;
use crate::machine::ctx::Ctx;
use crate::machine::lapic;
use crate::machine::vcpu::Inner;
use crate::machine::vm::Vm;
use crate::uapi::errno::Errno;
use launch::{Parameters, State, Td};

/// What the module counts TSC frequencies in.
pub const TSC_UNIT_KHZ: u32 = 25_000;
/// TSC_FREQUENCY of every TD here.
pub const TSC_UNITS: u32 = TSC_KHZ / TSC_UNIT_KHZ;

/// TDX state of a VM.
#[derive(Default)]
pub struct TdxVm {
    td: Mutex<Td>,
    parameters: OnceLock<Parameters>,
    /// TD_CTLS.PENDING_VE_DISABLE.
    pub pending_ve_disable: AtomicBool,
    /// NOTIFY_ENABLES.
    pub notify_enables: AtomicU64,
}

impl TdxVm {
    /// The TD's life cycle and measurements.
    pub fn td(&self) -> MutexGuard<'_, Td> {
        self.td.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    /// What KVM_TDX_INIT_VM fixed; `None` before it.
    pub fn parameters(&self) -> Option<&Parameters> {
        self.parameters.get()
    }

    /// TDH.MNG.INIT, as far as it can be undone no more.
    pub fn fix(&self, parameters: Parameters) -> Result<(), Errno> {
        self.pending_ve_disable
            .store(parameters.attributes & launch::attribute::SEPT_VE_DISABLE != 0, Ordering::SeqCst);
        self.parameters.set(parameters).map_err(|_| Errno::EINVAL)?;
        self.td().state = State::Initialised;
        Ok(())
    }

    /// KVM refuses vCPUs before KVM_TDX_INIT_VM, and without an in-kernel LAPIC.
    pub fn may_create_vcpu(&self, vm: &Vm) -> Result<(), Errno> {
        match self.td().state {
            State::Initialised if vm.lapic_in_kernel() => Ok(()),
            State::Initialised => Err(Errno::EINVAL),
            _ => Err(Errno::EIO),
        }
    }

    /// KVM_RUN before KVM_TDX_INIT_VCPU or KVM_TDX_FINALIZE_VM is EINVAL.
    pub fn may_run(&self, ctx: &Ctx) -> Result<(), Errno> {
        let ready = ctx.tdx.initialised && self.td().state == State::Runnable;
        if ready { Ok(()) } else { Err(Errno::EINVAL) }
    }

    /// A new vCPU's processor knows the shared bit.
    pub fn prepare(&self, state: &mut CpuState) {
        if let Some(parameters) = self.parameters() {
            state.memory_encryption = MemoryEncryption::SharedBit(parameters.gpaw.shared_bit());
            state.physical_address_bits = parameters.gpaw.bits();
        }
    }

    /// ATTRIBUTES.DEBUG: KVM may look at the registers.
    pub fn debuggable(&self) -> bool {
        self.parameters().is_some_and(|p| p.attributes & launch::attribute::DEBUG != 0)
    }
}

/// TDX state of a vCPU (the part of TDVPS that is not a register).
#[derive(Debug, Default)]
pub struct TdxVcpu {
    /// KVM_TDX_INIT_VCPU is done.
    pub initialised: bool,
    /// VE_INFO.
    pub ve: ve::Info,
    /// TDG.VP.CPUIDVE.SET: every CPUID at CPL 0 raises #VE.
    pub cpuid_supervisor_ve: bool,
    /// As above, at CPL 1 to 3.
    pub cpuid_user_ve: bool,
}

/// KVM_TDX_INIT_VCPU: TDH.VP.INIT, and the LAPIC in x2APIC mode.
pub fn init_vcpu(inner: &mut Inner, rcx: u64) -> Result<(), Errno> {
    let vm = std::sync::Arc::clone(&inner.ctx.vm);
    let parameters = vm.tdx().and_then(TdxVm::parameters).ok_or(Errno::EINVAL)?;
    if inner.ctx.tdx.initialised {
        return Err(Errno::EINVAL);
    }
    // KVM checks the mode against KVM_SET_CPUID2's table.
    let x2apic = inner.ctx.cpuid.iter().any(|e| e.function == 1 && e.ecx & (1 << 21) != 0);
    let bsp = if inner.ctx.shared.id == 0 { lapic::BASE_BSP } else { 0 };
    let base = lapic::DEFAULT_ADDRESS | lapic::BASE_ENABLE | lapic::BASE_X2APIC | bsp;
    if !x2apic || inner.ctx.shared.lapic().set_base_from_user(base).is_err() {
        return Err(Errno::EINVAL);
    }
    reset(&mut inner.cpu.state, parameters, inner.ctx.shared.id, rcx);
    inner.cpu.state_changed();
    inner.ctx.tdx.initialised = true;
    inner.ctx.shared.mp_state.store(KVM_MP_STATE_RUNNABLE, Ordering::SeqCst);
    Ok(())
}

/// The state in which a TD's vCPU starts (TDX module base specification, "TD VCPU Initial State"): 32-bit protected mode,
/// flat segments, paging off, at the reset vector.
fn reset(state: &mut CpuState, parameters: &Parameters, index: u32, rcx: u64) {
    const CODE: u16 = 0xc9b;
    const DATA: u16 = 0xc93;
    /// PE, ET, NE.
    const CR0: u64 = 0x31;
    /// MCE. VMXE is hidden by the read shadow.
    const CR4: u64 = 0x40;
    /// SCE, LME, NXE.
    const EFER: u64 = 0x901;
    let flat = |attributes| Segment { selector: 0, base: 0, limit: u32::MAX, attributes };
    let (encryption, width) = (state.memory_encryption, state.physical_address_bits);
    *state = CpuState::reset();
    (state.memory_encryption, state.physical_address_bits) = (encryption, width);
    state.seg = [flat(DATA); 6];
    state.seg[1] = flat(CODE);
    state.gdtr = SegmentTable { base: 0, limit: 0xffff };
    state.idtr = SegmentTable { base: 0, limit: 0 };
    state.rip = 0xffff_fff0;
    (state.cr0, state.cr4, state.efer) = (CR0, CR4, EFER);
    state.gpr = [0; 16];
    state.gpr[CpuState::RBX] = u64::from(parameters.gpaw.bits());
    state.gpr[CpuState::RCX] = rcx;
    state.gpr[8] = rcx;
    state.gpr[CpuState::RDX] = u64::from(parameters.cpuid.signature());
    state.gpr[6] = u64::from(index);
}
