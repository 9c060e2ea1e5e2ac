//! The internet checksum (RFC 1071), over 16-bit words in memory order.
//!
//! One's-complement sums don't depend on byte order (RFC 1071 §2 B), so nothing is swapped: words
//! are added as they lie in memory, and the folded result is stored as it is.

/// Adds a 32-bit word, as it lies in memory, to an unfolded sum.
#[inline(always)]
pub const fn add32(sum: u64, word: u32) -> u64 {
    sum + word as u64
}

/// Folds a sum to 16 bits, without complementing it. The sum of up to 2^31 words fits.
#[inline(always)]
pub const fn fold(sum: u64) -> u16 {
    let sum = (sum & 0xffff_ffff) + (sum >> 32);
    let sum = (sum & 0xffff) + (sum >> 16);
    let sum = (sum & 0xffff) + (sum >> 16);
    let sum = (sum & 0xffff) + (sum >> 16);
    sum as u16
}

/// Returns a checksum after a word that it covers went from `old` to `new` (RFC 1624 §3, equation 3). A
/// checksum that was wrong stays wrong.
#[inline(always)]
pub const fn replaced16(checksum: u16, old: u16, new: u16) -> u16 {
    !fold(!checksum as u64 + !old as u64 + new as u64)
}

/// Returns the sum of the 16-bit words of `bytes` in memory order. An odd last byte is padded with
/// a zero behind it (RFC 1071 §1).
pub fn sum(bytes: &[u8]) -> u64 {
    bytes
        .chunks(2)
        .map(|pair| match *pair {
            [a, b] => u64::from(u16::from_ne_bytes([a, b])),
            [a] => u64::from(u16::from_ne_bytes([a, 0])),
            _ => 0,
        })
        .sum()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn a_replaced_word_leaves_the_checksum_that_is_made_from_scratch(
            mut words in prop::collection::vec(any::<[u8; 2]>(), 2..40), at: prop::sample::Index, new: [u8; 2],
        ) {
            // As in any header, something in it is not zero.
            words[0] = [0x45, 0];
            let at = 1 + at.index(words.len() - 1);
            let before = !fold(sum(words.as_flattened()));
            let old = u16::from_ne_bytes(words[at]);
            words[at] = new;
            let after = !fold(sum(words.as_flattened()));
            prop_assert_eq!(replaced16(before, old, u16::from_ne_bytes(new)), after);
            // A wrong one stays wrong by as much.
            let wrong = replaced16(before ^ 0x1111, old, u16::from_ne_bytes(new));
            prop_assert_ne!(wrong, after);
        }
    }

    /// RFC 1624 §4: where the equations before it went wrong.
    #[test]
    fn the_example_of_rfc_1624() {
        let be = |word: u16| word.to_be();
        assert_eq!(replaced16(be(0xdd2f), be(0x5555), be(0x3285)), be(0x0000));
    }

    #[test]
    fn the_example_of_rfc_1071() {
        let bytes = [0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7];
        assert_eq!(fold(sum(&bytes)).to_ne_bytes(), [0xdd, 0xf2]);
    }

    #[test]
    fn folding_survives_the_largest_sum() {
        assert_eq!(
            fold(u64::from(u32::MAX) << 31),
            0xffff,
            "only nothing sums to zero"
        );
        assert_eq!(fold(0xffff), 0xffff);
        assert_eq!(fold(0x1_0000), 1);
    }
}
