//! What must be undone however this process ends: terminal settings, sockets in the file system.
//!
//! Whoever changes such a thing holds an [`Undo`]. Where the process ends without waiting for a thread that holds one,
//! [`undo_all`] does it.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

type Action = Box<dyn FnOnce() + Send>;

/// What is yet to be undone, by a number that grows.
#[derive(Default)]
struct Actions(Mutex<(u64, BTreeMap<u64, Action>)>);

static ACTIONS: Actions = Actions(Mutex::new((0, BTreeMap::new())));

impl Actions {
    fn lock(&self) -> MutexGuard<'_, (u64, BTreeMap<u64, Action>)> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn add(&'static self, action: Action) -> Undo {
        let mut actions = self.lock();
        let (next, all) = &mut *actions;
        *next += 1;
        all.insert(*next, action);
        Undo { of: self, number: *next }
    }

    fn undo_all(&self) {
        let all = std::mem::take(&mut self.lock().1);
        all.into_values().rev().for_each(|action| action());
    }
}

/// Does its action when it is dropped.
pub struct Undo {
    of: &'static Actions,
    number: u64,
}

impl Undo {
    /// To be done once, at the latest when the process ends.
    pub fn new(action: impl FnOnce() + Send + 'static) -> Self {
        ACTIONS.add(Box::new(action))
    }
}

impl Drop for Undo {
    fn drop(&mut self) {
        let action = self.of.lock().1.remove(&self.number);
        if let Some(action) = action {
            action();
        }
    }
}

/// Does whatever is yet to be undone, the last first.
pub fn undo_all() {
    ACTIONS.undo_all();
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicU32, Ordering};

    #[test]
    fn each_action_is_done_once() {
        let done = Arc::new(AtomicU32::new(0));
        // Not the process's: other tests have theirs there.
        let actions: &'static Actions = Box::leak(Box::default());
        let undo = |value| {
            let done = done.clone();
            actions.add(Box::new(move || {
                done.fetch_add(value, Ordering::Relaxed);
            }))
        };
        let (kept, dropped) = (undo(1), undo(10));
        drop(dropped);
        assert_eq!(done.load(Ordering::Relaxed), 10);
        actions.undo_all();
        assert_eq!(done.load(Ordering::Relaxed), 11);
        drop(kept);
        assert_eq!(done.load(Ordering::Relaxed), 11);
    }
}
