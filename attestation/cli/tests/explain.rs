//! `explain`, asked as an operator asks: the guest does not measure as expected, and why?

mod common;
#[path = "../../tests/tdx_pki/mod.rs"]
mod tdx_pki;

use std::path::Path;

use cloister_attestation::abi::ram_ranges;
use cloister_attestation::measure::acpi;
use cloister_attestation::measure::tdx::{Event, MemoryRange, RtmrInputs};
use common::{attest, json, run, vectors, write};
use serde_json::Value;
use tdx_pki::Scenario;
use tdx_pki::quote::{LogEvent, MRTD};

#[test]
fn a_differing_launch_is_explained() {
    let Some(folder) = vectors("measure") else { return };
    let rom = folder.join("ovmf_AmdSev_suffix.bin");
    let launch = ["--firmware", rom.to_str().unwrap(), "--vmm", "qemu", "--cpu-model", "EPYC-Milan"];
    let temporary = tempfile::tempdir().unwrap();
    let transcript = write(temporary.path(), "transcript.json", "");
    let measure = |cpus: &str| {
        let to = ["measure", "snp", "--transcript", &transcript, "--cpus", cpus];
        assert_eq!(run(&[&to[..], &launch].concat()).0, 0);
        json(transcript.as_ref())
    };
    let (two, four) = (measure("2"), measure("4"));
    let explain = |more: &[&str]| run(&[&["explain", "--json"][..], &launch, more].concat());
    let measured = |transcript: &Value| transcript["launch_digest"].as_str().unwrap().to_owned();
    let (code, explanation) = explain(&["--cpus", "2", "--measurement", &measured(&four)]);
    assert_eq!((code, &explanation["would_match"][0]), (1, &"the inputs with 4 vCPUs instead of 2".into()));
    let (code, explanation) = explain(&["--cpus", "2", "--transcript", &transcript]);
    assert_eq!((code, &explanation["findings"][0]["subject"]), (1, &"input".into()));
    assert_eq!(explain(&["--cpus", "2", "--measurement", &measured(&two)]).0, 0);
    assert_eq!(explain(&["--cpus", "4", "--transcript", &transcript]).0, 0);
    assert_eq!(run(&["explain", "--transcript", &transcript, "--measurement", &measured(&two)]).0, 1);
    assert_eq!(run(&["explain"]).0, 2);
    assert_eq!(explain(&[]).0, 2);
    assert_eq!(run(&["inspect", &transcript]).0, 0);
}

#[test]
fn what_a_transcript_says_cannot_pass_for_what_is_said_about_it() {
    let Some(folder) = vectors("measure") else { return };
    let rom = folder.join("ovmf_AmdSev_suffix.bin");
    let temporary = tempfile::tempdir().unwrap();
    let transcript = write(temporary.path(), "transcript.json", "");
    let measure = ["measure", "snp", "--transcript", &transcript, "--firmware", rom.to_str().unwrap()];
    assert_eq!(run(&measure).0, 0);
    let mut document = json(transcript.as_ref());
    let forged = "\u{1b}[2J\neverything that was given agrees";
    document["launch_digest"] = forged.into();
    document["ranges"][0]["gpa"] = forged.into();
    document["ranges"][1]["digest"] = forged.into();
    let hostile = write(temporary.path(), "hostile.json", document.to_string());
    for file in [&["explain", "--transcript", &hostile][..], &["inspect", &hostile]] {
        let output = attest(file);
        let text = String::from_utf8(output.stdout).unwrap();
        assert!(text.contains("everything that was given agrees"), "{text}");
        assert!(text.lines().all(|line| !line.starts_with("everything")), "{text}");
        assert!(!text.contains('\u{1b}'), "{text}");
    }
    // Neither keys, nor what an error quotes.
    let strange = write(temporary.path(), "strange.json", r#"{"inputs": {"k\u001b[2J\naccepted": 1}}"#);
    let policy = write(temporary.path(), "policy.toml", "\"k\\u001b[2J\\naccepted\" = 1\n");
    for arguments in
        [&["inspect", &strange][..], &["verify", "snp", "--report", &strange, "--policy", &policy]]
    {
        let output = attest(arguments);
        let text = [output.stdout, output.stderr].concat();
        let text = String::from_utf8(text).unwrap();
        assert!(!text.contains('\u{1b}'), "{text}");
        assert!(text.lines().all(|line| !line.starts_with("accepted")), "{text}");
    }
}

/// Data offset, raw data size, address, memory size, type, attributes.
type Section = (u32, u32, u64, u64, u32, u32);

/// A firmware with these sections, described by a TDVF descriptor, and the GUIDed table that points to it.
fn rom_with(len: usize, sections: &[Section]) -> Vec<u8> {
    const DESCRIPTOR: usize = 0x2100;
    let mut rom: Vec<u8> = (0..len).map(|at| ((at * 31) >> 4) as u8).collect();
    let mut descriptor = b"TDVF".to_vec();
    let count = sections.len() as u32;
    [16 + 32 * count, 1, count].iter().for_each(|word| descriptor.extend(word.to_le_bytes()));
    for (offset, size, address, len, kind, attributes) in sections {
        descriptor.extend([offset.to_le_bytes(), size.to_le_bytes()].concat());
        descriptor.extend([address.to_le_bytes(), len.to_le_bytes()].concat());
        descriptor.extend([kind.to_le_bytes(), attributes.to_le_bytes()].concat());
    }
    rom[DESCRIPTOR..][..descriptor.len()].copy_from_slice(&descriptor);
    // Entries e47a6535-984a-4798-865e-4685a7bf8ec2 (TDVF) and 96b582de-1fb2-45f7-baea-a366c55a082d (the footer).
    let tdvf = hex::decode("35657ae44a989847865e4685a7bf8ec2").unwrap();
    let footer = hex::decode("de82b596b21ff745baeaa366c55a082d").unwrap();
    let offset = ((len - DESCRIPTOR) as u32).to_le_bytes();
    let table = [&offset[..], &22u16.to_le_bytes(), &tdvf, &40u16.to_le_bytes(), &footer].concat();
    rom[len - 32 - table.len()..len - 32].copy_from_slice(&table);
    rom
}

/// One that asks for what our firmware asks for.
fn rom() -> Vec<u8> {
    let sections = [
        (0, 0x1_0000, 0xffff_0000, 0x1_0000, 0, 1),
        (0, 0, 0x1000, 0x9000, 3, 0),
        (0, 0, 0x2_6000, 0x1000, 2, 0),
        (0, 0, 0x6_8000, 0x5000, 3, 0),
    ];
    rom_with(0x1_0000, &sections)
}

/// Another: four pages of code (measured) and variables, a hand-off block and temporary memory.
fn foreign_rom() -> Vec<u8> {
    let sections = [
        (0x2000, 0x2000, 0xffff_e000, 0x2000, 0, 1),
        (0x1000, 0x1000, 0xffff_d000, 0x1000, 1, 0),
        (0, 0, 0x80_9000, 0x2000, 2, 0),
        (0, 0, 0x81_0000, 0x3000, 3, 0),
    ];
    rom_with(0x4000, &sections)
}

const CPUS: u16 = 2;
const MEMORY: u64 = 1 << 29;
const CMDLINE: &str = "console=hvc0";

/// What our firmware logs of a guest with this command line and no initrd.
fn events(cmdline: &str) -> Vec<LogEvent> {
    let ram: Vec<_> = ram_ranges(MEMORY)
        .into_iter()
        .filter(|range| !range.is_empty())
        .map(|range| MemoryRange { gpa: range.start, len: range.end - range.start })
        .collect();
    let mut tables = vec![0; acpi::TABLES_BYTES];
    let used = acpi::build(&mut tables, CPUS, acpi::Kind::Td).unwrap();
    let (acpi, kernel) = (Some(&tables[..used]), Some(&b"kernel"[..]));
    let inputs = RtmrInputs { cpus: CPUS.into(), ram: &ram, acpi, kernel, initrd: None, cmdline };
    let platform = cloister_attestation::measure::tdx::events::platform_description(CPUS.into(), &ram);
    let logged = |event: Event| match event {
        Event::PLATFORM => event.log_data(&platform),
        event => event.log_data(&[0; 4]),
    };
    let predicted = inputs.events().into_iter().map(|predicted| LogEvent {
        register: predicted.event.mr_index(),
        kind: predicted.event.event_type,
        digest: predicted.digest.unwrap(),
        data: logged(predicted.event),
    });
    predicted.collect()
}

/// A guest that was launched from this firmware: its quote and its log, as files.
fn guest(folder: &Path, rom: &[u8], events: &[LogEvent]) -> (String, String) {
    let mut scenario = Scenario::new(5, 3);
    let firmware = write(folder, "launched.bin", rom);
    let (code, reference) = run(&["measure", "tdx", "--json", "--firmware", &firmware]);
    assert_eq!(code, 0);
    scenario.quote.set(MRTD, &hex::decode(reference["mrtd"].as_str().unwrap()).unwrap());
    let log = scenario.quote.measure(events);
    (write(folder, "quote.bin", scenario.quote_bytes()), write(folder, "ccel.bin", log))
}

#[test]
fn a_range_of_cpus_has_the_reference_values_of_each_td() {
    let folder = tempfile::tempdir().unwrap();
    let (firmware, corim) = (write(folder.path(), "firmware.bin", rom()), folder.path().join("corim"));
    let measure =
        |more: &[&str]| run(&[&["measure", "tdx", "--json", "--firmware", &firmware][..], more].concat());
    let (code, values) = measure(&["--cpus", "2-4", "--corim", corim.to_str().unwrap()]);
    assert_eq!((code, values.as_array().unwrap().len()), (0, 3));
    for (cpus, value) in ["2", "3", "4"].iter().zip(values.as_array().unwrap()) {
        assert_eq!(*value, measure(&["--cpus", cpus]).1, "{cpus} CPUs");
    }
    assert!(corim.exists());
    let tables = write(folder.path(), "tables", "tables");
    for more in [["--acpi", &tables], ["--transcript", "/nonexistent"]] {
        assert_eq!(measure(&[&["--cpus", "2-4"][..], &more].concat()).0, 2, "{more:?}");
    }
    assert_eq!(measure(&["--cpus", "2", "--acpi", &tables]).0, 0);
}

/// What is said of a guest, where [`rom`], a kernel and [`CMDLINE`] were expected.
fn explain_td(folder: &Path, (quote, ccel): &(String, String), more: &[&str]) -> (i32, Value) {
    let (firmware, kernel) = (write(folder, "firmware.bin", rom()), write(folder, "kernel", "kernel"));
    let inputs = ["--firmware", &firmware, "--kernel", &kernel, "--cmdline", CMDLINE, "--cpus", "2"];
    run(&[&["explain", "--json", "--quote", quote, "--ccel", ccel][..], &inputs, more].concat())
}

fn findings(explanation: &Value) -> Vec<(&str, &str)> {
    let findings = explanation["findings"].as_array().unwrap().iter();
    findings.map(|f| (f["subject"].as_str().unwrap(), f["message"].as_str().unwrap())).collect()
}

#[test]
fn a_td_that_is_as_expected_is_said_to_be() {
    let temporary = tempfile::tempdir().unwrap();
    let guest = guest(temporary.path(), &rom(), &events(CMDLINE));
    let (code, explanation) = explain_td(temporary.path(), &guest, &[]);
    assert_eq!((code, findings(&explanation)), (0, vec![]), "{explanation}");
}

#[test]
fn a_range_of_a_td_that_differs_is_named() {
    let temporary = tempfile::tempdir().unwrap();
    let mut other = rom();
    other[0x2000] ^= 1;
    let guest = guest(temporary.path(), &other, &events(CMDLINE));
    let transcript = write(temporary.path(), "transcript.json", "");
    let launched = temporary.path().join("launched.bin");
    let measure = ["measure", "tdx", "--transcript", &transcript, "--firmware", launched.to_str().unwrap()];
    assert_eq!(run(&measure).0, 0);
    let (code, explanation) = explain_td(temporary.path(), &guest, &["--transcript", &transcript]);
    assert_eq!(code, 1);
    let found = findings(&explanation);
    assert_eq!((found.len(), found[0].0, found[1].0), (2, "input", "range"), "{found:?}");
    assert!(found[1].1.starts_with("the firmware's code at 0xffff0000 has other contents"), "{found:?}");
    assert_eq!(explanation["findings"][1]["range"]["gpa"], "0xffff0000");
    // Without the transcript it is only known that another launch was measured.
    let (code, explanation) = explain_td(temporary.path(), &guest, &[]);
    assert_eq!((code, &explanation["summary"]), (1, &"the quote measures something else".into()));
    let found = findings(&explanation);
    assert_eq!((found.len(), found[0].0), (1, "measurement"), "{found:?}");
    assert!(found[0].1.starts_with("MRTD of the quote is "), "{found:?}");
}

#[test]
fn a_transcript_that_is_of_something_else_is_not_compared() {
    let temporary = tempfile::tempdir().unwrap();
    let (firmware, to) =
        (write(temporary.path(), "firmware.bin", rom()), write(temporary.path(), "transcript.json", ""));
    assert_eq!(run(&["measure", "tdx", "--firmware", &firmware, "--transcript", &to]).0, 0);
    let good = json(to.as_ref());
    let explain = |transcript: &Value| {
        let path = write(temporary.path(), "changed.json", transcript.to_string());
        run(&["explain", "--json", "--transcript", &path, "--firmware", &firmware]).0
    };
    assert_eq!(explain(&good), 0);
    for (field, value) in
        [("version", Value::from(2)), ("tee", "snp".into()), ("tee", "sgx".into()), ("more", 1.into())]
    {
        let mut other = good.clone();
        other[field] = value;
        assert_eq!(explain(&other), 2, "{field}");
    }
}

#[test]
fn registers_are_predicted_for_our_firmware_only() {
    let temporary = tempfile::tempdir().unwrap();
    let path = |name: &str| temporary.path().join(name).to_str().unwrap().to_owned();
    for (name, rom, ours) in [("ours", rom(), true), ("foreign", foreign_rom(), false)] {
        let (firmware, kernel) =
            (write(temporary.path(), name, rom), write(temporary.path(), "kernel", "kernel"));
        let corim = path("corim");
        let measure = ["measure", "tdx", "--firmware", &firmware, "--kernel", &kernel, "--corim", &corim];
        let (code, value) = run(&[&measure[..], &["--json"]].concat());
        assert_eq!(code, 0, "{name}");
        let rtmrs = value["rtmrs"].as_array().unwrap();
        assert!(rtmrs.len() == 4 && rtmrs.iter().all(|rtmr| rtmr.is_string() == ours), "{name}: {value}");
        assert_eq!(value["inputs"]["acpi"].is_string(), ours, "{name}");
        let registers = std::fs::read(&corim).unwrap().windows(5).any(|window| window == b"rtmrs");
        assert_eq!(registers, ours, "{name}");
        let said = attest(&measure);
        assert_eq!(
            String::from_utf8(said.stderr).unwrap().contains("not Cloister's firmware"),
            !ours,
            "{name}"
        );
        assert_eq!(String::from_utf8(said.stdout).unwrap().contains("rtmrs:\n  0: "), ours, "{name}");
    }
    let guest = guest(temporary.path(), &foreign_rom(), &events("quiet"));
    let (quote, ccel) = &guest;
    let (firmware, kernel) = (path("foreign"), path("kernel"));
    let inputs = ["--firmware", &firmware, "--kernel", &kernel, "--cmdline", CMDLINE, "--cpus", "2"];
    let (code, explanation) =
        run(&[&["explain", "--json", "--quote", quote, "--ccel", ccel][..], &inputs].concat());
    assert_eq!((code, findings(&explanation)), (0, vec![]), "{explanation}");
    assert!(explanation["notes"][0].as_str().unwrap().contains("not Cloister's"), "{explanation}");
}

#[test]
fn a_log_that_contradicts_itself_is_shown_and_compared() {
    let temporary = tempfile::tempdir().unwrap();
    let mut lies = events(CMDLINE);
    lies.insert(3, tdx_pki::quote::event(1, 4, &[0; 4]));
    let guest = guest(temporary.path(), &rom(), &lies);
    let (code, explanation) = explain_td(temporary.path(), &guest, &[]);
    let found = findings(&explanation);
    assert_eq!((code, found[0].0), (1, "event-log"), "{found:?}");
    assert_eq!(found[0].1, "the event log contradicts itself: event 4 is a second separator in RTMR0");
    assert_eq!(explanation["replay"].as_array().unwrap().len(), 4);
    let (code, log) = run(&["inspect", "--json", &guest.1]);
    assert_eq!((code, &log["inconsistencies"][0]), (0, &"event 4 is a second separator in RTMR0".into()));
    assert_eq!(log["log"]["events"].as_array().unwrap().len(), lies.len());
}

#[test]
fn an_event_of_a_td_that_differs_is_named() {
    let temporary = tempfile::tempdir().unwrap();
    let guest = guest(temporary.path(), &rom(), &events("console=hvc0\n"));
    let (code, explanation) = explain_td(temporary.path(), &guest, &[]);
    let found = findings(&explanation);
    assert_eq!((code, found.len()), (1, 2), "{found:?}");
    assert!(found[0].1.starts_with("RTMR2 of the quote is "), "{found:?}");
    assert!(found[1].1.starts_with("event 1 of RTMR2 should be the command line"), "{found:?}");
    let mistake = "the inputs with a newline after the command line, as far as RTMR2";
    assert_eq!(explanation["would_match"], serde_json::json!([mistake]));
}

#[test]
fn a_log_that_does_not_lead_to_the_quote_is_found_out() {
    let temporary = tempfile::tempdir().unwrap();
    let mut guest = guest(temporary.path(), &rom(), &events(CMDLINE));
    guest.1 = write(temporary.path(), "other.bin", tdx_pki::quote::log(&events("quiet")));
    let (code, explanation) = explain_td(temporary.path(), &guest, &[]);
    assert_eq!(code, 1);
    assert_eq!(explanation["summary"], "the event log is not of this guest, or was changed");
    let found = findings(&explanation);
    assert_eq!(found[0].0, "event-log");
    assert!(found[0].1.starts_with("RTMR2 of the quote is "), "{found:?}");
}
