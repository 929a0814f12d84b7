//! `verify … --ear`: the verdict as a signed token, whichever it is.

use std::path::PathBuf;

use anyhow::Context;
use cloister_attestation::ear::{Attested, EarContext, ear_jwt};
use cloister_attestation::verdict::Verdict;
use cloister_attestation::x509::UnixTime;

use crate::read_key;

#[derive(Debug, clap::Args)]
#[group(id = "ear_options")]
pub struct Args {
    /// Write the verdict as EAT Attestation Result (JWT) here
    #[arg(long, value_name = "FILE", requires = "sign_key")]
    ear: Option<PathBuf>,
    /// Sign the token with this key: PEM, P-256 or P-384
    #[arg(long, value_name = "PEM", requires = "ear")]
    sign_key: Option<PathBuf>,
}

/// Writes the token if one is asked for; it is issued at the time that the evidence was verified at.
pub fn write<C: Attested>(args: &Args, verdict: &Verdict<C>, time: UnixTime) -> anyhow::Result<()> {
    let (Some(path), Some(key)) = (&args.ear, &args.sign_key) else { return Ok(()) };
    let context = EarContext { issued_at: time, expires_at: None, nonce: None, confirmation: None };
    let token = ear_jwt(verdict, &context, &read_key(key)?)?;
    std::fs::write(path, token + "\n").with_context(|| format!("cannot write {}", path.display()))
}
