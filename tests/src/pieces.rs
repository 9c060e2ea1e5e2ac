//! Datagrams in fragments, cut by the letter of RFC 791 §3.2 and RFC 8200 §4.5.

use crate::frame::{Address, Packet};

/// A fragment: an IP packet, and where in its datagram it begins, in bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Piece {
    /// The offset in bytes.
    pub offset: usize,
    /// The IP packet.
    pub ip: Vec<u8>,
}

/// Cuts a packet without options and extension headers into fragments of up to `size` bytes of its
/// content, a multiple of eight.
#[must_use]
pub fn cut(packet: &Packet, id: u32, size: usize) -> Vec<Piece> {
    let whole = packet.ip();
    let header = match packet.source {
        Address::V4(_) => 20,
        Address::V6(_) => 40,
    };
    let content = &whole[header..];
    let pieces = content.chunks(size).enumerate().map(|(number, part)| {
        let offset = number * size;
        let more = offset + part.len() < content.len();
        Piece {
            offset,
            ip: piece(&whole[..header], id, offset, more, part),
        }
    });
    pieces.collect()
}

/// Builds a fragment behind the header of a whole packet.
#[must_use]
pub fn piece(header: &[u8], id: u32, offset: usize, more: bool, part: &[u8]) -> Vec<u8> {
    assert!(
        offset.is_multiple_of(8) && (!more || part.len().is_multiple_of(8)),
        "fragments are cut at multiples of eight"
    );
    let mut ip = header.to_vec();
    if ip[0] >> 4 == 4 {
        let len = (ip.len() + part.len()) as u16;
        ip[2..4].copy_from_slice(&len.to_be_bytes());
        ip[4..6].copy_from_slice(&(id as u16).to_be_bytes());
        let word = (offset / 8) as u16 | if more { 0x2000 } else { 0 };
        ip[6..8].copy_from_slice(&word.to_be_bytes());
        seal(&mut ip);
    } else {
        let len = (ip.len() - 40 + 8 + part.len()) as u16;
        ip[4..6].copy_from_slice(&len.to_be_bytes());
        let next = std::mem::replace(&mut ip[6], 44);
        ip.extend([next, 0]);
        ip.extend((offset as u16 | u16::from(more)).to_be_bytes());
        ip.extend(id.to_be_bytes());
    }
    ip.extend(part);
    ip
}

/// Sets an IPv4 header's checksum.
pub fn seal(ip: &mut [u8]) {
    ip[10..12].fill(0);
    let header = etherparse::Ipv4Header::from_slice(ip).expect("a header").0;
    ip[10..12].copy_from_slice(&header.calc_header_checksum().to_be_bytes());
}
