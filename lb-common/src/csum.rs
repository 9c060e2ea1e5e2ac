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
