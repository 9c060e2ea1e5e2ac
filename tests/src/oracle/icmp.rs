//! ICMP errors (RFC 792, RFC 4443 §3): which flow the quoted packet was of. A VM sent it from the
//! virtual address, so its source is the service and its destination the client.

use super::clause::{Clause, Walk};
use super::read::{
    Fragment, Kind, Left, Packet, Place, address4, address6, be16, byte, extensions, part,
};
use super::world::Flow;

/// How many bytes of an ICMP message come before what it quotes.
const HEADER: usize = 8;

/// Reads an ICMP message.
pub fn about4(ip: &[u8], place: Place, walk: &mut Walk) -> Result<Packet, Left> {
    let message = part(ip, place.header_len, usize::MAX);
    if walk.at(Clause::IcmpCutOff, message.len() < HEADER) {
        return Err("pass_malformed");
    }
    // Destination unreachable, time exceeded, parameter problem.
    if !walk.at(Clause::IcmpError, [3, 11, 12].contains(&byte(message, 0))) {
        return Err("pass_icmp");
    }
    let quoted = part(message, HEADER, usize::MAX);
    if walk.at(Clause::QuoteCutOff, quoted.len() < 20) {
        return Err("pass_malformed");
    }
    let header_len = usize::from(byte(quoted, 0) % 16) * 4;
    let protocol = byte(quoted, 9);
    if !walk.at(Clause::QuoteVersion, byte(quoted, 0) / 16 == 4)
        || walk.at(Clause::QuoteHeaderShort, header_len < 20)
        || walk.at(Clause::QuoteFragment, be16(quoted, 6) & 0x1fff != 0)
        || !walk.at(Clause::QuoteTransport, protocol == 6 || protocol == 17)
        || !walk.at(Clause::QuoteOurs, address4(quoted, 12) == address4(ip, 16))
    {
        return Err("pass_icmp");
    }
    if walk.at(Clause::QuotePortsCutOff, quoted.len() < header_len + 4) {
        return Err("pass_malformed");
    }
    let flow = Flow {
        client: address4(quoted, 16),
        vip: address4(quoted, 12),
        client_port: be16(quoted, header_len + 2),
        vip_port: be16(quoted, header_len),
        protocol,
    };
    Ok(about(flow, place))
}

/// Reads an ICMPv6 message.
pub fn about6(ip: &[u8], place: Place, walk: &mut Walk) -> Result<Packet, Left> {
    let message = part(ip, place.header_len, usize::MAX);
    if walk.at(Clause::IcmpCutOff, message.len() < HEADER) {
        return Err("pass_malformed");
    }
    // Destination unreachable, packet too big, time exceeded, parameter problem.
    if !walk.at(Clause::IcmpError, (1..=4).contains(&byte(message, 0))) {
        return Err("pass_icmp");
    }
    let quoted = part(message, HEADER, usize::MAX);
    if walk.at(Clause::QuoteCutOff, quoted.len() < 40) {
        return Err("pass_malformed");
    }
    if !walk.at(Clause::QuoteVersion, byte(quoted, 0) / 16 == 6)
        || !walk.at(Clause::QuoteOurs, address6(quoted, 8) == address6(ip, 24))
    {
        return Err("pass_icmp");
    }
    let (protocol, header_len, fragment) = extensions(quoted, walk)?;
    if walk.at(Clause::QuoteFragment, fragment == Fragment::Later)
        || !walk.at(Clause::QuoteTransport, protocol == 6 || protocol == 17)
    {
        return Err("pass_icmp");
    }
    if walk.at(Clause::QuotePortsCutOff, quoted.len() < header_len + 4) {
        return Err("pass_malformed");
    }
    let flow = Flow {
        client: address6(quoted, 24),
        vip: address6(quoted, 8),
        client_port: be16(quoted, header_len + 2),
        vip_port: be16(quoted, header_len),
        protocol,
    };
    Ok(about(flow, place))
}

fn about(flow: Flow, place: Place) -> Packet {
    Packet {
        flow,
        l3: place.l3,
        len: place.len,
        header_len: place.header_len,
        extensions: place.extensions,
        kind: Kind::About,
        sequence: 0,
        // Both versions of ICMP have one that covers the whole message.
        has_checksum: true,
    }
}
