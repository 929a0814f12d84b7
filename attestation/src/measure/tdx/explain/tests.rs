use sha2::{Digest, Sha384};

use super::*;
use crate::measure::tdx::events::Rtmr;
use crate::measure::tdx::tdvf::tests::{BFV, CFV, CLOISTER_ROWS, Row, TD_HOB, TEMP_MEM, rom_of, rom_with};
use crate::measure::tdx::{Event, MemoryRange};
use crate::tdx::event_log::tests::log;

const ROWS: &[Row] = &[BFV, CFV, TD_HOB, TEMP_MEM];
const RAM: &[MemoryRange] = &[MemoryRange { gpa: 0, len: 1 << 29 }];

/// The answer about what a launch of `rom` wrote down and measured, where one of [`ROWS`] is expected.
fn explain_launch(transcript: Option<&LaunchTranscript>, mrtd: Option<Mrtd>) -> Explanation {
    let rom = rom_with(ROWS);
    let tdvf = Tdvf::parse(&rom).unwrap();
    let plan = LaunchPlan::new(&tdvf).unwrap();
    explain(&Question {
        transcript,
        measurement: mrtd.map(|mrtd| Measurement { mrtd, rtmrs: None }),
        launch: Some(Launch { tdvf: &tdvf, plan: &plan, order: PageOrder::PageByPage }),
        ..Question::default()
    })
}

fn transcript(rom: &[u8], order: PageOrder) -> LaunchTranscript {
    let tdvf = Tdvf::parse(rom).unwrap();
    LaunchTranscript::new(&tdvf, &LaunchPlan::new(&tdvf).unwrap(), order)
}

fn mrtd(transcript: &LaunchTranscript) -> Mrtd {
    Mrtd(crate::measure::read_hex(&transcript.mrtd).unwrap().try_into().unwrap())
}

fn messages(explanation: &Explanation) -> Vec<(Subject, &str)> {
    explanation.findings.iter().map(|finding| (finding.subject, finding.message.as_str())).collect()
}

#[test]
fn what_agrees_is_said_to() {
    let good = transcript(&rom_with(ROWS), PageOrder::PageByPage);
    for (transcript, measured) in
        [(Some(&good), Some(mrtd(&good))), (Some(&good), None), (None, Some(mrtd(&good)))]
    {
        let answer = explain_launch(transcript, measured);
        assert!(answer.agree && answer.findings.is_empty() && answer.would_match.is_empty(), "{answer:?}");
    }
}

#[test]
fn the_range_that_differs_is_named() {
    let mut other_code = rom_with(ROWS);
    other_code[0x2000] ^= 1;
    let moved: Row = (0, 0, 0x82_0000, 0x3000, 3, 0);
    let larger: Row = (0, 0, 0x81_0000, 0x4000, 3, 0);
    let measured_cfv: Row = (CFV.0, CFV.1, CFV.2, CFV.3, CFV.4, 1);
    let unmeasured_bfv: Row = (BFV.0, BFV.1, BFV.2, BFV.3, BFV.4, 0);
    for (rom, expected) in [
        (other_code, &["the firmware's code at 0xffffe000 has other contents"][..]),
        (rom_with(&[BFV, CFV, TD_HOB]), &["the temporary memory at 0x810000 is missing from the launch"]),
        (
            rom_with(&[BFV, CFV, TD_HOB, moved]),
            &[
                "the temporary memory at 0x810000 is missing from the launch",
                "the temporary memory at 0x820000 was launched and is not expected",
            ],
        ),
        (
            rom_with(&[BFV, CFV, TD_HOB, larger]),
            &["the temporary memory at 0x810000 has 0x4000 bytes, expected 0x3000"],
        ),
        (
            rom_with(&[BFV, measured_cfv, TD_HOB, TEMP_MEM]),
            &["the firmware's variables at 0xffffd000 was measured"],
        ),
        (
            rom_with(&[unmeasured_bfv, CFV, TD_HOB, TEMP_MEM]),
            &["the firmware's code at 0xffffe000 was added without"],
        ),
        (rom_with(&[CFV, BFV, TD_HOB, TEMP_MEM]), &["the ranges were launched in another order"]),
    ] {
        let launched = transcript(&rom, PageOrder::PageByPage);
        let answer = explain_launch(Some(&launched), Some(mrtd(&launched)));
        assert!(!answer.agree);
        assert_eq!(
            answer.summary,
            "the guest was launched as the transcript says, which is not what was expected"
        );
        let ranges = messages(&answer).into_iter().filter(|(subject, _)| *subject == Subject::Range);
        // The metadata lie in the code: who changes them changes its contents, too.
        let contents = |message: &str| message.contains("has other contents");
        let elsewhere = |message: &&str| contents(expected[0]) || !contents(message);
        let ranges: Vec<_> = ranges.map(|(_, message)| message).filter(elsewhere).collect();
        assert_eq!(ranges.len(), expected.len(), "{ranges:?}");
        for (message, start) in ranges.iter().zip(expected) {
            assert!(message.starts_with(start), "{message} instead of {start}");
        }
    }
}

#[test]
fn variations_of_the_launch_are_found_by_mrtd_alone() {
    type Change = fn(&mut Vec<crate::measure::tdx::PageCommand<'_>>);
    let rom = rom_with(ROWS);
    let plan = LaunchPlan::new(&Tdvf::parse(&rom).unwrap()).unwrap();
    let rows: [(Change, PageOrder, &str); 5] = [
        (|_| (), PageOrder::TwoPass, "the launch, two-pass"),
        (|all| all.truncate(2), PageOrder::PageByPage, "the launch as far as the range at 0x809000"),
        (|all| drop(all.remove(1)), PageOrder::PageByPage, "the launch without the range at 0xffffd000"),
        (
            |all| all[1].measured = true,
            PageOrder::TwoPass,
            "the launch with the range at 0xffffd000 measured, two-pass",
        ),
        (
            |all| all[0].measured = false,
            PageOrder::PageByPage,
            "the launch with the range at 0xffffe000 not measured",
        ),
    ];
    for (change, order, expected) in rows {
        let answer = explain_launch(None, Some(plan.varied(change).mrtd(order)));
        assert_eq!(answer.would_match.first().map(String::as_str), Some(expected));
        assert_eq!(answer.summary, "the quote measures a variation of the inputs");
        let [(Subject::Measurement, message)] = messages(&answer)[..] else { panic!("{answer:?}") };
        assert!(message.starts_with("MRTD of the quote is "), "{message}");
    }
    assert!(explain_launch(None, Some(Mrtd([7; 48]))).would_match.is_empty());
}

#[test]
fn a_transcript_that_was_changed_contradicts_itself() {
    let good = transcript(&rom_with(ROWS), PageOrder::PageByPage);
    let mut other_end = good.clone();
    other_end.mrtd = "00".repeat(48);
    let mut other_step = good.clone();
    other_step.ranges[1].mrtd = "00".repeat(48);
    for changed in [&other_end, &other_step] {
        let answer = explain_launch(Some(changed), Some(mrtd(&good)));
        assert!(
            !answer.agree && answer.summary.starts_with("the transcript contradicts itself"),
            "{answer:?}"
        );
        assert_eq!(answer.findings[0].subject, Subject::Transcript);
    }
    // Consistent, and more than what was launched.
    let ended = Mrtd(crate::measure::read_hex(&good.ranges[1].mrtd).unwrap().try_into().unwrap());
    let answer = explain_launch(Some(&good), Some(ended));
    assert!(messages(&answer)[0].1.contains("after range 1"), "{answer:?}");
}

fn inputs() -> RtmrInputs<'static> {
    RtmrInputs {
        cpus: 2,
        ram: RAM,
        acpi: Some(b"tables"),
        kernel: Some(b"kernel"),
        initrd: Some(b"initrd"),
        cmdline: "quiet",
    }
}

/// What a guest started from `inputs` logs, as the firmware writes it, and its RTMRs.
fn boot(
    inputs: &RtmrInputs<'_>,
    change: impl FnOnce(&mut Vec<(Event, [u8; 48])>),
) -> (Vec<u8>, [[u8; 48]; 4]) {
    let mut events: Vec<_> =
        inputs.events().iter().map(|event| (event.event, event.digest.unwrap())).collect();
    change(&mut events);
    let mut rtmrs = [Rtmr::ZERO; 4];
    events.iter().for_each(|(event, digest)| rtmrs[usize::from(event.rtmr)].extend(digest));
    let data = |event: &Event| if event.name == "separator" { vec![0; 4] } else { event.log_data(b"") };
    let data: Vec<_> = events.iter().map(|(event, _)| data(event)).collect();
    let rows: Vec<_> = events
        .iter()
        .zip(&data)
        .map(|((event, digest), data)| (event.mr_index(), event.event_type, *digest, &data[..]))
        .collect();
    (log(&rows), rtmrs.map(|rtmr| rtmr.0))
}

fn explain_boot(bytes: Option<&[u8]>, rtmrs: [[u8; 48]; 4]) -> Explanation {
    let (inputs, event_log) = (inputs(), bytes.map(|bytes| EventLog::read(bytes).unwrap()));
    let alternatives = [
        Alternative { description: "no initrd", inputs: RtmrInputs { initrd: None, ..inputs.clone() } },
        Alternative {
            description: "an empty command line",
            inputs: RtmrInputs { cmdline: "", ..inputs.clone() },
        },
    ];
    explain(&Question {
        measurement: Some(Measurement { mrtd: Mrtd([1; 48]), rtmrs: Some(rtmrs) }),
        event_log: event_log.as_ref(),
        inputs: Some(&inputs),
        alternatives: &alternatives,
        ..Question::default()
    })
}

#[test]
fn the_event_that_differs_is_named() {
    let digest: [u8; 48] = Sha384::digest(b"other").into();
    let (bytes, rtmrs) = boot(&inputs(), |_| ());
    assert!(explain_boot(Some(&bytes), rtmrs).agree && explain_boot(None, rtmrs).agree);
    let other_kernel = RtmrInputs { kernel: Some(b"other"), ..inputs() };
    let no_initrd = RtmrInputs { initrd: None, ..inputs() };
    let five_cpus = RtmrInputs { cpus: 5, ..inputs() };
    let unknown = Event { name: "unknown", rtmr: 2, ..Event::KERNEL };
    type Change<'a> = &'a dyn Fn(&mut Vec<(Event, [u8; 48])>);
    let rows: [(&RtmrInputs<'_>, Change<'_>, usize, &str); 6] = [
        (&other_kernel, &|_| (), 1, "event 1 of RTMR1 should be the kernel"),
        (&no_initrd, &|_| (), 2, "event 2 of RTMR2 should be the initrd and is missing"),
        (&five_cpus, &|_| (), 0, "event 1 of RTMR0 should be the platform description"),
        (&inputs(), &|events| events.insert(5, (unknown, digest)), 2, "event 1 of RTMR2, EV_EVENT_TAG"),
        (
            &inputs(),
            &|events| events.retain(|(event, _)| *event != Event::COMMAND_LINE),
            2,
            "event 1 of RTMR2 should be the command line and is missing",
        ),
        (
            &inputs(),
            &|events| events.push((Event { rtmr: 3, ..unknown }, digest)),
            3,
            "event 1 of RTMR3, EV_EVENT_TAG",
        ),
    ];
    for (booted, change, register, expected) in rows {
        let (bytes, rtmrs) = boot(booted, change);
        let answer = explain_boot(Some(&bytes), rtmrs);
        let about = |(subject, _): &(Subject, &str)| *subject == Subject::Register;
        let found: Vec<_> = messages(&answer).into_iter().filter(about).map(|(_, message)| message).collect();
        assert_eq!(found.len(), 2, "{found:?}");
        assert!(found[0].starts_with(&format!("RTMR{register} of the quote is ")), "{found:?}");
        assert!(found[1].starts_with(expected), "{found:?}");
        assert_eq!(answer.summary, "the guest measured something else than was expected after its launch");
    }
}

#[test]
fn a_log_that_does_not_lead_to_the_quote_is_no_evidence() {
    let (bytes, mut rtmrs) = boot(&inputs(), |_| ());
    rtmrs[1] = [9; 48];
    let answer = explain_boot(Some(&bytes), rtmrs);
    let subjects: Vec<_> = answer.findings.iter().map(|finding| finding.subject).collect();
    assert_eq!(subjects, [Subject::EventLog, Subject::Register]);
    assert_eq!(answer.summary, "the event log is not of this guest, or was changed");
}

#[test]
fn a_log_that_contradicts_itself_is_compared_all_the_same() {
    let separator: [u8; 48] = Sha384::digest([0; 4]).into();
    let (bytes, rtmrs) = boot(&inputs(), |events| events.insert(3, (Event::SEPARATOR_0, separator)));
    let answer = explain_boot(Some(&bytes), rtmrs);
    let found = messages(&answer);
    assert_eq!(
        found[0],
        (Subject::EventLog, "the event log contradicts itself: event 4 is a second separator in RTMR0")
    );
    assert!(found[2].1.starts_with("event 4 of RTMR0, EV_SEPARATOR"), "{found:?}");
    assert_eq!(answer.replay, Some(rtmrs.map(|rtmr| hex_string(&rtmr))));
}

#[test]
fn registers_are_compared_with_inputs_under_our_firmware_only() {
    let (bytes, rtmrs) = boot(&RtmrInputs { initrd: None, ..inputs() }, |_| ());
    let (inputs, event_log) = (inputs(), EventLog::parse(&bytes).unwrap());
    for (rom, findings, notes) in [(rom_of(0x1_0000, &CLOISTER_ROWS), 2, 0), (rom_with(ROWS), 0, 1)] {
        let tdvf = Tdvf::parse(&rom).unwrap();
        let plan = LaunchPlan::new(&tdvf).unwrap();
        let order = PageOrder::PageByPage;
        let answer = explain(&Question {
            measurement: Some(Measurement { mrtd: plan.mrtd(order), rtmrs: Some(rtmrs) }),
            event_log: Some(&event_log),
            launch: Some(Launch { tdvf: &tdvf, plan: &plan, order }),
            inputs: Some(&inputs),
            ..Question::default()
        });
        assert_eq!((answer.findings.len(), answer.notes.len()), (findings, notes), "{answer:?}");
        assert_eq!(inputs.rtmrs_under(&tdvf)[2].is_some(), notes == 0);
    }
}

#[test]
fn a_transcript_of_another_format_is_not_read() {
    let good = serde_json::to_value(transcript(&rom_with(ROWS), PageOrder::PageByPage)).unwrap();
    let read = |value: serde_json::Value| serde_json::from_value::<LaunchTranscript>(value).is_ok();
    assert!(read(good.clone()));
    for (path, value) in [
        ("/version", serde_json::json!(2)),
        ("/version", serde_json::json!(0)),
        ("/tee", serde_json::json!("snp")),
        ("/tee", serde_json::json!("TDX")),
    ] {
        let mut other = good.clone();
        *other.pointer_mut(path).unwrap() = value;
        assert!(!read(other), "{path}");
    }
    for path in ["", "/ranges/0"] {
        let mut other = good.clone();
        other.pointer_mut(path).unwrap()["more"] = 1.into();
        assert!(!read(other), "{path}");
    }
}

#[test]
fn inputs_that_were_meant_are_found_without_a_log() {
    let (_, rtmrs) = boot(&RtmrInputs { initrd: None, ..inputs() }, |_| ());
    let answer = explain_boot(None, rtmrs);
    assert_eq!(answer.would_match, ["the inputs with no initrd, as far as RTMR2"]);
    assert_eq!(answer.findings.len(), 1);
}
