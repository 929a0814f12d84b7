//! Memslots.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::gmem::{GuestMemfd, PAGE};
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

    /// Host address of the private page behind an address inside the slot.
    pub fn private_page(&self, gpa: u64) -> Option<*mut u8> {
        self.private(gpa & !(PAGE - 1)).and_then(|(memory, offset)| memory.host(offset))
    }

    /// Is the slot read-only for the guest?
    pub fn read_only(&self) -> bool {
        self.flags & kvm_bindings::KVM_MEM_READONLY != 0
    }

    /// Notes a write.
    pub fn mark_dirty(&self, gpa: u64) {
        if let Some(bits) = &self.dirty {
            let page = (gpa - self.gpa) / PAGE;
            if let Some(word) = bits.get((page / 64) as usize) {
                word.fetch_or(1 << (page % 64), Ordering::Relaxed);
            }
        }
    }
}

/// Fresh dirty bits for a slot of this size.
pub fn dirty_bits(bytes: u64) -> Box<[AtomicU64]> {
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
