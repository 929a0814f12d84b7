//! What the firmware and the rest of the project must agree on, checked against the crate that the rest uses. The ROM
//! itself cannot link that crate: it has no allocator.

use cloister_attestation::abi;
use cloister_attestation::measure::snp::{Rom, SectionKind};
use cloister_firmware::layout::{AP_ENTRY, KERNEL_HASHES, LAUNCHED, ROM};
use cloister_firmware::{TerminationReason, acpi, metadata, termination_code};
use zerocopy::IntoBytes;

#[test]
fn termination_reasons_have_the_codes_that_the_host_prints() {
    use TerminationReason::*;
    use abi::TerminationReason as Abi;
    for (ours, theirs) in [
        (KernelHash, Abi::KernelHashMismatch),
        (InitrdHash, Abi::InitrdHashMismatch),
        (CmdlineHash, Abi::CmdlineHashMismatch),
        (NoHashTable, Abi::NoHashTable),
        (MemoryMap, Abi::MemoryMapRefused),
        (CpuCount, Abi::CpuCountRefused),
        (PageValidation, Abi::PageValidationFailed),
        (PageStateChange, Abi::PageStateChangeRefused),
        (KernelUnusable, Abi::KernelUnusable),
        (FwCfg, Abi::FwCfgFailed),
        (CpuidPage, Abi::CpuidPageRefused),
        (Exception, Abi::UnexpectedException),
        (OutOfMemory, Abi::OutOfMemory),
        (GhcbProtocol, Abi::GhcbProtocol),
        (Tdcall, Abi::TdcallFailed),
        (Measurement, Abi::MeasurementFailed),
    ] {
        assert_eq!(Abi::from_code(ours.code()), Some(theirs), "{ours:?}");
        assert_eq!(termination_code(ours), abi::TERMINATION_FLAG | theirs.code());
    }
    assert_eq!(cloister_firmware::REASON_SET, abi::TERMINATION_SET);
}

#[test]
fn ports_are_the_machine_models() {
    assert_eq!(acpi::SLEEP_CONTROL_PORT, abi::SLEEP_CONTROL_PORT);
    assert_eq!(acpi::SLEEP_STATUS_PORT, abi::SLEEP_STATUS_PORT);
    assert_eq!((acpi::RESET_PORT, acpi::RESET_VALUE), (abi::RESET_PORT, abi::RESET_VALUE));
    assert_eq!(acpi::POWER_OFF, abi::SLEEP_S5);
    assert_eq!(cloister_firmware::TERMINATION_PORT, abi::TERMINATION_PORT);
}

#[test]
fn the_launch_finds_every_section_in_the_layouts_order() {
    let table = metadata::guid_table(AP_ENTRY as u32);
    let mut image = vec![0; ROM.len() as usize];
    let end = image.len() - 32;
    image[end - table.as_bytes().len()..end].copy_from_slice(table.as_bytes());
    let rom = Rom::parse(&image).unwrap();
    let found: Vec<_> = rom.sections().iter().map(|s| (s.gpa.0, s.len, s.kind)).collect();
    let kinds = [SectionKind::SecMem, SectionKind::Secrets, SectionKind::Cpuid, SectionKind::KernelHashes];
    let expected: Vec<_> =
        LAUNCHED.iter().zip(kinds).map(|((range, _), kind)| (range.start, range.len(), kind)).collect();
    assert_eq!(found, expected);
    assert_eq!(rom.ap_reset_eip().map(u64::from), Some(AP_ENTRY));
    assert_eq!(rom.kernel_hash_area().map(|gpa| gpa.0), Some(KERNEL_HASHES.start));
}
