//! Fragments: the first one is balanced, the others follow it, and what has no first one is handled as
//! the operator wants.

use std::net::IpAddr;
use std::time::Duration;

use etherparse::{Icmpv4Type, Icmpv6Type, PacketBuilder, icmpv4};
use lb_common::backend::Head;
use lb_common::rate::Rate;
use lb_common::row::Row;
use lb_common::settings::Settings;
use lb_tests::frame::{Address, Entropy, L4, Packet, ethernet, wrap};
use lb_tests::pieces::{Piece, cut, piece, seal};
use lb_tests::program::{
    How, OWN, Program, SOURCE4, SOURCE6, XDP_DROP, XDP_PASS, XDP_TX, address, grown, mac, slot,
};
use lb_user::dataplane::Dataplane as _;
use lb_user::model::{Forward, L4Protocol};

const GUE: Forward = Forward::Gue(Forward::GUE_PORT);
const ROUTER: [u8; 6] = [2, 0, 0, 0, 9, 9];
const ID: u32 = 0x0102_fff0;

fn vip(packet: &Packet) -> IpAddr {
    match packet.destination {
        Address::V4(address) => address.into(),
        Address::V6(address) => address.into(),
    }
}

/// A client's packet from `port` with so much payload.
fn packet(v4: bool, l4: L4, port: u16, payload: usize) -> Packet {
    let packet = if v4 {
        Packet::v4(l4, port)
    } else {
        Packet::v6(l4, port)
    };
    Packet {
        payload: (0..payload).map(|n| (n * 5) as u8).collect(),
        id_df: (ID as u16, false),
        ..packet
    }
}

/// A program that serves TCP and UDP on port 80, on rows of backends 1 to 4.
fn program(v4: bool, how: &How) -> Program {
    let mut program = Program::default();
    let vip = vip(&packet(v4, L4::Udp, 1, 0));
    let rows = [1, 2, 3, 4].map(|number| Row::settled(slot(number)));
    program.service(vip, 80, L4Protocol::Tcp, &rows);
    program.service(vip, 80, L4Protocol::Udp, &rows);
    for number in 1..=4 {
        program.backend(number, vip, how);
    }
    set(&mut program, 30_000, false);
    program
}

fn set(program: &mut Program, jiffies: u32, drop: bool) {
    let settings = Settings {
        fragment_jiffies: jiffies,
        drop_unknown_fragments: u32::from(drop),
        too_big_rate: Rate::per_second(1_000_000),
        ..Settings::default()
    };
    program.kernel.set_settings(&settings).unwrap();
}

fn l2(v4: bool) -> Program {
    program(v4, &How::new(Forward::L2, v4))
}

fn frame(ip: &[u8]) -> Vec<u8> {
    ethernet(ROUTER, OWN, None, ip)
}

/// The backend that a frame was sent to.
fn backend(sent: &[u8]) -> u32 {
    u32::from(sent[5])
}

/// The frame in which a fragment must reach a backend.
fn expected(ip: &Piece, number: u32, how: &How, entropy: Entropy) -> Vec<u8> {
    if how.forward == Forward::L2 {
        return ethernet(OWN, mac(number), None, &ip.ip);
    }
    let wire = |address| match address {
        IpAddr::V4(address) => Address::V4(address.octets()),
        IpAddr::V6(address) => Address::V6(address.octets()),
    };
    let source = if how.outer_v4 {
        Address::V4(SOURCE4)
    } else {
        wire(SOURCE6.into())
    };
    let gue = (how.forward == GUE).then_some(6080);
    let to = wire(address(number, how.outer_v4));
    let mut outer = wrap(&ip.ip, source, to, gue, entropy);
    if how.outer_v4 && ip.ip[0] >> 4 == 4 {
        // A whole packet, with an identification that no other fragment's has.
        let id = (ID as u16).wrapping_add((ip.offset / 8) as u16);
        outer[4..6].copy_from_slice(&id.to_be_bytes());
        assert_eq!(outer[6..8], [0, 0]);
        seal(&mut outer[..20]);
    }
    if !how.outer_v4 && gue.is_some() {
        // The sum of a part of a datagram is not known.
        outer[46..48].fill(0);
    }
    ethernet(OWN, mac(number), None, &outer)
}

#[test]
fn the_first_is_balanced_as_a_whole_packet_is_and_the_others_follow_by_every_template() {
    for v4 in [true, false] {
        for (forward, outer_v4) in [
            (Forward::L2, v4),
            (Forward::Ipip, true),
            (Forward::Ipip, false),
            (GUE, true),
            (GUE, false),
        ] {
            let how = How::new(forward, outer_v4);
            let mut program = program(v4, &how);
            let mut seen = [0; 5];
            for port in 1..=40 {
                let what = format!("v4 {v4} {forward:?} outer {outer_v4}, port {port}");
                let whole = packet(v4, L4::Udp, port, 16).frame(None);
                let (_, sent) = program.run(&whole);
                let number = backend(&sent);
                seen[number as usize] += 1;
                let id = ID + u32::from(port) * 0x1_0000;
                let same_id = if v4 { id & 0xffff } else { id };
                for (nth, part) in cut(&packet(v4, L4::Udp, port, 3000), same_id, 1200)
                    .iter()
                    .enumerate()
                {
                    let frame = frame(&part.ip);
                    let before = program.traces();
                    let (verdict, left) = program.run(&frame);
                    assert_eq!(verdict, XDP_TX, "{what}, fragment {nth}");
                    let entropy = Entropy::of(&sent, false, outer_v4, forward == GUE);
                    let entropy = if forward == Forward::L2 {
                        Entropy::default()
                    } else {
                        entropy
                    };
                    assert_eq!(
                        left,
                        expected(part, number, &how, entropy),
                        "{what}, fragment {nth}"
                    );
                    let bytes = frame.len() as u64;
                    let counters = [
                        ("fragment", u64::from(nth > 0)),
                        (&format!("backend {number} packets"), 1),
                        (&format!("backend {number} bytes"), bytes),
                        ("service 1 packets", 1),
                        ("service 1 bytes", bytes),
                    ];
                    let counted = program.traces().since(&before);
                    assert_eq!(counted, grown(&counters), "{what}, fragment {nth}");
                }
            }
            assert!(seen[1..].iter().all(|flows| *flows > 0), "{seen:?}");
        }
    }
}

#[test]
fn tags_stay_off_and_tcp_is_balanced_too() {
    for v4 in [true, false] {
        let mut program = l2(v4);
        let parts = cut(&packet(v4, L4::Ack, 9, 2000), ID, 1200);
        let (_, sent) = program.run(&packet(v4, L4::Ack, 9, 10).frame(None));
        for part in parts {
            let tagged = ethernet(ROUTER, OWN, Some(7), &part.ip);
            let (verdict, left) = program.run(&tagged);
            let to = ethernet(OWN, mac(backend(&sent)), None, &part.ip);
            assert_eq!((verdict, left), (XDP_TX, to));
        }
    }
}

#[track_caller]
fn left(program: &mut Program, what: &str, frame: &[u8], verdict: u32, reason: &str) {
    let before = program.traces();
    let (found, after) = program.run(frame);
    assert_eq!((found, after.as_slice()), (verdict, frame), "{what}");
    let counted = program.traces().since(&before);
    assert_eq!(counted, grown(&[(reason, 1)]), "{what}");
}

#[test]
fn without_a_first_one_a_fragment_passes_or_is_dropped_if_it_is_for_a_service() {
    for v4 in [true, false] {
        let mut program = l2(v4);
        let parts = cut(&packet(v4, L4::Udp, 9, 2000), ID, 1200);
        let later = frame(&parts[1].ip);
        left(&mut program, "pass", &later, XDP_PASS, "pass_fragment");
        set(&mut program, 30_000, true);
        left(&mut program, "drop", &later, XDP_DROP, "drop_fragment");
        let mut elsewhere = packet(v4, L4::Udp, 9, 2000);
        match &mut elsewhere.destination {
            Address::V4(address) => address[3] += 1,
            Address::V6(address) => address[15] += 1,
        }
        let other = frame(&cut(&elsewhere, ID, 1200)[1].ip);
        left(&mut program, "other", &other, XDP_PASS, "pass_fragment");
        // Reversed: the first one comes last, and is alone.
        assert_eq!(program.run(&frame(&parts[0].ip)).0, XDP_TX);
        assert_eq!(program.run(&later).0, XDP_TX, "it may come once more");
    }
}

#[test]
fn a_trail_is_one_datagrams_alone() {
    for v4 in [true, false] {
        let mut program = l2(v4);
        let datagram = packet(v4, L4::Udp, 9, 2000);
        let first = frame(&cut(&datagram, ID, 1200)[0].ip);
        assert_eq!(program.run(&first).0, XDP_TX);
        let mut of_another = datagram.clone();
        match &mut of_another.source {
            Address::V4(address) => address[3] += 1,
            Address::V6(address) => address[15] += 1,
        }
        for (what, ip) in [
            (
                "another identification",
                &cut(&datagram, ID ^ 1, 1200)[1].ip,
            ),
            ("another client", &cut(&of_another, ID, 1200)[1].ip),
        ] {
            left(&mut program, what, &frame(ip), XDP_PASS, "pass_fragment");
        }
        let tcp = packet(v4, L4::Ack, 9, 2000);
        let (verdict, _) = program.run(&frame(&cut(&tcp, ID, 1200)[1].ip));
        let same = if v4 { XDP_PASS } else { XDP_TX };
        assert_eq!(
            verdict, same,
            "the protocol counts for IPv4 (RFC 791 §3.2) only"
        );
    }
}

#[test]
fn a_newer_first_one_takes_the_trail_over() {
    let mut program = l2(true);
    let mut ports = std::collections::BTreeMap::new();
    for port in 1..200 {
        let (_, sent) = program.run(&packet(true, L4::Udp, port, 10).frame(None));
        ports.entry(backend(&sent)).or_insert(port);
    }
    for (number, port) in ports {
        let parts = cut(&packet(true, L4::Udp, port, 2000), ID, 1200);
        for part in &parts {
            assert_eq!(backend(&program.run(&frame(&part.ip)).1), number);
        }
    }
}

#[test]
fn a_trail_ends_in_time_and_with_its_backend() {
    for v4 in [true, false] {
        let mut program = l2(v4);
        let parts = cut(&packet(v4, L4::Udp, 9, 2000), ID, 1200).map_frames();
        set(&mut program, 1, false);
        program.run(&parts[0]);
        std::thread::sleep(Duration::from_millis(50));
        left(&mut program, "late", &parts[1], XDP_PASS, "pass_fragment");
        set(&mut program, 30_000, false);
        let (_, sent) = program.run(&parts[0]);
        assert_eq!(program.run(&parts[1]).0, XDP_TX);
        let number = backend(&sent);
        program.head(number, Head::new(0, false, false, 1));
        left(&mut program, "dead", &parts[1], XDP_PASS, "pass_fragment");
        program.head(number, Head::new(0, true, true, 1));
        left(
            &mut program,
            "revived",
            &parts[1],
            XDP_PASS,
            "pass_fragment",
        );
        program.run(&parts[0]);
        assert_eq!(program.run(&parts[1]).0, XDP_TX, "a new life, a new trail");
        program.head(number, Head::new(0, true, false, 1));
        assert_eq!(
            program.run(&parts[1]).0,
            XDP_TX,
            "drained: it keeps its own"
        );
    }
}

trait MapFrames {
    fn map_frames(self) -> Vec<Vec<u8>>;
}

impl MapFrames for Vec<Piece> {
    fn map_frames(self) -> Vec<Vec<u8>> {
        self.iter().map(|part| frame(&part.ip)).collect()
    }
}

#[test]
fn an_explanation_leaves_no_trail_and_says_what_would_become_of_a_fragment() {
    for v4 in [true, false] {
        let mut program = l2(v4);
        let parts = cut(&packet(v4, L4::Udp, 9, 2000), ID, 1200).map_frames();
        let before = program.traces();
        assert_eq!(program.explain(&parts[0]).verdict, XDP_TX);
        let unknown = program.explain(&parts[1]);
        assert_eq!((unknown.verdict, &unknown.frame), (XDP_PASS, &parts[1]));
        assert_eq!(program.traces(), before);
        program.run(&parts[0]);
        let before = program.traces();
        let explained = program.explain(&parts[1]);
        assert_eq!(program.traces(), before);
        assert_eq!((explained.verdict, explained.frame), program.run(&parts[1]));
        assert_eq!(explained.explanation.service, 1);
    }
}

#[test]
fn a_moved_row_gives_fragments_what_it_gives_whole_packets() {
    for v4 in [true, false] {
        let mut program = Program::default();
        let vip = vip(&packet(v4, L4::Udp, 1, 0));
        program.service(
            vip,
            80,
            L4Protocol::Udp,
            &[Row::new(slot(2), slot(1), true)],
        );
        for number in [1, 2] {
            program.backend(number, vip, &How::new(Forward::L2, v4));
        }
        set(&mut program, 30_000, false);
        for part in cut(&packet(v4, L4::Udp, 9, 3000), ID, 1200).map_frames() {
            assert_eq!(backend(&program.run(&part).1), 1, "an old flow is kept");
        }
        assert_eq!(program.traces().flows.len(), 1);
    }
}

/// RFC 1858, RFC 3128, RFC 7112: what would let a header be seen otherwise here than there.
#[test]
fn headers_in_pieces_are_not_served() {
    for v4 in [true, false] {
        let mut program = l2(v4);
        let tcp = packet(v4, L4::Syn, 9, 100);
        let tiny = cut(&tcp, ID, 8).map_frames();
        left(
            &mut program,
            "a tiny first one",
            &tiny[0],
            XDP_PASS,
            "pass_malformed",
        );
        let expect = if v4 {
            "pass_malformed"
        } else {
            "pass_fragment"
        };
        left(&mut program, "over its flags", &tiny[1], XDP_PASS, expect);
        left(
            &mut program,
            "the rest",
            &tiny[2],
            XDP_PASS,
            "pass_fragment",
        );
        // UDP's header fits into eight bytes.
        let udp = cut(&packet(v4, L4::Udp, 9, 100), ID, 8).map_frames();
        for part in udp {
            assert_eq!(program.run(&part).0, XDP_TX);
        }
        // The flags of a served flow's first fragment, written over.
        let parts = cut(&packet(v4, L4::Ack, 9, 100), ID, 40).map_frames();
        assert_eq!(program.run(&parts[0]).0, XDP_TX);
        if v4 {
            left(
                &mut program,
                "written over",
                &tiny[1],
                XDP_PASS,
                "pass_malformed",
            );
        }
    }
    let mut program = l2(false);
    let header = packet(false, L4::Udp, 9, 100).ip()[..40].to_vec();
    let mut options = header.clone();
    options[6] = 60;
    // Destination options that go on where the fragment ends.
    let part = [17, 4, 1, 12, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    let ip = piece(&options, ID, 0, true, &part);
    left(
        &mut program,
        "half a chain",
        &frame(&ip),
        XDP_PASS,
        "pass_malformed",
    );
}

#[test]
fn destination_options_behind_a_fragment_header_are_walked_over() {
    let mut program = l2(false);
    let whole = packet(false, L4::Udp, 9, 2000).ip();
    let content = [&[17, 0, 1, 4, 0, 0, 0, 0], &whole[40..]].concat();
    let mut header = whole[..40].to_vec();
    header[6] = 60;
    let (_, sent) = program.run(&packet(false, L4::Udp, 9, 10).frame(None));
    for (offset, part) in [(0, &content[..1200]), (1200, &content[1200..])] {
        let ip = piece(&header, ID, offset, offset == 0, part);
        let (verdict, left) = program.run(&frame(&ip));
        let to = ethernet(OWN, mac(backend(&sent)), None, &ip);
        assert_eq!((verdict, left), (XDP_TX, to));
    }
}

/// RFC 6946: a fragment header around a whole datagram says nothing.
#[test]
fn an_atomic_fragment_is_a_whole_packet() {
    for (forward, outer_v4) in [(Forward::L2, false), (GUE, false), (Forward::Ipip, true)] {
        let how = How::new(forward, outer_v4);
        let mut program = program(false, &how);
        for port in 1..20 {
            let datagram = packet(false, L4::Udp, port, 100);
            let (_, sent) = program.run(&datagram.frame(None));
            let whole = datagram.ip();
            let ip = piece(&whole[..40], ID, 0, false, &whole[40..]);
            let before = program.traces();
            let (verdict, left) = program.run(&frame(&ip));
            let counted = program.traces().since(&before);
            assert_eq!((verdict, backend(&left)), (XDP_TX, backend(&sent)));
            assert!(!counted.contains_key("fragment"), "{counted:?}");
            let entropy = if forward == Forward::L2 {
                Entropy::default()
            } else {
                Entropy::of(&sent, false, outer_v4, forward == GUE)
            };
            let part = Piece { offset: 0, ip };
            assert_eq!(left, expected(&part, backend(&sent), &how, entropy));
        }
    }
}

#[test]
fn fragments_of_other_protocols_pass() {
    for v4 in [true, false] {
        let mut program = l2(v4);
        set(&mut program, 30_000, true);
        let at = if v4 { 9 } else { 6 };
        for protocol in [if v4 { 1 } else { 58 }, 47, 50] {
            let mut ip = packet(v4, L4::Udp, 9, 2000).ip();
            ip[at] = protocol;
            let header = if v4 { 20 } else { 40 };
            for (offset, more) in [(0, true), (1200, false)] {
                let part = &ip[header + offset..header + offset + 800];
                let ip = piece(&ip[..header], ID, offset, more, part);
                let reason = match (v4, protocol, more) {
                    (false, 47 | 50, true) => "pass_protocol",
                    _ => "pass_fragment",
                };
                let what = format!("v4 {v4}, protocol {protocol}, first {more}");
                left(&mut program, &what, &frame(&ip), XDP_PASS, reason);
            }
        }
    }
}

#[test]
fn too_long_a_first_one_is_told_of_and_leaves_no_trail_and_a_later_one_is_dropped() {
    for v4 in [true, false] {
        let mut program = program(v4, &How::new(Forward::Ipip, true));
        // 1484 and 1488 bytes with their headers, of which 1480 fit.
        let size = if v4 { 1464 } else { 1440 };
        let datagram = packet(v4, L4::Udp, 9, 3 * size - 8);
        let long = cut(&datagram, ID, size).map_frames();
        let before = program.traces();
        let (verdict, told) = program.run(&long[0]);
        let (at, kind) = if v4 { (34, 3) } else { (54, 2) };
        assert_eq!((verdict, told[at]), (XDP_TX, kind), "v4 {v4}");
        let counted = program.traces().since(&before);
        let counters = [("too_big", 1), ("service 1 dropped", 1)];
        assert_eq!(counted, grown(&counters), "v4 {v4}");
        left(
            &mut program,
            "no trail",
            &long[1],
            XDP_PASS,
            "pass_fragment",
        );
        let short = cut(&datagram, ID, 1200).map_frames();
        assert_eq!(program.run(&short[0]).0, XDP_TX);
        let before = program.traces();
        let (verdict, same) = program.run(&long[1]);
        assert_eq!((verdict, &same), (XDP_DROP, &long[1]), "v4 {v4}");
        let counted = program.traces().since(&before);
        let counters = [
            ("fragment", 1),
            ("drop_too_long", 1),
            ("service 1 dropped", 1),
        ];
        assert_eq!(counted, grown(&counters), "v4 {v4}");
    }
}

/// A VM's own datagrams may be fragments too: what a router says of them must reach it.
#[test]
fn an_error_about_a_vms_first_fragment_reaches_it() {
    for v4 in [true, false] {
        let mut program = l2(v4);
        let client = packet(v4, L4::Udp, 9, 10);
        let (_, sent) = program.run(&client.frame(None));
        let answer = Packet {
            source: client.destination,
            destination: client.source,
            ports: (80, 9),
            ..packet(v4, L4::Udp, 9, 2000)
        };
        let parts = cut(&answer, ID, 1400);
        for (part, ours) in parts.iter().zip([true, false]) {
            let mut error = Vec::new();
            let quoted = &part.ip[..500];
            match client.destination {
                Address::V4(vip) => {
                    let kind = icmpv4::DestUnreachableHeader::Host;
                    PacketBuilder::ipv4([198, 19, 7, 7], vip, 60)
                        .icmpv4(Icmpv4Type::DestinationUnreachable(kind))
                        .write(&mut error, quoted)
                }
                Address::V6(vip) => PacketBuilder::ipv6([0x20; 16], vip, 60)
                    .icmpv6(Icmpv6Type::PacketTooBig { mtu: 1300 })
                    .write(&mut error, quoted),
            }
            .unwrap();
            if ours {
                let (verdict, left) = program.run(&frame(&error));
                let to = ethernet(OWN, mac(backend(&sent)), None, &error);
                assert_eq!((verdict, left), (XDP_TX, to), "v4 {v4}");
            } else {
                let frame = frame(&error);
                left(&mut program, "a later one", &frame, XDP_PASS, "pass_icmp");
            }
        }
    }
}
