//! What the guest measured after its launch: RTMRs, the event log, and what was expected of both.

use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;

use super::Question;
use crate::measure::explanation::{Finding, Subject};
use crate::measure::hex_string;
use crate::measure::tdx::{PredictedEvent, RtmrInputs};
use crate::tdx::Event;

/// Notes which register differs, and by which event where there is a log.
pub(super) fn compare(
    question: &Question<'_>,
    inputs: Option<&RtmrInputs<'_>>,
    findings: &mut Vec<Finding>,
    would_match: &mut Vec<String>,
) {
    for inconsistency in question.event_log.iter().flat_map(|log| log.inconsistencies()) {
        let message = format!("the event log contradicts itself: {inconsistency}");
        findings.push(Finding::new(Subject::EventLog, message));
    }
    let measured = question.measurement.and_then(|measured| measured.rtmrs);
    let replayed = question.event_log.map(|log| log.replay());
    let expected = inputs.map(|inputs| (inputs.rtmrs(), inputs.events()));
    let mut differing = Vec::new();
    for index in 0..4 {
        let own = measured.and_then(|rtmrs| rtmrs.get(index).copied());
        let logged = replayed.and_then(|rtmrs| rtmrs.get(index).copied());
        if let (Some(own), Some(logged)) = (own, logged)
            && own != logged
        {
            let message = format!(
                "RTMR{index} of the quote is {}, and the log leads to {}: its events of RTMR{index} are not what \
                 happened",
                hex_string(&own),
                hex_string(&logged)
            );
            findings.push(Finding::new(Subject::EventLog, message));
        }
        let Some((rtmrs, events)) = &expected else { continue };
        let wanted = rtmrs.get(index).copied().flatten();
        if let (Some(own), Some(wanted)) = (own, wanted)
            && own != wanted
        {
            differing.push(index);
            let (own, wanted) = (hex_string(&own), hex_string(&wanted));
            let message = format!("RTMR{index} of the quote is {own}, expected {wanted}");
            findings.push(Finding::new(Subject::Register, message));
        }
        if let Some(log) = question.event_log {
            let of_register = |event: &&PredictedEvent| usize::from(event.event.rtmr) == index;
            let wanted: Vec<_> = events.iter().filter(of_register).copied().collect();
            let logged = log.events().iter().filter(|event| event.rtmr.is_some_and(|r| r.index() == index));
            let logged: Vec<_> = logged.copied().collect();
            align(index, &logged, &wanted, findings);
        }
    }
    for (index, own) in differing.iter().filter_map(|&index| Some((index, *measured?.get(index)?))) {
        let fits = question
            .alternatives
            .iter()
            .filter(|other| other.inputs.rtmrs().get(index).copied().flatten() == Some(own));
        would_match.extend(
            fits.map(|other| format!("the inputs with {}, as far as RTMR{index}", other.description)),
        );
    }
}

/// Whether the log's event is the expected one, as far as the inputs decide.
fn is(logged: &Event<'_>, wanted: &PredictedEvent) -> bool {
    logged.kind == wanted.event.event_type && wanted.digest.is_none_or(|digest| digest == *logged.digest)
}

/// Compares the events of one register. An event that the other side has later marks what is between as missing or as
/// unexpected, so that one of them does not make all that follow differ.
fn align(register: usize, logged: &[Event<'_>], wanted: &[PredictedEvent], findings: &mut Vec<Finding>) {
    let (mut logged, mut wanted, mut number) = (logged, wanted, 1usize);
    let mut note = |message: String| findings.push(Finding::new(Subject::Register, message));
    loop {
        let place = format!("event {number} of RTMR{register}");
        match (logged.split_first(), wanted.split_first()) {
            (None, None) => return,
            (Some((own, after)), Some((want, rest))) if is(own, want) => (logged, wanted) = (after, rest),
            (Some((own, after)), Some((want, _))) if after.iter().any(|later| is(later, want)) => {
                note(format!("{place}, {}, is not expected", describe(own)));
                logged = after;
            }
            (Some((own, _)), Some((want, rest))) if rest.iter().any(|later| is(own, later)) => {
                note(format!("{place} should be the {} and is missing", want.event.name));
                wanted = rest;
                continue;
            }
            (Some((own, after)), Some((want, rest))) => {
                note(format!(
                    "{place} should be the {}{}, and is {}",
                    want.event.name,
                    digest(want),
                    describe(own)
                ));
                (logged, wanted) = (after, rest);
            }
            (Some((own, after)), None) => {
                note(format!("{place}, {}, is not expected", describe(own)));
                logged = after;
            }
            (None, Some((want, rest))) => {
                note(format!("{place} should be the {} and is missing", want.event.name));
                wanted = rest;
            }
        }
        number = number.saturating_add(1);
    }
}

fn digest(wanted: &PredictedEvent) -> String {
    wanted.digest.map(|digest| format!(" ({})", hex_string(&digest))).unwrap_or_default()
}

fn describe(event: &Event<'_>) -> String {
    let kind = event.kind_name().map_or_else(|| format!("{:#x}", event.kind), String::from);
    format!("{kind} ({})", hex_string(event.digest))
}
