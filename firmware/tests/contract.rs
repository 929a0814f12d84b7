//! What the firmware and the rest of the project must agree on, checked against the crate that the rest uses. The ROM
//! itself cannot link that crate: it has no allocator.

use cloister_attestation::abi;
use cloister_attestation::measure::snp::{Rom, SectionKind};
use cloister_attestation::measure::tdx::{self, Tdvf};
use cloister_firmware::layout::{AP_ENTRY, KERNEL_HASHES, LAUNCHED, LAUNCHED_TD, ROM};
use cloister_firmware::tdcall::fatal_code;
use cloister_firmware::{TerminationReason, metadata, termination_code};
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
        assert_eq!(fatal_code(ours), abi::TDX_FATAL_FIRMWARE | u32::from(theirs.code()));
        assert_eq!(termination_code(ours), abi::TERMINATION_FLAG | theirs.code());
    }
    assert_eq!(cloister_firmware::REASON_SET, abi::TERMINATION_SET);
}

#[test]
fn the_termination_port_is_the_machine_models() {
    assert_eq!(cloister_firmware::TERMINATION_PORT, abi::TERMINATION_PORT);
}

/// A ROM that is empty but for its metadata.
fn image() -> Vec<u8> {
    let table = metadata::guid_table(AP_ENTRY as u32);
    let mut image = vec![0; ROM.len() as usize];
    let end = image.len() - 32;
    image[end - table.as_bytes().len()..end].copy_from_slice(table.as_bytes());
    image
}

#[test]
fn a_tds_launch_measures_the_rom_and_nothing_else() {
    use tdx::SectionKind::{Bfv, TdHob, TempMem};
    let image = image();
    let tdvf = Tdvf::parse(&image).unwrap();
    let found: Vec<_> = tdvf.sections().iter().map(|s| (s.gpa.0, s.len, s.kind, s.measured)).collect();
    let kinds = [(Bfv, true), (TempMem, false), (TdHob, false), (TempMem, false)];
    let expected: Vec<_> = LAUNCHED_TD
        .iter()
        .zip(kinds)
        .map(|((range, _), (kind, measured))| (range.start, range.len(), kind, measured))
        .collect();
    assert_eq!(found, expected);
    assert_eq!(tdvf.sections()[0].data, image);
}

#[test]
fn the_launch_finds_every_section_in_the_layouts_order() {
    let image = image();
    let rom = Rom::parse(&image).unwrap();
    let found: Vec<_> = rom.sections().iter().map(|s| (s.gpa.0, s.len, s.kind)).collect();
    let kinds = [SectionKind::SecMem, SectionKind::Secrets, SectionKind::Cpuid, SectionKind::KernelHashes];
    let expected: Vec<_> =
        LAUNCHED.iter().zip(kinds).map(|((range, _), kind)| (range.start, range.len(), kind)).collect();
    assert_eq!(found, expected);
    assert_eq!(rom.ap_reset_eip().map(u64::from), Some(AP_ENTRY));
    assert_eq!(rom.kernel_hash_area().map(|gpa| gpa.0), Some(KERNEL_HASHES.start));
}
