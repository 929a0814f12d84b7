//! `measure`: what a launch will be measured as.

mod corim;
mod counts;
pub mod sev;
pub mod snp;
pub mod tdx;

use std::path::PathBuf;

use clap::Subcommand;
use cloister_attestation::corim::Reference;
use serde::Serialize;

pub use counts::Counts;

use crate::{input, output};

#[derive(Debug, Subcommand)]
pub enum Measure {
    /// Launch digest of an SEV-SNP guest
    Snp(snp::Args),
    /// Launch digest of an SEV-ES guest
    SevEs(sev::EsArgs),
    /// Launch digest of a plain SEV guest
    Sev(sev::Args),
    /// MRTD and RTMRs of a TDX guest
    Tdx(tdx::Args),
}

pub fn run(measure: &Measure) -> anyhow::Result<()> {
    match measure {
        Measure::Snp(args) => snp::run(args),
        Measure::SevEs(args) => sev::run_es(args),
        Measure::Sev(args) => sev::run(args),
        Measure::Tdx(args) => tdx::run(args),
    }
}

/// What the firmware is to load.
#[derive(Debug, clap::Args)]
#[group(id = "kernel_options")]
pub struct Kernel {
    /// Kernel that the firmware loads
    #[arg(long, value_name = "FILE")]
    kernel: Option<PathBuf>,
    /// Initial RAM disk
    #[arg(long, value_name = "FILE", requires = "kernel")]
    initrd: Option<PathBuf>,
    /// Kernel command line
    #[arg(long, value_name = "TEXT", requires = "kernel")]
    cmdline: Option<String>,
}

/// What a guest is started from, beside the firmware.
#[derive(Debug, clap::Args)]
#[group(id = "guest_options")]
pub struct Guest {
    #[command(flatten)]
    pub kernel: Kernel,
    /// Number of virtual processors; measured for each number of a range such as 1-64
    #[arg(long, value_name = "N", default_value = "1")]
    pub cpus: Counts,
}

/// Kernel and initrd, read.
#[derive(Debug, Default)]
pub struct KernelFiles<'a> {
    pub kernel: Option<Vec<u8>>,
    pub initrd: Option<Vec<u8>>,
    pub cmdline: &'a str,
}

impl Kernel {
    /// Reads the files.
    pub fn read(&self) -> anyhow::Result<KernelFiles<'_>> {
        let file =
            |path: &Option<PathBuf>| path.as_deref().map(|path| input::read(path, input::KERNEL)).transpose();
        let cmdline = self.cmdline.as_deref().unwrap_or_default();
        Ok(KernelFiles { kernel: file(&self.kernel)?, initrd: file(&self.initrd)?, cmdline })
    }
}

/// What to do with a measurement.
#[derive(Debug, clap::Args)]
#[group(id = "measure_options")]
struct Results {
    #[command(flatten)]
    corim: corim::Args,
    /// Print the reference value that a key broker reads; for a range of --cpus, an array of them
    #[arg(long)]
    json: bool,
    /// Write every range of the launch here, as `cloister run --transcript` does and `explain --transcript` reads
    #[arg(long, value_name = "FILE")]
    transcript: Option<PathBuf>,
}

impl Results {
    /// Writes what was asked for, and prints the reference values: one for each of the `counts`.
    fn write<T: Serialize>(
        &self,
        counts: Counts,
        transcript: impl FnOnce() -> T,
        references: impl FnOnce() -> Vec<Reference>,
        values: &[impl Serialize],
    ) -> anyhow::Result<()> {
        if let Some(path) = &self.transcript {
            counts.only()?;
            output::write_document(path, &transcript())?;
        }
        corim::write(&self.corim, references)?;
        print_each(counts, values, self.json)
    }
}

/// Prints one of `values` for each of the `counts`: several only where a range was asked for.
fn print_each(counts: Counts, values: &[impl Serialize], json: bool) -> anyhow::Result<()> {
    match values {
        [value] if !counts.is_range() => output::print(value, json),
        _ => output::print(&values, json),
    }
}
