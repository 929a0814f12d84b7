//! `cloister`: launches virtual machines that their host cannot look into.
//!
//! This process belongs to the host, and nobody relies on it: it schedules, gives memory and carries I/O.
//! What a confidential guest trusts is measured (see [`cloister_attestation::measure`]), everything else is checked by
//! the guest. In return nothing that a guest does may crash this process or reach host memory outside of the guest's.
//!
//! - [`config`]: flags and TOML, one struct, checked before anything is opened.
//! - [`launch`]: KVM's VM from creation to the first instruction, plain, SEV-SNP or TDX.
//! - [`vcpu`]: run loops and exits; [`tdx`]: what only a TD asks of user space, quotes above all.
//! - [`memory`]: guest RAM, which of it is shared, and conversions.
//! - [`hostile`]: what a malicious host would do, for tests of the defence. Never active unless asked for.
//! - [`output`]: what leaves this process, escaped and bounded; [`supervise`], [`ending`]: how it ends.
//! - [`sys`]: system calls that need `unsafe`.
//! - [`devices`], [`pci`], [`virtio`]: what the guest finds at its ports and buses.
#![cfg_attr(
    not(test),
    deny(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)
)]

mod config;
mod devices;
mod ending;
mod hostile;
mod launch;
mod layout;
mod limits;
mod memory;
mod outcome;
mod output;
mod pci;
mod probe;
mod run;
mod supervise;
mod sys;
mod tdx;
mod vcpu;
mod virtio;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// Confidential-computing VMM for AMD SEV-SNP, Intel TDX and plain guests on KVM.
#[derive(Parser)]
#[command(name = "cloister", version, about)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Run a guest until it powers off.
    ///
    /// Exits with the guest's own code after a clean power-off (0 unless the guest wrote one to I/O port 0x603),
    /// 1 where the guest or its launch was refused or died, 2 for unusable input.
    Run(Box<config::RunArgs>),
    /// Say what this host can launch, and what it lacks.
    ///
    /// Exits with 0 if any kind of guest can be launched, else 1.
    Probe(probe::ProbeArgs),
}

fn main() -> ExitCode {
    let Cli { command } = Cli::parse();
    match command {
        Command::Run(args) => run::main(*args),
        Command::Probe(args) => probe::main(&args),
    }
}
