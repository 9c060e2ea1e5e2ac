//! Whole frames, built by etherparse: nothing of the code under test is used.

use etherparse::{
    EtherType, Ethernet2Header, IpNumber, Ipv4Header, Ipv4Options, Ipv6Header, SingleVlanHeader,
    TcpHeader, UdpHeader, VlanId,
};

/// What a client's packet is like.
#[derive(Clone, Debug)]
pub struct Packet {
    /// The client.
    pub source: Address,
    /// The service.
    pub destination: Address,
    /// Ports.
    pub ports: (u16, u16),
    /// What is in it.
    pub l4: L4,
    /// TCP: the sequence number.
    pub sequence: u32,
    /// Type of service or traffic class.
    pub tos: u8,
    /// Time to live or hop limit.
    pub hops: u8,
    /// IPv4: identification and "don't fragment".
    pub id_df: (u16, bool),
    /// IPv4 options: a multiple of 4 bytes.
    pub options: Vec<u8>,
    /// IPv6 extension headers: their numbers, and their bodies behind the first two bytes, each 6
    /// more than a multiple of 8.
    pub extensions: Vec<(u8, Vec<u8>)>,
    /// The payload.
    pub payload: Vec<u8>,
}

/// An address of either family.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Address {
    /// IPv4.
    V4([u8; 4]),
    /// IPv6.
    V6([u8; 16]),
}

/// A transport header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum L4 {
    /// TCP with SYN alone.
    Syn,
    /// TCP with ACK.
    Ack,
    /// TCP with FIN and ACK.
    Fin,
    /// TCP with RST.
    Rst,
    /// UDP.
    Udp,
    /// UDP without a checksum.
    BareUdp,
}

impl L4 {
    /// Returns whether it is UDP.
    #[must_use]
    pub fn is_udp(self) -> bool {
        matches!(self, Self::Udp | Self::BareUdp)
    }

    /// Returns the sequence number of a flow's first packet of this kind: a SYN takes one.
    #[must_use]
    pub const fn sequence(self) -> u32 {
        match self {
            Self::Syn => 1000,
            Self::Ack | Self::Fin | Self::Rst => 1001,
            Self::Udp | Self::BareUdp => 0,
        }
    }
}

impl Packet {
    /// Returns a packet from 198.19.0.1:`port` to 198.18.9.10:80.
    #[must_use]
    pub fn v4(l4: L4, port: u16) -> Self {
        Self {
            source: Address::V4([198, 19, 0, 1]),
            destination: Address::V4([198, 18, 9, 10]),
            ports: (port, 80),
            l4,
            sequence: l4.sequence(),
            tos: 0,
            hops: 61,
            id_df: (7, true),
            options: Vec::new(),
            extensions: Vec::new(),
            payload: vec![0xab; 10],
        }
    }

    /// Returns a packet from `[2001:db8:5::1]:port` to `[2001:db8:9::10]:80`.
    #[must_use]
    pub fn v6(l4: L4, port: u16) -> Self {
        let address = |c: u16, last: u16| {
            Address::V6(std::net::Ipv6Addr::new(0x2001, 0xdb8, c, 0, 0, 0, 0, last).octets())
        };
        Self {
            source: address(5, 1),
            destination: address(9, 0x10),
            ..Self::v4(l4, port)
        }
    }

    /// Returns the IP packet.
    #[must_use]
    pub fn ip(&self) -> Vec<u8> {
        match (self.source, self.destination) {
            (Address::V4(source), Address::V4(destination)) => self.ip4(source, destination),
            (Address::V6(source), Address::V6(destination)) => self.ip6(source, destination),
            _ => panic!("two families"),
        }
    }

    fn protocol(&self) -> IpNumber {
        if self.l4.is_udp() {
            IpNumber::UDP
        } else {
            IpNumber::TCP
        }
    }

    fn ip4(&self, source: [u8; 4], destination: [u8; 4]) -> Vec<u8> {
        let l4 = self.transport(
            |tcp| {
                tcp.calc_checksum_ipv4_raw(source, destination, &self.payload)
                    .expect("a checksum")
            },
            |udp| {
                udp.calc_checksum_ipv4_raw(source, destination, &self.payload)
                    .expect("a checksum")
            },
        );
        let mut header =
            Ipv4Header::new(0, self.hops, self.protocol(), source, destination).expect("a header");
        header.options = Ipv4Options::try_from(self.options.as_slice()).expect("options");
        header.set_payload_len(l4.len()).expect("a length");
        tos4(&mut header, self.tos);
        header.identification = self.id_df.0;
        header.dont_fragment = self.id_df.1;
        header.header_checksum = header.calc_header_checksum();
        [header.to_bytes().as_slice(), &l4].concat()
    }

    fn ip6(&self, source: [u8; 16], destination: [u8; 16]) -> Vec<u8> {
        let l4 = self.transport(
            |tcp| {
                tcp.calc_checksum_ipv6_raw(source, destination, &self.payload)
                    .expect("a checksum")
            },
            |udp| {
                udp.calc_checksum_ipv6_raw(source, destination, &self.payload)
                    .expect("a checksum")
            },
        );
        assert!(self.options.is_empty(), "IPv6 has extensions instead");
        // From the last header to the first, each with the number of what follows it.
        let (mut next_header, mut body) = (self.protocol(), l4);
        for (number, extension) in self.extensions.iter().rev() {
            let mut header = vec![next_header.0, (extension.len() / 8) as u8];
            header.extend(extension);
            header.append(&mut body);
            (next_header, body) = (IpNumber(*number), header);
        }
        let header = Ipv6Header {
            traffic_class: self.tos,
            flow_label: 0x12345.try_into().expect("a label"),
            payload_length: body.len() as u16,
            next_header,
            hop_limit: self.hops,
            source,
            destination,
        };
        [header.to_bytes().as_slice(), &body].concat()
    }

    fn transport(
        &self,
        tcp_checksum: impl Fn(&TcpHeader) -> u16,
        udp_checksum: impl Fn(&UdpHeader) -> u16,
    ) -> Vec<u8> {
        let (from, to) = self.ports;
        let mut bytes = Vec::new();
        if self.l4.is_udp() {
            let mut udp = UdpHeader {
                source_port: from,
                destination_port: to,
                length: 8 + self.payload.len() as u16,
                checksum: 0,
            };
            if self.l4 == L4::Udp {
                udp.checksum = udp_checksum(&udp);
            }
            bytes.extend(udp.to_bytes());
        } else {
            let mut tcp = TcpHeader::new(from, to, self.sequence, 4096);
            tcp.syn = self.l4 == L4::Syn;
            tcp.ack = matches!(self.l4, L4::Ack | L4::Fin);
            tcp.fin = self.l4 == L4::Fin;
            tcp.rst = self.l4 == L4::Rst;
            tcp.checksum = tcp_checksum(&tcp);
            bytes.extend(tcp.to_bytes().as_slice());
        }
        bytes.extend(&self.payload);
        bytes
    }

    /// Returns the frame behind two VLAN tags, the outermost first: each its kind and its control
    /// word.
    #[must_use]
    pub fn double_tagged(&self, tags: [(u16, u16); 2]) -> Vec<u8> {
        let mut frame = self.frame(None);
        let tags = tags.map(|(kind, control)| [kind.to_be_bytes(), control.to_be_bytes()]);
        drop(frame.splice(12..12, tags.concat().concat()));
        frame
    }

    /// Returns the frame as a client's router sends it.
    #[must_use]
    pub fn frame(&self, vlan: Option<u16>) -> Vec<u8> {
        ethernet([2, 0, 0, 0, 9, 9], [2, 0, 0, 0, 0, 0xee], vlan, &self.ip())
    }
}

/// Sets the type of service.
fn tos4(header: &mut Ipv4Header, tos: u8) {
    header.dscp = (tos >> 2).try_into().expect("a DSCP");
    header.ecn = (tos & 3).try_into().expect("an ECN");
}

/// Puts an Ethernet header in front of an IP packet.
#[must_use]
pub fn ethernet(source: [u8; 6], destination: [u8; 6], vlan: Option<u16>, ip: &[u8]) -> Vec<u8> {
    let inside = if ip.first().is_some_and(|first| first >> 4 == 4) {
        EtherType::IPV4
    } else {
        EtherType::IPV6
    };
    let header = Ethernet2Header {
        source,
        destination,
        ether_type: if vlan.is_some() {
            EtherType::VLAN_TAGGED_FRAME
        } else {
            inside
        },
    };
    let mut frame = header.to_bytes().to_vec();
    if let Some(vlan) = vlan {
        let tag = SingleVlanHeader {
            vlan_id: VlanId::try_new(vlan).expect("a VLAN"),
            ether_type: inside,
            ..SingleVlanHeader::default()
        };
        frame.extend(tag.to_bytes());
    }
    frame.extend(ip);
    frame
}

/// What an outer header has that no test can know beforehand: bits of the flow's hash.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Entropy {
    /// IPv6 flow label.
    pub label: u32,
    /// UDP source port.
    pub port: u16,
}

impl Entropy {
    /// Reads it from a frame that was sent through a tunnel of this kind, after a VLAN tag or not.
    #[must_use]
    pub fn of(frame: &[u8], vlan: bool, outer_v4: bool, gue: bool) -> Self {
        let l3 = if vlan { 18 } else { 14 };
        let l4 = l3 + if outer_v4 { 20 } else { 40 };
        let word = |at: usize| {
            frame[at..at + 4]
                .iter()
                .fold(0, |w, b| w << 8 | u32::from(*b))
        };
        Self {
            label: if outer_v4 { 0 } else { word(l3) & 0xf_ffff },
            port: if gue { (word(l4) >> 16) as u16 } else { 0 },
        }
    }
}

/// What stands between an outer IP header and the packet, where that is more than nothing: UDP, and
/// perhaps an overlay.
#[derive(Clone, Debug)]
pub struct OverUdp {
    /// The destination port.
    pub port: u16,
    /// What stands between the UDP header and the packet.
    pub header: Vec<u8>,
}

impl OverUdp {
    /// GUE, variant 1: the packet follows directly.
    #[must_use]
    pub const fn gue(port: u16) -> Self {
        let header = Vec::new();
        Self { port, header }
    }

    /// VXLAN (RFC 7348 §5) with this Ethernet header inside.
    #[must_use]
    pub fn vxlan(port: u16, vni: u32, ethernet: &[u8]) -> Self {
        let words = [0x0800_0000, vni << 8];
        let mut header = words.map(u32::to_be_bytes).concat();
        header.extend(ethernet);
        Self { port, header }
    }

    /// Geneve (RFC 8926 §3.4) with these options, of which one is critical or none, and this Ethernet
    /// header inside.
    #[must_use]
    pub fn geneve(port: u16, vni: u32, options: &[u8], critical: bool, ethernet: &[u8]) -> Self {
        let length = u32::try_from(options.len() / 4).expect("a length") << 24;
        let words = [length | u32::from(critical) << 22 | 0x6558, vni << 8];
        let mut header = words.map(u32::to_be_bytes).concat();
        header.extend(options);
        header.extend(ethernet);
        Self { port, header }
    }
}

/// Wraps an IP packet as its backend expects it: IPIP, or GUE variant 1 to `gue_port`.
#[must_use]
pub fn wrap(
    inner: &[u8],
    source: Address,
    destination: Address,
    gue_port: Option<u16>,
    entropy: Entropy,
) -> Vec<u8> {
    let gue = gue_port.map(OverUdp::gue);
    wrap_in(inner, source, destination, gue.as_ref(), entropy)
}

/// Wraps an IP packet in another, with UDP and more between them or not.
#[must_use]
pub fn wrap_in(
    inner: &[u8],
    source: Address,
    destination: Address,
    over: Option<&OverUdp>,
    entropy: Entropy,
) -> Vec<u8> {
    let v4 = inner[0] >> 4 == 4;
    let tos = if v4 {
        inner[1]
    } else {
        inner[0] << 4 | inner[1] >> 4
    };
    let protocol = match (over, v4) {
        (Some(_), _) => IpNumber::UDP,
        (None, true) => IpNumber::IPV4,
        (None, false) => IpNumber::IPV6,
    };
    let mut body = Vec::new();
    if let Some(OverUdp { port, header }) = over {
        let content = [header.as_slice(), inner].concat();
        let mut udp = UdpHeader {
            source_port: entropy.port,
            destination_port: *port,
            length: 8 + content.len() as u16,
            checksum: 0,
        };
        if let (Address::V6(source), Address::V6(destination)) = (source, destination) {
            udp.checksum = udp
                .calc_checksum_ipv6_raw(source, destination, &content)
                .expect("a checksum");
        }
        body.extend(udp.to_bytes());
        body.extend(content);
    } else {
        body.extend(inner);
    }
    match (source, destination) {
        (Address::V4(source), Address::V4(destination)) => {
            let mut header = Ipv4Header::new(body.len() as u16, 64, protocol, source, destination)
                .expect("a header");
            tos4(&mut header, tos);
            // "Don't fragment" is the inner packet's, and IPv6 is never fragmented on its way.
            header.dont_fragment = !v4 || inner[6] & 0x40 != 0;
            header.identification = if v4 {
                u16::from_be_bytes([inner[4], inner[5]])
            } else {
                0
            };
            header.header_checksum = header.calc_header_checksum();
            [header.to_bytes().as_slice(), &body].concat()
        }
        (Address::V6(source), Address::V6(destination)) => {
            let header = Ipv6Header {
                traffic_class: tos,
                flow_label: entropy.label.try_into().expect("a label"),
                payload_length: body.len() as u16,
                next_header: protocol,
                hop_limit: 64,
                source,
                destination,
            };
            [header.to_bytes().as_slice(), &body].concat()
        }
        _ => panic!("two families"),
    }
}
