//! The next definition of each interposed symbol (`RTLD_NEXT`).

use std::ffi::{CStr, c_char, c_int, c_ulong, c_void};
use std::sync::OnceLock;

macro_rules! next_symbol {
    ($($name:ident = $symbol:literal : fn($($arg:ty),*) -> $ret:ty;)*) => {$(
        /// The real function of this name.
        pub fn $name() -> unsafe extern "C" fn($($arg),*) -> $ret {
            static CELL: OnceLock<usize> = OnceLock::new();
            let address = *CELL.get_or_init(|| lookup($symbol));
            // SAFETY: the address is libc's own definition of this symbol, whose C prototype is the one named here.
            unsafe { std::mem::transmute::<usize, unsafe extern "C" fn($($arg),*) -> $ret>(address) }
        }
    )*};
}

fn lookup(symbol: &CStr) -> usize {
    // SAFETY: dlsym takes any handle and a NUL-terminated name.
    let address = unsafe { libc::dlsym(libc::RTLD_NEXT, symbol.as_ptr()) } as usize;
    if address == 0 {
        eprintln!("softkvm: libc has no {symbol:?}; cannot go on");
        std::process::abort();
    }
    address
}

next_symbol! {
    open = c"open": fn(*const c_char, c_int, c_int) -> c_int;
    open64 = c"open64": fn(*const c_char, c_int, c_int) -> c_int;
    openat = c"openat": fn(c_int, *const c_char, c_int, c_int) -> c_int;
    openat64 = c"openat64": fn(c_int, *const c_char, c_int, c_int) -> c_int;
    access = c"access": fn(*const c_char, c_int) -> c_int;
    ioctl = c"ioctl": fn(c_int, c_ulong, *mut c_void) -> c_int;
    close = c"close": fn(c_int) -> c_int;
    dup = c"dup": fn(c_int) -> c_int;
    dup2 = c"dup2": fn(c_int, c_int) -> c_int;
    dup3 = c"dup3": fn(c_int, c_int, c_int) -> c_int;
    fcntl = c"fcntl": fn(c_int, c_int, *mut c_void) -> c_int;
    fallocate = c"fallocate": fn(c_int, c_int, i64, i64) -> c_int;
    mmap = c"mmap": fn(*mut c_void, usize, c_int, c_int, c_int, i64) -> *mut c_void;
    sigaction = c"sigaction": fn(c_int, *const libc::sigaction, *mut libc::sigaction) -> c_int;
}
