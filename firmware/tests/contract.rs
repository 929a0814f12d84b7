//! What the ROM says of itself, read by the crate that launchers and verifiers read it with.

use cloister_attestation::measure::snp::{Rom, SectionKind};
use cloister_attestation::measure::tdx::{self, Tdvf};
use cloister_firmware::layout::{AP_ENTRY, KERNEL_HASHES, LAUNCHED, LAUNCHED_TD, ROM};
use cloister_firmware::metadata;
use zerocopy::IntoBytes;

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
    // By these a verifier knows whose events to expect in the RTMRs.
    assert!(tdvf.is_cloister());
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
