//! What differs between the launch that was written down and the one that the inputs make.

use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;

use super::{Finding, RangeRef, Subject};
use crate::measure::PAGE_SIZE;
use crate::measure::snp::PageType;
use crate::measure::snp::transcript::{LaunchTranscript, TranscriptRange};

/// How many differing pages of one range are named.
const MAX_NAMED_PAGES: usize = 8;

/// Notes every input and range in which `actual` differs from `expected`.
pub(super) fn compare(actual: &LaunchTranscript, expected: &LaunchTranscript, findings: &mut Vec<Finding>) {
    inputs(actual, expected, findings);
    let mut matched = Vec::new();
    for (index, wanted) in expected.ranges.iter().enumerate() {
        let ordinal = ordinal(&expected.ranges, index);
        let same_place = |other: &TranscriptRange| other.gpa == wanted.gpa && class(other) == class(wanted);
        let found =
            (0..actual.ranges.len()).filter(|&at| actual.ranges.get(at).is_some_and(same_place)).nth(ordinal);
        match found.and_then(|at| Some((at, actual.ranges.get(at)?))) {
            None => findings.push(Finding::at(
                RangeRef::new(index, &wanted.gpa, wanted.len),
                Subject::Range,
                format!("{} is missing from the launch", name(wanted, ordinal)),
            )),
            Some((at, range)) => {
                matched.push(at);
                if let Some(message) = difference(range, wanted, &name(wanted, ordinal)) {
                    findings.push(Finding::at(
                        RangeRef::new(at, &range.gpa, range.len),
                        Subject::Range,
                        message,
                    ));
                }
            }
        }
    }
    for (at, range) in actual.ranges.iter().enumerate().filter(|(at, _)| !matched.contains(at)) {
        let name = name(range, ordinal(&actual.ranges, at));
        let message = format!("{name} was launched and is not expected");
        findings.push(Finding::at(RangeRef::new(at, &range.gpa, range.len), Subject::Range, message));
    }
    if !matched.is_sorted() {
        let message = "the ranges were launched in another order, which the digest depends on".into();
        findings.push(Finding::new(Subject::Range, message));
    }
}

fn inputs(actual: &LaunchTranscript, expected: &LaunchTranscript, findings: &mut Vec<Finding>) {
    let some = |value: &String| Some(value.clone());
    let count = |count: u32| Some(format!("{count}"));
    let rows = [
        ("the firmware (SHA-256)", some(&actual.inputs.firmware), some(&expected.inputs.firmware)),
        ("the kernel (SHA-256)", actual.inputs.kernel.clone(), expected.inputs.kernel.clone()),
        ("the initrd (SHA-256)", actual.inputs.initrd.clone(), expected.inputs.initrd.clone()),
        (
            "the command line (SHA-256, with its NUL)",
            actual.inputs.cmdline.clone(),
            expected.inputs.cmdline.clone(),
        ),
        ("the number of processors", count(actual.vcpus), count(expected.vcpus)),
        ("the processor signature", some(&actual.cpu_sig), some(&expected.cpu_sig)),
        ("SEV_FEATURES", some(&actual.sev_features), some(&expected.sev_features)),
        ("the VMM's reset state", some(&actual.vmm), some(&expected.vmm)),
    ];
    for (what, actual, expected) in rows {
        if actual != expected {
            let none = || String::from("none");
            let (actual, expected) = (actual.unwrap_or_else(none), expected.unwrap_or_else(none));
            let message = format!("{what} was {actual}, expected {expected}");
            findings.push(Finding::new(Subject::Input, message));
        }
    }
}

/// What makes two ranges candidates for being the same one.
fn class(range: &TranscriptRange) -> u8 {
    match range.page_type {
        PageType::Vmsa => 0,
        _ => 1,
    }
}

/// How many ranges of the same place come before it: VMSAs share one address.
fn ordinal(ranges: &[TranscriptRange], index: usize) -> usize {
    let Some(range) = ranges.get(index) else { return 0 };
    ranges.iter().take(index).filter(|other| other.gpa == range.gpa && class(other) == class(range)).count()
}

/// What a range is to an operator.
fn name(range: &TranscriptRange, ordinal: usize) -> String {
    let gpa = &range.gpa;
    match range.page_type {
        PageType::Vmsa => format!("the state of vCPU {ordinal} (its VMSA)"),
        PageType::Normal if gpa.starts_with("0xff") && gpa.len() == 10 => format!("the firmware at {gpa}"),
        PageType::Normal => format!("the table of kernel hashes at {gpa}"),
        PageType::Zero => format!("the zeroed memory at {gpa}"),
        PageType::Unmeasured => format!("the unmeasured memory at {gpa}"),
        PageType::Secrets => format!("the secrets page at {gpa}"),
        PageType::Cpuid => format!("the CPUID page at {gpa}"),
    }
}

fn difference(actual: &TranscriptRange, expected: &TranscriptRange, name: &str) -> Option<String> {
    if actual.page_type != expected.page_type {
        let (seen, wanted) = (actual.page_type, expected.page_type);
        return Some(format!("{name} was added as a page of type {seen:?}, expected {wanted:?}"));
    }
    if actual.len != expected.len {
        return Some(format!("{name} has {:#x} bytes, expected {:#x}", actual.len, expected.len));
    }
    // The launch digest is made of the pages' digests. That of all contents is only the transcript's word: it is compared where
    // there is nothing better (one page, whose digest it is, or no pages' digests at all).
    if actual.pages_sha384.is_empty() || expected.pages_sha384.is_empty() {
        return (actual.contents_sha384 != expected.contents_sha384)
            .then(|| format!("{name} has other contents"));
    }
    let pages = differing_pages(&actual.pages_sha384, &expected.pages_sha384);
    match pages.len() {
        0 if actual.contents_sha384 == expected.contents_sha384 => None,
        0 => Some(format!(
            "{name} has the pages that are expected, and another contents_sha384, which is wrong for them"
        )),
        1..=MAX_NAMED_PAGES => {
            Some(format!("{name} has other contents: the pages at offset {}", pages.join(", ")))
        }
        many => {
            let first = pages.first().map_or("", String::as_str);
            Some(format!("{name} has other contents: {many} pages, the first at offset {first}"))
        }
    }
}

/// Offsets of the pages that differ, or that only one of the lists has.
fn differing_pages(actual: &[String], expected: &[String]) -> Vec<String> {
    (0..actual.len().max(expected.len()))
        .filter(|&page| actual.get(page) != expected.get(page))
        .map(|page| format!("{:#x}", page.saturating_mul(PAGE_SIZE)))
        .collect()
}
