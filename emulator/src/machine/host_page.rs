//! Whether the client has memory behind a page of a memslot. The kernel would find out by a page fault on the guest's
//! behalf, whose failure is EFAULT; here an access of the guest's is one of this process.

use std::sync::OnceLock;

/// Linux `asm-generic/mman-common.h`; from 5.14 on.
const MADV_POPULATE_READ: libc::c_int = 22;
const MADV_POPULATE_WRITE: libc::c_int = 23;
const PAGE: usize = 4096;

fn advise(page: *mut u8, advice: libc::c_int) -> Result<(), i32> {
    // SAFETY: populating page tables changes no contents, wherever the address leads.
    match unsafe { libc::madvise(page.cast(), PAGE, advice) } {
        0 => Ok(()),
        _ => Err(std::io::Error::last_os_error().raw_os_error().unwrap_or_default()),
    }
}

/// Does this kernel know the advice? Where it does not, [`crate::preload::signals`] is the only net.
fn known() -> bool {
    static KNOWN: OnceLock<bool> = OnceLock::new();
    *KNOWN.get_or_init(|| {
        let here = 0u8;
        let page = (&raw const here as usize & !(PAGE - 1)) as *mut u8;
        advise(page, MADV_POPULATE_READ).is_ok()
    })
}

/// Faults a page in for reading or writing; `false` if that is not possible: no mapping, no permission, or a file that
/// ends before it.
pub fn populate(page: *mut u8, write: bool) -> bool {
    if !known() {
        return true;
    }
    loop {
        match advise(page, if write { MADV_POPULATE_WRITE } else { MADV_POPULATE_READ }) {
            Ok(()) => return true,
            Err(libc::EINTR | libc::EAGAIN) => {}
            Err(libc::EFAULT | libc::ENOMEM | libc::EINVAL | libc::EHWPOISON) => return false,
            Err(_) => return true,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A mapping of one page.
    fn map(protection: libc::c_int, flags: libc::c_int, fd: libc::c_int) -> *mut u8 {
        // SAFETY: a fresh mapping at an address of the kernel's choice.
        let page = unsafe { libc::mmap(std::ptr::null_mut(), PAGE, protection, flags, fd, 0) };
        assert_ne!(page, libc::MAP_FAILED);
        page.cast()
    }

    #[test]
    fn a_page_is_granted_as_far_as_the_client_could_use_it() {
        const ANONYMOUS: libc::c_int = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
        let all = libc::PROT_READ | libc::PROT_WRITE;
        for (protection, read, write) in
            [(all, true, true), (libc::PROT_READ, true, false), (libc::PROT_NONE, false, false)]
        {
            let page = map(protection, ANONYMOUS, -1);
            assert_eq!((populate(page, false), populate(page, true)), (read, write), "{protection}");
        }
        let gone = map(all, ANONYMOUS, -1);
        // SAFETY: the mapping is this test's own, and nothing refers to it.
        unsafe { libc::munmap(gone.cast(), PAGE) };
        assert!(!populate(gone, false) && !populate(gone, true), "unmapped");
        // SAFETY: a descriptor of this test's own.
        let fd = unsafe { libc::memfd_create(c"short".as_ptr(), 0) };
        let page = map(all, libc::MAP_SHARED, fd);
        assert!(!populate(page, false) && !populate(page, true), "behind the end of its file");
        // SAFETY: as above.
        unsafe { libc::ftruncate(fd, PAGE as libc::off_t) };
        assert!(populate(page, false) && populate(page, true));
    }
}
