//! Accepting memory: PVALIDATE or TDG.MEM.PAGE.ACCEPT of every page of RAM, once.
//!
//! No page stays as the host left it: what the TDX module does not zero, this code does.
//!
//! A page that turns out to be validated already is one that the host has put somewhere twice; a page that is
//! validated a second time could be swapped for its former self. Both end the guest.

use crate::layout::{
    BIOS_AREA, BOUNCE, GHCB, GIB, HIGH_RAM_START, LARGE_PAGE, LAUNCH_STACK, LAUNCHED, LAUNCHED_TD,
    LOW_RAM_END, PAGE, Range, TD_HOB, VECTORS,
};
use crate::machine::{Guest, Machine, PageSize, Validation};
use crate::memory_map::Ram;
use crate::termination::{Stop, TerminationReason};
use crate::vectors;

const fn refused(detail: &'static str) -> Stop {
    Stop::because(TerminationReason::PageValidationFailed, detail)
}

/// Validates and fills what a processor in its launched state reads when it is interrupted. This comes before any word of
/// the host's is read: from then on a guest has something to lose.
pub fn take_vectors<M: Machine>(machine: &mut M) -> Result<(), Stop> {
    let validation = machine.take_page_0(vectors::fill);
    changed(validation)
}

/// Validates all RAM but the pages that the launch validated, those that are shared, and the launch state's stack.
pub fn accept<M: Machine>(machine: &mut M, ram: &Ram) -> Result<(), Stop> {
    // The first 2 MiB page by page: it has launched and shared pages in it, and the page tables for the rest.
    small(machine, Range::new(VECTORS.end, LOW_RAM_END))?;
    if let Guest::Td { .. } = machine.guest() {
        // The launch accepted it, with contents of the host's. Other such pages are cleared before they are used.
        machine.ram(TD_HOB)?.fill(0);
    }
    small(machine, BIOS_AREA)?;
    small(machine, Range::new(HIGH_RAM_START, LARGE_PAGE))?;
    for part in ram.above_2m() {
        let mut at = part.start;
        while at < part.end {
            machine.map(at.wrapping_div(GIB))?;
            let gib_end = (at | GIB.saturating_sub(1)).saturating_add(1);
            let end = part.end.min(gib_end);
            part_of_gib(machine, Range::new(at, end))?;
            at = end;
        }
    }
    Ok(())
}

/// Page by page.
fn small<M: Machine>(machine: &mut M, range: Range) -> Result<(), Stop> {
    let mut at = range.start;
    while at < range.end {
        let next = at.saturating_add(PAGE);
        if !excluded(machine.guest(), &Range::new(at, next)) {
            one_small(machine, at)?;
        }
        at = next;
    }
    Ok(())
}

/// Pages that the launch has accepted, that are shared while the firmware runs, or that nobody ever accepts.
fn excluded(guest: Guest, page: &Range) -> bool {
    let any = |launched: &[(Range, u32)]| launched.iter().any(|(range, _)| range.overlaps(page));
    let mine = match guest {
        Guest::Plain => true,
        Guest::Snp { .. } => any(&LAUNCHED) || GHCB.overlaps(page),
        Guest::Td { .. } => any(&LAUNCHED_TD),
    };
    mine || BOUNCE.overlaps(page) || LAUNCH_STACK.overlaps(page)
}

/// Validates one 4 KiB page.
#[inline(never)]
fn one_small<M: Machine>(machine: &mut M, gpa: u64) -> Result<(), Stop> {
    let validation = take(machine, gpa, PageSize::Small);
    changed(validation)
}

/// Validates a page and, if it changed, takes out of it what the host left there.
fn take<M: Machine>(machine: &mut M, gpa: u64, size: PageSize) -> Validation {
    let validation = machine.validate(gpa, size);
    if validation == Validation::Changed && matches!(machine.guest(), Guest::Snp { .. }) {
        machine.clear(gpa, size);
    }
    validation
}

/// Takes back what was shared with the host, without anything that the host left there before or meanwhile. In an SNP guest
/// this ends all that goes through the GHCB, so it comes last.
pub fn take_back<M: Machine>(machine: &mut M) -> Result<(), Stop> {
    let shared: &[Range] = match machine.guest() {
        Guest::Plain => &[],
        Guest::Snp { .. } => &[BOUNCE, GHCB],
        Guest::Td { .. } => &[BOUNCE],
    };
    for range in shared {
        machine.make_private(*range)?;
        let mut at = range.start;
        while at < range.end {
            one_small(machine, at)?;
            at = at.saturating_add(PAGE);
        }
    }
    Ok(())
}

/// Anything but a page that was not validated and now is ends the guest.
fn changed(validation: Validation) -> Result<(), Stop> {
    match validation {
        Validation::Changed => Ok(()),
        Validation::Unchanged => Err(refused("a page was validated already")),
        Validation::SizeMismatch | Validation::Failed(_) => Err(refused("a page could not be validated")),
    }
}

/// A range inside one GiB. TDs may have pages of that size, which PVALIDATE does not know.
fn part_of_gib<M: Machine>(machine: &mut M, range: Range) -> Result<(), Stop> {
    if range.len() == GIB && matches!(machine.guest(), Guest::Td { .. }) {
        match take(machine, range.start, PageSize::Huge) {
            Validation::SizeMismatch => {}
            validation => return changed(validation),
        }
    }
    large(machine, range)
}

fn large<M: Machine>(machine: &mut M, range: Range) -> Result<(), Stop> {
    let mut at = range.start;
    while at < range.end {
        let next = at.saturating_add(LARGE_PAGE);
        if next > range.end {
            return small(machine, Range::new(at, range.end));
        }
        match take(machine, at, PageSize::Large) {
            Validation::SizeMismatch => small(machine, Range::new(at, next))?,
            validation => changed(validation)?,
        }
        at = next;
    }
    Ok(())
}
