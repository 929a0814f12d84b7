//! AP creation: the guest brings its own save areas (GHCB specification, "SNP AP Creation").

use std::sync::Arc;
use std::sync::atomic::Ordering;

use kvm_bindings::{KVM_MP_STATE_RUNNABLE, KVM_MP_STATE_UNINITIALIZED};

use super::page::ZERO;
use super::rmp::Entry;
use super::{ghcb, vmsa};
use crate::machine::ctx::Ctx;
use crate::machine::vcpu::{Inner, attention};

/// What is to become of a vCPU.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ApRequest {
    /// Run from the save area at this GPA.
    Create(u64),
    /// Stop.
    Destroy,
}

/// What the next SIPI finds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Startup {
    /// The save area of the launch, which nobody has run yet.
    #[default]
    Launched,
    /// A guest that runs, or waits for nothing.
    Running,
    /// AP_RESET_HOLD, asked for by the GHCB page at this GPA.
    HeldByEvent(u64),
    /// AP_RESET_HOLD, asked for by the MSR protocol.
    HeldByMsr,
    /// A vCPU whose save area the guest has taken away.
    Destroyed,
}

/// A SIPI: the first starts the vCPU where the launch has put it, a later one ends an AP_RESET_HOLD (linux:
/// sev_vcpu_deliver_sipi_vector). `false` if there is nothing to run.
pub fn startup(ctx: &mut Ctx) -> bool {
    match std::mem::replace(&mut ctx.snp.startup, Startup::Running) {
        Startup::Launched | Startup::Running => true,
        Startup::HeldByEvent(ghcb) => {
            ghcb::end_hold(&ctx.vm, ghcb);
            true
        }
        Startup::HeldByMsr => {
            ctx.snp.ghcb_msr = ghcb::HOLD_ENDED;
            true
        }
        Startup::Destroyed => {
            ctx.snp.startup = Startup::Destroyed;
            false
        }
    }
}

/// Handles the guest's AP_CREATION; `false` means invalid input.
pub fn request(ctx: &Ctx, exit_info_1: u64, vmsa_gpa: u64, sev_features: u64) -> bool {
    const ON_INIT: u32 = 0;
    const CREATE: u32 = 1;
    const DESTROY: u32 = 2;
    let (operation, apic_id) = (exit_info_1 as u32 & 0xffff, (exit_info_1 >> 32) as u32);
    let Some(target) = ctx.vm.vcpus().into_iter().find(|vcpu| vcpu.id == apic_id) else { return false };
    let request = match operation {
        DESTROY => ApRequest::Destroy,
        ON_INIT | CREATE => {
            // KVM: the features are the VM's, the address is page aligned and not 2 MiB aligned (an erratum of hardware).
            let aligned = vmsa_gpa & 0xfff == 0 && vmsa_gpa & 0x1f_ffff != 0;
            if sev_features != ctx.snp.sev_features || !aligned || ctx.vm.slots().find(vmsa_gpa).is_none() {
                return false;
            }
            ApRequest::Create(vmsa_gpa)
        }
        _ => return false,
    };
    if let Ok(mut slot) = target.ap_request.lock() {
        *slot = Some(request);
    }
    // ON_INIT waits for the INIT that follows it; a guest that sends none does not want the AP to run.
    if operation != ON_INIT {
        target.notify(attention::INIT);
    }
    true
}

/// On the target's own thread.
pub fn apply(inner: &mut Inner, request: ApRequest) {
    inner.ctx.snp.startup = Startup::Destroyed;
    let state = match request {
        ApRequest::Destroy => KVM_MP_STATE_UNINITIALIZED,
        ApRequest::Create(gpa) if start(inner, gpa) => {
            inner.ctx.snp.startup = Startup::Running;
            KVM_MP_STATE_RUNNABLE
        }
        ApRequest::Create(gpa) => {
            eprintln!(
                "softkvm: vCPU {}: the page at {gpa:#x} is not a save area that VMRUN accepts",
                inner.ctx.shared.id
            );
            KVM_MP_STATE_UNINITIALIZED
        }
    };
    inner.ctx.shared.mp_state.store(state, Ordering::SeqCst);
}

fn start(inner: &mut Inner, gpa: u64) -> bool {
    let vm = Arc::clone(&inner.ctx.vm);
    let slots = vm.slots();
    // VMRUN takes the page only if the RMP says that it is a validated VMSA of this frame.
    let entry = slots.find(gpa).and_then(|slot| slot.tee_word(gpa)).map(Entry::load);
    let usable = entry.is_some_and(|e| e.validated() && e.vmsa() && e.gfn() == gpa / 4096);
    let mut page = ZERO;
    if !usable || !vm.is_private(gpa) || vm.read_private(gpa, &mut page).is_err() {
        return false;
    }
    let Some(loaded) = vmsa::load(&mut inner.cpu.state, &page) else { return false };
    inner.ctx.snp.vmpl = loaded.vmpl;
    inner.ctx.snp.sev_features = loaded.sev_features;
    inner.cpu.state_changed();
    inner.cpu.flush_tlb();
    true
}
