//! Headers: Ethernet, up to two VLAN tags, IPv4 with options, IPv6 with extension headers, TCP, UDP; ICMP
//! errors by [`crate::icmp`].

use core::hint;

use lb_common::{
    PROTO_TCP, PROTO_UDP,
    outer::{self, DF_ONLY, inner_sum_v4, inner_sum_v6},
    stats::Reason,
};

use lb_ebpf::packet::Frame;

use crate::{
    extension::{self, Chain, FIRST, LATER},
    family::{Family, V4, V6},
    icmp::{self, Message},
};

pub const ETHERTYPE_IPV4: u16 = 0x0800;
pub const ETHERTYPE_IPV6: u16 = 0x86dd;
/// IEEE 802.1Q.
const ETHERTYPE_VLAN: u16 = 0x8100;
/// IEEE 802.1ad.
const ETHERTYPE_SERVICE_VLAN: u16 = 0x88a8;

/// Bits of an IPv4 header's second word, in memory order: "more fragments" and the offset.
pub const FRAGMENT_MASK: u32 = u32::from_ne_bytes([0, 0, 0x3f, 0xff]);

/// The offset alone.
pub const FRAGMENT_OFFSET: u32 = u32::from_ne_bytes([0, 0, 0x1f, 0xff]);

/// The bit beside them that must be zero (RFC 791 §3.1).
const RESERVED_FLAG: u32 = u32::from_ne_bytes([0, 0, 0x80, 0]);

pub const PROTO_ICMP: u8 = 1;
pub const PROTO_ICMPV6: u8 = 58;

const TCP_FIN: u8 = 0x01;
const TCP_SYN: u8 = 0x02;
const TCP_RST: u8 = 0x04;
const TCP_ACK: u8 = 0x10;

/// What the pipeline needs to know of a packet.
pub struct Parsed<F: Family> {
    /// The flow key.
    pub key: F::Key,
    /// Offset of the IP header: 14, 18 behind a VLAN tag, or 22 behind two.
    pub l3: usize,
    /// Offset of the transport header, or that of the ICMP error; 0 if there is none in this
    /// packet.
    pub l4: usize,
    /// ICMP error: offset of the transport header of the packet that it quotes. Else 0.
    pub quoted: usize,
    /// The frame's length in bytes.
    pub frame_len: usize,
    /// The IP packet's length in bytes; the frame may be longer (padding).
    pub ip_len: u16,
    /// Type of service or traffic class.
    pub tos: u8,
    /// Identification and flags for an outer IPv4 header, in memory order.
    pub id_fragment: u32,
    /// The one's-complement sum over the IP packet, or nothing if only reading its payload would
    /// tell.
    pub sum: Option<u64>,
    /// Whether the packet opens a flow.
    pub opening: bool,
    /// Whether the client closes the flow with it.
    pub closing: bool,
    /// TCP: the sequence number. Else 0.
    pub sequence: u32,
    /// Whether it is an ICMP error about a packet of the flow.
    pub icmp_error: bool,
    /// Whether others follow of the same datagram. They don't come here: see [`crate::fragment`].
    pub first_fragment: bool,
}

/// A parsed packet of either family.
pub enum Packet {
    V4(Parsed<V4>),
    V6(Parsed<V6>),
}

/// Reads the headers of a frame, or says why the packet is not for us.
#[inline(always)]
pub fn parse(frame: Frame<'_>) -> Result<Packet, Reason> {
    match network_header(frame)? {
        (ETHERTYPE_IPV4, l3) => ipv4(frame, l3).map(Packet::V4),
        (ETHERTYPE_IPV6, l3) => ipv6(frame, l3).map(Packet::V6),
        _ => Err(Reason::PassNotIp),
    }
}

/// Returns the EtherType behind any VLAN tag, and the offset of what it names.
#[inline(always)]
pub fn network_header(frame: Frame<'_>) -> Result<(u16, usize), Reason> {
    let ethernet = frame.at::<14>(0).ok_or(Reason::PassMalformed)?;
    let mut ethertype = u16::from_be(ethernet.get16::<12>());
    let mut l3 = 14;
    if ethertype == ETHERTYPE_VLAN || ethertype == ETHERTYPE_SERVICE_VLAN {
        let tag = frame.at::<4>(14).ok_or(Reason::PassMalformed)?;
        l3 = 18 + 4 * is_vlan(u16::from_be(tag.get16::<2>()));
        let last = frame.at::<2>(l3 - 2).ok_or(Reason::PassMalformed)?;
        ethertype = u16::from_be(last.get16::<0>());
    }
    Ok((ethertype, l3))
}

/// Returns 1 if a VLAN tag follows, else 0; by arithmetic, or the verifier would follow frames with
/// one tag and with two separately all the way.
#[inline(always)]
fn is_vlan(ethertype: u16) -> usize {
    let zero = |differs: u16| hint::black_box(usize::from(differs)).wrapping_sub(1) >> 63;
    zero(ethertype ^ ETHERTYPE_VLAN) | zero(ethertype ^ ETHERTYPE_SERVICE_VLAN)
}

#[inline(always)]
fn ipv4(frame: Frame<'_>, l3: usize) -> Result<Parsed<V4>, Reason> {
    let header = frame.at::<20>(l3).ok_or(Reason::PassMalformed)?;
    let version_ihl = header.get8::<0>();
    let header_len = usize::from(version_ihl & 0xf) * 4;
    let ip_len = u16::from_be(header.get16::<2>());
    if version_ihl >> 4 != 4 || header_len < 20 || usize::from(ip_len) < header_len {
        return Err(Reason::PassMalformed);
    }
    if l3 + usize::from(ip_len) > frame.bytes() {
        return Err(Reason::PassMalformed);
    }
    // The reserved bit is not ours to pass on.
    let mut id_fragment = header.get32::<4>() & !RESERVED_FLAG;
    let proto = header.get8::<9>();
    let mut first_fragment = false;
    if id_fragment & FRAGMENT_MASK != 0 {
        if id_fragment & FRAGMENT_OFFSET != 0 || !carries_ports(proto) {
            return Err(Reason::PassFragment);
        }
        first_fragment = true;
        id_fragment = outer::of_fragment(id_fragment);
    }
    let l4_len = ip_len - header_len as u16;
    if proto == PROTO_ICMP {
        let message = Message {
            l3,
            offset: l3 + header_len,
            len: l4_len,
        };
        return icmp::v4(frame, &message, ip_len, id_fragment);
    }
    let l4 = transport(frame, l3 + header_len, proto, l4_len)?;
    let (source, destination) = (header.get32::<12>(), header.get32::<16>());
    Ok(Parsed {
        key: [
            source,
            destination,
            l4.ports,
            u32::from_ne_bytes([proto, 0, 0, 0]),
        ],
        l3,
        l4: l3 + header_len,
        quoted: 0,
        frame_len: frame.bytes(),
        ip_len,
        tos: header.get8::<1>(),
        id_fragment,
        // A fragment's checksum is that of the whole datagram.
        sum: (l4.has_checksum && !first_fragment)
            .then(|| inner_sum_v4(source, destination, proto, l4_len)),
        opening: l4.opening,
        closing: l4.closing,
        sequence: l4.sequence,
        icmp_error: false,
        first_fragment,
    })
}

#[inline(always)]
fn ipv6(frame: Frame<'_>, l3: usize) -> Result<Parsed<V6>, Reason> {
    let header = frame.at::<40>(l3).ok_or(Reason::PassMalformed)?;
    let first = header.get32::<0>();
    let second = header.get32::<4>();
    let [len_high, len_low, first_proto, _] = second.to_ne_bytes();
    let payload_len = u16::from_be_bytes([len_high, len_low]);
    // A jumbogram (RFC 2675) has length zero and is malformed to us.
    if u32::from_be(first) >> 28 != 6 || payload_len > u16::MAX - 40 {
        return Err(Reason::PassMalformed);
    }
    let ip_len = payload_len + 40;
    if l3 + usize::from(ip_len) > frame.bytes() {
        return Err(Reason::PassMalformed);
    }
    let Chain {
        proto,
        len: extensions,
        fragment,
        ..
    } = extension::chain(frame, l3 + 40, first_proto)?;
    if extensions > usize::from(payload_len) {
        return Err(Reason::PassMalformed);
    }
    let l4_len = payload_len - extensions as u16;
    let first_fragment = fragment == FIRST;
    if fragment == LATER || first_fragment && proto == PROTO_ICMPV6 {
        return Err(Reason::PassFragment);
    }
    if proto == PROTO_ICMPV6 {
        let message = Message {
            l3,
            offset: l3 + 40 + extensions,
            len: l4_len,
        };
        return icmp::v6(frame, &message, ip_len, extensions > 0);
    }
    let l4 = transport(frame, l3 + 40 + extensions, proto, l4_len)?;
    Ok(Parsed {
        key: [
            header.get32::<8>(),
            header.get32::<12>(),
            header.get32::<16>(),
            header.get32::<20>(),
            header.get32::<24>(),
            header.get32::<28>(),
            header.get32::<32>(),
            header.get32::<36>(),
            l4.ports,
            u32::from_ne_bytes([proto, 0, 0, 0]),
        ],
        l3,
        l4: l3 + 40 + extensions,
        quoted: 0,
        frame_len: frame.bytes(),
        ip_len,
        tos: outer::traffic_class_v6(first),
        id_fragment: DF_ONLY,
        sum: (l4.has_checksum && extensions == 0).then(|| inner_sum_v6(first, second)),
        opening: l4.opening,
        closing: l4.closing,
        sequence: l4.sequence,
        icmp_error: false,
        first_fragment,
    })
}

/// Returns whether a protocol's packets are balanced by their ports.
#[inline(always)]
pub const fn carries_ports(proto: u8) -> bool {
    proto == PROTO_TCP || proto == PROTO_UDP
}

struct Transport {
    /// Source and destination port, as they lie in the header.
    ports: u32,
    /// Whether the segment carries a checksum: always for TCP, for UDP if it isn't zero.
    has_checksum: bool,
    opening: bool,
    closing: bool,
    sequence: u32,
}

#[inline(always)]
fn transport(frame: Frame<'_>, offset: usize, proto: u8, len: u16) -> Result<Transport, Reason> {
    match proto {
        PROTO_TCP => {
            let header = frame.at::<20>(offset).ok_or(Reason::PassMalformed)?;
            if len < 20 {
                return Err(Reason::PassMalformed);
            }
            let flags = header.get8::<13>();
            Ok(Transport {
                ports: header.get32::<0>(),
                has_checksum: true,
                // SYN without ACK, and not one of the nonsense combinations that scanners send.
                opening: flags & (TCP_SYN | TCP_ACK | TCP_RST | TCP_FIN) == TCP_SYN,
                closing: flags & (TCP_FIN | TCP_RST) != 0,
                sequence: u32::from_be(header.get32::<4>()),
            })
        }
        PROTO_UDP => {
            let header = frame.at::<8>(offset).ok_or(Reason::PassMalformed)?;
            if len < 8 {
                return Err(Reason::PassMalformed);
            }
            Ok(Transport {
                ports: header.get32::<0>(),
                // RFC 768: over as many bytes as the length says, which may be others than the
                // packet's.
                has_checksum: header.get16::<6>() != 0 && u16::from_be(header.get16::<4>()) == len,
                opening: false,
                closing: false,
                sequence: 0,
            })
        }
        _ => Err(Reason::PassProtocol),
    }
}
