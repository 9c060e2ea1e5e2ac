//! ICMP errors: a router or client says that a packet of a VM did not arrive. The VM sent it from
//! the virtual address, so the error comes here, and must go to that VM, or its path MTU discovery
//! (RFC 1191, RFC 8201) does not work. The packet that it quotes says which flow it is about.

use lb_common::{
    PROTO_TCP, PROTO_UDP,
    outer::{DF_ONLY, inner_sum_v6, traffic_class_v6},
    stats::Reason,
};

use lb_ebpf::packet::Frame;

use crate::{
    extension::{self, Chain, LATER},
    family::{V4, V6},
    parse::{FRAGMENT_OFFSET, Parsed},
};

/// Length of an ICMP header, in bytes.
const HEADER: usize = 8;
/// How much of the quoted transport header is read: the ports (RFC 792 promises eight bytes).
const PORTS: usize = 4;

/// Where an ICMP message is in its packet.
pub struct Message {
    /// Offset of the IP header in the frame.
    pub l3: usize,
    /// Offset of the ICMP header in the frame.
    pub offset: usize,
    /// Length of the ICMP message in bytes.
    pub len: u16,
}

/// Returns an ICMP error (RFC 792: destination unreachable, time exceeded, parameter problem) as a
/// packet of the flow that it is about. `id_fragment` is the outer packet's, without its reserved
/// bit.
#[inline(always)]
pub fn v4(
    frame: Frame<'_>,
    message: &Message,
    ip_len: u16,
    id_fragment: u32,
) -> Result<Parsed<V4>, Reason> {
    let outer = frame.at::<20>(message.l3).ok_or(Reason::PassMalformed)?;
    let icmp = frame
        .at::<HEADER>(message.offset)
        .ok_or(Reason::PassMalformed)?;
    // The frame may be longer than the message: padding is not the message's.
    if usize::from(message.len) < HEADER {
        return Err(Reason::PassMalformed);
    }
    if !matches!(icmp.get8::<0>(), 3 | 11 | 12) {
        return Err(Reason::PassIcmp);
    }
    let at = message.offset + HEADER;
    let quoted = frame.at::<20>(at).ok_or(Reason::PassMalformed)?;
    if usize::from(message.len) < HEADER + 20 {
        return Err(Reason::PassMalformed);
    }
    let header_len = usize::from(quoted.get8::<0>() & 0xf) * 4;
    let proto = quoted.get8::<9>();
    // Only the first fragment has ports, and only what came from the address that the error came
    // to can be about a flow of ours.
    let is_first = quoted.get32::<4>() & FRAGMENT_OFFSET == 0;
    let is_transport = proto == PROTO_TCP || proto == PROTO_UDP;
    let is_ours = quoted.get32::<12>() == outer.get32::<16>();
    if quoted.get8::<0>() >> 4 != 4 || header_len < 20 || !is_first || !is_transport || !is_ours {
        return Err(Reason::PassIcmp);
    }
    if usize::from(message.len) < HEADER + header_len + PORTS {
        return Err(Reason::PassMalformed);
    }
    let ports = frame
        .at::<PORTS>(at + header_len)
        .ok_or(Reason::PassMalformed)?;
    Ok(Parsed {
        // The client's direction: the quoted packet went the other way.
        key: [
            quoted.get32::<16>(),
            quoted.get32::<12>(),
            ports.get32::<0>().rotate_right(16),
            u32::from_ne_bytes([proto, 0, 0, 0]),
        ],
        l3: message.l3,
        l4: message.offset,
        quoted: at + header_len,
        frame_len: frame.bytes(),
        ip_len,
        tos: outer.get8::<1>(),
        id_fragment,
        // The IP header and the message each sum to zero by their own checksums.
        sum: Some(0xffff),
        opening: false,
        closing: false,
        sequence: 0,
        icmp_error: true,
        first_fragment: false,
    })
}

/// Returns an ICMPv6 error (RFC 4443 §3: destination unreachable, packet too big, time exceeded,
/// parameter problem) as a packet of the flow that it is about.
#[inline(always)]
pub fn v6(
    frame: Frame<'_>,
    message: &Message,
    ip_len: u16,
    has_extensions: bool,
) -> Result<Parsed<V6>, Reason> {
    let outer = frame.at::<40>(message.l3).ok_or(Reason::PassMalformed)?;
    let icmp = frame
        .at::<HEADER>(message.offset)
        .ok_or(Reason::PassMalformed)?;
    if usize::from(message.len) < HEADER {
        return Err(Reason::PassMalformed);
    }
    if !matches!(icmp.get8::<0>(), 1..=4) {
        return Err(Reason::PassIcmp);
    }
    let at = message.offset + HEADER;
    let quoted = frame.at::<40>(at).ok_or(Reason::PassMalformed)?;
    if usize::from(message.len) < HEADER + 40 {
        return Err(Reason::PassMalformed);
    }
    let is_ours =
        quoted.get64::<8>() == outer.get64::<24>() && quoted.get64::<16>() == outer.get64::<32>();
    if quoted.get8::<0>() >> 4 != 6 || !is_ours {
        return Err(Reason::PassIcmp);
    }
    let Chain {
        proto,
        len: extensions,
        fragment,
        ..
    } = extension::chain(frame, at + 40, quoted.get8::<6>())?;
    if usize::from(message.len) < HEADER + 40 + extensions {
        return Err(Reason::PassMalformed);
    }
    // As for IPv4: only the first fragment has ports.
    if fragment == LATER || proto != PROTO_TCP && proto != PROTO_UDP {
        return Err(Reason::PassIcmp);
    }
    if usize::from(message.len) < HEADER + 40 + extensions + PORTS {
        return Err(Reason::PassMalformed);
    }
    let ports = frame
        .at::<PORTS>(at + 40 + extensions)
        .ok_or(Reason::PassMalformed)?;
    let first = outer.get32::<0>();
    Ok(Parsed {
        key: [
            quoted.get32::<24>(),
            quoted.get32::<28>(),
            quoted.get32::<32>(),
            quoted.get32::<36>(),
            quoted.get32::<8>(),
            quoted.get32::<12>(),
            quoted.get32::<16>(),
            quoted.get32::<20>(),
            ports.get32::<0>().rotate_right(16),
            u32::from_ne_bytes([proto, 0, 0, 0]),
        ],
        l3: message.l3,
        l4: message.offset,
        quoted: at + 40 + extensions,
        frame_len: frame.bytes(),
        ip_len,
        tos: traffic_class_v6(first),
        id_fragment: DF_ONLY,
        // ICMPv6 has a checksum with a pseudo-header, as TCP has.
        sum: (!has_extensions).then(|| inner_sum_v6(first, outer.get32::<4>())),
        opening: false,
        closing: false,
        sequence: 0,
        icmp_error: true,
        first_fragment: false,
    })
}
