//! Why a TD is measured as it is.

use anyhow::Context;
use cloister_attestation::measure::explanation::Explanation;
use cloister_attestation::measure::tdx::explain::{
    Alternative, Launch, Measurement, Question, explain as answer,
};
use cloister_attestation::measure::tdx::{LaunchPlan, LaunchTranscript, Mrtd, RtmrInputs, Tdvf};
use cloister_attestation::tdx::{EventLog, Quote};

use super::{Args, check_question, mistakes, transcript};
use crate::measure::tdx::Files;
use crate::{input, read};

pub fn explain(args: &Args) -> anyhow::Result<Explanation> {
    let measurement = measurement(args)?;
    let transcript: Option<LaunchTranscript> = transcript(args)?;
    let log = args.ccel.as_deref().map(read).transpose()?;
    let event_log = log.as_deref().map(EventLog::read).transpose().context("the event log is unusable")?;
    let given = [measurement.is_some(), event_log.is_some(), args.firmware.is_some()];
    check_question(transcript.is_some(), &given)?;
    let question = Question {
        transcript: transcript.as_ref(),
        measurement,
        event_log: event_log.as_ref(),
        ..Question::default()
    };
    let Some(path) = &args.firmware else { return Ok(answer(&question)) };
    let firmware = input::read(path, input::FIRMWARE)?;
    let unusable = || format!("{} is unusable", path.display());
    let tdvf = Tdvf::parse(&firmware).with_context(unusable)?;
    let plan = LaunchPlan::new(&tdvf).with_context(unusable)?;
    args.launch.guest.cpus.only()?;
    let files = Files::read(&tdvf, &args.launch.guest, &args.td)?;
    let launches = files.launches();
    let inputs = launches.first().context("there is no guest without a processor")?;
    let mistakes = mistakes(inputs.initrd.is_some(), inputs.cmdline);
    let alternatives: Vec<_> = mistakes
        .iter()
        .map(|mistake| Alternative {
            description: mistake.description,
            inputs: RtmrInputs {
                initrd: inputs.initrd.filter(|_| mistake.keeps_initrd),
                cmdline: &mistake.cmdline,
                ..inputs.clone()
            },
        })
        .collect();
    Ok(answer(&Question {
        launch: Some(Launch { tdvf: &tdvf, plan: &plan, order: files.order }),
        inputs: Some(inputs),
        alternatives: &alternatives,
        ..question
    }))
}

fn measurement(args: &Args) -> anyhow::Result<Option<Measurement>> {
    let Some(path) = &args.quote else {
        return Ok(args.mrtd.map(|mrtd| Measurement { mrtd: Mrtd(mrtd.0), rtmrs: None }));
    };
    let bytes = read(path)?;
    let quote = Quote::parse(&bytes).with_context(|| format!("{}", path.display()))?;
    let base = &quote.report().base;
    Ok(Some(Measurement { mrtd: Mrtd(base.mrtd), rtmrs: Some(base.rtmrs) }))
}
