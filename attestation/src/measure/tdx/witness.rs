//! MRTD computed a second time, straight from the TDX module's rules and sharing nothing with the code beside it: one
//! list of SEAMCALLs, one byte string, one hash.

use sha2::{Digest, Sha384};

use super::tdvf::tests::{BFV, CFV, PERM_MEM, Row, TD_HOB, TEMP_MEM, rom_with};
use super::*;

enum Seamcall<'a> {
    MemPageAdd(u64),
    MrExtend(u64, &'a [u8]),
}

fn module_mrtd(calls: &[Seamcall<'_>]) -> String {
    let mut hashed = Vec::new();
    let block = |name: &str, gpa: u64| {
        let mut block = name.as_bytes().to_vec();
        block.resize(16, 0);
        block.extend(gpa.to_le_bytes());
        block.resize(128, 0);
        block
    };
    for call in calls {
        match call {
            Seamcall::MemPageAdd(gpa) => hashed.extend(block("MEM.PAGE.ADD", *gpa)),
            Seamcall::MrExtend(gpa, chunk) => {
                assert_eq!(chunk.len(), 256);
                hashed.extend(block("MR.EXTEND", *gpa));
                hashed.extend_from_slice(chunk);
            }
        }
    }
    hex::encode(Sha384::digest(hashed))
}

/// What a VMM calls for `rows`: adds and extends interleaved page by page, or range by range.
fn calls<'a>(rows: &[Row], memory: &'a [Vec<u8>], two_pass: bool) -> Vec<Seamcall<'a>> {
    let mut calls = Vec::new();
    for ((_, _, gpa, len, _, attributes), bytes) in rows.iter().zip(memory) {
        let (measured, later) = (attributes & 1 != 0, attributes & 2 != 0);
        let pages: Vec<u64> = (0..len / 4096).collect();
        let extend = |page: u64| {
            (0..16).map(move |chunk| {
                let at = page * 4096 + chunk * 256;
                Seamcall::MrExtend(gpa + at, &bytes[at as usize..at as usize + 256])
            })
        };
        if later {
            continue;
        }
        for &page in &pages {
            calls.push(Seamcall::MemPageAdd(gpa + page * 4096));
            if measured && !two_pass {
                calls.extend(extend(page));
            }
        }
        if measured && two_pass {
            pages.iter().for_each(|&page| calls.extend(extend(page)));
        }
    }
    calls
}

#[test]
fn mrtd_is_that_of_the_modules_rules_in_both_orders() {
    let measured_zeros: Row = (0, 0, 0x100_0000, 0x2000, 3, 1);
    let measured_cfv: Row = (0x1000, 0x1e00, 0xffff_c000, 0x2000, 1, 1);
    for rows in [
        &[BFV][..],
        &[BFV, CFV, TD_HOB, TEMP_MEM, PERM_MEM],
        &[TEMP_MEM, BFV],
        &[measured_cfv, BFV, measured_zeros],
        &[(0x0, 0x4000, 0xffff_c000, 0x4000, 0, 1)],
    ] {
        let rom = rom_with(rows);
        let plan = LaunchPlan::new(&Tdvf::parse(&rom).unwrap()).unwrap();
        let memory: Vec<Vec<u8>> = rows
            .iter()
            .map(|row| {
                let mut bytes = rom[row.0 as usize..(row.0 + row.1) as usize].to_vec();
                bytes.resize(row.3 as usize, 0);
                bytes
            })
            .collect();
        for (order, two_pass) in [(PageOrder::PageByPage, false), (PageOrder::TwoPass, true)] {
            let expected = module_mrtd(&calls(rows, &memory, two_pass));
            assert_eq!(plan.mrtd(order).to_string(), expected, "{rows:x?} {order:?}");
        }
        let (one, two) = (plan.mrtd(PageOrder::PageByPage), plan.mrtd(PageOrder::TwoPass));
        let several_pages = rows.iter().any(|row| row.5 & 1 != 0 && row.3 > 4096);
        assert_eq!(one != two, several_pages, "the order matters where a measured range has several pages");
    }
}

#[test]
fn what_the_host_gives_or_the_guest_accepts_is_not_measured() {
    let rom = rom_with(&[BFV, TD_HOB, PERM_MEM]);
    let plan = LaunchPlan::new(&Tdvf::parse(&rom).unwrap()).unwrap();
    let kinds: Vec<_> = plan.commands().iter().map(|c| (c.kind, c.measured)).collect();
    assert_eq!(kinds, [(SectionKind::Bfv, true), (SectionKind::TdHob, false)]);
    assert_eq!(plan.pages(), 4);
}

#[test]
fn a_firmware_that_wants_all_memory_is_refused() {
    let rom = rom_with(&[BFV, (0, 0, 0, 1 << 28, 3, 0)]);
    let error = LaunchPlan::new(&Tdvf::parse(&rom).unwrap()).unwrap_err();
    assert_eq!(error, PlanError::TooManyPages { pages: (1 << 16) + 2 });
}

#[test]
fn every_byte_of_measured_memory_counts() {
    let rom = rom_with(&[BFV, CFV, TEMP_MEM]);
    let mrtd = |rom: &[u8]| LaunchPlan::new(&Tdvf::parse(rom).unwrap()).unwrap().mrtd(PageOrder::PageByPage);
    let good = mrtd(&rom);
    for (at, measured) in [(0x2000, true), (0x3000, true), (0x3fff, true), (0x1000, false), (0, false)] {
        let mut other = rom.clone();
        other[at] ^= 1;
        assert_eq!(mrtd(&other) != good, measured, "byte {at:#x}");
    }
}

fn rtmrs(change: impl Fn(&mut RtmrInputs<'_>)) -> [Option<[u8; 48]>; 4] {
    let ram = [MemoryRange { gpa: 0, len: 1 << 29 }];
    let mut inputs = RtmrInputs {
        cpus: 2,
        ram: &ram,
        acpi: Some(b"tables"),
        kernel: Some(b"kernel"),
        initrd: Some(b"initrd"),
        cmdline: "quiet",
    };
    change(&mut inputs);
    inputs.rtmrs()
}

/// An RTMR from the digests' inputs, written down again.
fn chain(measured: &[&[u8]]) -> [u8; 48] {
    let mut value = [0; 48];
    for bytes in measured {
        let digest: [u8; 48] = Sha384::digest(bytes).into();
        let mut both = value.to_vec();
        both.extend(digest);
        value = Sha384::digest(both).into();
    }
    value
}

#[test]
fn rtmrs_are_the_chains_of_the_firmwares_events() {
    let platform = [&[2, 0, 0, 0, 1, 0, 0, 0][..], &[0; 8], &(1u64 << 29).to_le_bytes()].concat();
    let separator = &[0; 4][..];
    let [rtmr0, rtmr1, rtmr2, rtmr3] = rtmrs(|_| ());
    assert_eq!(rtmr0, Some(chain(&[&platform, b"tables", separator])));
    assert_eq!(rtmr1, Some(chain(&[b"kernel", separator])));
    assert_eq!(rtmr2, Some(chain(&[b"quiet\0", b"initrd"])));
    assert_eq!(rtmr3, Some([0; 48]));
}

#[test]
fn each_input_changes_its_own_rtmr_and_what_is_unknown_stays_so() {
    let good = rtmrs(|_| ());
    let differing = |other: [Option<[u8; 48]>; 4]| -> Vec<usize> {
        (0..4).filter(|&index| other[index] != good[index]).collect()
    };
    assert_eq!(differing(rtmrs(|i| i.cpus = 3)), [0]);
    assert_eq!(differing(rtmrs(|i| i.ram = &[])), [0]);
    assert_eq!(differing(rtmrs(|i| i.acpi = Some(b"other"))), [0]);
    assert_eq!(differing(rtmrs(|i| i.kernel = Some(b"other"))), [1]);
    assert_eq!(differing(rtmrs(|i| i.cmdline = "")), [2]);
    assert_eq!(differing(rtmrs(|i| i.initrd = None)), [2]);
    assert_eq!(rtmrs(|i| i.acpi = None)[0], None);
    assert_eq!(rtmrs(|i| i.kernel = None)[1..3], [None, None]);
}
