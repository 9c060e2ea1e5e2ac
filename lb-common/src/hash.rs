//! The keyed hash that spreads flows over rows.
//!
//! The sum is the *multilinear* family (Lemire and Kaser, "Strongly universal string hashing is
//! fast", The Computer Journal 57, 2014): 32-bit words times secret 64-bit keys, modulo 2^64. Its high
//! half is strongly universal: who doesn't know the keys can't choose flows that collide more
//! often than by chance. A finishing step (multiply and xor-shift, a bijection) spreads the sum
//! over all 64 bits and hides the sum's linear structure from who watches where flows go.
//! It is not a pseudo-random function as SipHash is, which costs about five times as much for
//! each packet.
//!
//! All balancers that share a [`HashKey`] send a flow to the same row.

use crate::flow::{FlowKey4, FlowKey6};

/// The secret of an installation: 16 random words.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, bytemuck::Pod, bytemuck::Zeroable)]
pub struct HashKey(pub [u64; 16]);

impl core::fmt::Debug for HashKey {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str("HashKey(secret)")
    }
}

/// Returns the hash of an IPv4 flow.
#[inline(always)]
pub fn flow4(key: &HashKey, flow: &FlowKey4) -> u64 {
    words4(key, &bytemuck::must_cast(*flow))
}

/// Returns the hash of an IPv6 flow.
#[inline(always)]
pub fn flow6(key: &HashKey, flow: &FlowKey6) -> u64 {
    words6(key, &bytemuck::must_cast(*flow))
}

/// Returns the hash of an IPv4 flow from its key's words: source, destination, ports, protocol.
#[inline(always)]
pub fn words4(key: &HashKey, words: &[u32; 4]) -> u64 {
    let k = &key.0;
    let mut sum = k[0];
    sum = sum.wrapping_add(k[1].wrapping_mul(words[0] as u64));
    sum = sum.wrapping_add(k[2].wrapping_mul(words[1] as u64));
    sum = sum.wrapping_add(k[3].wrapping_mul(words[2] as u64));
    sum = sum.wrapping_add(k[4].wrapping_mul(words[3] as u64));
    finish(sum)
}

/// Returns the hash of an IPv6 flow from its key's words.
#[inline(always)]
pub fn words6(key: &HashKey, words: &[u32; 10]) -> u64 {
    let k = &key.0;
    let mut sum = k[0];
    sum = sum.wrapping_add(k[1].wrapping_mul(words[0] as u64));
    sum = sum.wrapping_add(k[2].wrapping_mul(words[1] as u64));
    sum = sum.wrapping_add(k[3].wrapping_mul(words[2] as u64));
    sum = sum.wrapping_add(k[4].wrapping_mul(words[3] as u64));
    sum = sum.wrapping_add(k[5].wrapping_mul(words[4] as u64));
    sum = sum.wrapping_add(k[6].wrapping_mul(words[5] as u64));
    sum = sum.wrapping_add(k[7].wrapping_mul(words[6] as u64));
    sum = sum.wrapping_add(k[8].wrapping_mul(words[7] as u64));
    sum = sum.wrapping_add(k[9].wrapping_mul(words[8] as u64));
    sum = sum.wrapping_add(k[10].wrapping_mul(words[9] as u64));
    finish(sum)
}

/// Returns the hash of a source of a service's packets, given by two words, among all sources of
/// all services. Its keys are others than those of flows, which have less than all of them.
#[inline(always)]
pub fn source(key: &HashKey, service: u32, a: u32, b: u32) -> u64 {
    let k = &key.0;
    let mut sum = k[12];
    sum = sum.wrapping_add(k[13].wrapping_mul(service as u64));
    sum = sum.wrapping_add(k[14].wrapping_mul(a as u64));
    sum = sum.wrapping_add(k[15].wrapping_mul(b as u64));
    finish(sum)
}

/// A bijection on 64 bits with good avalanche (the finaliser of MurmurHash3).
#[inline(always)]
const fn finish(mut h: u64) -> u64 {
    h ^= h >> 33;
    h = h.wrapping_mul(0xff51_afd7_ed55_8ccd);
    h ^= h >> 33;
    h = h.wrapping_mul(0xc4ce_b9fe_1a85_ec53);
    h ^ (h >> 33)
}

/// Returns the bits of a flow's hash that choose the row.
#[inline(always)]
pub const fn row_bits(hash: u64) -> u32 {
    hash as u32
}

/// Returns the bits of a flow's hash that go into outer headers as entropy. They share nothing
/// with the row bits, so that the flows of one backend still spread over its receive queues.
#[inline(always)]
pub const fn entropy_bits(hash: u64) -> u32 {
    (hash >> 32) as u32
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(seed: u64) -> HashKey {
        let mut k = [0; 16];
        let mut x = seed;
        for word in &mut k {
            x = x.wrapping_add(0x9e37_79b9_7f4a_7c15);
            *word = finish(x);
        }
        HashKey(k)
    }

    fn flow(n: u32) -> FlowKey4 {
        FlowKey4 {
            src: (0xc612_0000 | n >> 16).to_be_bytes(),
            dst: [198, 18, 0, 1],
            src_port: (n as u16).to_be_bytes(),
            dst_port: [0, 80],
            proto: 6,
            _pad: [0; 3],
        }
    }

    /// Pearson's chi-squared statistic of the row counts: for 255 degrees of freedom it is above
    /// 347 with probability 1e-4 only if the rows are not uniform.
    #[test]
    fn consecutive_flows_spread_evenly_over_rows_and_over_entropy() {
        const ROWS: usize = 256;
        const FLOWS: u32 = 1 << 18;
        for seed in 0..8 {
            let key = key(seed);
            let mut rows = [0u32; ROWS];
            let mut queues_of_row_0 = [0u32; 16];
            for n in 0..FLOWS {
                let hash = flow4(&key, &flow(n));
                rows[row_bits(hash) as usize % ROWS] += 1;
                if (row_bits(hash) as usize).is_multiple_of(ROWS) {
                    queues_of_row_0[entropy_bits(hash) as usize % 16] += 1;
                }
            }
            let want = f64::from(FLOWS) / ROWS as f64;
            let chi2: f64 = rows
                .iter()
                .map(|&n| (f64::from(n) - want).powi(2) / want)
                .sum();
            assert!(chi2 < 347.0, "seed {seed}: chi squared {chi2}");
            let want = f64::from(rows[0]) / 16.0;
            let chi2: f64 = queues_of_row_0
                .iter()
                .map(|&n| (f64::from(n) - want).powi(2) / want)
                .sum();
            assert!(
                chi2 < 44.3,
                "seed {seed}: entropy of one row, chi squared {chi2}"
            );
        }
    }

    #[test]
    fn another_key_gives_another_hash_and_every_field_counts() {
        let base = flow(7);
        let hash = flow4(&key(1), &base);
        assert_ne!(hash, flow4(&key(2), &base));
        for (i, changed) in [
            FlowKey4 {
                src: [198, 18, 0, 9],
                ..base
            },
            FlowKey4 {
                dst: [198, 18, 0, 9],
                ..base
            },
            FlowKey4 {
                src_port: [9, 9],
                ..base
            },
            FlowKey4 {
                dst_port: [9, 9],
                ..base
            },
            FlowKey4 { proto: 17, ..base },
        ]
        .into_iter()
        .enumerate()
        {
            assert_ne!(hash, flow4(&key(1), &changed), "field {i}");
        }
    }

    /// Balancers of different builds must agree: these values may change only with the ABI version.
    #[test]
    fn the_hash_is_stable() {
        let key = HashKey(core::array::from_fn(|i| {
            0x0123_4567_89ab_cdef_u64.rotate_left(i as u32)
        }));
        assert_eq!(flow4(&key, &flow(1)), STABLE_V4);
        let six = FlowKey6 {
            src: [0x20, 1, 0xd, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1],
            dst: [0x20, 1, 0xd, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2],
            src_port: [1, 2],
            dst_port: [0, 80],
            proto: 6,
            _pad: [0; 3],
        };
        assert_eq!(flow6(&key, &six), STABLE_V6);
    }

    // Computed by an independent implementation, in Python.
    const STABLE_V4: u64 = 0xa6c09eb35d0058c1;
    const STABLE_V6: u64 = 0x4ec0a456414b34de;
}
