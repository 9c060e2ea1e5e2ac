//! What passes: untouched, under the right reason, and nothing else counted.

use std::net::IpAddr;

use lb_common::row::Row;
use lb_tests::frame::{Address, L4, Packet};
use lb_tests::program::{How, Program, XDP_PASS, XDP_TX, grown, mac, slot};
use lb_user::model::{Forward, L4Protocol};

fn vip(packet: &Packet) -> IpAddr {
    match packet.destination {
        Address::V4(address) => address.into(),
        Address::V6(address) => address.into(),
    }
}

/// A program that serves TCP and UDP on port 80 of both families' VIPs.
fn program() -> Program {
    let mut program = Program::default();
    for packet in [Packet::v4(L4::Ack, 1), Packet::v6(L4::Ack, 1)] {
        let number = if vip(&packet).is_ipv4() { 1 } else { 2 };
        for protocol in [L4Protocol::Tcp, L4Protocol::Udp] {
            program.service(vip(&packet), 80, protocol, &[Row::settled(slot(number))]);
        }
        let how = How::new(Forward::L2, vip(&packet).is_ipv4());
        program.backend(number, vip(&packet), &how);
    }
    program
}

#[track_caller]
fn passes(program: &mut Program, frame: &[u8], reason: &str) {
    let before = program.traces();
    let (verdict, after) = program.run(frame);
    assert_eq!((verdict, after.as_slice()), (XDP_PASS, frame), "{reason}");
    assert_eq!(program.traces().since(&before), grown(&[(reason, 1)]));
}

fn changed(packet: &Packet, change: impl Fn(&mut Vec<u8>)) -> Vec<u8> {
    let mut frame = packet.frame(None);
    change(&mut frame);
    frame
}

#[test]
fn what_is_not_ours_passes_under_its_reason() {
    let mut program = program();
    let (v4, v6) = (Packet::v4(L4::Syn, 1), Packet::v6(L4::Syn, 1));
    let cases: [(Vec<u8>, &str); 27] = [
        (
            changed(&v4, |f| f[12..14].copy_from_slice(&[8, 6])),
            "pass_not_ip",
        ),
        (
            changed(&v4, |f| f[12..14].copy_from_slice(&[0x88, 0xcc])),
            "pass_not_ip",
        ),
        // Three tags, a kind of tag that nobody standardised, ARP behind two.
        (
            changed(&v4, |f| {
                drop(f.splice(12..12, [0x88, 0xa8, 0, 1, 0x81, 0, 0, 7, 0x81, 0, 0, 8]))
            }),
            "pass_not_ip",
        ),
        (
            changed(&v4, |f| drop(f.splice(12..12, [0x91, 0, 0, 1]))),
            "pass_not_ip",
        ),
        (
            changed(&v4, |f| {
                f[12..14].copy_from_slice(&[8, 6]);
                drop(f.splice(12..12, [0x88, 0xa8, 0, 1, 0x81, 0, 0, 7]));
            }),
            "pass_not_ip",
        ),
        (changed(&v4, |f| f[14] = 0x55), "pass_malformed"),
        (changed(&v4, |f| f[14] = 0x44), "pass_malformed"),
        (changed(&v6, |f| f[14] = 0x40), "pass_malformed"),
        // Longer than the frame, and shorter than its own header.
        (
            changed(&v4, |f| f[16..18].copy_from_slice(&[1, 0])),
            "pass_malformed",
        ),
        (
            changed(&v4, |f| f[16..18].copy_from_slice(&[0, 19])),
            "pass_malformed",
        ),
        (
            changed(&v6, |f| f[18..20].copy_from_slice(&[1, 0])),
            "pass_malformed",
        ),
        // First, middle and last fragment; the first one is served.
        (changed(&v4, |f| f[20] = 0x20), ""),
        (
            changed(&v4, |f| f[20..22].copy_from_slice(&[0x20, 9])),
            "pass_fragment",
        ),
        (
            changed(&v4, |f| f[20..22].copy_from_slice(&[0, 9])),
            "pass_fragment",
        ),
        (changed(&v6, |f| f[20] = 44), "pass_fragment"),
        (changed(&v4, |f| f[23] = 1), "pass_icmp"),
        (changed(&v6, |f| f[20] = 58), "pass_icmp"),
        (changed(&v4, |f| f[23] = 47), "pass_protocol"),
        // The other family's numbers of fragments and ICMP.
        (changed(&v4, |f| f[23] = 44), "pass_protocol"),
        (changed(&v4, |f| f[23] = 58), "pass_protocol"),
        (changed(&v6, |f| f[20] = 1), "pass_protocol"),
        (changed(&v6, |f| f[20] = 132), "pass_protocol"),
        (changed(&v4, |f| f[33] = 11), "pass_no_service"),
        (
            changed(&v4, |f| f[36..38].copy_from_slice(&[0, 81])),
            "pass_no_service",
        ),
        (changed(&v6, |f| f[53] = 0x11), "pass_no_service"),
        (
            changed(&v6, |f| f[56..58].copy_from_slice(&[0, 81])),
            "pass_no_service",
        ),
        // The address as a source is not the address as a destination.
        (changed(&v4, |f| f.copy_within(30..34, 26)), ""),
    ];
    // Two tags, and the end.
    let cut = changed(&v4, |f| {
        f.truncate(12);
        f.extend([0x88, 0xa8, 0, 1, 0x81, 0, 0, 7]);
    });
    passes(&mut program, &cut, "pass_malformed");
    for (frame, reason) in &cases {
        let mut tagged = frame.clone();
        drop(tagged.splice(12..12, [0x81, 0, 0, 5]));
        for frame in [frame, &tagged] {
            if reason.is_empty() {
                assert_eq!(program.run(frame).0, XDP_TX);
            } else {
                passes(&mut program, frame, reason);
            }
        }
    }
}

#[test]
fn three_extension_headers_are_walked_over_and_what_else_they_are_passes() {
    let mut program = program();
    let body = || vec![1, 4, 0, 0, 0, 0];
    let long = || [&[1, 20], [0; 20].as_slice()].concat();
    let with = |l4, extensions: &[(u8, Vec<u8>)]| Packet {
        extensions: extensions.to_vec(),
        ..Packet::v6(l4, 1)
    };
    let (hop, to, routing, fragment) = (0, 60, 43, 44);
    let at = 14 + 40;
    for l4 in [L4::Syn, L4::Udp] {
        let cases: [(Packet, &str); 13] = [
            (with(l4, &[(hop, body())]), ""),
            (with(l4, &[(to, body())]), ""),
            (with(l4, &[(hop, long()), (to, body())]), ""),
            (with(l4, &[(hop, body()), (to, long()), (to, body())]), ""),
            (with(l4, &[(to, long()), (to, long()), (to, long())]), ""),
            // A fourth.
            (
                with(
                    l4,
                    &[(hop, body()), (to, body()), (to, body()), (to, body())],
                ),
                "pass_protocol",
            ),
            (
                with(
                    l4,
                    &[(hop, body()), (hop, body()), (hop, body()), (hop, body())],
                ),
                "pass_protocol",
            ),
            // Others, alone and behind those that we know.
            (with(l4, &[(routing, body())]), "pass_protocol"),
            (
                with(l4, &[(hop, body()), (routing, body())]),
                "pass_protocol",
            ),
            (with(l4, &[(fragment, body())]), "pass_fragment"),
            (
                with(l4, &[(hop, body()), (fragment, body())]),
                "pass_fragment",
            ),
            (
                with(
                    l4,
                    &[
                        (hop, body()),
                        (to, body()),
                        (to, body()),
                        (fragment, body()),
                    ],
                ),
                "pass_fragment",
            ),
            (with(l4, &[(hop, body()), (58, body())]), "pass_icmp"),
        ];
        for vlan in [None, Some(5)] {
            for (packet, reason) in &cases {
                let frame = packet.frame(vlan);
                if reason.is_empty() {
                    let (verdict, sent) = program.run(&frame);
                    assert_eq!((verdict, &sent[..6]), (XDP_TX, mac(2).as_slice()));
                } else {
                    passes(&mut program, &frame, reason);
                }
            }
        }
        // Longer than the payload: beyond the frame, and within it, where padding is read.
        for (count, padding) in [(1, 0), (2, 0), (255, 0), (8, 400), (255, 4000)] {
            for before in [&[][..], &[(hop, body())], &[(hop, body()), (to, body())]] {
                let last = at + 8 * before.len();
                let mut frame = with(l4, &[before, &[(to, body())]].concat()).frame(None);
                let payload = frame.len() - last;
                frame[last + 1] = count;
                let header = 8 * (usize::from(count) + 1);
                if header <= payload {
                    continue;
                }
                // What lies where the transport's header would.
                frame.resize(frame.len() + padding, 0);
                if let Some(l4) = frame.get_mut(last + header..).filter(|l4| l4.len() > 20) {
                    l4[..4].copy_from_slice(&[0, 1, 0, 80]);
                }
                passes(&mut program, &frame, "pass_malformed");
            }
        }
    }
}

/// The transport's header must be in the IP packet, not only in the frame.
#[test]
fn a_transport_header_that_reaches_into_the_padding_passes() {
    let mut program = program();
    for (packet, header) in [
        (Packet::v4(L4::Syn, 1), 20),
        (Packet::v4(L4::Udp, 1), 8),
        (Packet::v6(L4::Syn, 1), 20),
        (Packet::v6(L4::Udp, 1), 8),
    ] {
        let v4 = vip(&packet).is_ipv4();
        for vlan in [None, Some(5)] {
            for len in [0, 1, header - 1, header] {
                let mut frame = packet.frame(vlan);
                let l3 = if vlan.is_some() { 18 } else { 14 };
                let (at, total) = if v4 {
                    (l3 + 2, 20 + len)
                } else {
                    (l3 + 4, len)
                };
                frame[at..at + 2].copy_from_slice(&(total as u16).to_be_bytes());
                if len == header {
                    assert_eq!(program.run(&frame).0, XDP_TX);
                } else {
                    passes(&mut program, &frame, "pass_malformed");
                }
            }
        }
    }
}

#[test]
fn a_frame_cut_anywhere_passes_as_it_is_or_is_whole() {
    let mut program = program();
    let option4 = Packet {
        options: vec![0x94, 4, 0, 0],
        ..Packet::v4(L4::Syn, 1)
    };
    let option6 = Packet {
        extensions: vec![(0, vec![5, 2, 0, 0, 1, 0]), (60, vec![1; 14])],
        ..Packet::v6(L4::Syn, 1)
    };
    for packet in [
        Packet::v4(L4::Ack, 1),
        Packet::v6(L4::Ack, 1),
        Packet::v4(L4::Udp, 1),
        option4,
        option6,
    ] {
        for vlan in [None, Some(5)] {
            let whole = packet.frame(vlan);
            assert_eq!(program.run(&whole).0, XDP_TX);
            // The kernel runs no test on less than an Ethernet header.
            for len in 14..whole.len() {
                let before = program.traces();
                let (verdict, after) = program.run(&whole[..len]);
                assert_eq!(
                    (verdict, after.as_slice()),
                    (XDP_PASS, &whole[..len]),
                    "{len} bytes"
                );
                let since = program.traces().since(&before);
                assert_eq!(since, grown(&[("pass_malformed", 1)]), "{len} bytes");
            }
        }
    }
}

#[test]
fn an_exact_port_wins_over_any_port() {
    let mut program = Program::default();
    let packet = Packet::v4(L4::Ack, 1);
    for number in [1, 2] {
        program.backend(number, vip(&packet), &How::new(Forward::L2, true));
    }
    program.service(vip(&packet), 0, L4Protocol::Tcp, &[Row::settled(slot(1))]);
    let to = |program: &mut Program, port: u16| {
        let packet = Packet {
            ports: (9, port),
            ..packet.clone()
        };
        program.run(&packet.frame(None))
    };
    for port in [1, 80, 443, 65_535] {
        let (verdict, sent) = to(&mut program, port);
        assert_eq!((verdict, &sent[..6]), (XDP_TX, mac(1).as_slice()));
    }
    program.service(vip(&packet), 443, L4Protocol::Tcp, &[Row::settled(slot(2))]);
    assert_eq!(&to(&mut program, 443).1[..6], mac(2));
    assert_eq!(&to(&mut program, 80).1[..6], mac(1));
    let udp = Packet {
        l4: L4::Udp,
        ..packet
    };
    passes(&mut program, &udp.frame(None), "pass_no_service");
}

/// Damages frames at random (the same way every time): whatever comes, the program sends whole
/// packets of its services and passes all else untouched.
#[test]
fn damaged_frames_are_never_dropped_nor_changed_when_they_pass() {
    let mut program = program();
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut random = |below: usize| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state % below as u64) as usize
    };
    let frames = [
        Packet::v4(L4::Syn, 1).frame(None),
        Packet::v6(L4::Udp, 1).frame(Some(9)),
        Packet {
            extensions: vec![(0, vec![5, 2, 0, 0, 1, 0])],
            ..Packet::v6(L4::Ack, 1)
        }
        .frame(None),
    ];
    let mut verdicts = [0; 5];
    for round in 0..30_000 {
        let mut frame = frames[round % frames.len()].clone();
        for _ in 0..=random(4) {
            let at = 12 + random(frame.len() - 12);
            frame[at] = random(256) as u8;
        }
        if random(3) == 0 {
            frame.truncate(14 + random(frame.len() - 13));
        }
        let (verdict, after) = program.run(&frame);
        assert!(
            matches!(verdict, XDP_PASS | XDP_TX),
            "verdict {verdict} for {frame:02x?}"
        );
        if verdict == XDP_PASS {
            assert_eq!(after, frame);
        }
        verdicts[verdict as usize] += 1;
    }
    assert!(
        verdicts[XDP_TX as usize] > 300,
        "some frames survive: {verdicts:?}"
    );
}
