//! The launch of a TD, as a typestate: `New → Measured`, then a [`Guest`].
//!
//! Each step consumes the one before it. What the TDX module adds to the TD is [`LaunchPlan`]'s page commands and
//! nothing else, in their order, page by page: MRTD depends on it.

mod abi;
mod hob;

use std::ops::Range;

use cloister_attestation::measure::Contents;
use cloister_attestation::measure::tdx::{
    LaunchPlan, LaunchTranscript, PageCommand, PageOrder, SectionKind, Tdvf,
};
use kvm_bindings::{
    CpuId, KVM_CAP_EXIT_HYPERCALL, KVM_CAP_GUEST_MEMFD, KVM_CAP_VM_TYPES, KVM_CAP_X86_APIC_BUS_CYCLES_NS,
    kvm_cpuid_entry2,
};
use kvm_ioctls::{Kvm, VmFd};

pub use abi::TdxError;
use abi::{Capabilities, CpuidTable, InitVm, MEASURE, MemRegion, TDX_VM};

use super::confidential::Confidential;
use super::{
    EXIT_MAP_GPA_RANGE, Guest, LaunchError, Requirement, cpuid, create_vcpu, create_vm, enable, missing_of,
    write_json,
};
use crate::config::{TdIdentity, VmConfig};
use crate::hostile::Hostile;
use crate::layout::PAGE_SIZE;
use crate::memory::ram_ranges;
use crate::output::file::OutputFile;

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
pub(super) fn launch(
    kvm: &Kvm,
    config: &VmConfig,
    transcript: Option<&mut OutputFile>,
) -> Result<Guest, LaunchError> {
    let tdvf = Tdvf::parse(&config.firmware)?;
    let plan = LaunchPlan::new(&tdvf)?;
    if let Some(file) = transcript {
        write_json(file, &LaunchTranscript::new(&tdvf, &plan, PageOrder::PageByPage))?;
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
    guest: Confidential,
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
        let mut guest = Confidential::new(vm, &rom_ranges(plan), config.memory)?;
        guest.plant(config.hostile);
        let hob = plan.commands().iter().find(|command| command.kind == SectionKind::TdHob);
        let hob = hob.map_or(0, |command| command.gpa.0);
        for index in 0..config.cpus {
            let (vcpu, _) = create_vcpu(&guest.vm, &supported, (index, config.cpus), cpuid::Masks::Td)?;
            abi::command_with_number(&vcpu, abi::INIT_VCPU, hob)?;
            guest.vcpus.push(vcpu);
        }
        Ok(Self { guest, _state: New })
    }

    /// Executes the plan's page commands in their order.
    fn measure(self, plan: &LaunchPlan<'_>, config: &VmConfig) -> Result<Launch<Measured>, LaunchError> {
        let added: Vec<Range<u64>> =
            plan.commands().iter().map(|c| c.gpa.0..c.gpa.0.saturating_add(c.len)).collect();
        for command in plan.commands() {
            match &command.contents {
                Contents::Bytes(bytes) => self.add(command, bytes)?,
                Contents::Zeros => self.add(command, &Hostile::unmeasured(config.hostile, command.len))?,
                Contents::Executor => {
                    let hob = hob::list(command.gpa.0, &ram_ranges(config.memory), &added);
                    self.add(command, &hob)?;
                }
            }
        }
        Ok(Launch { guest: self.guest, _state: Measured })
    }

    /// KVM_TDX_INIT_MEM_REGION of one command.
    fn add(&self, command: &PageCommand<'_>, contents: &[u8]) -> Result<(), LaunchError> {
        self.guest.give((command.gpa.0, command.len), contents, |host| self.add_all(command, host))
    }

    /// Repeats the command until KVM has taken all pages: it stops where a signal or another command is in its way.
    fn add_all(&self, command: &PageCommand<'_>, host: *const u8) -> Result<(), LaunchError> {
        let first = self.guest.first_vcpu()?;
        let (gpa, flags) = (command.gpa.0, if command.measured { MEASURE } else { 0 });
        let mut region = MemRegion { source_addr: host as u64, gpa, nr_pages: command.len / PAGE_SIZE };
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
        unsafe { abi::command::<()>(&*self.guest.vm, abi::FINALIZE_VM, 0, None) }?;
        Ok(self.guest.guest())
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
