//! `verify tdx`: whether to trust a TD.

use std::path::PathBuf;

use anyhow::Context;
use cloister_attestation::snp::Hex;
use cloister_attestation::tdx::{Collateral, Evidence, Policy, TrustRoots, verify};
use cloister_attestation::x509::UnixTime;

use crate::verify::{policy, print, time};
use crate::{ear, read};

#[derive(Debug, clap::Args)]
pub struct TdxArgs {
    /// The quote, version 4 or 5
    #[arg(long, value_name = "FILE")]
    quote: PathBuf,
    /// Intel's collateral for the quote's platform (JSON)
    #[arg(long, value_name = "FILE")]
    collateral: PathBuf,
    /// The guest's event log (the area that ACPI's CCEL table points to)
    #[arg(long, value_name = "FILE")]
    ccel: Option<PathBuf>,
    /// Root to trust instead of Intel's, DER or PEM
    #[arg(long, value_name = "FILE")]
    trust_root: Vec<PathBuf>,
    /// What to accept (TOML)
    #[arg(long, value_name = "FILE")]
    policy: Option<PathBuf>,
    /// What the report data must be, 64 bytes
    #[arg(long, value_name = "HEX")]
    report_data: Option<Hex<64>>,
    /// The time to verify at, such as 2026-11-21T07:00:00Z; now if not given
    #[arg(long, value_name = "RFC3339")]
    at: Option<UnixTime>,
    /// Print the whole verdict as JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    ear: ear::Args,
}

/// Returns whether the evidence was accepted.
pub fn run(args: &TdxArgs) -> anyhow::Result<bool> {
    let mut policy: Policy = policy(args.policy.as_deref())?;
    if let Some(expected) = args.report_data {
        policy.report_data = Some(expected);
    }
    let roots = roots(args)?;
    let time = time(args.at)?;
    let quote = read(&args.quote)?;
    let event_log = args.ccel.as_deref().map(read).transpose()?;
    let collateral = Collateral::new(&read(&args.collateral)?, &roots);
    let evidence = Evidence { quote: &quote, event_log: event_log.as_deref() };
    let verdict = verify(&evidence, &collateral, time, &policy);
    ear::write(&args.ear, &verdict, time)?;
    print(&verdict, args.json)
}

fn roots(args: &TdxArgs) -> anyhow::Result<TrustRoots> {
    if args.trust_root.is_empty() {
        return Ok(TrustRoots::intel());
    }
    let mut roots = TrustRoots::none();
    for path in &args.trust_root {
        roots.add(&read(path)?).with_context(|| format!("{} cannot be trusted", path.display()))?;
    }
    Ok(roots)
}
