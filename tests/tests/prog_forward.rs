//! What leaves the program, byte by byte, against frames built by etherparse.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use lb_common::backend::{Head, Template};
use lb_common::row::Row;
use lb_tests::driver::{Driver, Load};
use lb_tests::frame::{Address, Entropy, L4, OverUdp, Packet, ethernet, wrap, wrap_in};
use lb_tests::netns::Netns;
use lb_tests::program::{
    How, OWN, Program, SOURCE4, SOURCE6, XDP_DROP, XDP_REDIRECT, XDP_TX, address, grown, mac, slot,
};
use lb_user::dataplane::Dataplane as _;
use lb_user::model::{EncapSource, Forward, L4Protocol, Mac, Overlay, OverlayHeader, Vni};

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

/// Packets with everything that may stand between the IP header and the transport's: IPv4 options
/// (none, router alert, as many as can be), IPv6 hop-by-hop and destination options.
fn headers(v4: bool) -> Vec<Packet> {
    let with4 = |options: &[u8]| Packet {
        options: options.to_vec(),
        ..Packet::v4(L4::Ack, 1)
    };
    let with6 = |extensions: &[(u8, Vec<u8>)]| Packet {
        extensions: extensions.to_vec(),
        ..Packet::v6(L4::Ack, 1)
    };
    if v4 {
        return vec![with4(&[]), with4(&[0x94, 4, 0, 0]), with4(&[1; 40])];
    }
    let short = || vec![1, 4, 0, 0, 0, 0];
    let long = || [&[1, 20], [0; 20].as_slice()].concat();
    let (hop_by_hop, destination) = (0, 60);
    vec![
        with6(&[]),
        with6(&[(hop_by_hop, short())]),
        with6(&[(destination, long())]),
        with6(&[(hop_by_hop, long()), (destination, short())]),
        with6(&[
            (hop_by_hop, short()),
            (destination, short()),
            (destination, long()),
        ]),
    ]
}

/// All kinds of packets that a client may send to a family's service.
fn packets(v4: bool) -> Vec<Packet> {
    let mut packets = Vec::new();
    for headers in headers(v4) {
        for l4 in [L4::Syn, L4::Ack, L4::Fin, L4::Rst, L4::Udp, L4::BareUdp] {
            for (len, tos, id_df) in [
                (0, 0, (0, true)),
                (1, 0b1011_1001, (0xffff, false)),
                (7, 2, (1, true)),
                (100, 3, (0x1234, true)),
                (1249, 0xff, (0, false)),
            ] {
                packets.push(Packet {
                    ports: (5000 + len, 80),
                    l4,
                    payload: (0..len).map(|byte| byte as u8).collect(),
                    tos,
                    id_df,
                    ..headers.clone()
                });
            }
        }
    }
    packets
}

/// What a frame that left has of its flow's hash.
fn entropy(frame: &[u8], how: &How) -> Entropy {
    match how.forward {
        Forward::L2 | Forward::Nat => Entropy::default(),
        Forward::Ipip | Forward::Gue(_) | Forward::Overlay(_) => {
            let udp = how.forward != Forward::Ipip;
            let frame = &frame[if how.around.is_some() { 4 } else { 0 }..];
            Entropy::of(frame, how.vlan.is_some(), how.outer_v4, udp)
        }
    }
}

/// The VM's Ethernet address in an overlay.
const VM: [u8; 6] = [0x52, 0x54, 0, 0, 0, 5];
/// The Ethernet address that it sees frames come from, where one is set.
const GATEWAY: [u8; 6] = [0x52, 0x54, 0, 0, 0, 1];

/// What stands between the outer IP header and a packet.
fn over_udp(inner: &[u8], how: &How) -> Option<OverUdp> {
    match how.forward {
        Forward::L2 | Forward::Nat | Forward::Ipip => None,
        Forward::Gue(port) => Some(OverUdp::gue(port.get())),
        Forward::Overlay(overlay) => {
            let source = overlay.source_mac.map_or(OWN, |mac| mac.0);
            let eth = &ethernet(source, VM, None, inner)[..14];
            let (port, vni) = (overlay.port.get(), overlay.vni.get());
            Some(match overlay.header {
                OverlayHeader::Vxlan => OverUdp::vxlan(port, vni, eth),
                OverlayHeader::Geneve(options) => {
                    // The ones below: OVN's is critical, and the long one is not.
                    let options = options.as_bytes();
                    OverUdp::geneve(port, vni, options, options.len() == 8, eth)
                }
            })
        }
    }
}

/// Overlays: without options, with OVN's, and with as many as can be.
fn overlays() -> Vec<Forward> {
    let longest = format!("01020109{}", "5a".repeat(36));
    let geneve = |options: &str| OverlayHeader::Geneve(options.parse().unwrap());
    let headers = [
        OverlayHeader::Vxlan,
        geneve(""),
        geneve("0102800100010002"),
        geneve(&longest),
    ];
    let overlay = |header: OverlayHeader| Overlay {
        header,
        vni: Vni::new(0xab_cdef).unwrap(),
        port: header.default_port(),
        mac: Some(Mac(VM)),
        source_mac: (header == OverlayHeader::Vxlan).then_some(Mac(GATEWAY)),
    };
    headers
        .map(|header| Forward::Overlay(overlay(header)))
        .to_vec()
}

/// The outer source address: this host's, or, of the prefix that it is told, the address in the
/// frame that left.
fn source(frame: &[u8], how: &How) -> Address {
    let tags = usize::from(how.vlan.is_some()) + usize::from(how.around.is_some());
    let l3 = 14 + 4 * tags;
    if how.outer_v4 {
        let Some((prefix, len)) = how.source.v4 else {
            return Address::V4(SOURCE4);
        };
        let octets = frame[l3 + 12..l3 + 16].try_into().unwrap();
        let differ = Ipv4Addr::from(octets).to_bits() ^ prefix.to_bits();
        assert_eq!(differ.checked_shr(32 - u32::from(len)).unwrap_or(0), 0);
        Address::V4(octets)
    } else {
        let Some((prefix, len)) = how.source.v6 else {
            return wire(SOURCE6.into());
        };
        let octets = frame[l3 + 8..l3 + 24].try_into().unwrap();
        let differ = Ipv6Addr::from(octets).to_bits() ^ prefix.to_bits();
        assert_eq!(differ.checked_shr(128 - u32::from(len)).unwrap_or(0), 0);
        Address::V6(octets)
    }
}

/// Returns the frame as etherparse builds it, with the bits of the hash that `sent` has.
fn expected(packet: &Packet, how: &How, sent: &[u8]) -> Vec<u8> {
    let inner = packet.ip();
    let over = over_udp(&inner, how);
    let ip = match how.forward {
        Forward::L2 | Forward::Nat => inner.clone(),
        Forward::Ipip | Forward::Gue(_) | Forward::Overlay(_) => wrap_in(
            &inner,
            source(sent, how),
            wire(address(1, how.outer_v4)),
            over.as_ref(),
            entropy(sent, how),
        ),
    };
    let mut frame = ethernet(OWN, mac(1), how.vlan, &ip);
    if let Some(around) = how.around {
        let [high, low] = (0x6000 | around).to_be_bytes();
        drop(frame.splice(12..12, [0x88, 0xa8, high, low]));
    }
    // No checksum where it would take reading the payload (RFC 6935): with extension headers
    // before the transport's, or without a checksum in there.
    let reading = packet.l4 == L4::BareUdp || !packet.extensions.is_empty();
    if let (Some(over), false, true) = (over, how.outer_v4, reading) {
        let at = frame.len() - inner.len() - over.header.len() - 2;
        frame[at..at + 2].fill(0);
    }
    frame
}

/// VLAN tags that a frame comes in with.
#[derive(Clone, Copy, Debug)]
enum Tags {
    None,
    One,
    /// With these kinds.
    Two(u16, u16),
}

/// Sends one packet, after VLAN tags or not, with bytes behind it that are not the packet's (as
/// short frames are padded): the whole frame, and every counter.
#[track_caller]
fn check(program: &mut Program, packet: &Packet, how: &How, tags: Tags, padding: &[u8]) {
    let frame = match tags {
        Tags::None => packet.frame(None),
        Tags::One => packet.frame(Some(7)),
        Tags::Two(outer, inner) => packet.double_tagged([(outer, 0x6123), (inner, 7)]),
    };
    let frame = [&frame, padding].concat();
    let before = program.traces();
    let (verdict, sent) = program.run(&frame);
    let context = || format!("{packet:?} {how:?} {tags:?} {} more", padding.len());
    assert_eq!(verdict, XDP_TX, "{}", context());
    let expected = [expected(packet, how, &sent).as_slice(), padding].concat();
    assert_eq!(sent, expected, "{}", context());
    let udp = !matches!(how.forward, Forward::L2 | Forward::Ipip);
    assert!(!udp || entropy(&sent, how).port >= 49152);
    let after = program.traces();
    let service = u32::from(packet.l4.is_udp());
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
    assert_eq!(after.since(&before), grown(&counters), "{}", context());
    assert!(after.flows.is_empty(), "a settled row keeps no state");
}

/// All templates that a service of a family can have: without and with a prefix of source
/// addresses, into another VLAN and not.
fn ways(v4: bool) -> Vec<How> {
    let prefixes = EncapSource {
        v4: Some(("198.18.64.0".parse().unwrap(), 18)),
        v6: Some(("2001:db8:64::".parse().unwrap(), 64)),
    };
    let narrow = EncapSource {
        v4: Some(("198.18.64.8".parse().unwrap(), 29)),
        v6: Some(("2001:db8:64::a:0".parse().unwrap(), 113)),
    };
    let mut ways = vec![How::new(Forward::L2, v4)];
    for outer_v4 in [true, false] {
        for forward in [Forward::Ipip, GUE] {
            for source in [EncapSource::default(), prefixes, narrow] {
                ways.push(How {
                    source,
                    ..How::new(forward, outer_v4)
                });
            }
        }
        for forward in overlays() {
            let source = if outer_v4 { narrow } else { prefixes };
            ways.push(How {
                source,
                ..How::new(forward, outer_v4)
            });
        }
    }
    let untagged = ways.clone().into_iter();
    ways.extend(untagged.flat_map(|how| {
        let vlan = Some(0x123);
        let around = Some(0xabc);
        [
            How { vlan, ..how },
            How {
                vlan,
                around,
                ..how
            },
        ]
    }));
    ways
}

#[test]
fn every_kind_of_packet_leaves_by_every_template_as_etherparse_builds_it() {
    let mut compared = 0;
    for v4 in [true, false] {
        let packets = packets(v4);
        for how in ways(v4) {
            let mut program = Program::default();
            services(&mut program, &packets[0], Row::settled(slot(1)));
            program.backend(1, vip(&packets[0]), &how);
            for packet in &packets {
                let q_in_q = Tags::Two(0x88a8, 0x8100);
                // Not zero: in no checksum, and in no length.
                for (tags, padding) in [
                    (Tags::None, [].as_slice()),
                    (Tags::None, &[0xee; 7]),
                    (Tags::One, &[0xee; 7]),
                    (q_in_q, &[0xee; 7]),
                ] {
                    check(&mut program, packet, &how, tags, padding);
                    compared += 1;
                }
            }
        }
    }
    assert_eq!(compared, (90 + 150) * 63 * 4);
}

#[test]
fn two_tags_of_either_kind_come_in_by_either_template() {
    for v4 in [true, false] {
        let packet = if v4 {
            Packet::v4(L4::Syn, 1)
        } else {
            Packet::v6(L4::Syn, 1)
        };
        for how in [How::new(Forward::L2, v4), How::new(GUE, true)] {
            let mut program = Program::default();
            services(&mut program, &packet, Row::settled(slot(1)));
            program.backend(1, vip(&packet), &how);
            for outer in [0x8100, 0x88a8] {
                for inner in [0x8100, 0x88a8] {
                    check(&mut program, &packet, &how, Tags::Two(outer, inner), &[]);
                }
            }
        }
    }
}

#[test]
fn flows_differ_in_their_entropy_and_a_flow_never_does() {
    let source = EncapSource {
        v4: Some(("198.18.64.0".parse().unwrap(), 18)),
        v6: Some(("2001:db8:64::".parse().unwrap(), 64)),
    };
    let overlay = overlays()[0];
    for (forward, outer_v4) in [
        (Forward::Ipip, true),
        (Forward::Ipip, false),
        (GUE, true),
        (GUE, false),
        (overlay, true),
        (overlay, false),
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

/// The kernel gives a test run 256 bytes in front of the frame, which is more than any template
/// needs. So the benchmark's driver takes most of them first, and leaves 16 or less. It writes too
/// few bytes for an IPv6 packet's headers, so this is about packets in IPv4.
#[test]
fn a_frame_without_room_in_front_is_dropped_and_counted() {
    let packet = Packet {
        payload: vec![1; 300],
        ..Packet::v4(L4::Syn, 0)
    };
    let frame = packet.frame(None);
    let roomy = Load {
        frame: &frame,
        flows: 1,
        ipv6: false,
        in_front: 0,
    };
    let tight = Load {
        in_front: 208,
        ..roomy
    };
    for how in ways(true) {
        let mut program = Program::default();
        services(&mut program, &packet, Row::settled(slot(1)));
        program.backend(1, vip(&packet), &how);
        let weir = program.kernel.program("weir").unwrap().fd().unwrap();
        let mut driver = Driver::new(weir).unwrap();
        assert_eq!(driver.once(&roomy).unwrap().0, XDP_TX, "{how:?}");
        let before = program.traces();
        let (verdict, after) = driver.once(&tight).unwrap();
        if how.forward == Forward::L2 {
            assert_eq!(verdict, XDP_TX, "{how:?} needs no room, or eight bytes");
            continue;
        }
        assert_eq!((verdict, after.len()), (XDP_DROP, frame.len()), "{how:?}");
        assert_eq!(
            program.traces().since(&before),
            grown(&[("drop_no_room", 1), ("service 0 dropped", 1)])
        );
    }
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
        assert_eq!(sent, expected(&packet, &how, &sent));
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
    let (one, two) = (How::new(overlays()[3], true), How::new(GUE, false));
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
            (XDP_TX, expected(&packet, how, &sent))
        );
    }
}

/// RFC 768: the checksum covers as many bytes as the length says. Where these are not the packet's,
/// the packet's sum does not follow from its headers, and a wrong outer checksum would make the VM
/// throw a valid packet away.
#[test]
fn a_datagram_of_another_length_than_its_packet_gets_no_outer_checksum() {
    let packet = Packet::v6(L4::Udp, 7);
    let how = How::new(GUE, false);
    let mut program = Program::default();
    services(&mut program, &packet, Row::settled(slot(1)));
    program.backend(1, vip(&packet), &how);
    let surplus = {
        let mut ip = packet.ip();
        ip.extend([0x12, 0x34, 0x56, 0x78]);
        ip[5] += 4;
        ip
    };
    let longer = {
        let mut ip = packet.ip();
        ip[45] += 8;
        ip
    };
    for inner in [surplus, longer] {
        let (verdict, sent) = program.run(&ethernet([2, 0, 0, 0, 9, 9], OWN, None, &inner));
        assert_eq!(verdict, XDP_TX);
        let to = wire(address(1, false));
        let (from, bits) = (source(&sent, &how), entropy(&sent, &how));
        let mut expected = ethernet(OWN, mac(1), None, &wrap(&inner, from, to, Some(6080), bits));
        let at = expected.len() - inner.len() - 2;
        expected[at..at + 2].fill(0);
        assert_eq!(sent, expected);
    }
}
