//! `cargo xtask fuzz`: the mutating tests, for as long as one likes.

use anyhow::Result;

use crate::command;

/// What `fuzz` takes.
#[derive(clap::Args)]
pub struct Options {
    /// For how long, all targets together.
    #[arg(long, default_value_t = 60)]
    seconds: u64,
    /// Repeat the run that printed this seed.
    #[arg(long)]
    seed: Option<u64>,
}

/// Runs every target for its share of the time.
pub fn run(options: &Options) -> Result<()> {
    let mut cargo = command::cargo();
    cargo.args([
        "test",
        "--release",
        "--quiet",
        "-p",
        "cloister-attestation",
        "--test",
        "fuzz",
        "--",
        "--nocapture",
    ]);
    cargo.env("CLOISTER_FUZZ_SECONDS", options.seconds.to_string());
    if let Some(seed) = options.seed {
        cargo.env("CLOISTER_FUZZ_SEED", seed.to_string());
    }
    command::run(&mut cargo)
}
