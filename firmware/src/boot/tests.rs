//! Whole boots on the fake machine: honest hosts first, then one lie at a time.

use super::*;
use crate::fake::{CMDLINE, E820_KEY, Fake, HOSTS, RAM, bzimage, elf};
use crate::layout::{
    ACPI, AP_TABLES, BIOS_AREA, BOUNCE, CC_BLOB, EVENT_LOG, GHCB, KERNEL_HASHES, LAUNCH_STACK, LAUNCHED,
    LAUNCHED_TD, LOW_RAM_END, MAILBOX, PAGE, RAM_ABOVE_4G, SECRETS, TDVF_TEMP_MEM,
};
use cloister_attestation::measure::acpi::{Kind, TABLES_BYTES, build};
use cloister_attestation::measure::tdx::{Event, MemoryRange, RtmrInputs};
use cloister_attestation::tdx::{EventData, EventLog};

fn u32_at(machine: &Fake, at: u64) -> u32 {
    u32::from_le_bytes(machine.get(at, 4).try_into().unwrap())
}

fn u64_at(machine: &Fake, at: u64) -> u64 {
    u64::from_le_bytes(machine.get(at, 8).try_into().unwrap())
}

fn reason(machine: &mut Fake) -> TerminationReason {
    boot(machine).unwrap_err().reason
}

/// Kernel, initrd, command line and boot_params where Linux expects them.
fn check_handoff(machine: &Fake, handoff: Handoff) {
    let (setup, rest) = bzimage(300_000);
    assert_eq!(handoff, Handoff { entry: 0x100_0200, boot_params: BOOT_PARAMS.start });
    assert_eq!(machine.get(0x100_0000, rest.len()), rest);
    let params = BOOT_PARAMS.start;
    assert_eq!(machine.get(params + 0x202, 4), b"HdrS");
    assert_eq!(machine.get(params + 0x258, 8), &setup[0x258..0x260]);
    assert_eq!(machine.get(params + 0x210, 1), [0xFF]);
    let cmdline = u32_at(machine, params + 0x228);
    assert_eq!(machine.get(u64::from(cmdline), CMDLINE.len()), CMDLINE);
    let (initrd, size) = (u32_at(machine, params + 0x218), u32_at(machine, params + 0x21C));
    assert_eq!(size, 100_001);
    assert_eq!(u64::from(initrd), (RAM - 100_001) & !(PAGE - 1));
    assert!(machine.get(u64::from(initrd), 100_001).iter().all(|&byte| byte == 0x5A));
    assert_eq!(machine.get(u64_at(machine, params + 0x70), 8), b"RSD PTR ");
}

fn linux_map(machine: &Fake) -> Vec<(u64, u64, u32)> {
    let params = BOOT_PARAMS.start;
    (0..u64::from(machine.get(params + 0x1E8, 1)[0]))
        .map(|n| params + 0x2D0 + n * 20)
        .map(|at| (u64_at(machine, at), u64_at(machine, at + 8), u32_at(machine, at + 16)))
        .collect()
}

#[test]
fn a_plain_guest_boots_and_is_told_that_nothing_was_measured() {
    let mut machine = Fake::plain();
    let handoff = boot(&mut machine).unwrap();
    check_handoff(&machine, handoff);
    assert_eq!(u64_at(&machine, BOOT_PARAMS.start + 0x250), 0, "no setup_data");
    assert!(machine.console.contains("no confidentiality"), "{}", machine.console);
}

#[test]
fn an_snp_guest_boots_what_was_measured_and_hands_on_the_cc_blob() {
    let mut machine = Fake::snp();
    let handoff = boot(&mut machine).unwrap();
    check_handoff(&machine, handoff);
    let node = u64_at(&machine, BOOT_PARAMS.start + 0x250);
    assert_eq!((u64_at(&machine, node), u32_at(&machine, node + 8), u32_at(&machine, node + 12)), (0, 7, 4));
    let blob = u64::from(u32_at(&machine, node + 16));
    assert_eq!(u32_at(&machine, blob), 0x4544_4D41);
    assert_eq!((u64_at(&machine, blob + 8), u32_at(&machine, blob + 16)), (SECRETS.start, 4096));
    assert_eq!((u64_at(&machine, blob + 24), u32_at(&machine, blob + 32)), (CPUID.start, 4096));
    assert_eq!(u32_at(&machine, BOOT_PARAMS.start + 0x13C), 0, "cc_blob_address is for EFI");
}

/// What a verifier predicts of a TD from what it was given.
fn predicted(machine: &Fake, cpus: u16) -> [Option<[u8; 48]>; 4] {
    let mut tables = vec![0; TABLES_BYTES];
    let used = build(&mut tables, cpus, Kind::Td).unwrap();
    let mut ram = vec![MemoryRange { gpa: 0, len: RAM }];
    if machine.above_4g_end > RAM_ABOVE_4G {
        ram.push(MemoryRange { gpa: RAM_ABOVE_4G, len: machine.above_4g_end - RAM_ABOVE_4G });
    }
    let kernel = [&machine.items[&0x18][..], &machine.items[&0x11]].concat();
    let initrd = &machine.items[&0x12][..];
    let cmdline = machine.items[&0x15].strip_suffix(&[0]).unwrap_or_default();
    let inputs = RtmrInputs {
        cpus: u32::from(cpus),
        ram: &ram,
        acpi: Some(&tables[..used]),
        kernel: Some(&kernel),
        initrd: Some(initrd).filter(|initrd| !initrd.is_empty()),
        cmdline: std::str::from_utf8(cmdline).unwrap(),
    };
    inputs.rtmrs()
}

#[test]
fn a_td_boots_and_its_rtmrs_are_the_predicted_ones_and_those_of_its_log() {
    type Variation = (u16, fn(&mut Fake));
    let variations: [Variation; 5] = [
        (2, |_| ()),
        (1, |m| drop(m.items.insert(0x05, vec![1, 0]))),
        (2, |m| m.set_item(0x0B, 0x12, &[])),
        (2, |m| m.set_item(0x14, 0x15, &[])),
        (2, |m| {
            m.above_4g_end = RAM_ABOVE_4G + RAM;
            m.set_e820(&[(0, RAM, 1), (RAM_ABOVE_4G, RAM, 1)], 2 * RAM);
        }),
    ];
    for (index, (cpus, vary)) in variations.into_iter().enumerate() {
        let mut machine = Fake::td();
        vary(&mut machine);
        let handoff = boot(&mut machine).unwrap();
        assert_eq!(handoff, Handoff { entry: 0x100_0200, boot_params: BOOT_PARAMS.start });
        assert_eq!(u64_at(&machine, BOOT_PARAMS.start + 0x250), 0, "no setup_data");
        let rtmrs = machine.rtmrs.0.map(|rtmr| rtmr.0);
        assert_eq!(rtmrs.map(Some), predicted(&machine, cpus), "variation {index}");
        let log = EventLog::parse(machine.get(EVENT_LOG.start, EVENT_LOG.len() as usize)).unwrap();
        assert_eq!(log.replay(), rtmrs, "variation {index}");
    }
}

#[test]
fn a_tds_log_has_every_event_in_the_tables_order() {
    let mut machine = Fake::td();
    let handoff = boot(&mut machine).unwrap();
    check_handoff(&machine, handoff);
    let log = EventLog::parse(machine.get(EVENT_LOG.start, EVENT_LOG.len() as usize)).unwrap();
    assert_eq!(log.events().len(), Event::ALL.len());
    for (logged, event) in log.events().iter().zip(Event::ALL) {
        let rtmr = logged.rtmr.map(|rtmr| rtmr.index());
        assert_eq!((rtmr, logged.kind), (Some(usize::from(event.rtmr)), event.event_type), "{}", event.name);
    }
    let EventData::Described(initrd) = log.events()[6].data else { panic!("its data is not the initrd") };
    assert_eq!(initrd, Event::INITRD.log_data(&[]));
}

#[test]
fn whatever_a_host_changes_changes_a_tds_rtmrs() {
    let rtmrs = |change: fn(&mut Fake)| {
        let mut machine = Fake::td();
        change(&mut machine);
        boot(&mut machine).unwrap();
        machine.rtmrs.0
    };
    let good = rtmrs(|_| ());
    type Change = (usize, fn(&mut Fake));
    let changes: [Change; 7] = [
        (0, |m| drop(m.items.insert(0x05, vec![3, 0]))),
        (0, |m| m.set_e820(&[(0, RAM - PAGE, 1)], RAM - PAGE)),
        (1, |m| m.items.get_mut(&0x11).unwrap()[250_000] ^= 1),
        (1, |m| m.items.get_mut(&0x18).unwrap()[0x20] ^= 1),
        (2, |m| m.set_item(0x14, 0x15, b"init=/bin/sh\0")),
        (2, |m| m.items.get_mut(&0x12).unwrap()[100_000] ^= 1),
        (2, |m| m.set_item(0x0B, 0x12, &[])),
    ];
    for (index, (rtmr, change)) in changes.into_iter().enumerate() {
        let changed = rtmrs(change);
        let differing: Vec<_> = (0..4).filter(|&n| changed[n] != good[n]).collect();
        assert_eq!(differing, [rtmr], "change {index}");
    }
}

#[test]
fn a_td_that_cannot_measure_does_not_start_the_kernel() {
    for rtmr in 0..3 {
        let mut machine = Fake::td();
        machine.lies.stuck_rtmr = Some(rtmr);
        assert_eq!(reason(&mut machine), TerminationReason::MeasurementFailed, "RTMR{rtmr}");
    }
}

#[test]
fn a_td_keeps_its_log_and_its_waiting_processors_out_of_linuxs_ram() {
    let mut machine = Fake::td();
    boot(&mut machine).unwrap();
    let map = linux_map(&machine);
    let kind = |at: u64| map.iter().find(|(a, l, _)| (*a..a + l).contains(&at)).map(|entry| entry.2);
    for (at, expected) in [
        (ACPI.start, 3),
        (EVENT_LOG.start, 4),
        (MAILBOX.start, 4),
        (AP_TABLES.start, 4),
        (AP_TABLES.end - 1, 4),
        (AP_TABLES.end, 1),
        (GHCB.start, 1),
    ] {
        assert_eq!(kind(at), Some(expected), "{at:#x}");
    }
    assert!(machine.get(MAILBOX.start, PAGE as usize).iter().all(|&byte| byte == 0), "no command yet");
}

#[test]
fn linux_may_use_all_ram_but_what_must_outlive_the_firmware() {
    let mut machine = Fake::snp();
    boot(&mut machine).unwrap();
    let map = linux_map(&machine);
    let kind = |at: u64| map.iter().find(|(a, l, _)| (*a..a + l).contains(&at)).map(|entry| entry.2);
    for (at, expected) in [
        (0, Some(2)),
        (PAGE, Some(1)),
        (LAUNCH_STACK.start, Some(2)),
        (LAUNCH_STACK.end, Some(1)),
        (SECRETS.start, Some(2)),
        (CPUID.start, Some(2)),
        (CC_BLOB.start, Some(2)),
        (GHCB.start, Some(1)),
        (ACPI.start, Some(3)),
        (0xA_0000, Some(2)),
        (0x10_0000, Some(1)),
        (RAM - 1, Some(1)),
        (RAM, None),
        (0xE000_0000, Some(2)),
        (0xFFFF_FFFF, Some(2)),
        (RAM_ABOVE_4G, None),
    ] {
        assert_eq!(kind(at), expected, "{at:#x}");
    }
    assert!(map.windows(2).all(|pair| pair[0].0 + pair[0].1 <= pair[1].0), "sorted and disjoint: {map:x?}");
}

/// Both confidential guests.
const GUESTS: [fn() -> Fake; 2] = [Fake::snp, Fake::td];

#[test]
fn every_page_of_ram_is_accepted_exactly_once() {
    for guest in GUESTS {
        for small_pages in [false, true] {
            let mut machine = guest();
            machine.lies.small_pages = small_pages;
            machine.above_4g_end = RAM_ABOVE_4G + (3 << 30) + 0x5000;
            machine.set_e820(
                &[(0, RAM, 1), (RAM_ABOVE_4G, machine.above_4g_end - RAM_ABOVE_4G, 1)],
                RAM + machine.above_4g_end - RAM_ABOVE_4G,
            );
            boot(&mut machine).unwrap();
            let all = (0..RAM).chain(RAM_ABOVE_4G..machine.above_4g_end).step_by(PAGE as usize);
            for page in all {
                let hole = (LOW_RAM_END..BIOS_AREA.start).contains(&page);
                let never = hole || page == LAUNCH_STACK.start;
                let expected = u32::from(!never);
                assert!(!machine.is_shared(page), "{page:#x}");
                assert_eq!(machine.validations(page), expected, "{page:#x}");
            }
        }
    }
}

#[test]
fn no_accepted_page_keeps_what_the_host_left_in_it() {
    for (guest, measured) in [(GUESTS[0], &LAUNCHED[..]), (GUESTS[1], &LAUNCHED_TD[..1])] {
        for small_pages in [false, true] {
            let mut machine = guest();
            machine.lies.small_pages = small_pages;
            let launched =
                |page: u64| measured.iter().any(|(range, _)| range.overlaps(&Range::new(page, page + 1)));
            for page in (0..RAM).step_by(PAGE as usize).filter(|&page| !launched(page)) {
                machine.put(Range::new(page, page + PAGE), &[HOSTS; PAGE as usize]);
            }
            boot(&mut machine).unwrap();
            // What the reset code clears in a TD is the ROM's, not the library's.
            let reset_code = |page: u64| {
                LAUNCHED_TD.iter().any(|(range, kind)| {
                    *kind == TDVF_TEMP_MEM && range.contains(&Range::new(page, page + PAGE))
                })
            };
            for page in (0..RAM).step_by(PAGE as usize) {
                if machine.validations(page) == 1 && !reset_code(page) {
                    let kept = machine.get(page, PAGE as usize).chunks(16).any(|bytes| bytes == [HOSTS; 16]);
                    assert!(!kept, "{page:#x}");
                }
            }
        }
    }
}

#[test]
fn the_vectors_are_filled_before_any_word_of_the_hosts_is_read() {
    for guest in GUESTS {
        let mut machine = guest();
        machine.lies.remapped = Some(0);
        assert_eq!(reason(&mut machine), TerminationReason::PageValidationFailed);
        assert_eq!((machine.transfers, machine.console.as_str()), (0, ""));
    }
}

#[test]
fn a_remapped_or_unvalidatable_page_ends_the_guest() {
    for page in [
        0,
        BOUNCE.start,
        BOUNCE.end - PAGE,
        0x4_0000,
        BIOS_AREA.start,
        0x10_0000,
        0x1F_F000,
        0x20_0000,
        0x123_4000,
        RAM - PAGE,
    ] {
        for (guest, small_pages) in GUESTS.into_iter().flat_map(|guest| [(guest, false), (guest, true)]) {
            let mut machine = guest();
            machine.lies.small_pages = small_pages;
            machine.lies.remapped = Some(page);
            assert_eq!(reason(&mut machine), TerminationReason::PageValidationFailed, "{page:#x} remapped");
            let mut machine = guest();
            machine.lies.small_pages = small_pages;
            machine.lies.broken = Some(page);
            assert_eq!(reason(&mut machine), TerminationReason::PageValidationFailed, "{page:#x} broken");
        }
    }
}

#[test]
fn anything_but_what_was_measured_is_named() {
    type Tamper = fn(&mut Fake);
    let cases: [(TerminationReason, Tamper); 9] = [
        (TerminationReason::KernelHashMismatch, |m| m.items.get_mut(&0x11).unwrap()[250_000] ^= 1),
        (TerminationReason::KernelHashMismatch, |m| m.items.get_mut(&0x18).unwrap()[0x20] ^= 1),
        (TerminationReason::KernelHashMismatch, |m| {
            let longer = [&m.items[&0x11][..], &[0]].concat();
            m.set_item(0x08, 0x11, &longer);
        }),
        (TerminationReason::InitrdHashMismatch, |m| m.items.get_mut(&0x12).unwrap()[100_000] ^= 1),
        (TerminationReason::InitrdHashMismatch, |m| m.set_item(0x0B, 0x12, &[])),
        (TerminationReason::CmdlineHashMismatch, |m| m.set_item(0x14, 0x15, b"init=/bin/sh\0")),
        (TerminationReason::CmdlineHashMismatch, |m| m.set_item(0x14, 0x15, b"")),
        (TerminationReason::NoHashTable, |m| m.put(KERNEL_HASHES, &[0; 4096])),
        (TerminationReason::CpuidPageRefused, |m| m.put(CPUID, &crate::fake::cpuid_page(50))),
    ];
    for (index, (expected, tamper)) in cases.into_iter().enumerate() {
        let mut machine = Fake::snp();
        tamper(&mut machine);
        assert_eq!(reason(&mut machine), expected, "case {index}");
    }
}

#[test]
fn absent_initrd_and_command_line_are_measured_as_such() {
    let mut machine = Fake::snp();
    machine.set_item(0x0B, 0x12, &[]);
    machine.set_item(0x14, 0x15, &[0]);
    machine.measure();
    boot(&mut machine).unwrap();
    assert_eq!(u32_at(&machine, BOOT_PARAMS.start + 0x21C), 0);
    machine.set_item(0x14, 0x15, &[]);
    let mut again = Fake::snp();
    std::mem::swap(&mut again.items, &mut machine.items);
    again.put(KERNEL_HASHES, machine.get(KERNEL_HASHES.start, 4096));
    boot(&mut again).unwrap();
}

#[test]
fn memory_maps_that_cannot_be_are_refused() {
    const G4: u64 = RAM_ABOVE_4G;
    type Map = &'static [(u64, u64, u32)];
    let cases: [(&str, Map, u64); 16] = [
        ("empty", &[], 0),
        ("no RAM", &[(0, RAM, 2)], 0),
        ("too small", &[(0, 16 << 20, 1)], 16 << 20),
        ("not from 0", &[(0x1000, RAM, 1)], RAM),
        ("hole", &[(0, RAM / 2, 1), (RAM / 2 + PAGE, RAM / 2, 1)], RAM),
        ("overlap", &[(0, RAM, 1), (RAM - PAGE, PAGE * 2, 2)], RAM),
        ("twice", &[(0, RAM, 1), (0, RAM, 1)], RAM * 2),
        ("unsorted", &[(G4, RAM, 1), (0, RAM, 1)], RAM * 2),
        ("not page-aligned", &[(0, RAM + 1, 1)], RAM + 1),
        ("empty entry", &[(0, RAM, 1), (RAM, 0, 1)], RAM),
        ("wraps", &[(0, RAM, 1), (u64::MAX, 2, 2)], RAM),
        ("over the PCI window", &[(0, 0xC000_1000, 1)], 0xC000_1000),
        ("over the ROM", &[(0, RAM, 1), (0xFFFF_0000, 0x1_0000, 1)], RAM + 0x1_0000),
        ("too high", &[(0, RAM, 1), (512 << 30, RAM, 1)], RAM * 2),
        ("too long", &[(0, RAM, 1), (G4, 509 << 30, 1)], RAM + (509 << 30)),
        ("another size", &[(0, RAM, 1)], RAM * 2),
    ];
    for (name, map, size) in cases {
        let mut machine = Fake::snp();
        machine.set_e820(map, size);
        assert_eq!(reason(&mut machine), TerminationReason::MemoryMapRefused, "{name}");
    }
    let mut machine = Fake::snp();
    machine.items.get_mut(&E820_KEY).unwrap().pop();
    let mut directory = machine.items[&0x19].clone();
    directory[4 + 64 + 3] -= 1;
    machine.items.insert(0x19, directory);
    assert_eq!(reason(&mut machine), TerminationReason::MemoryMapRefused, "no whole number of entries");
}

#[test]
fn a_reserved_range_of_the_hosts_is_no_reason_to_stop() {
    let mut machine = Fake::snp();
    machine.set_e820(&[(0, RAM, 1), (0xFD_0000_0000, 0x3_0000_0000, 2), (0xFEFF_C000, 0x4000, 2)], RAM);
    boot(&mut machine).unwrap();
    assert!(
        !linux_map(&machine).iter().any(|entry| entry.0 == 0xFD_0000_0000),
        "and Linux is not told of it"
    );
}

#[test]
fn processor_counts_out_of_range_are_refused() {
    for (count, ok) in [(0, false), (1, true), (8, true), (512, true), (513, false), (u16::MAX, false)] {
        let mut machine = Fake::snp();
        machine.items.insert(0x05, u16::to_le_bytes(count).to_vec());
        match boot(&mut machine) {
            Ok(_) => assert!(ok, "{count}"),
            Err(stop) => {
                assert!(!ok && stop.reason == TerminationReason::CpuCountRefused, "{count}: {stop:?}")
            }
        }
    }
}

#[test]
fn an_fw_cfg_that_fails_ends_the_guest() {
    type Lie = fn(&mut Fake);
    let cases: [Lie; 8] = [
        |m| m.lies.no_fw_cfg = true,
        |m| m.lies.no_dma = true,
        |m| m.lies.endless = true,
        |m| m.lies.failing_key = Some(0x11),
        |m| m.lies.failing_key = Some(0x19),
        |m| m.lies.failing_key = Some(E820_KEY),
        |m| drop(m.items.insert(0x19, vec![0, 0, 0, 0])),
        |m| drop(m.items.insert(0x19, vec![0xFF; 4])),
    ];
    for (index, lie) in cases.into_iter().enumerate() {
        let mut machine = Fake::snp();
        lie(&mut machine);
        assert_eq!(reason(&mut machine), TerminationReason::FwCfgFailed, "case {index}");
    }
}

#[test]
fn kernels_that_cannot_be_started_are_refused() {
    use TerminationReason::{KernelUnusable, OutOfMemory};
    let damaged = |at: usize, bytes: &[u8]| {
        let (mut setup, rest) = bzimage(300_000);
        setup[at..at + bytes.len()].copy_from_slice(bytes);
        (setup, rest)
    };
    let (setup, rest) = bzimage(300_000);
    let max = u32::MAX.to_le_bytes();
    type Image = (Vec<u8>, Vec<u8>);
    let cases: [(&str, TerminationReason, Image); 17] = [
        ("no boot flag", KernelUnusable, damaged(0x1FE, &[0, 0])),
        ("no magic", KernelUnusable, damaged(0x202, b"HDRS")),
        ("protocol 2.11", KernelUnusable, damaged(0x206, &[0x0B, 2])),
        ("loaded low", KernelUnusable, damaged(0x211, &[0])),
        ("32-bit only", KernelUnusable, damaged(0x236, &[0, 0])),
        ("more sectors", KernelUnusable, damaged(0x1F1, &[5])),
        ("alignment 0", KernelUnusable, damaged(0x230, &[0, 0, 0, 0])),
        ("alignment 3", KernelUnusable, damaged(0x230, &[3, 0, 0, 0])),
        ("misaligned", KernelUnusable, damaged(0x258, &0x100_1000_u64.to_le_bytes())),
        ("low", KernelUnusable, damaged(0x258, &0_u64.to_le_bytes())),
        ("wraps", OutOfMemory, damaged(0x258, &0xFFFF_FFFF_FFE0_0000_u64.to_le_bytes())),
        ("truncated", KernelUnusable, damaged(0x1F4, &(300_000_u32 / 16 + 1).to_le_bytes())),
        ("init_size too small", KernelUnusable, damaged(0x260, &[0, 0, 4, 0])),
        ("init_size too large", OutOfMemory, damaged(0x260, &max)),
        ("setup too short", KernelUnusable, (setup[..512].to_vec(), rest.clone())),
        ("setup too long", KernelUnusable, (vec![0; 0x2_1000], rest)),
        ("nothing but setup", KernelUnusable, (setup, Vec::new())),
    ];
    for (name, expected, (setup, rest)) in cases {
        let mut machine = Fake::snp();
        machine.set_kernel(&setup, &rest);
        machine.measure();
        assert_eq!(reason(&mut machine), expected, "{name}");
    }
}

#[test]
fn sizes_that_only_the_host_believes_are_refused() {
    use TerminationReason::{KernelUnusable, OutOfMemory};
    for (key, expected) in
        [(0x08, KernelUnusable), (0x0B, OutOfMemory), (0x14, KernelUnusable), (0x17, KernelUnusable)]
    {
        let mut machine = Fake::snp();
        machine.items.insert(key, u32::MAX.to_le_bytes().to_vec());
        assert_eq!(reason(&mut machine), expected, "{key:#x}");
    }
    // Room for the kernel, but not for the initrd beside it.
    let mut machine = Fake::snp();
    machine.items.insert(0x0B, (RAM as u32 - 0x180_0000 + 1).to_le_bytes().to_vec());
    assert_eq!(reason(&mut machine), OutOfMemory);
}

#[test]
fn a_command_line_that_does_not_fit_or_end_is_refused() {
    for cmdline in [vec![b'a'; 2049], vec![b'a'; 100]] {
        let mut machine = Fake::snp();
        machine.set_item(0x14, 0x15, &cmdline);
        machine.measure();
        assert_eq!(reason(&mut machine), TerminationReason::KernelUnusable);
    }
    let mut machine = Fake::snp();
    let longest = [&[b'a'; 2047][..], &[0]].concat();
    machine.set_item(0x14, 0x15, &longest);
    machine.measure();
    boot(&mut machine).unwrap();
}

#[test]
fn an_elf_kernel_is_spread_to_its_place() {
    let text: Vec<u8> = (0..200_000_u32).map(|n| n as u8).collect();
    let file = elf(&text);
    let mut machine = Fake::snp();
    machine.set_kernel(&[], &file);
    machine.measure();
    let handoff = boot(&mut machine).unwrap();
    assert_eq!(handoff.entry, 0x100_0000);
    assert_eq!(machine.get(0x100_0000, text.len()), text);
    assert!(machine.get(0x100_0000 + text.len() as u64, 0x1000).iter().all(|&byte| byte == 0));
    assert_eq!(machine.get(BOOT_PARAMS.start + 0x202, 4), b"HdrS");
    let initrd = u64::from(u32_at(&machine, BOOT_PARAMS.start + 0x218));
    assert_eq!(machine.get(initrd, 1), [0x5A], "the initrd may have the file's place");
}

#[test]
fn elf_kernels_that_reach_elsewhere_are_refused() {
    use TerminationReason::{KernelHashMismatch, KernelUnusable, OutOfMemory};
    let damaged = |at: usize, value: u64, size: usize| {
        let mut file = elf(&[1; 5000]);
        file[at..at + size].copy_from_slice(&value.to_le_bytes()[..size]);
        file
    };
    let cases = [
        ("32-bit", KernelUnusable, damaged(4, 1, 1)),
        ("another machine", KernelUnusable, damaged(18, 183, 2)),
        ("odd headers", KernelUnusable, damaged(54, 64, 2)),
        ("many headers", KernelUnusable, damaged(56, 1000, 2)),
        ("headers outside", KernelUnusable, damaged(32, u64::MAX - 10, 8)),
        ("no segment", KernelUnusable, damaged(64, 2, 4)),
        ("file part outside", KernelUnusable, damaged(72, 0x2000, 8)),
        ("file part wraps", KernelUnusable, damaged(72, u64::MAX, 8)),
        ("more file than memory", KernelUnusable, damaged(104, 10, 8)),
        ("below 1 MiB", OutOfMemory, damaged(88, 0x1000, 8)),
        ("over its own file", OutOfMemory, damaged(88, RAM - 0x4000, 8)),
        ("beyond RAM", OutOfMemory, damaged(88, RAM, 8)),
        ("memory wraps", KernelUnusable, damaged(88, u64::MAX, 8)),
        ("entry outside", KernelUnusable, damaged(24, 0x200_0000, 8)),
        ("short", KernelUnusable, vec![0x7F; 20]),
    ];
    for (name, expected, file) in cases {
        let mut machine = Fake::snp();
        machine.set_kernel(&[], &file);
        machine.measure();
        assert_eq!(reason(&mut machine), expected, "{name}");
    }
    // Unmeasured contents are not even looked at.
    let mut machine = Fake::snp();
    machine.set_kernel(&[], &vec![0xFF; 5000]);
    assert_eq!(reason(&mut machine), KernelHashMismatch);
}

#[test]
fn only_q35_is_told_where_configuration_space_is() {
    for (bridge, expected) in
        [(0x29C0_8086, vec![(0x8000_0064, 0), (0x8000_0060, 0xE000_0001)]), (0x0D57_1B36, vec![])]
    {
        let mut machine = Fake::plain();
        machine.host_bridge = bridge;
        boot(&mut machine).unwrap();
        assert_eq!(machine.config_writes, expected);
    }
}
