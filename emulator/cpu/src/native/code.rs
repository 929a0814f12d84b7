//! Memory for stubs: written through one mapping, executed through another, never both through one.

use std::collections::HashMap;

use iced_x86::Instruction;

use super::{Stub, Unit, emit};

/// Room for stubs of one processor.
const BYTES: usize = 4 << 20;

/// The stubs of one processor.
pub(crate) struct Native {
    area: Option<Area>,
    used: usize,
    by_bytes: HashMap<Vec<u8>, Stub>,
    /// No room is left; the run loop starts over.
    pub(crate) full: bool,
}

/// Why there is no stub.
pub(crate) enum NoStub {
    /// No room is left.
    Full,
    /// The instruction has no 64-bit form, or the host grants no memory for code.
    Impossible,
}

/// Two mappings of the same memory.
struct Area {
    write: *mut u8,
    execute: *const u8,
}

impl Area {
    fn new() -> Option<Self> {
        // SAFETY: plain system calls on a descriptor that is ours; failures are checked.
        unsafe {
            let fd = libc::memfd_create(c"softkvm-native".as_ptr(), libc::MFD_CLOEXEC);
            if fd < 0 {
                return None;
            }
            let map =
                |protection| libc::mmap(core::ptr::null_mut(), BYTES, protection, libc::MAP_SHARED, fd, 0);
            let area = if libc::ftruncate(fd, BYTES as libc::off_t) == 0 {
                let write = map(libc::PROT_READ | libc::PROT_WRITE);
                let execute = map(libc::PROT_READ | libc::PROT_EXEC);
                (write != libc::MAP_FAILED && execute != libc::MAP_FAILED)
                    .then(|| Self { write: write.cast(), execute: execute.cast::<u8>().cast_const() })
            } else {
                None
            };
            libc::close(fd);
            area
        }
    }
}

impl Drop for Area {
    fn drop(&mut self) {
        // SAFETY: both mappings are ours, and stubs are called only while their processor lives.
        unsafe {
            libc::munmap(self.write.cast(), BYTES);
            libc::munmap(self.execute.cast_mut().cast(), BYTES);
        }
    }
}

impl Native {
    pub(crate) fn new() -> Self {
        Self { area: None, used: 0, by_bytes: HashMap::new(), full: false }
    }

    /// Forgets every stub. No block that knows one may survive.
    pub(crate) fn clear(&mut self) {
        self.used = 0;
        self.by_bytes.clear();
        self.full = false;
    }

    /// The stub of an instruction.
    pub(crate) fn stub(&mut self, i: &Instruction, unit: Unit, float: bool) -> Result<Stub, NoStub> {
        let code = emit::stub(i, unit, float).ok_or(NoStub::Impossible)?;
        if let Some(stub) = self.by_bytes.get(&code) {
            return Ok(*stub);
        }
        if self.area.is_none() {
            self.area = Area::new();
        }
        let area = self.area.as_ref().ok_or(NoStub::Impossible)?;
        let at = self.used.next_multiple_of(16);
        if at + code.len() > BYTES {
            return Err(NoStub::Full);
        }
        self.used = at + code.len();
        // SAFETY: `at` and the length are inside the writable mapping, and no stub lives there yet. The code is a
        // complete function with the `Stub` signature.
        let stub = unsafe {
            core::ptr::copy_nonoverlapping(code.as_ptr(), area.write.add(at), code.len());
            core::mem::transmute::<*const u8, Stub>(area.execute.add(at))
        };
        self.by_bytes.insert(code, stub);
        Ok(stub)
    }
}
