//! The kernel's way of saying no.

use std::ffi::c_int;

/// An errno value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Errno(pub c_int);

macro_rules! errnos {
    ($($name:ident)*) => {$(
        #[doc = concat!("`", stringify!($name), "`.")]
        pub const $name: Self = Self(libc::$name);
    )*};
}

impl Errno {
    errnos! { E2BIG EAGAIN EBADF EBUSY EEXIST EFAULT EINTR EINVAL EIO ENODEV ENOENT ENOMEM ENOSPC ENOTTY ENXIO EOPNOTSUPP EPERM }

    /// The calling thread's errno.
    pub fn last() -> Self {
        Self(std::io::Error::last_os_error().raw_os_error().unwrap_or(libc::EIO))
    }

    /// Sets the calling thread's errno and gives the -1 that goes with it.
    pub fn give(self) -> c_int {
        // SAFETY: the thread's own errno location.
        unsafe { *libc::__errno_location() = self.0 };
        -1
    }
}
