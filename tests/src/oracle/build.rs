//! The frame that a backend gets, from its first byte to its last.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::clause::{Clause, Walk};
use super::read::{Kind, Packet, be16, byte, part};
use super::sum::{checksum, udp_checksum};
use super::world::{Backend, Way};

/// The Ethernet address that frames are sent from.
pub const OWN: [u8; 6] = [2, 0, 0, 0, 0, 0xee];
/// The source address of outer IPv4 headers.
pub const SOURCE4: Ipv4Addr = Ipv4Addr::new(198, 18, 0, 1);
/// The source address of outer IPv6 headers.
pub const SOURCE6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1);

/// Returns a backend's Ethernet address.
#[must_use]
pub fn mac(slot: u32) -> [u8; 6] {
    [2, 0, 0, 0, 1, slot as u8]
}

/// Returns the frame that brings a packet to a backend. `hash` is the flow's.
#[must_use]
pub fn build(
    frame: &[u8],
    packet: &Packet,
    backend: &Backend,
    hash: u64,
    walk: &mut Walk,
) -> Vec<u8> {
    // Padding behind the packet stays where it is.
    let rest = part(frame, packet.l3, usize::MAX);
    let inner = part(rest, 0, packet.len);
    let inner_v4 = packet.flow.client.is_ipv4();
    let (ethertype, outer) = match backend.way {
        Way::Unreachable | Way::L2 => (ethertype(inner_v4), Vec::new()),
        Way::Ipip => {
            let protocol = if inner_v4 { 4 } else { 41 };
            outer_ip(inner, inner_v4, &[], protocol, backend, hash, walk)
        }
        Way::Gue(port) => {
            let udp = outer_udp(inner, packet, port, backend, hash, walk);
            outer_ip(inner, inner_v4, &udp, 17, backend, hash, walk)
        }
    };
    [&ethernet(backend, ethertype, walk), &outer, rest].concat()
}

fn ethertype(v4: bool) -> u16 {
    if v4 { 0x0800 } else { 0x86dd }
}

fn ethernet(backend: &Backend, ethertype: u16, walk: &mut Walk) -> Vec<u8> {
    let mut header = [mac(backend.slot), OWN].concat();
    let tag = backend.around.unwrap_or(0);
    if walk.at(Clause::OutTaggedAround, backend.around.is_some()) {
        header.extend(0x88a8_u16.to_be_bytes());
        header.extend((3 << 13 | tag).to_be_bytes());
    }
    let tag = backend.vlan.unwrap_or(0);
    if walk.at(Clause::OutTagged, backend.vlan.is_some()) {
        header.extend(0x8100_u16.to_be_bytes());
        header.extend(tag.to_be_bytes());
    }
    header.extend(ethertype.to_be_bytes());
    header
}

/// Returns the upper half of a flow's hash: the bits that outer headers take from it.
fn entropy(hash: u64) -> u32 {
    (hash >> 32) as u32
}

/// Type of service or traffic class: DSCP and ECN are copied (RFC 6040 §4.1).
fn traffic_class(ip: &[u8], v4: bool) -> u8 {
    if v4 {
        byte(ip, 1)
    } else {
        (be16(ip, 0) >> 4) as u8
    }
}

/// Returns an outer IP header with what lies between it and the packet inside.
fn outer_ip(
    inner: &[u8],
    inner_v4: bool,
    between: &[u8],
    protocol: u8,
    backend: &Backend,
    hash: u64,
    walk: &mut Walk,
) -> (u16, Vec<u8>) {
    let payload = (between.len() + inner.len()) as u16;
    let class = traffic_class(inner, inner_v4);
    let source = source(backend, hash, walk);
    let mut header = match (source, backend.address) {
        (IpAddr::V4(source), IpAddr::V4(destination)) => {
            walk.note(4);
            // RFC 2003 §3.1: "don't fragment" is the inner packet's. IPv6 is never fragmented.
            let df = !inner_v4 || be16(inner, 6) & 0x4000 != 0;
            let flags = if walk.at(Clause::DontFragment, df) {
                0x4000_u16
            } else {
                0
            };
            let identification = if inner_v4 { be16(inner, 4) } else { 0 };
            let mut header = vec![0x45, class];
            header.extend((20 + payload).to_be_bytes());
            header.extend(identification.to_be_bytes());
            header.extend(flags.to_be_bytes());
            header.extend([64, protocol, 0, 0]);
            header.extend(source.octets());
            header.extend(destination.octets());
            let sum = checksum(&[&header]);
            header.splice(10..12, sum.to_be_bytes());
            header
        }
        (IpAddr::V6(source), IpAddr::V6(destination)) => {
            walk.note(6);
            // RFC 6438 §3: the label is the flow's.
            let label = entropy(hash) % (1 << 20);
            let mut header = (6 << 28 | u32::from(class) << 20 | label)
                .to_be_bytes()
                .to_vec();
            header.extend(payload.to_be_bytes());
            header.extend([protocol, 64]);
            header.extend(source.octets());
            header.extend(destination.octets());
            header
        }
        _ => panic!("two families"),
    };
    header.extend(between);
    (ethertype(backend.address.is_ipv4()), header)
}

/// Returns the outer source address: the host's own, or one of a prefix with the flow's bits in the
/// rest of its last 32.
fn source(backend: &Backend, hash: u64, walk: &mut Walk) -> IpAddr {
    let mut octets = match backend.address {
        IpAddr::V4(_) => SOURCE4.octets().to_vec(),
        IpAddr::V6(_) => SOURCE6.octets().to_vec(),
    };
    if walk.at(Clause::SourceEntropy, backend.source_prefix.is_some()) {
        let own = usize::from(backend.source_prefix.unwrap_or(0));
        let last = octets.len() - 4;
        for bit in own..octets.len() * 8 {
            let (at, mask) = (bit / 8, 0x80 >> (bit % 8));
            octets[at] &= !mask;
            if at >= last {
                octets[at] |= entropy(hash).to_le_bytes()[at - last] & mask;
            }
        }
    }
    match <[u8; 4]>::try_from(octets.as_slice()) {
        Ok(octets) => octets.into(),
        Err(_) => <[u8; 16]>::try_from(octets.as_slice())
            .expect("an address")
            .into(),
    }
}

fn outer_udp(
    inner: &[u8],
    packet: &Packet,
    port: u16,
    backend: &Backend,
    hash: u64,
    walk: &mut Walk,
) -> Vec<u8> {
    // The source port spreads flows, from the dynamic range (RFC 7510 §3).
    let source_port = 49152 + (entropy(hash) % (1 << 14)) as u16;
    let len = 8 + inner.len() as u16;
    let mut header = Vec::new();
    for field in [source_port, port, len, 0] {
        header.extend(field.to_be_bytes());
    }
    // Over IPv4 the checksum may be zero (RFC 768); over IPv6 a tunnel may send none (RFC 6935), and
    // does where it would have to read the payload.
    let computed = packet.has_checksum && !packet.extensions;
    if walk.at(Clause::OuterUdp, backend.address.is_ipv6())
        && walk.at(Clause::OuterChecksum, computed)
    {
        let (IpAddr::V6(source), IpAddr::V6(destination)) =
            (source(backend, hash, walk), backend.address)
        else {
            return header;
        };
        let sum = udp_checksum(&[
            &source.octets(),
            &destination.octets(),
            &u32::from(len).to_be_bytes(),
            &[0, 0, 0, 17],
            &header,
            &corrected(inner, packet),
        ]);
        header.splice(6..8, sum.to_be_bytes());
    }
    header
}

/// Returns a packet as it would be with right checksums. The outer checksum is that of this one: who
/// gets a packet whose own checksum is wrong throws it away in either case.
fn corrected(inner: &[u8], packet: &Packet) -> Vec<u8> {
    let mut fixed = inner.to_vec();
    let mut put = |at: usize, sum: u16| {
        if at + 2 <= inner.len() {
            fixed.splice(at..at + 2, sum.to_be_bytes());
        }
    };
    let v4 = packet.flow.client.is_ipv4();
    let mut header = part(inner, 0, packet.header_len).to_vec();
    if v4 && header.len() >= 20 {
        header.splice(10..12, [0, 0]);
        put(10, checksum(&[&header]));
    }
    let about = packet.kind == Kind::About;
    let at = match (about, packet.flow.protocol) {
        (true, _) => 2,
        (false, 6) => 16,
        (false, _) => 6,
    };
    let mut segment = part(inner, packet.header_len, usize::MAX).to_vec();
    if segment.len() >= at + 2 {
        segment.splice(at..at + 2, [0, 0]);
    }
    let addresses = if v4 {
        part(inner, 12, 8)
    } else {
        part(inner, 8, 32)
    };
    let protocol = match (about, v4) {
        (false, _) => packet.flow.protocol,
        (true, true) => 1,
        (true, false) => 58,
    };
    let mut pseudo = addresses.to_vec();
    pseudo.extend([0, protocol]);
    pseudo.extend((segment.len() as u16).to_be_bytes());
    if about && v4 {
        // RFC 792: ICMP for IPv4 has no pseudo-header.
        pseudo.clear();
    }
    put(packet.header_len + at, checksum(&[&pseudo, &segment]));
    fixed
}
