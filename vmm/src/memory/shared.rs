//! Which pages of a confidential guest's RAM are shared with the host: one bit a page.

use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::layout::PAGE_SIZE;

/// The bits. Reading and writing them needs no lock; conversions are serialised by the converter.
#[derive(Debug)]
pub struct SharedPages(Vec<Region>);

#[derive(Debug)]
struct Region {
    range: Range<u64>,
    words: Vec<AtomicU64>,
}

impl SharedPages {
    /// All pages of `ranges` private.
    pub fn new(ranges: &[Range<u64>]) -> Self {
        let region = |range: &Range<u64>| {
            let pages = (range.end - range.start) / PAGE_SIZE;
            let words = (0..pages.div_ceil(64)).map(|_| AtomicU64::new(0)).collect();
            Region { range: range.clone(), words }
        };
        Self(ranges.iter().map(region).collect())
    }

    /// Sets every page of `range`, which must lie in RAM.
    pub fn set(&self, range: Range<u64>, shared: bool) {
        for (word, mask) in self.masks(&range) {
            match shared {
                true => word.fetch_or(mask, Ordering::AcqRel),
                false => word.fetch_and(!mask, Ordering::AcqRel),
            };
        }
    }

    /// Whether all of `range` lies in RAM and is shared.
    pub fn all_shared(&self, range: Range<u64>) -> bool {
        self.contains(&range)
            && self.masks(&range).all(|(word, mask)| word.load(Ordering::Acquire) & mask == mask)
    }

    /// Whether all of `range` lies in one region of RAM.
    pub fn contains(&self, range: &Range<u64>) -> bool {
        self.region(range).is_some()
    }

    /// How many pages are shared.
    #[cfg(test)]
    pub fn count(&self) -> u64 {
        let words = self.0.iter().flat_map(|region| &region.words);
        words.map(|word| u64::from(word.load(Ordering::Relaxed).count_ones())).sum()
    }

    fn region(&self, range: &Range<u64>) -> Option<&Region> {
        let holds = |region: &&Region| region.range.start <= range.start && range.end <= region.range.end;
        self.0.iter().find(holds).filter(|_| range.start <= range.end)
    }

    /// The words that hold the bits of `range`, each with the bits that belong to it.
    fn masks(&self, range: &Range<u64>) -> impl Iterator<Item = (&AtomicU64, u64)> {
        let region = self.region(range);
        let base = region.map_or(0, |region| region.range.start);
        let first = range.start.saturating_sub(base) / PAGE_SIZE;
        let end = range.end.saturating_sub(base).div_ceil(PAGE_SIZE);
        let words = region.filter(|_| first < end).map(|region| region.words.iter().zip(0u64..));
        words.into_iter().flatten().skip((first / 64) as usize).map_while(move |(word, index)| {
            let (low, high) =
                (first.saturating_sub(index * 64).min(64), end.saturating_sub(index * 64).min(64));
            let below = |bits: u64| if bits == 64 { u64::MAX } else { (1 << bits) - 1 };
            (high > 0).then(|| (word, below(high) & !below(low)))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOW: Range<u64> = 0..130 * PAGE_SIZE;
    const HIGH: Range<u64> = 1 << 32..(1 << 32) + 3 * PAGE_SIZE;

    fn pages(range: Range<u64>) -> Range<u64> {
        range.start * PAGE_SIZE..range.end * PAGE_SIZE
    }

    #[test]
    fn exactly_the_pages_that_were_set_are_shared() {
        for range in [0..1, 63..65, 0..64, 64..128, 1..130, 129..130, 0..130] {
            let shared = SharedPages::new(&[LOW, HIGH]);
            shared.set(pages(range.clone()), true);
            assert_eq!(shared.count(), range.end - range.start, "{range:?}");
            for page in 0..130 {
                assert_eq!(
                    shared.all_shared(pages(page..page + 1)),
                    range.contains(&page),
                    "{range:?} {page}"
                );
            }
            shared.set(pages(range), false);
            assert_eq!(shared.count(), 0);
        }
    }

    #[test]
    fn a_range_is_shared_only_as_a_whole_and_only_in_ram() {
        let shared = SharedPages::new(&[LOW, HIGH]);
        shared.set(LOW, true);
        shared.set(HIGH, true);
        assert!(shared.all_shared(LOW) && shared.all_shared(HIGH));
        assert!(shared.all_shared(5..6) && shared.all_shared(4095..4097));
        shared.set(pages(64..65), false);
        assert!(!shared.all_shared(pages(63..66)));
        assert!(!shared.all_shared(64 * PAGE_SIZE - 1..64 * PAGE_SIZE + 1));
        for outside in
            [LOW.end..LOW.end + 1, 0..LOW.end + 1, HIGH.start - 1..HIGH.end, u64::MAX - 1..u64::MAX]
        {
            assert!(!shared.all_shared(outside.clone()), "{outside:?}");
        }
    }
}
