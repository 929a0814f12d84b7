//! KVM_SET_MEMORY_ATTRIBUTES: which guest frames are private.

use std::collections::BTreeMap;

use super::memory::Gfn;

/// Ranges of frames with KVM_MEMORY_ATTRIBUTE_PRIVATE; everything else is shared.
#[derive(Debug, Default)]
pub struct Attributes {
    /// Start to end (exclusive); disjoint, never adjacent.
    private: BTreeMap<u64, u64>,
}

impl Attributes {
    /// Is this frame private?
    pub fn is_private(&self, gfn: Gfn) -> bool {
        self.private.range(..=gfn.0).next_back().is_some_and(|(_, &end)| gfn.0 < end)
    }

    /// Are all frames of the range private?
    pub fn all_private(&self, start: Gfn, frames: u64) -> bool {
        let end = start.0.saturating_add(frames);
        self.private.range(..=start.0).next_back().is_some_and(|(_, &e)| end <= e)
    }

    /// Makes a range private or shared.
    pub fn set(&mut self, start: Gfn, frames: u64, private: bool) {
        if frames == 0 {
            return;
        }
        let (mut start, mut end) = (start.0, start.0.saturating_add(frames));
        // Cut or absorb every range that touches [start, end].
        let touched: Vec<(u64, u64)> = self
            .private
            .range(..=end)
            .rev()
            .take_while(|&(_, &e)| e >= start)
            .map(|(&s, &e)| (s, e))
            .collect();
        for (s, e) in touched {
            self.private.remove(&s);
            if private {
                start = start.min(s);
                end = end.max(e);
            } else {
                if s < start {
                    self.private.insert(s, start);
                }
                if e > end {
                    self.private.insert(end, e);
                }
            }
        }
        if private {
            self.private.insert(start, end);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_merge_and_split_like_a_bitmap() {
        let mut model = [false; 64];
        let mut attributes = Attributes::default();
        let mut seed = 0x9e37_79b9_u32;
        for _ in 0..2000 {
            seed = seed.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            let (start, frames, private) =
                ((seed >> 8) as usize % 64, (seed >> 16) as usize % 16, seed >> 31 == 0);
            let end = (start + frames).min(64);
            attributes.set(Gfn(start as u64), (end - start) as u64, private);
            model[start..end].fill(private);
            for (gfn, &expected) in model.iter().enumerate() {
                assert_eq!(attributes.is_private(Gfn(gfn as u64)), expected, "frame {gfn}");
            }
            let mut previous_end = None;
            for (&s, &e) in &attributes.private {
                assert!(s < e && previous_end.is_none_or(|p| p < s), "ranges disjoint and not adjacent");
                previous_end = Some(e);
            }
        }
    }
}
