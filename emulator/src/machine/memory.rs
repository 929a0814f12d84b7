//! Memslots.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use softkvm_cpu::{Access, HostPage};

use super::gmem::{Changing, GuestMemfd, PAGE};
use super::host_page;
use crate::uapi::errno::Errno;

/// A guest frame number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Gfn(pub u64);

impl Gfn {
    /// The frame that holds this guest-physical address.
    pub fn of(gpa: u64) -> Self {
        Self(gpa / PAGE)
    }
}

/// One memslot.
pub struct Slot {
    /// Slot number with the address space in bits 31:16, as the client gave it.
    pub id: u32,
    /// Guest-physical start; page aligned.
    pub gpa: u64,
    /// Bytes; page aligned, not zero.
    pub bytes: u64,
    /// Address of the shared (or only) view in the client.
    pub hva: u64,
    /// KVM_MEM_READONLY | KVM_MEM_LOG_DIRTY_PAGES | KVM_MEM_GUEST_MEMFD.
    pub flags: u32,
    /// The private view, with the byte offset of the slot's first page.
    pub gmem: Option<(Arc<GuestMemfd>, u64)>,
    /// A bit per page when dirty logging is on.
    pub dirty: Option<Box<[AtomicU64]>>,
    /// A bit per page of the shared view that was found readable in the client.
    pub readable: Box<[AtomicU64]>,
    /// The same for writable.
    pub writable: Box<[AtomicU64]>,
}

impl Slot {
    /// Host address of the shared view of an address inside the slot.
    pub fn shared(&self, gpa: u64) -> *mut u8 {
        (self.hva + (gpa - self.gpa)) as *mut u8
    }

    /// Private memory and byte offset behind an address inside the slot.
    pub fn private(&self, gpa: u64) -> Option<(&Arc<GuestMemfd>, u64)> {
        self.gmem.as_ref().map(|(memory, offset)| (memory, offset + (gpa - self.gpa)))
    }

    /// The TEE's word of the private page behind an address inside the slot.
    pub fn tee_word(&self, gpa: u64) -> Option<&AtomicU64> {
        self.private(gpa).and_then(|(memory, offset)| memory.tee_word(offset))
    }

    /// Excludes everybody else who changes the TEE's words of the slot's private memory.
    pub fn change(&self) -> Option<Changing<'_>> {
        self.gmem.as_ref().map(|(memory, _)| memory.change())
    }

    /// Whether somebody does.
    #[cfg(test)]
    pub fn changing(&self) -> bool {
        self.gmem.as_ref().is_some_and(|(memory, _)| memory.changing())
    }

    /// Host address of the private page behind an address inside the slot.
    pub fn private_page(&self, gpa: u64) -> Option<*mut u8> {
        self.private(gpa & !(PAGE - 1)).and_then(|(memory, offset)| memory.host(offset))
    }

    /// Is the slot read-only for the guest?
    pub fn read_only(&self) -> bool {
        self.flags & kvm_bindings::KVM_MEM_READONLY != 0
    }

    /// The shared view's page for an access of the guest's; `None` where the client has no such memory, or does not let
    /// itself do that: KVM_RUN is EFAULT then.
    ///
    /// A page is granted for writing only when a write asks for it: the dirty log is to see the first one, and a page that
    /// the client can only read is none that may be written without asking.
    pub fn grant(&self, gpa: u64, access: Access) -> Option<HostPage> {
        let page = gpa & !(PAGE - 1);
        let host = self.shared(page);
        let write = access == Access::Write;
        let writable = bit(&self.writable, self.page_number(gpa));
        let known = if write { writable } else { writable || bit(&self.readable, self.page_number(gpa)) };
        if !known {
            if !host_page::populate(host, write) {
                return None;
            }
            set_bit(if write { &self.writable } else { &self.readable }, self.page_number(gpa));
        }
        if write {
            self.mark_dirty(gpa);
        }
        let writable = !self.read_only() && (write || writable && self.dirty.is_none());
        Some(HostPage { host, writable, executable: true })
    }

    fn page_number(&self, gpa: u64) -> u64 {
        (gpa - self.gpa) / PAGE
    }

    /// Notes a write.
    pub fn mark_dirty(&self, gpa: u64) {
        if let Some(bits) = &self.dirty {
            set_bit(bits, self.page_number(gpa));
        }
    }
}

fn bit(bits: &[AtomicU64], page: u64) -> bool {
    bits.get((page / 64) as usize).is_some_and(|word| word.load(Ordering::Relaxed) >> (page % 64) & 1 != 0)
}

fn set_bit(bits: &[AtomicU64], page: u64) {
    if let Some(word) = bits.get((page / 64) as usize) {
        word.fetch_or(1 << (page % 64), Ordering::Relaxed);
    }
}

/// A bit for each page of a slot of this size, all clear.
pub fn page_bits(bytes: u64) -> Box<[AtomicU64]> {
    std::iter::repeat_with(|| AtomicU64::new(0)).take((bytes / PAGE).div_ceil(64) as usize).collect()
}

/// All slots of a VM, sorted by address. Replaced as a whole, never edited.
#[derive(Clone, Default)]
pub struct Slots(Vec<Arc<Slot>>);

impl Slots {
    /// The slot that holds this address.
    pub fn find(&self, gpa: u64) -> Option<&Arc<Slot>> {
        let index = self.0.partition_point(|slot| slot.gpa <= gpa).checked_sub(1)?;
        self.0.get(index).filter(|slot| gpa - slot.gpa < slot.bytes)
    }

    /// The slot with this number.
    pub fn by_id(&self, id: u32) -> Option<&Arc<Slot>> {
        self.0.iter().find(|slot| slot.id == id)
    }

    /// Iterates in address order.
    pub fn iter(&self) -> impl Iterator<Item = &Arc<Slot>> {
        self.0.iter()
    }

    /// This set without one slot.
    pub fn without(&self, id: u32) -> Self {
        Self(self.0.iter().filter(|slot| slot.id != id).cloned().collect())
    }

    /// This set with one more slot; EEXIST if it overlaps another.
    pub fn with(&self, slot: Slot) -> Result<Self, Errno> {
        let end = slot.gpa.checked_add(slot.bytes).ok_or(Errno::EINVAL)?;
        if self.0.iter().any(|other| slot.gpa < other.gpa + other.bytes && other.gpa < end) {
            return Err(Errno::EEXIST);
        }
        let mut slots = self.0.clone();
        let index = slots.partition_point(|other| other.gpa < slot.gpa);
        slots.insert(index, Arc::new(slot));
        Ok(Self(slots))
    }
}

/// Copies between a host buffer and guest memory, page by page.
///
/// `page` gives the host address of the page that holds a guest-physical address.
pub fn for_each_page(
    gpa: u64,
    bytes: usize,
    mut page: impl FnMut(u64, usize, usize) -> Result<(), Errno>,
) -> Result<(), Errno> {
    let mut done = 0usize;
    while done < bytes {
        let at = gpa.checked_add(done as u64).ok_or(Errno::EFAULT)?;
        let room = (PAGE - at % PAGE) as usize;
        let take = room.min(bytes - done);
        page(at, done, take)?;
        done += take;
    }
    Ok(())
}

#[cfg(test)]
pub mod tests {
    use std::os::fd::FromRawFd;
    use std::sync::Weak;

    use super::*;

    /// Private memory of `bytes` at address 0, without a VM.
    pub fn private_slot(bytes: u64) -> Slot {
        // SAFETY: a fresh descriptor, owned here.
        let fd = unsafe { std::os::fd::OwnedFd::from_raw_fd(libc::memfd_create(c"test".as_ptr(), 0)) };
        let file = std::fs::File::from(fd);
        file.set_len(bytes).expect("a memfd has the length that it is told");
        let memory = GuestMemfd::new(Weak::new(), file.into(), bytes).expect("memory");
        let (readable, writable) = (page_bits(bytes), page_bits(bytes));
        let gmem = Some((Arc::new(memory), 0));
        Slot { id: 0, gpa: 0, bytes, hva: 0, flags: 0, gmem, dirty: None, readable, writable }
    }

    #[test]
    fn a_read_of_a_logged_page_grants_no_write() {
        let page = Box::leak(Box::new([0u8; 3 * PAGE as usize]));
        let hva = (page.as_mut_ptr() as u64).next_multiple_of(PAGE);
        for logged in [true, false] {
            let slot = Slot { hva, gmem: None, dirty: logged.then(|| page_bits(PAGE)), ..private_slot(PAGE) };
            let dirty = |slot: &Slot| slot.dirty.as_ref().is_some_and(|bits| bit(bits, 0));
            assert!(!slot.grant(0, Access::Read).expect("memory").writable);
            assert!(!dirty(&slot));
            assert!(slot.grant(8, Access::Write).expect("memory").writable);
            assert_eq!(dirty(&slot), logged);
            // The client fetched the log: the next write is to be seen again.
            assert_eq!(slot.grant(0, Access::Read).expect("memory").writable, !logged);
        }
    }
}
