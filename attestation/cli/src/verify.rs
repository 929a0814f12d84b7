//! `verify`: whether to trust a guest.

use std::path::{Path, PathBuf};
use std::time::SystemTime;

use anyhow::Context;
use clap::Subcommand;
use cloister_attestation::snp::{self, Collateral, Evidence, Hex, Policy, TrustRoots};
use cloister_attestation::verdict::Verdict;
use cloister_attestation::x509::UnixTime;
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::verify_tdx::TdxArgs;
use crate::{ear, output, read};

#[derive(Debug, Subcommand)]
pub enum Verify {
    /// An SEV-SNP attestation report
    Snp(Box<SnpArgs>),
    /// A TDX quote
    Tdx(Box<TdxArgs>),
}

#[derive(Debug, clap::Args)]
pub struct SnpArgs {
    /// The report, 1184 bytes
    #[arg(long, value_name = "FILE")]
    report: PathBuf,
    /// Certificate of the VCEK or VLEK, DER or PEM
    #[arg(long, value_name = "FILE")]
    vek: Option<PathBuf>,
    /// Certificate table of an extended report
    #[arg(long, value_name = "FILE")]
    cert_table: Option<PathBuf>,
    /// Certificates of ASK or ASVK (and ARK); AMD's are built in
    #[arg(long, value_name = "FILE")]
    chain: Vec<PathBuf>,
    /// CRL of the root, DER or PEM
    #[arg(long, value_name = "FILE")]
    crl: Vec<PathBuf>,
    /// Root to trust instead of AMD's, DER or PEM
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
    #[command(flatten)]
    ear: ear::Args,
    /// Print the whole verdict as JSON
    #[arg(long)]
    json: bool,
}

/// Returns whether the evidence was accepted.
pub fn run(verify: &Verify) -> anyhow::Result<bool> {
    match verify {
        Verify::Snp(args) => run_snp(args),
        Verify::Tdx(args) => crate::verify_tdx::run(args),
    }
}

fn run_snp(args: &SnpArgs) -> anyhow::Result<bool> {
    let mut policy: Policy = policy(args.policy.as_deref())?;
    if let Some(expected) = args.report_data {
        policy.report_data = Some(expected);
    }
    let roots = roots(args)?;
    let time = time(args.at)?;
    let report = read(&args.report)?;
    let table = args.cert_table.as_deref().map(read).transpose()?;
    let certificates = args.vek.iter().chain(&args.chain).map(|path| read(path));
    let certificates: Vec<_> = certificates.collect::<Result<_, _>>()?;
    let certificates: Vec<_> = certificates.iter().map(Vec::as_slice).collect();
    let crls: Vec<_> = args.crl.iter().map(|path| read(path)).collect::<Result<_, _>>()?;
    let crls: Vec<_> = crls.iter().map(Vec::as_slice).collect();
    let evidence =
        Evidence { report: &report, certificates: &certificates, certificate_table: table.as_deref() };
    let verdict = snp::verify(&evidence, &roots, &Collateral { crls: &crls }, time, &policy);
    ear::write(&args.ear, &verdict, time)?;
    print(&verdict, args.json)
}

/// The policy in a file; the default without one.
pub fn policy<P: Default + DeserializeOwned>(path: Option<&Path>) -> anyhow::Result<P> {
    let Some(path) = path else { return Ok(P::default()) };
    let unusable = || format!("policy {} is unusable", path.display());
    let text = String::from_utf8(read(path)?).with_context(unusable)?;
    toml::from_str(&text).with_context(unusable)
}

fn roots(args: &SnpArgs) -> anyhow::Result<TrustRoots> {
    if args.trust_root.is_empty() {
        return Ok(TrustRoots::amd());
    }
    let mut roots = TrustRoots::none();
    for path in &args.trust_root {
        roots.add(&read(path)?).with_context(|| format!("{} cannot be trusted", path.display()))?;
    }
    Ok(roots)
}

/// The time to verify at: now, unless another is given.
pub fn time(given: Option<UnixTime>) -> anyhow::Result<UnixTime> {
    if let Some(time) = given {
        return Ok(time);
    }
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    Ok(UnixTime(since.context("the clock is set before 1970")?.as_secs()))
}

/// Prints a verdict; returns whether the evidence was accepted.
pub fn print<C: Serialize>(verdict: &Verdict<C>, json: bool) -> anyhow::Result<bool> {
    match json {
        true => output::print(verdict, true)?,
        false => print_for_people(verdict)?,
    }
    Ok(verdict.is_accepted())
}

fn print_for_people<C: Serialize>(verdict: &Verdict<C>) -> anyhow::Result<()> {
    let mut text = String::from(if verdict.is_accepted() { "accepted\n" } else { "REJECTED\n" });
    for reason in &verdict.reasons {
        text.push_str(&format!("  {:?}: {reason}\n", reason.code.kind()));
    }
    if !verdict.unchecked.is_empty() {
        text.push_str(&format!("not decided by the policy: {}\n", verdict.unchecked.join(", ")));
    }
    output::write(&text)?;
    match &verdict.claims {
        Some(claims) => output::print(&serde_json::json!({ "claims": claims }), false),
        None => Ok(()),
    }
}
