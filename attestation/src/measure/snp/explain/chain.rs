//! Whether a transcript's digests follow from its ranges.

use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;

use super::{Finding, RangeRef, Subject};
use crate::measure::snp::digest::DigestChain;
use crate::measure::snp::transcript::{LaunchTranscript, TranscriptRange};
use crate::measure::snp::{LaunchDigest, PageType};
use crate::measure::{Gpa, PAGE_SIZE, read_hex};

/// More pages than any launch measures: a transcript is a stranger's.
const MAX_PAGES: u64 = 1 << 16;

/// Recomputes the chain, range by range, from each claimed digest to the next. Ranges that cannot be are noted.
pub(super) fn check(
    transcript: &LaunchTranscript,
    expected: Option<&LaunchTranscript>,
    findings: &mut Vec<Finding>,
    notes: &mut Vec<String>,
) {
    let mut before = LaunchDigest([0; 48]);
    for (index, range) in transcript.ranges.iter().enumerate() {
        let place = RangeRef::new(index, &range.gpa, range.len);
        let mut note = |message| findings.push(Finding::at(place.clone(), Subject::Transcript, message));
        let Some(claimed) = digest(&range.digest) else {
            return note(format!("its digest {:?} is none", range.digest));
        };
        match after(before, range, expected) {
            Ok(Some(digest)) if digest.0 != claimed => note(format!(
                "the digest after it should be {digest}, and the transcript says {}: a page of it or its place was \
                 changed in the transcript",
                range.digest
            )),
            Ok(Some(_)) => {}
            Ok(None) => notes.push(format!(
                "range {index} at {}: the transcript has no digests of its pages, so nothing says that the digest after it \
                 follows from its contents",
                range.gpa
            )),
            Err(what) => note(what),
        }
        before = LaunchDigest(claimed);
    }
    if before.to_string() != transcript.launch_digest {
        let message = format!(
            "its last range leads to {before}, and it claims the launch digest {}",
            transcript.launch_digest
        );
        findings.push(Finding::new(Subject::Transcript, message));
    }
    let pages = transcript.ranges.iter().fold(0u64, |sum, range| sum.saturating_add(pages_of(range)));
    if pages != transcript.pages {
        let message = format!("it claims {} pages, and its ranges have {pages}", transcript.pages);
        findings.push(Finding::new(Subject::Transcript, message));
    }
}

fn pages_of(range: &TranscriptRange) -> u64 {
    range.len.div_ceil(PAGE_SIZE as u64)
}

/// The digest after `range`, or `None` where the transcript does not say enough.
fn after(
    before: LaunchDigest,
    range: &TranscriptRange,
    expected: Option<&LaunchTranscript>,
) -> Result<Option<LaunchDigest>, String> {
    let gpa = range.gpa.strip_prefix("0x").and_then(|digits| u64::from_str_radix(digits, 16).ok());
    let gpa = gpa.ok_or_else(|| format!("its address {:?} is none", range.gpa))?;
    if range.len == 0 || !range.len.is_multiple_of(PAGE_SIZE as u64) || pages_of(range) > MAX_PAGES {
        return Err(format!("its length {:#x} is none of whole pages", range.len));
    }
    let mut chain = DigestChain::from(before);
    if range.contents_sha384.is_none() {
        if matches!(range.page_type, PageType::Normal | PageType::Vmsa) {
            return Err(String::from("its contents are measured, and their digest is missing"));
        }
        chain.pages_without_contents(range.page_type, Gpa(gpa), range.len);
        return Ok(Some(chain.value()));
    }
    let Some(pages) = page_digests(range, expected) else { return Ok(None) };
    if pages.len() as u64 != pages_of(range) {
        return Err(format!("it has {} digests for {} pages", pages.len(), pages_of(range)));
    }
    for (text, at) in pages.iter().zip((gpa..).step_by(PAGE_SIZE)) {
        let contents = digest(text).ok_or_else(|| format!("its page digest {text:?} is none"))?;
        chain.page_with_digest(range.page_type, Gpa(at), contents);
    }
    Ok(Some(chain.value()))
}

/// The digest of each page: the transcript's own, or those of the inputs where the range is the same.
fn page_digests<'a>(
    range: &'a TranscriptRange,
    expected: Option<&'a LaunchTranscript>,
) -> Option<Vec<&'a String>> {
    if range.len == PAGE_SIZE as u64 {
        return range.contents_sha384.as_ref().map(|digest| Vec::from([digest]));
    }
    if !range.pages_sha384.is_empty() {
        return Some(range.pages_sha384.iter().collect());
    }
    let same = |other: &&TranscriptRange| {
        other.len == range.len
            && other.contents_sha384 == range.contents_sha384
            && !other.pages_sha384.is_empty()
    };
    let same = expected?.ranges.iter().find(same)?;
    Some(same.pages_sha384.iter().collect())
}

/// 48 bytes of hexadecimal digits.
pub(super) fn digest(text: &str) -> Option<[u8; 48]> {
    read_hex(text)?.try_into().ok()
}
