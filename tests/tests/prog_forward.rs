//! What leaves the program, byte by byte, against frames built by etherparse.

use std::collections::BTreeSet;
use std::net::IpAddr;

use lb_common::backend::{Head, Template};
use lb_common::row::Row;
use lb_tests::frame::{Address, Entropy, L4, Packet, ethernet, wrap};
use lb_tests::netns::Netns;
use lb_tests::program::{
    How, OWN, Program, SOURCE4, SOURCE6, XDP_DROP, XDP_REDIRECT, XDP_TX, address, grown, mac, slot,
};
use lb_user::dataplane::Dataplane as _;
use lb_user::model::{EncapSource, Forward, L4Protocol};

const GUE: Forward = Forward::Gue(Forward::GUE_PORT);

fn vip(packet: &Packet) -> IpAddr {
    match packet.destination {
        Address::V4(address) => address.into(),
        Address::V6(address) => address.into(),
    }
}

fn wire(address: IpAddr) -> Address {
    match address {
        IpAddr::V4(address) => Address::V4(address.octets()),
        IpAddr::V6(address) => Address::V6(address.octets()),
    }
}

fn services(program: &mut Program, packet: &Packet, row: Row) {
    program.service(vip(packet), 80, L4Protocol::Tcp, &[row]);
    program.service(vip(packet), 80, L4Protocol::Udp, &[row]);
}

/// All kinds of packets that a client may send to `family`.
fn packets(v4: bool) -> Vec<Packet> {
    let make = if v4 { Packet::v4 } else { Packet::v6 };
    // Router alert, or padding.
    let options = if v4 {
        vec![0x94, 4, 0, 0]
    } else {
        vec![5, 2, 0, 0, 1, 0]
    };
    let mut packets = Vec::new();
    for l4 in [L4::Syn, L4::Ack, L4::Fin, L4::Rst, L4::Udp] {
        for (len, tos, id_df, options) in [
            (0, 0, (0, true), vec![]),
            (1, 0b1011_1001, (0xffff, false), vec![]),
            (7, 2, (1, true), options.clone()),
            (100, 3, (0x1234, true), vec![]),
            (1399, 0xff, (0, false), options.clone()),
        ] {
            packets.push(Packet {
                payload: (0..len).map(|byte| byte as u8).collect(),
                tos,
                id_df,
                options,
                ..make(l4, 5000 + len)
            });
        }
    }
    packets
}

/// The hash's bits in a frame that left.
fn entropy(frame: &[u8], how: &How) -> Entropy {
    match how.forward {
        Forward::L2 => Entropy::default(),
        Forward::Ipip | Forward::Gue(_) => {
            Entropy::of(frame, how.vlan.is_some(), how.outer_v4, how.forward == GUE)
        }
    }
}

fn expected(packet: &Packet, how: &How, entropy: Entropy) -> Vec<u8> {
    let inner = packet.ip();
    let source = if how.outer_v4 {
        IpAddr::from(SOURCE4)
    } else {
        IpAddr::from(SOURCE6)
    };
    let port = match how.forward {
        Forward::Gue(port) => Some(port.get()),
        Forward::L2 | Forward::Ipip => None,
    };
    let ip = match how.forward {
        Forward::L2 => inner,
        Forward::Ipip | Forward::Gue(_) => wrap(
            &inner,
            wire(source),
            wire(address(1, how.outer_v4)),
            port,
            entropy,
        ),
    };
    ethernet(OWN, mac(1), how.vlan, &ip)
}

#[test]
fn every_kind_of_packet_leaves_by_every_template_as_etherparse_builds_it() {
    let mut compared = 0;
    for v4 in [true, false] {
        for (forward, outer_v4) in [
            (Forward::L2, v4),
            (Forward::Ipip, true),
            (Forward::Ipip, false),
            (GUE, true),
            (GUE, false),
        ] {
            for vlan_out in [None, Some(0x123)] {
                let how = How {
                    vlan: vlan_out,
                    ..How::new(forward, outer_v4)
                };
                let mut program = Program::default();
                let packets = packets(v4);
                services(&mut program, &packets[0], Row::settled(slot(1)));
                program.backend(1, vip(&packets[0]), &how);
                for packet in &packets {
                    for vlan_in in [None, Some(7)] {
                        let frame = packet.frame(vlan_in);
                        let before = program.traces();
                        let (verdict, sent) = program.run(&frame);
                        let entropy = entropy(&sent, &how);
                        assert_eq!(verdict, XDP_TX, "{packet:?} {how:?}");
                        // Extension headers before the transport's: its checksum is not known
                        // without reading the payload, and none is sent (RFC 6935).
                        let mut expected = expected(packet, &how, entropy);
                        let no_sum =
                            forward == GUE && !outer_v4 && !v4 && !packet.options.is_empty();
                        if no_sum {
                            let at = expected.len() - packet.ip().len() - 2;
                            expected[at..at + 2].fill(0);
                        }
                        assert_eq!(sent, expected, "{packet:?} {how:?}");
                        assert!(forward != GUE || entropy.port >= 49152);
                        let after = program.traces();
                        let service = u32::from(packet.l4 == L4::Udp);
                        let syn = u64::from(packet.l4 == L4::Syn);
                        let bytes = frame.len() as u64;
                        let counters = [
                            ("backend 1 packets", 1),
                            ("backend 1 bytes", bytes),
                            ("backend 1 new flows", syn),
                            (&format!("service {service} packets"), 1),
                            (&format!("service {service} bytes"), bytes),
                            (&format!("service {service} new flows"), syn),
                        ];
                        assert_eq!(after.since(&before), grown(&counters));
                        assert!(after.flows.is_empty(), "a settled row keeps no state");
                        compared += 1;
                    }
                }
            }
        }
    }
    assert_eq!(compared, 2 * 5 * 2 * 25 * 2);
}

#[test]
fn padding_behind_the_packet_is_not_counted_into_the_outer_lengths() {
    let packet = Packet {
        payload: vec![],
        ..Packet::v4(L4::Ack, 1)
    };
    let how = How::new(Forward::Ipip, true);
    let mut program = Program::default();
    services(&mut program, &packet, Row::settled(slot(1)));
    program.backend(1, vip(&packet), &how);
    let mut frame = packet.frame(None);
    frame.resize(60, 0);
    let (verdict, sent) = program.run(&frame);
    let mut expected = expected(&packet, &how, Entropy::default());
    expected.resize(60 + 20, 0);
    assert_eq!((verdict, sent), (XDP_TX, expected));
}

#[test]
fn flows_differ_in_their_entropy_and_a_flow_never_does() {
    let source = EncapSource {
        v4: Some(("198.18.64.0".parse().unwrap(), 18)),
        v6: Some(("2001:db8:64::".parse().unwrap(), 64)),
    };
    for (forward, outer_v4) in [
        (Forward::Ipip, true),
        (Forward::Ipip, false),
        (GUE, true),
        (GUE, false),
    ] {
        let how = How {
            source,
            ..How::new(forward, outer_v4)
        };
        let mut program = Program::default();
        let packet = Packet::v4(L4::Ack, 1);
        services(&mut program, &packet, Row::settled(slot(1)));
        program.backend(1, vip(&packet), &how);
        let mut seen = BTreeSet::new();
        for port in 1..=100 {
            let send = |program: &mut Program, payload: usize| {
                let packet = Packet {
                    payload: vec![1; payload],
                    ..Packet::v4(L4::Ack, port)
                };
                let (verdict, sent) = program.run(&packet.frame(None));
                assert_eq!(verdict, XDP_TX);
                // The source address, all of it, and what else there is.
                let address = if outer_v4 {
                    sent[26..30].to_vec()
                } else {
                    sent[22..38].to_vec()
                };
                (address, entropy(&sent, &how))
            };
            let first = send(&mut program, 0);
            assert_eq!(send(&mut program, 50), first);
            let prefix: &[u8] = if outer_v4 {
                &[198, 18]
            } else {
                &[0x20, 0x01, 0x0d, 0xb8, 0, 0x64, 0, 0]
            };
            assert!(first.0.starts_with(prefix), "{:?}", first.0);
            assert!(
                !outer_v4 || (64..128).contains(&first.0[2]),
                "within the prefix"
            );
            seen.insert((first.0, first.1.label, first.1.port));
        }
        assert!(seen.len() >= 95, "{} of 100 flows differ", seen.len());
    }
}

#[test]
fn what_cannot_be_sent_is_dropped_and_counted() {
    let packet = Packet::v4(L4::Syn, 1);
    let frame = packet.frame(None);
    let mut program = Program::default();
    services(&mut program, &packet, Row::EMPTY);
    let check = |program: &mut Program, reason: &str| {
        let before = program.traces();
        assert_eq!(program.run(&frame).0, XDP_DROP);
        let grown_now = program.traces().since(&before);
        assert_eq!(grown_now, grown(&[(reason, 1), ("service 0 dropped", 1)]));
    };
    check(&mut program, "drop_no_backend");
    program.kernel.set_row(0, Row::settled(slot(1))).unwrap();
    check(&mut program, "drop_unreachable");
    // An interface that no packet can be redirected to.
    program.backend(
        1,
        vip(&packet),
        &How {
            ifindex: 77,
            ..How::new(Forward::L2, true)
        },
    );
    check(&mut program, "drop_unreachable");
    program.template(1, &Template::UNREACHABLE);
    check(&mut program, "drop_unreachable");
}

#[test]
fn another_interface_is_reached_by_redirection() {
    let host = Netns::new("redirect");
    host.ip("link add out type veth peer name far");
    let ifindex = host.ifindex("out");
    host.enter(|| {
        let packet = Packet::v4(L4::Syn, 1);
        let how = How {
            ifindex,
            ..How::new(Forward::Ipip, true)
        };
        let mut program = Program::default();
        services(&mut program, &packet, Row::settled(slot(1)));
        program.backend(1, vip(&packet), &how);
        program.kernel.add_device(ifindex).unwrap();
        let frame = packet.frame(None);
        let before = program.traces();
        let (verdict, sent) = program.run(&frame);
        assert_eq!(verdict, XDP_REDIRECT);
        assert_eq!(sent, expected(&packet, &how, Entropy::default()));
        let bytes = frame.len() as u64;
        let counters = [
            ("backend 1 packets", 1),
            ("backend 1 bytes", bytes),
            ("backend 1 new flows", 1),
            ("service 0 packets", 1),
            ("service 0 bytes", bytes),
            ("service 0 new flows", 1),
        ];
        assert_eq!(program.traces().since(&before), grown(&counters));
    });
}

#[test]
fn a_template_is_swapped_between_two_packets_and_never_mixed() {
    let packet = Packet::v4(L4::Ack, 1);
    let (one, two) = (How::new(Forward::Ipip, true), How::new(GUE, false));
    let mut program = Program::default();
    services(&mut program, &packet, Row::settled(slot(1)));
    program.backend(1, vip(&packet), &two);
    let spare = program.kernel.backend(slot(1)).unwrap().templates[0];
    program.backend(1, vip(&packet), &one);
    program.kernel.set_template(slot(1), 1, &spare).unwrap();
    for (side, how) in [(0, &one), (1, &two), (0, &one)] {
        program.head(1, Head::new(side, true, true, 0));
        let (verdict, sent) = program.run(&packet.frame(None));
        assert_eq!(
            (verdict, sent.clone()),
            (XDP_TX, expected(&packet, how, entropy(&sent, how)))
        );
    }
}
