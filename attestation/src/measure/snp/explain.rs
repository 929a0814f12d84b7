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

use serde::Serialize;

use super::plan::LaunchInputs;
use super::transcript::LaunchTranscript;
use crate::measure::KernelHashes;

/// What a finding is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Subject {
    /// The transcript contradicts itself.
    Transcript,
    /// The transcript does not lead to the measurement.
    Measurement,
    /// An input is not the one that was launched.
    Input,
    /// A range of pages is not the one that was launched.
    Range,
}

/// A range of guest memory that a finding is about.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct RangeRef {
    /// Its place in the transcript.
    pub index: usize,
    /// First byte, `0x…`.
    pub gpa: String,
    /// Bytes.
    pub len: u64,
}

/// Something that does not fit.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// What it is about.
    pub subject: Subject,
    /// Where, if it is somewhere.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub range: Option<RangeRef>,
    /// What was seen and what was expected.
    pub message: String,
}

impl Finding {
    fn new(subject: Subject, message: String) -> Self {
        Self { subject, range: None, message }
    }

    fn at(index: usize, range: &super::TranscriptRange, subject: Subject, message: String) -> Self {
        let range = RangeRef { index, gpa: range.gpa.clone(), len: range.len };
        Self { subject, range: Some(range), message }
    }
}

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

/// The answer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Explanation {
    /// Of this format: 1.
    pub version: u32,
    /// Whether everything that was compared agrees.
    pub agree: bool,
    /// In one sentence.
    pub summary: String,
    /// What does not fit, in the order of the launch.
    pub findings: Vec<Finding>,
    /// Variations of the inputs that would be measured exactly so.
    pub would_match: Vec<String>,
    /// The digests that were compared.
    pub digests: Digests,
}

/// The digests that were compared, where they are known.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Digests {
    /// What the inputs should be measured as.
    pub expected: Option<String>,
    /// What the transcript claims.
    pub transcript: Option<String>,
    /// What the secure processor measured.
    pub measurement: Option<String>,
}

impl Digests {
    /// Whether those that are known are the same.
    fn agree(&self) -> bool {
        let mut known = [&self.expected, &self.transcript, &self.measurement].into_iter().flatten();
        let first = known.next();
        known.all(|digest| Some(digest) == first)
    }
}

/// Compares whatever there is. `expected` is the transcript of the question's inputs.
pub fn explain(question: &Question<'_>, expected: Option<&LaunchTranscript>) -> Explanation {
    let digests = Digests {
        expected: expected.map(|transcript| transcript.launch_digest.clone()),
        transcript: question.transcript.map(|transcript| transcript.launch_digest.clone()),
        measurement: question.measurement.map(|digest| crate::measure::hex_string(&digest)),
    };
    let mut findings = Vec::new();
    let mut consistent = true;
    if let Some(transcript) = question.transcript {
        chain::check(transcript, expected, &mut findings);
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
    let agree = findings.is_empty() && digests.agree();
    let summary = String::from(summary(&digests, agree, consistent, !would_match.is_empty()));
    Explanation { version: 1, agree, summary, findings, would_match, digests }
}

/// Which of the three stands alone.
fn summary(digests: &Digests, agree: bool, consistent: bool, found: bool) -> &'static str {
    let Digests { expected, transcript, measurement } = digests;
    if agree {
        return "everything that was given agrees";
    }
    if !consistent {
        return "the transcript contradicts itself: it was changed, or is not of one launch";
    }
    match (expected, transcript, measurement) {
        (Some(e), Some(t), Some(m)) if e == t && t != m => {
            if found {
                "the transcript says what was expected, and the report measures a variation of it"
            } else {
                "the transcript says what was expected, and the report measures something else"
            }
        }
        (Some(e), Some(t), Some(m)) if e == m && t != m => {
            "the report is of what was expected; the transcript is of another launch"
        }
        (Some(e), Some(t), Some(m)) if t == m && e != m => {
            "the guest was launched as the transcript says, which is not what was expected"
        }
        (Some(_), Some(_), Some(_)) => "inputs, transcript and report are of three different launches",
        (Some(_), Some(_), None) => "the transcript is not of a launch of these inputs",
        (_, _, _) if found => "the report measures a variation of the inputs",
        _ => "the report measures something else",
    }
}

#[cfg(test)]
mod tests;
