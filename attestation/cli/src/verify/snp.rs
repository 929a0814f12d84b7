//! `verify snp`: whether to trust an SEV-SNP guest.

use std::path::PathBuf;

use anyhow::Context;
use cloister_attestation::snp::{Collateral, Evidence, Policy, TrustRoots, verify};

use super::{Common, evidence};
use crate::{inspect, read};

#[derive(Debug, clap::Args)]
pub struct Args {
    /// The report: 1184 bytes, or what it is found in (text, gzip, a cloud's blob, a broker's JSON); `-` is standard input
    #[arg(long, value_name = "FILE")]
    report: PathBuf,
    /// Certificate of the VCEK or VLEK, DER or PEM
    #[arg(long, value_name = "FILE")]
    vek: Option<PathBuf>,
    /// Certificate table of an extended report
    #[arg(long, value_name = "FILE")]
    cert_table: Option<PathBuf>,
    /// Certificates of ASK or ASVK (and ARK), DER or PEM; AMD's are built in. CRLs beside them are not looked at
    #[arg(long, value_name = "FILE")]
    chain: Vec<PathBuf>,
    /// CRL of the root, DER or PEM; certificates beside it are not looked at
    #[arg(long, value_name = "FILE")]
    crl: Vec<PathBuf>,
    #[command(flatten)]
    common: Common,
}

pub fn run(args: &Args) -> anyhow::Result<bool> {
    let mut policy: Policy = args.common.policy()?;
    policy.report_data = args.common.report_data.or(policy.report_data);
    policy.clock_tolerance_seconds = args.common.clock_tolerance.unwrap_or(policy.clock_tolerance_seconds);
    policy.check().context("--clock-tolerance")?;
    let roots = args.common.roots(TrustRoots::amd, TrustRoots::add)?;
    let time = args.common.time()?;
    let found = evidence(&args.report, inspect::REPORT)?;
    let table = args.cert_table.as_deref().map(read).transpose()?.or(found.table);
    let certificates = args.vek.iter().chain(&args.chain).map(|path| read(path));
    let certificates: Vec<_> = certificates.collect::<Result<_, _>>()?;
    let certificates: Vec<_> = certificates.iter().map(Vec::as_slice).collect();
    let crls: Vec<_> = args.crl.iter().map(|path| read(path)).collect::<Result<_, _>>()?;
    let crls: Vec<_> = crls.iter().map(Vec::as_slice).collect();
    let evidence =
        Evidence { report: &found.bytes, certificates: &certificates, certificate_table: table.as_deref() };
    let verdict = verify(&evidence, &roots, &Collateral { crls: &crls }, time, &policy);
    args.common.conclude(verdict, time)
}
