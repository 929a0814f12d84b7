//! KVM_TDX_*, for which kvm-ioctls has no wrappers; the structures are those of the kernel's headers.

use std::os::fd::AsRawFd;

use kvm_bindings::kvm_cpuid_entry2;

const KVM_MEMORY_ENCRYPT_OP: libc::c_ulong = 0xc008_aeba;

/// struct kvm_tdx_cmd.
#[derive(Clone, Copy, Debug, Default)]
#[repr(C)]
pub struct Command {
    /// KVM_TDX_*.
    pub id: u32,
    /// Flags.
    pub flags: u32,
    /// Value or pointer.
    pub data: u64,
    /// The module's status.
    pub hw_error: u64,
}

/// Commands.
pub mod id {
    #![allow(missing_docs, reason = "the header's names")]
    pub const CAPABILITIES: u32 = 0;
    pub const INIT_VM: u32 = 1;
    pub const INIT_VCPU: u32 = 2;
    pub const INIT_MEM_REGION: u32 = 3;
    pub const FINALIZE_VM: u32 = 4;
    pub const GET_CPUID: u32 = 5;
    pub const TERMINATE_VM: u32 = 6;
}

/// struct kvm_tdx_init_vm with room for its table.
#[derive(Clone, Debug)]
#[repr(C)]
pub struct InitVm {
    /// ATTRIBUTES.
    pub attributes: u64,
    /// XFAM.
    pub xfam: u64,
    /// MRCONFIGID, MROWNER, MROWNERCONFIG.
    pub identities: [[u8; 48]; 3],
    /// Must be zero.
    pub reserved: [u64; 12],
    /// Entries in use.
    pub entries: u32,
    /// Must be zero.
    pub padding: u32,
    /// The table.
    pub table: [kvm_cpuid_entry2; 8],
}

/// struct kvm_tdx_init_mem_region.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct MemRegion {
    /// Where the contents are.
    pub source: u64,
    /// Where they go.
    pub gpa: u64,
    /// Pages.
    pub pages: u64,
}

/// struct kvm_tdx_capabilities with room for its table.
#[derive(Clone, Debug)]
#[repr(C)]
pub struct Capabilities {
    /// ATTRIBUTES that may be set.
    pub attributes: u64,
    /// XFAM bits that may be set.
    pub xfam: u64,
    /// kernel_tdvmcallinfo_1_r11, user_tdvmcallinfo_1_r11, kernel_…_r12, user_…_r12.
    pub vmcalls: [u64; 4],
    /// Unused.
    pub reserved: [u64; 250],
    /// Entries.
    pub entries: u32,
    /// Unused.
    pub padding: u32,
    /// The table.
    pub table: [kvm_cpuid_entry2; 64],
}

/// struct kvm_cpuid2 with room for its table.
#[derive(Clone, Debug)]
#[repr(C)]
pub struct Cpuid {
    /// Entries.
    pub entries: u32,
    /// Unused.
    pub padding: u32,
    /// The table.
    pub table: [kvm_cpuid_entry2; 64],
}

const _: () = assert!(size_of::<Command>() == 24);
const _: () = assert!(std::mem::offset_of!(InitVm, table) == 264);
const _: () = assert!(std::mem::offset_of!(Capabilities, entries) == 2048);

/// Runs a command on a VM or vCPU. `Err` has errno and the module's status.
pub fn run(fd: &impl AsRawFd, command: &mut Command) -> Result<(), (i32, u64)> {
    // SAFETY: the structure is the one that the ioctl reads and writes; what its `data` points to is the caller's.
    match unsafe { libc::ioctl(fd.as_raw_fd(), KVM_MEMORY_ENCRYPT_OP, std::ptr::from_mut(command)) } {
        0 => Ok(()),
        _ => Err((std::io::Error::last_os_error().raw_os_error().unwrap_or(0), command.hw_error)),
    }
}

/// A command whose data is a structure.
pub fn with<T>(fd: &impl AsRawFd, id: u32, flags: u32, data: &mut T) -> Result<(), (i32, u64)> {
    run(fd, &mut Command { id, flags, data: std::ptr::from_mut(data) as u64, hw_error: 0 })
}

/// A command whose data is a number.
pub fn plain(fd: &impl AsRawFd, id: u32, data: u64) -> Result<(), (i32, u64)> {
    run(fd, &mut Command { id, flags: 0, data, hw_error: 0 })
}
