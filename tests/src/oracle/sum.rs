//! The internet checksum as RFC 1071 defines it: 16-bit words in network byte order, one after the
//! other, the carry added at once.

/// Returns the one's-complement sum of all words. A last odd byte is the high half of a word.
#[must_use]
pub fn ones_complement_sum(parts: &[&[u8]]) -> u16 {
    let bytes = parts.concat();
    let mut sum = 0_u32;
    for pair in bytes.chunks(2) {
        let high = u32::from(pair[0]);
        let low = pair.get(1).map_or(0, |low| u32::from(*low));
        sum += high * 256 + low;
        if sum > 0xffff {
            sum -= 0xffff;
        }
    }
    sum as u16
}

/// Returns the checksum to put into a header: the complement of the sum.
#[must_use]
pub fn checksum(parts: &[&[u8]]) -> u16 {
    0xffff - ones_complement_sum(parts)
}

/// Returns a UDP checksum: one of zero is sent as 0xffff, since zero says that there is none
/// (RFC 768).
#[must_use]
pub fn udp_checksum(parts: &[&[u8]]) -> u16 {
    match checksum(parts) {
        0 => 0xffff,
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_example_of_rfc_1071() {
        let bytes = [0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7];
        assert_eq!(ones_complement_sum(&[&bytes]), 0xddf2);
        assert_eq!(ones_complement_sum(&[&bytes[..3], &bytes[3..]]), 0xddf2);
        assert_eq!(checksum(&[&[1]]), 0xfeff);
    }
}
