//! Puts the ACPI tables into memory. What is in them is `cloister-attestation`'s, so that a verifier can build them, too.

use cloister_attestation::measure::acpi::{self, Kind};

use crate::layout::{ACPI, ECAM, EVENT_LOG, MAILBOX, PCI_WINDOW, Range};
use crate::machine::{Guest, Machine};
use crate::termination::{Stop, TerminationReason};

pub use acpi::CPUS_MAX;

const fn same(ours: &Range, theirs: &core::ops::Range<u64>) -> bool {
    ours.start == theirs.start && ours.end == theirs.end
}
const _: () = assert!(same(&ACPI, &acpi::TABLES));
const _: () = assert!(same(&EVENT_LOG, &acpi::EVENT_LOG) && same(&MAILBOX, &acpi::MAILBOX));
const _: () = assert!(same(&ECAM, &acpi::ECAM) && same(&PCI_WINDOW, &acpi::PCI_WINDOW));

/// Writes all tables into their area; which part of it they take. The RSDP is at its start.
pub fn install<M: Machine>(machine: &mut M, cpus: u16) -> Result<Range, Stop> {
    let kind = match machine.guest() {
        Guest::Plain | Guest::Snp { .. } => Kind::Common,
        Guest::Td { .. } => Kind::Td,
    };
    let memory = machine.ram(ACPI)?;
    memory.fill(0);
    let used = acpi::build(memory, cpus, kind)
        .map_err(|_| Stop::because(TerminationReason::OutOfMemory, "ACPI tables overflow"))?;
    Ok(Range::new(ACPI.start, ACPI.start.saturating_add(used as u64)))
}
