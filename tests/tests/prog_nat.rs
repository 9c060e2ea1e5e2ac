//! NAT: what a VM is sent, and what becomes of its answers. Every expected frame is built anew by
//! etherparse, with checksums over all of it.

use std::net::IpAddr;

use lb_common::row::Row;
use lb_common::settings::Settings;
use lb_tests::frame::{Address, L4, Packet, ethernet};
use lb_tests::nat::*;
use lb_tests::pieces::cut;
use lb_tests::program::{
    How, OWN, XDP_DROP, XDP_PASS, XDP_REDIRECT, XDP_TX, address, grown, mac, slot,
};
use lb_user::dataplane::Dataplane as _;
use lb_user::model::{L4Protocol, ServicePort, Vip};

#[test]
fn a_vm_gets_packets_as_if_they_had_been_for_it() {
    for (port, vlan) in [(None, None), (Some(PORT), None), (Some(PORT), Some(77))] {
        let mut program = program(&How { vlan, ..nat(port) });
        for (v4, tag) in [
            (true, None),
            (true, Some(5)),
            (false, None),
            (false, Some(5)),
        ] {
            for (index, l4) in [L4::Syn, L4::Ack, L4::Fin, L4::Udp, L4::BareUdp]
                .into_iter()
                .enumerate()
            {
                let plain = client(v4, l4, 40_000 + index as u16);
                let more = if v4 {
                    Packet {
                        options: vec![1; 8],
                        ..plain.clone()
                    }
                } else {
                    Packet {
                        extensions: vec![(60, vec![0; 6])],
                        ..plain.clone()
                    }
                };
                for packet in [plain, more] {
                    let frame = packet.frame(tag);
                    let what = format!("{l4:?} {v4} {port:?} {tag:?} {vlan:?}");
                    let before = program.traces();
                    let explained = program.explain(&frame);
                    let (verdict, sent) = program.run(&frame);
                    assert_eq!(verdict, XDP_TX, "{what}");
                    let expected = ethernet(OWN, mac(1), vlan, &at_vm(&packet, port).ip());
                    assert_eq!(sent, expected, "{what}");
                    assert_eq!(
                        (explained.verdict, explained.frame),
                        (verdict, sent),
                        "{what}"
                    );
                    let service = u64::from(l4.is_udp()) + if v4 { 0 } else { 2 };
                    let backend = if v4 { 1 } else { 2 };
                    let (bytes, new) = (frame.len() as u64, u64::from(l4 == L4::Syn));
                    let counters = [
                        (&*format!("backend {backend} packets"), 1),
                        (&format!("backend {backend} bytes"), bytes),
                        (&format!("backend {backend} new flows"), new),
                        (&format!("service {service} packets"), 1),
                        (&format!("service {service} bytes"), bytes),
                        (&format!("service {service} new flows"), new),
                    ];
                    assert_eq!(program.traces().since(&before), grown(&counters), "{what}");
                }
            }
        }
    }
}

/// The first fragment has the ports and the checksum of the whole datagram; the others only the addresses.
#[test]
fn fragments_come_to_a_vm_as_those_of_a_datagram_for_it() {
    for port in [None, Some(PORT)] {
        let mut program = program(&nat(port));
        let settings = Settings {
            fragment_jiffies: 30_000,
            ..Settings::default()
        };
        program.kernel.set_settings(&settings).expect("settings");
        for v4 in [true, false] {
            for l4 in [L4::Udp, L4::BareUdp, L4::Ack] {
                let datagram = Packet {
                    payload: (0..3000_u16).map(|at| at as u8).collect(),
                    ..client(v4, l4, 40_000)
                };
                // What identifies it differs from case to case.
                let id = 0x100 + l4 as u32;
                let pieces = cut(&datagram, id, 1200);
                let expected = cut(&at_vm(&datagram, port), id, 1200);
                for (nth, (piece, expected)) in pieces.iter().zip(&expected).enumerate() {
                    let what = format!("{l4:?} v4 {v4} {port:?}, fragment {nth}");
                    let frame = ethernet(mac(9), OWN, None, &piece.ip);
                    let before = program.traces();
                    let (verdict, sent) = program.run(&frame);
                    assert_eq!(verdict, XDP_TX, "{what}");
                    assert_eq!(sent, ethernet(OWN, mac(1), None, &expected.ip), "{what}");
                    let service = u64::from(l4.is_udp()) + if v4 { 0 } else { 2 };
                    let backend = if v4 { 1 } else { 2 };
                    let bytes = frame.len() as u64;
                    let counters = [
                        ("fragment", u64::from(nth > 0)),
                        (&format!("backend {backend} packets"), 1),
                        (&format!("backend {backend} bytes"), bytes),
                        (&format!("service {service} packets"), 1),
                        (&format!("service {service} bytes"), bytes),
                    ];
                    assert_eq!(program.traces().since(&before), grown(&counters), "{what}");
                }
            }
        }
    }
}

/// Payloads and ports by which checksums come out as 0, and as its other form.
#[test]
fn a_udp_checksum_of_zero_is_sent_as_its_other_form() {
    let mut program = program(&nat(Some(PORT)));
    let mut zeros = 0;
    for v4 in [true, false] {
        for word in 0..=u16::MAX {
            let packet = Packet {
                payload: word.to_be_bytes().to_vec(),
                ..client(v4, L4::Udp, 7)
            };
            let expected = at_vm(&packet, Some(PORT)).ip();
            let checksum = if v4 { 26 } else { 46 };
            if expected[checksum..checksum + 2] != [0xff, 0xff] {
                continue;
            }
            zeros += 1;
            let (verdict, sent) = program.run(&packet.frame(None));
            assert_eq!((verdict, &sent[14..]), (XDP_TX, &*expected));
        }
    }
    assert_eq!(zeros, 2, "one word for each family");
}

#[test]
fn a_template_of_the_other_family_drops() {
    let mut program = program(&nat(None));
    let v4 = program.kernel.backend(slot(1)).unwrap().templates[0];
    program.template(2, &v4);
    let before = program.traces();
    let (verdict, _) = program.run(&client(false, L4::Ack, 1).frame(None));
    assert_eq!(verdict, XDP_DROP);
    let counters = [("service 2 dropped", 1), ("drop_unreachable", 1)];
    assert_eq!(program.traces().since(&before), grown(&counters));
}

#[test]
fn answers_come_from_the_vip() {
    for port in [None, Some(PORT)] {
        let mut world = World::new(port);
        for v4 in [true, false] {
            for l4 in [L4::Syn, L4::Ack, L4::Rst, L4::Udp, L4::BareUdp] {
                let asked = client(v4, l4, 40_000);
                let plain = answer(&at_vm(&asked, port));
                let more = if v4 {
                    Packet {
                        options: vec![1; 12],
                        ..plain.clone()
                    }
                } else {
                    Packet {
                        extensions: vec![(0, vec![0; 14]), (60, vec![0; 6])],
                        ..plain.clone()
                    }
                };
                let least = Packet {
                    hops: 2,
                    ..plain.clone()
                };
                for sent in [plain, more, least] {
                    let expected = hop(&Packet {
                        source: asked.destination,
                        ports: (80, 40_000),
                        ..sent.clone()
                    });
                    world.answered(&format!("{l4:?} {v4} {port:?}"), &sent.ip(), &expected.ip());
                }
            }
        }
    }
}

#[test]
fn the_host_gets_what_is_for_it_and_what_it_must_do_itself() {
    let mut world = World::new(Some(PORT));
    for v4 in [true, false] {
        let asked = client(v4, L4::Ack, 40_000);
        let sent = answer(&at_vm(&asked, Some(PORT)));
        let to = |four: [u8; 4], six: [u16; 8]| Packet {
            destination: wire(if v4 { four.into() } else { six.into() }),
            ..sent.clone()
        };
        let translated = |packet: &Packet| Packet {
            source: asked.destination,
            ports: (80, 40_000),
            ..packet.clone()
        };
        let own = to([198, 18, 1, 254], [0x2001, 0xdb8, 1, 0, 0, 0, 0, 0x254]);
        let own_elsewhere = to([198, 18, 7, 1], [0x2001, 0xdb8, 7, 0, 0, 0, 0, 1]);
        let nowhere = to([198, 18, 200, 1], [0x2001, 0xdb8, 200, 0, 0, 0, 0, 1]);
        let group = to([224, 0, 0, 5], [0xff02, 0, 0, 0, 0, 0, 0, 5]);
        let local = to([255, 255, 255, 255], [0xfe80, 0, 0, 0, 0, 0, 0, 5]);
        let last_hop = Packet {
            hops: 1,
            ..sent.clone()
        };
        let too_big = Packet {
            payload: vec![1; 1600],
            ..sent.clone()
        };
        for (what, packet) in [
            ("for the host", own),
            ("for another address of the host", own_elsewhere),
            ("for nobody", nowhere),
            ("for a group", group),
            ("for the link", local),
            ("at its last hop", last_hop),
            ("too big, and not to be cut", too_big.clone()),
        ] {
            world.passed(what, &packet.ip(), &packet.ip(), "pass_from_vm");
        }
        let unknown = to([198, 19, 200, 1], [0x2001, 0xdb8, 6, 0, 0, 0, 0, 1]);
        let left = translated(&unknown).ip();
        world.passed(
            "without a neighbour",
            &unknown.ip(),
            &left,
            "answer_by_host",
        );
        if v4 {
            let cut = Packet {
                id_df: (7, false),
                ..too_big
            };
            let left = translated(&cut).ip();
            world.passed("too big, and to be cut", &cut.ip(), &left, "answer_by_host");
        }
        let other_port = Packet {
            ports: (8081, 40_000),
            ..sent.clone()
        };
        let other_vm = Packet {
            source: wire(address(9, v4)),
            ..sent.clone()
        };
        for (what, packet) in [("another port", other_port), ("another VM", other_vm)] {
            world.passed(what, &packet.ip(), &packet.ip(), "pass_no_service");
        }
        // The VM is a client itself, by a port that it serves.
        let as_client = Packet {
            destination: asked.destination,
            ports: (8080, 80),
            ..sent.clone()
        };
        let (verdict, ..) = world.send(&as_client.ip(), None, world.vm);
        assert_ne!(verdict, XDP_PASS, "a service comes first");
    }
    world.netns.set("net/ipv4/ip_forward", "0");
    world.netns.set("net/ipv6/conf/all/forwarding", "0");
    for v4 in [true, false] {
        let sent = answer(&at_vm(&client(v4, L4::Ack, 40_000), Some(PORT)));
        world.passed(
            "nothing is forwarded",
            &sent.ip(),
            &sent.ip(),
            "pass_forwarding_off",
        );
    }
}

#[test]
fn where_xdp_cannot_send_from_the_host_forwards() {
    let mut world = World::new(None);
    world
        .netns
        .ip("link add other address 02:00:00:00:07:02 type veth peer name other-peer");
    world.netns.ip("link set other-peer up");
    world.netns.ip("link set other up");
    world.netns.ip("addr add 198.18.8.1/24 dev other");
    world
        .netns
        .ip("neigh add 198.18.8.2 lladdr 02:00:00:00:09:0a dev other nud permanent");
    let asked = client(true, L4::Ack, 40_000);
    let sent = Packet {
        destination: Address::V4([198, 18, 8, 2]),
        ..answer(&at_vm(&asked, None))
    };
    let left = Packet {
        source: asked.destination,
        ..sent.clone()
    };
    world.passed(
        "not in the device map",
        &sent.ip(),
        &left.ip(),
        "answer_by_host",
    );
    let other = world.netns.ifindex("other");
    world.program.kernel.add_device(other).unwrap();
    let (verdict, frame, counted) = world.send(&sent.ip(), None, world.vm);
    assert_eq!((verdict, &*counted), (XDP_REDIRECT, "answer 1"));
    let expected = ethernet(
        [2, 0, 0, 0, 7, 2],
        [2, 0, 0, 0, 9, 10],
        None,
        &hop(&left).ip(),
    );
    assert_eq!(frame, expected);
}

/// Any port of the address is a service: ports stay.
#[test]
fn any_port_is_translated_both_ways() {
    let mut world = World::new(None);
    let vip = IpAddr::from([198, 18, 9, 77]);
    let (service, _) = world
        .program
        .service(vip, 0, L4Protocol::Tcp, &[Row::settled(slot(3))]);
    world.program.backend(3, vip, &nat(None));
    let any = Vip {
        address: vip,
        port: ServicePort::Any,
        protocol: L4Protocol::Tcp,
    };
    world.program.nat_source(3, any, service, &nat(None));
    for port in [22, 80, 65_535] {
        let asked = Packet {
            destination: wire(vip),
            ports: (40_000, port),
            ..client(true, L4::Ack, 1)
        };
        let at_vm = Packet {
            destination: wire(address(3, true)),
            ..asked.clone()
        };
        let (verdict, sent) = world.program.run(&asked.frame(None));
        assert_eq!(
            (verdict, sent),
            (XDP_TX, ethernet(OWN, mac(3), None, &at_vm.ip()))
        );
        let sent = answer(&at_vm);
        let expected = hop(&Packet {
            source: wire(vip),
            ..sent.clone()
        });
        world.answered(&port.to_string(), &sent.ip(), &expected.ip());
    }
    let udp = Packet {
        source: wire(address(3, true)),
        ..client(true, L4::Udp, 1)
    };
    let udp = Packet {
        destination: Address::V4([198, 19, 0, 1]),
        ..udp
    };
    world.passed("another protocol", &udp.ip(), &udp.ip(), "pass_no_service");
}
