//! What the TEEs share: two views of a page that the client's attributes choose between, a word of the TEE's own beside
//! every private page, and pages that enter and leave the guest.
//!
//! The word is an RMP entry (SEV-SNP) or a secure-EPT entry (TDX). Zero, in both, means that the page is not the guest's.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use softkvm_cpu::{HostPage, PageRequest, Stop};

use super::ctx::Ctx;
use super::exit::Outcome;
use super::gmem::PAGE;
use super::memory::Slot;
use super::vm::Vm;
use crate::uapi::errno::Errno;

/// Where an access leads, before the TEE has judged it.
pub enum View {
    /// To no memslot.
    Nothing,
    /// To the memory that the host shares.
    Shared(HostPage),
    /// To private memory of this memslot: the TEE's to judge.
    Private(Arc<Slot>),
}

/// KVM_EXIT_MEMORY_FAULT.
pub fn memory_fault<T>(ctx: &mut Ctx, gpa: u64, private: bool) -> Result<T, Stop> {
    ctx.run.exit_memory_fault(gpa, private);
    ctx.leave(Outcome::ClientFault)
}

/// The first half of a confidential guest's TLB fill: the memslot, and whether the client's attribute agrees with the
/// view that the guest wants. An attribute that disagrees is the client's to change.
pub fn view(ctx: &mut Ctx, request: &PageRequest, private: bool) -> Result<View, Stop> {
    let slots = ctx.vm.slots();
    let Some(slot) = slots.find(request.gpa) else { return Ok(View::Nothing) };
    if private != ctx.vm.is_private(request.gpa) {
        return memory_fault(ctx, request.gpa, private);
    }
    if private {
        return Ok(View::Private(Arc::clone(slot)));
    }
    match slot.grant(request.gpa, request.access) {
        Some(page) => Ok(View::Shared(HostPage { executable: false, ..page })),
        None => ctx.leave(Outcome::ClientFault),
    }
}

/// The memslot behind an operation on `bytes` of private memory, if the client gave all of it to the guest.
pub fn backed(ctx: &mut Ctx, gpa: u64, bytes: u64) -> Result<Arc<Slot>, Stop> {
    let start = gpa & !(bytes - 1);
    let slots = ctx.vm.slots();
    let slot = slots.find(start).filter(|slot| slot.gmem.is_some() && start + bytes <= slot.gpa + slot.bytes);
    match slot {
        Some(slot) if ctx.vm.all_private(start, bytes) => Ok(Arc::clone(slot)),
        _ => memory_fault(ctx, gpa, true),
    }
}

/// This vCPU's TLB goes now, the others' soon.
pub fn drop_everywhere(ctx: &mut Ctx) {
    ctx.vm.flush_others(ctx.shared.id);
    ctx.shared.request_flush();
}

/// Gives a launch page to the guest: contents, and the TEE's word.
pub fn place(vm: &Vm, gpa: u64, page: &[u8; PAGE as usize], word: u64) -> Result<(), Errno> {
    vm.write_private(gpa, page)?;
    let slots = vm.slots();
    let slot = slots.find(gpa).ok_or(Errno::EFAULT)?;
    let _changing = slot.change();
    slot.tee_word(gpa).ok_or(Errno::EFAULT)?.store(word, Ordering::SeqCst);
    Ok(())
}

/// Is the page already the guest's? Populating it again is EEXIST.
pub fn placed(vm: &Vm, gpa: u64) -> bool {
    let slots = vm.slots();
    slots.find(gpa).and_then(|slot| slot.tee_word(gpa)).is_some_and(|word| word.load(Ordering::SeqCst) != 0)
}

/// Pages that the host takes back leave the guest: a later use of the same address meets a page that the guest has not
/// accepted.
pub fn taken_back(vm: &Vm, gpa: u64, bytes: u64) {
    let slots = vm.slots();
    for at in (gpa..gpa.saturating_add(bytes)).step_by(PAGE as usize) {
        let Some(slot) = slots.find(at) else { continue };
        let _changing = slot.change();
        if let Some(word) = slot.tee_word(at) {
            word.store(0, Ordering::SeqCst);
        }
    }
}
