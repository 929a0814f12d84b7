//! `cloister-attest`: inspect, measure and verify confidential-computing evidence.
//!
//! Exit codes: 0 done or accepted, 1 the evidence was refused (each reason is named), 2 usage or
//! unreadable input. Results go to stdout, everything else to stderr. It reads files and the clock
//! and never the network; every judgement is the library's.

mod collateral;
mod envelope;
mod explain;
mod id_block;
mod input;
mod inspect;
mod inspect_documents;
mod inspect_rom;
mod inspect_tdx;
mod measure;
mod output;
mod schema;
mod verify;

use std::path::Path;
use std::process::ExitCode;

use anyhow::Context;
use clap::{Parser, Subcommand};
use cloister_attestation::signing::{KeyError, SigningKey};

/// The evidence, guest or launch was refused.
const REFUSED: u8 = 1;
/// Usage or unreadable input; clap uses the same.
const UNUSABLE: u8 = 2;

/// Inspect, measure and verify confidential-computing evidence.
#[derive(Debug, Parser)]
#[command(version, about)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Say what a file is and what it says, without believing any of it
    Inspect(inspect::Args),
    /// Make the collateral of TDX quotes out of what Intel's service answered
    Collateral(Box<collateral::Args>),
    /// Predict a launch measurement
    #[command(subcommand)]
    Measure(measure::Measure),
    /// Say why a measurement is not the expected one: which page range or input differs
    Explain(Box<explain::Args>),
    /// Make and sign the ID block of an SEV-SNP guest
    IdBlock(id_block::Args),
    /// Print the JSON schema of what other tools may want to write or read
    Schema(schema::Args),
    /// Verify evidence to the vendor's root and against a policy
    #[command(subcommand)]
    Verify(verify::Verify),
}

fn main() -> ExitCode {
    let outcome = match Cli::parse().command {
        Command::Inspect(args) => inspect::run(&args).map(|()| ExitCode::SUCCESS),
        Command::Collateral(args) => collateral::run(&args).map(|()| ExitCode::SUCCESS),
        Command::Measure(measure) => measure::run(&measure).map(|()| ExitCode::SUCCESS),
        Command::Explain(args) => explain::run(&args).map(judged),
        Command::IdBlock(args) => id_block::run(&args).map(|()| ExitCode::SUCCESS),
        Command::Schema(args) => schema::run(&args).map(|()| ExitCode::SUCCESS),
        Command::Verify(verify) => verify::run(&verify).map(judged),
    };
    outcome.unwrap_or_else(|error| {
        eprintln!("cloister-attest: {}", output::error_text(&error));
        UNUSABLE.into()
    })
}

fn judged(good: bool) -> ExitCode {
    if good { ExitCode::SUCCESS } else { REFUSED.into() }
}

fn read_key(path: &Path) -> anyhow::Result<SigningKey> {
    let text = String::from_utf8(read(path)?).ok();
    let key = text.ok_or(KeyError::Unusable).and_then(|text| SigningKey::from_pem(&text));
    key.with_context(|| format!("{}", path.display()))
}

/// Reads a document; images have limits of their own.
fn read(path: &Path) -> anyhow::Result<Vec<u8>> {
    input::read(path, input::DOCUMENT)
}

/// A hexadecimal number with or without `0x`.
fn parse_hex(text: &str) -> Result<u64, String> {
    let digits = text.strip_prefix("0x").unwrap_or(text);
    u64::from_str_radix(digits, 16).map_err(|_| "expected hexadecimal digits, such as 0xa10f11".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn hexadecimal_numbers_may_have_a_prefix() {
        for (text, value) in
            [("a10f11", Ok(0xa10f11)), ("0x1", Ok(1)), ("", Err(())), ("0x", Err(())), ("g", Err(()))]
        {
            assert_eq!(parse_hex(text).map_err(drop), value, "{text}");
        }
    }
}
