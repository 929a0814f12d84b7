//! guest_memfd: memory that only the guest can read, here a memfd that only softkvm maps.
//!
//! Each page carries a word of the TEE's. On hardware the RMP is indexed by system-physical page, and a guest_memfd page is
//! exactly one of those; a secure-EPT entry maps one such page.

use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError, Weak};

use super::vm::Vm;
use crate::preload::real;
use crate::uapi::errno::Errno;

/// Bytes of a base page.
pub const PAGE: u64 = 4096;

/// A guest_memfd.
pub struct GuestMemfd {
    fd: OwnedFd,
    host: *mut u8,
    bytes: u64,
    tee_words: Box<[AtomicU64]>,
    /// Held by whoever changes words: a change may concern a whole 2 MiB range, and depends on what was there.
    changing: Mutex<()>,
    vm: Weak<Vm>,
}

/// Nobody else changes the TEE's words of this memory. Reading them needs no lock: each is one atomic.
pub type Changing<'a> = MutexGuard<'a, ()>;

// SAFETY: the mapping is only accessed as guest memory (raw, racing accesses by design) and lives as long as `self`.
unsafe impl Send for GuestMemfd {}
// SAFETY: as above; the TEE's words are atomics.
unsafe impl Sync for GuestMemfd {}

impl GuestMemfd {
    /// `bytes` of private memory for `vm`, all zero, no page assigned.
    pub fn new(vm: Weak<Vm>, fd: OwnedFd, bytes: u64) -> Result<Self, Errno> {
        let length = usize::try_from(bytes).map_err(|_| Errno::EINVAL)?;
        // SAFETY: a fresh shared mapping of a memfd of this length; no address is forced.
        let host = unsafe {
            real::mmap()(
                std::ptr::null_mut(),
                length,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED,
                fd.as_raw_fd(),
                0,
            )
        };
        if host == libc::MAP_FAILED {
            return Err(Errno::last());
        }
        let pages = usize::try_from(bytes / PAGE).map_err(|_| Errno::EINVAL)?;
        let tee_words = std::iter::repeat_with(|| AtomicU64::new(0)).take(pages).collect();
        Ok(Self { fd, host: host.cast(), bytes, tee_words, changing: Mutex::new(()), vm })
    }

    /// Size in bytes.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Does this memory belong to `vm`?
    pub fn belongs_to(&self, vm: &Vm) -> bool {
        std::ptr::eq(self.vm.as_ptr(), vm)
    }

    /// Host address of a byte offset that lies inside.
    pub fn host(&self, offset: u64) -> Option<*mut u8> {
        // SAFETY: the offset is inside the mapping.
        (offset < self.bytes).then(|| unsafe { self.host.add(offset as usize) })
    }

    /// The TEE's word of the page at a byte offset.
    pub fn tee_word(&self, offset: u64) -> Option<&AtomicU64> {
        self.tee_words.get(usize::try_from(offset / PAGE).ok()?)
    }

    /// Excludes everybody else who changes words.
    pub fn change(&self) -> Changing<'_> {
        // A panic elsewhere leaves whole words.
        self.changing.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether somebody does.
    #[cfg(test)]
    pub fn changing(&self) -> bool {
        self.changing.try_lock().is_err()
    }

    /// Makes whole pages zero. Nobody else may use them meanwhile.
    pub fn zero(&self, offset: u64, bytes: u64) {
        let Some(host) = self.host(offset).filter(|_| offset.saturating_add(bytes) <= self.bytes) else {
            return;
        };
        // SAFETY: inside our own mapping. Pages that were never touched stay untouched this way.
        unsafe {
            if libc::madvise(host.cast(), bytes as usize, libc::MADV_REMOVE) != 0 {
                std::ptr::write_bytes(host, 0, bytes as usize);
            }
        }
    }

    /// fallocate(2) on a guest_memfd: allocation and hole punching, page aligned, nothing else.
    pub fn fallocate(&self, mode: i32, offset: i64, length: i64) -> Result<(), Errno> {
        let punch = mode == libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
        if !punch && mode != libc::FALLOC_FL_KEEP_SIZE {
            return Err(Errno::EOPNOTSUPP);
        }
        let (start, length_u) = (
            u64::try_from(offset).map_err(|_| Errno::EINVAL)?,
            u64::try_from(length).map_err(|_| Errno::EINVAL)?,
        );
        if start % PAGE != 0 || length_u % PAGE != 0 || length_u == 0 {
            return Err(Errno::EINVAL);
        }
        if punch {
            let end = start.saturating_add(length_u).min(self.bytes);
            let _changing = self.change();
            // The kernel zaps the mappings, then hands the pages back to the hypervisor (kvm_arch_gmem_invalidate).
            for offset in (start..end).step_by(PAGE as usize) {
                if let Some(entry) = self.tee_word(offset) {
                    entry.store(0, Ordering::SeqCst);
                }
            }
            if let Some(vm) = self.vm.upgrade() {
                vm.flush_all();
            }
        }
        // SAFETY: our own descriptor.
        match unsafe { real::fallocate()(self.fd.as_raw_fd(), mode, offset, length) } {
            0 => Ok(()),
            _ => Err(Errno::last()),
        }
    }
}

impl Drop for GuestMemfd {
    fn drop(&mut self) {
        // SAFETY: our own mapping; no TLB entry outlives the VM that holds this memory.
        unsafe { libc::munmap(self.host.cast(), self.bytes as usize) };
    }
}
