use std::net::IpAddr;
use std::num::NonZeroU16;

use anyhow::{Result, ensure};
use lb_tests::driver::{Driver, Load};
use lb_tests::frame::{Address, Entropy, Packet, ethernet, wrap};
use lb_tests::pieces::seal;
use lb_user::model::Forward;

use super::cases::{Case, Fate, Fragment};
use super::world::{self, Counters, World};

/// Packets of a timed run, at least: as many as there are flows, so that it meets all of them.
const PACKETS: u32 = 1 << 20;

/// Nanoseconds a packet of every run, with the program under test and with the stub.
#[derive(Default)]
pub struct Times {
    program: Vec<f64>,
    harness: Vec<f64>,
}

impl Times {
    /// Returns minimum and median, net of the harness. Each is a difference of two minima, or of
    /// two medians: the smallest of all differences would be that of a lucky run and an unlucky
    /// run of the harness.
    pub fn net(mut self) -> (f64, f64) {
        self.program.sort_by(f64::total_cmp);
        self.harness.sort_by(f64::total_cmp);
        let net = |at: usize| self.program[at] - self.harness[at];
        (net(0), net(self.program.len() / 2))
    }
}

/// Measures a case with so many flows, so many times, by drivers of the program under test and of
/// the stub. It ends in an error if the packets do anything else than the case says.
pub fn measure(
    case: &Case,
    world: &mut World,
    [driver, stub]: &mut [Driver; 2],
    flows: u32,
    runs: usize,
) -> Result<Times> {
    let (frame, opening) = (case.frame(case.opens()), case.frame(true));
    let load = Load {
        frame: &frame,
        flows,
        ipv6: case.vip.is_ipv6(),
        in_front: 0,
    };
    let verdict = case.verdict();
    world.forget_flows()?;
    if case.fate == Fate::Tracked {
        // Each flow opens, and sends a second packet.
        let opening = Load {
            frame: &opening,
            ..load
        };
        driver.time(&opening, flows, verdict)?;
        driver.time(&load, flows, verdict)?;
    }
    if let Some(before) = case.before() {
        let before = Load {
            frame: &before,
            ..load
        };
        driver.time(&before, flows, verdict)?;
    }
    let (answer, left) = driver.once(&load)?;
    ensure!(answer == verdict, "{}: the verdict is {answer}", case.name);
    check_frame(case, &frame, &left)?;
    let packets = match case.fate {
        Fate::Inserted => flows,
        Fate::Sent | Fate::Passed | Fate::Tracked | Fate::Refused => flows.max(PACKETS),
    };
    let mut times = Times::default();
    for _ in 0..runs {
        if case.fate == Fate::Inserted {
            world.forget_flows()?;
        }
        let before = world.counters()?;
        times.program.push(driver.time(&load, packets, verdict)?);
        let counted = world.counters()?.since(&before);
        check_counters(case, counted, packets, flows)?;
        times.harness.push(stub.time(&load, PACKETS, verdict)?);
        if case.fate == Fate::Inserted {
            check_entries(case, world, flows)?;
        }
    }
    check_entries(case, world, flows)?;
    Ok(times)
}

fn check_counters(case: &Case, counted: Counters, packets: u32, flows: u32) -> Result<()> {
    let passes = case.fate == Fate::Passed;
    let expected = Counters {
        sent: if passes { 0 } else { packets.into() },
        passed: if passes { packets.into() } else { 0 },
        refused: case.refused(packets, flows).into(),
    };
    ensure!(
        counted == expected,
        "{}, {flows} flows: {counted:?}, not {expected:?}",
        case.name
    );
    Ok(())
}

fn check_entries(case: &Case, world: &World, flows: u32) -> Result<()> {
    let (entries, expected) = (world.entries()?, case.entries(flows).map(u64::from));
    ensure!(
        entries == expected,
        "{}, {flows} flows: {entries:?} half-open, confirmed and kept entries, not {expected:?}",
        case.name
    );
    Ok(())
}

/// Compares what left for the packet of flow 0 with what etherparse builds.
fn check_frame(case: &Case, frame: &[u8], left: &[u8]) -> Result<()> {
    let expected = if case.fate == Fate::Passed {
        frame.to_vec()
    } else {
        sent(case, case.ip(case.opens()), left)?
    };
    ensure!(
        left == expected,
        "{}: the frame is {left:02x?}, not {expected:02x?}",
        case.name
    );
    Ok(())
}

/// Returns the frame that is sent. Which backend it is for, and the bits of the flow's hash in it,
/// nobody knows but the program: they are taken from what left.
fn sent(case: &Case, inner: Vec<u8>, left: &[u8]) -> Result<Vec<u8>> {
    let grown = frame_len(case, &inner);
    ensure!(
        left.len() == grown,
        "{}: {} bytes left, not {grown}",
        case.name,
        left.len()
    );
    let number = left[5];
    ensure!(
        (1..=world::BACKENDS).contains(&number.into()),
        "{}: there is no backend {number}",
        case.name
    );
    let outer_v4 = case.backend.is_ipv4();
    let (source, destination) = (world::source(outer_v4), world::address(number, outer_v4));
    let port = match case.forward {
        Forward::Gue(port) => Some(port.get()),
        Forward::L2 | Forward::Ipip | Forward::Nat | Forward::Overlay(_) => None,
    };
    let ip = match case.forward {
        Forward::L2 => inner,
        Forward::Overlay(_) => anyhow::bail!("{}: no case has an overlay", case.name),
        Forward::Nat => {
            let packet = case.packet(case.opens());
            let (from, to) = packet.ports;
            let translated = Packet {
                destination: wire(destination),
                ports: (from, case.port.map_or(to, NonZeroU16::get)),
                ..packet
            };
            translated.ip()
        }
        Forward::Ipip | Forward::Gue(_) => {
            let entropy = Entropy::of(left, false, outer_v4, port.is_some());
            let mut outer = wrap(&inner, wire(source), wire(destination), port, entropy);
            if case.fragment == Some(Fragment::Later) {
                // Its offset makes its identification another than the first one's.
                outer[5] = outer[5].wrapping_add(0xb9);
                seal(&mut outer[..20]);
            }
            outer
        }
    };
    Ok(ethernet(world::OWN, world::mac(number), None, &ip))
}

fn frame_len(case: &Case, inner: &[u8]) -> usize {
    14 + inner.len() + usize::try_from(case.grow()).unwrap_or(0)
}

fn wire(address: IpAddr) -> Address {
    match address {
        IpAddr::V4(address) => Address::V4(address.octets()),
        IpAddr::V6(address) => Address::V6(address.octets()),
    }
}
