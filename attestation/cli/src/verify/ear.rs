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
    /// Nonce that the evidence answers, 8 to 64 bytes, for the token to repeat
    #[arg(long, value_name = "HEX", requires = "ear", value_parser = parse_bytes)]
    ear_nonce: Option<Bytes>,
    /// For how many seconds the token may be used; for ever if not given
    #[arg(long, value_name = "SECONDS", requires = "ear", value_parser = clap::value_parser!(u64).range(1..))]
    ear_lifetime: Option<u64>,
}

/// A value of any length.
#[derive(Clone, Debug)]
struct Bytes(Vec<u8>);

fn parse_bytes(text: &str) -> Result<Bytes, String> {
    hex::decode(text).map(Bytes).map_err(|_| "expected hexadecimal digits, two a byte".to_owned())
}

/// Writes the token if one is asked for; it is issued at the time that the evidence was verified at.
pub fn write<C: Attested>(args: &Args, verdict: &Verdict<C>, time: UnixTime) -> anyhow::Result<()> {
    let (Some(path), Some(key)) = (&args.ear, &args.sign_key) else { return Ok(()) };
    let context = EarContext {
        issued_at: time,
        expires_at: args.ear_lifetime.map(|seconds| UnixTime(time.0.saturating_add(seconds))),
        nonce: args.ear_nonce.as_ref().map(|nonce| nonce.0.clone()),
        confirmation: None,
    };
    let token = ear_jwt(verdict, &context, &read_key(key)?)?;
    std::fs::write(path, token + "\n").with_context(|| format!("cannot write {}", path.display()))
}
