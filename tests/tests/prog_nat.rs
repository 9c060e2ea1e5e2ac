//! NAT: what a VM is sent, and what becomes of its answers. Every expected frame is built anew by
//! etherparse, with checksums over all of it.

use std::net::IpAddr;
use std::num::NonZeroU16;

use etherparse::{Icmpv4Type, Icmpv6Type, PacketBuilder, icmpv4, icmpv6};
use lb_common::row::Row;
use lb_tests::frame::{Address, L4, Packet, ethernet};
use lb_tests::netns::{Netns, Stay};
use lb_tests::program::{
    How, OWN, Program, XDP_DROP, XDP_PASS, XDP_REDIRECT, XDP_TX, address, grown, mac, slot,
};
use lb_user::dataplane::Dataplane as _;
use lb_user::model::{Forward, L4Protocol, ServicePort, Vip};

/// The next hop towards clients.
const ROUTER: [u8; 6] = [2, 0, 0, 0, 9, 9];
/// The Ethernet address of the interface towards clients.
const UP: [u8; 6] = [2, 0, 0, 0, 7, 1];
const PORT: NonZeroU16 = NonZeroU16::new(8080).expect("a port");

fn wire(address: IpAddr) -> Address {
    match address {
        IpAddr::V4(address) => Address::V4(address.octets()),
        IpAddr::V6(address) => Address::V6(address.octets()),
    }
}

fn ip(address: Address) -> IpAddr {
    match address {
        Address::V4(address) => address.into(),
        Address::V6(address) => address.into(),
    }
}

fn client(v4: bool, l4: L4, port: u16) -> Packet {
    if v4 {
        Packet::v4(l4, port)
    } else {
        Packet::v6(l4, port)
    }
}

/// The same packet as backend 1 gets it.
fn at_vm(packet: &Packet, port: Option<NonZeroU16>) -> Packet {
    let (from, to) = packet.ports;
    Packet {
        destination: wire(address(1, matches!(packet.source, Address::V4(_)))),
        ports: (from, port.map_or(to, NonZeroU16::get)),
        ..packet.clone()
    }
}

/// What its receiver answers.
fn answer(packet: &Packet) -> Packet {
    Packet {
        source: packet.destination,
        destination: packet.source,
        ports: (packet.ports.1, packet.ports.0),
        payload: vec![0xcd; 31],
        ..packet.clone()
    }
}

/// Services on port 80 of both families and protocols, whose only backend is reached by NAT.
fn program(how: &How) -> Program {
    let mut program = Program::default();
    for v4 in [true, false] {
        let vip = ip(client(v4, L4::Ack, 1).destination);
        for protocol in [L4Protocol::Tcp, L4Protocol::Udp] {
            let number = if v4 { 1 } else { 2 };
            let (service, _) = program.service(vip, 80, protocol, &[Row::settled(slot(number))]);
            let vip = Vip {
                address: vip,
                port: ServicePort::Exact(NonZeroU16::new(80).unwrap()),
                protocol,
            };
            program.nat_source(1, vip, service, how);
        }
        // Slots 1 and 2; at the same place of both families.
        let how = How {
            outer_v4: v4,
            ..*how
        };
        if v4 {
            program.backend(1, vip, &how);
        } else {
            program.backend_at(2, 1, vip, &how);
        }
    }
    program
}

fn nat(port: Option<NonZeroU16>) -> How {
    How {
        port,
        ..How::new(Forward::Nat, true)
    }
}

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

/// A host that forwards between an interface to VMs and one to clients. `out` and `vm` are in the
/// device map.
struct World {
    program: Program,
    vm: u32,
    up: u32,
    netns: Netns,
    _stay: Stay,
}

impl World {
    fn new(port: Option<NonZeroU16>) -> Self {
        let netns = Netns::new("nat");
        netns.set("net/ipv4/ip_forward", "1");
        netns.set("net/ipv6/conf/all/forwarding", "1");
        for (device, address, own) in [
            ("vm", "02:00:00:00:01:fe", "1.254"),
            ("out", "02:00:00:00:07:01", "7.1"),
        ] {
            netns.ip(&format!(
                "link add {device} address {address} type veth peer name {device}-peer"
            ));
            netns.set(&format!("net/ipv6/conf/{device}/accept_dad"), "0");
            netns.ip(&format!("link set {device}-peer up"));
            netns.ip(&format!("link set {device} up"));
            netns.ip(&format!("addr add 198.18.{own}/24 dev {device}"));
            let own = own.replace('.', "::");
            netns.ip(&format!("addr add 2001:db8:{own}/64 dev {device} nodad"));
        }
        for via in ["198.18.7.2", "2001:db8:7::2"] {
            netns.ip(&format!(
                "neigh add {via} lladdr 02:00:00:00:09:09 dev out nud permanent"
            ));
        }
        for route in [
            "198.19.0.0/16 via 198.18.7.2",
            "198.19.200.0/24 via 198.18.7.3",
            "2001:db8:5::/64 via 2001:db8:7::2",
            "2001:db8:6::/64 via 2001:db8:7::3",
        ] {
            netns.ip(&format!("route add {route}"));
        }
        let stay = netns.stay();
        let (vm, up) = (netns.ifindex("vm"), netns.ifindex("out"));
        let mut program = program(&nat(port));
        program.kernel.add_device(vm).unwrap();
        program.kernel.add_device(up).unwrap();
        Self {
            program,
            vm,
            up,
            netns,
            _stay: stay,
        }
    }

    /// Sends an IP packet in by an interface. Returns the verdict, the frame, and what was counted.
    #[track_caller]
    fn send(&mut self, ip: &[u8], vlan: Option<u16>, ifindex: u32) -> (u32, Vec<u8>, String) {
        let frame = ethernet(mac(1), UP, vlan, ip);
        let before = self.program.traces();
        let explained = self.program.kernel.explain(&frame, ifindex).unwrap();
        assert_eq!(
            self.program.traces(),
            before,
            "an explanation leaves no trace"
        );
        let (verdict, left) = self.program.run_from(&frame, ifindex);
        assert_eq!((explained.verdict, &explained.frame), (verdict, &left));
        let counted = self.program.traces().since(&before);
        let counted: Vec<_> = counted
            .iter()
            .map(|(name, n)| format!("{name} {n}"))
            .collect();
        (verdict, left, counted.join(", "))
    }

    /// Sends what must be translated and sent to the router.
    #[track_caller]
    fn answered(&mut self, what: &str, ip: &[u8], expected: &[u8]) {
        for (from, vlan, verdict) in [
            (self.vm, None, XDP_REDIRECT),
            (self.vm, Some(9), XDP_REDIRECT),
            (self.up, None, XDP_TX),
        ] {
            let expected = ethernet(UP, ROUTER, None, expected);
            let found = self.send(ip, vlan, from);
            assert_eq!(found, (verdict, expected, "answer 1".to_owned()), "{what}");
        }
    }

    /// Sends what must pass, as `left`.
    #[track_caller]
    fn passed(&mut self, what: &str, ip: &[u8], left: &[u8], reason: &str) {
        for vlan in [None, Some(9)] {
            let found = self.send(ip, vlan, self.vm);
            let left = ethernet(mac(1), UP, vlan, left);
            assert_eq!(found, (XDP_PASS, left, format!("{reason} 1")), "{what}");
        }
    }
}

/// The same packet after a router.
fn hop(packet: &Packet) -> Packet {
    Packet {
        hops: packet.hops - 1,
        ..packet.clone()
    }
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
