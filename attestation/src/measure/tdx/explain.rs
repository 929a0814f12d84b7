//! Why the measurements of a TD are not the expected ones.
//!
//! MRTD is of the launch: the inputs (firmware, page order), what the VMM says that it launched (the transcript) and what
//! the TDX module measured (the quote) are compared as for SEV-SNP. The RTMRs are of what the guest's firmware measured
//! afterwards: the events that it should have measured are compared with those of its event log, and the log with the
//! quote, since a log that does not lead to the quote's RTMRs is nobody's word.

mod launch;
mod registers;

use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;

use super::plan::LaunchPlan;
use super::reference::RtmrInputs;
use super::tdvf::Tdvf;
use super::transcript::LaunchTranscript;
use super::{Mrtd, PageOrder};
use crate::measure::explanation::{Digests, Explanation, Finding, Subject};
use crate::measure::hex_string;
use crate::tdx::EventLog;

/// A launch that should have happened.
#[derive(Clone, Copy, Debug)]
pub struct Launch<'a> {
    /// The firmware.
    pub tdvf: &'a Tdvf<'a>,
    /// Its plan.
    pub plan: &'a LaunchPlan<'a>,
    /// In which order its pages are added and measured.
    pub order: PageOrder,
}

/// What a quote says was measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Measurement {
    /// MRTD.
    pub mrtd: Mrtd,
    /// RTMR0 to RTMR3; `None` where only MRTD is known.
    pub rtmrs: Option<[[u8; 48]; 4]>,
}

/// Another kernel, initrd or command line that may have been meant.
#[derive(Clone, Debug)]
pub struct Alternative<'a> {
    /// Such as "no initrd".
    pub description: &'static str,
    /// What the guest would have been started from.
    pub inputs: RtmrInputs<'a>,
}

/// What there is to compare.
#[derive(Clone, Debug, Default)]
pub struct Question<'a> {
    /// What the VMM says that it launched.
    pub transcript: Option<&'a LaunchTranscript>,
    /// What the quote says.
    pub measurement: Option<Measurement>,
    /// The guest's event log.
    pub event_log: Option<&'a EventLog<'a>>,
    /// What should have been launched.
    pub launch: Option<Launch<'a>>,
    /// What the firmware should have measured then. Left aside where that is known not to be ours.
    pub inputs: Option<&'a RtmrInputs<'a>>,
    /// What may have been given to it instead.
    pub alternatives: &'a [Alternative<'a>],
}

/// Compares whatever there is.
pub fn explain(question: &Question<'_>) -> Explanation {
    let expected =
        question.launch.map(|launch| LaunchTranscript::new(launch.tdvf, launch.plan, launch.order));
    let digests = Digests {
        expected: expected.as_ref().map(|transcript| transcript.mrtd.clone()),
        transcript: question.transcript.map(|transcript| transcript.mrtd.clone()),
        measurement: question.measurement.map(|measured| hex_string(&measured.mrtd.0)),
    };
    let mut findings = Vec::new();
    let mut consistent = true;
    if let Some(transcript) = question.transcript {
        launch::check(transcript, expected.as_ref(), &mut findings);
        consistent = findings.is_empty();
        if let Some(measured) = digests.measurement.as_ref().filter(|m| **m != transcript.mrtd) {
            findings.push(Finding::new(Subject::Measurement, not_led_to(transcript, measured)));
        }
        if let Some(expected) = &expected {
            launch::compare(transcript, expected, &mut findings);
        }
    }
    if let (None, Some(measured), Some(expected)) = (question.transcript, &digests.measurement, &expected)
        && *measured != expected.mrtd
    {
        let message = format!("MRTD of the quote is {measured}, expected {}", expected.mrtd);
        findings.push(Finding::new(Subject::Measurement, message));
    }
    let mut would_match = Vec::new();
    if let (Some(launch), Some(measured)) = (&question.launch, &question.measurement)
        && digests.expected != digests.measurement
    {
        would_match = launch::search(launch, measured.mrtd);
    }
    let foreign = question.launch.is_some_and(|launch| !launch.tdvf.is_cloister());
    let inputs = question.inputs.filter(|_| !foreign);
    registers::compare(question, inputs, &mut findings, &mut would_match);
    let mut explanation = Explanation::new("quote", digests, consistent, findings, would_match);
    let registers = question.event_log.is_some() || question.measurement.is_some_and(|m| m.rtmrs.is_some());
    if foreign && registers && question.inputs.is_some() {
        explanation.notes.push(FOREIGN.into());
    }
    explanation.replay = question.event_log.map(|log| log.replay().map(|rtmr| hex_string(&rtmr)));
    explanation
}

const FOREIGN: &str = "the firmware is not Cloister's: what it should have measured into the RTMRs is not known here, and the \
                       RTMRs were not compared with the inputs";

fn not_led_to(transcript: &LaunchTranscript, measured: &str) -> String {
    match transcript.ranges.iter().position(|range| range.mrtd == measured) {
        Some(index) => format!(
            "the quote has the MRTD after range {index} of the transcript: the launch ended there, or the host wrote down \
             more than it launched"
        ),
        None => format!(
            "the transcript leads to {}, the quote has {measured}: the quote is of another launch, or the host launched \
             something else than it wrote down",
            transcript.mrtd
        ),
    }
}

#[cfg(test)]
mod tests;
