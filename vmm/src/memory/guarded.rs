//! The guard between devices and guest memory.

use std::sync::Arc;

use vm_memory::bitmap::BS;
use vm_memory::guest_memory::{Error, GuestMemorySliceIterator, Result};
use vm_memory::{GuestAddress, GuestMemory, GuestMemoryBackend, GuestMemoryMmap, Permissions};

use super::{Ram, SharedPages};

/// A device was pointed at memory that the guest did not share with the host.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("guest memory {gpa:#x}..{:#x} is not shared with the host", gpa.saturating_add(*.len))]
pub struct NotShared {
    /// First byte.
    pub gpa: u64,
    /// Bytes.
    pub len: u64,
}

/// Guest memory as devices see it: everything of a plain guest, only shared pages of a confidential one.
#[derive(Clone, Debug)]
pub struct DeviceMemory {
    ram: Ram,
    shared: Option<Arc<SharedPages>>,
}

impl DeviceMemory {
    /// The memory of a guest that hides nothing.
    pub fn plain(ram: Ram) -> Self {
        Self { ram, shared: None }
    }

    /// The memory of a guest that hides all but its shared pages.
    pub fn confidential(ram: Ram, shared: Arc<SharedPages>) -> Self {
        Self { ram, shared: Some(shared) }
    }

    /// The whole mapping, for [`super::dump`]: of a confidential guest it holds what was shared, and nothing else.
    pub fn mapping(&self) -> &Ram {
        &self.ram
    }

    /// Whether a device may touch all of a range.
    pub fn is_shared(&self, gpa: u64, len: u64) -> bool {
        usize::try_from(len)
            .is_ok_and(|len| GuestMemory::check_range(self, GuestAddress(gpa), len, Permissions::Write))
    }

    /// Whether anything is hidden.
    pub fn is_confidential(&self) -> bool {
        self.shared.is_some()
    }

    fn check(&self, addr: GuestAddress, count: usize) -> std::result::Result<(), NotShared> {
        let (gpa, len) = (addr.0, count as u64);
        let shared =
            |pages: &Arc<SharedPages>| gpa.checked_add(len).is_some_and(|end| pages.all_shared(gpa..end));
        if self.shared.as_ref().is_none_or(shared) { Ok(()) } else { Err(NotShared { gpa, len }) }
    }
}

impl GuestMemory for DeviceMemory {
    type PhysicalMemory = GuestMemoryMmap;
    type Bitmap = ();

    fn check_range(&self, addr: GuestAddress, count: usize, _access: Permissions) -> bool {
        self.check(addr, count).is_ok() && GuestMemoryBackend::check_range(&*self.ram, addr, count)
    }

    // The check and the access are two steps. A guest that takes a page back in between gets nothing out
    // of it: its private page is another one, and what lands in the shared mapping is dropped when the guest
    // next converts the page.
    fn get_slices<'a>(
        &'a self,
        addr: GuestAddress,
        count: usize,
        _access: Permissions,
    ) -> Result<impl GuestMemorySliceIterator<'a, BS<'a, Self::Bitmap>>> {
        self.check(addr, count).map_err(|refused| Error::IOError(std::io::Error::other(refused)))?;
        Ok(GuestMemoryBackend::get_slices(&*self.ram, addr, count))
    }
}

#[cfg(test)]
mod tests {
    use super::super::{map_ram, ram_ranges};
    use super::*;
    use vm_memory::Bytes;

    const PAGE: u64 = 4096;

    fn memory() -> (DeviceMemory, Arc<SharedPages>) {
        let ranges = ram_ranges(16 * PAGE);
        let shared = Arc::new(SharedPages::new(&ranges));
        (DeviceMemory::confidential(map_ram(&ranges).unwrap(), shared.clone()), shared)
    }

    #[test]
    fn a_device_reaches_shared_pages_only() {
        let (memory, shared) = memory();
        let refused = |gpa, len: usize| {
            let error = memory.read_slice(&mut vec![0; len], GuestAddress(gpa)).unwrap_err();
            error.to_string()
        };
        assert!(refused(0, 4).contains("guest memory 0x0..0x4 is not shared with the host"));
        shared.set(PAGE..3 * PAGE, true);
        memory.write_obj(0x1234_5678u32, GuestAddress(2 * PAGE - 2)).unwrap();
        assert_eq!(memory.read_obj::<u32>(GuestAddress(2 * PAGE - 2)).unwrap(), 0x1234_5678);
        assert!(refused(3 * PAGE - 2, 4).contains("0x2ffe..0x3002 is not shared"));
        shared.set(2 * PAGE..3 * PAGE, false);
        assert!(refused(2 * PAGE - 2, 4).contains("is not shared"));
        assert!(refused(u64::MAX - 1, 4).contains("is not shared"), "the end of the address space");
        assert!(!memory.check_range(GuestAddress(2 * PAGE), 1, Permissions::Read));
    }

    #[test]
    fn a_plain_guest_hides_nothing_and_has_an_end() {
        let memory = DeviceMemory::plain(map_ram(&ram_ranges(16 * PAGE)).unwrap());
        memory.write_obj(1u8, GuestAddress(16 * PAGE - 1)).unwrap();
        assert!(memory.write_obj(1u8, GuestAddress(16 * PAGE)).is_err());
    }
}
