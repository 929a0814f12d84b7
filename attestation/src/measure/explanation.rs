//! The answer to "why is this measurement not the expected one?", for either TEE.
//!
//! Nothing here decides about trust: a transcript or an event log is the host's or the guest's word, and only what
//! the processor measured is evidence.

use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;

use serde::Serialize;

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
    /// The event log does not lead to the registers.
    EventLog,
    /// A register that the guest extends is not the expected one.
    Register,
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

impl RangeRef {
    pub(crate) fn new(index: usize, gpa: &str, len: u64) -> Self {
        Self { index, gpa: String::from(gpa), len }
    }
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
    pub(crate) fn new(subject: Subject, message: String) -> Self {
        Self { subject, range: None, message }
    }

    pub(crate) fn at(range: RangeRef, subject: Subject, message: String) -> Self {
        Self { subject, range: Some(range), message }
    }
}

/// The digests that were compared, where they are known.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Digests {
    /// What the inputs should be measured as.
    pub expected: Option<String>,
    /// What the transcript claims.
    pub transcript: Option<String>,
    /// What the processor measured.
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
    /// What was not compared or checked although it was given, and why.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub notes: Vec<String>,
    /// RTMR0 to RTMR3 as the event log leads to them, where there is one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub replay: Option<[String; 4]>,
    /// The digests that were compared.
    pub digests: Digests,
}

impl Explanation {
    /// The answer that follows from the findings. `evidence` is what has the measurement: the report or the quote.
    /// `consistent` is whether the transcript, if there is one, agrees with itself.
    pub(crate) fn new(
        evidence: &str,
        digests: Digests,
        consistent: bool,
        findings: Vec<Finding>,
        would_match: Vec<String>,
    ) -> Self {
        let agree = findings.is_empty() && digests.agree();
        let summary = match () {
            () if agree => String::from("everything that was given agrees"),
            () if !consistent => {
                String::from("the transcript contradicts itself: it was changed, or is not of one launch")
            }
            () if digests.agree() => String::from(later(&findings)),
            () => differing(evidence, &digests, !would_match.is_empty()),
        };
        let (notes, replay) = (Vec::new(), None);
        Self { version: 1, agree, summary, findings, would_match, notes, replay, digests }
    }
}

/// What is wrong although the launch was measured as it should be.
fn later(findings: &[Finding]) -> &'static str {
    let about = |subject| findings.iter().any(|finding| finding.subject == subject);
    if about(Subject::EventLog) {
        "the event log is not of this guest, or was changed"
    } else if about(Subject::Register) {
        "the guest measured something else than was expected after its launch"
    } else {
        "the digests agree, and what the transcript says beside them does not"
    }
}

/// Which of the three stands alone.
fn differing(evidence: &str, digests: &Digests, found: bool) -> String {
    let Digests { expected, transcript, measurement } = digests;
    let measures = if found { "a variation of it" } else { "something else" };
    match (expected, transcript, measurement) {
        (Some(e), Some(t), Some(m)) if e == t && t != m => {
            format!("the transcript says what was expected, and the {evidence} measures {measures}")
        }
        (Some(e), Some(t), Some(m)) if e == m && t != m => {
            format!("the {evidence} is of what was expected; the transcript is of another launch")
        }
        (Some(e), Some(t), Some(m)) if t == m && e != m => {
            "the guest was launched as the transcript says, which is not what was expected".into()
        }
        (Some(_), Some(_), Some(_)) => {
            format!("inputs, transcript and {evidence} are of three different launches")
        }
        (Some(_), Some(_), None) => "the transcript is not of a launch of these inputs".into(),
        (_, _, _) if found => format!("the {evidence} measures a variation of the inputs"),
        _ => format!("the {evidence} measures something else"),
    }
}
