//! The guard: lists of source prefixes that say who is let in to a service.
//!
//! In a list the longest prefix that contains a source decides, deny wins between two of one
//! length, and a source that none contains is let in unless the list allows anything. A packet
//! must be let in by the global list and by its service's.
//!
//! All lists of a family are in one trie, under keys that begin with the number of the list. A
//! list is replaced by filling another one under another number and then changing the number that
//! packets read, which is one word: a packet sees the old list or the new, whole.

/// A prefix that lets sources in.
pub const ALLOW: u32 = 1;
/// A prefix that keeps sources out.
pub const DENY: u32 = 2;

/// Key of the trie of IPv4 prefixes: `struct bpf_lpm_trie_key` and the bits to match.
#[repr(C)]
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, bytemuck::Pod, bytemuck::Zeroable,
)]
pub struct PrefixKey4 {
    /// How many bits count, from the list's on: 32 and the prefix length.
    pub bits: u32,
    /// The list's [`ListId`].
    pub list: u32,
    /// The address, as it lies in a header.
    pub address: [u8; 4],
}

/// Key of the trie of IPv6 prefixes.
#[repr(C)]
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, bytemuck::Pod, bytemuck::Zeroable,
)]
pub struct PrefixKey6 {
    /// How many bits count, from the list's on: 32 and the prefix length.
    pub bits: u32,
    /// The list's [`ListId`].
    pub list: u32,
    /// The address, as it lies in a header.
    pub address: [u8; 16],
}

/// The bits of a trie key in front of the address.
pub const LIST_BITS: u32 = 32;

/// The number of a list of one family, with what every packet must know of it. Zero is no list.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ListId(u32);

impl ListId {
    /// No list.
    pub const NONE: Self = Self(0);

    const KEEPS_OUT: u32 = 1;
    const ALWAYS: u32 = 2;

    /// Returns the number of a list. `keeps_out`: sources that no prefix contains are not let in.
    /// `always`: prefixes of it are too short for the filter, so the trie is always asked. The
    /// serial number is from 1 to 2^30 - 1.
    #[inline(always)]
    pub const fn new(serial: u32, keeps_out: bool, always: bool) -> Self {
        Self(serial << 2 | (always as u32) << 1 | keeps_out as u32)
    }

    /// Returns the number as it is stored.
    #[inline(always)]
    pub const fn get(self) -> u32 {
        self.0
    }

    /// Returns a stored number.
    #[inline(always)]
    pub const fn from_stored(stored: u32) -> Self {
        Self(stored)
    }

    /// Returns whether there is no list.
    #[inline(always)]
    pub const fn is_none(self) -> bool {
        self.0 == 0
    }

    /// Returns whether a source that no prefix contains is kept out.
    #[inline(always)]
    pub const fn keeps_out(self) -> bool {
        self.0 & Self::KEEPS_OUT != 0
    }

    /// Returns whether the trie must be asked, whatever the filter says.
    #[inline(always)]
    pub const fn always(self) -> bool {
        self.0 & Self::ALWAYS != 0
    }
}

/// What is in force for all services. One word each, so that a packet sees the old or the new.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, bytemuck::Pod, bytemuck::Zeroable)]
pub struct GuardSettings {
    /// The [`ListId`] of the global list of IPv4 prefixes; 0 if there is none.
    pub list_v4: u32,
    /// The [`ListId`] of the global list of IPv6 prefixes; 0 if there is none.
    pub list_v6: u32,
}

/// Why a source is not let in: what the program's guard answers.
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Judgement {
    /// It is let in.
    LetIn = 0,
    /// A prefix keeps it out.
    Denied = 1,
    /// The list allows others.
    NotAllowed = 2,
}

/// Judges a source by what the trie has for it in a list; nothing if no prefix contains it.
#[inline(always)]
pub const fn judge(list: ListId, found: Option<u32>) -> Judgement {
    match found {
        Some(DENY) => Judgement::Denied,
        Some(_) => Judgement::LetIn,
        None if list.keeps_out() => Judgement::NotAllowed,
        None => Judgement::LetIn,
    }
}

/// Number of bits of the filter; a power of two.
///
/// Asking a trie of 100,000 prefixes takes about 100 ns, and most sources are near none of them.
/// The filter has a bit for each block of addresses that a list has something in; its bits are
/// shared by hash. With 200,000 prefixes 1.2 % of the sources that are near none ask in vain.
pub const NEAR_BITS: u32 = 1 << 24;

/// Number of the filter's 64-bit words.
pub const NEAR_WORDS: u32 = NEAR_BITS / 64;

/// How large the filter's blocks are in a family, as prefix lengths. Prefixes that are no shorter
/// than `fine - 4` mark small blocks, others large ones.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Blocks {
    /// Prefix length of a small block.
    pub fine: u32,
    /// Prefix length of a large block.
    pub coarse: u32,
    /// Prefixes that are shorter mark nothing: their list is always asked.
    pub shortest: u32,
}

impl Blocks {
    /// Blocks of IPv4 addresses.
    pub const V4: Self = Self {
        fine: 24,
        coarse: 16,
        shortest: 1,
    };
    /// Blocks of IPv6 addresses.
    pub const V6: Self = Self {
        fine: 48,
        coarse: 32,
        shortest: 16,
    };

    /// Returns the blocks that a prefix marks: whether they are the small ones, the number of the
    /// first, and how many. `high` is the address's first 64 bits, an IPv4 address in their high
    /// half. Nothing if the list must always be asked instead.
    pub const fn marked(self, high: u64, len: u32) -> Option<(bool, u64, u64)> {
        if len < self.shortest {
            return None;
        }
        let fine = len + 4 >= self.fine;
        let size = if fine { self.fine } else { self.coarse };
        let count = 1 << size.saturating_sub(len);
        Some((fine, high >> (64 - size), count))
    }
}

/// Returns the filter's bit for a block. Not keyed: who aims at a bit on purpose only makes the
/// program ask the trie, as it would without the filter.
#[inline(always)]
pub const fn near_bit(list: ListId, fine: bool, block: u64) -> u32 {
    let seed = (list.0 as u64).wrapping_mul(0xd6e8_feb8_6659_fd93);
    let hash = (block ^ seed ^ fine as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    // The high bits of the product depend on all bits of the block.
    ((hash ^ hash >> 32).wrapping_mul(0xd6e8_feb8_6659_fd93) >> 40) as u32
}

const _: () = assert!(1 << (64 - 40) == NEAR_BITS);
const _: () = assert!(size_of::<PrefixKey4>() == 12);
const _: () = assert!(size_of::<PrefixKey6>() == 24);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_number_keeps_its_parts() {
        for serial in [1, 77, (1 << 30) - 1] {
            for (keeps_out, always) in [(false, false), (true, false), (false, true)] {
                let list = ListId::new(serial, keeps_out, always);
                assert_eq!(ListId::from_stored(list.get()), list);
                assert_eq!((list.keeps_out(), list.always()), (keeps_out, always));
                assert!(!list.is_none());
            }
        }
        assert!(ListId::NONE.is_none() && !ListId::NONE.keeps_out());
    }

    #[test]
    fn every_source_of_a_prefix_is_in_a_block_that_the_prefix_marks() {
        let mut x = 1_u64;
        for blocks in [Blocks::V4, Blocks::V6] {
            let bits = if blocks == Blocks::V4 { 32 } else { 64 };
            for len in 0..=bits {
                let mask = u64::MAX.checked_shl(64 - len).unwrap_or(0);
                for _ in 0..100 {
                    x = x.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(1);
                    let prefix = x & mask;
                    let source = prefix | (x.rotate_left(17) & !mask);
                    let Some((fine, first, count)) = blocks.marked(prefix, len) else {
                        assert!(len < blocks.shortest);
                        continue;
                    };
                    let size = if fine { blocks.fine } else { blocks.coarse };
                    let block = source >> (64 - size);
                    assert!((first..first + count).contains(&block), "{len} {x:#x}");
                }
            }
        }
    }

    #[test]
    fn the_filter_is_as_full_as_chance_makes_it() {
        let list = ListId::new(3, false, false);
        let mut bits = std::collections::BTreeSet::new();
        for block in 0..100_000 {
            bits.insert(near_bit(list, true, 0xc612_0000_u64 + block));
        }
        // By chance about 300 of 100,000 share a bit.
        assert!(bits.len() > 99_000, "{}", bits.len());
        assert!(bits.iter().all(|bit| *bit < NEAR_BITS));
        let other = ListId::new(4, false, false);
        let strays = (0..100_000)
            .filter(|block| bits.contains(&near_bit(other, true, 0xc612_0000 + block)))
            .count();
        assert!(strays < 2_000, "{strays}");
    }
}
