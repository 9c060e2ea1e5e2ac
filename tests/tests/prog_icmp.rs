//! ICMP errors about a flow go to the flow's VM, as they are; everything else of ICMP passes.

use std::net::IpAddr;

use etherparse::{IcmpEchoHeader, Icmpv4Type, Icmpv6Type, PacketBuilder, icmpv4, icmpv6};
use lb_common::backend::Head;
use lb_common::flow::Table;
use lb_common::row::Row;
use lb_tests::frame::{Address, Entropy, L4, Packet, ethernet, wrap};
use lb_tests::program::{
    How, OWN, Program, SOURCE4, SOURCE6, XDP_PASS, XDP_TX, address, grown, mac, slot,
};
use lb_user::dataplane::Dataplane as _;
use lb_user::model::{Forward, L4Protocol};

const GUE: Forward = Forward::Gue(Forward::GUE_PORT);
const ROUTER: [u8; 6] = [2, 0, 0, 0, 9, 9];

/// A client's packet of flow `port`, and what its VM would have sent it.
fn flow(v4: bool, l4: L4, port: u16) -> (Packet, Packet) {
    let client = if v4 {
        Packet::v4(l4, port)
    } else {
        Packet::v6(l4, port)
    };
    let answer = Packet {
        source: client.destination,
        destination: client.source,
        ports: (client.ports.1, client.ports.0),
        payload: vec![0xcd; 600],
        ..client.clone()
    };
    (client, answer)
}

fn vip(packet: &Packet) -> IpAddr {
    match packet.destination {
        Address::V4(address) => address.into(),
        Address::V6(address) => address.into(),
    }
}

/// What a router on the way says about a packet: an IP packet to the packet's sender.
fn error(about: &Packet, kind: Kind, quoted: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    match (about.source, kind) {
        (Address::V4(to), Kind::V4(kind)) => PacketBuilder::ipv4([198, 19, 7, 7], to, 60)
            .icmpv4(kind)
            .write(&mut bytes, quoted),
        (Address::V6(to), Kind::V6(kind)) => {
            let router = [0x20, 1, 0xd, 0xb8, 0, 7, 0, 0, 0, 0, 0, 0, 0, 0, 0, 7];
            PacketBuilder::ipv6(router, to, 60)
                .icmpv6(kind)
                .write(&mut bytes, quoted)
        }
        _ => panic!("two families"),
    }
    .expect("a packet");
    bytes
}

#[derive(Clone, Debug)]
enum Kind {
    V4(Icmpv4Type),
    V6(Icmpv6Type),
}

/// All errors of a family that are about a packet.
fn errors(v4: bool) -> Vec<Kind> {
    if v4 {
        use icmpv4::{DestUnreachableHeader as D, ParameterProblemHeader, TimeExceededCode};
        let too_big = D::FragmentationNeeded { next_hop_mtu: 1400 };
        return [
            Icmpv4Type::DestinationUnreachable(D::Network),
            Icmpv4Type::DestinationUnreachable(D::Port),
            Icmpv4Type::DestinationUnreachable(too_big),
            Icmpv4Type::TimeExceeded(TimeExceededCode::TtlExceededInTransit),
            Icmpv4Type::ParameterProblem(ParameterProblemHeader::PointerIndicatesError(6)),
        ]
        .map(Kind::V4)
        .into();
    }
    use icmpv6::{DestUnreachableCode, ParameterProblemCode, TimeExceededCode};
    [
        Icmpv6Type::DestinationUnreachable(DestUnreachableCode::Port),
        Icmpv6Type::PacketTooBig { mtu: 1400 },
        Icmpv6Type::TimeExceeded(TimeExceededCode::HopLimitExceeded),
        Icmpv6Type::ParameterProblem(icmpv6::ParameterProblemHeader {
            code: ParameterProblemCode::UnrecognizedNextHeader,
            pointer: 40,
        }),
    ]
    .map(Kind::V6)
    .into()
}

fn services(program: &mut Program, vip: IpAddr, row: Row) {
    program.service(vip, 80, L4Protocol::Tcp, &[row]);
    program.service(vip, 80, L4Protocol::Udp, &[row]);
}

#[test]
fn every_error_about_a_flow_goes_to_its_vm_by_every_template() {
    for v4 in [true, false] {
        for (forward, outer_v4) in [
            (Forward::L2, v4),
            (Forward::Ipip, true),
            (Forward::Ipip, false),
            (GUE, true),
            (GUE, false),
        ] {
            let mut program = Program::default();
            let (client, _) = flow(v4, L4::Ack, 1);
            let how = How::new(forward, outer_v4);
            services(&mut program, vip(&client), Row::settled(slot(1)));
            program.backend(1, vip(&client), &how);
            for l4 in [L4::Ack, L4::Udp] {
                let (_, answer) = flow(v4, l4, 7);
                for kind in errors(v4) {
                    // As little as RFC 792 promises, and more.
                    for quoted in [28, 100, 500] {
                        let quoted = quoted + if v4 { 0 } else { 20 };
                        let inner = error(&answer, kind.clone(), &answer.ip()[..quoted]);
                        let frame = ethernet(ROUTER, OWN, None, &inner);
                        let before = program.traces();
                        let (verdict, sent) = program.run(&frame);
                        assert_eq!(verdict, XDP_TX, "{kind:?} {quoted}");
                        assert_eq!(sent, expected(&inner, &how, &sent), "{kind:?} {quoted}");
                        let service = u64::from(l4 == L4::Udp);
                        let bytes = frame.len() as u64;
                        let counters = [
                            ("icmp_error", 1),
                            ("backend 1 packets", 1),
                            ("backend 1 bytes", bytes),
                            (&format!("service {service} packets"), 1),
                            (&format!("service {service} bytes"), bytes),
                        ];
                        assert_eq!(program.traces().since(&before), grown(&counters));
                    }
                }
            }
        }
    }
}

/// The frame as it must leave, but for the bits of the flow's hash, which `sent` has.
fn expected(inner: &[u8], how: &How, sent: &[u8]) -> Vec<u8> {
    let ip = match how.forward {
        Forward::L2 | Forward::Nat => inner.to_vec(),
        Forward::Overlay(_) => panic!("not here"),
        Forward::Ipip | Forward::Gue(_) => {
            let source = if how.outer_v4 {
                Address::V4(SOURCE4)
            } else {
                Address::V6(std::net::Ipv6Addr::from(SOURCE6).octets())
            };
            let to = match address(1, how.outer_v4) {
                IpAddr::V4(to) => Address::V4(to.octets()),
                IpAddr::V6(to) => Address::V6(to.octets()),
            };
            let gue = how.forward == GUE;
            let entropy = Entropy::of(sent, false, how.outer_v4, gue);
            wrap(inner, source, to, gue.then_some(6080), entropy)
        }
    };
    ethernet(OWN, mac(1), None, &ip)
}

#[test]
fn an_error_goes_to_the_vm_that_has_the_flow_and_changes_no_table() {
    let mut program = Program::default();
    let (syn, _) = flow(true, L4::Syn, 1);
    let moved = Row::new(slot(2), slot(1), true);
    services(&mut program, vip(&syn), moved);
    for number in 1..=3 {
        program.backend(number, vip(&syn), &How::new(Forward::L2, true));
    }
    // An old flow of the row's former owner, and a new one of its owner, half open and confirmed.
    let error_of = |program: &mut Program, port: u16| {
        let (_, answer) = flow(true, L4::Ack, port);
        let unreachable = Icmpv4Type::DestinationUnreachable(icmpv4::DestUnreachableHeader::Host);
        let inner = error(&answer, Kind::V4(unreachable), &answer.ip()[..28]);
        let before = program.traces().flows;
        let (verdict, sent) = program.run(&ethernet(ROUTER, OWN, None, &inner));
        assert_eq!((verdict, program.traces().flows), (XDP_TX, before));
        u32::from(sent[5])
    };
    assert_eq!(error_of(&mut program, 1), 1, "of a flow without an entry");
    program.run(&flow(true, L4::Syn, 2).0.frame(None));
    assert_eq!(error_of(&mut program, 2), 2, "of a half-open one");
    program.run(&flow(true, L4::Ack, 2).0.frame(None));
    program
        .kernel
        .set_row(0, Row::new(slot(3), slot(1), true))
        .unwrap();
    assert_eq!(error_of(&mut program, 2), 2, "of a confirmed one");
    program.run(&flow(true, L4::Ack, 4).0.frame(None));
    assert!(
        program
            .traces()
            .flows
            .keys()
            .any(|(table, _)| *table == Table::Kept)
    );
    assert_eq!(error_of(&mut program, 4), 1, "of a kept one");
    program.head(1, Head::new(0, false, false, 1));
    assert_eq!(error_of(&mut program, 4), 3, "of one whose VM is dead");
}

#[test]
fn what_is_no_error_about_a_flow_passes_untouched() {
    let mut program = Program::default();
    for v4 in [true, false] {
        let (client, _) = flow(v4, L4::Ack, 1);
        program.service(vip(&client), 80, L4Protocol::Tcp, &[Row::settled(slot(1))]);
        program.backend(1, vip(&client), &How::new(Forward::L2, v4));
    }
    let host = Kind::V4(Icmpv4Type::DestinationUnreachable(
        icmpv4::DestUnreachableHeader::Host,
    ));
    let too_big = Kind::V6(Icmpv6Type::PacketTooBig { mtu: 1400 });
    let echo = IcmpEchoHeader { id: 1, seq: 2 };
    let (_, four) = flow(true, L4::Ack, 1);
    let (_, six) = flow(false, L4::Ack, 1);
    let other_port = Packet {
        ports: (81, 5),
        ..four.clone()
    };
    let of_another = Packet {
        source: Address::V4([198, 18, 9, 99]),
        ..four.clone()
    };
    let (udp4, udp6) = (flow(true, L4::Udp, 1).1, flow(false, L4::Udp, 1).1);
    let changed = |packet: &Packet, at: usize, byte: u8| {
        let mut quoted = packet.ip();
        quoted[at] = byte;
        quoted
    };
    let cases: [(&str, Vec<u8>, &str); 14] = [
        (
            "an echo request",
            error(&four, Kind::V4(Icmpv4Type::EchoRequest(echo)), &[7; 40]),
            "pass_icmp",
        ),
        (
            "an echo request",
            error(&six, Kind::V6(Icmpv6Type::EchoRequest(echo)), &[7; 60]),
            "pass_icmp",
        ),
        (
            "another port",
            error(&four, host.clone(), &other_port.ip()),
            "pass_icmp",
        ),
        (
            "another protocol",
            error(&four, host.clone(), &udp4.ip()),
            "pass_icmp",
        ),
        (
            "another protocol",
            error(&six, too_big.clone(), &udp6.ip()),
            "pass_icmp",
        ),
        (
            "a packet that another host sent",
            error(&four, host.clone(), &of_another.ip()),
            "pass_icmp",
        ),
        (
            "a later fragment",
            error(&four, host.clone(), &changed(&four, 7, 1)),
            "pass_icmp",
        ),
        (
            "quotes no IPv4",
            error(&four, host.clone(), &changed(&four, 0, 0x65)),
            "pass_icmp",
        ),
        (
            "quotes a short header",
            error(&four, host.clone(), &changed(&four, 0, 0x44)),
            "pass_icmp",
        ),
        (
            "quotes no IPv6",
            error(&six, too_big.clone(), &changed(&six, 0, 0x45)),
            "pass_icmp",
        ),
        (
            "quotes ICMP",
            error(&four, host.clone(), &changed(&four, 9, 1)),
            "pass_icmp",
        ),
        (
            "is cut in the ports",
            error(&four, host.clone(), &four.ip()[..22]),
            "pass_malformed",
        ),
        (
            "is cut in the header",
            error(&four, host, &four.ip()[..12]),
            "pass_malformed",
        ),
        (
            "is cut in the ports",
            error(&six, too_big, &six.ip()[..42]),
            "pass_malformed",
        ),
    ];
    for (what, ip, reason) in cases {
        let frame = ethernet(ROUTER, OWN, None, &ip);
        let before = program.traces();
        let (verdict, left) = program.run(&frame);
        assert_eq!((verdict, left), (XDP_PASS, frame), "{what}");
        assert_eq!(
            program.traces().since(&before),
            grown(&[(reason, 1)]),
            "{what}"
        );
    }
}
