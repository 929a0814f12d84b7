//! ACPI tables of the firmware's own making: no table, and no AML, comes from the host.
//!
//! The machine is hardware-reduced (ACPI 6.4, 3.11.1): no PIC, no PIT, no PM timer, no SCI. Power-off and reset are
//! plain ports, which the FADT names; interrupts are MSI, but for COM1.

mod aml;
mod tables;

use crate::bytes;
use crate::layout::{ACPI, Range};
use crate::machine::Machine;
use crate::termination::{Stop, TerminationReason};

use aml::dsdt;
use tables::{Fadt, Gas, Header, IoApic, Mcfg, McfgEntry, Rsdp, X2Apic, checksum};

/// Processors that the tables have room for.
pub const CPUS_MAX: u16 = 512;

/// Sleep control register; S5 is written as `SLEEP_ENABLE | 5 << 2`.
pub const SLEEP_CONTROL_PORT: u16 = 0x600;
/// Sleep status register.
pub const SLEEP_STATUS_PORT: u16 = 0x601;
/// Writing [`RESET_VALUE`] here resets the machine.
pub const RESET_PORT: u16 = 0x602;
/// See [`RESET_PORT`].
pub const RESET_VALUE: u8 = 1;
/// `SLP_TYP` of S5, shifted, and `SLP_EN` (ACPI 6.4, 4.8.3.7).
pub const POWER_OFF: u8 = S5 << 2 | 1 << 5;
/// Sleep type of S5.
const S5: u8 = 5;

const FULL: Stop = TerminationReason::OutOfMemory.because("ACPI tables overflow");

/// Appends tables to their area.
struct Area<'a> {
    memory: &'a mut [u8],
    used: usize,
}

impl Area<'_> {
    /// Appends a table of `length` bytes, 16-byte aligned, that `fill` writes after its header. Returns its address.
    fn table(
        &mut self,
        signature: [u8; 4],
        revision: u8,
        fill: impl FnOnce(&mut [u8]) -> Option<usize>,
    ) -> Result<u64, Stop> {
        let start = self.used.next_multiple_of(16);
        let table = self.memory.get_mut(start..).ok_or(FULL)?;
        let length = fill(table).ok_or(FULL)?;
        let table = table.get_mut(..length).ok_or(FULL)?;
        let header = Header::new(signature, u32::try_from(length).map_err(|_| FULL)?, revision);
        bytes::write(table, 0, &header).ok_or(FULL)?;
        let sum = checksum(table);
        *table.get_mut(Header::CHECKSUM).ok_or(FULL)? = sum;
        self.used = start.saturating_add(length);
        Ok(ACPI.start.saturating_add(start as u64))
    }
}

/// Writes all tables into their area; the address of the RSDP.
pub fn install<M: Machine>(machine: &mut M, cpus: u16) -> Result<u64, Stop> {
    let memory = machine.ram(Range::new(ACPI.start, ACPI.end))?;
    memory.fill(0);
    build(memory, cpus)
}

/// Builds the tables into `memory`, which is what will be at the layout's ACPI range. The RSDP is at its start.
pub fn build(memory: &mut [u8], cpus: u16) -> Result<u64, Stop> {
    let mut area = Area { memory, used: size_of::<Rsdp>() };
    let dsdt = area.table(*b"DSDT", 2, dsdt)?;
    let fadt = area.table(*b"FACP", Fadt::REVISION, |table| {
        bytes::write(table, size_of::<Header>(), &Fadt::new(dsdt))?;
        size_of::<Header>().checked_add(size_of::<Fadt>())
    })?;
    let madt = area.table(*b"APIC", 5, |table| madt(table, cpus))?;
    let mcfg = area.table(*b"MCFG", 1, |table| {
        bytes::write(table, size_of::<Header>(), &(Mcfg::new()))?;
        let at = size_of::<Header>().checked_add(size_of::<Mcfg>())?;
        bytes::write(table, at, &McfgEntry::bus_0())?;
        at.checked_add(size_of::<McfgEntry>())
    })?;
    let xsdt = area.table(*b"XSDT", 1, |table| {
        let mut at = size_of::<Header>();
        for address in [fadt, madt, mcfg] {
            bytes::write(table, at, &address.to_le_bytes())?;
            at = at.checked_add(8)?;
        }
        Some(at)
    })?;
    bytes::write(area.memory, 0, &Rsdp::new(xsdt)).ok_or(FULL)?;
    Ok(ACPI.start)
}

/// Multiple APIC description: every processor by x2APIC id, which is its index, and the I/O APIC.
fn madt(table: &mut [u8], cpus: u16) -> Option<usize> {
    let mut at = size_of::<Header>();
    bytes::write(table, at, &tables::madt_fixed())?;
    at = at.checked_add(size_of_val(&tables::madt_fixed()))?;
    for id in 0..cpus {
        bytes::write(table, at, &X2Apic::new(u32::from(id)))?;
        at = at.checked_add(size_of::<X2Apic>())?;
    }
    bytes::write(table, at, &IoApic::new())?;
    at.checked_add(size_of::<IoApic>())
}

/// A register in I/O space, 8 bits wide.
fn port(address: u16) -> Gas {
    Gas::port(address)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn built(cpus: u16) -> Vec<u8> {
        let mut memory = vec![0; ACPI.len() as usize];
        assert_eq!(build(&mut memory, cpus), Ok(ACPI.start));
        memory
    }

    fn u32_at(bytes: &[u8], at: usize) -> u32 {
        u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap())
    }

    fn u64_at(bytes: &[u8], at: usize) -> u64 {
        u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap())
    }

    fn table(memory: &[u8], address: u64) -> &[u8] {
        let start = (address - ACPI.start) as usize;
        let table = &memory[start..];
        let table = &table[..u32_at(table, 4) as usize];
        assert_eq!(table.iter().fold(0_u8, |sum, b| sum.wrapping_add(*b)), 0, "checksum");
        table
    }

    /// All tables, found as an operating system finds them.
    fn walk(memory: &[u8]) -> Vec<&[u8]> {
        assert_eq!(&memory[..8], b"RSD PTR ");
        assert_eq!(memory[..20].iter().fold(0_u8, |sum, b| sum.wrapping_add(*b)), 0);
        assert_eq!(memory[..36].iter().fold(0_u8, |sum, b| sum.wrapping_add(*b)), 0);
        let xsdt = table(memory, u64_at(memory, 24));
        let mut found: Vec<_> = xsdt[36..].chunks(8).map(|a| table(memory, u64_at(a, 0))).collect();
        let fadt = found[0];
        found.push(table(memory, u64_at(fadt, 140)));
        found
    }

    #[test]
    fn every_table_is_reachable_from_the_rsdp_and_sums_to_zero() {
        let memory = built(2);
        let signatures: Vec<_> = walk(&memory).iter().map(|t| t[..4].to_vec()).collect();
        assert_eq!(signatures, [b"FACP".to_vec(), b"APIC".to_vec(), b"MCFG".to_vec(), b"DSDT".to_vec()]);
    }

    #[test]
    fn fadt_is_hardware_reduced_with_the_models_ports() {
        let memory = built(1);
        let fadt = walk(&memory)[0];
        assert_eq!((fadt.len(), fadt[8], fadt[131]), (276, 6, 4));
        let flags = u32_at(fadt, 112);
        assert_eq!(flags & (1 << 20 | 1 << 10), 1 << 20 | 1 << 10);
        for (at, port) in [(116, RESET_PORT), (244, SLEEP_CONTROL_PORT), (256, SLEEP_STATUS_PORT)] {
            assert_eq!(fadt[at..at + 4], [1, 8, 0, 1]);
            assert_eq!(u64_at(fadt, at + 4), u64::from(port));
        }
        assert_eq!(fadt[128], RESET_VALUE);
    }

    #[test]
    fn madt_lists_each_processor_once_and_one_ioapic() {
        for cpus in [1, 2, 8, CPUS_MAX] {
            let memory = built(cpus);
            let madt = walk(&memory)[1];
            assert_eq!(u32_at(madt, 36), 0xFEE0_0000);
            let mut at = 44;
            let (mut ids, mut ioapics) = (Vec::new(), 0);
            while at < madt.len() {
                match madt[at] {
                    9 => ids.push(u32_at(madt, at + 4)),
                    1 => {
                        assert_eq!(u32_at(madt, at + 4), 0xFEC0_0000);
                        ioapics += 1;
                    }
                    other => panic!("entry {other}"),
                }
                at += usize::from(madt[at + 1]);
            }
            assert_eq!(ids, (0..u32::from(cpus)).collect::<Vec<_>>());
            assert_eq!(ioapics, 1);
        }
    }

    #[test]
    fn tables_that_do_not_fit_are_refused() {
        let mut memory = vec![0; ACPI.len() as usize];
        assert_eq!(build(&mut memory, u16::MAX).unwrap_err().reason, TerminationReason::OutOfMemory);
        assert!(build(&mut [0; 64], 1).is_err());
        assert!(build(&mut [], 1).is_err());
    }

    /// ACPICA's own disassembler and compiler read the tables without a complaint.
    #[test]
    fn acpica_accepts_every_table() {
        use std::process::Command;
        if Command::new("iasl").arg("-v").output().is_err() {
            eprintln!("SKIPPED: no iasl (Debian: acpica-tools), so the tables were not read by ACPICA");
            return;
        }
        let memory = built(2);
        let directory = std::env::temp_dir().join(format!("cloister-acpi-{}", std::process::id()));
        std::fs::create_dir_all(&directory).unwrap();
        for table in walk(&memory) {
            let name = String::from_utf8(table[..4].to_vec()).unwrap();
            let path = directory.join(format!("{name}.aml"));
            std::fs::write(&path, table).unwrap();
            let run = |arguments: &[&str]| {
                let output = Command::new("iasl").args(arguments).current_dir(&directory).output().unwrap();
                format!(
                    "{}{}",
                    String::from_utf8_lossy(&output.stdout),
                    String::from_utf8_lossy(&output.stderr)
                )
            };
            let listing = run(&["-d", path.to_str().unwrap()]);
            let source = std::fs::read_to_string(directory.join(format!("{name}.dsl"))).expect(&listing);
            assert!(!listing.contains("Error") && !listing.contains("Warning"), "{listing}");
            assert!(!source.contains("**** "), "{source}");
            if name == "DSDT" {
                let compiled = run(&["-f", "DSDT.dsl"]);
                assert!(compiled.contains("0 Errors, 0 Warnings"), "{compiled}\n{source}");
            }
        }
        std::fs::remove_dir_all(&directory).unwrap();
    }
}
