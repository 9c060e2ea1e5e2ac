//! Few addresses and ports, so that packets, services and entries meet.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::random::Random;
use crate::oracle::world::Flow;

/// Returns one of three virtual addresses.
pub fn vip(random: &mut Random, v4: bool) -> IpAddr {
    let last = random.one_of(&[0x10, 0x10, 0x10, 0x11, 0x12]);
    if v4 {
        Ipv4Addr::new(198, 18, 9, last).into()
    } else {
        Ipv6Addr::new(0x2001, 0xdb8, 9, 0, 0, 0, 0, last.into()).into()
    }
}

/// Returns one of two clients' addresses.
pub fn client(random: &mut Random, v4: bool) -> IpAddr {
    let last = random.one_of(&[1_u8, 2]);
    if v4 {
        Ipv4Addr::new(198, 19, 0, last).into()
    } else {
        Ipv6Addr::new(0x2001, 0xdb8, 5, 0, 0, 0, 0, last.into()).into()
    }
}

/// Returns a service's port.
pub fn vip_port(random: &mut Random) -> u16 {
    random.one_of(&[80, 80, 80, 443, 53, 0xffff])
}

/// Returns a client's port.
pub fn client_port(random: &mut Random) -> u16 {
    random.one_of(&[1, 2, 3, 0, 0xffff])
}

/// Returns TCP or UDP.
pub fn protocol(random: &mut Random) -> u8 {
    random.one_of(&[6, 6, 17])
}

/// Returns a flow.
pub fn flow(random: &mut Random) -> Flow {
    let v4 = random.one_in(2);
    Flow {
        client: client(random, v4),
        vip: vip(random, v4),
        client_port: client_port(random),
        vip_port: vip_port(random),
        protocol: protocol(random),
    }
}

/// Returns a sequence number: one of a few, or one at a border of what counts as following them.
pub fn sequence(random: &mut Random) -> u32 {
    let start = random.one_of(&[1000, 1000, 0xffff_fff0, 100_000_000, 0x8000_0000]);
    near(random, start)
}

/// Returns a sequence number at some distance from another.
pub fn near(random: &mut Random, from: u32) -> u32 {
    let distances = [
        0,
        0,
        1,
        1,
        1,
        2,
        1461,
        (1 << 17) - 1,
        1 << 17,
        (1 << 17) + 1,
        (1 << 22) - 1,
        1 << 22,
        u32::MAX,
        1 << 31,
    ];
    from.wrapping_add(random.one_of(&distances))
}
