//! `measure … --corim`: the reference value for verifiers that are not ours.

use std::path::PathBuf;

use anyhow::Context;
use cloister_attestation::corim::{Reference, corim, signed_corim};

use crate::read_key;

#[derive(Debug, clap::Args)]
#[group(id = "corim_options")]
pub struct Args {
    /// Write the reference values as CoRIM (CBOR) here
    #[arg(long, value_name = "FILE")]
    corim: Option<PathBuf>,
    /// Sign the CoRIM with this key: PEM, P-256 or P-384
    #[arg(long, value_name = "PEM", requires = "corim")]
    sign_key: Option<PathBuf>,
    /// Who signs, for people
    #[arg(long, value_name = "NAME", requires = "sign_key", default_value = "cloister-attest")]
    signer: String,
}

/// Writes the CoRIM if one is asked for; only then are `references` computed.
pub fn write(args: &Args, references: impl FnOnce() -> Vec<Reference>) -> anyhow::Result<()> {
    let Some(path) = &args.corim else { return Ok(()) };
    let bytes = match &args.sign_key {
        Some(key) => signed_corim(&references(), &read_key(key)?, &args.signer)?,
        None => corim(&references())?,
    };
    std::fs::write(path, bytes).with_context(|| format!("cannot write {}", path.display()))
}
