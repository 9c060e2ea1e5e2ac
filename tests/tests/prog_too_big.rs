//! Packets that don't fit the way to their backend: their senders are told how long one may be.

use std::net::IpAddr;

use etherparse::{Icmpv4Type, Icmpv6Type, PacketBuilder, icmpv4};
use lb_common::rate::Rate;
use lb_common::row::Row;
use lb_common::settings::Settings;
use lb_tests::frame::{Address, L4, Packet, ethernet};
use lb_tests::program::{How, OWN, Program, XDP_DROP, XDP_PASS, XDP_TX, grown, slot};
use lb_user::dataplane::Dataplane as _;
use lb_user::model::{Forward, L4Protocol};

const GUE: Forward = Forward::Gue(Forward::GUE_PORT);
const ROUTER: [u8; 6] = [2, 0, 0, 0, 9, 9];

/// Every way to a backend over links with an MTU of 1500, and what it takes of that.
const WAYS: [(Forward, bool, u16); 6] = [
    (Forward::L2, true, 0),
    (Forward::L2, false, 0),
    (Forward::Ipip, true, 20),
    (Forward::Ipip, false, 40),
    (GUE, true, 28),
    (GUE, false, 48),
];

fn vip(packet: &Packet) -> IpAddr {
    match packet.destination {
        Address::V4(address) => address.into(),
        Address::V6(address) => address.into(),
    }
}

/// A client's packet of so many bytes.
fn packet(v4: bool, l4: L4, len: u16) -> Packet {
    let empty = Packet {
        payload: Vec::new(),
        ..if v4 {
            Packet::v4(l4, 7)
        } else {
            Packet::v6(l4, 7)
        }
    };
    let headers = empty.ip().len();
    Packet {
        payload: (0..usize::from(len) - headers)
            .map(|n| (n * 3) as u8)
            .collect(),
        ..empty
    }
}

/// What the virtual address says about a packet: a frame to where it came from.
fn told(packet: &Packet, max_len: u16, vlan: Option<u16>) -> Vec<u8> {
    let ip = packet.ip();
    let mut told = Vec::new();
    match (packet.source, packet.destination) {
        (Address::V4(client), Address::V4(vip)) => {
            let kind = icmpv4::DestUnreachableHeader::FragmentationNeeded {
                next_hop_mtu: max_len,
            };
            PacketBuilder::ipv4(vip, client, 64)
                .icmpv4(Icmpv4Type::DestinationUnreachable(kind))
                .write(&mut told, &ip[..548])
                .unwrap();
            assert_eq!(told.len(), 576);
            told[1] = 0xc0;
            told[4..8].copy_from_slice(&[0, 0, 0x40, 0]);
            seal(&mut told);
        }
        (Address::V6(client), Address::V6(vip)) => {
            let kind = Icmpv6Type::PacketTooBig {
                mtu: max_len.into(),
            };
            PacketBuilder::ipv6(vip, client, 64)
                .icmpv6(kind)
                .write(&mut told, &ip[..1232])
                .unwrap();
            assert_eq!(told.len(), 1280);
        }
        _ => panic!("two families"),
    }
    ethernet(OWN, ROUTER, vlan, &told)
}

/// Sets an IPv4 header's checksum.
fn seal(ip: &mut [u8]) {
    ip[10..12].fill(0);
    let header = etherparse::Ipv4Header::from_slice(ip).unwrap().0;
    ip[10..12].copy_from_slice(&header.calc_header_checksum().to_be_bytes());
}

fn program(v4: bool, how: &How, rate: u32) -> Program {
    let mut program = Program::default();
    let vip = vip(&packet(v4, L4::Ack, 100));
    program.service(vip, 80, L4Protocol::Tcp, &[Row::settled(slot(1))]);
    program.service(vip, 80, L4Protocol::Udp, &[Row::settled(slot(1))]);
    program.backend(1, vip, how);
    set_rate(&mut program, rate);
    program
}

fn set_rate(program: &mut Program, rate: u32) {
    let settings = Settings {
        too_big_rate: Rate::per_second(rate),
        ..Settings::default()
    };
    program.kernel.set_settings(&settings).unwrap();
}

/// Without a limit that a test would meet.
const OFTEN: u32 = 1_000_000;

#[test]
fn the_longest_packet_that_fits_is_sent_and_the_sender_of_a_longer_one_is_told() {
    for v4 in [true, false] {
        for (forward, outer_v4, overhead) in WAYS {
            let max_len = 1500 - overhead;
            for vlan in [None, Some(0x123)] {
                let mut program = program(v4, &How::new(forward, outer_v4), OFTEN);
                for l4 in [L4::Ack, L4::Syn, L4::Udp] {
                    let what = format!("{l4:?} by {forward:?}, v4 {v4}, outer {outer_v4}");
                    let service = u64::from(l4 == L4::Udp);
                    let fits = packet(v4, l4, max_len);
                    let before = program.traces();
                    let (verdict, sent) = program.run(&fits.frame(vlan));
                    assert_eq!(verdict, XDP_TX, "{what}");
                    assert_eq!(
                        sent.len(),
                        1514,
                        "{what}: as long as the MTU and its Ethernet header"
                    );
                    let counted = program.traces().since(&before);
                    assert_eq!(counted["backend 1 packets"], 1, "{what}");

                    for more in [1, 2, 21, 1000] {
                        let long = packet(v4, l4, max_len + more);
                        let before = program.traces();
                        let explained = program.explain(&long.frame(vlan));
                        assert_eq!(program.traces(), before);
                        let (verdict, sent) = program.run(&long.frame(vlan));
                        assert_eq!(verdict, XDP_TX, "{what} + {more}");
                        assert_eq!(sent, told(&long, max_len, vlan), "{what} + {more}");
                        assert_eq!((explained.verdict, explained.frame), (verdict, sent));
                        let counters = [("too_big", 1), (&format!("service {service} dropped"), 1)];
                        assert_eq!(program.traces().since(&before), grown(&counters), "{what}");
                    }
                }
            }
        }
    }
}

/// Nobody could fragment it here, so its sender has to.
#[test]
fn the_sender_of_a_packet_that_may_be_fragmented_is_told_as_well() {
    let mut program = program(true, &How::new(Forward::Ipip, true), OFTEN);
    let long = Packet {
        id_df: (0x1234, false),
        ..packet(true, L4::Udp, 1481)
    };
    let (verdict, sent) = program.run(&long.frame(None));
    assert_eq!((verdict, sent), (XDP_TX, told(&long, 1480, None)));
}

#[test]
fn options_and_extension_headers_are_quoted() {
    let long = Packet {
        options: vec![1; 40],
        ..packet(true, L4::Ack, 1490)
    };
    let mut by_ipip = program(true, &How::new(Forward::Ipip, true), OFTEN);
    let (verdict, sent) = by_ipip.run(&long.frame(None));
    assert_eq!((verdict, sent), (XDP_TX, told(&long, 1480, None)));
    let long = Packet {
        extensions: vec![(0, vec![1, 4, 0, 0, 0, 0])],
        ..packet(false, L4::Ack, 1490)
    };
    let mut by_ipip = program(false, &How::new(Forward::Ipip, true), OFTEN);
    let (verdict, sent) = by_ipip.run(&long.frame(None));
    assert_eq!((verdict, sent), (XDP_TX, told(&long, 1480, None)));
}

#[track_caller]
fn dropped(program: &mut Program, what: &str, frame: &[u8], reason: &str, more: &[(&str, u64)]) {
    let before = program.traces();
    let (verdict, left) = program.run(frame);
    assert_eq!((verdict, left.as_slice()), (XDP_DROP, frame), "{what}");
    let counters = [&[(reason, 1), ("service 0 dropped", 1)], more].concat();
    assert_eq!(program.traces().since(&before), grown(&counters), "{what}");
}

#[test]
fn over_the_rate_nobody_is_told() {
    for v4 in [true, false] {
        let mut program = program(v4, &How::new(Forward::Ipip, true), 0);
        let frame = packet(v4, L4::Ack, 1481).frame(None);
        dropped(&mut program, "never", &frame, "drop_too_big_rate", &[]);
        set_rate(&mut program, OFTEN);
        assert_eq!(program.run(&frame).0, XDP_TX, "told from now on");
    }
}

#[test]
fn who_is_not_one_host_is_not_told() {
    let from4 = |source| Packet {
        source: Address::V4(source),
        ..packet(true, L4::Ack, 1481)
    };
    let from6 = |source| Packet {
        source: Address::V6(source),
        ..packet(false, L4::Ack, 1481)
    };
    let loopback6 = std::net::Ipv6Addr::LOCALHOST.octets();
    let cases = [
        ("nobody", from4([0, 0, 0, 0])),
        ("loopback", from4([127, 0, 0, 1])),
        ("a group", from4([224, 0, 0, 1])),
        ("everybody", from4([255, 255, 255, 255])),
        ("ourselves", from4([198, 18, 9, 10])),
        ("nobody", from6([0; 16])),
        ("loopback", from6(loopback6)),
        ("a group", from6([0xff; 16])),
    ];
    for (what, long) in cases {
        let v4 = matches!(long.source, Address::V4(_));
        let mut program = program(v4, &How::new(Forward::Ipip, true), OFTEN);
        dropped(&mut program, what, &long.frame(None), "drop_too_long", &[]);
    }
    let long = packet(true, L4::Ack, 1481);
    let to_all = ethernet(ROUTER, [0xff; 6], None, &long.ip());
    let mut program = program(true, &How::new(Forward::Ipip, true), OFTEN);
    dropped(&mut program, "a broadcast", &to_all, "drop_too_long", &[]);
}

#[test]
fn nobody_is_told_about_an_error() {
    for v4 in [true, false] {
        let mut program = program(v4, &How::new(Forward::Ipip, true), OFTEN);
        let client = packet(v4, L4::Ack, 1481);
        let answer = Packet {
            source: client.destination,
            destination: client.source,
            ports: (80, 7),
            ..client.clone()
        };
        let mut error = Vec::new();
        match client.destination {
            Address::V4(vip) => PacketBuilder::ipv4([198, 19, 7, 7], vip, 60)
                .icmpv4(Icmpv4Type::DestinationUnreachable(
                    icmpv4::DestUnreachableHeader::Port,
                ))
                .write(&mut error, &answer.ip()),
            Address::V6(vip) => PacketBuilder::ipv6([0x20; 16], vip, 60)
                .icmpv6(Icmpv6Type::PacketTooBig { mtu: 1400 })
                .write(&mut error, &answer.ip()),
        }
        .unwrap();
        assert!(error.len() > 1480);
        let frame = ethernet(ROUTER, OWN, None, &error);
        let counted = [("icmp_error", 1)];
        dropped(&mut program, "an error", &frame, "drop_too_long", &counted);
    }
}

#[test]
fn a_way_that_is_too_narrow_to_be_believed_in_is_not_told_of() {
    let client = packet(false, L4::Ack, 1300);
    let mut by_ipip = program(false, &How::new(Forward::Ipip, true), OFTEN);
    let mut template = by_ipip.kernel.backend(slot(1)).unwrap().templates[0];
    for (max_len, verdict) in [(1299, XDP_TX), (1280, XDP_TX), (1279, XDP_DROP)] {
        template.max_len = max_len;
        by_ipip.template(1, &template);
        assert_eq!(by_ipip.run(&client.frame(None)).0, verdict, "{max_len}");
    }
    let client = packet(true, L4::Ack, 548);
    let mut by_ipip = program(true, &How::new(Forward::Ipip, true), OFTEN);
    let mut template = by_ipip.kernel.backend(slot(1)).unwrap().templates[0];
    template.max_len = 547;
    by_ipip.template(1, &template);
    let (verdict, sent) = by_ipip.run(&client.frame(None));
    assert_eq!((verdict, sent), (XDP_TX, told(&client, 547, None)));
    template.max_len = 546;
    by_ipip.template(1, &template);
    let frame = packet(true, L4::Ack, 547).frame(None);
    dropped(
        &mut by_ipip,
        "too short to quote",
        &frame,
        "drop_too_long",
        &[],
    );
}

#[test]
fn without_a_known_limit_everything_is_sent_and_what_is_not_ours_passes_however_long() {
    let mut program = program(true, &How::new(Forward::Ipip, true), OFTEN);
    let other = Packet {
        ports: (7, 81),
        ..packet(true, L4::Ack, 3000)
    };
    assert_eq!(program.run(&other.frame(None)).0, XDP_PASS);
    let mut template = program.kernel.backend(slot(1)).unwrap().templates[0];
    template.max_len = 0;
    program.template(1, &template);
    let (verdict, sent) = program.run(&packet(true, L4::Ack, 3000).frame(None));
    assert_eq!((verdict, sent.len()), (XDP_TX, 14 + 20 + 3000));
}
