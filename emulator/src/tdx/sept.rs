//! Secure EPT: one word per guest_memfd page, changed atomically.

use std::sync::atomic::{AtomicU64, Ordering};

const PENDING: u64 = 1 << 0;
const MAPPED: u64 = 1 << 1;
/// The page belongs to a 2 MiB leaf.
const LARGE: u64 = 1 << 2;
const GFN_SHIFT: u32 = 24;

/// State of a leaf.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// No page: never added, or removed by the host.
    Free,
    /// Added by the host (TDH.MEM.PAGE.AUG), not accepted by the guest.
    Pending,
    /// The guest's.
    Mapped,
}

/// A snapshot of a leaf entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry(u64);

impl Entry {
    /// Reads an entry.
    pub fn load(word: &AtomicU64) -> Self {
        Self(word.load(Ordering::SeqCst))
    }

    /// An entry for a page at this frame.
    pub fn new(gfn: u64, state: State, large: bool) -> Self {
        let state = match state {
            State::Free => return Self(0),
            State::Pending => PENDING,
            State::Mapped => MAPPED,
        };
        Self(state | if large { LARGE } else { 0 } | gfn << GFN_SHIFT)
    }

    /// The word.
    pub fn raw(self) -> u64 {
        self.0
    }

    /// Stores the entry.
    pub fn store(self, word: &AtomicU64) {
        word.store(self.0, Ordering::SeqCst);
    }

    /// Stores the entry if it is still what `before` was.
    pub fn replace(self, word: &AtomicU64, before: Self) -> bool {
        word.compare_exchange(before.0, self.0, Ordering::SeqCst, Ordering::SeqCst).is_ok()
    }

    /// The state.
    pub fn state(self) -> State {
        match self.0 & (PENDING | MAPPED) {
            0 => State::Free,
            PENDING => State::Pending,
            _ => State::Mapped,
        }
    }

    /// Part of a 2 MiB leaf?
    pub fn large(self) -> bool {
        self.0 & LARGE != 0
    }

    /// The frame that it maps.
    pub fn gfn(self) -> u64 {
        self.0 >> GFN_SHIFT
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_do_not_overlap_and_a_free_entry_is_zero() {
        for (state, large) in
            [(State::Pending, false), (State::Pending, true), (State::Mapped, false), (State::Mapped, true)]
        {
            let entry = Entry::new(0xf_ffff_ffff, state, large);
            assert_eq!((entry.state(), entry.large(), entry.gfn()), (state, large, 0xf_ffff_ffff));
        }
        assert_eq!(Entry::new(5, State::Free, true).raw(), 0);
    }
}
