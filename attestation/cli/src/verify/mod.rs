//! `verify`: whether to trust a guest.

mod ear;
mod snp;
mod tdx;

use std::path::PathBuf;
use std::time::SystemTime;

use anyhow::Context;
use clap::Subcommand;
use cloister_attestation::ear::Attested;
use cloister_attestation::snp::Hex;
use cloister_attestation::verdict::Verdict;
use cloister_attestation::x509::UnixTime;
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::output::{self, printable};
use crate::read;

#[derive(Debug, Subcommand)]
pub enum Verify {
    /// An SEV-SNP attestation report
    Snp(Box<snp::Args>),
    /// A TDX quote
    Tdx(Box<tdx::Args>),
}

/// Returns whether the evidence was accepted.
pub fn run(verify: &Verify) -> anyhow::Result<bool> {
    match verify {
        Verify::Snp(args) => snp::run(args),
        Verify::Tdx(args) => tdx::run(args),
    }
}

/// What is asked for in the same way of either TEE.
#[derive(Debug, clap::Args)]
#[group(id = "verify_options")]
struct Common {
    /// Root to trust instead of the vendor's, DER or PEM
    #[arg(long, value_name = "FILE")]
    trust_root: Vec<PathBuf>,
    /// What to accept (TOML or JSON, see `schema policy`)
    #[arg(long, value_name = "FILE")]
    policy: Option<PathBuf>,
    /// What the report data must be, 64 bytes
    #[arg(long, value_name = "HEX")]
    report_data: Option<Hex<64>>,
    /// The time to verify at, in UTC and whole seconds, written exactly like 2026-11-21T07:00:00Z; now if not given
    #[arg(long, value_name = "TIME")]
    at: Option<UnixTime>,
    #[command(flatten)]
    ear: ear::Args,
    /// Print the whole verdict as JSON
    #[arg(long)]
    json: bool,
}

impl Common {
    /// The policy in the file; the default without one.
    fn policy<P: Default + DeserializeOwned>(&self) -> anyhow::Result<P> {
        let Some(path) = &self.policy else { return Ok(P::default()) };
        let unusable = || format!("policy {} is unusable", path.display());
        let text = String::from_utf8(read(path)?).with_context(unusable)?;
        // No TOML begins with a brace.
        match text.trim_start().starts_with('{') {
            true => serde_json::from_str(&text).with_context(unusable),
            false => toml::from_str(&text).with_context(unusable),
        }
    }

    /// The roots to trust: the `vendors`, or each of the files, and no other.
    fn roots<R: Default, E: std::error::Error + Send + Sync + 'static>(
        &self,
        vendors: fn() -> R,
        add: fn(&mut R, &[u8]) -> Result<(), E>,
    ) -> anyhow::Result<R> {
        if self.trust_root.is_empty() {
            return Ok(vendors());
        }
        let mut roots = R::default();
        for path in &self.trust_root {
            add(&mut roots, &read(path)?).with_context(|| format!("{} cannot be trusted", path.display()))?;
        }
        Ok(roots)
    }

    /// The time to verify at: now, unless another is given.
    fn time(&self) -> anyhow::Result<UnixTime> {
        if let Some(time) = self.at {
            return Ok(time);
        }
        let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
        Ok(UnixTime(since.context("the clock is set before 1970")?.as_secs()))
    }

    /// Writes and prints a verdict of that time; returns whether the evidence was accepted.
    fn conclude<C: Attested>(&self, verdict: &Verdict<C>, time: UnixTime) -> anyhow::Result<bool> {
        ear::write(&self.ear, verdict, time)?;
        match self.json {
            true => output::print(verdict, true)?,
            false => print_for_people(verdict)?,
        }
        Ok(verdict.is_accepted())
    }
}

fn print_for_people<C: Serialize>(verdict: &Verdict<C>) -> anyhow::Result<()> {
    let mut text = String::from(if verdict.is_accepted() { "accepted\n" } else { "REJECTED\n" });
    for reason in &verdict.reasons {
        text.push_str(&format!("  {:?}: {}\n", reason.code.kind(), printable(&reason.to_string())));
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
