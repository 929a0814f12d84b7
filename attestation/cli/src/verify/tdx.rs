//! `verify tdx`: whether to trust a TD.

use std::path::PathBuf;

use cloister_attestation::tdx::{Collateral, Evidence, Policy, TrustRoots, verify};

use super::Common;
use crate::read;

#[derive(Debug, clap::Args)]
pub struct Args {
    /// The quote, version 4 or 5
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
    let roots = args.common.roots(TrustRoots::intel, TrustRoots::add)?;
    let time = args.common.time()?;
    let quote = read(&args.quote)?;
    let event_log = args.ccel.as_deref().map(read).transpose()?;
    let collateral = Collateral::new(&read(&args.collateral)?, &roots);
    let evidence = Evidence { quote: &quote, event_log: event_log.as_deref() };
    let verdict = verify(&evidence, &collateral, time, &policy);
    args.common.conclude(&verdict, time)
}
