//! The launch of an SEV-SNP guest, as a typestate: `New → Started → Measured`, then a [`Guest`].
//!
//! Each step consumes the one before it, so that no command can be issued out of order. What is measured is
//! [`LaunchPlan`]'s page commands and nothing else, in their order.

use std::fs::File;
use std::sync::Arc;

use cloister_attestation::measure::snp::{
    Contents, LaunchInputs, LaunchPlan, LaunchTranscript, PageCommand, PageType, Rom, VcpuModel, VmmFlavour,
};
use cloister_attestation::measure::{Gpa, KernelHashes};
use kvm_bindings::{
    KVM_CAP_EXIT_HYPERCALL, KVM_CAP_GUEST_MEMFD, KVM_CAP_MEMORY_ATTRIBUTES, KVM_CAP_VM_TYPES,
    KVM_MAX_CPUID_ENTRIES, KVM_MEMORY_ATTRIBUTE_PRIVATE, KVM_X86_SNP_VM, kvm_enable_cap, kvm_sev_init,
    kvm_sev_snp_launch_finish, kvm_sev_snp_launch_start, kvm_sev_snp_launch_update, sev_cmd_id_KVM_SEV_INIT2,
    sev_cmd_id_KVM_SEV_SNP_LAUNCH_FINISH, sev_cmd_id_KVM_SEV_SNP_LAUNCH_START,
    sev_cmd_id_KVM_SEV_SNP_LAUNCH_UPDATE,
};
use kvm_ioctls::{Kvm, VcpuFd, VmFd};
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend};
use zerocopy::IntoBytes;

use super::cpuid_page::CpuidPage;
use super::sev::{self, SevError};
use super::{
    Call, EXIT_MAP_GPA_RANGE, Guest, LaunchError, RAM_SLOT, ROM_SLOT, Requirement, cpuid, create_vm, discard,
    missing_of, reset, write_json,
};
use crate::config::{IdBlock, VmConfig};
use crate::hostile::Hostile;
use crate::layout::PAGE_SIZE;
use crate::memory::{
    Converter, DeviceMemory, PrivateSlot, Ram, SharedPages, add_private_slots, map_ram, ram_ranges,
};

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
pub(super) fn launch(kvm: &Kvm, config: &VmConfig) -> Result<Guest, LaunchError> {
    let rom = Rom::parse(&config.firmware)?;
    let launch = Launch::<New>::create(kvm, config, &rom)?;
    let kernel = config.kernel.as_ref();
    let inputs = LaunchInputs {
        rom: &rom,
        kernel: kernel.map(|k| KernelHashes::of(&k.image, k.initrd.as_deref(), &k.cmdline)),
        vcpus: config.cpus,
        cpu: launch.state.cpu,
        sev_features: SEV_FEATURES,
        flavour: VmmFlavour::Cloister,
    };
    let plan = LaunchPlan::new(&inputs)?;
    if let Some(path) = &config.transcript {
        // Before the launch: where the secure processor refuses, this says what it was given.
        write_json(path, &LaunchTranscript::new(&inputs, &plan, Some(config.snp_policy)))?;
    }
    let launch = launch.start(config.snp_policy)?;
    let launch = launch.measure(&plan, config.hostile)?;
    launch.finish(config.id_block.as_ref(), &config.host_data)
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
    vm: Arc<VmFd>,
    sev: File,
    vcpus: Vec<VcpuFd>,
    rom: Ram,
    ram: Ram,
    shared: Arc<SharedPages>,
    ram_slots: Vec<PrivateSlot>,
    rom_slots: Vec<PrivateSlot>,
    state: S,
}

impl<S> Launch<S> {
    fn become_state<T>(self, state: T) -> Launch<T> {
        let Self { vm, sev, vcpus, rom, ram, shared, ram_slots, rom_slots, state: _ } = self;
        Launch { vm, sev, vcpus, rom, ram, shared, ram_slots, rom_slots, state }
    }
}

impl Launch<New> {
    /// Makes VM, memory and vCPUs.
    fn create(kvm: &Kvm, config: &VmConfig, rom: &Rom<'_>) -> Result<Self, LaunchError> {
        missing(kvm).map_or(Ok(()), |words| Err(LaunchError::Missing(words)))?;
        let sev = open_sev()?;
        let vm = create_vm(kvm, u64::from(KVM_X86_SNP_VM))?;
        let mut hypercall = kvm_enable_cap { cap: KVM_CAP_EXIT_HYPERCALL, ..Default::default() };
        hypercall.args[0] = EXIT_MAP_GPA_RANGE;
        vm.enable_cap(&hypercall).call("KVM_ENABLE_CAP(EXIT_HYPERCALL)")?;
        // SAFETY: the structure is the command's and holds no addresses.
        unsafe {
            sev::command(&vm, &sev, (sev_cmd_id_KVM_SEV_INIT2, "KVM_SEV_INIT2"), &mut kvm_sev_init::default())
        }?;
        let attributes = vm.check_extension_raw(u64::from(KVM_CAP_MEMORY_ATTRIBUTES));
        if attributes as u32 & KVM_MEMORY_ATTRIBUTE_PRIVATE == 0 {
            return Err(LaunchError::Missing("private memory attributes (KVM_CAP_MEMORY_ATTRIBUTES)"));
        }

        let base = rom.gpa().0;
        let rom_memory = map_ram(std::slice::from_ref(&(base..base + rom.bytes().len() as u64)))?;
        let rom_slots = add_private_slots(&vm, &rom_memory, ROM_SLOT)?;
        let ranges = ram_ranges(config.memory);
        let ram = map_ram(&ranges)?;
        let ram_slots = add_private_slots(&vm, &ram, RAM_SLOT)?;

        let (vcpus, cpu) = create_vcpus(kvm, &vm, config.cpus, rom)?;
        let shared = Arc::new(SharedPages::new(&ranges));
        let state = New { cpu };
        Ok(Self { vm: Arc::new(vm), sev, vcpus, rom: rom_memory, ram, shared, ram_slots, rom_slots, state })
    }

    /// SNP_LAUNCH_START.
    fn start(self, policy: u64) -> Result<Launch<Started>, LaunchError> {
        let mut start = kvm_sev_snp_launch_start { policy, ..Default::default() };
        let id = (sev_cmd_id_KVM_SEV_SNP_LAUNCH_START, "SNP_LAUNCH_START");
        // SAFETY: the structure is the command's and holds no addresses.
        unsafe { sev::command(&self.vm, &self.sev, id, &mut start) }?;
        Ok(self.become_state(Started))
    }
}

/// The vCPUs in the state that their VMSAs are made of.
fn create_vcpus(
    kvm: &Kvm,
    vm: &VmFd,
    cpus: u32,
    rom: &Rom<'_>,
) -> Result<(Vec<VcpuFd>, VcpuModel), LaunchError> {
    let supported = cpuid::supported(kvm)?;
    let (mut vcpus, mut signature) = (Vec::new(), 0);
    for index in 0..cpus {
        let vcpu = vm.create_vcpu(u64::from(index)).call("KVM_CREATE_VCPU")?;
        let cpuid = cpuid::for_vcpu(&supported, index, cpus, cpuid::Masks::Snp)?;
        vcpu.set_cpuid2(&cpuid).call("KVM_SET_CPUID2")?;
        signature = cpuid::signature(&cpuid);
        // A ROM without a reset block has one vCPU; the plan says so before this matters.
        let eip =
            if index == 0 { reset::RESET_VECTOR } else { rom.ap_reset_eip().unwrap_or(reset::RESET_VECTOR) };
        reset::set_reset_state(&vcpu, eip, signature)?;
        vcpus.push(vcpu);
    }
    Ok((vcpus, VcpuModel(signature)))
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

    /// The mapping that backs a range of the guest.
    fn backing(&self, gpa: Gpa) -> &Ram {
        if self.rom.find_region(GuestAddress(gpa.0)).is_some() { &self.rom } else { &self.ram }
    }

    /// SNP_LAUNCH_UPDATE of one command, from the shared side of its own pages, which is dropped afterwards.
    fn update(&self, command: &PageCommand<'_>, contents: &[u8]) -> Result<(), LaunchError> {
        let (gpa, len) = (command.gpa, command.len);
        let outside = || LaunchError::PlanOutsideRam { gpa: gpa.0, len };
        let backing = self.backing(gpa);
        let length = usize::try_from(len).map_err(|_| outside())?;
        let slice = backing.get_slice(GuestAddress(gpa.0), length).map_err(|_| outside())?;
        backing.write_slice(contents, GuestAddress(gpa.0)).map_err(|_| outside())?;
        let host = slice.ptr_guard_mut().as_ptr();

        let mut update = kvm_sev_snp_launch_update {
            gfn_start: gpa.0 / PAGE_SIZE,
            uaddr: host as u64,
            len,
            type_: command.page_type.wire(),
            ..Default::default()
        };
        let result = self.update_all(&mut update, len);
        if command.page_type == PageType::Cpuid && is_correction(&result) {
            return result; // the caller looks at the corrected page and drops it
        }
        discard(host, length)?;
        result
    }

    /// Repeats the command until KVM has taken all pages: it may stop between any two.
    fn update_all(&self, update: &mut kvm_sev_snp_launch_update, len: u64) -> Result<(), LaunchError> {
        let id = (sev_cmd_id_KVM_SEV_SNP_LAUNCH_UPDATE, "SNP_LAUNCH_UPDATE");
        let gpa = update.gfn_start * PAGE_SIZE;
        let end = update.gfn_start + len / PAGE_SIZE;
        while update.len != 0 {
            let before = update.len;
            // SAFETY: the structure is the command's; `uaddr` and `len` are a mapped range that `self` holds.
            match unsafe { sev::command(&self.vm, &self.sev, id, update) } {
                Ok(()) if update.len == before => return Err(LaunchError::NoProgress { gpa }),
                Ok(()) | Err(SevError { errno: libc::EAGAIN, .. }) => {}
                Err(source) => return Err(LaunchError::Update { gpa, type_: update.type_, source }),
            }
        }
        if update.gfn_start == end { Ok(()) } else { Err(LaunchError::NoProgress { gpa }) }
    }

    /// The CPUID page; a corrected page is spelt out and refused.
    fn cpuid(&self, command: &PageCommand<'_>, hostile: Option<Hostile>) -> Result<(), LaunchError> {
        let first = self.vcpus.first().ok_or(LaunchError::Missing("a first vCPU"))?;
        let entries = first.get_cpuid2(KVM_MAX_CPUID_ENTRIES).call("KVM_GET_CPUID2")?;
        let mut page = CpuidPage::new(entries.as_slice())?;
        if hostile == Some(Hostile::CpuidPage) {
            page.contradict_itself();
        }
        let result = self.update(command, page.as_bytes());
        if !is_correction(&result) {
            return result;
        }
        let mut bytes = [0; PAGE_SIZE as usize];
        let backing = self.backing(command.gpa);
        backing
            .read_slice(&mut bytes, GuestAddress(command.gpa.0))
            .map_err(|_| LaunchError::PlanOutsideRam { gpa: command.gpa.0, len: command.len })?;
        let differences = page.differences(&zerocopy::transmute!(bytes)).join(", ");
        Err(LaunchError::CpuidRefused { differences })
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
        unsafe { sev::command(&self.vm, &self.sev, command, &mut finish) }?;
        let Self { vm, vcpus, rom, ram, shared, ram_slots, rom_slots, .. } = self;
        let memory = DeviceMemory::confidential(ram.clone(), shared.clone());
        let converter = Arc::new(Converter::new(vm.clone(), ram, shared, ram_slots));
        Ok(Guest { vm, vcpus, memory, converter: Some(converter), _rom: rom, _rom_slots: rom_slots })
    }
}
