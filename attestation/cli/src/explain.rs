//! `explain`: why a measurement is not the expected one.

mod snp;
mod tdx;

use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use cloister_attestation::json;
use cloister_attestation::measure::explanation::Explanation;
use cloister_attestation::snp::Hex;
use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::measure::snp::Launch;
use crate::measure::tdx::Td;
use crate::output::{self, printable};
use crate::read;

/// A quote, an MRTD, an event log or a TD's transcript make it a question about a TD; anything else is about SEV-SNP.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// What the VMM wrote down (`cloister run --transcript`) or `measure --transcript` predicted, of either TEE
    #[arg(long, value_name = "FILE")]
    transcript: Option<PathBuf>,
    /// Report with the measurement; it is not verified here
    #[arg(long, value_name = "FILE", conflicts_with_all = ["measurement", "quote", "mrtd", "ccel"])]
    report: Option<PathBuf>,
    /// The measurement itself
    #[arg(long, value_name = "HEX", conflicts_with_all = ["quote", "mrtd", "ccel"])]
    measurement: Option<Hex<48>>,
    /// Quote with MRTD and RTMRs; it is not verified here
    #[arg(long, value_name = "FILE", conflicts_with = "mrtd")]
    quote: Option<PathBuf>,
    /// MRTD itself
    #[arg(long, value_name = "HEX")]
    mrtd: Option<Hex<48>>,
    /// The guest's event log (the area that ACPI's CCEL table points to)
    #[arg(long, value_name = "FILE")]
    ccel: Option<PathBuf>,
    /// Firmware ROM that should have been launched
    #[arg(long, value_name = "ROM")]
    firmware: Option<PathBuf>,
    #[command(flatten)]
    launch: Launch,
    #[command(flatten)]
    td: Td,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// Returns whether everything agrees.
pub fn run(args: &Args) -> anyhow::Result<bool> {
    let transcript: Option<Value> = args.transcript.as_deref().map(parse).transpose()?;
    let of_a_td = transcript.as_ref().is_some_and(|transcript| transcript["tee"] == "tdx");
    let explanation = match of_a_td || args.quote.is_some() || args.mrtd.is_some() || args.ccel.is_some() {
        true => tdx::explain(args)?,
        false => snp::explain(args)?,
    };
    match args.json {
        true => output::print(&explanation, true)?,
        false => print_for_people(&explanation)?,
    }
    Ok(explanation.agree)
}

/// The transcript, if one is given.
fn transcript<T: DeserializeOwned>(args: &Args) -> anyhow::Result<Option<T>> {
    args.transcript.as_deref().map(parse).transpose()
}

fn parse<T: DeserializeOwned>(path: &Path) -> anyhow::Result<T> {
    let not = || format!("{} is no launch transcript that can be compared here", path.display());
    json::object(&read(path)?).with_context(not)
}

/// There must be two things to compare. A transcript alone can be compared with itself.
fn check_question(transcript: bool, given: &[bool]) -> anyhow::Result<()> {
    if !transcript && given.iter().filter(|given| **given).count() < 2 {
        bail!("there is nothing to compare: give --transcript, or what was measured and the inputs");
    }
    Ok(())
}

/// Kernel inputs that are given by mistake instead of the right ones.
struct Mistake {
    description: &'static str,
    keeps_initrd: bool,
    cmdline: String,
}

/// The usual ones, without those that make no difference to these inputs.
fn mistakes(has_initrd: bool, cmdline: &str) -> Vec<Mistake> {
    let initrd = Mistake { description: "no initrd", keeps_initrd: false, cmdline: cmdline.to_owned() };
    let mut mistakes: Vec<_> = has_initrd.then_some(initrd).into_iter().collect();
    for (description, mistaken) in [
        ("an empty command line", String::new()),
        ("a newline after the command line", format!("{cmdline}\n")),
        ("a space after the command line", format!("{cmdline} ")),
        ("no white space around the command line", cmdline.trim().to_owned()),
    ] {
        if mistaken != cmdline
            && mistakes.iter().all(|other| !other.keeps_initrd || other.cmdline != mistaken)
        {
            mistakes.push(Mistake { description, keeps_initrd: true, cmdline: mistaken });
        }
    }
    mistakes
}

/// A transcript's strings are the host's: each is made printable by itself, so that none can pass for a line of ours.
fn print_for_people(explanation: &Explanation) -> anyhow::Result<()> {
    let mut text = format!("{}\n", printable(&explanation.summary));
    let digests = &explanation.digests;
    for (name, digest) in [
        ("expected  ", &digests.expected),
        ("transcript", &digests.transcript),
        ("measured  ", &digests.measurement),
    ] {
        if let Some(digest) = digest {
            text.push_str(&format!("  {name} {}\n", printable(digest)));
        }
    }
    for (index, rtmr) in explanation.replay.iter().flatten().enumerate() {
        text.push_str(&format!("  log leads to RTMR{index} {}\n", printable(rtmr)));
    }
    for finding in &explanation.findings {
        let place = match &finding.range {
            Some(range) => format!("range {} at {}", range.index, range.gpa),
            None => format!("{:?}", finding.subject).to_lowercase(),
        };
        text.push_str(&format!("  {}: {}\n", printable(&place), printable(&finding.message)));
    }
    for variation in &explanation.would_match {
        text.push_str(&format!("  the measurement is that of {}\n", printable(variation)));
    }
    for note in &explanation.notes {
        text.push_str(&format!("  note: {}\n", printable(note)));
    }
    output::write(&text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_differs_is_a_mistake() {
        for (has_initrd, cmdline, expected) in [
            (true, "quiet", &["no initrd", "an empty", "a newline", "a space"][..]),
            (false, "quiet", &["an empty", "a newline", "a space"]),
            (false, "", &["a newline", "a space"]),
            (true, "quiet\n", &["no initrd", "an empty", "a newline", "a space", "no white space"]),
            // What is left of white space is nothing: that was tried.
            (false, " ", &["an empty", "a newline", "a space"]),
        ] {
            let found = mistakes(has_initrd, cmdline);
            assert_eq!(found.len(), expected.len(), "{cmdline:?}");
            assert!(found.iter().zip(expected).all(|(found, part)| found.description.starts_with(part)));
        }
    }
}
