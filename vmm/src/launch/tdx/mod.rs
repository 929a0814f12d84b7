//! The launch of a TD, as a typestate: `New → Measured`, then a [`Guest`].
//!
//! Each step consumes the one before it. What the TDX module adds to the TD is [`LaunchPlan`]'s page commands and
//! nothing else, in their order, page by page: MRTD depends on it.

mod abi;
mod hob;

use std::ops::Range;
use std::sync::Arc;

use cloister_attestation::measure::Contents;
use cloister_attestation::measure::tdx::{
    LaunchPlan, LaunchTranscript, PageCommand, PageOrder, SectionKind, Tdvf,
};
use kvm_bindings::{
    CpuId, KVM_CAP_EXIT_HYPERCALL, KVM_CAP_GUEST_MEMFD, KVM_CAP_VM_TYPES, KVM_CAP_X86_APIC_BUS_CYCLES_NS,
    kvm_cpuid_entry2, kvm_enable_cap,
};
use kvm_ioctls::{Kvm, VcpuFd, VmFd};
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend};

pub use abi::TdxError;
use abi::{Capabilities, CpuidTable, InitVm, MEASURE, MemRegion, TDX_VM};

use super::{
    Call, EXIT_MAP_GPA_RANGE, Guest, LaunchError, ROM_SLOT, Requirement, cpuid, create_vm, discard,
    missing_of, write_json,
};
use crate::config::{TdIdentity, VmConfig};
use crate::layout::PAGE_SIZE;
use crate::memory::{
    Converter, DeviceMemory, PrivateSlot, Ram, SharedPages, add_private_slots, map_ram, ram_ranges,
};

/// x87 and SSE: what every TD has.
const XFAM_LEGACY: u64 = 0b11;
/// The core crystal clock of a TD is 25 MHz (TDX module, CPUID leaf 0x15), and with it the local APICs' bus.
const APIC_BUS_CYCLE_NS: u64 = 40;

/// What a TD needs of KVM beside [`super::REQUIRED`], in words for an operator.
const REQUIRED: &[Requirement] = &[
    (KVM_CAP_VM_TYPES, 1 << TDX_VM, "TDX guests (KVM_X86_TDX_VM; see kvm_intel's parameter tdx)"),
    (KVM_CAP_GUEST_MEMFD, 1, "private guest memory (KVM_CAP_GUEST_MEMFD)"),
    (KVM_CAP_EXIT_HYPERCALL, EXIT_MAP_GPA_RANGE, "page conversions (KVM_CAP_EXIT_HYPERCALL)"),
];

/// The first thing that this host lacks for TDs.
pub fn missing(kvm: &Kvm) -> Option<&'static str> {
    missing_of(kvm, REQUIRED)
}

/// The whole launch.
pub(super) fn launch(kvm: &Kvm, config: &VmConfig) -> Result<Guest, LaunchError> {
    let tdvf = Tdvf::parse(&config.firmware)?;
    let plan = LaunchPlan::new(&tdvf)?;
    if let Some(path) = &config.transcript {
        write_json(path, &LaunchTranscript::new(&tdvf, &plan, PageOrder::PageByPage))?;
    }
    let launch = Launch::<New>::create(kvm, config, &plan)?;
    launch.measure(&plan, config)?.finalize()
}

/// There is a TD with memory and vCPUs, and nothing in it.
pub struct New;

/// Every page of the plan is in.
pub struct Measured;

/// A launch in one of its states.
pub struct Launch<S> {
    vm: Arc<VmFd>,
    vcpus: Vec<VcpuFd>,
    rom: Ram,
    ram: Ram,
    shared: Arc<SharedPages>,
    ram_slots: Vec<PrivateSlot>,
    rom_slots: Vec<PrivateSlot>,
    _state: S,
}

impl Launch<New> {
    /// Makes VM, memory and vCPUs.
    fn create(kvm: &Kvm, config: &VmConfig, plan: &LaunchPlan<'_>) -> Result<Self, LaunchError> {
        missing(kvm).map_or(Ok(()), |words| Err(LaunchError::Missing(words)))?;
        let vm = create_vm(kvm, TDX_VM)?;
        enable(&vm, KVM_CAP_EXIT_HYPERCALL, EXIT_MAP_GPA_RANGE, "KVM_ENABLE_CAP(EXIT_HYPERCALL)")?;
        enable(
            &vm,
            KVM_CAP_X86_APIC_BUS_CYCLES_NS,
            APIC_BUS_CYCLE_NS,
            "KVM_ENABLE_CAP(X86_APIC_BUS_CYCLES_NS)",
        )?;
        let supported = cpuid::supported(kvm)?;
        init_vm(&vm, &supported, config)?;

        let rom_ranges = rom_ranges(plan);
        let rom = map_ram(&rom_ranges)?;
        let rom_slots = add_private_slots(&vm, &rom, ROM_SLOT)?;
        let ranges = ram_ranges(config.memory);
        let ram = map_ram(&ranges)?;
        let ram_slots = add_private_slots(&vm, &ram, ROM_SLOT + rom_ranges.len() as u32)?;

        let hob = plan.commands().iter().find(|command| command.kind == SectionKind::TdHob);
        let hob = hob.map_or(0, |command| command.gpa.0);
        let mut vcpus = Vec::new();
        for index in 0..config.cpus {
            let vcpu = vm.create_vcpu(u64::from(index)).call("KVM_CREATE_VCPU")?;
            let cpuid = cpuid::for_vcpu(&supported, index, config.cpus, cpuid::Masks::Td)?;
            vcpu.set_cpuid2(&cpuid).call("KVM_SET_CPUID2")?;
            abi::command_with_number(&vcpu, abi::INIT_VCPU, hob)?;
            vcpus.push(vcpu);
        }
        let shared = Arc::new(SharedPages::new(&ranges));
        Ok(Self { vm: Arc::new(vm), vcpus, rom, ram, shared, ram_slots, rom_slots, _state: New })
    }

    /// Executes the plan's page commands in their order.
    fn measure(self, plan: &LaunchPlan<'_>, config: &VmConfig) -> Result<Launch<Measured>, LaunchError> {
        let added: Vec<Range<u64>> =
            plan.commands().iter().map(|c| c.gpa.0..c.gpa.0.saturating_add(c.len)).collect();
        for command in plan.commands() {
            match &command.contents {
                Contents::Bytes(bytes) => self.add(command, bytes)?,
                Contents::Zeros => self.add(command, &[])?,
                Contents::Executor => {
                    let hob = hob::list(command.gpa.0, &ram_ranges(config.memory), &added);
                    self.add(command, &hob)?;
                }
            }
        }
        let Self { vm, vcpus, rom, ram, shared, ram_slots, rom_slots, _state: New } = self;
        Ok(Launch { vm, vcpus, rom, ram, shared, ram_slots, rom_slots, _state: Measured })
    }

    /// KVM_TDX_INIT_MEM_REGION of one command, from the shared side of its own pages, which is dropped afterwards.
    fn add(&self, command: &PageCommand<'_>, contents: &[u8]) -> Result<(), LaunchError> {
        let (gpa, len) = (command.gpa.0, command.len);
        let outside = || LaunchError::PlanOutsideRam { gpa, len };
        let backing = if self.rom.find_region(GuestAddress(gpa)).is_some() { &self.rom } else { &self.ram };
        let length = usize::try_from(len).map_err(|_| outside())?;
        let slice = backing.get_slice(GuestAddress(gpa), length).map_err(|_| outside())?;
        backing.write_slice(contents, GuestAddress(gpa)).map_err(|_| outside())?;
        let host = slice.ptr_guard_mut().as_ptr();
        let result = self.add_all(gpa, len, host, if command.measured { MEASURE } else { 0 });
        discard(host, length)?;
        result
    }

    /// Repeats the command until KVM has taken all pages: it stops where a signal or another command is in its way.
    fn add_all(&self, gpa: u64, len: u64, host: *const u8, flags: u32) -> Result<(), LaunchError> {
        let first = self.vcpus.first().ok_or(LaunchError::Missing("a first vCPU"))?;
        let mut region = MemRegion { source_addr: host as u64, gpa, nr_pages: len / PAGE_SIZE };
        while region.nr_pages != 0 {
            let before = region.nr_pages;
            // SAFETY: the structure is the command's; source and length are a mapped range that `self` holds.
            match unsafe { abi::command(first, abi::INIT_MEM_REGION, flags, Some(&mut region)) } {
                Ok(()) if region.nr_pages == before => return Err(LaunchError::NoProgress { gpa }),
                Ok(()) | Err(TdxError { errno: libc::EAGAIN | libc::EINTR, .. }) => {}
                Err(source) => return Err(LaunchError::AddPage { gpa: region.gpa, source }),
            }
        }
        Ok(())
    }
}

/// Where the plan puts the ROM: its measured volumes, which lie outside of RAM.
fn rom_ranges(plan: &LaunchPlan<'_>) -> Vec<Range<u64>> {
    let volumes = plan.commands().iter().filter(|command| command.kind.has_data());
    let ranges = volumes.map(|command| command.gpa.0..command.gpa.0.saturating_add(command.len));
    let mut ranges: Vec<_> = ranges.collect();
    // Metadata may name them in any order, and the order of the plan is MRTD's; mappings are in the order of addresses.
    ranges.sort_by_key(|range| range.start);
    ranges
}

fn enable(vm: &VmFd, cap: u32, value: u64, call: &'static str) -> Result<(), LaunchError> {
    let mut capability = kvm_enable_cap { cap, ..Default::default() };
    capability.args[0] = value;
    vm.enable_cap(&capability).call(call)
}

/// KVM_TDX_INIT_VM: what the TD is for its whole life.
fn init_vm(vm: &VmFd, supported: &CpuId, config: &VmConfig) -> Result<(), LaunchError> {
    let mut capabilities = Capabilities::room();
    // SAFETY: the structure is the command's, with room for as many entries as it says.
    unsafe { abi::command(vm, abi::CAPABILITIES, 0, Some(&mut *capabilities)) }?;
    let TdIdentity { attributes, mrconfigid, mrowner, mrownerconfig } = config.td;
    if attributes & !capabilities.supported_attributes != 0 {
        let unsupported = attributes & !capabilities.supported_attributes;
        return Err(LaunchError::TdAttributes { unsupported });
    }
    let specialised = cpuid::for_vcpu(supported, 0, config.cpus, cpuid::Masks::Td)?;
    let cpuid = configurable(&specialised, capabilities.cpuid.entries());
    let mut init = Box::new(InitVm {
        attributes,
        xfam: capabilities.supported_xfam & XFAM_LEGACY,
        mrconfigid,
        mrowner,
        mrownerconfig,
        reserved: [0; 12],
        cpuid: CpuidTable::new(&cpuid).ok_or(LaunchError::Missing("a CPUID table of its own size"))?,
    });
    // SAFETY: the structure is the command's and holds no addresses.
    unsafe { abi::command(vm, abi::INIT_VM, 0, Some(&mut *init)) }?;
    Ok(())
}

/// The bits of `wanted` that a VMM may choose, leaf by leaf; the rest is the TDX module's.
fn configurable(wanted: &CpuId, choices: &[kvm_cpuid_entry2]) -> Vec<kvm_cpuid_entry2> {
    let same = |a: &kvm_cpuid_entry2, b: &kvm_cpuid_entry2| (a.function, a.index) == (b.function, b.index);
    choices
        .iter()
        .filter_map(|choice| {
            let want = wanted.as_slice().iter().find(|entry| same(entry, choice))?;
            Some(kvm_cpuid_entry2 {
                eax: want.eax & choice.eax,
                ebx: want.ebx & choice.ebx,
                ecx: want.ecx & choice.ecx,
                edx: want.edx & choice.edx,
                ..*choice
            })
        })
        .collect()
}

impl Launch<Measured> {
    /// KVM_TDX_FINALIZE_VM: MRTD is closed.
    fn finalize(self) -> Result<Guest, LaunchError> {
        // SAFETY: the command takes no data.
        unsafe { abi::command::<()>(&*self.vm, abi::FINALIZE_VM, 0, None) }?;
        let Self { vm, vcpus, rom, ram, shared, ram_slots, rom_slots, _state: Measured } = self;
        let memory = DeviceMemory::confidential(ram.clone(), shared.clone());
        let converter = Arc::new(Converter::new(vm.clone(), ram, shared, ram_slots));
        Ok(Guest { vm, vcpus, memory, converter: Some(converter), _rom: rom, _rom_slots: rom_slots })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_configurable_bits_are_asked_for() {
        let entry = |function, ecx| kvm_cpuid_entry2 { function, ecx, ..Default::default() };
        let wanted = CpuId::from_entries(&[entry(1, 0b1110), entry(7, !0)]).unwrap();
        let asked = configurable(&wanted, &[entry(1, 0b0111), entry(0xd, !0)]);
        assert_eq!(asked, [entry(1, 0b0110)]);
    }
}
