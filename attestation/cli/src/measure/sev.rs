//! `measure sev` and `measure sev-es`: the TEEs before SNP. What has no part in their digests cannot be given.

use std::path::{Path, PathBuf};

use anyhow::Context;
use cloister_attestation::measure::KernelHashes;
use cloister_attestation::measure::sev::{sev_digest, sev_es_digest};
use cloister_attestation::measure::snp::{InputDigests, Rom, VmmFlavour};
use serde::{Deserialize, Serialize};

use super::snp::{IMPOSSIBLE, Processor, Vmm};
use super::{Guest, Kernel, print_each};
use crate::{input, output};

#[derive(Debug, clap::Args)]
pub struct Args {
    /// Firmware ROM
    #[arg(long, value_name = "ROM")]
    firmware: PathBuf,
    #[command(flatten)]
    kernel: Kernel,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

#[derive(Debug, clap::Args)]
pub struct EsArgs {
    /// Firmware ROM
    #[arg(long, value_name = "ROM")]
    firmware: PathBuf,
    #[command(flatten)]
    guest: Guest,
    #[command(flatten)]
    processor: Processor,
    /// The VMM that launches the guest
    #[arg(long, value_enum, default_value = "cloister")]
    vmm: Vmm,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// What is printed. `vmm`, `cpus` and `cpu_sig` are of SEV-ES, which measures processors.
#[derive(Serialize, Deserialize)]
pub struct ReferenceValue {
    version: u32,
    tee: String,
    measurement: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    vmm: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    cpus: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    cpu_sig: Option<String>,
    inputs: InputDigests,
}

pub fn run(args: &Args) -> anyhow::Result<()> {
    let firmware = input::read(&args.firmware, input::FIRMWARE)?;
    let (rom, kernel) = (rom(&args.firmware, &firmware)?, kernel(&args.kernel)?);
    let digest = sev_digest(&rom, kernel.as_ref()).context(IMPOSSIBLE)?;
    let (measurement, inputs) = (hex::encode(digest), InputDigests::new(&rom, kernel.as_ref()));
    let value = ReferenceValue {
        version: 1,
        tee: "sev".to_owned(),
        measurement,
        vmm: None,
        cpus: None,
        cpu_sig: None,
        inputs,
    };
    output::print(&value, args.json)
}

pub fn run_es(args: &EsArgs) -> anyhow::Result<()> {
    let firmware = input::read(&args.firmware, input::FIRMWARE)?;
    let (rom, kernel) = (rom(&args.firmware, &firmware)?, kernel(&args.guest.kernel)?);
    let (cpu, flavour) = (args.processor.model()?, VmmFlavour::from(args.vmm));
    let inputs = InputDigests::new(&rom, kernel.as_ref());
    let value = |cpus| {
        let digest = sev_es_digest(&rom, kernel.as_ref(), cpus, cpu, flavour).context(IMPOSSIBLE)?;
        anyhow::Ok(ReferenceValue {
            version: 1,
            tee: "sev-es".to_owned(),
            measurement: hex::encode(digest),
            vmm: Some(flavour.name().to_owned()),
            cpus: Some(cpus),
            cpu_sig: Some(format!("{:#x}", cpu.0)),
            inputs: inputs.clone(),
        })
    };
    let values = args.guest.cpus.all().map(value).collect::<anyhow::Result<Vec<_>>>()?;
    print_each(args.guest.cpus, &values, args.json)
}

fn rom<'a>(path: &Path, firmware: &'a [u8]) -> anyhow::Result<Rom<'a>> {
    Rom::parse(firmware).with_context(|| format!("{} is unusable", path.display()))
}

fn kernel(args: &Kernel) -> anyhow::Result<Option<KernelHashes>> {
    let files = args.read()?;
    Ok(files.kernel.map(|kernel| KernelHashes::of(&kernel, files.initrd.as_deref(), files.cmdline)))
}
