//! Outer headers: what a template leaves open, filled in for one packet.
//!
//! Each function returns the words that differ from packet to packet; the XDP program stores them
//! over the template's bytes, and the daemon's tests check them against other implementations.
//! Words are 32 bits as they lie in memory, unless said otherwise.

use crate::csum::fold;

/// The first two words, the third and the fourth of an outer IPv4 header (RFC 791 §3.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ipv4Words {
    /// Version, header length, type of service, total length.
    pub version_tos_len: u32,
    /// Identification, flags, fragment offset.
    pub id_fragment: u32,
    /// Header checksum, in memory order.
    pub checksum: u16,
    /// Source address.
    pub source: u32,
}

/// Returns the open words of an outer IPv4 header.
///
/// - `csum` is the template's sum over what is constant: version, header length, time to live,
///   protocol, source without entropy, destination.
/// - `tos` is the inner packet's type of service or traffic class: DSCP and ECN are copied
///   (RFC 6040 §4.1, normal mode).
/// - `total_len` counts from the outer IPv4 header, in host order.
/// - `id_fragment` is the inner packet's word if it is IPv4, so that "don't fragment" is
///   copied (RFC 2003 §3.1), and an identification with it; for IPv6 inside, DF alone.
/// - `source` is the template's, `entropy` the flow's bits under its mask.
#[inline(always)]
pub fn ipv4(
    csum: u32,
    tos: u8,
    total_len: u16,
    id_fragment: u32,
    source: u32,
    entropy: u32,
) -> Ipv4Words {
    let version_tos_len = u32::from_ne_bytes([0x45, tos, 0, 0]) | len_in_high_half(total_len);
    let sum = u64::from(csum)
        + u64::from(u16::from_ne_bytes([0, tos]))
        + u64::from(total_len.to_be())
        + u64::from(id_fragment)
        + u64::from(entropy);
    Ipv4Words {
        version_tos_len,
        id_fragment,
        checksum: !fold(sum),
        source: source | entropy,
    }
}

/// "Don't fragment" with no identification, for an IPv6 packet in IPv4 (RFC 6864 §4.1: an atomic
/// datagram's identification has no meaning).
pub const DF_ONLY: u32 = u32::from_ne_bytes([0, 0, 0x40, 0]);

/// Returns the word with identification and flags for an outer IPv4 header around a fragment: it is a
/// whole packet itself. The fragments of a datagram share an identification, and outer packets that a
/// router may fragment must not (RFC 6864 §4.2): each takes its offset on top, which none shares.
#[inline(always)]
pub const fn of_fragment(id_fragment: u32) -> u32 {
    let [high, low, flags_offset, offset_low] = id_fragment.to_ne_bytes();
    let offset = u16::from_be_bytes([flags_offset & 0x1f, offset_low]);
    let [high, low] = u16::from_be_bytes([high, low])
        .wrapping_add(offset)
        .to_be_bytes();
    u32::from_ne_bytes([high, low, flags_offset & 0x40, 0])
}

/// Returns the first word of an outer IPv6 header: version, traffic class, flow label.
///
/// The label is 20 bits of the flow's hash, so that receivers and equal-cost paths spread
/// (RFC 6438 §3).
#[inline(always)]
pub const fn ipv6_first_word(traffic_class: u8, entropy: u32) -> u32 {
    (0x6000_0000 | (traffic_class as u32) << 20 | entropy & 0xf_ffff).to_be()
}

/// Returns the traffic class in the first word of an IPv6 header, the type of service in that of
/// an IPv4 header.
#[inline(always)]
pub const fn traffic_class_v6(first_word: u32) -> u8 {
    (u32::from_be(first_word) >> 20) as u8
}

/// Returns an outer UDP source port, in memory order: from the dynamic range 49152-65535
/// (RFC 7510 §3: enough for 14 bits of entropy).
#[inline(always)]
pub const fn udp_source_port(entropy: u32) -> u16 {
    (0xc000 | entropy as u16).to_be()
}

/// Returns the checksum of an outer UDP header over IPv6, in memory order.
///
/// The inner transport checksum makes its segment and pseudo-header sum to zero, so the sum over
/// a whole inner packet follows from its IP header alone, and the payload is never read (the
/// kernel calls this local checksum offload). A packet whose inner checksum is wrong gets a wrong
/// outer one; it would have been thrown away in either case.
///
/// - `csum` is the template's sum over addresses, next header and destination port.
/// - `udp_len` is the outer UDP length in host order. It counts twice (pseudo-header and header).
/// - `source_port` is in memory order, `entropy` what was set in the source address.
/// - `inner` is the sum of the inner packet: [`inner_sum_v4`], [`inner_sum_v6`].
#[inline(always)]
pub fn udp_checksum(csum: u32, udp_len: u16, source_port: u16, entropy: u32, inner: u64) -> u16 {
    let sum = u64::from(csum)
        + 2 * u64::from(udp_len.to_be())
        + u64::from(source_port)
        + u64::from(entropy)
        + inner;
    // A sum of zero is sent as its other form: zero means "no checksum" (RFC 768).
    match !fold(sum) {
        0 => 0xffff,
        checksum => checksum,
    }
}

/// Returns the sum of an IPv4 packet whose header and transport checksums are right: the
/// complement of its pseudo-header (RFC 9293 §3.1). `l4_len` is in host order.
#[inline(always)]
pub fn inner_sum_v4(source: u32, destination: u32, proto: u8, l4_len: u16) -> u64 {
    let pseudo = u64::from(source)
        + u64::from(destination)
        + u64::from(u16::from_ne_bytes([0, proto]))
        + u64::from(l4_len.to_be());
    u64::from(!fold(pseudo))
}

/// Returns the sum of an IPv6 packet without extension headers whose transport checksum is right.
/// The addresses stand in the header and, complemented, in the pseudo-header: they cancel out.
///
/// `first` is the header's first word; `len_next_hop` its second: payload length, next header
/// and hop limit.
#[inline(always)]
pub fn inner_sum_v6(first: u32, len_next_hop: u32) -> u64 {
    let [len_high, len_low, proto, _] = len_next_hop.to_ne_bytes();
    let pseudo = u64::from(u16::from_ne_bytes([len_high, len_low]))
        + u64::from(u16::from_ne_bytes([0, proto]));
    u64::from(first) + u64::from(len_next_hop) + u64::from(!fold(pseudo))
}

/// Returns `len` as the second half of a 32-bit word that starts on a multiple of four.
#[inline(always)]
const fn len_in_high_half(len: u16) -> u32 {
    let [a, b] = len.to_be_bytes();
    u32::from_ne_bytes([0, 0, a, b])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::csum;
    use proptest::prelude::*;

    fn word(bytes: &[u8]) -> u32 {
        u32::from_ne_bytes([bytes[0], bytes[1], bytes[2], bytes[3]])
    }

    #[test]
    fn around_a_fragment_is_a_whole_packet_with_an_identification_of_its_own() {
        for (inner, outer) in [
            ([0x12, 0x34, 0x20, 0x00], [0x12, 0x34, 0, 0]),
            ([0x12, 0x34, 0x20, 0xb9], [0x12, 0xed, 0, 0]),
            ([0x12, 0x34, 0x01, 0x72], [0x13, 0xa6, 0, 0]),
            ([0xff, 0xff, 0x3f, 0xff], [0x1f, 0xfe, 0, 0]),
            ([0x12, 0x34, 0x60, 0x01], [0x12, 0x35, 0x40, 0]),
        ] {
            assert_eq!(of_fragment(word(&inner)).to_ne_bytes(), outer);
        }
    }

    proptest! {
        /// Etherparse computes the header checksum from scratch.
        #[test]
        fn an_ipv4_header_is_what_etherparse_writes(
            tos: u8, payload in 20u16..9000, id: u16, df: bool, source: [u8; 4],
            destination: [u8; 4], protocol in prop::sample::select(vec![4u8, 41, 17]),
            mask_bits in 0u32..=32, bits: u32,
        ) {
            let mask = if mask_bits == 0 { 0 } else { (u32::MAX >> (32 - mask_bits)).to_be() };
            let source = word(&source) & !mask;
            let mut constant = [0x45, 0, 0, 0, 0, 0, 0, 0, 64, protocol, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
            constant[12..16].copy_from_slice(&source.to_ne_bytes());
            constant[16..].copy_from_slice(&destination);
            let csum = u32::try_from(csum::sum(&constant)).unwrap();
            let id_fragment = word(&[
                id.to_be_bytes()[0], id.to_be_bytes()[1], if df { 0x40 } else { 0 }, 0,
            ]);
            let words = ipv4(csum, tos, payload + 20, id_fragment, source, bits & mask);

            let mut ours = constant;
            ours[..4].copy_from_slice(&words.version_tos_len.to_ne_bytes());
            ours[4..8].copy_from_slice(&words.id_fragment.to_ne_bytes());
            ours[10..12].copy_from_slice(&words.checksum.to_ne_bytes());
            ours[12..16].copy_from_slice(&words.source.to_ne_bytes());

            let mut theirs = etherparse::Ipv4Header::new(
                payload, 64, etherparse::IpNumber(protocol),
                (source | bits & mask).to_ne_bytes(), destination,
            ).unwrap();
            theirs.dscp = (tos >> 2).try_into().unwrap();
            theirs.ecn = (tos & 3).try_into().unwrap();
            theirs.identification = id;
            theirs.dont_fragment = df;
            theirs.header_checksum = theirs.calc_header_checksum();
            let theirs = theirs.to_bytes();
            prop_assert_eq!(&ours[..], theirs.as_slice());
        }

        /// Etherparse sums the whole inner packet; ours reads its IP header only.
        #[test]
        fn an_outer_udp_checksum_needs_no_payload(
            payload in prop::collection::vec(any::<u8>(), 0..200), udp_inner: bool,
            source: [u8; 4], destination: [u8; 4], ports: [u16; 2],
            outer_source: [u8; 16], outer_destination: [u8; 16], bits: u32,
        ) {
            let builder = etherparse::PacketBuilder::ipv4(source, destination, 64);
            let mut inner = Vec::new();
            let proto = if udp_inner {
                builder.udp(ports[0], ports[1]).write(&mut inner, &payload).unwrap();
                crate::PROTO_UDP
            } else {
                builder.tcp(ports[0], ports[1], 1, 1024).write(&mut inner, &payload).unwrap();
                crate::PROTO_TCP
            };
            let l4_len = u16::try_from(inner.len() - 20).unwrap();
            let sum = inner_sum_v4(word(&source), word(&destination), proto, l4_len);
            prop_assert_eq!(fold(sum) % 0xffff, fold(csum::sum(&inner)) % 0xffff);

            let port = 9886u16;
            let csum = csum::sum(&outer_source) + csum::sum(&outer_destination)
                + csum::sum(&[0, crate::PROTO_UDP]) + csum::sum(&port.to_be_bytes());
            let udp_len = u16::try_from(inner.len() + 8).unwrap();
            let source_port = udp_source_port(bits);
            let ours = udp_checksum(u32::try_from(csum).unwrap(), udp_len, source_port, 0, sum);
            let header = etherparse::UdpHeader {
                source_port: u16::from_be(source_port), destination_port: port,
                length: udp_len, checksum: 0,
            };
            let theirs = header
                .calc_checksum_ipv6_raw(outer_source, outer_destination, &inner).unwrap();
            prop_assert_eq!(u16::from_be(ours), theirs);
            prop_assert!(u16::from_be(source_port) >= 49152);
        }

        #[test]
        fn the_sum_of_an_ipv6_packet_needs_two_words(
            payload in prop::collection::vec(any::<u8>(), 0..200), udp_inner: bool, hops: u8,
            source: [u8; 16], destination: [u8; 16], ports: [u16; 2], class: u8, label: u32,
        ) {
            let builder = etherparse::PacketBuilder::ipv6(source, destination, hops);
            let mut inner = Vec::new();
            if udp_inner {
                builder.udp(ports[0], ports[1]).write(&mut inner, &payload).unwrap();
            } else {
                builder.tcp(ports[0], ports[1], 1, 1024).write(&mut inner, &payload).unwrap();
            }
            inner[..4].copy_from_slice(&ipv6_first_word(class, label).to_ne_bytes());
            let sum = inner_sum_v6(word(&inner), word(&inner[4..]));
            prop_assert_eq!(fold(sum) % 0xffff, fold(csum::sum(&inner)) % 0xffff);
        }

        #[test]
        fn the_first_word_of_ipv6_keeps_class_and_label(class: u8, bits: u32) {
            let first = ipv6_first_word(class, bits);
            let [a, b, c, d] = first.to_ne_bytes();
            prop_assert_eq!(a >> 4, 6);
            prop_assert_eq!(traffic_class_v6(first), class);
            prop_assert_eq!(u32::from_be_bytes([0, b & 0xf, c, d]), bits & 0xf_ffff);
        }
    }
}
