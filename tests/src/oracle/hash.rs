//! The keyed hash, from its definition: the multilinear family (Lemire and Kaser, 2014) and the
//! finaliser of MurmurHash3. Both count modulo 2^64; here with room for every product.

use std::net::IpAddr;

use super::world::Flow;

const MODULUS: u128 = 1 << 64;

/// Returns a flow's hash: over its source, destination, both ports and the protocol, as they lie in
/// headers, cut into words of four bytes that are read from the lowest byte on.
#[must_use]
pub fn hash(key: &[u64; 16], flow: &Flow) -> u64 {
    let mut bytes = Vec::new();
    for address in [flow.client, flow.vip] {
        match address {
            IpAddr::V4(address) => bytes.extend(address.octets()),
            IpAddr::V6(address) => bytes.extend(address.octets()),
        }
    }
    bytes.extend(flow.client_port.to_be_bytes());
    bytes.extend(flow.vip_port.to_be_bytes());
    bytes.extend([flow.protocol, 0, 0, 0]);
    let mut sum = u128::from(key[0]);
    for (index, word) in bytes.chunks(4).enumerate() {
        let word = word.iter().rev().fold(0, |w, b| w * 256 + u128::from(*b));
        sum = (sum + u128::from(key[1 + index]) * word) % MODULUS;
    }
    finalise(sum)
}

fn finalise(sum: u128) -> u64 {
    let mut mixed = sum;
    for factor in [0xff51_afd7_ed55_8ccd, 0xc4ce_b9fe_1a85_ec53] {
        mixed ^= mixed >> 33;
        mixed = mixed * factor % MODULUS;
    }
    mixed ^= mixed >> 33;
    mixed as u64
}
