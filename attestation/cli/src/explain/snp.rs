//! Why an SEV-SNP launch is measured as it is.

use anyhow::Context;
use cloister_attestation::measure::KernelHashes;
use cloister_attestation::measure::snp::LaunchTranscript;
use cloister_attestation::measure::snp::explain::{Alternative, Explanation, Question, explain as answer};
use cloister_attestation::snp::Report;

use super::{Args, check_question, mistakes, transcript};
use crate::measure::{Kernel, KernelFiles};
use crate::read;

pub fn explain(args: &Args) -> anyhow::Result<Explanation> {
    let measurement = match (&args.report, args.measurement) {
        (Some(path), _) => {
            let report = Report::parse(&read(path)?).with_context(|| format!("{}", path.display()))?;
            Some(*report.measurement())
        }
        (None, given) => given.map(|measurement| measurement.0),
    };
    let transcript: Option<LaunchTranscript> = transcript(args)?;
    check_question(transcript.is_some(), &[measurement.is_some(), args.firmware.is_some()])?;
    let Some(path) = &args.firmware else {
        let question = Question { transcript: transcript.as_ref(), measurement, ..Question::default() };
        return Ok(answer(&question, None));
    };
    args.launch.guest.cpus.only()?;
    args.launch.plan(path, |inputs, plan| {
        let question = Question {
            transcript: transcript.as_ref(),
            measurement,
            inputs: Some(inputs),
            alternatives: &alternatives(&args.launch.guest.kernel)?,
        };
        Ok(answer(&question, Some(&LaunchTranscript::new(inputs, plan, None))))
    })
}

fn alternatives(args: &Kernel) -> anyhow::Result<Vec<Alternative>> {
    let KernelFiles { kernel: Some(kernel), initrd, cmdline } = args.read()? else { return Ok(Vec::new()) };
    let right = KernelHashes::of(&kernel, initrd.as_deref(), cmdline);
    let empty = KernelHashes::of(&[], None, "");
    let no_kernel =
        Alternative { description: "no kernel (its hashes were not measured)".to_owned(), kernel: None };
    let others = mistakes(initrd.is_some(), cmdline).into_iter().map(|mistake| {
        let initrd = if mistake.keeps_initrd { right.initrd } else { empty.initrd };
        let KernelHashes { cmdline, .. } = KernelHashes::of(&[], None, &mistake.cmdline);
        let kernel = Some(KernelHashes { initrd, cmdline, ..right });
        Alternative { description: mistake.description.to_owned(), kernel }
    });
    Ok(std::iter::once(no_kernel).chain(others).collect())
}
