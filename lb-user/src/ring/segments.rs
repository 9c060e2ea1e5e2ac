//! Which parts of the ring map are in use.

use std::collections::{BTreeMap, BTreeSet};

/// A buddy allocator of power-of-two segments. Every segment begins at a multiple of its length,
/// and a freed one merges with its other half, so that the map does not fall to pieces.
#[derive(Clone, Debug)]
pub struct Segments {
    total: u32,
    /// Free segments: length to first rows.
    free: BTreeMap<u32, BTreeSet<u32>>,
}

/// Why a segment could not be reserved.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("rows {base} to {end} are not free", end = u64::from(*base) + u64::from(*len) - 1)]
pub struct NotFree {
    base: u32,
    len: u32,
}

impl Segments {
    /// Returns an allocator of `total` rows, a power of two.
    pub fn new(total: u32) -> Self {
        let free = BTreeMap::from([(total, BTreeSet::from([0]))]);
        Self { total, free }
    }

    /// Takes `len` rows, a power of two, and returns the first; nothing if there is no room.
    pub fn alloc(&mut self, len: u32) -> Option<u32> {
        let (&found, bases) = self
            .free
            .range(len.max(1)..)
            .find(|(_, bases)| !bases.is_empty())?;
        let base = *bases.first()?;
        self.split(found, base, len.max(1), base);
        Some(base)
    }

    /// Takes the `len` rows from `base` on, which must lie as [`Self::alloc`] would put them.
    pub fn reserve(&mut self, base: u32, len: u32) -> Result<(), NotFree> {
        let refused = NotFree { base, len };
        if !len.is_power_of_two() || !base.is_multiple_of(len) || len > self.total {
            return Err(refused);
        }
        let mut size = len;
        while size <= self.total {
            let start = base & !(size - 1);
            if self
                .free
                .get(&size)
                .is_some_and(|bases| bases.contains(&start))
            {
                self.split(size, start, len, base);
                return Ok(());
            }
            match size.checked_mul(2) {
                Some(next) => size = next,
                None => break,
            }
        }
        Err(refused)
    }

    /// Gives `len` rows from `base` on back.
    pub fn free(&mut self, base: u32, len: u32) {
        let (mut base, mut len) = (base, len);
        while len < self.total {
            let buddy = base ^ len;
            let merged = self
                .free
                .get_mut(&len)
                .is_some_and(|bases| bases.remove(&buddy));
            if !merged {
                break;
            }
            base &= !len;
            len *= 2;
        }
        self.free.entry(len).or_default().insert(base);
    }

    /// Returns how many rows are free.
    pub fn available(&self) -> u64 {
        let free = self.free.iter();
        free.map(|(len, bases)| u64::from(*len) * bases.len() as u64)
            .sum()
    }

    /// Returns the length of the longest free segment.
    pub fn largest(&self) -> u32 {
        let mut free = self.free.iter().rev();
        free.find(|(_, bases)| !bases.is_empty())
            .map_or(0, |(len, _)| *len)
    }

    /// Takes `len` rows at `base` out of the free segment of `found` rows at `start`.
    fn split(&mut self, found: u32, start: u32, len: u32, base: u32) {
        self.free.entry(found).or_default().remove(&start);
        let (mut size, mut start) = (found, start);
        while size > len {
            size /= 2;
            let upper = start + size;
            let rest = if base >= upper {
                std::mem::replace(&mut start, upper)
            } else {
                upper
            };
            self.free.entry(size).or_default().insert(rest);
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_full_map_says_no_and_freed_halves_merge() {
        let mut segments = Segments::new(1024);
        let bases: Vec<u32> = (0..4).map(|_| segments.alloc(256).unwrap()).collect();
        assert_eq!(segments.alloc(1), None);
        for base in bases {
            segments.free(base, 256);
        }
        assert_eq!(segments.largest(), 1024);
        assert_eq!(segments.alloc(1024), Some(0));
    }

    #[test]
    fn a_reserved_segment_is_not_given_away() {
        let mut segments = Segments::new(1024);
        segments.reserve(512, 256).unwrap();
        assert!(segments.reserve(512, 512).is_err());
        assert!(segments.reserve(0, 1024).is_err());
        assert!(segments.reserve(100, 256).is_err(), "not where it could be");
        assert_eq!(segments.alloc(512), Some(0));
        assert_eq!(segments.alloc(256), Some(768));
        assert_eq!(segments.available(), 0);
    }

    proptest! {
        #[test]
        fn segments_never_overlap_and_nothing_is_lost(
            operations in prop::collection::vec((any::<bool>(), 0_u32..8, any::<prop::sample::Index>()), 1..200),
        ) {
            let mut segments = Segments::new(1024);
            let mut used: Vec<(u32, u32)> = Vec::new();
            for (free, bits, which) in operations {
                if free && !used.is_empty() {
                    let (base, len) = used.swap_remove(which.index(used.len()));
                    segments.free(base, len);
                } else if let Some(base) = segments.alloc(1 << bits) {
                    let len = 1 << bits;
                    for (other, other_len) in &used {
                        prop_assert!(base + len <= *other || other + other_len <= base);
                    }
                    prop_assert!(base.is_multiple_of(len) && base + len <= 1024);
                    used.push((base, len));
                }
                let taken: u32 = used.iter().map(|(_, len)| len).sum();
                prop_assert_eq!(segments.available(), u64::from(1024 - taken));
            }
            for (base, len) in used {
                segments.free(base, len);
            }
            prop_assert_eq!(segments.largest(), 1024);
        }
    }
}
