//! What differs between the launch that was written down and the one that the firmware asks for.

use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;

use super::Launch;
use crate::measure::Contents;
use crate::measure::explanation::{Finding, RangeRef, Subject};
use crate::measure::tdx::transcript::{LaunchTranscript, TranscriptRange};
use crate::measure::tdx::{LaunchPlan, Mrtd, PageOrder, SectionKind};

fn at(index: usize, range: &TranscriptRange) -> RangeRef {
    RangeRef::new(index, &range.gpa, range.len)
}

/// Whether two ranges are measured the same.
fn same(one: &TranscriptRange, other: &TranscriptRange) -> bool {
    (&one.gpa, one.len, &one.sha384) == (&other.gpa, other.len, &other.sha384)
}

/// Notes where the transcript contradicts itself. MRTD is one hash over the very bytes of the launch: what it is after a range
/// can be recomputed only as far as the launch is the expected one.
pub(super) fn check(
    transcript: &LaunchTranscript,
    expected: Option<&LaunchTranscript>,
    findings: &mut Vec<Finding>,
) {
    let last = transcript.ranges.last();
    if let Some(last) = last.filter(|last| last.mrtd != transcript.mrtd) {
        let message =
            format!("its last range leads to {}, and it claims the MRTD {}", last.mrtd, transcript.mrtd);
        findings.push(Finding::new(Subject::Transcript, message));
    }
    let Some(expected) = expected.filter(|expected| expected.page_order == transcript.page_order) else {
        return;
    };
    let pairs = transcript.ranges.iter().zip(&expected.ranges).take_while(|(own, wanted)| same(own, wanted));
    for (index, (own, wanted)) in pairs.enumerate() {
        if own.mrtd != wanted.mrtd {
            let message = format!(
                "MRTD after it should be {}, and the transcript says {}: the transcript was changed",
                wanted.mrtd, own.mrtd
            );
            return findings.push(Finding::at(at(index, own), Subject::Transcript, message));
        }
    }
}

/// Notes every input and range in which `actual` differs from `expected`.
pub(super) fn compare(actual: &LaunchTranscript, expected: &LaunchTranscript, findings: &mut Vec<Finding>) {
    if actual.firmware != expected.firmware {
        let (seen, wanted) = (&actual.firmware, &expected.firmware);
        let message = format!("the firmware (SHA-256) was {seen}, expected {wanted}");
        findings.push(Finding::new(Subject::Input, message));
    }
    if actual.page_order != expected.page_order {
        let (seen, wanted) = (order(actual.page_order), order(expected.page_order));
        let message = format!("pages were added and measured {seen}, expected {wanted}");
        findings.push(Finding::new(Subject::Input, message));
    }
    let mut matched = Vec::new();
    for (index, wanted) in expected.ranges.iter().enumerate() {
        let found = actual.ranges.iter().enumerate().find(|(_, range)| range.gpa == wanted.gpa);
        let Some((place, range)) = found else {
            let message = format!("{} is missing from the launch", name(wanted));
            findings.push(Finding::at(at(index, wanted), Subject::Range, message));
            continue;
        };
        matched.push(place);
        if let Some(message) = difference(range, wanted) {
            findings.push(Finding::at(at(place, range), Subject::Range, message));
        }
    }
    for (place, range) in actual.ranges.iter().enumerate().filter(|(place, _)| !matched.contains(place)) {
        let message = format!("{} was launched and is not expected", name(range));
        findings.push(Finding::at(at(place, range), Subject::Range, message));
    }
    if !matched.is_sorted() {
        let message = String::from("the ranges were launched in another order, which MRTD depends on");
        findings.push(Finding::new(Subject::Range, message));
    }
}

/// An order by its name.
fn order(order: PageOrder) -> &'static str {
    PageOrder::ALL.iter().find(|(_, known)| *known == order).map_or("", |(name, _)| name)
}

/// What a range is to an operator.
fn name(range: &TranscriptRange) -> String {
    let what = match range.kind {
        SectionKind::Bfv => "the firmware's code",
        SectionKind::Cfv => "the firmware's variables",
        SectionKind::TdHob => "the hand-off block",
        SectionKind::TempMem => "the temporary memory",
        SectionKind::PermMem => "the permanent memory",
    };
    format!("{what} at {}", range.gpa)
}

fn difference(actual: &TranscriptRange, expected: &TranscriptRange) -> Option<String> {
    let name = name(expected);
    if actual.len != expected.len {
        return Some(format!("{name} has {:#x} bytes, expected {:#x}", actual.len, expected.len));
    }
    match (&actual.sha384, &expected.sha384) {
        (Some(seen), Some(wanted)) if seen != wanted => {
            Some(format!("{name} has other contents: SHA-384 {seen}, expected {wanted}"))
        }
        (Some(_), None) => Some(format!("{name} was measured, which the firmware does not ask for")),
        (None, Some(_)) => Some(format!("{name} was added without being measured")),
        _ => None,
    }
}

/// Variations of the launch whose MRTD is `mrtd`.
pub(super) fn search(launch: &Launch<'_>, mrtd: Mrtd) -> Vec<String> {
    let variations = variations(launch.plan);
    let mut found = Vec::new();
    for (name, order) in PageOrder::ALL {
        let other_order = order != launch.order;
        let in_order = if other_order { format!(", {name}") } else { String::new() };
        if other_order && launch.plan.mrtd(order) == mrtd {
            found.push(format!("the launch{in_order}"));
        }
        let fits = variations.iter().filter(|(_, plan)| plan.mrtd(order) == mrtd);
        found.extend(fits.map(|(what, _)| format!("the launch {what}{in_order}")));
    }
    found
}

/// A range left out, measured although the firmware does not ask for it or the reverse, or a launch that ended early.
fn variations<'a>(plan: &LaunchPlan<'a>) -> Vec<(String, LaunchPlan<'a>)> {
    let mut variations = Vec::new();
    let count = plan.commands().len();
    for (index, command) in plan.commands().iter().enumerate() {
        let (gpa, measured) = (command.gpa, !command.measured);
        let without = plan.varied(|commands| drop(commands.remove(index)));
        variations.push((format!("without the range at {gpa}"), without));
        // What the VMM fills in, nobody else knows.
        if command.contents != Contents::Executor {
            let flipped = plan.varied(|commands| {
                commands.iter_mut().skip(index).take(1).for_each(|command| command.measured = measured);
            });
            let how = if measured { "measured" } else { "not measured" };
            variations.push((format!("with the range at {gpa} {how}"), flipped));
        }
        if index > 0 && index.saturating_add(1) < count {
            let shorter = plan.varied(|commands| commands.truncate(index));
            variations.push((format!("as far as the range at {gpa}"), shorter));
        }
    }
    variations
}
