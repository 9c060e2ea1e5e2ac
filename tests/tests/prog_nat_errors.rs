//! ICMP errors through NAT, of and about packets in both directions. Every expected frame is built anew by
//! etherparse, with checksums over all of it.

use std::net::IpAddr;

use etherparse::{Icmpv4Type, Icmpv6Type, PacketBuilder, icmpv4, icmpv6};
use lb_tests::frame::{Address, L4, Packet, ethernet};
use lb_tests::nat::*;
use lb_tests::program::{OWN, XDP_TX, mac};

#[derive(Clone, Debug)]
enum Kind {
    V4(Icmpv4Type),
    V6(Icmpv6Type),
}

fn errors(v4: bool) -> Vec<Kind> {
    if v4 {
        use icmpv4::{DestUnreachableHeader as D, TimeExceededCode};
        return [
            Icmpv4Type::DestinationUnreachable(D::Port),
            Icmpv4Type::DestinationUnreachable(D::FragmentationNeeded { next_hop_mtu: 1400 }),
            Icmpv4Type::TimeExceeded(TimeExceededCode::TtlExceededInTransit),
        ]
        .map(Kind::V4)
        .into();
    }
    use icmpv6::{DestUnreachableCode, TimeExceededCode};
    [
        Icmpv6Type::DestinationUnreachable(DestUnreachableCode::Port),
        Icmpv6Type::PacketTooBig { mtu: 1400 },
        Icmpv6Type::TimeExceeded(TimeExceededCode::HopLimitExceeded),
    ]
    .map(Kind::V6)
    .into()
}

/// An ICMP error about a packet, of which so many bytes are quoted.
fn error(from: Address, kind: &Kind, about: &Packet, quoted: usize, hops: u8) -> Vec<u8> {
    let mut bytes = Vec::new();
    let quoted = about.ip()[..quoted].to_vec();
    match (from, about.source, kind) {
        (Address::V4(from), Address::V4(to), Kind::V4(kind)) => PacketBuilder::ipv4(from, to, hops)
            .icmpv4(kind.clone())
            .write(&mut bytes, &quoted),
        (Address::V6(from), Address::V6(to), Kind::V6(kind)) => PacketBuilder::ipv6(from, to, hops)
            .icmpv6(*kind)
            .write(&mut bytes, &quoted),
        _ => panic!("two families"),
    }
    .expect("a packet");
    bytes
}

/// How much of a packet a router may quote: all promise eight bytes behind the IP header; then up
/// to the checksum, and all.
fn quotes(packet: &Packet) -> [usize; 4] {
    let header = if matches!(packet.source, Address::V4(_)) {
        20
    } else {
        40
    };
    let header = header
        + packet.options.len()
        + packet
            .extensions
            .iter()
            .map(|(_, e)| e.len() + 2)
            .sum::<usize>();
    [header + 8, header + 16, header + 18, packet.ip().len()]
}

fn router(v4: bool) -> Address {
    wire(if v4 {
        IpAddr::from([198, 19, 7, 7])
    } else {
        IpAddr::from([0x2001, 0xdb8, 7, 0, 0, 0, 0, 7])
    })
}

fn with_options(packet: Packet) -> [Packet; 2] {
    let more = if matches!(packet.source, Address::V4(_)) {
        Packet {
            options: vec![1; 4],
            ..packet.clone()
        }
    } else {
        Packet {
            extensions: vec![(60, vec![0; 6])],
            ..packet.clone()
        }
    };
    [packet, more]
}

#[test]
fn a_vm_is_told_what_routers_say_about_its_packets() {
    for port in [None, Some(PORT)] {
        let mut program = program(&nat(port));
        for v4 in [true, false] {
            for l4 in [L4::Ack, L4::Udp, L4::BareUdp] {
                let asked = client(v4, l4, 40_000);
                for own in with_options(answer(&at_vm(&asked, port))) {
                    // As it was on the way to the client.
                    let seen = Packet {
                        source: asked.destination,
                        ports: (80, 40_000),
                        ..own.clone()
                    };
                    for kind in errors(v4) {
                        for quoted in quotes(&seen) {
                            let what = format!("{kind:?} {l4:?} {port:?} {quoted}");
                            let frame = ethernet(
                                ROUTER,
                                OWN,
                                None,
                                &error(router(v4), &kind, &seen, quoted, 60),
                            );
                            let before = program.traces();
                            let (verdict, sent) = program.run(&frame);
                            let expected = error(router(v4), &kind, &own, quoted, 60);
                            assert_eq!(verdict, XDP_TX, "{what}");
                            assert_eq!(sent, ethernet(OWN, mac(1), None, &expected), "{what}");
                            let counted = program.traces().since(&before);
                            assert_eq!(counted.get("icmp_error"), Some(&1), "{what}");
                        }
                    }
                }
            }
        }
    }
}

#[test]
fn a_client_is_told_what_a_vm_or_its_router_says() {
    for port in [None, Some(PORT)] {
        let mut world = World::new(port);
        for v4 in [true, false] {
            for l4 in [L4::Ack, L4::Udp, L4::BareUdp] {
                for asked in with_options(client(v4, l4, 40_000)) {
                    let seen = at_vm(&asked, port);
                    for kind in errors(v4) {
                        for quoted in quotes(&seen) {
                            for (from, outside) in [
                                (seen.destination, asked.destination),
                                (router(v4), router(v4)),
                            ] {
                                let what = format!("{kind:?} {l4:?} {port:?} {quoted} {from:?}");
                                let sent = error(from, &kind, &seen, quoted, 64);
                                let expected = error(outside, &kind, &asked, quoted, 63);
                                world.answered(&what, &sent, &expected);
                            }
                        }
                    }
                }
            }
            // About a packet to another port.
            let other = Packet {
                ports: (40_000, 81),
                ..at_vm(&client(v4, L4::Udp, 1), port)
            };
            let kind = &errors(v4)[0];
            let ip = error(other.destination, kind, &other, other.ip().len(), 64);
            world.passed("another port", &ip, &ip, "pass_icmp");
        }
    }
}
