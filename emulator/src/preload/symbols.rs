//! The exported symbols themselves.
//!
//! `open`, `openat`, `ioctl` and `fcntl` are variadic in C. On x86-64 a variadic callee with integer arguments reads the
//! same registers as a fixed one, so fixed prototypes interpose them correctly.

use std::ffi::{CStr, c_char, c_int, c_ulong, c_void};

use super::{cpuid, fds, real, signals};
use crate::uapi;

fn device(path: *const c_char) -> Option<fds::Object> {
    if path.is_null() {
        return None;
    }
    // SAFETY: open's contract: a NUL-terminated path.
    match unsafe { CStr::from_ptr(path) }.to_bytes() {
        b"/dev/kvm" => Some(fds::Object::Kvm),
        b"/dev/sev" if uapi::tee::snp_offered() => Some(fds::Object::Sev),
        _ => None,
    }
}

fn open_device(object: fds::Object) -> c_int {
    cpuid::intercept();
    match fds::memfd(c"softkvm", 0) {
        Ok(fd) => fds::publish(fd, object),
        Err(errno) => errno.give(),
    }
}

macro_rules! interpose_open {
    ($($name:ident -> $real:ident;)*) => {$(
        /// # Safety
        /// As the libc function of this name.
        #[unsafe(no_mangle)]
        pub unsafe extern "C" fn $name(path: *const c_char, flags: c_int, mode: c_int) -> c_int {
            match device(path) {
                Some(object) => open_device(object),
                // SAFETY: passed on unchanged.
                None => unsafe { real::$real()(path, flags, mode) },
            }
        }
    )*};
}

macro_rules! interpose_openat {
    ($($name:ident -> $real:ident;)*) => {$(
        /// # Safety
        /// As the libc function of this name.
        #[unsafe(no_mangle)]
        pub unsafe extern "C" fn $name(dir: c_int, path: *const c_char, flags: c_int, mode: c_int) -> c_int {
            match device(path) {
                Some(object) => open_device(object),
                // SAFETY: passed on unchanged.
                None => unsafe { real::$real()(dir, path, flags, mode) },
            }
        }
    )*};
}

interpose_open! { open -> open; open64 -> open64; __open_2 -> open; __open64_2 -> open64; }
interpose_openat! { openat -> openat; openat64 -> openat64; __openat_2 -> openat; __openat64_2 -> openat64; }

/// # Safety
/// As access(2).
#[unsafe(no_mangle)]
pub unsafe extern "C" fn access(path: *const c_char, mode: c_int) -> c_int {
    match device(path) {
        Some(_) => 0,
        // SAFETY: passed on unchanged.
        None => unsafe { real::access()(path, mode) },
    }
}

/// # Safety
/// As ioctl(2).
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ioctl(fd: c_int, request: c_ulong, argument: *mut c_void) -> c_int {
    match fds::get(fd) {
        // The kernel's `ioctl` takes an unsigned int: the upper half that a sign extension leaves is ignored.
        Some(object) => match uapi::dispatch(&object, request as u32, argument as usize) {
            Ok(value) => value,
            Err(errno) => errno.give(),
        },
        // SAFETY: passed on unchanged.
        None => unsafe { real::ioctl()(fd, request, argument) },
    }
}

/// # Safety
/// As close(2).
#[unsafe(no_mangle)]
pub unsafe extern "C" fn close(fd: c_int) -> c_int {
    fds::closed(fd);
    // SAFETY: passed on unchanged.
    unsafe { real::close()(fd) }
}

/// # Safety
/// As dup(2).
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dup(fd: c_int) -> c_int {
    // SAFETY: passed on unchanged.
    let new = unsafe { real::dup()(fd) };
    if new >= 0 {
        fds::duplicated(fd, new);
    }
    new
}

/// # Safety
/// As dup2(2).
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dup2(old: c_int, new: c_int) -> c_int {
    // SAFETY: passed on unchanged.
    let result = unsafe { real::dup2()(old, new) };
    if result >= 0 && old != new {
        fds::duplicated(old, new);
    }
    result
}

/// # Safety
/// As dup3(2).
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dup3(old: c_int, new: c_int, flags: c_int) -> c_int {
    // SAFETY: passed on unchanged.
    let result = unsafe { real::dup3()(old, new, flags) };
    if result >= 0 {
        fds::duplicated(old, new);
    }
    result
}

fn fcntl_common(fd: c_int, command: c_int, argument: *mut c_void) -> c_int {
    // SAFETY: passed on unchanged.
    let result = unsafe { real::fcntl()(fd, command, argument) };
    if result >= 0 && matches!(command, libc::F_DUPFD | libc::F_DUPFD_CLOEXEC) {
        fds::duplicated(fd, result);
    }
    result
}

/// # Safety
/// As fcntl(2).
#[unsafe(no_mangle)]
pub unsafe extern "C" fn fcntl(fd: c_int, command: c_int, argument: *mut c_void) -> c_int {
    fcntl_common(fd, command, argument)
}

/// # Safety
/// As fcntl(2).
#[unsafe(no_mangle)]
pub unsafe extern "C" fn fcntl64(fd: c_int, command: c_int, argument: *mut c_void) -> c_int {
    fcntl_common(fd, command, argument)
}

fn fallocate_common(fd: c_int, mode: c_int, offset: i64, length: i64) -> c_int {
    match fds::get(fd) {
        Some(fds::Object::Gmem(gmem)) => match gmem.fallocate(mode, offset, length) {
            Ok(()) => 0,
            Err(errno) => errno.give(),
        },
        // SAFETY: passed on unchanged.
        _ => unsafe { real::fallocate()(fd, mode, offset, length) },
    }
}

/// # Safety
/// As fallocate(2).
#[unsafe(no_mangle)]
pub unsafe extern "C" fn fallocate(fd: c_int, mode: c_int, offset: i64, length: i64) -> c_int {
    fallocate_common(fd, mode, offset, length)
}

/// # Safety
/// As fallocate(2).
#[unsafe(no_mangle)]
pub unsafe extern "C" fn fallocate64(fd: c_int, mode: c_int, offset: i64, length: i64) -> c_int {
    fallocate_common(fd, mode, offset, length)
}

/// A guest_memfd without GUEST_MEMFD_FLAG_MMAP cannot be mapped: the host must not see private memory.
fn mmap_common(
    addr: *mut c_void,
    length: usize,
    prot: c_int,
    flags: c_int,
    fd: c_int,
    offset: i64,
) -> *mut c_void {
    if fd >= 0 && matches!(fds::get(fd), Some(fds::Object::Gmem(_))) {
        uapi::errno::Errno(libc::ENODEV).give();
        return libc::MAP_FAILED;
    }
    // SAFETY: passed on unchanged.
    unsafe { real::mmap()(addr, length, prot, flags, fd, offset) }
}

/// # Safety
/// As mmap(2).
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mmap(
    a: *mut c_void,
    l: usize,
    p: c_int,
    f: c_int,
    fd: c_int,
    o: i64,
) -> *mut c_void {
    mmap_common(a, l, p, f, fd, o)
}

/// # Safety
/// As mmap(2).
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mmap64(
    a: *mut c_void,
    l: usize,
    p: c_int,
    f: c_int,
    fd: c_int,
    o: i64,
) -> *mut c_void {
    mmap_common(a, l, p, f, fd, o)
}

/// # Safety
/// As sigaction(2).
#[unsafe(no_mangle)]
pub unsafe extern "C" fn sigaction(
    s: c_int,
    new: *const libc::sigaction,
    old: *mut libc::sigaction,
) -> c_int {
    // SAFETY: passed on under the same contract.
    unsafe { signals::sigaction(s, new, old) }
}

/// # Safety
/// As signal(3).
#[unsafe(no_mangle)]
pub unsafe extern "C" fn signal(number: c_int, handler: libc::sighandler_t) -> libc::sighandler_t {
    // SAFETY: all-zero is a valid sigaction (default action, empty mask).
    let (mut new, mut old): (libc::sigaction, libc::sigaction) =
        unsafe { (std::mem::zeroed(), std::mem::zeroed()) };
    new.sa_sigaction = handler;
    new.sa_flags = libc::SA_RESTART;
    // SAFETY: both structures live on this frame.
    match unsafe { signals::sigaction(number, &raw const new, &raw mut old) } {
        0 => old.sa_sigaction,
        _ => libc::SIG_ERR,
    }
}
