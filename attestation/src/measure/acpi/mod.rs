//! The ACPI tables that the firmware builds: no table, and no AML, comes from the host.
//!
//! They are here because a TD measures them into RTMR0: a verifier builds the same bytes to predict it. The machine is
//! hardware-reduced (ACPI 6.4, 3.11.1): no PIC, no PIT, no PM timer, no SCI. Power-off and reset are plain ports, which
//! the FADT names; interrupts are MSI, but for COM1.

mod aml;
mod tables;

use core::ops::Range;

use zerocopy::{Immutable, IntoBytes};

use crate::abi::SLEEP_S5;
use aml::dsdt;
use tables::{
    Ccel, Fadt, Gas, Header, IoApic, Mcfg, McfgEntry, MultiprocessorWakeup, Rsdp, X2Apic, checksum,
};

/// Where the tables are, RSDP first.
pub const TABLES: Range<u64> = 0x4_8000..0x5_8000;
/// A TD's event log: 64 KiB, which is the least that an operating system may expect.
pub const EVENT_LOG: Range<u64> = 0x5_8000..0x6_8000;
/// The mailbox in which Linux wakes a TD's application processors.
pub const MAILBOX: Range<u64> = 0x6_8000..0x6_9000;
/// 32-bit PCI window.
pub const PCI_WINDOW: Range<u64> = 0xC000_0000..0xE000_0000;
/// PCI configuration space of bus 0.
pub const ECAM: Range<u64> = 0xE000_0000..0xE010_0000;
/// I/O APIC.
pub const IOAPIC: u64 = 0xFEC0_0000;
/// Local APIC.
pub const LAPIC: u64 = 0xFEE0_0000;
/// Bytes of [`TABLES`].
pub const TABLES_BYTES: usize = (TABLES.end - TABLES.start) as usize;

/// Processors that the tables have room for.
pub const CPUS_MAX: u16 = 512;

/// Sleep type of S5.
const S5: u8 = 5;
const _: () = assert!(SLEEP_S5 == S5 << 2 | 1 << 5, "SLP_TYP and SLP_EN (ACPI 6.4, 4.8.3.7)");

/// Which guest the tables are for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Plain, or SEV-SNP.
    Common,
    /// A TD: its processors are woken through a mailbox, and it has an event log.
    Td,
}

/// The tables are larger than their area.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the ACPI tables do not fit into their area")]
pub struct Overflow;

/// Writes `value` at `offset`; `None` past the end.
fn put<T: IntoBytes + Immutable>(bytes: &mut [u8], offset: usize, value: &T) -> Option<()> {
    value.write_to_prefix(bytes.get_mut(offset..)?).ok()
}

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
    ) -> Result<u64, Overflow> {
        let start = self.used.next_multiple_of(16);
        let table = self.memory.get_mut(start..).ok_or(Overflow)?;
        let length = fill(table).ok_or(Overflow)?;
        let table = table.get_mut(..length).ok_or(Overflow)?;
        let header = Header::new(signature, u32::try_from(length).map_err(|_| Overflow)?, revision);
        put(table, 0, &header).ok_or(Overflow)?;
        let sum = checksum(table);
        *table.get_mut(Header::CHECKSUM).ok_or(Overflow)? = sum;
        self.used = start.saturating_add(length);
        Ok(TABLES.start.saturating_add(start as u64))
    }
}

/// Builds the tables into `memory`, which is what will be at [`TABLES`]; how many bytes of it they take. The RSDP is at
/// its start.
pub fn build(memory: &mut [u8], cpus: u16, kind: Kind) -> Result<usize, Overflow> {
    let mut area = Area { memory, used: size_of::<Rsdp>() };
    let dsdt = area.table(*b"DSDT", 2, dsdt)?;
    let fadt = area.table(*b"FACP", Fadt::REVISION, |table| {
        put(table, size_of::<Header>(), &Fadt::new(dsdt))?;
        size_of::<Header>().checked_add(size_of::<Fadt>())
    })?;
    let madt = area.table(*b"APIC", 5, |table| madt(table, cpus, kind))?;
    let mcfg = area.table(*b"MCFG", 1, |table| {
        put(table, size_of::<Header>(), &(Mcfg::new()))?;
        let at = size_of::<Header>().checked_add(size_of::<Mcfg>())?;
        put(table, at, &McfgEntry::bus_0())?;
        at.checked_add(size_of::<McfgEntry>())
    })?;
    let ccel = match kind {
        Kind::Common => None,
        Kind::Td => Some(area.table(*b"CCEL", 1, |table| {
            put(table, size_of::<Header>(), &Ccel::new())?;
            size_of::<Header>().checked_add(size_of::<Ccel>())
        })?),
    };
    let xsdt = area.table(*b"XSDT", 1, |table| {
        let mut at = size_of::<Header>();
        for address in [fadt, madt, mcfg].into_iter().chain(ccel) {
            put(table, at, &address.to_le_bytes())?;
            at = at.checked_add(8)?;
        }
        Some(at)
    })?;
    put(area.memory, 0, &Rsdp::new(xsdt)).ok_or(Overflow)?;
    Ok(area.used)
}

/// Multiple APIC description: every processor by x2APIC id, which is its index, the I/O APIC, and a TD's mailbox.
fn madt(table: &mut [u8], cpus: u16, kind: Kind) -> Option<usize> {
    let mut at = size_of::<Header>();
    put(table, at, &tables::madt_fixed())?;
    at = at.checked_add(size_of_val(&tables::madt_fixed()))?;
    for id in 0..cpus {
        put(table, at, &X2Apic::new(u32::from(id)))?;
        at = at.checked_add(size_of::<X2Apic>())?;
    }
    put(table, at, &IoApic::new())?;
    at = at.checked_add(size_of::<IoApic>())?;
    if kind == Kind::Td {
        put(table, at, &MultiprocessorWakeup::new())?;
        at = at.checked_add(size_of::<MultiprocessorWakeup>())?;
    }
    Some(at)
}

/// A register in I/O space, 8 bits wide.
fn port(address: u16) -> Gas {
    Gas::port(address)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::abi::{RESET_PORT, RESET_VALUE, SLEEP_CONTROL_PORT, SLEEP_STATUS_PORT};

    fn built(cpus: u16, kind: Kind) -> Vec<u8> {
        let mut memory = vec![0; TABLES_BYTES];
        let used = build(&mut memory, cpus, kind).unwrap();
        assert!(memory[used..].iter().all(|&byte| byte == 0));
        memory
    }

    fn u32_at(bytes: &[u8], at: usize) -> u32 {
        u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap())
    }

    fn u64_at(bytes: &[u8], at: usize) -> u64 {
        u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap())
    }

    fn table(memory: &[u8], address: u64) -> &[u8] {
        let start = (address - TABLES.start) as usize;
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
        for (kind, expected) in [
            (Kind::Common, &["FACP", "APIC", "MCFG", "DSDT"][..]),
            (Kind::Td, &["FACP", "APIC", "MCFG", "CCEL", "DSDT"]),
        ] {
            let memory = built(2, kind);
            let signatures: Vec<_> =
                walk(&memory).iter().map(|t| core::str::from_utf8(&t[..4]).unwrap().to_owned()).collect();
            assert_eq!(signatures, expected);
        }
    }

    #[test]
    fn a_td_is_told_of_its_mailbox_and_its_log() {
        let memory = built(2, Kind::Td);
        let tables = walk(&memory);
        let madt = tables[1];
        let wakeup = &madt[madt.len() - 16..];
        assert_eq!((wakeup[..4].to_vec(), u64_at(wakeup, 8)), (vec![16, 16, 0, 0], MAILBOX.start));
        let ccel = tables[3];
        assert_eq!((ccel.len(), ccel[36], ccel[37]), (56, 2, 0));
        assert_eq!((u64_at(ccel, 40), u64_at(ccel, 48)), (0x1_0000, EVENT_LOG.start));
    }

    #[test]
    fn fadt_is_hardware_reduced_with_the_models_ports() {
        let memory = built(1, Kind::Common);
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
            let memory = built(cpus, Kind::Common);
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
        let mut memory = vec![0; TABLES_BYTES];
        assert!(build(&mut memory, CPUS_MAX, Kind::Td).is_ok());
        assert_eq!(build(&mut memory, u16::MAX, Kind::Td), Err(Overflow));
        assert_eq!(build(&mut [0; 64], 1, Kind::Common), Err(Overflow));
        assert_eq!(build(&mut [], 1, Kind::Common), Err(Overflow));
    }

    /// ACPICA's own disassembler and compiler read the tables without a complaint.
    #[test]
    fn acpica_accepts_every_table() {
        use std::process::Command;
        if Command::new("iasl").arg("-v").output().is_err() {
            eprintln!("SKIPPED: no iasl (Debian: acpica-tools), so the tables were not read by ACPICA");
            return;
        }
        let memory = built(2, Kind::Td);
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
