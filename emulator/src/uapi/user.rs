//! Copies from and to the client's memory, as the kernel's copy_from_user: a bad pointer is EFAULT, not a crash.

use std::mem::MaybeUninit;

use super::errno::Errno;

/// Plain ABI structures: any bit pattern is a value.
///
/// # Safety
/// The type must be `repr(C)`, without padding that matters, and valid for every bit pattern.
pub unsafe trait Abi: Copy {}

macro_rules! abi {
    ($($t:ty),* $(,)?) => {$(
        // SAFETY: a kernel ABI structure of integers (and arrays and unions of them).
        unsafe impl $crate::uapi::user::Abi for $t {}
    )*};
}
pub(crate) use abi;
abi!(u8, u16, u32, u64, i32, [u64; 2], [u8; 4096]);

fn vector(address: usize, bytes: usize) -> libc::iovec {
    libc::iovec { iov_base: address as *mut libc::c_void, iov_len: bytes }
}

/// Copies `target.len()` bytes from the client.
pub fn read_bytes(address: usize, target: &mut [u8]) -> Result<(), Errno> {
    if target.is_empty() {
        return Ok(());
    }
    let (local, remote) = (vector(target.as_mut_ptr() as usize, target.len()), vector(address, target.len()));
    // SAFETY: the local vector is `target`; the kernel checks the remote one.
    let got = unsafe { libc::process_vm_readv(libc::getpid(), &raw const local, 1, &raw const remote, 1, 0) };
    if usize::try_from(got) == Ok(target.len()) { Ok(()) } else { Err(Errno::EFAULT) }
}

/// Copies `source` to the client.
pub fn write_bytes(address: usize, source: &[u8]) -> Result<(), Errno> {
    if source.is_empty() {
        return Ok(());
    }
    let (local, remote) = (vector(source.as_ptr() as usize, source.len()), vector(address, source.len()));
    // SAFETY: the local vector is `source`, only read; the kernel checks the remote one.
    let put =
        unsafe { libc::process_vm_writev(libc::getpid(), &raw const local, 1, &raw const remote, 1, 0) };
    if usize::try_from(put) == Ok(source.len()) { Ok(()) } else { Err(Errno::EFAULT) }
}

/// Reads one structure.
pub fn read<T: Abi>(address: usize) -> Result<T, Errno> {
    let mut value = MaybeUninit::<T>::zeroed();
    // SAFETY: the slice covers exactly `value`, which is initialised to zero.
    let bytes = unsafe { std::slice::from_raw_parts_mut(value.as_mut_ptr().cast::<u8>(), size_of::<T>()) };
    read_bytes(address, bytes)?;
    // SAFETY: `Abi` types are valid for every bit pattern.
    Ok(unsafe { value.assume_init() })
}

/// Writes one structure.
pub fn write<T: Abi>(address: usize, value: &T) -> Result<(), Errno> {
    // SAFETY: `Abi` types are plain data; the slice covers exactly `value`.
    write_bytes(address, unsafe {
        std::slice::from_raw_parts(std::ptr::from_ref(value).cast::<u8>(), size_of::<T>())
    })
}

/// Reads `count` structures that follow one another.
pub fn read_array<T: Abi>(address: usize, count: usize) -> Result<Vec<T>, Errno> {
    (0..count).map(|i| read(address.wrapping_add(i * size_of::<T>()))).collect()
}

/// Writes structures one after the other.
pub fn write_array<T: Abi>(address: usize, values: &[T]) -> Result<(), Errno> {
    values.iter().enumerate().try_for_each(|(i, v)| write(address.wrapping_add(i * size_of::<T>()), v))
}
