//! KVM's ioctls: a table per kind of descriptor, argument validation, copies from and to the client.
//!
//! Must never: touch client memory other than through [`user`]; invent an answer to a request that is not in a table.

pub mod caps;
pub mod cpuid;
pub mod errno;
pub mod regs;
pub mod sev;
pub mod system;
pub mod tdx;
pub mod tee;
pub mod user;
pub mod vcpu;
pub mod vm;

use std::sync::atomic::Ordering;

use errno::Errno;

use crate::preload::fds::Object;

/// `_IOC` with KVM's type.
pub const fn io(nr: u32) -> u32 {
    0xae00 | nr
}
/// `_IOR(KVMIO, nr, T)`.
pub const fn ior<T>(nr: u32) -> u32 {
    io(nr) | (2 << 30) | ((size_of::<T>() as u32) << 16)
}
/// `_IOW(KVMIO, nr, T)`.
pub const fn iow<T>(nr: u32) -> u32 {
    io(nr) | (1 << 30) | ((size_of::<T>() as u32) << 16)
}
/// `_IOWR(KVMIO, nr, T)`.
pub const fn iowr<T>(nr: u32) -> u32 {
    io(nr) | (3 << 30) | ((size_of::<T>() as u32) << 16)
}

/// A row of an ioctl table: request, handler.
pub type Row<T> = (u32, fn(&T, usize) -> Result<i32, Errno>);

fn serve<T>(table: &[Row<T>], object: &T, request: u32, argument: usize) -> Result<i32, Errno> {
    match table.iter().find(|row| row.0 == request) {
        Some((_, handler)) => handler(object, argument),
        None => {
            unknown(request);
            Err(Errno::ENOTTY)
        }
    }
}

/// Answers an ioctl on one of our descriptors.
pub fn dispatch(object: &Object, request: u32, argument: usize) -> Result<i32, Errno> {
    let vm = match object {
        Object::Vm(vm) => Some(vm),
        Object::Vcpu(vcpu) => Some(&vcpu.vm),
        Object::Kvm | Object::Sev | Object::Gmem(_) => None,
    };
    if vm.is_some_and(|vm| vm.dead.load(Ordering::SeqCst)) {
        return Err(Errno::EIO);
    }
    match object {
        Object::Kvm => serve(system::TABLE, &(), request, argument),
        Object::Sev => sev::device(request, argument),
        Object::Vm(vm) => serve(vm::TABLE, vm, request, argument),
        Object::Vcpu(vcpu) => serve(vcpu::TABLE, vcpu, request, argument),
        Object::Gmem(_) => Err(Errno::ENOTTY),
    }
}

fn unknown(request: u32) {
    use std::sync::Mutex;
    static SAID: Mutex<Vec<u32>> = Mutex::new(Vec::new());
    if let Ok(mut said) = SAID.lock()
        && !said.contains(&request)
    {
        said.push(request);
        eprintln!("softkvm: ioctl {request:#x} (number {:#x}) is not implemented: ENOTTY", request & 0xff);
    }
}
