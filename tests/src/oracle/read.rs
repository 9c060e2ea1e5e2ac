//! From a frame to what it is: Ethernet (IEEE 802.3), up to two VLAN tags (802.1Q, 802.1ad), IPv4 (RFC 791), IPv6
//! (RFC 8200), TCP (RFC 9293), UDP (RFC 768). ICMP is in [`super::icmp`].

use std::net::IpAddr;

use super::clause::{Clause, Walk};
use super::icmp;
use super::world::Flow;

/// Why a frame is not for any service, by the name of its counter.
pub type Left = &'static str;

/// A packet of a flow, or about one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Packet {
    /// The flow.
    pub flow: Flow,
    /// Where the IP packet begins in the frame.
    pub l3: usize,
    /// Its length in bytes.
    pub len: usize,
    /// Length of the IP header with all that lies between it and the transport header.
    pub header_len: usize,
    /// Whether an IPv6 packet has extension headers.
    pub extensions: bool,
    /// What it means for the flow.
    pub kind: Kind,
    /// TCP's sequence number, else 0.
    pub sequence: u32,
    /// Whether the transport checksum covers the whole segment.
    pub has_checksum: bool,
}

/// What a packet means for its flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// It opens one.
    Opening,
    /// It closes it.
    Closing,
    /// It's neither.
    Other,
    /// It isn't of the flow but about it: an ICMP error.
    About,
}

/// Returns the byte at an offset; 0 behind the end, which only a model with a planted fault reads.
#[must_use]
pub fn byte(bytes: &[u8], at: usize) -> u8 {
    bytes.get(at).copied().unwrap_or(0)
}

/// Returns the 16-bit number at an offset.
#[must_use]
pub fn be16(bytes: &[u8], at: usize) -> u16 {
    u16::from(byte(bytes, at)) << 8 | u16::from(byte(bytes, at + 1))
}

/// Returns the 32-bit number at an offset.
#[must_use]
pub fn be32(bytes: &[u8], at: usize) -> u32 {
    u32::from(be16(bytes, at)) << 16 | u32::from(be16(bytes, at + 2))
}

/// Returns the IPv4 address at an offset.
#[must_use]
pub fn address4(bytes: &[u8], at: usize) -> IpAddr {
    IpAddr::from(be32(bytes, at).to_be_bytes())
}

/// Returns the IPv6 address at an offset.
#[must_use]
pub fn address6(bytes: &[u8], at: usize) -> IpAddr {
    let octets: [u8; 16] = std::array::from_fn(|index| byte(bytes, at + index));
    IpAddr::from(octets)
}

/// Returns a part of `bytes`, cut off where these end.
#[must_use]
pub fn part(bytes: &[u8], from: usize, len: usize) -> &[u8] {
    let rest = bytes.get(from..).unwrap_or_default();
    rest.get(..len).unwrap_or(rest)
}

/// Reads a frame.
///
/// # Errors
/// The counter of what it is, if it is no packet of a flow or about one.
pub fn read(frame: &[u8], walk: &mut Walk) -> Result<Packet, Left> {
    let mut ethertype = be16(frame, 12);
    let mut l3 = 14;
    let is_tag = |ethertype| ethertype == 0x8100 || ethertype == 0x88a8;
    if walk.at(Clause::Tagged, is_tag(ethertype)) {
        if walk.at(Clause::TagCutOff, frame.len() < 18) {
            return Err("pass_malformed");
        }
        ethertype = be16(frame, 16);
        l3 = 18;
        if walk.at(Clause::TaggedTwice, is_tag(ethertype)) {
            if walk.at(Clause::SecondTagCutOff, frame.len() < 22) {
                return Err("pass_malformed");
            }
            ethertype = be16(frame, 20);
            l3 = 22;
        }
    }
    if walk.at(Clause::Ipv4, ethertype == 0x0800) {
        read4(frame, l3, walk)
    } else if walk.at(Clause::Ipv6, ethertype == 0x86dd) {
        read6(frame, l3, walk)
    } else {
        Err("pass_not_ip")
    }
}

fn read4(frame: &[u8], l3: usize, walk: &mut Walk) -> Result<Packet, Left> {
    let ip = part(frame, l3, usize::MAX);
    let header_len = usize::from(byte(ip, 0) % 16) * 4;
    let len = usize::from(be16(ip, 2));
    if walk.at(Clause::Ipv4Version, byte(ip, 0) / 16 != 4)
        || walk.at(Clause::Ipv4HeaderShort, header_len < 20)
        || walk.at(Clause::Ipv4LenShort, len < header_len)
        || walk.at(Clause::Ipv4LenLong, len > ip.len())
    {
        return Err("pass_malformed");
    }
    let ip = part(ip, 0, len);
    let protocol = byte(ip, 9);
    let offset = be16(ip, 6) & 0x1fff;
    if walk.at(Clause::Ipv4FragmentOffset, offset != 0) {
        // RFC 3128: nobody has a reason to send it.
        let over_flags = protocol == 6 && offset == 1;
        return Err(if walk.at(Clause::OverFlags, over_flags) {
            "pass_malformed"
        } else {
            "pass_fragment"
        });
    }
    let first = walk.at(Clause::Ipv4MoreFragments, be16(ip, 6) & 0x2000 != 0);
    if first && !walk.at(Clause::FragmentPorts, protocol == 6 || protocol == 17) {
        return Err("pass_fragment");
    }
    let place = Place {
        l3,
        len,
        header_len,
        extensions: false,
        first,
    };
    if walk.at(Clause::Icmpv4, protocol == 1) {
        return icmp::about4(ip, place, walk);
    }
    transport(
        ip,
        place,
        protocol,
        address4(ip, 12),
        address4(ip, 16),
        walk,
    )
}

fn read6(frame: &[u8], l3: usize, walk: &mut Walk) -> Result<Packet, Left> {
    let ip = part(frame, l3, usize::MAX);
    let len = 40 + usize::from(be16(ip, 4));
    if walk.at(Clause::Ipv6Version, byte(ip, 0) / 16 != 6)
        || walk.at(Clause::Ipv6LenLong, len > ip.len())
    {
        return Err("pass_malformed");
    }
    let ip = part(ip, 0, len);
    let (protocol, header_len, fragment) = extensions(ip, walk)?;
    let first = fragment == Fragment::First;
    let place = Place {
        l3,
        len,
        header_len,
        extensions: header_len > 40,
        first,
    };
    // No first one was seen: trails last for no time here.
    if fragment == Fragment::Later || walk.at(Clause::Icmpv6Fragment, first && protocol == 58) {
        return Err("pass_fragment");
    }
    if walk.at(Clause::Icmpv6, protocol == 58) {
        return icmp::about6(ip, place, walk);
    }
    transport(ip, place, protocol, address6(ip, 8), address6(ip, 24), walk)
}

/// What of a datagram an IPv6 packet is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fragment {
    /// All of it, also with a fragment header (RFC 6946).
    Whole,
    /// The first fragment: it has the transport header.
    First,
    /// Another one.
    Later,
}

/// Walks over up to three hop-by-hop options (0) and destination options (60) headers, a fragment
/// header (44) behind them and another options header behind that, as RFC 8200 §4.1 has them. Returns
/// the protocol behind all, how long all headers are together, and what of a datagram it is.
pub fn extensions(ip: &[u8], walk: &mut Walk) -> Result<(u8, usize, Fragment), Left> {
    let (mut protocol, mut len) = (byte(ip, 6), 40);
    options(ip, 3, &mut protocol, &mut len, walk)?;
    if !walk.at(Clause::Ipv6Fragment, protocol == 44) {
        return Ok((protocol, len, Fragment::Whole));
    }
    if walk.at(Clause::FragmentCutOff, len + 8 > ip.len()) {
        return Err("pass_malformed");
    }
    let position = be16(ip, len + 2);
    protocol = byte(ip, len);
    len += 8;
    if walk.at(Clause::Ipv6Later, position >> 3 != 0) {
        return Ok((protocol, len, Fragment::Later));
    }
    let fragment = if walk.at(Clause::Ipv6First, position & 1 != 0) {
        Fragment::First
    } else {
        Fragment::Whole
    };
    options(ip, 1, &mut protocol, &mut len, walk)?;
    Ok((protocol, len, fragment))
}

fn options(
    ip: &[u8],
    most: usize,
    protocol: &mut u8,
    len: &mut usize,
    walk: &mut Walk,
) -> Result<(), Left> {
    for _ in 0..most {
        if !walk.at(Clause::Extension, *protocol == 0 || *protocol == 60) {
            break;
        }
        // In units of eight bytes, not counting the first eight.
        let end = *len + 8 + usize::from(byte(ip, *len + 1)) * 8;
        if walk.at(
            Clause::ExtensionCutOff,
            *len + 2 > ip.len() || end > ip.len(),
        ) {
            return Err("pass_malformed");
        }
        *protocol = byte(ip, *len);
        *len = end;
    }
    Ok(())
}

/// Where an IP packet is, and how long its headers are: see [`Packet`].
#[derive(Clone, Copy)]
pub struct Place {
    /// See there.
    pub l3: usize,
    /// See there.
    pub len: usize,
    /// See there.
    pub header_len: usize,
    /// See there.
    pub extensions: bool,
    /// Whether it is the first fragment of its datagram.
    pub first: bool,
}

fn transport(
    ip: &[u8],
    place: Place,
    protocol: u8,
    client: IpAddr,
    vip: IpAddr,
    walk: &mut Walk,
) -> Result<Packet, Left> {
    let segment = part(ip, place.header_len, usize::MAX);
    let (kind, sequence, has_checksum);
    if walk.at(Clause::Tcp, protocol == 6) {
        if walk.at(Clause::TcpCutOff, segment.len() < 20) {
            return Err("pass_malformed");
        }
        let (fin, syn, rst, ack) = (0x01, 0x02, 0x04, 0x10);
        let flags = byte(segment, 13);
        kind = if walk.at(Clause::Opening, flags & (fin | syn | rst | ack) == syn) {
            Kind::Opening
        } else if walk.at(Clause::Closing, flags & (fin | rst) != 0) {
            Kind::Closing
        } else {
            Kind::Other
        };
        sequence = be32(segment, 4);
        has_checksum = true;
    } else if walk.at(Clause::Udp, protocol == 17) {
        if walk.at(Clause::UdpCutOff, segment.len() < 8) {
            return Err("pass_malformed");
        }
        kind = Kind::Other;
        sequence = 0;
        has_checksum = walk.at(Clause::UdpChecksum, be16(segment, 6) != 0)
            && walk.at(
                Clause::UdpLenAgrees,
                usize::from(be16(segment, 4)) == segment.len(),
            );
    } else {
        return Err("pass_protocol");
    }
    Ok(Packet {
        flow: Flow {
            client,
            vip,
            client_port: be16(segment, 0),
            vip_port: be16(segment, 2),
            protocol,
        },
        l3: place.l3,
        len: place.len,
        header_len: place.header_len,
        extensions: place.extensions,
        kind,
        sequence,
        // A fragment's is that of the whole datagram.
        has_checksum: has_checksum && !place.first,
    })
}
