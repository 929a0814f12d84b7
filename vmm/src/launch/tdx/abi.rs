//! KVM_MEMORY_ENCRYPT_OP of a TD (Linux `Documentation/virt/kvm/x86/intel-tdx.rst`, `arch/x86/include/uapi/asm/kvm.h`).

use std::os::fd::AsRawFd;

use kvm_bindings::{kvm_cpuid_entry2, kvm_cpuid2};
use vmm_sys_util::ioctl::{_IOC_READ, _IOC_WRITE, ioctl_with_mut_ref};
use vmm_sys_util::ioctl_ioc_nr;

/// `KVM_X86_TDX_VM`.
pub const TDX_VM: u64 = 5;
/// `KVM_TDX_MEASURE_MEMORY_REGION`.
pub const MEASURE: u32 = 1 << 0;
/// Entries in a CPUID table at most (`KVM_MAX_CPUID_ENTRIES`).
pub const MAX_ENTRIES: usize = 256;

ioctl_ioc_nr!(KVM_MEMORY_ENCRYPT_OP, _IOC_READ | _IOC_WRITE, 0xae, 0xba, 8);

/// A command's number and name.
pub type Id = (u32, &'static str);
pub const CAPABILITIES: Id = (0, "KVM_TDX_CAPABILITIES");
pub const INIT_VM: Id = (1, "KVM_TDX_INIT_VM");
pub const INIT_VCPU: Id = (2, "KVM_TDX_INIT_VCPU");
pub const INIT_MEM_REGION: Id = (3, "KVM_TDX_INIT_MEM_REGION");
pub const FINALIZE_VM: Id = (4, "KVM_TDX_FINALIZE_VM");

/// `struct kvm_tdx_cmd`.
#[derive(Clone, Copy, Debug, Default)]
#[repr(C)]
struct Command {
    id: u32,
    flags: u32,
    data: u64,
    hw_error: u64,
}
const _: () = assert!(size_of::<Command>() == 24);

/// A `struct kvm_cpuid2` with room for every entry.
#[repr(C)]
pub struct CpuidTable {
    header: kvm_cpuid2,
    entries: [kvm_cpuid_entry2; MAX_ENTRIES],
}

impl CpuidTable {
    /// A table of `entries`; `None` if they are too many.
    pub fn new(entries: &[kvm_cpuid_entry2]) -> Option<Self> {
        let mut table =
            Self { header: kvm_cpuid2::default(), entries: [kvm_cpuid_entry2::default(); MAX_ENTRIES] };
        table.entries.get_mut(..entries.len())?.copy_from_slice(entries);
        table.header.nent = entries.len() as u32;
        Some(table)
    }

    /// An empty table that KVM may fill.
    fn room() -> Self {
        let mut table =
            Self { header: kvm_cpuid2::default(), entries: [kvm_cpuid_entry2::default(); MAX_ENTRIES] };
        table.header.nent = MAX_ENTRIES as u32;
        table
    }

    /// The entries.
    pub fn entries(&self) -> &[kvm_cpuid_entry2] {
        self.entries.get(..self.header.nent as usize).unwrap_or(&self.entries)
    }
}

/// `struct kvm_tdx_capabilities`.
#[repr(C)]
pub struct Capabilities {
    pub supported_attributes: u64,
    pub supported_xfam: u64,
    _tdvmcallinfo: [u64; 4],
    _reserved: [u64; 250],
    /// The leaves that a VMM may configure, with the bits that it may.
    pub cpuid: CpuidTable,
}
const _: () = assert!(std::mem::offset_of!(Capabilities, cpuid) == 2048);

impl Capabilities {
    /// Room for KVM's answer.
    pub fn room() -> Box<Self> {
        Box::new(Self {
            supported_attributes: 0,
            supported_xfam: 0,
            _tdvmcallinfo: [0; 4],
            _reserved: [0; 250],
            cpuid: CpuidTable::room(),
        })
    }
}

/// A SHA-384 value that the host gives a TD at its birth.
pub type Measurement = [u8; 48];

/// `struct kvm_tdx_init_vm`.
#[repr(C)]
pub struct InitVm {
    pub attributes: u64,
    pub xfam: u64,
    pub mrconfigid: Measurement,
    pub mrowner: Measurement,
    pub mrownerconfig: Measurement,
    pub reserved: [u64; 12],
    pub cpuid: CpuidTable,
}
const _: () = assert!(std::mem::offset_of!(InitVm, cpuid) == 256);

/// `struct kvm_tdx_init_mem_region`.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct MemRegion {
    pub source_addr: u64,
    pub gpa: u64,
    pub nr_pages: u64,
}
const _: () = assert!(size_of::<MemRegion>() == 24);

/// Why a command was refused: by the kernel, or by the TDX module behind it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{command} was refused: {} (errno {errno})", describe(*.module, *.errno))]
pub struct TdxError {
    /// The command.
    pub command: &'static str,
    /// The ioctl's errno.
    pub errno: i32,
    /// The TDX module's completion status; 0 where it was not asked.
    pub module: u64,
}

/// The upper halves of the TDX module's completion statuses that a launch meets (TDX module ABI specification, "Interface
/// Function Completion Status Codes").
const STATUS: &[(u32, &str)] = &[
    (0x8000_0003, "non-recoverable TD: it exists no longer"),
    (0xc000_0100, "TDX_OPERAND_INVALID: the TDX module does not accept a value"),
    (0xc000_0a00, "TDX_PAGE_ALREADY_ADDED"),
    (0xc000_0600, "TDX_TD_ASSOCIATED_PAGES_EXIST"),
    (0x8000_0200, "TDX_OPERAND_BUSY: another command holds it"),
    (0xc000_0605, "TDX_TD_FATAL: the TD cannot go on"),
    (0xc000_0606, "TDX_TD_NON_DEBUG: only a debuggable TD allows it"),
    (0xc000_0901, "TDX_XFAM_NOT_SUPPORTED"),
];

fn describe(module: u64, errno: i32) -> String {
    let class = (module >> 32) as u32;
    match STATUS.iter().find(|(code, _)| *code == class) {
        Some((_, words)) => format!("TDX module status {module:#x} {words}"),
        None if module != 0 => format!("TDX module status {module:#x}"),
        None => format!("kernel: {}", std::io::Error::from_raw_os_error(errno)),
    }
}

/// Issues a command on a VM or a vCPU.
///
/// # Safety
///
/// `data` is the structure that the command takes, and the addresses in it stay valid during the call.
pub unsafe fn command<T>(
    on: &impl AsRawFd,
    id: Id,
    flags: u32,
    data: Option<&mut T>,
) -> Result<(), TdxError> {
    let data = data.map_or(0, |data| std::ptr::from_mut(data) as u64);
    // SAFETY: the structure is the command's, as the caller promises.
    unsafe { issue(on, id, flags, data) }
}

/// As [`command`], for those whose argument is a number.
pub fn command_with_number(on: &impl AsRawFd, id: Id, number: u64) -> Result<(), TdxError> {
    // SAFETY: the command takes no address.
    unsafe { issue(on, id, 0, number) }
}

/// # Safety
///
/// `data` is what the command takes: a number, or the address of its structure.
unsafe fn issue(on: &impl AsRawFd, (id, name): Id, flags: u32, data: u64) -> Result<(), TdxError> {
    let mut op = Command { id, flags, data, hw_error: 0 };
    // SAFETY: KVM_MEMORY_ENCRYPT_OP reads and writes a `struct kvm_tdx_cmd`, and through `data` what the command takes.
    match unsafe { ioctl_with_mut_ref(on, KVM_MEMORY_ENCRYPT_OP(), &mut op) } {
        0.. => Ok(()),
        _ => {
            let errno = std::io::Error::last_os_error().raw_os_error().unwrap_or_default();
            Err(TdxError { command: name, errno, module: op.hw_error })
        }
    }
}
