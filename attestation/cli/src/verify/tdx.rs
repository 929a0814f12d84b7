//! `verify tdx`: whether to trust a TD.

use std::path::PathBuf;

use anyhow::Context;
use cloister_attestation::tdx::{Collateral, Evidence, Policy, TrustRoots, verify};

use super::{Common, evidence};
use crate::{inspect, read};

#[derive(Debug, clap::Args)]
pub struct Args {
    /// The quote, version 4 or 5, or what it is found in (text, gzip, a broker's JSON); `-` is standard input
    #[arg(long, value_name = "FILE")]
    quote: PathBuf,
    /// Intel's collateral for the quote's platform (JSON)
    #[arg(long, value_name = "FILE")]
    collateral: PathBuf,
    /// The guest's event log (the area that ACPI's CCEL table points to)
    #[arg(long, value_name = "FILE")]
    ccel: Option<PathBuf>,
    #[command(flatten)]
    common: Common,
}

pub fn run(args: &Args) -> anyhow::Result<bool> {
    let mut policy: Policy = args.common.policy()?;
    policy.report_data = args.common.report_data.or(policy.report_data);
    policy.clock_tolerance_seconds = args.common.clock_tolerance.unwrap_or(policy.clock_tolerance_seconds);
    policy.check().context("--clock-tolerance")?;
    let roots = args.common.roots(TrustRoots::intel, TrustRoots::add)?;
    let time = args.common.time()?;
    let found = evidence(&args.quote, inspect::QUOTE)?;
    let event_log = args.ccel.as_deref().map(read).transpose()?.or(found.event_log);
    let collateral = Collateral::new(&read(&args.collateral)?, &roots);
    let evidence = Evidence { quote: &found.bytes, event_log: event_log.as_deref() };
    let verdict = verify(&evidence, &collateral, time, &policy);
    args.common.conclude(verdict, time)
}
