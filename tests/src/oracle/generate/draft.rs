//! Headers put together byte by byte, with right lengths and checksums.

use std::net::IpAddr;

use crate::oracle::sum::checksum;

/// An IP packet to be.
#[derive(Clone, Debug)]
pub struct Draft {
    /// From where.
    pub source: IpAddr,
    /// To where; of the same family.
    pub destination: IpAddr,
    /// Type of service or traffic class.
    pub class: u8,
    /// IPv4: identification. IPv6: flow label.
    pub identification: u16,
    /// The word with flags and fragment offset as IPv4 has it; IPv6 has it in its fragment header.
    pub flags: u16,
    /// IPv4: options, a multiple of four bytes.
    pub options: Vec<u8>,
    /// IPv6: extension headers, as (number, length in units of eight bytes).
    pub extensions: Vec<(u8, u8)>,
    /// The protocol of the segment.
    pub protocol: u8,
    /// The transport header and what it carries; its checksum is put in.
    pub segment: Vec<u8>,
    /// Where in the segment the checksum is, if it has one.
    pub checksum_at: Option<usize>,
}

impl Draft {
    /// Returns a plain packet.
    #[must_use]
    pub fn new(source: IpAddr, destination: IpAddr, protocol: u8, segment: Vec<u8>) -> Self {
        Self {
            source,
            destination,
            class: 0,
            identification: 7,
            flags: 0x4000,
            options: Vec::new(),
            extensions: Vec::new(),
            protocol,
            segment,
            checksum_at: match protocol {
                6 => Some(16),
                17 => Some(6),
                1 | 58 => Some(2),
                _ => None,
            },
        }
    }

    /// Returns the packet's bytes.
    #[must_use]
    pub fn ip(&self) -> Vec<u8> {
        match (self.source, self.destination) {
            (IpAddr::V4(source), IpAddr::V4(destination)) => {
                let segment = self.summed(&[source.octets(), destination.octets()].concat());
                let header_len = 20 + self.options.len();
                let mut header = vec![0x40 | (header_len / 4) as u8, self.class];
                header.extend(((header_len + segment.len()) as u16).to_be_bytes());
                header.extend(self.identification.to_be_bytes());
                header.extend(self.flags.to_be_bytes());
                header.extend([61, self.protocol, 0, 0]);
                header.extend(source.octets());
                header.extend(destination.octets());
                header.extend(&self.options);
                let sum = checksum(&[&header]);
                header.splice(10..12, sum.to_be_bytes());
                [header, segment].concat()
            }
            (IpAddr::V6(source), IpAddr::V6(destination)) => {
                let segment = self.summed(&[source.octets(), destination.octets()].concat());
                let (mut next, mut body) = (self.protocol, segment);
                for (number, eights) in self.extensions.iter().rev() {
                    if *number == 44 {
                        // RFC 8200 §4.5: offset and "more fragments" are IPv4's, another way around.
                        let position = self.flags << 3 | self.flags >> 13 & 1;
                        let mut header = vec![next, 0];
                        header.extend(position.to_be_bytes());
                        header.extend(u32::from(self.identification).to_be_bytes());
                        header.append(&mut body);
                        (next, body) = (*number, header);
                        continue;
                    }
                    let mut extension = vec![next, *eights];
                    // PadN (RFC 8200 §4.2) over the rest.
                    let rest = 8 * (usize::from(*eights) + 1) - 2;
                    extension.extend([1, (rest - 2) as u8]);
                    extension.resize(2 + rest, 0);
                    extension.append(&mut body);
                    (next, body) = (*number, extension);
                }
                let first = 6 << 28 | u32::from(self.class) << 20 | u32::from(self.identification);
                let mut header = first.to_be_bytes().to_vec();
                header.extend((body.len() as u16).to_be_bytes());
                header.extend([next, 61]);
                header.extend(source.octets());
                header.extend(destination.octets());
                [header, body].concat()
            }
            _ => panic!("two families"),
        }
    }

    fn summed(&self, addresses: &[u8]) -> Vec<u8> {
        let mut segment = self.segment.clone();
        let Some(at) = self.checksum_at else {
            return segment;
        };
        let len = (segment.len() as u16).to_be_bytes();
        let pseudo = if self.protocol == 1 {
            Vec::new()
        } else {
            [addresses, &[0, self.protocol], &len].concat()
        };
        let sum = checksum(&[&pseudo, &segment]);
        if at + 2 <= segment.len() {
            segment.splice(at..at + 2, sum.to_be_bytes());
        }
        segment
    }
}

/// Returns a TCP header with what it carries.
#[must_use]
pub fn tcp(ports: (u16, u16), sequence: u32, flags: u8, payload: &[u8]) -> Vec<u8> {
    let mut header = Vec::new();
    header.extend(ports.0.to_be_bytes());
    header.extend(ports.1.to_be_bytes());
    header.extend(sequence.to_be_bytes());
    header.extend([0; 4]);
    header.extend([5 << 4, flags, 16, 0, 0, 0, 0, 0]);
    [&header, payload].concat()
}

/// Returns a UDP header with what it carries.
#[must_use]
pub fn udp(ports: (u16, u16), payload: &[u8]) -> Vec<u8> {
    let mut header = Vec::new();
    for field in [ports.0, ports.1, 8 + payload.len() as u16, 0] {
        header.extend(field.to_be_bytes());
    }
    [&header, payload].concat()
}

/// Returns an ICMP message that quotes a packet.
#[must_use]
pub fn icmp(kind: u8, code: u8, word: u32, quoted: &[u8]) -> Vec<u8> {
    [&[kind, code, 0, 0], &word.to_be_bytes()[..], quoted].concat()
}

/// Returns a frame as a client's router sends it, with so many VLAN tags.
#[must_use]
pub fn ethernet(ethertype: u16, tags: &[(u16, u16)], ip: &[u8]) -> Vec<u8> {
    let mut frame = vec![2, 0, 0, 0, 0, 0xee, 2, 0, 0, 0, 9, 9];
    for (kind, tag) in tags {
        frame.extend(kind.to_be_bytes());
        frame.extend(tag.to_be_bytes());
    }
    frame.extend(ethertype.to_be_bytes());
    [&frame, ip].concat()
}
