//! How the RMP judges accesses, and the instructions that change it.

use softkvm_cpu::{Access, CpuState, Exception, HostPage, PageRequest, Stop};

use super::exit;
use super::rmp::{Entry, permission};
use crate::machine::confidential::{View, backed, drop_everywhere, memory_fault, view};
use crate::machine::ctx::Ctx;
use crate::machine::gmem::Changing;
use crate::machine::memory::Slot;

const PAGE: u64 = 4096;
const LARGE_PAGE: u64 = 2 << 20;
const LARGE_PAGES: u64 = LARGE_PAGE / PAGE;

/// Results of PVALIDATE and RMPADJUST in EAX (APM volume 3).
const SUCCESS: u64 = 0;
const FAIL_INPUT: u64 = 1;
const FAIL_PERMISSION: u64 = 2;
const FAIL_SIZE_MISMATCH: u64 = 6;

/// Judges an access of an SNP guest.
///
/// Page tables and instructions are always read through the private view, and so is everything before PAE paging
/// is on (APM volume 2, "Encrypted Memory Access by SEV Guests").
pub fn resolve(ctx: &mut Ctx, cpu: &CpuState, request: &PageRequest) -> Result<HostPage, Stop> {
    let c_bit_works = cpu.cr0 >> 31 & 1 != 0 && cpu.cr4 & 0x20 != 0;
    let private = request.private || request.walk || request.access == Access::Execute || !c_bit_works;
    match view(ctx, request, private)? {
        View::Shared(page) => Ok(page),
        View::Private(slot) => private_page(ctx, &slot, request),
        // MMIO is the guest's to emulate through its GHCB. A private access to nothing is an error that KVM reports.
        View::Nothing if private => memory_fault(ctx, request.gpa, true),
        View::Nothing => Err(Stop::Fault(Exception::vc(exit::NPF))),
    }
}

/// The RMP entry of a private page; KVM assigns the page at the first fault on it. `None`: it is another frame's.
fn entry_of(slot: &Slot, gpa: u64) -> Option<Entry> {
    let word = slot.tee_word(gpa)?;
    let entry = Entry::load(word);
    if entry.assigned() {
        return (entry.gfn() == gpa / PAGE).then_some(entry);
    }
    let changing = slot.change()?;
    entry_to_change(slot, gpa, &changing)
}

/// The same, for somebody who goes on to change it.
fn entry_to_change(slot: &Slot, gpa: u64, _: &Changing<'_>) -> Option<Entry> {
    let word = slot.tee_word(gpa)?;
    if !Entry::load(word).assigned() {
        Entry::assigned_to(gpa / PAGE, false).store(word);
    }
    Some(Entry::load(word)).filter(|entry| entry.gfn() == gpa / PAGE)
}

fn private_page(ctx: &mut Ctx, slot: &Slot, request: &PageRequest) -> Result<HostPage, Stop> {
    let Some(entry) = entry_of(slot, request.gpa) else { return memory_fault(ctx, request.gpa, true) };
    if !entry.validated() {
        return Err(Stop::Fault(Exception::vc(exit::PAGE_NOT_VALIDATED)));
    }
    let permissions = entry.permissions(ctx.snp.vmpl);
    let execute = if request.user { permission::EXECUTE_USER } else { permission::EXECUTE_SUPERVISOR };
    let needed = match request.access {
        Access::Read => permission::READ,
        Access::Write => permission::WRITE,
        Access::Execute => execute,
    };
    // A VMSA in use is not software's to change.
    if permissions & needed == 0 || (entry.vmsa() && request.access == Access::Write) {
        return memory_fault(ctx, request.gpa, true);
    }
    let Some(host) = slot.private_page(request.gpa) else { return memory_fault(ctx, request.gpa, true) };
    Ok(HostPage {
        host,
        writable: permissions & permission::WRITE != 0 && !entry.vmsa(),
        executable: permissions & execute != 0,
    })
}

/// EAX and the flags that follow it; CF as given.
fn answer(cpu: &mut CpuState, eax: u64, carry: bool) {
    const CF: u64 = 1;
    const PF: u64 = 1 << 2;
    const AF: u64 = 1 << 4;
    const ZF: u64 = 1 << 6;
    const SF: u64 = 1 << 7;
    const OF: u64 = 1 << 11;
    cpu.gpr[CpuState::RAX] = eax;
    let mut flags = cpu.rflags & !(CF | PF | AF | ZF | SF | OF);
    if eax == 0 {
        flags |= ZF;
    }
    if (eax as u8).count_ones().is_multiple_of(2) {
        flags |= PF;
    }
    if carry {
        flags |= CF;
    }
    cpu.rflags = flags;
}

/// The RMP words of the pages of an operation, each with its address.
fn range(gpa: u64, large: bool) -> impl Iterator<Item = u64> + Clone {
    let (start, count) = if large { (gpa & !(LARGE_PAGE - 1), LARGE_PAGES) } else { (gpa & !(PAGE - 1), 1) };
    (0..count).map(move |i| start + i * PAGE)
}

/// PVALIDATE: EAX (result), CF (nothing changed). RCX: page size, EDX: validate or rescind.
pub fn pvalidate(
    ctx: &mut Ctx,
    cpu: &mut CpuState,
    _gva: u64,
    gpa: u64,
    _private: bool,
    _large: bool,
) -> Result<(), Stop> {
    if cpu.cpl != 0 {
        return Err(Stop::Fault(Exception::GP0));
    }
    // Bit 0 of each counts. Linux passes C booleans in CL and DL and leaves the rest of the registers as they were.
    let (large, on) = (cpu.gpr[CpuState::RCX] & 1 != 0, cpu.gpr[CpuState::RDX] & 1 != 0);
    if large && gpa & (LARGE_PAGE - 1) & !(PAGE - 1) != 0 {
        answer(cpu, FAIL_INPUT, false);
        return Ok(());
    }
    if ctx.snp.vmpl != 0 {
        answer(cpu, FAIL_PERMISSION, false);
        return Ok(());
    }
    let fits =
        !large || ctx.vm.slots().find(gpa).is_some_and(|slot| gpa + LARGE_PAGE <= slot.gpa + slot.bytes);
    if !fits {
        // The hypervisor cannot back it with a large page: its RMP entries are small.
        answer(cpu, FAIL_SIZE_MISMATCH, false);
        return Ok(());
    }
    let slot = backed(ctx, gpa, if large { LARGE_PAGE } else { PAGE })?;
    match set_validated(&slot, gpa, large, on) {
        Err(Refused::SizeMismatch) => answer(cpu, FAIL_SIZE_MISMATCH, false),
        Err(Refused::Elsewhere(at)) => return memory_fault(ctx, at, true),
        Ok(changed) => {
            answer(cpu, SUCCESS, !changed);
            if !on && changed {
                drop_everywhere(ctx);
            }
        }
    }
    Ok(())
}

/// Why PVALIDATE changed nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Refused {
    /// The entry is not of the size that was asked for, and cannot become so.
    SizeMismatch,
    /// The memory behind this address belongs to another frame.
    Elsewhere(u64),
}

/// PVALIDATE's change of one entry; whether it was one.
fn set_validated(slot: &Slot, gpa: u64, large: bool, on: bool) -> Result<bool, Refused> {
    let changing = slot.change().ok_or(Refused::Elsewhere(gpa))?;
    if large && !make_large(slot, gpa, &changing) {
        return Err(Refused::SizeMismatch);
    }
    let mut changed = false;
    for at in range(gpa, large) {
        let entry = entry_to_change(slot, at, &changing).ok_or(Refused::Elsewhere(at))?;
        if !large && entry.large() {
            smash(slot, at, &changing);
        }
        let Some(word) = slot.tee_word(at) else { continue };
        let entry = Entry::load(word);
        halfway(at);
        changed |= entry.validated() != on;
        entry.with_validated(on).store(word);
    }
    Ok(changed)
}

/// A large operation needs a large entry: one that the hypervisor can still make (no page assigned) or that exists.
fn make_large(slot: &Slot, gpa: u64, _: &Changing<'_>) -> bool {
    let words = || range(gpa, true).filter_map(|at| slot.tee_word(at).map(|w| (at, w)));
    if words().all(|(_, word)| Entry::load(word).large()) {
        return true;
    }
    if words().any(|(_, word)| Entry::load(word).assigned()) {
        return false;
    }
    words().for_each(|(at, word)| {
        halfway(at);
        Entry::assigned_to(at / PAGE, true).store(word);
    });
    true
}

/// Between what an entry was found to be and what it becomes. Tests put another processor's work here.
#[cfg(not(test))]
const fn halfway(_: u64) {}
#[cfg(test)]
use tests::halfway;

/// PSMASH: the hypervisor splits a large entry when the guest works on a part of it.
fn smash(slot: &Slot, gpa: u64, _: &Changing<'_>) {
    for at in range(gpa, true) {
        if let Some(word) = slot.tee_word(at) {
            let entry = Entry::load(word);
            halfway(at);
            entry.smashed().store(word);
        }
    }
}

/// RMPADJUST (RDX: VMPL 7:0, permissions 15:8, VMSA 16) and RMPQUERY (RDX in: VMPL; out: permissions, VMSA).
pub fn rmpadjust(
    ctx: &mut Ctx,
    cpu: &mut CpuState,
    _gva: u64,
    gpa: u64,
    _private: bool,
    query: bool,
) -> Result<(), Stop> {
    if cpu.cpl != 0 {
        return Err(Stop::Fault(Exception::GP0));
    }
    let (large, rdx) = (cpu.gpr[CpuState::RCX] & 1 != 0, cpu.gpr[CpuState::RDX]);
    let (target, bits, vmsa) = (rdx as u8, (rdx >> 8) as u8, rdx >> 16 & 1 != 0);
    if target > 3 || (!query && (bits > permission::ALL || rdx >> 17 != 0)) {
        answer(cpu, FAIL_INPUT, false);
        return Ok(());
    }
    if target <= ctx.snp.vmpl || (vmsa && !query && ctx.snp.vmpl != 0) {
        answer(cpu, FAIL_PERMISSION, false);
        return Ok(());
    }
    let slot = backed(ctx, gpa, if large { LARGE_PAGE } else { PAGE })?;
    let Some(changing) = slot.change() else { return memory_fault(ctx, gpa, true) };
    for at in range(gpa, large) {
        let Some(entry) = entry_to_change(&slot, at, &changing) else { return memory_fault(ctx, at, true) };
        if !entry.validated() {
            return Err(Stop::Fault(Exception::vc(exit::PAGE_NOT_VALIDATED)));
        }
        if large != entry.large() {
            if large {
                answer(cpu, FAIL_SIZE_MISMATCH, false);
                return Ok(());
            }
            smash(&slot, at, &changing);
        }
        let Some(word) = slot.tee_word(at) else { continue };
        let entry = Entry::load(word);
        if query {
            let found = u64::from(entry.permissions(target)) << 8 | u64::from(entry.vmsa()) << 16;
            cpu.gpr[CpuState::RDX] = u64::from(target) | found;
            cpu.gpr[CpuState::RCX] = u64::from(entry.large());
            break;
        }
        // No VMPL grants what it does not have itself.
        let own = entry.permissions(ctx.snp.vmpl);
        if bits & !own != 0 {
            answer(cpu, FAIL_PERMISSION, false);
            return Ok(());
        }
        entry.with_permissions(target, bits).with_vmsa(vmsa).store(word);
    }
    drop(changing);
    answer(cpu, SUCCESS, false);
    if !query {
        drop_everywhere(ctx);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::cell::{Cell, RefCell};
    use std::rc::Rc;
    use std::sync::Arc;

    use super::*;
    use crate::machine::memory::tests::private_slot;

    fn validated(slot: &Slot, gpa: u64) -> bool {
        slot.tee_word(gpa).is_some_and(|word| Entry::load(word).validated())
    }

    /// Another processor's work, and the page at which it comes between.
    type Between = (u64, Box<dyn FnOnce()>);

    thread_local! {
        static BETWEEN: RefCell<Option<Between>> = const { RefCell::new(None) };
    }

    pub fn halfway(at: u64) {
        let due = BETWEEN.with_borrow_mut(|between| between.take_if(|(page, _)| *page == at));
        if let Some((_, work)) = due {
            work();
        }
    }

    /// Does `first`, and `second` at the moment at which `first` has read the entry of `page` and not yet written it; or
    /// behind it, if nobody else can change entries then. All entries are as `prepare` leaves them before.
    fn race(page: u64, prepare: fn(&Slot), first: fn(&Slot), second: fn(&Slot)) -> Arc<Slot> {
        let slot = Arc::new(private_slot(LARGE_PAGE));
        prepare(&slot);
        let early = Rc::new(Cell::new(false));
        let other = (slot.clone(), early.clone());
        let work = move || {
            if !other.0.changing() {
                other.1.set(true);
                second(&other.0);
            }
        };
        BETWEEN.set(Some((page * PAGE, Box::new(work))));
        first(&slot);
        assert!(BETWEEN.take().is_none(), "nothing read the entry of page {page}");
        if !early.get() {
            second(&slot);
        }
        slot
    }

    #[test]
    fn no_validation_is_lost_to_a_page_being_smashed_beside_it() {
        let slot = race(
            300,
            |slot| assert!(make_large(slot, 0, &slot.change().unwrap())),
            |slot| assert_eq!(set_validated(slot, 0, false, true), Ok(true)),
            |slot| assert_eq!(set_validated(slot, 300 * PAGE, false, true), Ok(true)),
        );
        assert!(validated(&slot, 0) && validated(&slot, 300 * PAGE));
    }

    #[test]
    fn no_validation_is_lost_to_the_same_page_being_rescinded() {
        let slot = race(
            7,
            |_| (),
            |slot| assert_eq!(set_validated(slot, 7 * PAGE, false, true), Ok(true)),
            |slot| assert_eq!(set_validated(slot, 7 * PAGE, false, false), Ok(true), "it was validated"),
        );
        assert!(!validated(&slot, 7 * PAGE));
    }

    #[test]
    fn a_large_page_is_validated_as_one_or_not_at_all() {
        let slot = race(
            300,
            |_| (),
            |slot| assert_ne!(set_validated(slot, 0, true, true), Ok(false)),
            |slot| assert!(set_validated(slot, 300 * PAGE, false, true).is_ok()),
        );
        let entries = || (0..512).filter_map(|page| slot.tee_word(page * PAGE)).map(Entry::load);
        assert!(entries().all(Entry::validated));
        assert!(!entries().any(Entry::large), "the second processor's page made all of them small");
    }

    #[test]
    fn validating_twice_changes_nothing_the_second_time() {
        let slot = private_slot(LARGE_PAGE);
        assert_eq!(set_validated(&slot, 0, true, true), Ok(true));
        assert_eq!(set_validated(&slot, 0, true, true), Ok(false));
        assert_eq!(set_validated(&slot, PAGE, false, true), Ok(false));
        assert_eq!(set_validated(&slot, 0, true, true), Err(Refused::SizeMismatch), "it was smashed");
    }
}
