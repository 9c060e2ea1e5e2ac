use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::num::NonZeroU16;
use std::ops::RangeInclusive;

use lb_tests::frame::{Address, L4, Packet, ethernet};
use lb_tests::pieces::seal;
use lb_user::model::{Forward, Limits};

use super::world::{ROWS, XDP_PASS, XDP_TX};

const V4: IpAddr = IpAddr::V4(Ipv4Addr::new(198, 18, 9, 10));
const V6: IpAddr = IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 9, 0, 0, 0, 0, 0x10));
const GUE: Forward = Forward::Gue(Forward::GUE_PORT);
/// Entries of a table of half-open flows that is full soon.
const SMALL: u32 = 1 << 10;
/// The numbers of flows of cases that leave no entries behind.
const ANY: RangeInclusive<u32> = 1..=1 << 22;
/// Cases that fill a table anew for every run: with fewer flows the run is too short to time, with
/// more it takes too long to empty the table.
const INSERTED: RangeInclusive<u32> = 1 << 14..=1 << 17;

/// What happens to the packets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    /// Sent, without state.
    Sent,
    /// Passed to the host.
    Passed,
    /// Sent by an entry of the flow table.
    Tracked,
    /// Sent, each with a new entry.
    Inserted,
    /// Sent; the table is full and takes no entry.
    Refused,
}

/// A fragment of a datagram.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fragment {
    /// The first one: it leaves a trail.
    First,
    /// A later one, which follows it.
    Later,
}

impl Fragment {
    /// The last four bytes of an IPv4 header's first eight: identification, flags, offset.
    const fn word(self) -> [u8; 4] {
        match self {
            Self::First => [0, 7, 0x20, 0],
            Self::Later => [0, 7, 0, 0xb9],
        }
    }
}

/// What is not ours about a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Other {
    Address,
    Port,
    Arp,
}

/// One kind of packet.
pub struct Case {
    /// Its name.
    pub name: String,
    /// The service's address.
    pub vip: IpAddr,
    /// An address of the backends' family.
    pub backend: IpAddr,
    /// How they are reached.
    pub forward: Forward,
    /// NAT: the port of the backends, if it isn't the service's.
    pub port: Option<NonZeroU16>,
    /// Whether it is UDP.
    pub udp: bool,
    /// Whether every row has just moved.
    pub moved: bool,
    /// The numbers of flows that it is measured with.
    pub flows: RangeInclusive<u32>,
    /// What happens to its packets.
    pub fate: Fate,
    /// Which fragment of its datagram each packet is.
    pub fragment: Option<Fragment>,
    /// How many prefixes of others the service's list denies.
    pub denied: u32,
    syn: bool,
    other: Option<Other>,
}

impl Case {
    /// Packets of one family's service to backends of the same one, by IPIP.
    fn new(name: &str, vip: IpAddr) -> Self {
        let family = if vip.is_ipv4() { "v4" } else { "v6" };
        Self {
            name: format!("{family} {name}"),
            vip,
            backend: vip,
            forward: Forward::Ipip,
            port: None,
            udp: false,
            moved: false,
            flows: ANY,
            fate: Fate::Sent,
            fragment: None,
            denied: 0,
            syn: false,
            other: None,
        }
    }

    /// Returns all cases.
    pub fn all() -> Vec<Self> {
        [(V4, V6), (V6, V4)]
            .into_iter()
            .flat_map(|(own, other)| {
                [
                    Self::hits(own, other),
                    Self::moves(own),
                    Self::not_ours(own),
                ]
            })
            .flatten()
            .collect()
    }

    /// Packets that the ring alone decides on.
    fn hits(own: IpAddr, other: IpAddr) -> Vec<Self> {
        let mut cases = Vec::new();
        for (protocol, udp) in [("tcp", false), ("udp", true)] {
            for (how, forward) in [("l2", Forward::L2), ("ipip", Forward::Ipip), ("gue", GUE)] {
                cases.push(Self {
                    forward,
                    udp,
                    ..Self::new(&format!("{protocol} -> {how}"), own)
                });
            }
            cases.push(Self {
                forward: Forward::Nat,
                port: NonZeroU16::new(8080),
                udp,
                ..Self::new(&format!("{protocol} -> nat"), own)
            });
        }
        let outer = if other.is_ipv4() { "v4" } else { "v6" };
        for (how, forward) in [("ipip", Forward::Ipip), ("gue", GUE)] {
            cases.push(Self {
                forward,
                backend: other,
                ..Self::new(&format!("tcp -> {how} in {outer}"), own)
            });
        }
        cases.push(Self {
            denied: 100_000,
            ..Self::new("tcp -> ipip, 100000 denied", own)
        });
        cases.push(Self {
            syn: true,
            ..Self::new("tcp syn -> ipip", own)
        });
        // The driver varies an IPv6 packet's flow where a fragment header would be.
        if own.is_ipv4() {
            for (which, fragment) in [("first", Fragment::First), ("later", Fragment::Later)] {
                cases.push(Self {
                    udp: true,
                    flows: 1..=1 << 14,
                    fragment: Some(fragment),
                    ..Self::new(&format!("udp {which} fragment -> ipip"), own)
                });
            }
        }
        cases
    }

    /// Packets of rows that have just moved, by IPIP.
    fn moves(own: IpAddr) -> Vec<Self> {
        let moved = |name, udp, fate, flows| Self {
            moved: true,
            udp,
            fate,
            flows,
            ..Self::new(name, own)
        };
        // Filling a table with four million flows takes its time; one protocol must do.
        let million = 1..=1 << 20;
        let most = if own.is_ipv4() { ANY } else { million.clone() };
        vec![
            moved("tcp moved, tracked", false, Fate::Tracked, most),
            moved("udp moved, tracked", true, Fate::Tracked, million),
            moved("tcp moved, old flow", false, Fate::Inserted, INSERTED),
            moved("udp moved, old flow", true, Fate::Inserted, INSERTED),
            Self {
                syn: true,
                ..moved("tcp moved, syn", false, Fate::Inserted, INSERTED)
            },
            Self {
                syn: true,
                ..moved("tcp moved, syn flood", false, Fate::Refused, INSERTED)
            },
        ]
    }

    /// Packets that pass.
    fn not_ours(own: IpAddr) -> Vec<Self> {
        let passed = |name, other| Self {
            other: Some(other),
            fate: Fate::Passed,
            ..Self::new(name, own)
        };
        let mut cases = vec![
            passed("not ours: another address", Other::Address),
            passed("not ours: another port", Other::Port),
        ];
        if own.is_ipv4() {
            cases.push(Self {
                name: "not ours: arp".to_owned(),
                ..passed("", Other::Arp)
            });
        }
        cases
    }

    /// Returns the packet of flow 0, as the driver program makes it: other flows differ from it
    /// in the last two bytes of the source address, and in the source port.
    pub fn packet(&self, syn: bool) -> Packet {
        let address = self.other == Some(Other::Address);
        let (source, destination) = match self.vip {
            IpAddr::V4(_) if address => ([198, 19, 0, 0].into(), [198, 18, 200, 1].into()),
            IpAddr::V4(_) => ([198, 19, 0, 0].into(), self.vip),
            IpAddr::V6(_) => {
                let of = |net, host| IpAddr::from([0x2001, 0xdb8, net, 0, 0, 0, host, 0]);
                let other = of(9, 0xc801);
                (of(5, 0), if address { other } else { self.vip })
            }
        };
        let wire = |address| match address {
            IpAddr::V4(address) => Address::V4(address.octets()),
            IpAddr::V6(address) => Address::V6(address.octets()),
        };
        let l4 = match (self.udp, syn) {
            (true, _) => L4::Udp,
            (false, true) => L4::Syn,
            (false, false) => L4::Ack,
        };
        let port = if self.other == Some(Other::Port) {
            81
        } else {
            80
        };
        Packet {
            source: wire(source),
            destination: wire(destination),
            ports: (0, port),
            // 64 bytes on the wire if it is IPv4: small packets are what costs.
            payload: vec![0; if self.udp { 18 } else { 6 }],
            ..Packet::v4(l4, 0)
        }
    }

    /// Returns that packet's IP packet.
    pub fn ip(&self, syn: bool) -> Vec<u8> {
        self.ip_of(syn, self.fragment)
    }

    fn ip_of(&self, syn: bool, fragment: Option<Fragment>) -> Vec<u8> {
        let mut ip = self.packet(syn).ip();
        if let Some(fragment) = fragment {
            ip.splice(4..8, fragment.word());
            seal(&mut ip);
        }
        ip
    }

    /// Returns the frame of what must have been seen before, if there is such.
    pub fn before(&self) -> Option<Vec<u8>> {
        let later = self.fragment == Some(Fragment::Later);
        later.then(|| framed(&self.ip_of(false, Some(Fragment::First))))
    }

    /// Returns that packet's frame.
    pub fn frame(&self, syn: bool) -> Vec<u8> {
        let mut frame = framed(&self.ip(syn));
        if self.other == Some(Other::Arp) {
            frame[12..14].copy_from_slice(&[0x08, 0x06]);
        }
        frame
    }

    /// Returns whether the packets that are measured open flows.
    pub fn opens(&self) -> bool {
        self.syn
    }

    /// Returns the sizes of the flow tables: what is usual, unless the case is about a table that
    /// is full, or has more flows. A miss in a large table costs more than in a small one.
    pub fn limits(&self) -> Limits {
        let usual = Limits {
            services: 16,
            backends: 256,
            rows: ROWS,
            ..Limits::default()
        };
        match self.fate {
            Fate::Sent | Fate::Passed | Fate::Inserted => usual,
            Fate::Refused => Limits {
                half_open_flows: SMALL,
                ..usual
            },
            Fate::Tracked => {
                let twice = 2 * self.flows.end();
                Limits {
                    half_open_flows: twice,
                    confirmed_flows: twice,
                    kept_flows: twice,
                    fragments: twice,
                    ..usual
                }
            }
        }
    }

    /// Returns by how many bytes its frames grow.
    pub fn grow(&self) -> i32 {
        let ip = if self.backend.is_ipv4() { 20 } else { 40 };
        match (self.fate, self.forward) {
            (Fate::Passed, _) | (_, Forward::L2 | Forward::Nat) => 0,
            (_, Forward::Ipip) => ip,
            (_, Forward::Gue(_)) => ip + 8,
            (_, Forward::Overlay(overlay)) => ip + 8 + overlay.header.header_len() as i32 + 14,
        }
    }

    /// Returns what the program answers.
    pub fn verdict(&self) -> u32 {
        if self.fate == Fate::Passed {
            XDP_PASS
        } else {
            XDP_TX
        }
    }

    /// Returns how many entries there are of half-open, confirmed and kept flows once packets of
    /// so many flows were seen.
    pub fn entries(&self, flows: u32) -> [u32; 3] {
        match self.fate {
            Fate::Sent | Fate::Passed => [0; 3],
            Fate::Tracked if !self.udp => [0, flows, 0],
            Fate::Inserted if self.syn => [flows, 0, 0],
            Fate::Tracked | Fate::Inserted => [0, 0, flows],
            Fate::Refused => [flows.min(SMALL), 0, 0],
        }
    }

    /// Returns how many of a run's packets are refused an entry. Packets come in rounds over all
    /// flows; those that came first have entries.
    pub fn refused(&self, packets: u32, flows: u32) -> u32 {
        match self.fate {
            Fate::Refused => flows.saturating_sub(SMALL) * (packets / flows),
            Fate::Sent | Fate::Passed | Fate::Tracked | Fate::Inserted => 0,
        }
    }
}

/// Puts an IP packet into a frame as a client's router sends it.
fn framed(ip: &[u8]) -> Vec<u8> {
    ethernet([2, 0, 0, 0, 9, 9], [2, 0, 0, 0, 0, 0xee], None, ip)
}
