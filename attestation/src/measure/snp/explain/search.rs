//! Which variation of the inputs is measured as a given digest.
//!
//! What goes wrong in practice is small: another number or model of processors, SEV_FEATURES of another kernel, another
//! VMM's reset state, a command line with a newline. All combinations of these that make sense are few enough to try.

use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;

use super::Alternative;
use crate::measure::snp::digest::DigestChain;
use crate::measure::snp::plan::{LaunchInputs, LaunchPlan};
use crate::measure::snp::{CPU_MODELS, PageType, VcpuModel, VmmFlavour, Vmsa};

/// More processors than are tried.
const MAX_VCPUS: u32 = 256;
/// SEV_FEATURES that kernels have given VMSAs: SNP alone; with DebugSwap (Linux 6.6 to 6.8); with restricted or
/// alternate injection; with VMSA register protection; with secure TSC.
const SEV_FEATURES: &[u64] = &[0x1, 0x21, 0x9, 0x11, 0x29, 0x4001, 0x201, 0x221];

/// Processors as they are rather than as QEMU's models name them: hosts that pass CPUID through give guests the signature
/// of the chip. After linux-firmware's list of microcode patches (amd-ucode/README, by family, model and stepping) and, for
/// family 1Ah, `need_sha_check` of Linux (arch/x86/kernel/cpu/microcode/amd.c).
const CHIPS: &[VcpuModel] = &[
    // Milan, Milan-X.
    VcpuModel(0x00a0_0f10),
    VcpuModel(0x00a0_0f11),
    VcpuModel(0x00a0_0f12),
    // Genoa (the processor that softkvm emulates, and the CLI's default), Genoa-X.
    VcpuModel(0x00a1_0f11),
    VcpuModel(0x00a1_0f12),
    // Bergamo, Siena.
    VcpuModel(0x00aa_0f01),
    VcpuModel(0x00aa_0f02),
    // Turin, Turin Dense.
    VcpuModel(0x00b0_0f21),
    VcpuModel(0x00b1_0f10),
];

/// Variations whose launch digest is `digest`, described by what differs.
pub(super) fn search(
    inputs: &LaunchInputs<'_>,
    alternatives: &[Alternative],
    digest: &[u8; 48],
) -> Vec<String> {
    let mut found = Vec::new();
    let others = VmmFlavour::ALL.iter().map(|&(_, flavour)| flavour).filter(|other| *other != inputs.flavour);
    for flavour in core::iter::once(inputs.flavour).chain(others) {
        // Flavours that share a reset state give the same digests: the first says enough.
        if !found.is_empty() {
            break;
        }
        let varied = LaunchInputs { flavour, ..inputs.clone() };
        found.extend(search_vcpus(inputs, &varied, digest, None));
        // One that hashes as what was given (an empty initrd is none) would be a false cause.
        for alternative in alternatives.iter().filter(|alternative| alternative.kernel != inputs.kernel) {
            let varied = LaunchInputs { kernel: alternative.kernel, ..varied.clone() };
            found.extend(search_vcpus(inputs, &varied, digest, Some(&alternative.description)));
        }
    }
    found
}

/// Tries all processors of the launch `varied`, whose pages before the VMSAs are hashed once.
fn search_vcpus(
    inputs: &LaunchInputs<'_>,
    varied: &LaunchInputs<'_>,
    digest: &[u8; 48],
    kernel: Option<&str>,
) -> Vec<String> {
    let mut found = Vec::new();
    let Ok(plan) = LaunchPlan::new(&LaunchInputs { vcpus: 1, ..varied.clone() }) else { return found };
    let before = plan.chain_before_vmsas();
    for cpu in cpus(inputs.cpu) {
        for features in core::iter::once(inputs.sev_features).chain(SEV_FEATURES.iter().copied()) {
            let varied = LaunchInputs { cpu, sev_features: features, ..varied.clone() };
            let mut chain = before.clone();
            chain.page(PageType::Vmsa, Vmsa::GPA, Some(varied.bsp().as_page()));
            let ap = varied.ap().map(|vmsa| DigestChain::contents(vmsa.as_page()));
            for vcpus in 1..=MAX_VCPUS {
                if chain.value().0 == *digest {
                    let launch = LaunchInputs { vcpus, ..varied.clone() };
                    let description = describe(inputs, &launch, kernel);
                    if !found.contains(&description) {
                        found.push(description);
                    }
                }
                let Some(ap) = ap else { break };
                chain.page_with_digest(PageType::Vmsa, Vmsa::GPA, ap);
            }
        }
    }
    found
}

/// The given processor first, then each model and each chip once.
fn cpus(given: VcpuModel) -> Vec<VcpuModel> {
    let mut cpus = Vec::from([given]);
    for model in CPU_MODELS.iter().map(|&(_, model)| model).chain(CHIPS.iter().copied()) {
        if !cpus.contains(&model) {
            cpus.push(model);
        }
    }
    cpus
}

fn describe(inputs: &LaunchInputs<'_>, found: &LaunchInputs<'_>, kernel: Option<&str>) -> String {
    let mut parts = Vec::new();
    parts.extend(kernel.map(String::from));
    if found.vcpus != inputs.vcpus {
        parts.push(format!("{} vCPUs instead of {}", found.vcpus, inputs.vcpus));
    }
    if found.cpu != inputs.cpu {
        parts.push(format!("processor signature {:#x} instead of {:#x}", found.cpu.0, inputs.cpu.0));
    }
    if found.sev_features != inputs.sev_features {
        parts.push(format!("SEV_FEATURES {:#x} instead of {:#x}", found.sev_features, inputs.sev_features));
    }
    if found.flavour != inputs.flavour {
        parts.push(format!("launched by {} instead of {}", found.flavour.name(), inputs.flavour.name()));
    }
    match parts.is_empty() {
        true => String::from("the inputs as given"),
        false => format!("the inputs with {}", parts.join(", ")),
    }
}
