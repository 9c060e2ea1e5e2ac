//! Worlds: rows that are settled, in transition or empty; backends that live, leave, died, were born
//! again or can't be reached; entries of every kind.

use std::net::{Ipv4Addr, Ipv6Addr};

use super::pool;
use super::random::Random;
use crate::oracle::compare::ROOM;
use crate::oracle::world::{Backend, Entry, Flow, LAST_SLOT, Out, Row, Service, Table, Way, World};

/// Returns a world.
pub fn world(random: &mut Random) -> World {
    let mut world = World::default();
    for _ in 0..1 + random.below(8) {
        let service = service(random);
        let is_same = |other: &Service| {
            (other.vip, other.port, other.protocol) == (service.vip, service.port, service.protocol)
        };
        if !world.services.iter().any(is_same) {
            world.services.push(service);
        }
    }
    world.backends = (1..=LAST_SLOT).map(|slot| backend(random, slot)).collect();
    for _ in 0..random.below(16) {
        let entry = entry(random, &world);
        let same_table = |other: &&Entry| {
            other.table == entry.table && other.flow.client.is_ipv4() == entry.flow.client.is_ipv4()
        };
        let others = world.entries.iter().filter(same_table);
        let is_there = others.clone().any(|other| other.flow == entry.flow);
        if !is_there && others.count() < ROOM {
            world.entries.push(entry);
        }
    }
    world
}

/// Slots of backends for IPv4 packets, and for IPv6 ones.
fn slots(v4: bool) -> [u32; 4] {
    if v4 { [1, 2, 3, 4] } else { [5, 6, 7, 8] }
}

fn service(random: &mut Random) -> Service {
    let v4 = random.one_in(2);
    let port = if random.one_in(4) {
        0
    } else {
        pool::vip_port(random)
    };
    let protocol = pool::protocol(random);
    let len = random.one_of(&[1, 1, 2, 4, 8]);
    Service {
        vip: pool::vip(random, v4),
        port,
        protocol,
        ring: (0..len).map(|_| row(random, v4)).collect(),
    }
}

fn slot(random: &mut Random, v4: bool) -> u32 {
    match random.below(40) {
        0 => 0,
        1 => random.one_of(&[LAST_SLOT + 1, 0xff_ffff]),
        _ => random.one_of(&slots(v4)),
    }
}

fn row(random: &mut Random, v4: bool) -> Row {
    let owner = slot(random, v4);
    match random.below(8) {
        0 | 1 => Row {
            owner,
            untracked: owner,
            lookup: false,
        },
        2 | 3 => Row {
            owner,
            untracked: owner,
            lookup: true,
        },
        _ => Row {
            owner,
            untracked: slot(random, v4),
            lookup: true,
        },
    }
}

fn backend(random: &mut Random, slot: u32) -> Backend {
    let inner_v4 = slots(true).contains(&slot);
    let outer_v4 = random.one_in(2);
    let alive = !random.one_in(4);
    Backend {
        slot,
        address: if outer_v4 {
            Ipv4Addr::new(198, 18, 1, slot as u8).into()
        } else {
            Ipv6Addr::new(0x2001, 0xdb8, 1, 0, 0, 0, 0, slot as u16).into()
        },
        inner_v4,
        alive,
        accepts: alive && !random.one_in(4),
        generation: random.one_of(&[0, 0, 1, 0xffff]),
        side: random.below(2) as u8,
        way: match random.below(8) {
            0 => Way::Unreachable,
            1 | 2 => Way::L2,
            3 | 4 => Way::Ipip,
            _ => Way::Gue(random.one_of(&[6080, 6080, 1, 0xffff])),
        },
        around: random.one_in(6).then(|| random.one_of(&[1, 100, 4094])),
        vlan: random.one_in(3).then(|| random.one_of(&[1, 100, 4094])),
        out: match random.below(16) {
            0 => Out::Nowhere,
            1..6 => Out::Elsewhere,
            _ => Out::Back,
        },
        source_prefix: random.one_in(3).then(|| {
            if outer_v4 {
                random.one_of(&[0, 8, 15, 16, 24, 31, 32])
            } else {
                random.one_of(&[32, 64, 95, 96, 97, 112, 128])
            }
        }),
    }
}

/// Returns an entry, mostly of a flow that some service is for.
fn entry(random: &mut Random, world: &World) -> Entry {
    let at = random.below(world.services.len());
    let service = &world.services[at];
    let v4 = service.vip.is_ipv4();
    let mut flow = flow_of(random, service);
    if !world.entries.is_empty() && random.one_in(3) {
        // Beside another entry of the same flow.
        let other = world.entries[random.below(world.entries.len())];
        if other.service == at as u32 {
            flow = other.flow;
        }
    }
    let opened = if flow.protocol == 6 {
        pool::sequence(random)
    } else {
        0
    };
    let target = slot(random, v4);
    let generation = world
        .backend(target)
        .map_or(0, |backend| backend.generation);
    Entry {
        table: random.one_of(&[Table::HalfOpen, Table::Confirmed, Table::Kept]),
        flow,
        backend: target,
        generation: if random.one_in(6) {
            generation.wrapping_sub(1)
        } else {
            generation
        },
        service: at as u32,
        closed: random.one_in(3),
        confirmed: random.one_in(3),
        reopened: random.one_in(3),
        opened,
        recent: if flow.protocol == 6 {
            pool::near(random, opened)
        } else {
            0
        },
        age: random.one_of(&[0, 1, 1, 100, 101, 5000]),
        foreign: random.one_in(30),
    }
}

/// Returns a flow, mostly one that an entry or a service of the world is for.
pub fn flow(random: &mut Random, world: &World) -> Flow {
    match random.below(8) {
        0 => pool::flow(random),
        1..4 if !world.entries.is_empty() => world.entries[random.below(world.entries.len())].flow,
        _ if world.services.is_empty() => pool::flow(random),
        _ => {
            let service = random.below(world.services.len());
            flow_of(random, &world.services[service])
        }
    }
}

/// Returns a flow that the service is for.
fn flow_of(random: &mut Random, service: &Service) -> Flow {
    Flow {
        client: pool::client(random, service.vip.is_ipv4()),
        vip: service.vip,
        client_port: pool::client_port(random),
        vip_port: match service.port {
            0 => pool::vip_port(random),
            port => port,
        },
        protocol: service.protocol,
    }
}
