//! Which descriptor is which of our objects.

use std::collections::HashMap;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::sync::{Arc, OnceLock, RwLock};

use crate::machine::gmem::GuestMemfd;
use crate::machine::vcpu::Vcpu;
use crate::machine::vm::Vm;
use crate::uapi::errno::Errno;

/// What stands behind a descriptor.
#[derive(Clone)]
pub enum Object {
    /// `/dev/kvm`.
    Kvm,
    /// `/dev/sev`.
    Sev,
    /// From KVM_CREATE_VM.
    Vm(Arc<Vm>),
    /// From KVM_CREATE_VCPU.
    Vcpu(Arc<Vcpu>),
    /// From KVM_CREATE_GUEST_MEMFD.
    Gmem(Arc<GuestMemfd>),
}

fn table() -> &'static RwLock<HashMap<RawFd, Object>> {
    static TABLE: OnceLock<RwLock<HashMap<RawFd, Object>>> = OnceLock::new();
    TABLE.get_or_init(RwLock::default)
}

/// The object behind `fd`, if it is ours.
pub fn get(fd: RawFd) -> Option<Object> {
    table().read().ok()?.get(&fd).cloned()
}

/// Enters `fd` for `object`; the client owns the descriptor from here on.
pub fn publish(fd: OwnedFd, object: Object) -> RawFd {
    let raw = std::os::fd::IntoRawFd::into_raw_fd(fd);
    if let Ok(mut table) = table().write() {
        table.insert(raw, object);
    }
    raw
}

/// `new` now refers to what `old` refers to.
pub fn duplicated(old: RawFd, new: RawFd) {
    if let Ok(mut table) = table().write() {
        match table.get(&old).cloned() {
            Some(object) => table.insert(new, object),
            None => table.remove(&new),
        };
    }
}

/// The client is about to close `fd`. The object lives on while other descriptors or VMs hold it.
pub fn closed(fd: RawFd) {
    let gone = match table().write() {
        Ok(mut table) if table.contains_key(&fd) => table.remove(&fd),
        _ => None,
    };
    // Dropped outside the lock: a VM's last reference ends its threads.
    drop(gone);
}

/// A new memfd of `bytes` bytes, close-on-exec.
pub fn memfd(name: &std::ffi::CStr, bytes: u64) -> Result<OwnedFd, Errno> {
    // SAFETY: memfd_create takes a NUL-terminated name; the result is checked and owned.
    let fd = unsafe {
        let raw = libc::memfd_create(name.as_ptr(), libc::MFD_CLOEXEC);
        if raw < 0 {
            return Err(Errno::last());
        }
        OwnedFd::from_raw_fd(raw)
    };
    let length = libc::off_t::try_from(bytes).map_err(|_| Errno::EINVAL)?;
    // SAFETY: the descriptor is the memfd made above.
    if unsafe { libc::ftruncate(fd.as_raw_fd(), length) } != 0 {
        return Err(Errno::last());
    }
    Ok(fd)
}

/// The vCPUs of a VM, by ID: the order in which KVM numbers and measures them.
pub fn vcpus_of(vm: &Arc<Vm>) -> Vec<Arc<Vcpu>> {
    let Ok(table) = table().read() else { return Vec::new() };
    let mut list: Vec<Arc<Vcpu>> = Vec::new();
    for object in table.values() {
        if let Object::Vcpu(vcpu) = object
            && Arc::ptr_eq(&vcpu.vm, vm)
            && !list.iter().any(|other| Arc::ptr_eq(other, vcpu))
        {
            list.push(Arc::clone(vcpu));
        }
    }
    list.sort_by_key(|vcpu| vcpu.shared.id);
    list
}

/// The VMs that this process has, each once.
pub fn vms() -> Vec<Arc<Vm>> {
    let Ok(table) = table().read() else { return Vec::new() };
    let mut list: Vec<Arc<Vm>> = Vec::new();
    for object in table.values() {
        let vm = match object {
            Object::Vm(vm) => vm,
            // It outlives its own descriptor.
            Object::Vcpu(vcpu) => &vcpu.vm,
            Object::Kvm | Object::Sev | Object::Gmem(_) => continue,
        };
        if !list.iter().any(|other| Arc::ptr_eq(other, vm)) {
            list.push(Arc::clone(vm));
        }
    }
    list
}
