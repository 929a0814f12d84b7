//! Accepting memory: PVALIDATE or TDG.MEM.PAGE.ACCEPT of every page of RAM, once.
//!
//! A page that turns out to be validated already is one that the host has put somewhere twice; a page that is
//! validated a second time could be swapped for its former self. Both end the guest.

use crate::layout::{
    BIOS_AREA, BOUNCE, GHCB, GIB, HIGH_RAM_START, LARGE_PAGE, LAUNCHED, LAUNCHED_TD, LOW_RAM_END, PAGE, Range,
};
use crate::machine::{Guest, Machine, PageSize, Validation};
use crate::memory_map::Ram;
use crate::termination::{Stop, TerminationReason};

const fn refused(detail: &'static str) -> Stop {
    Stop::because(TerminationReason::PageValidationFailed, detail)
}

/// Validates all RAM but the pages that the launch validated and those that are shared.
pub fn accept<M: Machine>(machine: &mut M, ram: &Ram) -> Result<(), Stop> {
    // The first 2 MiB page by page: it has launched and shared pages in it, and the page tables for the rest.
    small(machine, Range::new(0, LOW_RAM_END))?;
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

/// Pages that the launch has accepted, or that are shared while the firmware runs.
fn excluded(guest: Guest, page: &Range) -> bool {
    let any = |launched: &[(Range, u32)]| launched.iter().any(|(range, _)| range.overlaps(page));
    let mine = match guest {
        Guest::Plain => true,
        Guest::Snp { .. } => any(&LAUNCHED) || GHCB.overlaps(page),
        Guest::Td { .. } => any(&LAUNCHED_TD),
    };
    mine || BOUNCE.overlaps(page)
}

/// Validates one 4 KiB page.
pub fn one_small<M: Machine>(machine: &mut M, gpa: u64) -> Result<(), Stop> {
    match machine.validate(gpa, PageSize::Small) {
        Validation::Changed => Ok(()),
        Validation::Unchanged => Err(refused("a page was validated already")),
        Validation::SizeMismatch | Validation::Failed(_) => Err(refused("a page could not be validated")),
    }
}

/// A range inside one GiB. TDs may have pages of that size, which PVALIDATE does not know.
fn part_of_gib<M: Machine>(machine: &mut M, range: Range) -> Result<(), Stop> {
    if range.len() == GIB && matches!(machine.guest(), Guest::Td { .. }) {
        match machine.validate(range.start, PageSize::Huge) {
            Validation::Changed => return Ok(()),
            Validation::SizeMismatch => {}
            Validation::Unchanged => return Err(refused("a page was validated already")),
            Validation::Failed(_) => return Err(refused("a page could not be validated")),
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
        match machine.validate(at, PageSize::Large) {
            Validation::Changed => {}
            Validation::SizeMismatch => small(machine, Range::new(at, next))?,
            Validation::Unchanged => return Err(refused("a page was validated already")),
            Validation::Failed(_) => return Err(refused("a page could not be validated")),
        }
        at = next;
    }
    Ok(())
}
