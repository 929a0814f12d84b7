//! Work that several processors can share. Without `std` there is one.

/// Calls `work` for each item, on whoever is free, and `then` with each result, here and in order.
#[cfg(not(feature = "std"))]
pub(crate) fn in_order<T, R>(items: &[T], work: impl Fn(&T) -> R, mut then: impl FnMut(&R)) {
    items.iter().for_each(|item| then(&work(item)));
}

/// Calls `work` for each item, on whoever is free, and `then` with each result, here and in order.
#[cfg(feature = "std")]
pub(crate) fn in_order<T: Sync, R: Send + Sync>(
    items: &[T],
    work: impl Fn(&T) -> R + Sync,
    mut then: impl FnMut(&R),
) {
    use std::sync::OnceLock;
    use std::sync::atomic::{AtomicUsize, Ordering};

    let taken = AtomicUsize::new(0);
    let results: Vec<(&T, OnceLock<R>)> = items.iter().map(|item| (item, OnceLock::new())).collect();
    // Does the next item that nobody has taken.
    let work_on = || {
        let (item, result) = results.get(taken.fetch_add(1, Ordering::Relaxed))?;
        result.get_or_init(|| work(item));
        Some(())
    };
    let processors = || std::thread::available_parallelism().map_or(1, core::num::NonZero::get);
    let helpers = match items.len() {
        0 | 1 => 0,
        several => several.min(processors()).saturating_sub(1),
    };
    std::thread::scope(|scope| {
        for _ in 0..helpers {
            // Who cannot have a thread does without.
            let _ = std::thread::Builder::new().spawn_scoped(scope, || while work_on().is_some() {});
        }
        for (item, result) in &results {
            // Somebody else may be at it: until they are done there is other work, or none left.
            while result.get().is_none() && work_on().is_some() {}
            then(result.get_or_init(|| work(item)));
        }
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
    fn results_come_once_each_and_in_order() {
        for count in [0, 1, 2, 7, 1000] {
            let (items, mut results): (Vec<u32>, _) = ((0..count).collect(), vec![]);
            in_order(&items, |item| item + 1, |&result| results.push(result));
            assert!(results.into_iter().eq(1..=count), "{count}");
        }
        assert_eq!(both(|| 1, || "two"), (1, "two"));
    }
}
