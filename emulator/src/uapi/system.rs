//! Ioctls on `/dev/kvm`.

use kvm_bindings::{kvm_cpuid_entry2, kvm_cpuid2, kvm_device_attr, kvm_msr_entry, kvm_msr_list, kvm_msrs};

use super::errno::Errno;
use super::{Row, caps, cpuid, io, ior, iow, iowr, tee, user};
use crate::machine::vm::{Vm, VmType};
use crate::machine::{msr, run_page};
use crate::preload::fds::{self, Object};

super::user::abi!(kvm_cpuid_entry2, kvm_msr_entry, kvm_device_attr);

/// The system ioctls.
pub const TABLE: &[Row<()>] = &[
    (io(0x00), |(), arg| if arg == 0 { Ok(12) } else { Err(Errno::EINVAL) }),
    (io(0x01), |(), arg| create_vm(arg)),
    (iowr::<kvm_msr_list>(0x02), |(), arg| msr_list(arg, &msr::saved())),
    (io(0x03), |(), arg| Ok(caps::check(arg as u32))),
    (io(0x04), |(), arg| if arg == 0 { Ok(run_page::MMAP_BYTES as i32) } else { Err(Errno::EINVAL) }),
    (iowr::<kvm_cpuid2>(0x05), |(), arg| give_cpuid(arg, &cpuid::supported())),
    (iowr::<kvm_cpuid2>(0x09), |(), arg| give_cpuid(arg, &[])),
    (iowr::<kvm_msr_list>(0x0a), |(), arg| {
        msr_list(arg, &msr::FEATURES.iter().map(|f| f.0).collect::<Vec<_>>())
    }),
    (iowr::<kvm_msrs>(0x88), |(), arg| feature_msrs(arg)),
    (ior::<u64>(0x9d), |(), arg| user::write(arg, &0x0100_0000u64).map(|()| 0)),
    (iow::<kvm_device_attr>(0xe2), |(), arg| device_attr(arg, true)),
    (iow::<kvm_device_attr>(0xe3), |(), arg| device_attr(arg, false)),
];

fn create_vm(machine: usize) -> Result<i32, Errno> {
    let vm_type = match machine as u32 {
        kvm_bindings::KVM_X86_DEFAULT_VM => VmType::Default,
        kvm_bindings::KVM_X86_SW_PROTECTED_VM => VmType::SwProtected,
        kvm_bindings::KVM_X86_SNP_VM if tee::snp_offered() => VmType::Snp,
        kvm_bindings::KVM_X86_TDX_VM if tee::tdx_offered() => VmType::Tdx,
        other => {
            // KVM's answer says nothing more, and it is the launcher's option that decides.
            let wanted = match other {
                kvm_bindings::KVM_X86_SNP_VM => Some("snp"),
                kvm_bindings::KVM_X86_TDX_VM => Some("tdx"),
                _ => None,
            };
            if let Some(wanted) = wanted {
                crate::note_once!(
                    "this machine has another TEE: start it with `softkvm --tee {wanted} -- …`"
                );
            }
            return Err(Errno::EINVAL);
        }
    };
    let fd = fds::memfd(c"kvm-vm", 0)?;
    Ok(fds::publish(fd, Object::Vm(Vm::new(vm_type))))
}

fn msr_list(address: usize, indices: &[u32]) -> Result<i32, Errno> {
    let room = user::read::<u32>(address)? as usize;
    user::write(address, &(indices.len() as u32))?;
    if room < indices.len() {
        return Err(Errno::E2BIG);
    }
    user::write_array(address + 4, indices)?;
    Ok(0)
}

/// KVM_GET_*_CPUID: E2BIG if the table does not fit, `nent` is what was written.
pub fn give_cpuid(address: usize, entries: &[kvm_cpuid_entry2]) -> Result<i32, Errno> {
    let room = user::read::<u32>(address)? as usize;
    if room < entries.len() {
        return Err(Errno::E2BIG);
    }
    user::write(address, &(entries.len() as u32))?;
    user::write_array(address + size_of::<kvm_cpuid2>(), entries)?;
    Ok(0)
}

fn feature_msrs(address: usize) -> Result<i32, Errno> {
    let count = user::read::<u32>(address)? as usize;
    if count >= 256 {
        return Err(Errno::E2BIG);
    }
    let base = address + size_of::<kvm_msrs>();
    for done in 0..count {
        let at = base + done * size_of::<kvm_msr_entry>();
        let mut entry: kvm_msr_entry = user::read(at)?;
        let Some(&(_, value)) = msr::FEATURES.iter().find(|f| f.0 == entry.index) else {
            return Ok(done as i32);
        };
        entry.data = value;
        user::write(at, &entry)?;
    }
    Ok(count as i32)
}

/// KVM_X86_GRP_SEV / KVM_X86_SEV_VMSA_FEATURES: the features that INIT2 accepts.
fn device_attr(address: usize, get: bool) -> Result<i32, Errno> {
    let attr: kvm_device_attr = user::read(address)?;
    let known = attr.group == kvm_bindings::KVM_X86_GRP_SEV
        && attr.attr == u64::from(kvm_bindings::KVM_X86_SEV_VMSA_FEATURES)
        && tee::snp_offered();
    if attr.flags != 0 || !known {
        return Err(Errno::ENXIO);
    }
    if get {
        user::write(attr.addr as usize, &crate::snp::VMSA_FEATURES_SUPPORTED)?;
    }
    Ok(0)
}
