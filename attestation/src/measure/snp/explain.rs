//! Why a measurement is not the expected one.
//!
//! Three things can differ from each other: what the inputs (ROM, kernel, processors…) should be measured as, what the
//! VMM says that it launched (the transcript), and what the secure processor measured (the report). [`explain`] compares
//! them pairwise, and where the measurement is neither of the other two it tries the variations of the inputs that go wrong in
//! practice. Nothing here decides about trust: a transcript is the host's word, and only the measurement is evidence.

mod chain;
mod diff;
mod search;

use alloc::string::String;
use alloc::vec::Vec;

use super::plan::LaunchInputs;
use super::transcript::LaunchTranscript;
use crate::measure::KernelHashes;
pub use crate::measure::explanation::{Digests, Explanation, Finding, RangeRef, Subject};

/// Another kernel, initrd or command line that may have been meant.
#[derive(Clone, Debug)]
pub struct Alternative {
    /// Such as "without the initrd".
    pub description: String,
    /// Its hashes; `None` for a launch without a kernel.
    pub kernel: Option<KernelHashes>,
}

/// What there is to compare.
#[derive(Clone, Debug, Default)]
pub struct Question<'a> {
    /// What the VMM says that it launched.
    pub transcript: Option<&'a LaunchTranscript>,
    /// MEASUREMENT of a report.
    pub measurement: Option<[u8; 48]>,
    /// What should have been launched.
    pub inputs: Option<&'a LaunchInputs<'a>>,
    /// What may have been launched instead.
    pub alternatives: &'a [Alternative],
}

/// Compares whatever there is. `expected` is the transcript of the question's inputs.
pub fn explain(question: &Question<'_>, expected: Option<&LaunchTranscript>) -> Explanation {
    let digests = Digests {
        expected: expected.map(|transcript| transcript.launch_digest.clone()),
        transcript: question.transcript.map(|transcript| transcript.launch_digest.clone()),
        measurement: question.measurement.map(|digest| crate::measure::hex_string(&digest)),
    };
    let mut findings = Vec::new();
    let mut notes = Vec::new();
    let mut consistent = true;
    if let Some(transcript) = question.transcript {
        chain::check(transcript, expected, &mut findings, &mut notes);
        consistent = findings.is_empty();
        if let Some(measured) = digests.measurement.as_ref().filter(|m| **m != transcript.launch_digest) {
            let message = alloc::format!(
                "the transcript leads to {}, the report measures {measured}: the report is of another launch, or the \
                 host launched something else than it wrote down",
                transcript.launch_digest
            );
            findings.push(Finding::new(Subject::Measurement, message));
        }
        if let Some(expected) = expected {
            diff::compare(transcript, expected, &mut findings);
        }
    }
    let would_match = match (question.inputs, question.measurement) {
        (Some(inputs), Some(digest)) if digests.expected != digests.measurement => {
            search::search(inputs, question.alternatives, &digest)
        }
        _ => Vec::new(),
    };
    Explanation { notes, ..Explanation::new("report", digests, consistent, findings, would_match) }
}

#[cfg(test)]
mod tests;
