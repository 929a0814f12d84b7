//! Which TEE guards a VM, and the few things that the machine asks of either.

use softkvm_cpu::{Cpu, CpuState};

use super::ctx::Ctx;
use super::exit::Outcome;
use super::vm::{Vm, VmType};
use crate::snp::{self, SnpVm};
use crate::tdx::{self, TdxVm};
use crate::uapi::errno::Errno;

/// The TEE of a VM.
pub enum Tee {
    /// None: the host sees everything.
    None,
    /// SEV-SNP.
    Snp(Box<SnpVm>),
    /// TDX.
    Tdx(Box<TdxVm>),
}

/// What a TEE keeps from the processor: SEV-ES raises #VC for these, the TDX module #VE, #GP or #UD.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Intercept {
    /// An access to the xAPIC page.
    Apic,
    /// CPUID.
    Cpuid,
    /// IN, OUT, INS or OUTS.
    Port { port: u16, bytes: u8, input: bool, string: bool },
    /// HLT.
    Hlt,
    /// MONITOR.
    Monitor,
    /// MWAIT.
    Mwait,
    /// INVD.
    Invd,
    /// WBINVD.
    Wbinvd,
    /// RDPMC.
    Rdpmc,
    /// MOV from or to DR7.
    Dr7 { write: bool },
    /// VMCALL, or VMMCALL.
    Vmcall { intel: bool },
}

/// What the next KVM_RUN finishes, once the client has answered a request that the guest made of its host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Completion {
    /// A VMGEXIT.
    Snp(snp::ghcb::Completion),
    /// A TDG.VP.VMCALL.
    Tdx(tdx::vmcall::Completion),
}

impl Completion {
    /// Gives the guest its answer. `Some` if the client must be asked again at once.
    pub fn finish(self, cpu: &mut Cpu, ctx: &mut Ctx) -> Option<Outcome> {
        match self {
            Self::Snp(completion) => completion.finish(cpu, ctx),
            Self::Tdx(completion) => completion.finish(cpu, ctx),
        }
    }
}

impl Tee {
    /// The TEE that goes with a machine type.
    pub fn of(vm_type: VmType) -> Self {
        match vm_type {
            VmType::Default | VmType::SwProtected => Self::None,
            VmType::Snp => Self::Snp(Box::default()),
            VmType::Tdx => Self::Tdx(Box::default()),
        }
    }

    /// Is it time for KVM_CREATE_VCPU?
    pub fn may_create_vcpu(&self, vm: &Vm) -> Result<(), Errno> {
        match self {
            Self::None | Self::Snp(_) => Ok(()),
            Self::Tdx(tdx) => tdx.may_create_vcpu(vm),
        }
    }

    /// May this vCPU run?
    pub fn may_run(&self, ctx: &Ctx) -> Result<(), Errno> {
        match self {
            Self::None => Ok(()),
            Self::Snp(snp) => snp.may_run(),
            Self::Tdx(tdx) => tdx.may_run(ctx),
        }
    }

    /// A new vCPU's processor: how a page-table entry tells private from shared.
    pub fn prepare(&self, state: &mut CpuState) {
        match self {
            Self::None => {}
            Self::Snp(snp) => snp.prepare(state),
            Self::Tdx(tdx) => tdx.prepare(state),
        }
    }

    /// Do the registers belong to the guest from KVM_CREATE_VCPU on?
    pub fn born_protected(&self) -> bool {
        matches!(self, Self::Tdx(tdx) if !tdx.debuggable())
    }
}

impl Vm {
    /// SEV-SNP state of an SNP VM.
    pub fn snp(&self) -> Option<&SnpVm> {
        match &self.tee {
            Tee::Snp(snp) => Some(snp),
            Tee::None | Tee::Tdx(_) => None,
        }
    }

    /// TDX state of a TD.
    pub fn tdx(&self) -> Option<&TdxVm> {
        match &self.tee {
            Tee::Tdx(tdx) => Some(tdx),
            Tee::None | Tee::Snp(_) => None,
        }
    }
}
