use super::*;
use crate::measure::PAGE_SIZE;
use crate::measure::snp::rom::tests::rom_with;
use crate::measure::snp::{LaunchPlan, Rom, VcpuModel, VmmFlavour};

const SECTIONS: &[[u32; 3]] =
    &[[0x10000, 0x1000, 0x10], [0xf000, 0x1000, 3], [0x2000, 0x1000, 2], [0x3000, 0x5000, 1]];

/// A ROM of three pages.
fn rom() -> Vec<u8> {
    let mut rom = vec![0x5a; 2 * PAGE_SIZE];
    rom.extend(rom_with(SECTIONS));
    rom
}

fn with<R>(
    rom: &[u8],
    change: impl Fn(&mut LaunchInputs<'_>),
    then: impl FnOnce(&LaunchInputs<'_>) -> R,
) -> R {
    let rom = Rom::parse(rom).unwrap();
    let mut inputs = LaunchInputs {
        rom: &rom,
        kernel: Some(KernelHashes::of(b"kernel", Some(b"initrd"), "quiet")),
        vcpus: 2,
        cpu: VcpuModel(0xa10f11),
        sev_features: 1,
        flavour: VmmFlavour::Cloister,
    };
    change(&mut inputs);
    then(&inputs)
}

fn transcript(rom: &[u8], change: impl Fn(&mut LaunchInputs<'_>)) -> LaunchTranscript {
    with(rom, change, |inputs| LaunchTranscript::new(inputs, &LaunchPlan::new(inputs).unwrap(), None))
}

/// Compares the good inputs with what another launch wrote down and measured.
fn explain_against(actual: &LaunchTranscript, measurement: Option<&str>) -> Explanation {
    let rom = rom();
    let expected = transcript(&rom, |_| ());
    let alternative = |description: &str, cmdline| {
        let kernel = Some(KernelHashes::of(b"kernel", Some(b"initrd"), cmdline));
        Alternative { description: description.into(), kernel }
    };
    let alternatives = [
        alternative("no change at all", "quiet"),
        alternative("a newline after the command line", "quiet\n"),
    ];
    with(
        &rom,
        |_| (),
        |inputs| {
            let measurement = measurement.map(|text| chain::digest(text).unwrap());
            let question = Question {
                transcript: Some(actual),
                measurement,
                inputs: Some(inputs),
                alternatives: &alternatives,
            };
            explain(&question, Some(&expected))
        },
    )
}

fn check(change: impl Fn(&mut LaunchInputs<'_>), named: &[&str], variation: Option<&str>) {
    let actual = transcript(&rom(), change);
    let explanation = explain_against(&actual, Some(&actual.launch_digest));
    let text = serde_json::to_string_pretty(&explanation).unwrap();
    assert!(!explanation.agree, "{text}");
    assert!(explanation.summary.contains("which is not what was expected"), "{text}");
    let messages: Vec<_> = explanation.findings.iter().map(|finding| finding.message.as_str()).collect();
    assert_eq!(messages.len(), named.len(), "{text}");
    for (message, part) in messages.iter().zip(named) {
        assert!(message.contains(part), "{part:?} in {text}");
    }
    assert!(explanation.findings.iter().all(|finding| finding.subject != Subject::Transcript), "{text}");
    let found: Vec<_> = explanation.would_match.iter().map(String::as_str).collect();
    assert!(!text.contains("no change at all"), "{text}");
    assert!(variation.is_none_or(|variation| found.contains(&variation)), "{variation:?} in {text}");
}

#[test]
fn the_processors_that_there_are_are_tried() {
    for signature in [0xa00f10, 0xa00f11, 0xa10f12, 0xaa0f01, 0xaa0f02, 0xb00f21, 0xb10f10, 0x830f10] {
        check(
            |inputs| inputs.cpu = VcpuModel(signature),
            &["processor signature was", "vCPU 0", "vCPU 1"],
            Some(format!("the inputs with processor signature {signature:#x} instead of 0xa10f11").as_str()),
        );
    }
    // The other way: our own processor is found where another was expected.
    let (rom, ours) = (rom(), transcript(&rom(), |_| ()));
    let found = with(
        &rom,
        |inputs| inputs.cpu = VcpuModel(0xa00f11),
        |inputs| search::search(inputs, &[], &chain::digest(&ours.launch_digest).unwrap()),
    );
    assert_eq!(found, ["the inputs with processor signature 0xa10f11 instead of 0xa00f11"]);
}

#[test]
fn what_is_the_same_agrees() {
    let actual = transcript(&rom(), |_| ());
    let explanation = explain_against(&actual, Some(&actual.launch_digest));
    assert!(explanation.agree && explanation.findings.is_empty() && explanation.would_match.is_empty());
}

#[test]
fn each_differing_input_is_named_with_its_range() {
    check(
        |inputs| inputs.vcpus = 3,
        &["number of processors was 3, expected 2", "vCPU 2 (its VMSA) was launched and is not expected"],
        Some("the inputs with 3 vCPUs instead of 2"),
    );
    check(
        |inputs| inputs.vcpus = 1,
        &["number of processors was 1, expected 2", "vCPU 1 (its VMSA) is missing"],
        Some("the inputs with 1 vCPUs instead of 2"),
    );
    let both_vmsas = ["vCPU 0 (its VMSA) has other contents", "vCPU 1 (its VMSA) has other contents"];
    check(
        |inputs| inputs.sev_features = 0x21,
        &["SEV_FEATURES was 0x21, expected 0x1", both_vmsas[0], both_vmsas[1]],
        Some("the inputs with SEV_FEATURES 0x21 instead of 0x1"),
    );
    check(
        |inputs| inputs.cpu = VcpuModel(0xa00f11),
        &["processor signature was 0xa00f11", both_vmsas[0], both_vmsas[1]],
        Some("the inputs with processor signature 0xa00f11 instead of 0xa10f11"),
    );
    check(
        |inputs| inputs.kernel = Some(KernelHashes::of(b"kernel", Some(b"initrd"), "quiet\n")),
        &[
            "the command line (SHA-256, with its NUL) was",
            "table of kernel hashes at 0x10000 has other contents",
        ],
        Some("the inputs with a newline after the command line"),
    );
    check(
        |inputs| inputs.kernel = None,
        &["the kernel", "the initrd", "the command line", "as a page of type Zero, expected Normal"],
        None,
    );
    check(
        |inputs| inputs.flavour = VmmFlavour::Gce,
        &[
            "the VMM's reset state was gce",
            "as a page of type Unmeasured, expected Zero",
            both_vmsas[0],
            both_vmsas[1],
        ],
        Some("the inputs with launched by gce instead of cloister"),
    );
}

#[test]
fn a_differing_page_of_the_firmware_is_named_by_its_offset() {
    let mut other = rom();
    other[PAGE_SIZE + 7] ^= 1;
    let actual = transcript(&other, |_| ());
    let explanation = explain_against(&actual, Some(&actual.launch_digest));
    let last = explanation.findings.last().unwrap();
    assert_eq!(last.message, "the firmware at 0xffffd000 has other contents: the pages at offset 0x1000");
    assert_eq!(last.range.as_ref().map(|range| (range.index, range.len)), Some((0, 3 * 4096)));
}

#[test]
fn a_report_of_something_else_is_told_from_a_transcript_of_something_else() {
    let (good, other) = (transcript(&rom(), |_| ()), transcript(&rom(), |inputs| inputs.vcpus = 4));
    let explanation = explain_against(&good, Some(&other.launch_digest));
    assert!(explanation.summary.contains("a variation of it"), "{}", explanation.summary);
    assert_eq!(explanation.would_match, ["the inputs with 4 vCPUs instead of 2"]);
    let explanation = explain_against(&good, Some(&"00".repeat(48)));
    assert!(explanation.summary.contains("measures something else"), "{}", explanation.summary);
    assert!(explanation.would_match.is_empty());
    let explanation = explain_against(&other, Some(&good.launch_digest));
    assert!(explanation.summary.contains("the transcript is of another launch"), "{}", explanation.summary);
    assert!(explain_against(&other, None).summary.contains("not of a launch of these inputs"));
}

#[test]
fn a_transcript_that_contradicts_itself_is_named_where_it_does() {
    let good = transcript(&rom(), |_| ());
    type Damage = (&'static str, fn(&mut LaunchTranscript));
    let damages: &[Damage] = &[
        ("should be", |t| t.ranges[0].pages_sha384[1] = "00".repeat(48)),
        ("should be", |t| t.ranges[1].contents_sha384 = Some("00".repeat(48))),
        ("should be", |t| t.ranges[2].gpa = "0x1000".into()),
        ("should be", |t| t.ranges[4].len += 0x1000),
        ("is none", |t| t.ranges[0].digest = "zz".into()),
        ("its address", |t| t.ranges[0].gpa = "12".into()),
        ("none of whole pages", |t| t.ranges[0].len = 7),
        ("digests for", |t| t.ranges[0].len = 4096 * 2),
        ("their digest is missing", |t| t.ranges[0].contents_sha384 = None),
        ("claims the launch digest", |t| t.launch_digest = "00".repeat(48)),
        ("claims 0 pages", |t| t.pages = 0),
        ("claims the launch digest", |t| t.ranges.clear()),
    ];
    for (index, (part, damage)) in damages.iter().enumerate() {
        let mut damaged = good.clone();
        damage(&mut damaged);
        let explanation = explain(&Question { transcript: Some(&damaged), ..Question::default() }, None);
        let found =
            explanation.findings.iter().any(|f| f.subject == Subject::Transcript && f.message.contains(part));
        assert!(found && explanation.summary.contains("contradicts itself"), "{index}: {explanation:#?}");
    }
    let whole = explain(&Question { transcript: Some(&good), ..Question::default() }, None);
    assert!(whole.agree, "{whole:#?}");
}

#[test]
fn the_pages_of_a_range_are_compared_whatever_its_whole_is_said_to_be() {
    let good = transcript(&rom(), |_| ());
    let mut other_rom = rom();
    other_rom[PAGE_SIZE] ^= 1;
    let mut lying = transcript(&other_rom, |_| ());
    lying.inputs.firmware = good.inputs.firmware.clone();
    lying.ranges[0].contents_sha384 = good.ranges[0].contents_sha384.clone();
    let explanation = explain_against(&lying, Some(&lying.launch_digest));
    let messages: Vec<_> = explanation.findings.iter().map(|finding| finding.message.as_str()).collect();
    assert_eq!(messages.len(), 1, "{messages:?}");
    assert!(messages[0].ends_with("has other contents: the pages at offset 0x1000"), "{messages:?}");
    assert!(explanation.notes.is_empty());
    // And the other way: the whole is said to be another than these pages make.
    let mut lying = good.clone();
    lying.ranges[0].contents_sha384 = Some("00".repeat(48));
    let explanation = explain_against(&lying, None);
    assert!(explanation.findings[0].message.contains("wrong for them"), "{explanation:#?}");
}

#[test]
fn a_range_that_cannot_be_checked_is_named() {
    let mut old = transcript(&rom(), |_| ());
    old.ranges[0].pages_sha384.clear();
    let alone = explain(&Question { transcript: Some(&old), ..Question::default() }, None);
    assert!(alone.agree, "{alone:#?}");
    assert!(alone.notes.len() == 1 && alone.notes[0].starts_with("range 0 at 0x"), "{:?}", alone.notes);
    // With the inputs it can be, and with those of another launch not.
    assert!(explain_against(&old, None).notes.is_empty());
    let mut other_rom = rom();
    other_rom[PAGE_SIZE] ^= 1;
    let mut old = transcript(&other_rom, |_| ());
    old.ranges[0].pages_sha384.clear();
    assert_eq!(explain_against(&old, None).notes.len(), 1);
}

#[test]
fn older_transcripts_without_page_digests_are_checked_with_the_inputs_help() {
    let mut old = transcript(&rom(), |_| ());
    old.ranges[0].pages_sha384.clear();
    old.ranges[0].digest.replace_range(0..2, "00");
    let blind = explain(&Question { transcript: Some(&old), ..Question::default() }, None);
    let seeing = explain_against(&old, None);
    let at = |explanation: &Explanation| {
        explanation.findings.first().and_then(|f| f.range.clone()).map(|r| r.index)
    };
    assert_eq!((at(&blind), at(&seeing)), (Some(1), Some(0)));
}
