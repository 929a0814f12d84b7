//! `explain`: why a measurement is not the expected one.

use std::path::PathBuf;

use anyhow::{Context, bail};
use cloister_attestation::measure::KernelHashes;
use cloister_attestation::measure::snp::explain::{Alternative, Explanation, Question, explain};
use cloister_attestation::measure::snp::{LaunchPlan, LaunchTranscript, Rom};
use cloister_attestation::snp::{Hex, Report};

use crate::measure::{Launch, inputs};
use crate::{output, read};

#[derive(Debug, clap::Args)]
pub struct Args {
    /// What the VMM wrote down (`cloister run --transcript`)
    #[arg(long, value_name = "FILE")]
    transcript: Option<PathBuf>,
    /// Report with the measurement; it is not verified here
    #[arg(long, value_name = "FILE", conflicts_with = "measurement")]
    report: Option<PathBuf>,
    /// The measurement itself
    #[arg(long, value_name = "HEX")]
    measurement: Option<Hex<48>>,
    /// Firmware ROM that should have been launched
    #[arg(long, value_name = "ROM")]
    firmware: Option<PathBuf>,
    #[command(flatten)]
    launch: Launch,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// Returns whether everything agrees.
pub fn run(args: &Args) -> anyhow::Result<bool> {
    let measurement = match (&args.report, args.measurement) {
        (Some(path), _) => {
            let report = Report::parse(&read(path)?).with_context(|| format!("{}", path.display()))?;
            Some(*report.measurement())
        }
        (None, given) => given.map(|measurement| measurement.0),
    };
    let transcript: Option<LaunchTranscript> = match &args.transcript {
        Some(path) => {
            let not = || format!("{} is no launch transcript", path.display());
            Some(serde_json::from_slice(&read(path)?).with_context(not)?)
        }
        None => None,
    };
    if [transcript.is_some(), measurement.is_some(), args.firmware.is_some()]
        .iter()
        .filter(|given| **given)
        .count()
        < 2
        && transcript.is_none()
    {
        bail!("there is nothing to compare: give --transcript, or --report or --measurement and the inputs");
    }
    let explanation = match &args.firmware {
        None => {
            explain(&Question { transcript: transcript.as_ref(), measurement, ..Question::default() }, None)
        }
        Some(path) => {
            let firmware = read(path)?;
            let rom = Rom::parse(&firmware).with_context(|| format!("{} is unusable", path.display()))?;
            let inputs = inputs(&args.launch, &rom)?;
            let plan = LaunchPlan::new(&inputs).context("this launch cannot be measured")?;
            let expected = LaunchTranscript::new(&inputs, &plan, None);
            let question = Question {
                transcript: transcript.as_ref(),
                measurement,
                inputs: Some(&inputs),
                alternatives: &alternatives(&args.launch)?,
            };
            explain(&question, Some(&expected))
        }
    };
    if args.json {
        output::print(&explanation, true)?
    } else {
        print_for_people(&explanation)?
    }
    Ok(explanation.agree)
}

/// Kernel inputs that are given by mistake instead of the right ones.
fn alternatives(launch: &Launch) -> anyhow::Result<Vec<Alternative>> {
    let Some(kernel) = launch.kernel.as_deref().map(read).transpose()? else { return Ok(Vec::new()) };
    let initrd = launch.initrd.as_deref().map(read).transpose()?;
    let cmdline = launch.cmdline.as_deref().unwrap_or_default();
    let hashes = KernelHashes::of(&kernel, initrd.as_deref(), cmdline);
    let with_cmdline = |description: &str, cmdline: &str| Alternative {
        description: description.to_owned(),
        kernel: Some(KernelHashes { cmdline: KernelHashes::of(&[], None, cmdline).cmdline, ..hashes }),
    };
    let without = |description: &str, kernel| Alternative { description: description.to_owned(), kernel };
    let empty = KernelHashes::of(&[], None, "");
    Ok(vec![
        without("no kernel (its hashes were not measured)", None),
        without("no initrd", Some(KernelHashes { initrd: empty.initrd, ..hashes })),
        with_cmdline("an empty command line", ""),
        with_cmdline("a newline after the command line", &format!("{cmdline}\n")),
        with_cmdline("a space after the command line", &format!("{cmdline} ")),
        with_cmdline("no white space around the command line", cmdline.trim()),
    ])
}

fn print_for_people(explanation: &Explanation) -> anyhow::Result<()> {
    let mut text = format!("{}\n", explanation.summary);
    let digests = &explanation.digests;
    for (name, digest) in [
        ("expected  ", &digests.expected),
        ("transcript", &digests.transcript),
        ("measured  ", &digests.measurement),
    ] {
        if let Some(digest) = digest {
            text.push_str(&format!("  {name} {digest}\n"));
        }
    }
    for finding in &explanation.findings {
        let place = match &finding.range {
            Some(range) => format!("range {} at {}", range.index, range.gpa),
            None => format!("{:?}", finding.subject).to_lowercase(),
        };
        text.push_str(&format!("  {place}: {}\n", finding.message));
    }
    for variation in &explanation.would_match {
        text.push_str(&format!("  the measurement is that of {variation}\n"));
    }
    output::write(&output::printable_lines(&text))
}
