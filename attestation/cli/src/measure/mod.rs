//! `measure`: what a launch will be measured as.

mod corim;
pub mod tdx;

use std::path::PathBuf;

use anyhow::{Context, bail};
use clap::{Subcommand, ValueEnum};
use cloister_attestation::corim::Reference;
use cloister_attestation::measure::KernelHashes;
use cloister_attestation::measure::sev::{sev_digest, sev_es_digest};
use cloister_attestation::measure::snp::{
    CPU_MODELS, InputDigests, LaunchInputs, LaunchPlan, LaunchTranscript, ReferenceValue, Rom, VcpuModel,
    VmmFlavour,
};
use serde::Serialize;

use crate::{output, parse_hex, read};

/// CPUID Fn0000_0001_EAX of the machine that the emulator emulates: an EPYC of the Genoa family.
const DEFAULT_CPU: VcpuModel = VcpuModel(0x00a1_0f11);

#[derive(Debug, Subcommand)]
pub enum Measure {
    /// Launch digest of an SEV-SNP guest
    Snp(Args),
    /// Launch digest of an SEV-ES guest
    SevEs(Args),
    /// Launch digest of a plain SEV guest
    Sev(Args),
    /// MRTD and RTMRs of a TDX guest
    Tdx(tdx::Args),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Vmm {
    Cloister,
    Qemu,
    Ec2,
    Gce,
}

impl From<Vmm> for VmmFlavour {
    fn from(vmm: Vmm) -> Self {
        match vmm {
            Vmm::Cloister => Self::Cloister,
            Vmm::Qemu => Self::Qemu,
            Vmm::Ec2 => Self::Ec2,
            Vmm::Gce => Self::Gce,
        }
    }
}

/// What a guest is started from, beside the firmware.
#[derive(Debug, clap::Args)]
#[group(id = "guest_options")]
pub struct Guest {
    /// Kernel that the firmware loads
    #[arg(long, value_name = "FILE")]
    kernel: Option<PathBuf>,
    /// Initial RAM disk
    #[arg(long, value_name = "FILE", requires = "kernel")]
    initrd: Option<PathBuf>,
    /// Kernel command line
    #[arg(long, value_name = "TEXT", requires = "kernel")]
    cmdline: Option<String>,
    /// Number of virtual processors
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=4096))]
    cpus: u32,
}

/// Kernel and initrd, read.
#[derive(Debug, Default)]
pub struct KernelFiles<'a> {
    pub kernel: Option<Vec<u8>>,
    pub initrd: Option<Vec<u8>>,
    pub cmdline: &'a str,
}

impl Guest {
    /// Reads the files.
    pub fn read(&self) -> anyhow::Result<KernelFiles<'_>> {
        let file = |path: &Option<PathBuf>| path.as_deref().map(read).transpose();
        let cmdline = self.cmdline.as_deref().unwrap_or_default();
        Ok(KernelFiles { kernel: file(&self.kernel)?, initrd: file(&self.initrd)?, cmdline })
    }
}

/// What decides a launch digest beside the firmware.
#[derive(Debug, clap::Args)]
#[group(id = "launch_options")]
pub struct Launch {
    #[command(flatten)]
    pub guest: Guest,
    /// Processor model by QEMU's name, such as EPYC-Milan
    #[arg(long, value_name = "MODEL", conflicts_with = "cpu_sig")]
    cpu_model: Option<String>,
    /// Processor signature (CPUID Fn0000_0001_EAX); a10f11 if neither is given
    #[arg(long, value_name = "HEX", value_parser = parse_hex)]
    cpu_sig: Option<u64>,
    /// SEV_FEATURES of the processors
    #[arg(long, value_name = "HEX", default_value = "0x1", value_parser = parse_hex)]
    guest_features: u64,
    /// The VMM that launches the guest
    #[arg(long, value_enum, default_value = "cloister")]
    vmm: Vmm,
}

#[derive(Debug, clap::Args)]
pub struct Args {
    /// Firmware ROM
    #[arg(long, value_name = "ROM")]
    firmware: PathBuf,
    #[command(flatten)]
    launch: Launch,
    #[command(flatten)]
    results: Results,
}

/// What to do with a measurement.
#[derive(Debug, clap::Args)]
#[group(id = "measure_options")]
struct Results {
    #[command(flatten)]
    corim: corim::Args,
    /// Print the reference value that a key broker reads
    #[arg(long)]
    json: bool,
    /// Write every range of the launch here, as `cloister run --transcript` does and `explain --transcript` reads
    #[arg(long, value_name = "FILE")]
    transcript: Option<PathBuf>,
}

impl Results {
    /// Writes what was asked for, and prints the reference value.
    fn write<T: Serialize>(
        &self,
        transcript: impl FnOnce() -> T,
        reference: impl FnOnce() -> Reference,
        value: &impl Serialize,
    ) -> anyhow::Result<()> {
        if let Some(path) = &self.transcript {
            output::write_document(path, &transcript())?;
        }
        corim::write(&self.corim, reference)?;
        output::print(value, self.json)
    }
}

/// The result for the TEEs before SNP.
#[derive(Serialize)]
struct SevValue {
    version: u32,
    tee: &'static str,
    measurement: String,
    inputs: InputDigests,
}

pub fn run(measure: &Measure) -> anyhow::Result<()> {
    let (args, tee) = match measure {
        Measure::Snp(args) => (args, "snp"),
        Measure::SevEs(args) => (args, "sev-es"),
        Measure::Sev(args) => (args, "sev"),
        Measure::Tdx(args) => return tdx::run(args),
    };
    let firmware = read(&args.firmware)?;
    let rom = Rom::parse(&firmware).with_context(|| format!("{} is unusable", args.firmware.display()))?;
    let inputs = inputs(&args.launch, &rom)?;
    let kernel = inputs.kernel.as_ref();
    let digest = match tee {
        "snp" => return snp(args, &inputs),
        _ if args.results.corim.is_given() => bail!("a CoRIM is made for SNP and TDX only"),
        _ if args.results.transcript.is_some() => bail!("a launch transcript is made for SNP and TDX only"),
        "sev-es" => sev_es_digest(&rom, kernel, inputs.vcpus, inputs.cpu, inputs.flavour),
        _ => sev_digest(&rom, kernel),
    };
    let measurement = hex::encode(digest.context("this launch cannot be measured")?);
    let value = SevValue { version: 1, tee, measurement, inputs: InputDigests::new(&inputs) };
    output::print(&value, args.results.json)
}

fn snp(args: &Args, inputs: &LaunchInputs<'_>) -> anyhow::Result<()> {
    let plan = LaunchPlan::new(inputs).context("this launch cannot be measured")?;
    args.results.write(
        || LaunchTranscript::new(inputs, &plan, None),
        || Reference::Snp(plan.digest().0),
        &ReferenceValue::new(inputs, &plan),
    )
}

pub fn inputs<'a>(args: &Launch, rom: &'a Rom<'a>) -> anyhow::Result<LaunchInputs<'a>> {
    let KernelFiles { kernel, initrd, cmdline } = args.guest.read()?;
    let kernel = kernel.map(|kernel| KernelHashes::of(&kernel, initrd.as_deref(), cmdline));
    Ok(LaunchInputs {
        rom,
        kernel,
        vcpus: args.guest.cpus,
        cpu: cpu(args)?,
        sev_features: args.guest_features,
        flavour: args.vmm.into(),
    })
}

fn cpu(args: &Launch) -> anyhow::Result<VcpuModel> {
    match (&args.cpu_model, args.cpu_sig) {
        (Some(name), _) => VcpuModel::by_name(name).with_context(|| {
            let names: Vec<_> = CPU_MODELS.iter().map(|(name, _)| *name).collect();
            format!(
                "processor model {name} is not known; known are {}; --cpu-sig takes any",
                names.join(", ")
            )
        }),
        (None, Some(signature)) => {
            Ok(VcpuModel(u32::try_from(signature).context("a processor signature has 32 bits")?))
        }
        (None, None) => Ok(DEFAULT_CPU),
    }
}
