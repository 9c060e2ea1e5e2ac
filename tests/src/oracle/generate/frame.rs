//! Frames of every kind that the program knows, and of some that it doesn't.

use std::net::IpAddr;

use super::draft::{Draft, ethernet, icmp, tcp, udp};
use super::pool;
use super::random::Random;
use super::world::flow;
use crate::oracle::world::{Flow, World};

const FIN: u8 = 0x01;
const SYN: u8 = 0x02;
const RST: u8 = 0x04;
const ACK: u8 = 0x10;

/// Returns a frame, mostly one that something in the world is for.
pub fn frame(random: &mut Random, world: &World) -> Vec<u8> {
    let flow = flow(random, world);
    let draft = match random.below(16) {
        0 | 1 => error(random, world, &flow),
        2 => other(random, &flow),
        _ => client(random, world, &flow),
    };
    wrap(random, &draft)
}

/// Returns the frame around a packet.
fn wrap(random: &mut Random, draft: &Draft) -> Vec<u8> {
    let ip = draft.ip();
    let mut ethertype = if draft.source.is_ipv4() {
        0x0800
    } else {
        0x86dd
    };
    if random.one_in(50) {
        ethertype = random.one_of(&[0x0800, 0x86dd, 0x0806, 0x8847, 0x8864]);
    }
    let tag = |random: &mut Random| {
        let kind = random.one_of(&[0x8100, 0x8100, 0x8100, 0x88a8]);
        (kind, random.one_of(&[0, 1, 100, 0xefff]))
    };
    let tags = match random.below(12) {
        0 | 1 => vec![tag(random)],
        2 => vec![tag(random), tag(random)],
        3 if random.one_in(3) => vec![tag(random), tag(random), tag(random)],
        _ => Vec::new(),
    };
    let mut frame = ethernet(ethertype, &tags, &ip);
    if random.one_in(4) {
        // A short frame's padding, which is not always zero.
        let count = random.below(24);
        frame.extend(random.bytes(count));
    }
    frame
}

/// Gives a packet what packets may have.
fn adorn(random: &mut Random, draft: &mut Draft) {
    if random.one_in(3) {
        draft.class = random.word() as u8;
    }
    if random.one_in(3) {
        draft.identification = random.word() as u16;
    }
    if random.one_in(3) {
        // Not DF; DF; the reserved bit; fragments.
        let flags = [0, 0, 0x4000, 0xc000, 0x8000, 0x2000, 0x2001, 0x0001, 0x1fff];
        draft.flags = random.one_of(&flags);
    }
    if draft.source.is_ipv4() && random.one_in(5) {
        draft.options = vec![1; 4 * (1 + random.below(10))];
    }
    if draft.source.is_ipv6() && random.one_in(4) {
        for _ in 0..1 + random.below(4) {
            let number = random.one_of(&[0, 60, 60, 44, 43]);
            draft
                .extensions
                .push((number, random.one_of(&[0, 0, 0, 1, 2])));
        }
    }
}

fn payload(random: &mut Random) -> Vec<u8> {
    let len = match random.below(8) {
        0 => 0,
        1 => random.below(1400),
        _ => random.below(40),
    };
    random.bytes(len)
}

/// Returns a client's packet of a flow.
pub fn client(random: &mut Random, world: &World, flow: &Flow) -> Draft {
    let ports = (flow.client_port, flow.vip_port);
    let payload = payload(random);
    let segment = if flow.protocol == 6 {
        let flags = match random.below(12) {
            0..4 => SYN,
            4..8 => ACK,
            8 => FIN | ACK,
            9 => RST,
            10 => SYN | ACK,
            _ => random.word() as u8,
        };
        tcp(ports, sequence(random, world, flow), flags, &payload)
    } else {
        udp(ports, &payload)
    };
    let mut draft = Draft::new(flow.client, flow.vip, flow.protocol, segment);
    if flow.protocol == 17 {
        if random.one_in(4) {
            draft.checksum_at = None;
        }
        if random.one_in(8) {
            let len = random.below(draft.segment.len() + 8) as u16;
            draft.segment.splice(4..6, len.to_be_bytes());
        }
    }
    adorn(random, &mut draft);
    draft
}

/// Returns a sequence number that an entry of the flow may have to do with.
fn sequence(random: &mut Random, world: &World, flow: &Flow) -> u32 {
    let mut numbers: Vec<u32> = Vec::new();
    for entry in world.entries.iter().filter(|entry| entry.flow == *flow) {
        numbers.extend([entry.opened, entry.recent]);
    }
    if numbers.is_empty() || random.one_in(6) {
        return pool::sequence(random);
    }
    let from = random.one_of(&numbers);
    pool::near(random, from)
}

/// Returns what a router says about a packet that a VM sent.
fn error(random: &mut Random, world: &World, flow: &Flow) -> Draft {
    let turned = Flow {
        client: flow.vip,
        vip: flow.client,
        client_port: flow.vip_port,
        vip_port: flow.client_port,
        protocol: flow.protocol,
    };
    let mut quoted = client(random, world, &turned).ip();
    if random.one_in(2) {
        // As little as RFC 792 promises, or less.
        let header = if flow.vip.is_ipv4() { 20 } else { 40 };
        quoted.truncate(header + random.one_of(&[8, 8, 8, 4, 3, 0]));
    }
    quoted.truncate(1200);
    if random.one_in(8) {
        // Other versions and lengths of the quoted header.
        quoted[0] = random.word() as u8;
        if random.one_in(2) {
            quoted[0] = 0x40 | (quoted[0] % 16);
        }
    }
    let (v4, code) = (flow.vip.is_ipv4(), random.below(6) as u8);
    let (protocol, kinds): (u8, &[u8]) = if v4 {
        (1, &[3, 3, 3, 11, 12, 0, 4, 5, 8])
    } else {
        (58, &[1, 2, 2, 3, 4, 0, 5, 128, 135])
    };
    let kind = random.one_of(kinds);
    let router = pool::client(random, v4);
    let to = if random.one_in(8) {
        pool::vip(random, v4)
    } else {
        flow.vip
    };
    let mut message = icmp(kind, code, 1400, &quoted);
    if random.one_in(8) {
        message.truncate(random.below(64));
    }
    let mut draft = Draft::new(router, to, protocol, message);
    if random.one_in(4) {
        adorn(random, &mut draft);
    }
    draft
}

/// Returns something else for a virtual address: another protocol, or a tunnel's packet.
fn other(random: &mut Random, flow: &Flow) -> Draft {
    let protocol = random.one_of(&[2, 4, 41, 47, 50, 51, 132, 136, 255, 0, 60, 44]);
    let nested = Draft::new(
        flow.client,
        flow.vip,
        17,
        udp((flow.client_port, flow.vip_port), b"nested"),
    );
    let segment = if random.one_in(2) {
        nested.ip()
    } else {
        let len = random.below(60);
        random.bytes(len)
    };
    let mut draft = Draft::new(flow.client, flow.vip, protocol, segment);
    adorn(random, &mut draft);
    draft
}

/// Returns one frame of each kind, for tests that go through all of its lengths.
#[must_use]
pub fn one_of_each(vips: [IpAddr; 2]) -> Vec<(&'static str, Vec<u8>)> {
    let mut frames = Vec::new();
    for vip in vips {
        let random = &mut Random::new(1);
        let client = pool::client(random, vip.is_ipv4());
        let ethertype = if vip.is_ipv4() { 0x0800 } else { 0x86dd };
        let mut add = |name, draft: &Draft| {
            frames.push((name, ethernet(ethertype, &[], &draft.ip())));
            let tagged = ethernet(ethertype, &[(0x8100, 100)], &draft.ip());
            frames.push((name, tagged));
            let twice = [(0x88a8, 100), (0x8100, 7)];
            frames.push((name, ethernet(ethertype, &twice, &draft.ip())));
        };
        let segment = tcp((1, 80), 1000, SYN, b"payload");
        let plain = Draft::new(client, vip, 6, segment);
        add("tcp", &plain);
        let datagram = Draft::new(client, vip, 17, udp((1, 80), b"payload"));
        add("udp", &datagram);
        let answer = Draft::new(vip, client, 6, tcp((80, 1), 1, ACK, b"payload"));
        let (protocol, kind) = if vip.is_ipv4() { (1, 3) } else { (58, 2) };
        let message = icmp(kind, 4, 1400, &answer.ip());
        let error = Draft::new(client, vip, protocol, message);
        add("icmp error", &error);
        for (name, mut draft) in [("tcp", plain), ("udp", datagram), ("icmp error", error)] {
            if vip.is_ipv4() {
                draft.options = vec![1; 8];
            } else {
                draft.extensions = vec![(0, 0), (60, 1)];
            }
            add(name, &draft);
        }
        for (name, flags) in [("first fragment", 0x2000), ("later fragment", 0x0003)] {
            let segment = tcp((1, 80), 1000, ACK, b"payload of a fragment");
            let mut draft = Draft::new(client, vip, 6, segment);
            draft.flags = flags;
            if vip.is_ipv6() {
                draft.extensions = vec![(44, 0), (60, 0)];
            }
            add(name, &draft);
        }
        let mut quoted = answer.clone();
        if vip.is_ipv4() {
            quoted.options = vec![1; 8];
        } else {
            quoted.extensions = vec![(60, 0)];
        }
        let message = icmp(kind, 4, 1400, &quoted.ip());
        add("icmp error", &Draft::new(client, vip, protocol, message));
    }
    frames
}
