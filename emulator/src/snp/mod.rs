//! SEV-SNP: the RMP, VMSAs, #VC, the GHCB protocol as KVM speaks it, the launch, and the secure processor's mailbox.
//!
//! Must never: let an access through one view of a page see the other view's bytes; change private memory on
//! behalf of the host after the launch.

pub mod ap;
pub mod exit;
pub mod ghcb;
pub mod launch;
pub mod memory;
pub mod page;
pub mod psp;
pub mod request;
pub mod rmp;
pub mod vc;
pub mod vmsa;

use std::sync::{Mutex, MutexGuard};

use softkvm_cpu::{CpuState, MemoryEncryption};

use crate::uapi::cpuid::{C_BIT, PHYSICAL_BITS};
use crate::uapi::errno::Errno;

/// SEV_FEATURES that KVM_SEV_INIT2 accepts (KVM_X86_SEV_VMSA_FEATURES): none beyond SNP itself, which is implied.
pub const VMSA_FEATURES_SUPPORTED: u64 = 0;
/// SEV_FEATURES bit 0.
pub const FEATURE_SNP_ACTIVE: u64 = 1;

/// SEV-SNP state of a VM.
#[derive(Default)]
pub struct SnpVm {
    launch: Mutex<launch::Launch>,
}

impl SnpVm {
    /// The launch state and the guest context.
    pub fn launch(&self) -> MutexGuard<'_, launch::Launch> {
        self.launch.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    /// KVM runs no vCPU before KVM_SEV_INIT2.
    pub fn may_run(&self) -> Result<(), Errno> {
        if self.launch().initialised() { Ok(()) } else { Err(Errno::EINVAL) }
    }

    /// A new vCPU's processor knows the C-bit.
    pub fn prepare(&self, state: &mut CpuState) {
        state.memory_encryption = MemoryEncryption::CBit(C_BIT);
        state.physical_address_bits = PHYSICAL_BITS;
    }
}

/// SEV-SNP state of a vCPU.
#[derive(Debug, Default)]
pub struct SnpVcpu {
    /// MSR C001_0130.
    pub ghcb_msr: u64,
    /// The GHCB GPA that the guest registered.
    pub ghcb_registered: Option<u64>,
    /// VMPL of the VMSA that runs.
    pub vmpl: u8,
    /// SEV_FEATURES of the VMSA that runs.
    pub sev_features: u64,
    /// What a SIPI means to this vCPU.
    pub startup: ap::Startup,
}
