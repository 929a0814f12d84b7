//! Work that several processors can share. Without `std` there is one.

/// Calls `work` for each item, in no particular order; returns when all is done.
#[cfg(not(feature = "std"))]
pub(crate) fn for_each<T>(items: impl Iterator<Item = T>, work: impl Fn(T)) {
    items.for_each(work);
}

/// Calls `work` for each item, in no particular order; returns when all is done.
#[cfg(feature = "std")]
pub(crate) fn for_each<T: Send>(items: impl Iterator<Item = T> + Send, work: impl Fn(T) + Sync) {
    use std::sync::{Mutex, PoisonError};
    let (least, most) = items.size_hint();
    let processors = || std::thread::available_parallelism().map_or(1, core::num::NonZero::get);
    let helpers = match most.unwrap_or(least) {
        0 | 1 => 0,
        items => items.min(processors()).saturating_sub(1),
    };
    let items = Mutex::new(items);
    let next = || items.lock().unwrap_or_else(PoisonError::into_inner).next();
    let worker = || {
        while let Some(item) = next() {
            work(item);
        }
    };
    std::thread::scope(|scope| {
        for _ in 0..helpers {
            // Who cannot have a thread does without.
            let _ = std::thread::Builder::new().spawn_scoped(scope, worker);
        }
        worker();
    });
}

/// The results of both, computed beside each other. `one` may be called a second time if a thread fails.
#[cfg(feature = "std")]
pub(crate) fn both<A: Send, B>(one: impl Fn() -> A + Send + Sync, other: impl FnOnce() -> B) -> (A, B) {
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new().spawn_scoped(scope, &one);
        let other = other();
        let one = thread.ok().and_then(|thread| thread.join().ok()).unwrap_or_else(&one);
        (one, other)
    })
}

#[cfg(all(test, feature = "std"))]
mod tests {
    use super::*;

    #[test]
    fn every_item_is_worked_on_once() {
        for count in [0, 1, 2, 7, 1000] {
            let mut items = vec![0; count];
            for_each(items.iter_mut(), |item| *item += 1);
            assert!(items.iter().all(|&item| item == 1), "{count}");
        }
        assert_eq!(both(|| 1, || "two"), (1, "two"));
    }
}
