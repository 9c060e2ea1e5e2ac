use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::ops::RangeInclusive;

use anyhow::{Result, ensure};
use etherparse::PacketBuilder;
use lb_user::model::Forward;

use super::driver::{Driver, Load};
use super::world::World;

const XDP_PASS: u32 = 2;
const XDP_TX: u32 = 3;
const V4: IpAddr = IpAddr::V4(Ipv4Addr::new(198, 18, 9, 10));
const V6: IpAddr = IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 9, 0, 0, 0, 0, 0x10));
/// Packets of a timed run that leaves no state behind.
const PACKETS: u32 = 1 << 20;
/// Entries of a flow table that is never full.
const LARGE: u32 = 1 << 23;
/// Cases that fill a table anew for every run: with fewer flows the run is too short to time, with
/// more it takes too long to empty the table.
const INSERTED: RangeInclusive<u32> = 1 << 14..=1 << 17;

/// What happens to the packets.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Fate {
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

/// One kind of packet.
pub struct Case {
    /// Its name.
    pub name: &'static str,
    /// The service's address.
    pub vip: IpAddr,
    /// An address of the backends' family.
    pub backend: IpAddr,
    /// How they are reached.
    pub forward: Forward,
    /// Whether it is UDP.
    pub udp: bool,
    /// Whether every row has just moved.
    pub moved: bool,
    /// Entries of the tables of half-open and kept flows.
    pub table: u32,
    /// The numbers of flows that it is measured with.
    pub flows: RangeInclusive<u32>,
    syn: bool,
    other: Option<&'static str>,
    fate: Fate,
}

impl Case {
    const fn new(name: &'static str, vip: IpAddr, backend: IpAddr, forward: Forward) -> Self {
        Self {
            name,
            vip,
            backend,
            forward,
            udp: false,
            moved: false,
            table: LARGE,
            flows: 1..=1 << 22,
            syn: false,
            other: None,
            fate: Fate::Sent,
        }
    }

    /// Returns all cases.
    pub fn all() -> Vec<Self> {
        const GUE: Forward = Forward::Gue(Forward::GUE_PORT);
        const IPIP: Forward = Forward::Ipip;
        let tcp4 = |name| Self::new(name, V4, V4, IPIP);
        let inserting = |name| Self {
            moved: true,
            flows: INSERTED,
            fate: Fate::Inserted,
            ..tcp4(name)
        };
        vec![
            tcp4("v4 tcp -> ipip"),
            Self {
                syn: true,
                ..tcp4("v4 tcp syn -> ipip")
            },
            Self {
                udp: true,
                ..tcp4("v4 udp -> ipip")
            },
            Self::new("v4 tcp -> l2", V4, V4, Forward::L2),
            Self::new("v4 tcp -> gue", V4, V4, GUE),
            Self::new("v4 tcp -> ipip in v6", V4, V6, IPIP),
            Self::new("v4 tcp -> gue in v6", V4, V6, GUE),
            Self::new("v6 tcp -> ipip", V6, V6, IPIP),
            Self {
                syn: true,
                ..Self::new("v6 tcp syn -> ipip", V6, V6, IPIP)
            },
            Self {
                udp: true,
                ..Self::new("v6 udp -> ipip", V6, V6, IPIP)
            },
            Self::new("v6 tcp -> l2", V6, V6, Forward::L2),
            Self::new("v6 tcp -> gue", V6, V6, GUE),
            Self {
                moved: true,
                fate: Fate::Tracked,
                ..tcp4("moved row, tracked")
            },
            inserting("moved row, old flow"),
            Self {
                syn: true,
                ..inserting("moved row, syn")
            },
            Self {
                syn: true,
                table: 1024,
                fate: Fate::Refused,
                ..inserting("moved row, syn flood")
            },
            Self {
                other: Some("vip"),
                fate: Fate::Passed,
                ..tcp4("not ours: another address")
            },
            Self {
                other: Some("port"),
                fate: Fate::Passed,
                ..tcp4("not ours: another port")
            },
            Self {
                other: Some("arp"),
                fate: Fate::Passed,
                ..tcp4("not ours: arp")
            },
        ]
    }

    fn frame(&self, syn: bool) -> Result<Vec<u8>> {
        let builder = PacketBuilder::ethernet2([2, 0, 0, 0, 9, 9], [2, 0, 0, 0, 0, 1]);
        let port = if self.other == Some("port") { 81 } else { 80 };
        let mut frame = Vec::new();
        let builder = match self.vip {
            IpAddr::V4(vip) => {
                let vip = if self.other == Some("vip") {
                    [198, 18, 200, 1]
                } else {
                    vip.octets()
                };
                builder.ipv4([198, 19, 0, 1], vip, 64)
            }
            IpAddr::V6(vip) => {
                let source = Ipv6Addr::new(0x2001, 0xdb8, 5, 0, 0, 0, 0, 1);
                builder.ipv6(source.octets(), vip.octets(), 64)
            }
        };
        // 64 bytes on the wire and a bit: small packets are what costs.
        if self.udp {
            builder.udp(1000, port).write(&mut frame, &[0; 18])?;
        } else if syn {
            builder
                .tcp(1000, port, 1, 1024)
                .syn()
                .write(&mut frame, &[0; 6])?;
        } else {
            builder
                .tcp(1000, port, 2, 1024)
                .ack(1)
                .write(&mut frame, &[0; 6])?;
        }
        if self.other == Some("arp") {
            frame[12..14].copy_from_slice(&[0x08, 0x06]);
        }
        Ok(frame)
    }

    fn grow(&self) -> i32 {
        let ip = if self.backend.is_ipv4() { 20 } else { 40 };
        match (self.fate, self.forward) {
            (Fate::Passed, _) | (_, Forward::L2) => 0,
            (_, Forward::Ipip) => ip,
            (_, Forward::Gue(_)) => ip + 8,
        }
    }

    /// Measures so many runs: nanoseconds a packet, net of the harness.
    pub fn measure(
        &self,
        world: &mut World,
        driver: &mut Driver,
        flows: u32,
        runs: usize,
    ) -> Result<Vec<f64>> {
        let (frame, opening) = (self.frame(self.syn)?, self.frame(true)?);
        let load = Load {
            frame: &frame,
            flows,
            ipv6: self.vip.is_ipv6(),
            grow: self.grow(),
            verdict: if self.fate == Fate::Passed {
                XDP_PASS
            } else {
                XDP_TX
            },
        };
        if self.fate == Fate::Tracked {
            // Each flow opens, and sends a second packet.
            let opening = Load {
                frame: &opening,
                ..load
            };
            driver.run(&opening, flows)?;
            driver.run(&load, flows)?;
        }
        let packets = match self.fate {
            Fate::Inserted => flows,
            Fate::Sent | Fate::Passed | Fate::Tracked | Fate::Refused => PACKETS,
        };
        let mut times = Vec::new();
        for _ in 0..runs {
            let before = world.counters()?;
            let time = driver.run(&load, packets)?;
            let after = world.counters()?;
            self.check(before, after, packets, flows)?;
            let harness = driver.run_stub(&load, PACKETS)?;
            times.push(time - harness);
            if self.fate == Fate::Inserted {
                world.forget_flows()?;
            }
        }
        world.forget_flows()?;
        Ok(times)
    }

    /// A case that does not do what its name says must not be measured.
    fn check(&self, before: [u64; 3], after: [u64; 3], packets: u32, flows: u32) -> Result<()> {
        let [sent, refused, passed] = std::array::from_fn(|at| after[at] - before[at]);
        let packets = u64::from(packets);
        let expected = match self.fate {
            Fate::Passed => [0, packets],
            Fate::Sent | Fate::Tracked | Fate::Inserted | Fate::Refused => [packets, 0],
        };
        ensure!(
            [sent, passed] == expected,
            "{}: {sent} sent and {passed} passed of {packets}",
            self.name
        );
        // A full table still has the flows that were there first.
        let floods = self.fate == Fate::Refused && flows > 1024;
        ensure!(
            floods == (refused > 0),
            "{}: {refused} entries refused",
            self.name
        );
        Ok(())
    }
}
