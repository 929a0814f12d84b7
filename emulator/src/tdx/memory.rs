//! How secure EPT judges accesses, TDG.MEM.PAGE.ACCEPT, and the module's own accesses on behalf of a TDCALL.

use std::sync::Arc;

use softkvm_cpu::{Access, CpuState, Exception, HostPage, PageRequest, Stop};

use super::sept::{Entry, State};
use super::status::{self, operand};
use super::ve;
use crate::machine::confidential::{View, backed, memory_fault, view};
use crate::machine::ctx::Ctx;
use crate::machine::exit::Outcome;
use crate::machine::gmem::{Changing, PAGE};
use crate::machine::memory::Slot;
use crate::uapi::user;

const LARGE_PAGE: u64 = 2 << 20;

/// Judges an access of a TD.
pub fn resolve(ctx: &mut Ctx, cpu: &CpuState, request: &PageRequest) -> Result<HostPage, Stop> {
    if !request.private && (request.walk || request.access == Access::Execute) {
        return Err(Stop::Fault(shared_code(request)));
    }
    match view(ctx, request, request.private)? {
        View::Shared(page) => Ok(page),
        View::Private(slot) => private_page(ctx, cpu, &slot, request),
        // MMIO is the guest's to emulate. A private access to nothing is an error that KVM reports.
        View::Nothing if request.private => memory_fault(ctx, request.gpa, true),
        View::Nothing => ve::ept_violation(ctx, cpu, request),
    }
}

/// Code and page tables must be private: #PF with the reserved-bit error (Intel TDX CPU architectural extensions).
fn shared_code(request: &PageRequest) -> Exception {
    const PRESENT_RESERVED: u32 = 1 | 1 << 3;
    let code = PRESENT_RESERVED
        | u32::from(request.access == Access::Write) << 1
        | u32::from(request.user) << 2
        | u32::from(request.access == Access::Execute) << 4;
    Exception::page_fault(code, request.gva)
}

/// The entry of a private page; KVM adds the page at the first fault on it (TDH.MEM.PAGE.AUG). `None`: it is another
/// frame's.
fn entry_of(slot: &Slot, gpa: u64) -> Option<Entry> {
    let word = slot.tee_word(gpa)?;
    let entry = Entry::load(word);
    if entry.state() != State::Free {
        return (entry.gfn() == gpa / PAGE).then_some(entry);
    }
    let changing = slot.change()?;
    entry_to_change(slot, gpa, &changing)
}

/// The same, for somebody who goes on to change it.
fn entry_to_change(slot: &Slot, gpa: u64, _: &Changing<'_>) -> Option<Entry> {
    let word = slot.tee_word(gpa)?;
    if Entry::load(word).state() == State::Free {
        Entry::new(gpa / PAGE, State::Pending, false).store(word);
    }
    Some(Entry::load(word)).filter(|entry| entry.gfn() == gpa / PAGE)
}

fn private_page(ctx: &mut Ctx, cpu: &CpuState, slot: &Slot, request: &PageRequest) -> Result<HostPage, Stop> {
    let Some(entry) = entry_of(slot, request.gpa) else { return memory_fault(ctx, request.gpa, true) };
    if entry.state() == State::Pending {
        let disabled =
            ctx.vm.tdx().is_some_and(|tdx| tdx.pending_ve_disable.load(std::sync::atomic::Ordering::Relaxed));
        if !disabled {
            return ve::ept_violation(ctx, cpu, request);
        }
        // KVM: "Guest access before accepting", and the end of the VM.
        eprintln!(
            "softkvm: vCPU {}: the guest used {:#x} before accepting it; the TD is dead",
            ctx.shared.id, request.gpa
        );
        return ctx.leave(Outcome::Dead);
    }
    match slot.private_page(request.gpa) {
        Some(host) => Ok(HostPage { host, writable: true, executable: true }),
        None => memory_fault(ctx, request.gpa, true),
    }
}

/// TDG.MEM.PAGE.ACCEPT: RCX holds the GPA and in its low bits the level (0: 4 KiB, 1: 2 MiB).
pub fn accept(ctx: &mut Ctx, rcx: u64) -> Result<u64, Stop> {
    const BAD_RCX: u64 = status::OPERAND_INVALID | operand::RCX;
    let (level, gpa) = (rcx & 7, rcx & !0xfff);
    let gpaw = ctx.vm.tdx().and_then(|tdx| tdx.parameters()).map(|p| p.gpaw);
    let bytes = match level {
        0 => PAGE,
        1 => LARGE_PAGE,
        _ => return Ok(BAD_RCX),
    };
    let private = gpaw.and_then(|w| w.split(gpa)).is_some_and(|(_, private)| private);
    if rcx & 0xff8 != 0 || !private || gpa & (bytes - 1) != 0 {
        return Ok(BAD_RCX);
    }
    if level == 0 { accept_small(ctx, gpa) } else { accept_large(ctx, gpa) }
}

fn accept_small(ctx: &mut Ctx, gpa: u64) -> Result<u64, Stop> {
    let slot = backed(ctx, gpa, PAGE)?;
    match accept_page(&slot, gpa) {
        Some(status) => Ok(status),
        None => memory_fault(ctx, gpa, true),
    }
}

/// Accepts one page of 4 KiB; `None` if its memory is another frame's.
fn accept_page(slot: &Slot, gpa: u64) -> Option<u64> {
    let changing = slot.change()?;
    let entry = entry_to_change(slot, gpa, &changing)?;
    if entry.state() == State::Mapped {
        return Some(status::PAGE_ALREADY_ACCEPTED | u64::from(entry.large()));
    }
    if entry.large() {
        // The module exits to a host that would accept part of a large page: the host splits it and tries again.
        demote(slot, gpa & !(LARGE_PAGE - 1));
    }
    let (host, word) = (slot.private_page(gpa)?, slot.tee_word(gpa)?);
    // Acceptance initialises: whatever the host left in the page is gone.
    // SAFETY: a page of live private memory; nobody may use it before the entry says so, and nobody else accepts it.
    unsafe { std::ptr::write_bytes(host, 0, PAGE as usize) };
    Entry::new(gpa / PAGE, State::Mapped, false).store(word);
    Some(status::SUCCESS)
}

fn pages(gpa: u64) -> impl Iterator<Item = u64> {
    (gpa..gpa + LARGE_PAGE).step_by(PAGE as usize)
}

fn demote(slot: &Slot, gpa: u64) {
    for at in pages(gpa) {
        if let Some(word) = slot.tee_word(at) {
            let entry = Entry::load(word);
            Entry::new(at / PAGE, entry.state(), false).store(word);
        }
    }
}

/// The host backs 2 MiB with one page if the whole range is private, in one memslot, and none of it is mapped yet.
fn accept_large(ctx: &mut Ctx, gpa: u64) -> Result<u64, Stop> {
    let slots = ctx.vm.slots();
    let whole = slots
        .find(gpa)
        .filter(|slot| slot.gmem.is_some() && gpa + LARGE_PAGE <= slot.gpa + slot.bytes)
        .filter(|_| ctx.vm.all_private(gpa, LARGE_PAGE))
        .map(Arc::clone);
    let Some(slot) = whole else {
        // It backs only the first page, which makes the entry at this level a table.
        let slot = backed(ctx, gpa, PAGE)?;
        if entry_of(&slot, gpa).is_none() {
            return memory_fault(ctx, gpa, true);
        }
        return Ok(status::PAGE_SIZE_MISMATCH | 1);
    };
    Ok(accept_range(&slot, gpa))
}

/// Accepts 2 MiB that the host backs with one page.
fn accept_range(slot: &Slot, gpa: u64) -> u64 {
    let _changing = slot.change();
    let entries: Vec<Entry> = pages(gpa).filter_map(|at| slot.tee_word(at).map(Entry::load)).collect();
    let all =
        |state: State| entries.iter().all(|e| e.state() == state && (state == State::Free || e.large()));
    if all(State::Mapped) {
        return status::PAGE_ALREADY_ACCEPTED | 1;
    }
    if !all(State::Free) && !all(State::Pending) {
        return status::PAGE_SIZE_MISMATCH | 1;
    }
    if let Some((memory, offset)) = slot.private(gpa) {
        memory.zero(offset, LARGE_PAGE);
    }
    for at in pages(gpa) {
        if let Some(word) = slot.tee_word(at) {
            Entry::new(at / PAGE, State::Mapped, true).store(word);
        }
    }
    status::SUCCESS
}

/// Which view an operand of a TDCALL may lie in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Views {
    /// Private memory only.
    Private,
    /// Either.
    Either,
}

/// The host address of an operand that lies inside one page. `Ok(None)`: the address is not valid.
fn operand_page(
    ctx: &mut Ctx,
    cpu: &CpuState,
    gpa: u64,
    access: Access,
    views: Views,
) -> Result<Option<*mut u8>, Stop> {
    let gpaw = ctx.vm.tdx().and_then(|tdx| tdx.parameters()).map(|p| p.gpaw);
    let Some((address, private)) = gpaw.and_then(|w| w.split(gpa)) else { return Ok(None) };
    if !private && views == Views::Private {
        return Ok(None);
    }
    let request = PageRequest { gpa: address, gva: 0, access, private, user: false, walk: false };
    let page = resolve(ctx, cpu, &request)?;
    // SAFETY: an offset inside the page that was granted.
    Ok(Some(unsafe { page.host.add((address & (PAGE - 1)) as usize) }))
}

/// Reads an operand of a TDCALL that is aligned so that it cannot cross a page.
pub fn read_operand(
    ctx: &mut Ctx,
    cpu: &CpuState,
    gpa: u64,
    views: Views,
    data: &mut [u8],
) -> Result<bool, Stop> {
    let Some(host) = operand_page(ctx, cpu, gpa, Access::Read, views)? else { return Ok(false) };
    match user::read_bytes(host as usize, data) {
        Ok(()) => Ok(true),
        Err(_) => ctx.leave(Outcome::ClientFault),
    }
}

/// Writes an operand of a TDCALL that is aligned so that it cannot cross a page.
pub fn write_operand(
    ctx: &mut Ctx,
    cpu: &CpuState,
    gpa: u64,
    views: Views,
    data: &[u8],
) -> Result<bool, Stop> {
    let Some(host) = operand_page(ctx, cpu, gpa, Access::Write, views)? else { return Ok(false) };
    match user::write_bytes(host as usize, data) {
        Ok(()) => Ok(true),
        Err(_) => ctx.leave(Outcome::ClientFault),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Barrier;
    use std::sync::atomic::{AtomicU32, Ordering};

    use super::*;
    use crate::machine::memory::tests::private_slot;

    #[test]
    fn of_two_processors_that_accept_a_page_one_succeeds_and_its_data_stays() {
        for large in [false, true] {
            for round in 0..400 {
                let slot = private_slot(LARGE_PAGE);
                let accept = |slot: &Slot| {
                    if large { accept_range(slot, 0) } else { accept_page(slot, 0).expect("a page") }
                };
                let (barrier, successes) = (Barrier::new(2), AtomicU32::new(0));
                std::thread::scope(|scope| {
                    for _ in 0..2 {
                        scope.spawn(|| {
                            barrier.wait();
                            if accept(&slot) == status::SUCCESS {
                                successes.fetch_add(1, Ordering::SeqCst);
                                // What a guest does with a page that is its own.
                                // SAFETY: inside the test's own memory.
                                unsafe { slot.private_page(0).expect("a page").write_volatile(0x5a) };
                            }
                        });
                    }
                });
                // SAFETY: as above.
                let data = unsafe { slot.private_page(0).expect("a page").read_volatile() };
                assert_eq!((successes.into_inner(), data), (1, 0x5a), "large {large}, round {round}");
            }
        }
    }
}
