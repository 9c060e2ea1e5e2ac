//! Network address translation (RFC 3022 §4.1): a flow's packets get their VM's address and port
//! for the virtual ones, and the VM's answers get the virtual ones back.
//!
//! What a translation adds to a checksum does not depend on the packet, so the daemon computes it
//! once, and a packet pays one addition and one fold for each checksum (RFC 1624 §3).

use crate::csum::fold;

/// What stands in a packet instead of what is replaced.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, bytemuck::Pod, bytemuck::Zeroable)]
pub struct Translation {
    /// What replacing the address adds to a one's-complement sum, folded, in memory order.
    pub address_delta: u16,
    /// What replacing address and port adds to one.
    pub delta: u16,
    /// The port in network byte order, in memory order; 0: the packet's port stays.
    pub port: u16,
    /// Not used, zero.
    pub _pad: u16,
    /// The address, as it lies in a header; IPv4 in the first four bytes, the others zero.
    pub address: [u32; 4],
}

impl Translation {
    /// Returns the translation of an address and a port to others, as they lie in memory. `old`
    /// and `new` are of one family; IPv4 addresses have three words of zero behind them. Port 0
    /// stands for all, which stay.
    pub fn new((old, old_port): ([u32; 4], u16), (new, new_port): ([u32; 4], u16)) -> Self {
        let address_delta = (0..4).fold(0, |sum, at| sum + change(old[at], new[at]));
        let port = if old_port == 0 || old_port == new_port {
            0
        } else {
            new_port
        };
        let delta = match port {
            0 => address_delta,
            port => address_delta + change16(old_port, port),
        };
        Self {
            address_delta: fold(address_delta),
            delta: fold(delta),
            port,
            _pad: 0,
            address: new,
        }
    }
}

/// A value of the maps of NAT sources: what the answers of a VM's address and port come from.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, bytemuck::Pod, bytemuck::Zeroable)]
pub struct NatSource {
    /// To the virtual address and port.
    pub translation: Translation,
    /// The service's place in the statistics.
    pub service: u32,
    /// Not used, zero.
    pub _pad: u32,
}

/// Returns what replacing a 32-bit word of a packet adds to its one's-complement sum
/// (RFC 1624 §3: `~m + m'`).
#[inline(always)]
pub const fn change(old: u32, new: u32) -> u64 {
    !old as u64 + new as u64
}

/// As [`change`], for a 16-bit word.
#[inline(always)]
pub const fn change16(old: u16, new: u16) -> u64 {
    !old as u64 + new as u64
}

/// Returns a checksum after its packet's sum grew by `delta` (RFC 1624 §3, equation 3).
#[inline(always)]
pub const fn update(checksum: u16, delta: u64) -> u16 {
    !fold(!checksum as u64 + delta)
}

/// As [`update`], for UDP (RFC 768): no checksum, zero, stays none, and one that comes out as zero
/// is sent as its other form.
#[inline(always)]
pub const fn update_udp(checksum: u16, delta: u64) -> u16 {
    if checksum == 0 {
        return 0;
    }
    match update(checksum, delta) {
        0 => 0xffff,
        checksum => checksum,
    }
}

const _: () = assert!(size_of::<Translation>() == 24);
const _: () = assert!(size_of::<NatSource>() == 32);

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn words(address: [u8; 4]) -> [u32; 4] {
        [u32::from_ne_bytes(address), 0, 0, 0]
    }

    /// The example of RFC 1624 §4, for which an earlier equation gave another form of zero.
    #[test]
    fn the_example_of_rfc_1624() {
        assert_eq!(update(0xdd2f, change16(0x5555, 0x3285)), 0x0000);
    }

    proptest! {
        /// Etherparse sums the whole segment, before and after.
        #[test]
        fn a_translated_segments_checksum_is_what_etherparse_computes(
            old: [u8; 4], new: [u8; 4], other: [u8; 4], ports: [u16; 3],
            keeps_port: bool, payload in prop::collection::vec(any::<u8>(), 0..100),
        ) {
            let [client, vport, port] = ports;
            let port = if keeps_port { vport } else { port };
            let translation = Translation::new(
                (words(old), vport.to_be()), (words(new), port.to_be()),
            );
            // Port 0 is no port.
            prop_assume!(vport != 0 && port != 0);
            let delta = u64::from(translation.delta);
            let tcp = |to, port| {
                let tcp = etherparse::TcpHeader::new(client, port, 1, 2);
                tcp.calc_checksum_ipv4_raw(other, to, &payload).unwrap()
            };
            prop_assert_eq!(update(tcp(old, vport).to_be(), delta), tcp(new, port).to_be());
            let udp = |to, port| {
                let udp = etherparse::UdpHeader {
                    source_port: client, destination_port: port,
                    length: 8 + payload.len() as u16, checksum: 0,
                };
                udp.calc_checksum_ipv4_raw(other, to, &payload).unwrap()
            };
            prop_assert_eq!(update_udp(udp(old, vport).to_be(), delta), udp(new, port).to_be());
            prop_assert_eq!(update_udp(0, delta), 0);
            prop_assert_eq!(translation.port, if port == vport { 0 } else { port.to_be() });
        }

        /// There and back again is nothing.
        #[test]
        fn the_way_back_undoes_the_way_there(
            old: [u32; 4], new: [u32; 4], old_port: u16, new_port: u16, checksum in 0..0xffff_u16,
        ) {
            let there = Translation::new((old, old_port), (new, new_port));
            let back = Translation::new((new, new_port), (old, old_port));
            // Where one port stands for all, neither is replaced.
            prop_assume!(old_port != 0 && new_port != 0);
            let once = update(checksum, there.delta.into());
            prop_assert_eq!(update(once, back.delta.into()), checksum);
            let sum = fold(u64::from(there.address_delta) + u64::from(back.address_delta));
            prop_assert!(sum == 0xffff, "{:x}", sum);
        }
    }
}
