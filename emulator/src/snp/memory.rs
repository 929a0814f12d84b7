//! How the RMP judges accesses, and the instructions that change it.

use softkvm_cpu::{Access, CpuState, Exception, HostPage, PageRequest, Stop};

use super::exit;
use super::rmp::{Entry, permission};
use crate::machine::confidential::{View, backed, drop_everywhere, memory_fault, view};
use crate::machine::ctx::Ctx;
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

/// The RMP entry of a private page; KVM assigns the page at the first fault on it.
fn entry_of(ctx: &mut Ctx, slot: &Slot, gpa: u64) -> Result<Entry, Stop> {
    let Some(word) = slot.tee_word(gpa) else {
        return memory_fault(ctx, gpa, true);
    };
    loop {
        let entry = Entry::load(word);
        if entry.assigned() {
            return if entry.gfn() == gpa / PAGE { Ok(entry) } else { memory_fault(ctx, gpa, true) };
        }
        if Entry::assigned_to(gpa / PAGE, false).replace(word, entry) {
            return Ok(Entry::load(word));
        }
    }
}

fn private_page(ctx: &mut Ctx, slot: &Slot, request: &PageRequest) -> Result<HostPage, Stop> {
    let entry = entry_of(ctx, slot, request.gpa)?;
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
    if large && !make_large(&slot, gpa) {
        answer(cpu, FAIL_SIZE_MISMATCH, false);
        return Ok(());
    }
    let mut changed = false;
    for at in range(gpa, large) {
        let entry = entry_of(ctx, &slot, at)?;
        if !large && entry.large() {
            smash(&slot, at);
        }
        let Some(word) = slot.tee_word(at) else { continue };
        let entry = Entry::load(word);
        changed |= entry.validated() != on;
        entry.with_validated(on).store(word);
    }
    answer(cpu, SUCCESS, !changed);
    if !on && changed {
        drop_everywhere(ctx);
    }
    Ok(())
}

/// A large operation needs a large entry: one that the hypervisor can still make (no page assigned) or that exists.
fn make_large(slot: &Slot, gpa: u64) -> bool {
    let words = || range(gpa, true).filter_map(|at| slot.tee_word(at).map(|w| (at, w)));
    if words().all(|(_, word)| Entry::load(word).large()) {
        return true;
    }
    if words().any(|(_, word)| Entry::load(word).assigned()) {
        return false;
    }
    words().for_each(|(at, word)| Entry::assigned_to(at / PAGE, true).store(word));
    true
}

/// PSMASH: the hypervisor splits a large entry when the guest works on a part of it.
fn smash(slot: &Slot, gpa: u64) {
    for at in range(gpa, true) {
        if let Some(word) = slot.tee_word(at) {
            Entry::load(word).smashed().store(word);
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
    for at in range(gpa, large) {
        let entry = entry_of(ctx, &slot, at)?;
        if !entry.validated() {
            return Err(Stop::Fault(Exception::vc(exit::PAGE_NOT_VALIDATED)));
        }
        if large != entry.large() {
            if large {
                answer(cpu, FAIL_SIZE_MISMATCH, false);
                return Ok(());
            }
            smash(&slot, at);
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
    answer(cpu, SUCCESS, false);
    if !query {
        drop_everywhere(ctx);
    }
    Ok(())
}
