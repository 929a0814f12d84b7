//! `measure snp`: the launch digest of an SEV-SNP guest, or one for each number of processors.

use std::path::{Path, PathBuf};

use anyhow::Context;
use clap::ValueEnum;
use cloister_attestation::corim::Reference;
use cloister_attestation::measure::KernelHashes;
use cloister_attestation::measure::snp::{
    CPU_MODELS, LaunchInputs, LaunchPlan, LaunchTranscript, ReferenceValue, Rom, VcpuModel, VmmFlavour,
};

use super::{Guest, KernelFiles, Results};
use crate::{input, parse_hex};

/// CPUID Fn0000_0001_EAX of the machine that the emulator emulates: an EPYC of the Genoa family.
const DEFAULT_CPU: VcpuModel = VcpuModel(0x00a1_0f11);

/// What is said of launches that have no plan, before why.
pub const IMPOSSIBLE: &str = "this launch cannot be measured";

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Vmm {
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

/// The virtual processors' model.
#[derive(Debug, clap::Args)]
#[group(id = "processor_options")]
pub struct Processor {
    /// Processor model by QEMU's name, such as EPYC-Milan
    #[arg(long, value_name = "MODEL", conflicts_with = "cpu_sig")]
    cpu_model: Option<String>,
    /// Processor signature (CPUID Fn0000_0001_EAX); a10f11 if neither is given
    #[arg(long, value_name = "HEX", value_parser = parse_hex)]
    cpu_sig: Option<u64>,
}

/// What decides a launch digest beside the firmware.
#[derive(Debug, clap::Args)]
#[group(id = "launch_options")]
pub struct Launch {
    #[command(flatten)]
    pub guest: Guest,
    #[command(flatten)]
    processor: Processor,
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

pub fn run(args: &Args) -> anyhow::Result<()> {
    let counts = args.launch.guest.cpus;
    args.launch.plan(&args.firmware, |inputs, plan| {
        let values = ReferenceValue::by_vcpus(inputs, plan, counts.all());
        let references = || {
            let digests = (1..).zip(plan.digests()).filter(|(cpus, _)| counts.all().contains(cpus));
            digests.map(|(_, digest)| Reference::Snp(digest.0)).collect()
        };
        args.results.write(counts, || LaunchTranscript::new(inputs, plan, None), references, &values)
    })
}

impl Launch {
    /// Plans the launch of a ROM, with as many processors as are asked for at most, and does something with the plan.
    pub fn plan<T>(
        &self,
        firmware: &Path,
        then: impl FnOnce(&LaunchInputs<'_>, &LaunchPlan<'_>) -> anyhow::Result<T>,
    ) -> anyhow::Result<T> {
        let bytes = input::read(firmware, input::FIRMWARE)?;
        let rom = Rom::parse(&bytes).with_context(|| format!("{} is unusable", firmware.display()))?;
        let KernelFiles { kernel, initrd, cmdline } = self.guest.kernel.read()?;
        if let Some(warning) = self.processor.warning(self.vmm)? {
            eprintln!("cloister-attest: {warning}");
        }
        let inputs = LaunchInputs {
            rom: &rom,
            kernel: kernel.map(|kernel| KernelHashes::of(&kernel, initrd.as_deref(), cmdline)),
            vcpus: self.guest.cpus.most(),
            cpu: self.processor.model()?,
            sev_features: self.guest_features,
            flavour: self.vmm.into(),
        };
        let plan = LaunchPlan::new(&inputs).context(IMPOSSIBLE)?;
        then(&inputs, &plan)
    }
}

impl Processor {
    /// A model's name is one stepping, and `cloister` gives its guests the processor that there is.
    fn warning(&self, vmm: Vmm) -> anyhow::Result<Option<String>> {
        let (Vmm::Cloister, Some(name)) = (vmm, &self.cpu_model) else { return Ok(None) };
        Ok(Some(format!(
            "warning: --cpu-model {name} is {:#x}, QEMU's processor of that name; cloister's guests see the host's own (softkvm's \
             is 0xa10f11), which --cpu-sig gives: CPUID Fn0000_0001_EAX",
            self.model()?.0
        )))
    }

    /// The signature.
    pub fn model(&self) -> anyhow::Result<VcpuModel> {
        match (&self.cpu_model, self.cpu_sig) {
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
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_model_s_name_is_no_host_s_processor() {
        let named = Processor { cpu_model: Some("EPYC-Genoa".into()), cpu_sig: None };
        let warning = named.warning(Vmm::Cloister).unwrap().unwrap_or_default();
        assert!(warning.contains("is 0xa10f10") && warning.contains("0xa10f11"), "{warning}");
        assert_eq!(named.warning(Vmm::Qemu).unwrap(), None);
        let exact = Processor { cpu_model: None, cpu_sig: Some(0xa1_0f11) };
        assert_eq!(exact.warning(Vmm::Cloister).unwrap(), None);
    }
}
