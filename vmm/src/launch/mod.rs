//! From nothing to a guest that is about to execute its first instruction.
//!
//! All kinds of guest boot the same ROM from the reset vector. A plain guest is done once its memory holds the
//! ROM; a confidential one goes through the typestate of [`snp`] or [`tdx`].

mod confidential;
mod cpuid;
mod cpuid_page;
mod plain;
mod reset;
pub mod sev;
pub mod snp;
pub mod tdx;

use std::io::Write;
use std::path::PathBuf;
use std::sync::Arc;

use cloister_attestation::measure::snp::{PlanError, RomError};
use cloister_attestation::measure::tdx::{PlanError as TdxPlanError, TdvfError};
use kvm_bindings::{
    CpuId, KVM_API_VERSION, KVM_CAP_SPLIT_IRQCHIP, KVM_CAP_X2APIC_API,
    KVM_X2APIC_API_DISABLE_BROADCAST_QUIRK, KVM_X2APIC_API_USE_32BIT_IDS, kvm_enable_cap,
};
use kvm_ioctls::{Cap, Kvm, VcpuFd, VmFd};
use serde::Serialize;

use crate::config::{Tee, VmConfig};
use crate::devices::ioapic;
use crate::memory::{Converter, DeviceMemory, MemoryError, PrivateSlot, Ram};
use crate::output::file::OutputFile;
use sev::SevError;
use tdx::TdxError;

/// The ROM comes first: slot 0, or as many as a confidential guest has ranges of it. RAM follows.
const ROM_SLOT: u32 = 0;
/// Of a plain guest.
const RAM_SLOT: u32 = 1;

/// Why there is no guest.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs)]
pub enum LaunchError {
    #[error("/dev/kvm: {0}; is KVM there, and may this user open it?")]
    NoKvm(kvm_ioctls::Error),
    #[error("/dev/kvm speaks API version {0} instead of {KVM_API_VERSION}")]
    ApiVersion(i32),
    #[error("this host's KVM lacks {0}")]
    Missing(&'static str),
    #[error(
        "--tee auto: this host can launch no confidential guest: SEV-SNP needs {snp}; TDX needs {tdx}; \
         --tee none launches a guest that its host can look into"
    )]
    NotConfidential { snp: String, tdx: &'static str },
    #[error("{cpus} CPUs are more than this host's KVM supports ({max})")]
    TooManyCpus { cpus: u32, max: usize },
    #[error("{call}: {source}")]
    Kvm { call: &'static str, source: kvm_ioctls::Error },
    #[error("KVM_SET_MSRS: MSR {index:#x} (a memory type) is refused; MTRRs are part of KVM's processor")]
    MemoryType { index: u32 },
    #[error(transparent)]
    Memory(#[from] MemoryError),
    #[error("/dev/sev: {0}; SEV-SNP needs the secure processor's driver (ccp)")]
    NoSev(std::io::Error),
    #[error(
        "SEV_FEATURES {wanted:#x} of the VMSAs: this host's KVM has {supported:#x} \
         (KVM_X86_SEV_VMSA_FEATURES); launch without --restricted-injection"
    )]
    VmsaFeatures { wanted: u64, supported: u64 },
    #[error("firmware: {0}")]
    Rom(#[from] RomError),
    #[error(transparent)]
    Plan(#[from] PlanError),
    #[error(transparent)]
    Sev(#[from] SevError),
    #[error("guest memory {gpa:#x}, page type {type_}: {source}")]
    Update { gpa: u64, type_: u8, source: SevError },
    #[error("firmware: {0}")]
    Tdvf(#[from] TdvfError),
    #[error(transparent)]
    TdxPlan(#[from] TdxPlanError),
    #[error(transparent)]
    Tdx(#[from] TdxError),
    #[error("guest memory {gpa:#x}: {source}")]
    AddPage { gpa: u64, source: TdxError },
    #[error("--tdx-attributes: this host's TDX module does not support {unsupported:#x}")]
    TdAttributes { unsupported: u64 },
    #[error("the launch of guest memory {gpa:#x} ended somewhere else")]
    NoProgress { gpa: u64 },
    #[error("the firmware wants {len:#x} bytes at {gpa:#x} measured, where the guest has no memory")]
    PlanOutsideRam { gpa: u64, len: u64 },
    #[error("KVM's CPUID has more leaves than the {max} that an SNP CPUID page holds")]
    CpuidTooLong { max: usize },
    #[error("the secure processor refused the CPUID page: {differences}")]
    CpuidRefused { differences: String },
    #[error("transcript {}: {source}", path.display())]
    Transcript { path: PathBuf, source: std::io::Error },
}

/// Names the call in the error of a KVM ioctl.
trait Call<T> {
    fn call(self, call: &'static str) -> Result<T, LaunchError>;
}

impl<T> Call<T> for Result<T, kvm_ioctls::Error> {
    fn call(self, call: &'static str) -> Result<T, LaunchError> {
        self.map_err(|source| LaunchError::Kvm { call, source })
    }
}

/// A guest whose vCPUs can run.
pub struct Guest {
    /// The VM.
    pub vm: Arc<VmFd>,
    /// In the order of their APIC identifiers.
    pub vcpus: Vec<VcpuFd>,
    /// What devices may touch.
    pub memory: DeviceMemory,
    /// Of a confidential guest.
    pub converter: Option<Arc<Converter>>,
    /// What must live as long as a vCPU runs.
    pub backing: Backing,
}

/// The memory behind the ROM's slots.
pub struct Backing {
    _rom: Ram,
    /// And its private side.
    _rom_slots: Vec<PrivateSlot>,
}

/// Opens `/dev/kvm`.
pub fn open_kvm() -> Result<Kvm, LaunchError> {
    let kvm = Kvm::new().map_err(LaunchError::NoKvm)?;
    match kvm.get_api_version() {
        version if version == KVM_API_VERSION as i32 => Ok(kvm),
        version => Err(LaunchError::ApiVersion(version)),
    }
}

/// What every kind of guest needs of KVM, in words for an operator.
pub const REQUIRED: &[(Cap, &str)] = &[
    (Cap::UserMemory, "user memory slots (KVM_CAP_USER_MEMORY)"),
    (Cap::SplitIrqchip, "a split interrupt controller (KVM_CAP_SPLIT_IRQCHIP)"),
    (Cap::SignalMsi, "message-signalled interrupts (KVM_CAP_SIGNAL_MSI)"),
    (Cap::Ioeventfd, "ioeventfd (KVM_CAP_IOEVENTFD)"),
    (Cap::ImmediateExit, "immediate exit (KVM_CAP_IMMEDIATE_EXIT)"),
    (Cap::ExtCpuid, "CPUID control (KVM_CAP_EXT_CPUID)"),
];

/// A capability, the bits of it that are needed, and words for an operator.
type Requirement = (u32, u64, &'static str);

/// KVM_HC_MAP_GPA_RANGE, as a bit of KVM_CAP_EXIT_HYPERCALL.
const EXIT_MAP_GPA_RANGE: u64 = 1 << 12;

/// The first of `requirements` that KVM does not meet.
fn missing_of(kvm: &Kvm, requirements: &[Requirement]) -> Option<&'static str> {
    let lacks = |capability: u32, bits: u64| {
        let value = kvm.check_extension_raw(u64::from(capability));
        u64::try_from(value).unwrap_or(0) & bits == 0
    };
    requirements.iter().find(|(capability, bits, _)| lacks(*capability, *bits)).map(|(_, _, words)| *words)
}

/// Writes a transcript, which stays whatever becomes of the launch.
fn write_json(to: &mut OutputFile, transcript: &impl Serialize) -> Result<(), LaunchError> {
    to.keep();
    let json = serde_json::to_string_pretty(transcript).map_err(std::io::Error::other);
    let written = json.and_then(|json| to.file()?.write_all((json + "\n").as_bytes()));
    written.map_err(|source| LaunchError::Transcript { path: to.path().to_owned(), source })
}

/// Drops the shared side of pages that the guest was just given: it held their plaintext.
fn discard(host: *mut u8, len: usize) -> Result<(), LaunchError> {
    // SAFETY: the range is part of a private anonymous mapping to which no Rust reference exists.
    match unsafe { libc::madvise(host.cast(), len, libc::MADV_DONTNEED) } {
        0 => Ok(()),
        _ => Err(MemoryError::Map { reason: format!("madvise: {}", std::io::Error::last_os_error()) }.into()),
    }
}

/// Launches a guest of `kind` that `config` describes; of a confidential one, what was measured is written to `transcript`.
pub fn launch(
    kvm: &Kvm,
    kind: Kind,
    config: &VmConfig,
    transcript: Option<&mut OutputFile>,
) -> Result<Guest, LaunchError> {
    for (capability, words) in REQUIRED {
        kvm.check_extension(*capability).then_some(()).ok_or(LaunchError::Missing(words))?;
    }
    let max = kvm.get_max_vcpus();
    if config.cpus as usize > max {
        return Err(LaunchError::TooManyCpus { cpus: config.cpus, max });
    }
    match kind {
        Kind::Plain => plain::launch(kvm, config),
        Kind::Snp => snp::launch(kvm, config, transcript),
        Kind::Tdx => tdx::launch(kvm, config, transcript),
    }
}

/// What a guest is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Not confidential.
    Plain,
    /// An SEV-SNP guest.
    Snp,
    /// A TD.
    Tdx,
}

impl std::fmt::Display for Kind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Plain => "no TEE",
            Self::Snp => "SEV-SNP",
            Self::Tdx => "TDX",
        })
    }
}

/// What `tee` means on this host. Only who asks for a plain guest gets one.
pub fn choose(kvm: &Kvm, tee: Tee) -> Result<Kind, LaunchError> {
    match tee {
        Tee::None => Ok(Kind::Plain),
        Tee::Snp => Ok(Kind::Snp),
        Tee::Tdx => Ok(Kind::Tdx),
        Tee::Auto => {
            let no_snp = snp::missing(kvm).map(str::to_owned);
            let no_snp = no_snp.or_else(|| snp::open_sev().err().map(|error| error.to_string()));
            choose_tee(no_snp, tdx::missing(kvm))
        }
    }
}

/// One of the two, by what the host lacks for each.
fn choose_tee(no_snp: Option<String>, no_tdx: Option<&'static str>) -> Result<Kind, LaunchError> {
    match (no_snp, no_tdx) {
        (None, _) => Ok(Kind::Snp),
        (_, None) => Ok(Kind::Tdx),
        (Some(snp), Some(tdx)) => Err(LaunchError::NotConfidential { snp, tdx }),
    }
}

/// A VM of `vm_type` with its local APICs in KVM and its I/O APIC here.
fn create_vm(kvm: &Kvm, vm_type: u64) -> Result<VmFd, LaunchError> {
    let vm = kvm.create_vm_with_type(vm_type).call("KVM_CREATE_VM")?;
    enable(&vm, KVM_CAP_SPLIT_IRQCHIP, ioapic::PINS as u64, "KVM_ENABLE_CAP(SPLIT_IRQCHIP)")?;
    let x2apic = KVM_X2APIC_API_USE_32BIT_IDS | KVM_X2APIC_API_DISABLE_BROADCAST_QUIRK;
    enable(&vm, KVM_CAP_X2APIC_API, u64::from(x2apic), "KVM_ENABLE_CAP(X2APIC_API)")?;
    Ok(vm)
}

fn enable(vm: &VmFd, cap: u32, value: u64, call: &'static str) -> Result<(), LaunchError> {
    let mut capability = kvm_enable_cap { cap, ..Default::default() };
    capability.args[0] = value;
    vm.enable_cap(&capability).call(call)
}

/// The next of `cpus` vCPUs with its CPUID, and the processor's signature in that.
fn create_vcpu(
    vm: &VmFd,
    supported: &CpuId,
    (index, cpus): (u32, u32),
    masks: cpuid::Masks,
) -> Result<(VcpuFd, u32), LaunchError> {
    let vcpu = vm.create_vcpu(u64::from(index)).call("KVM_CREATE_VCPU")?;
    let cpuid = cpuid::for_vcpu(supported, index, cpus, masks)?;
    vcpu.set_cpuid2(&cpuid).call("KVM_SET_CPUID2")?;
    // A TD's private memory is write-back whatever they say, and Linux there must not be tempted to change them.
    if !matches!(masks, cpuid::Masks::Td) {
        reset::set_memory_types(&vcpu, &cpuid)?;
    }
    Ok((vcpu, cpuid::signature(&cpuid)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whoever_leaves_the_kind_open_gets_a_confidential_guest_or_none() {
        let lacks = |what: &str| Some(what.to_owned());
        assert_eq!(choose_tee(None, Some("a module")).unwrap(), Kind::Snp);
        assert_eq!(choose_tee(lacks("a chip"), None).unwrap(), Kind::Tdx);
        assert_eq!(choose_tee(None, None).unwrap(), Kind::Snp);
        let refusal = choose_tee(lacks("a chip"), Some("a module")).unwrap_err().to_string();
        for word in ["a chip", "a module", "--tee none"] {
            assert!(refusal.contains(word), "{refusal}");
        }
    }
}
