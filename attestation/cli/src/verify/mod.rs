//! `verify`: whether to trust a guest.

mod ear;
mod snp;
mod summary;
mod tdx;

use std::path::{Path, PathBuf};
use std::time::SystemTime;

use anyhow::{Context, bail};
use clap::Subcommand;
use cloister_attestation::ear::Attested;
use cloister_attestation::json;
use cloister_attestation::snp::Hex;
use cloister_attestation::verdict::Verdict;
use cloister_attestation::x509::UnixTime;
use serde::de::DeserializeOwned;

use crate::envelope::{self, Contents};
use crate::output::{self, printable};
use crate::{inspect, read};
use summary::Summary;

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
    /// Seconds by which clocks may differ, instead of the policy's (60 if it says nothing)
    #[arg(long, value_name = "SECONDS")]
    clock_tolerance: Option<u32>,
    /// Refuse what the policy leaves open: measurement, report data, TCB and revocation must all be decided
    #[arg(long)]
    decided: bool,
    /// The time to verify at, in UTC and whole seconds, written exactly like 2026-11-21T07:00:00Z; now if not given
    #[arg(long, value_name = "TIME")]
    at: Option<UnixTime>,
    #[command(flatten)]
    ear: ear::Args,
    /// Print the whole verdict as JSON
    #[arg(long)]
    json: bool,
    /// Print nothing of an accepted verdict, and of a refused one only the reasons
    #[arg(long, conflicts_with = "json")]
    quiet: bool,
}

/// Evidence that the command line names, taken out of what it came in. Bytes that are recognisably something else are a mistake
/// of the caller's and no verdict about a guest.
fn evidence(path: &Path, expected: &'static str) -> anyhow::Result<Contents> {
    let name = || path.display().to_string();
    let contents = envelope::open(read(path)?).with_context(name)?;
    match inspect::recognise(&contents.bytes) {
        Some(found) if found != expected => {
            let hint = match found {
                inspect::REPORT => ": `verify snp` takes it",
                inspect::QUOTE => ": `verify tdx` takes it",
                _ => "",
            };
            bail!("{} is no {expected} but a {found}{hint}", name())
        }
        _ => {}
    }
    if !contents.layers.is_empty() {
        eprintln!("cloister-attest: {}: a {expected} in {}", printable(&name()), contents.layers.join(", "));
    }
    Ok(contents)
}

impl Common {
    /// The policy in the file; the default without one.
    fn policy<P: Default + DeserializeOwned>(&self) -> anyhow::Result<P> {
        let Some(path) = &self.policy else { return Ok(P::default()) };
        let unusable = || format!("policy {} is unusable", path.display());
        let bytes = read(path)?;
        let text = std::str::from_utf8(json::without_mark(&bytes)).with_context(unusable)?;
        // No TOML begins with a brace.
        match text.trim_start().starts_with('{') {
            true => json::object(text.as_bytes()).with_context(unusable),
            false => toml::from_str(text).with_context(unusable),
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
    fn conclude<C: Attested + Summary>(&self, verdict: Verdict<C>, time: UnixTime) -> anyhow::Result<bool> {
        let verdict = if self.decided { verdict.decided() } else { verdict };
        ear::write(&self.ear, &verdict, time)?;
        match self.json {
            true => output::print(&verdict, true)?,
            false => summary::print(&verdict, self.quiet)?,
        }
        Ok(verdict.is_accepted())
    }
}
