//! Echo requests to a service's address are answered by the program; every other one passes.

use std::net::{IpAddr, Ipv6Addr};

use etherparse::{IcmpEchoHeader, Icmpv4Type, Icmpv6Type, PacketBuilder};
use lb_common::rate::Rate;
use lb_common::row::Row;
use lb_common::settings::Settings;
use lb_tests::frame::ethernet;
use lb_tests::program::{How, OWN, Program, XDP_DROP, XDP_PASS, XDP_TX, grown, slot};
use lb_user::dataplane::Dataplane as _;
use lb_user::model::{Forward, L4Protocol};

const ROUTER: [u8; 6] = [2, 0, 0, 0, 9, 9];
const CLIENT4: [u8; 4] = [198, 19, 0, 1];
const VIP4: [u8; 4] = [198, 18, 9, 10];
const CLIENT6: [u8; 16] = address6(5, 1);
const VIP6: [u8; 16] = address6(9, 0x10);
const ID: IcmpEchoHeader = IcmpEchoHeader { id: 77, seq: 3 };

const fn address6(c: u16, last: u16) -> [u8; 16] {
    Ipv6Addr::new(0x2001, 0xdb8, c, 0, 0, 0, 0, last).octets()
}

/// The IP packet with an echo request, or the answer to it.
fn echo4(from: [u8; 4], to: [u8; 4], hops: u8, kind: Icmpv4Type, payload: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    PacketBuilder::ipv4(from, to, hops)
        .icmpv4(kind)
        .write(&mut bytes, payload)
        .unwrap();
    bytes
}

fn echo6(from: [u8; 16], to: [u8; 16], hops: u8, kind: Icmpv6Type, payload: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    PacketBuilder::ipv6(from, to, hops)
        .icmpv6(kind)
        .write(&mut bytes, payload)
        .unwrap();
    bytes
}

fn request4(payload: &[u8]) -> Vec<u8> {
    echo4(CLIENT4, VIP4, 57, Icmpv4Type::EchoRequest(ID), payload)
}

fn request6(payload: &[u8]) -> Vec<u8> {
    echo6(CLIENT6, VIP6, 57, Icmpv6Type::EchoRequest(ID), payload)
}

/// A program with a service on both addresses that answers `rate` echo requests a second; 0 for none.
fn program(rate: u32) -> Program {
    let mut program = Program::default();
    for (number, vip) in [(1, IpAddr::from(VIP4)), (2, IpAddr::from(VIP6))] {
        program.service(vip, 80, L4Protocol::Tcp, &[Row::settled(slot(number))]);
        let how = How::new(Forward::L2, vip.is_ipv4());
        program.backend(number, vip, &how);
    }
    set_rate(&mut program, rate);
    program
}

fn set_rate(program: &mut Program, rate: u32) {
    let settings = Settings {
        echo: u32::from(rate > 0),
        echo_rate: Rate::per_second(rate),
        ..Settings::default()
    };
    program.kernel.set_settings(&settings).unwrap();
}

/// Without a limit that a test would meet.
const OFTEN: u32 = 1_000_000;

#[test]
fn a_request_comes_back_as_the_answer_that_a_host_would_give() {
    let mut program = program(OFTEN);
    for vlan in [None, Some(0x123)] {
        for len in [0, 1, 2, 31, 56, 999, 1400] {
            let payload: Vec<u8> = (0..len).map(|n| (n * 7) as u8).collect();
            let cases = [
                (
                    request4(&payload),
                    echo4(VIP4, CLIENT4, 64, Icmpv4Type::EchoReply(ID), &payload),
                ),
                (
                    request6(&payload),
                    echo6(VIP6, CLIENT6, 64, Icmpv6Type::EchoReply(ID), &payload),
                ),
            ];
            for (request, reply) in cases {
                let before = program.traces();
                let (verdict, sent) = program.run(&ethernet(ROUTER, OWN, vlan, &request));
                assert_eq!(verdict, XDP_TX, "{len} bytes, VLAN {vlan:?}");
                assert_eq!(
                    sent,
                    ethernet(OWN, ROUTER, vlan, &reply),
                    "{len} bytes, VLAN {vlan:?}"
                );
                let traces = program.traces();
                assert_eq!(traces.since(&before), grown(&[("echo", 1)]));
                assert_eq!(traces.flows, before.flows);
            }
        }
    }
}

/// What is special about a request stays as it is, and its checksums stay right.
#[test]
fn type_of_service_identification_and_every_checksum_survive() {
    let mut program = program(OFTEN);
    for seed in 0..2000_u32 {
        let word = seed.wrapping_mul(0x9e37_79b9);
        let payload = word.to_be_bytes();
        let mut request = request4(&payload);
        request[1] = word as u8;
        request[4..6].copy_from_slice(&(word as u16).to_be_bytes());
        request[6] = if seed % 2 == 0 { 0x40 } else { 0 };
        request[8] = (word >> 8) as u8;
        seal4(&mut request);
        let mut reply = echo4(VIP4, CLIENT4, 64, Icmpv4Type::EchoReply(ID), &payload);
        reply[1] = request[1];
        reply[4..8].copy_from_slice(&request[4..8]);
        seal4(&mut reply);
        let (_, sent) = program.run(&ethernet(ROUTER, OWN, None, &request));
        assert_eq!(sent, ethernet(OWN, ROUTER, None, &reply), "{word:#x}");

        let (_, sent) = program.run(&ethernet(ROUTER, OWN, None, &request6(&payload)));
        let reply = echo6(VIP6, CLIENT6, 64, Icmpv6Type::EchoReply(ID), &payload);
        assert_eq!(sent, ethernet(OWN, ROUTER, None, &reply), "{word:#x}");
    }
}

/// Sets an IPv4 header's checksum.
fn seal4(ip: &mut [u8]) {
    ip[10..12].fill(0);
    let header = etherparse::Ipv4Header::from_slice(ip).unwrap().0;
    ip[10..12].copy_from_slice(&header.calc_header_checksum().to_be_bytes());
}

#[test]
fn a_wrong_checksum_stays_wrong_for_the_client_to_see() {
    let mut program = program(OFTEN);
    let mut request = request4(b"abcd");
    request[22] ^= 0x55;
    let mut reply = echo4(VIP4, CLIENT4, 64, Icmpv4Type::EchoReply(ID), b"abcd");
    let (_, sent) = program.run(&ethernet(ROUTER, OWN, None, &request));
    assert_ne!(sent[36..38], reply[22..24]);
    reply[22..24].copy_from_slice(&sent[36..38]);
    assert_eq!(sent, ethernet(OWN, ROUTER, None, &reply));
}

#[test]
fn a_padded_frame_keeps_its_padding() {
    let mut program = program(OFTEN);
    let mut frame = ethernet(ROUTER, OWN, None, &request4(b"a"));
    frame.resize(60, 0xee);
    let (verdict, sent) = program.run(&frame);
    let mut expected = ethernet(
        OWN,
        ROUTER,
        None,
        &echo4(VIP4, CLIENT4, 64, Icmpv4Type::EchoReply(ID), b"a"),
    );
    expected.resize(60, 0xee);
    assert_eq!((verdict, sent), (XDP_TX, expected));
}

fn changed(ip: Vec<u8>, change: impl Fn(&mut [u8])) -> Vec<u8> {
    let mut ip = ip;
    change(&mut ip);
    if ip[0] == 0x45 && ip.len() >= 20 {
        seal4(&mut ip);
    }
    ip
}

#[test]
fn what_is_no_plain_request_of_one_host_to_one_of_ours_passes_untouched() {
    let mut program = program(OFTEN);
    let from4 = |from| echo4(from, VIP4, 57, Icmpv4Type::EchoRequest(ID), b"abcd");
    let from6 = |from| echo6(from, VIP6, 57, Icmpv6Type::EchoRequest(ID), b"abcd");
    let to4 = |to| echo4(CLIENT4, to, 57, Icmpv4Type::EchoRequest(ID), b"abcd");
    let to6 = |to| echo6(CLIENT6, to, 57, Icmpv6Type::EchoRequest(ID), b"abcd");
    let options4 = {
        let mut ip = request4(b"abcd");
        ip.splice(20..20, [1, 1, 1, 0]);
        ip[0] = 0x46;
        ip[3] += 4;
        ip
    };
    let options6 = {
        let mut ip = request6(b"abcd");
        ip.splice(40..40, [58, 0, 1, 4, 0, 0, 0, 0]);
        (ip[5], ip[6]) = (ip[5] + 8, 60);
        ip
    };
    let mut mapped = [0; 16];
    mapped[15] = 1;
    let cases: [(&str, Vec<u8>); 22] = [
        ("another address", to4([198, 18, 9, 11])),
        ("another address", to6(address6(9, 0x11))),
        ("the same last word", to6(address6(8, 0x10))),
        (
            "an answer",
            echo4(CLIENT4, VIP4, 57, Icmpv4Type::EchoReply(ID), b""),
        ),
        (
            "an answer",
            echo6(CLIENT6, VIP6, 57, Icmpv6Type::EchoReply(ID), b""),
        ),
        ("another code", changed(request4(b""), |ip| ip[21] = 1)),
        ("another code", changed(request6(b""), |ip| ip[41] = 1)),
        ("with options", options4),
        ("with an extension header", options6),
        ("from nobody", from4([0, 0, 0, 0])),
        ("from this network", from4([0, 1, 2, 3])),
        ("from loopback", from4([127, 0, 0, 1])),
        ("from a group", from4([224, 0, 0, 1])),
        ("from a reserved address", from4([240, 0, 0, 1])),
        ("from everybody", from4([255; 4])),
        ("from ourselves", from4(VIP4)),
        ("from nobody", from6([0; 16])),
        ("from loopback", from6(mapped)),
        ("from a group", from6(address6(5, 1).map(|_| 0xff))),
        ("from ourselves", from6(VIP6)),
        (
            "with the reserved flag",
            changed(request4(b""), |ip| ip[6] = 0x80),
        ),
        ("a timestamp", changed(request4(b""), |ip| ip[20] = 13)),
    ];
    for (what, ip) in cases {
        let frame = ethernet(ROUTER, OWN, None, &ip);
        passes(&mut program, what, &frame, "pass_icmp");
    }
    for (first, to) in [("to a group", [1, 0, 0x5e, 0, 0, 1]), ("to all", [0xff; 6])] {
        let frame = ethernet(ROUTER, to, None, &request4(b"abcd"));
        passes(&mut program, first, &frame, "pass_icmp");
    }
    let first = changed(request4(b"abcd"), |ip| ip[6] = 0x20);
    let frame = ethernet(ROUTER, OWN, None, &first);
    passes(&mut program, "a fragment", &frame, "pass_fragment");
    let frame = ethernet(ROUTER, OWN, None, &request4(b"abcd"));
    for len in [14 + 20 + 4, 14 + 20 + 8] {
        // The packet's length says more than is there.
        passes(&mut program, "cut", &frame[..len], "pass_malformed");
    }
    let short = changed(request4(b""), |ip| ip[3] = 24);
    let frame = ethernet(ROUTER, OWN, None, &short);
    passes(
        &mut program,
        "shorter than its header",
        &frame,
        "pass_malformed",
    );
}

#[track_caller]
fn passes(program: &mut Program, what: &str, frame: &[u8], reason: &str) {
    let before = program.traces();
    let (verdict, left) = program.run(frame);
    assert_eq!((verdict, left.as_slice()), (XDP_PASS, frame), "{what}");
    let counted = program.traces().since(&before);
    assert_eq!(counted, grown(&[(reason, 1)]), "{what}");
}

#[test]
fn echo_that_is_off_passes() {
    let mut program = program(0);
    for ip in [request4(b"abcd"), request6(b"abcd")] {
        let frame = ethernet(ROUTER, OWN, None, &ip);
        passes(&mut program, "off", &frame, "pass_icmp");
    }
    set_rate(&mut program, OFTEN);
    let frame = ethernet(ROUTER, OWN, None, &request4(b"abcd"));
    assert_eq!(program.run(&frame).0, XDP_TX, "on from now on");
}

#[test]
fn an_address_without_a_service_any_more_is_not_answered_for() {
    let mut program = program(OFTEN);
    program.kernel.remove_address(IpAddr::from(VIP4)).unwrap();
    let frame = ethernet(ROUTER, OWN, None, &request4(b"abcd"));
    passes(&mut program, "removed", &frame, "pass_icmp");
    let frame = ethernet(ROUTER, OWN, None, &request6(b"abcd"));
    assert_eq!(program.run(&frame).0, XDP_TX, "the other one is there");
}

/// A rate so low that no test runs long enough for a second burst. Test runs go over CPUs as the
/// scheduler likes: stay on one, since each has a limit of its own.
#[test]
fn over_the_rate_requests_are_dropped_and_counted_and_an_explanation_takes_nothing() {
    let cpu = nix::sched::sched_getcpu().unwrap();
    let mut cpus = nix::sched::CpuSet::new();
    cpus.set(cpu).unwrap();
    nix::sched::sched_setaffinity(nix::unistd::Pid::from_raw(0), &cpus).unwrap();
    let mut program = program(1);
    let frame = ethernet(ROUTER, OWN, None, &request4(b"abcd"));
    for _ in 0..3 {
        let before = program.traces();
        let explained = program.explain(&frame);
        assert_eq!(explained.verdict, XDP_TX);
        assert_eq!(program.traces(), before);
    }
    let started = std::time::Instant::now();
    let before = program.traces();
    assert_eq!(program.run(&frame).0, XDP_TX);
    for _ in 0..5 {
        let (verdict, left) = program.run(&frame);
        if started.elapsed().as_millis() < 900 {
            assert_eq!((verdict, left.as_slice()), (XDP_DROP, frame.as_slice()));
        }
    }
    let counted = program.traces().since(&before);
    assert_eq!(counted["echo"] + counted["drop_echo_rate"], 6);
    assert_eq!(program.explain(&frame).verdict, XDP_DROP);
    assert_eq!(program.traces().since(&before), counted);
    std::thread::sleep(std::time::Duration::from_millis(1100));
    assert_eq!(program.run(&frame).0, XDP_TX, "a second later");
}
