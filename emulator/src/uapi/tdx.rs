//! KVM_MEMORY_ENCRYPT_OP of a TD, on the VM and on its vCPUs (Documentation/virt/kvm/x86/intel-tdx.rst).

use std::sync::Arc;
use std::sync::atomic::Ordering;

use kvm_bindings::{KVM_CPUID_FLAG_SIGNIFCANT_INDEX, kvm_cpuid_entry2, kvm_cpuid2};

use super::errno::Errno;
use super::{tee, user};
use crate::machine::confidential;
use crate::machine::gmem::PAGE;
use crate::machine::vcpu::Vcpu;
use crate::machine::vm::Vm;
use crate::tdx::cpuid::{self, Entry};
use crate::tdx::launch::{Gpaw, Refusal, Request, State, XFAM_SUPPORTED};
use crate::tdx::mr::Measurement;
use crate::tdx::sept::{self, State as PageState};
use crate::tdx::{self, TdxVm, vmcall};

/// struct kvm_tdx_cmd.
#[derive(Clone, Copy)]
#[repr(C)]
pub struct Command {
    id: u32,
    flags: u32,
    data: u64,
    hw_error: u64,
}

/// struct kvm_tdx_init_vm, without the CPUID table behind it.
#[derive(Clone, Copy)]
#[repr(C)]
struct InitVm {
    attributes: u64,
    xfam: u64,
    mrconfigid: Measurement,
    mrowner: Measurement,
    mrownerconfig: Measurement,
    reserved: [u64; 12],
    entries: u32,
    padding: u32,
}

/// struct kvm_tdx_init_mem_region.
#[derive(Clone, Copy)]
#[repr(C)]
struct MemRegion {
    source: u64,
    gpa: u64,
    pages: u64,
}

/// struct kvm_tdx_capabilities up to its reserved words.
#[derive(Clone, Copy)]
#[repr(C)]
struct Capabilities {
    supported_attributes: u64,
    supported_xfam: u64,
    kernel_r11: u64,
    user_r11: u64,
    kernel_r12: u64,
    user_r12: u64,
}

const _: () = assert!(size_of::<Command>() == 24);
const _: () = assert!(size_of::<InitVm>() == 264);
const _: () = assert!(size_of::<MemRegion>() == 24);
const _: () = assert!(size_of::<Capabilities>() == 48);
/// Where the CPUID table of struct kvm_tdx_capabilities is.
const CAPABILITIES_CPUID: usize = 2048;

super::user::abi!(Command, InitVm, MemRegion, Capabilities);

/// KVM_TDX_MEASURE_MEMORY_REGION.
const MEASURE: u32 = 1;
/// KVM_MAX_CPUID_ENTRIES.
const MAX_ENTRIES: u32 = 256;

type VmCommand = fn(&Vm, &TdxVm, &Command) -> Result<(), Refusal>;
type VcpuCommand = fn(&Arc<Vcpu>, &TdxVm, &Command) -> Result<(), Refusal>;

/// Number, name, what it does: commands of the VM.
pub const VM_COMMANDS: &[(u32, &str, VmCommand)] = &[
    (0, "KVM_TDX_CAPABILITIES", |_, _, command| {
        no_flags(command)?;
        capabilities(command.data as usize)
    }),
    (1, "KVM_TDX_INIT_VM", init_vm),
    (4, "KVM_TDX_FINALIZE_VM", |_, tdx, _| Ok(tdx.td().finalize()?)),
    (6, "KVM_TDX_TERMINATE_VM", |vm, tdx, _| {
        terminate(vm, tdx);
        Ok(())
    }),
];

/// As above, of a vCPU.
pub const VCPU_COMMANDS: &[(u32, &str, VcpuCommand)] = &[
    (2, "KVM_TDX_INIT_VCPU", |vcpu, _, command| {
        no_flags(command)?;
        Ok(tdx::init_vcpu(&mut vcpu.lock(), command.data)?)
    }),
    (3, "KVM_TDX_INIT_MEM_REGION", init_mem_region),
    (5, "KVM_TDX_GET_CPUID", |_, tdx, command| get_cpuid(tdx, command.data as usize)),
];

/// Runs the command of `table` that the client asks for: KVM's checks of the envelope, the module's status on the way
/// back.
fn serve<F: Copy>(
    arg: usize,
    table: &[(u32, &str, F)],
    run: impl FnOnce(F, &Command) -> Result<(), Refusal>,
) -> Result<i32, Errno> {
    let mut command: Command = user::read(arg)?;
    let row = table.iter().find(|row| row.0 == command.id).filter(|_| command.hw_error == 0);
    let &(.., handler) = row.ok_or(Errno::EINVAL)?;
    let result = run(handler, &command);
    command.hw_error = result.map_or_else(|refusal| refusal.module, |()| 0);
    user::write(arg, &command)?;
    result.map(|()| 0).map_err(|refusal| refusal.errno)
}

/// KVM_MEMORY_ENCRYPT_OP on the VM.
pub fn vm_command(vm: &Vm, tdx: &TdxVm, arg: usize) -> Result<i32, Errno> {
    serve(arg, VM_COMMANDS, |run, command| run(vm, tdx, command))
}

/// KVM_MEMORY_ENCRYPT_OP on a vCPU: only while the TD is being built.
pub fn vcpu_command(vcpu: &Arc<Vcpu>, tdx: &TdxVm, arg: usize) -> Result<i32, Errno> {
    if tdx.td().state != State::Initialised {
        return Err(Errno::EINVAL);
    }
    serve(arg, VCPU_COMMANDS, |run, command| run(vcpu, tdx, command))
}

fn no_flags(command: &Command) -> Result<(), Refusal> {
    if command.flags == 0 { Ok(()) } else { Err(Errno::EINVAL.into()) }
}

fn capabilities(address: usize) -> Result<(), Refusal> {
    let table = address + CAPABILITIES_CPUID;
    let room = user::read::<u32>(table)?;
    let entries: Vec<kvm_cpuid_entry2> = cpuid::capabilities().iter().map(|e| to_kvm(e, None)).collect();
    if (room as usize) < entries.len() {
        return Err(Errno::E2BIG.into());
    }
    let caps = Capabilities {
        supported_attributes: tee::td_attributes(),
        supported_xfam: XFAM_SUPPORTED,
        kernel_r11: 0,
        user_r11: vmcall::USER_FUNCTIONS,
        kernel_r12: 0,
        user_r12: 0,
    };
    user::write(address, &caps)?;
    user::write(table, &(entries.len() as u32))?;
    user::write_array(table + size_of::<kvm_cpuid2>(), &entries)?;
    Ok(())
}

fn to_kvm(entry: &Entry, subleaf: Option<u32>) -> kvm_cpuid_entry2 {
    let [eax, ebx, ecx, edx] = entry.value;
    let flags = if subleaf.is_some() { KVM_CPUID_FLAG_SIGNIFCANT_INDEX } else { 0 };
    kvm_cpuid_entry2 {
        function: entry.leaf,
        index: entry.subleaf,
        flags,
        eax,
        ebx,
        ecx,
        edx,
        ..kvm_cpuid_entry2::default()
    }
}

fn init_vm(vm: &Vm, tdx: &TdxVm, command: &Command) -> Result<(), Refusal> {
    if tdx.td().state != State::New {
        return Err(Errno::EINVAL.into());
    }
    no_flags(command)?;
    let address = command.data as usize;
    let args: InitVm = user::read(address)?;
    if args.entries > MAX_ENTRIES {
        return Err(Errno::E2BIG.into());
    }
    let entries: Vec<kvm_cpuid_entry2> =
        user::read_array(address + size_of::<InitVm>(), args.entries as usize)?;
    if args.padding != 0 {
        return Err(Errno::EINVAL.into());
    }
    if !vm.vcpus().is_empty() {
        return Err(Errno::EBUSY.into());
    }
    let cpuid = entries.iter().map(|e| Entry {
        leaf: e.function,
        subleaf: e.index,
        value: [e.eax, e.ebx, e.ecx, e.edx],
    });
    let request = Request {
        attributes: args.attributes,
        xfam: args.xfam,
        identities: [args.mrconfigid, args.mrowner, args.mrownerconfig],
        reserved: args.reserved,
        cpuid: cpuid.collect(),
    };
    Ok(tdx.fix(request.check(tee::td_attributes())?)?)
}

/// KVM_TDX_TERMINATE_VM: the TD's key is gone, and with it all that the TD was.
fn terminate(vm: &Vm, tdx: &TdxVm) {
    tdx.td().state = State::Terminated;
    vm.dead.store(true, Ordering::SeqCst);
    vm.flush_all();
}

fn init_mem_region(vcpu: &Arc<Vcpu>, tdx: &TdxVm, command: &Command) -> Result<(), Refusal> {
    if !vcpu.lock().ctx.tdx.initialised || command.flags & !MEASURE != 0 {
        return Err(Errno::EINVAL.into());
    }
    let mut region: MemRegion = user::read(command.data as usize)?;
    let gpaw = tdx.parameters().map_or(Gpaw::Bits48, |p| p.gpaw);
    let private = |gpa: u64| gpa & gpaw.shared_mask() == 0;
    let end = region.pages.checked_mul(PAGE).and_then(|bytes| region.gpa.checked_add(bytes));
    let sound = (region.source | region.gpa) & (PAGE - 1) == 0
        && region.pages != 0
        && end.is_some_and(|end| private(region.gpa) && private(end - 1));
    if !sound {
        return Err(Errno::EINVAL.into());
    }
    let mut result = Ok(());
    while region.pages != 0 {
        result = add_page(&vcpu.vm, tdx, &region, command.flags & MEASURE != 0);
        if result.is_err() {
            break;
        }
        region.source += PAGE;
        region.gpa += PAGE;
        region.pages -= 1;
    }
    // What is left to do, so that the client can go on where an error stopped it.
    user::write(command.data as usize, &region)?;
    Ok(result?)
}

/// TDH.MEM.PAGE.ADD, then TDH.MR.EXTEND of the page if it is to be measured.
fn add_page(vm: &Vm, tdx: &TdxVm, region: &MemRegion, measure: bool) -> Result<(), Errno> {
    let gpa = region.gpa;
    let backed = vm.slots().find(gpa).is_some_and(|slot| slot.gmem.is_some());
    if !backed || !vm.is_private(gpa) {
        return Err(Errno::EINVAL);
    }
    if confidential::placed(vm, gpa) {
        return Err(Errno::EEXIST);
    }
    let page: [u8; PAGE as usize] = user::read(region.source as usize)?;
    let entry = sept::Entry::new(gpa / PAGE, PageState::Mapped, false);
    confidential::place(vm, gpa, &page, entry.raw())?;
    let mut td = tdx.td();
    td.building.page_add(gpa);
    if measure {
        td.building.extend_page(gpa, &page);
    }
    Ok(())
}

/// KVM_TDX_GET_CPUID: E2BIG with the number of entries, if there is not room enough.
fn get_cpuid(tdx: &TdxVm, address: usize) -> Result<(), Refusal> {
    let parameters = tdx.parameters().ok_or(Errno::EINVAL)?;
    let leaves = parameters.cpuid.leaves().iter().map(|leaf| {
        let mut entry = Entry { leaf: leaf.leaf, subleaf: leaf.subleaf.unwrap_or(0), value: leaf.value };
        if leaf.leaf == 0x8000_0008 {
            entry.value[0] = entry.value[0] & !0x00ff_0000 | u32::from(parameters.gpaw.bits()) << 16;
        }
        to_kvm(&entry, leaf.subleaf)
    });
    let entries: Vec<kvm_cpuid_entry2> = leaves.collect();
    let room = user::read::<u32>(address)?;
    user::write(address, &(entries.len() as u32))?;
    if (room as usize) < entries.len() {
        return Err(Errno::E2BIG.into());
    }
    user::write_array(address + size_of::<kvm_cpuid2>(), &entries)?;
    Ok(())
}
