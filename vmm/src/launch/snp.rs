//! The launch of an SEV-SNP guest, as a typestate: `New → Started → Measured`, then a [`Guest`].
//!
//! Each step consumes the one before it, so that no command can be issued out of order. What is measured is
//! [`LaunchPlan`]'s page commands and nothing else, in their order.

use std::fs::File;

use cloister_attestation::measure::KernelHashes;
use cloister_attestation::measure::snp::{
    Contents, LaunchInputs, LaunchPlan, LaunchTranscript, PageCommand, PageType, RESTRICTED_INJECTION, Rom,
    VcpuModel, VmmFlavour,
};
use kvm_bindings::{
    KVM_CAP_EXIT_HYPERCALL, KVM_CAP_GUEST_MEMFD, KVM_CAP_MEMORY_ATTRIBUTES, KVM_CAP_VM_TYPES,
    KVM_MAX_CPUID_ENTRIES, KVM_MEMORY_ATTRIBUTE_PRIVATE, KVM_X86_SNP_VM, kvm_sev_init,
    kvm_sev_snp_launch_finish, kvm_sev_snp_launch_start, kvm_sev_snp_launch_update, sev_cmd_id_KVM_SEV_INIT2,
    sev_cmd_id_KVM_SEV_SNP_LAUNCH_FINISH, sev_cmd_id_KVM_SEV_SNP_LAUNCH_START,
    sev_cmd_id_KVM_SEV_SNP_LAUNCH_UPDATE,
};
use kvm_ioctls::Kvm;
use zerocopy::IntoBytes;

use super::confidential::Confidential;
use super::cpuid_page::CpuidPage;
use super::sev::{self, SevError};
use super::{
    Call, EXIT_MAP_GPA_RANGE, Guest, LaunchError, Requirement, cpuid, create_vcpu, create_vm, enable,
    missing_of, reset, write_json,
};
use crate::config::{IdBlock, VmConfig};
use crate::hostile::Hostile;
use crate::layout::PAGE_SIZE;
use crate::output::file::OutputFile;

/// SEV_FEATURES of the VMSAs that KVM makes without further ones: SNP itself.
const SEV_FEATURES: u64 = 1;

/// What an SNP guest needs of KVM beside [`super::REQUIRED`], in words for an operator.
pub const REQUIRED: &[Requirement] = &[
    (
        KVM_CAP_VM_TYPES,
        1 << KVM_X86_SNP_VM,
        "SEV-SNP guests (KVM_X86_SNP_VM; see kvm_amd's parameter sev_snp)",
    ),
    (KVM_CAP_GUEST_MEMFD, 1, "private guest memory (KVM_CAP_GUEST_MEMFD)"),
    (KVM_CAP_EXIT_HYPERCALL, EXIT_MAP_GPA_RANGE, "page conversions (KVM_CAP_EXIT_HYPERCALL)"),
];

/// The first thing that this host lacks for SNP guests.
pub fn missing(kvm: &Kvm) -> Option<&'static str> {
    missing_of(kvm, REQUIRED)
}

/// Opens the secure processor's device.
pub fn open_sev() -> Result<File, LaunchError> {
    File::options().read(true).write(true).open(sev::SEV_DEVICE).map_err(LaunchError::NoSev)
}

/// The whole launch.
pub(super) fn launch(
    kvm: &Kvm,
    config: &VmConfig,
    transcript: Option<&mut OutputFile>,
) -> Result<Guest, LaunchError> {
    let rom = Rom::parse(&config.firmware)?;
    let features = vmsa_features(kvm, config.restricted_injection)?;
    let launch = Launch::<New>::create(kvm, config, (&rom, features))?;
    let kernel = config.kernel.as_ref();
    let inputs = LaunchInputs {
        rom: &rom,
        kernel: kernel.map(|k| KernelHashes::of(&k.image, k.initrd.as_deref(), &k.cmdline)),
        vcpus: config.cpus,
        cpu: launch.state.cpu,
        sev_features: SEV_FEATURES | features,
        flavour: VmmFlavour::Cloister,
    };
    let plan = LaunchPlan::new(&inputs)?;
    if let Some(file) = transcript {
        // Before the launch: where the secure processor refuses, this says what it was given.
        write_json(file, &LaunchTranscript::new(&inputs, &plan, Some(config.snp_policy)))?;
    }
    let launch = launch.start(config.snp_policy)?;
    let launch = launch.measure(&plan, config.hostile)?;
    launch.finish(config.id_block.as_ref(), &config.host_data)
}

/// The VMSAs' features beside SNP itself, if this host's KVM has what is asked for.
fn vmsa_features(kvm: &Kvm, restricted_injection: bool) -> Result<u64, LaunchError> {
    let wanted = if restricted_injection { RESTRICTED_INJECTION } else { 0 };
    let supported = if wanted == 0 { 0 } else { sev::vmsa_features(kvm) };
    if wanted & !supported == 0 { Ok(wanted) } else { Err(LaunchError::VmsaFeatures { wanted, supported }) }
}

/// There is a VM with memory and vCPUs, nothing of it is encrypted.
pub struct New {
    cpu: VcpuModel,
}

/// SNP_LAUNCH_START is done: the guest has a key.
pub struct Started;

/// Every page of the plan is in.
pub struct Measured;

/// A launch in one of its states.
pub struct Launch<S> {
    guest: Confidential,
    sev: File,
    state: S,
}

impl<S> Launch<S> {
    fn become_state<T>(self, state: T) -> Launch<T> {
        Launch { guest: self.guest, sev: self.sev, state }
    }
}

impl Launch<New> {
    /// Makes VM, memory and vCPUs.
    fn create(
        kvm: &Kvm,
        config: &VmConfig,
        (rom, vmsa_features): (&Rom<'_>, u64),
    ) -> Result<Self, LaunchError> {
        missing(kvm).map_or(Ok(()), |words| Err(LaunchError::Missing(words)))?;
        let sev = open_sev()?;
        let vm = create_vm(kvm, u64::from(KVM_X86_SNP_VM))?;
        enable(&vm, KVM_CAP_EXIT_HYPERCALL, EXIT_MAP_GPA_RANGE, "KVM_ENABLE_CAP(EXIT_HYPERCALL)")?;
        let mut init = kvm_sev_init { vmsa_features, ..Default::default() };
        // SAFETY: the structure is the command's and holds no addresses.
        unsafe { sev::command(&vm, &sev, (sev_cmd_id_KVM_SEV_INIT2, "KVM_SEV_INIT2"), &mut init) }?;
        let attributes = vm.check_extension_raw(u64::from(KVM_CAP_MEMORY_ATTRIBUTES));
        if attributes as u32 & KVM_MEMORY_ATTRIBUTE_PRIVATE == 0 {
            return Err(LaunchError::Missing("private memory attributes (KVM_CAP_MEMORY_ATTRIBUTES)"));
        }
        let base = rom.gpa().0;
        let rom_range = base..base + rom.bytes().len() as u64;
        let mut guest = Confidential::new(vm, std::slice::from_ref(&rom_range), config.memory)?;
        guest.plant(config.hostile);
        let cpu = create_vcpus(kvm, &mut guest, config.cpus, rom)?;
        Ok(Self { guest, sev, state: New { cpu } })
    }

    /// SNP_LAUNCH_START.
    fn start(self, policy: u64) -> Result<Launch<Started>, LaunchError> {
        let mut start = kvm_sev_snp_launch_start { policy, ..Default::default() };
        let id = (sev_cmd_id_KVM_SEV_SNP_LAUNCH_START, "SNP_LAUNCH_START");
        // SAFETY: the structure is the command's and holds no addresses.
        unsafe { sev::command(&self.guest.vm, &self.sev, id, &mut start) }?;
        Ok(self.become_state(Started))
    }
}

/// The vCPUs in the state that their VMSAs are made of.
fn create_vcpus(
    kvm: &Kvm,
    guest: &mut Confidential,
    cpus: u32,
    rom: &Rom<'_>,
) -> Result<VcpuModel, LaunchError> {
    let supported = cpuid::supported(kvm)?;
    let mut model = VcpuModel(0);
    for index in 0..cpus {
        let (vcpu, signature) = create_vcpu(&guest.vm, &supported, (index, cpus), cpuid::Masks::Snp)?;
        // A ROM without a reset block has one vCPU; the plan says so before this matters.
        let eip =
            if index == 0 { reset::RESET_VECTOR } else { rom.ap_reset_eip().unwrap_or(reset::RESET_VECTOR) };
        reset::set_reset_state(&vcpu, eip, signature)?;
        guest.vcpus.push(vcpu);
        model = VcpuModel(signature);
    }
    Ok(model)
}

impl Launch<Started> {
    /// Executes the plan's page commands in their order.
    fn measure(
        self,
        plan: &LaunchPlan<'_>,
        hostile: Option<Hostile>,
    ) -> Result<Launch<Measured>, LaunchError> {
        for command in plan.commands() {
            match (&command.contents, command.page_type) {
                (Contents::Bytes(bytes), _) => self.update(command, bytes)?,
                (Contents::Executor, PageType::Cpuid) => self.cpuid(command, hostile)?,
                (Contents::Zeros | Contents::Executor, _) => self.update(command, &[])?,
            }
        }
        Ok(self.become_state(Measured))
    }

    /// SNP_LAUNCH_UPDATE of one command.
    fn update(&self, command: &PageCommand<'_>, contents: &[u8]) -> Result<(), LaunchError> {
        self.guest.give((command.gpa.0, command.len), contents, |host| self.update_all(command, host))
    }

    /// Repeats the command until KVM has taken all pages: it may stop between any two.
    fn update_all(&self, command: &PageCommand<'_>, host: *const u8) -> Result<(), LaunchError> {
        let id = (sev_cmd_id_KVM_SEV_SNP_LAUNCH_UPDATE, "SNP_LAUNCH_UPDATE");
        let gpa = command.gpa.0;
        let mut update = kvm_sev_snp_launch_update {
            gfn_start: gpa / PAGE_SIZE,
            uaddr: host as u64,
            len: command.len,
            type_: command.page_type.wire(),
            ..Default::default()
        };
        let end = update.gfn_start + update.len / PAGE_SIZE;
        while update.len != 0 {
            let before = update.len;
            // SAFETY: the structure is the command's; `uaddr` and `len` are a mapped range that `self` holds.
            match unsafe { sev::command(&self.guest.vm, &self.sev, id, &mut update) } {
                Ok(()) if update.len == before => return Err(LaunchError::NoProgress { gpa }),
                Ok(()) | Err(SevError { errno: libc::EAGAIN, .. }) => {}
                Err(source) => return Err(LaunchError::Update { gpa, type_: update.type_, source }),
            }
        }
        if update.gfn_start == end { Ok(()) } else { Err(LaunchError::NoProgress { gpa }) }
    }

    /// The CPUID page; a corrected page is spelt out and refused.
    fn cpuid(&self, command: &PageCommand<'_>, hostile: Option<Hostile>) -> Result<(), LaunchError> {
        let entries = self.guest.first_vcpu()?.get_cpuid2(KVM_MAX_CPUID_ENTRIES).call("KVM_GET_CPUID2")?;
        let mut page = CpuidPage::new(entries.as_slice())?;
        if hostile == Some(Hostile::CpuidPage) {
            page.contradict_itself();
        }
        let gpa = command.gpa.0;
        self.guest.give((gpa, command.len), page.as_bytes(), |host| {
            let result = self.update_all(command, host);
            if !is_correction(&result) {
                return result;
            }
            let mut bytes = [0; PAGE_SIZE as usize];
            self.guest.shared_side(gpa, &mut bytes)?;
            let differences = page.differences(&zerocopy::transmute!(bytes)).join(", ");
            Err(LaunchError::CpuidRefused { differences })
        })
    }
}

fn is_correction(result: &Result<(), LaunchError>) -> bool {
    matches!(result, Err(LaunchError::Update { source, .. }) if source.firmware == sev::INVALID_PARAM)
}

impl Launch<Measured> {
    /// SNP_LAUNCH_FINISH: KVM measures the VMSAs, the secure processor checks the ID block and closes the digest.
    fn finish(self, id: Option<&IdBlock>, host_data: &[u8; 32]) -> Result<Guest, LaunchError> {
        let mut finish = kvm_sev_snp_launch_finish { host_data: *host_data, ..Default::default() };
        if let Some(id) = id {
            finish.id_block_uaddr = id.block.as_ptr() as u64;
            finish.id_auth_uaddr = id.auth.as_ptr() as u64;
            finish.id_block_en = 1;
            finish.auth_key_en = u8::from(id.author_key);
        }
        let command = (sev_cmd_id_KVM_SEV_SNP_LAUNCH_FINISH, "SNP_LAUNCH_FINISH");
        // SAFETY: the structure is the command's; the ID block and its authentication have the sizes that it
        // reads, as the configuration checked, and outlive the call.
        unsafe { sev::command(&self.guest.vm, &self.sev, command, &mut finish) }?;
        Ok(self.guest.guest())
    }
}
