//! The guard of the loaded program: who is let in to a service, in both families.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::{Duration, Instant};

use etherparse::{IcmpEchoHeader, Icmpv4Type, PacketBuilder, icmpv4::DestUnreachableHeader};
use lb_common::guard::{GuardSettings, ListId};
use lb_common::rate::Rate;
use lb_common::row::Row;
use lb_common::service::Service;
use lb_common::settings::Settings;
use lb_tests::frame::{Address, L4, Packet, ethernet};
use lb_tests::pieces::cut;
use lb_tests::program::{How, OWN, Program, XDP_DROP, XDP_PASS, XDP_TX, grown, slot};
use lb_user::dataplane::{Dataplane as _, Lists as _};
use lb_user::engine::fill_list;
use lb_user::model::{Forward, Guard, Judged, L4Protocol, Prefix, Prefixes};

const VIP4: IpAddr = IpAddr::V4(Ipv4Addr::new(198, 18, 9, 10));
const VIP6: IpAddr = IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 9, 0, 0, 0, 0, 0x10));

/// A service on a VIP of each family, with one backend and settled rows.
fn program() -> Program {
    let mut program = Program::default();
    for vip in [VIP4, VIP6] {
        program.service(vip, 80, L4Protocol::Tcp, &[Row::settled(slot(1))]);
    }
    program.backend(1, VIP4, &How::new(Forward::L2, true));
    program
}

fn list(texts: &[&str]) -> Prefixes {
    texts.iter().map(|text| text.parse().unwrap()).collect()
}

fn guard(allow: Option<&[&str]>, deny: Option<&[&str]>) -> Guard {
    Guard {
        allow: allow.map(list),
        deny: deny.map(list),
    }
}

/// Fills a guard's lists under serial numbers from `serial` on.
fn fill(program: &mut Program, guard: &Guard, serial: u32) -> [ListId; 2] {
    [true, false].map(|v4| fill_list(&mut program.kernel, guard, v4, serial).unwrap())
}

/// Puts lists in force: the global ones, and the services' own.
fn put(program: &mut Program, global: [ListId; 2], own: [ListId; 2]) {
    let [list_v4, list_v6] = global.map(ListId::get);
    let settings = GuardSettings { list_v4, list_v6 };
    program.kernel.set_guard(settings).unwrap();
    program.change_services(|service| {
        // The service of IPv4 was made first.
        let (global, own) = match service.slot {
            0 => (list_v4, own[0].get()),
            _ => (list_v6, own[1].get()),
        };
        service.guard_list = own;
        service.flags = if global | own == 0 { 0 } else { Service::LISTS };
    });
}

fn from(source: IpAddr, l4: L4) -> Packet {
    match source {
        IpAddr::V4(source) => Packet {
            source: Address::V4(source.octets()),
            ..Packet::v4(l4, 40_000)
        },
        IpAddr::V6(source) => Packet {
            source: Address::V6(source.octets()),
            ..Packet::v6(l4, 40_000)
        },
    }
}

/// Sends an opening packet; checks the frame and every counter. Returns why it was dropped, if it was.
#[track_caller]
fn send(program: &mut Program, frame: &[u8], service: u32) -> Option<&'static str> {
    let before = program.traces();
    let explained = program.explain(frame);
    assert_eq!(program.traces(), before, "an explanation leaves no trace");
    let (verdict, sent) = program.run(frame);
    assert_eq!((explained.verdict, &explained.frame), (verdict, &sent));
    let found = program.traces().since(&before);
    if verdict == XDP_TX {
        assert_eq!(sent[14..], frame[14..], "only the Ethernet header is new");
        let bytes = frame.len() as u64;
        let counters = [
            (format!("service {service} packets"), 1),
            (format!("service {service} bytes"), bytes),
            (format!("service {service} new flows"), 1),
            ("backend 1 packets".to_owned(), 1),
            ("backend 1 bytes".to_owned(), bytes),
            ("backend 1 new flows".to_owned(), 1),
        ];
        let counters: Vec<(&str, u64)> = counters.iter().map(|(n, c)| (n.as_str(), *c)).collect();
        assert_eq!(found, grown(&counters));
        return None;
    }
    assert_eq!((verdict, sent.as_slice()), (XDP_DROP, frame));
    let reasons = ["drop_denied", "drop_not_allowed"];
    let reason = *reasons
        .iter()
        .find(|r| found.contains_key(**r))
        .expect("a reason");
    let dropped = format!("service {service} dropped");
    assert_eq!(found, grown(&[(reason, 1), (&dropped, 1)]));
    Some(reason)
}

#[test]
fn who_is_let_in_as_a_table() {
    let (denied, not_allowed) = (Some("drop_denied"), Some("drop_not_allowed"));
    let (c4, c6) = ("198.19.0.1", "2001:db8:5::1");
    let deny = |texts| guard(None, Some(texts));
    let none = Guard::default();
    // What it shows, the global lists, the service's, the source, what becomes of its packet.
    for (name, global, own, source, want) in [
        ("no list", &none, &none, c4, None),
        ("the address", &none, &deny(&["198.19.0.1"]), c4, denied),
        ("its neighbour", &none, &deny(&["198.19.0.2"]), c4, None),
        ("its network", &none, &deny(&["198.19.0.0/24"]), c4, denied),
        ("half of it", &none, &deny(&["198.19.0.128/25"]), c4, None),
        ("a longer one", &none, &deny(&["198.19.0.0/21"]), c4, denied),
        ("a larger one", &none, &deny(&["198.0.0.0/9"]), c4, denied),
        ("a huge one", &none, &deny(&["128.0.0.0/1"]), c4, denied),
        ("the other half", &none, &deny(&["0.0.0.0/1"]), c4, None),
        ("everybody", &none, &deny(&["0.0.0.0/0"]), c4, denied),
        (
            "by the global list",
            &deny(&["198.19.0.0/24"]),
            &none,
            c4,
            denied,
        ),
        (
            "allowed by the service, denied to all",
            &deny(&["198.19.0.0/24"]),
            &guard(Some(&["198.19.0.1"]), None),
            c4,
            denied,
        ),
        (
            "allowed",
            &none,
            &guard(Some(&["198.19.0.0/24"]), None),
            c4,
            None,
        ),
        (
            "others",
            &none,
            &guard(Some(&["198.19.1.0/24"]), None),
            c4,
            not_allowed,
        ),
        (
            "a near one",
            &none,
            &guard(Some(&["198.19.0.2"]), None),
            c4,
            not_allowed,
        ),
        (
            "the longer one allows",
            &none,
            &guard(Some(&["198.19.0.1"]), Some(&["198.19.0.0/24"])),
            c4,
            None,
        ),
        (
            "the longer one denies",
            &none,
            &guard(Some(&["198.19.0.0/24"]), Some(&["198.19.0.1"])),
            c4,
            denied,
        ),
        (
            "deny wins a tie",
            &none,
            &guard(Some(&["198.19.0.0/24"]), Some(&["198.19.0.0/24"])),
            c4,
            denied,
        ),
        (
            "an allow list of the other family",
            &guard(Some(&["::/0"]), None),
            &none,
            c4,
            not_allowed,
        ),
        (
            "a deny list of the other family",
            &deny(&["::/0"]),
            &none,
            c4,
            None,
        ),
        ("the address", &none, &deny(&["2001:db8:5::1"]), c6, denied),
        ("its neighbour", &none, &deny(&["2001:db8:5::2"]), c6, None),
        (
            "its network",
            &none,
            &deny(&["2001:db8:5::/64"]),
            c6,
            denied,
        ),
        ("a longer one", &none, &deny(&["2001:db8::/44"]), c6, denied),
        ("a larger one", &none, &deny(&["2001:db8::/33"]), c6, denied),
        ("a large one", &none, &deny(&["2001:c00::/22"]), c6, denied),
        ("a huge one", &none, &deny(&["2000::/3"]), c6, denied),
        (
            "by the global list",
            &deny(&["2001:db8:5::/48"]),
            &none,
            c6,
            denied,
        ),
        (
            "allowed",
            &none,
            &guard(Some(&["2001:db8:5::1"]), None),
            c6,
            None,
        ),
        (
            "others",
            &none,
            &guard(Some(&["2001:db8:6::/48"]), None),
            c6,
            not_allowed,
        ),
        (
            "allowed by both",
            &guard(Some(&["2001:db8::/32"]), None),
            &guard(Some(&["2001:db8:5::/48"]), None),
            c6,
            None,
        ),
        (
            "allowed by one",
            &guard(Some(&["2001:db8::/32"]), None),
            &guard(Some(&["2001:db8:6::/48"]), None),
            c6,
            not_allowed,
        ),
    ] {
        let mut program = program();
        let global = fill(&mut program, global, 1);
        let own = fill(&mut program, own, 2);
        put(&mut program, global, own);
        let frame = from(source.parse().unwrap(), L4::Syn).frame(None);
        let service = u32::from(source.contains(':'));
        let found = send(&mut program, &frame, service);
        assert_eq!(found, want, "{name}: {source}");
        assert!(program.traces().flows.is_empty());
    }
}

#[test]
fn what_is_not_for_the_service_passes_whoever_sends_it() {
    let mut program = program();
    let own = fill(&mut program, &guard(None, Some(&["0.0.0.0/0"])), 1);
    put(&mut program, [ListId::NONE; 2], own);
    let other = Packet {
        destination: Address::V4([198, 18, 9, 11]),
        ..Packet::v4(L4::Syn, 1)
    };
    let port = Packet {
        ports: (1, 81),
        ..Packet::v4(L4::Syn, 1)
    };
    let protocol = Packet::v4(L4::Udp, 1);
    for packet in [other, port, protocol] {
        let before = program.traces();
        assert_eq!(program.run(&packet.frame(None)).0, XDP_PASS);
        let found = program.traces().since(&before);
        assert_eq!(found, grown(&[("pass_no_service", 1)]));
    }
}

/// What answers pings, and follows fragments for so many jiffies.
fn set(program: &mut Program, fragment_jiffies: u32) {
    let settings = Settings {
        echo: 1,
        echo_rate: Rate::per_second(1_000_000),
        fragment_jiffies,
        drop_unknown_fragments: 1,
        ..Settings::default()
    };
    program.kernel.set_settings(&settings).unwrap();
}

#[test]
fn later_fragments_follow_a_first_one_that_was_let_in_and_no_other() {
    let deny = guard(None, Some(&["198.19.0.0/24", "2001:db8:5::/48"]));
    for source in ["198.19.0.1", "2001:db8:5::1"] {
        let mut program = program();
        set(&mut program, 100_000);
        let own = fill(&mut program, &deny, 1);
        let packet = Packet {
            payload: vec![7; 96],
            ..from(source.parse().unwrap(), L4::Syn)
        };
        let piece = |id: u32, number: usize| {
            let piece = &cut(&packet, id, 64)[number];
            ethernet([2, 0, 0, 0, 9, 9], OWN, None, &piece.ip)
        };
        put(&mut program, [ListId::NONE; 2], own);
        assert_eq!(program.run(&piece(1, 0)).0, XDP_DROP, "{source}");
        let before = program.traces();
        assert_eq!(program.run(&piece(1, 1)).0, XDP_DROP, "{source}");
        let found = program.traces().since(&before);
        assert_eq!(found, grown(&[("drop_fragment", 1)]), "it has none");

        put(&mut program, [ListId::NONE; 2], [ListId::NONE; 2]);
        assert_eq!(program.run(&piece(2, 0)).0, XDP_TX, "{source}");
        put(&mut program, [ListId::NONE; 2], own);
        assert_eq!(program.run(&piece(2, 1)).0, XDP_TX, "{source}");
    }
}

#[test]
fn pings_are_answered_whoever_sends_them() {
    let mut program = program();
    set(&mut program, 0);
    let everybody = fill(&mut program, &guard(None, Some(&["0.0.0.0/0"])), 1);
    put(&mut program, everybody, everybody);
    let mut ip = Vec::new();
    PacketBuilder::ipv4([198, 19, 0, 1], [198, 18, 9, 10], 60)
        .icmpv4(Icmpv4Type::EchoRequest(IcmpEchoHeader { id: 7, seq: 1 }))
        .write(&mut ip, b"ping")
        .unwrap();
    let before = program.traces();
    let frame = ethernet([2, 0, 0, 0, 9, 9], OWN, None, &ip);
    assert_eq!(program.run(&frame).0, XDP_TX);
    assert_eq!(program.traces().since(&before), grown(&[("echo", 1)]));
}

#[test]
fn without_the_flag_no_list_is_looked_at() {
    let mut program = program();
    let own = fill(&mut program, &guard(None, Some(&["0.0.0.0/0"])), 1);
    put(&mut program, own, own);
    program.change_services(|service| service.flags = 0);
    let frame = from("198.19.0.1".parse().unwrap(), L4::Syn).frame(None);
    assert_eq!(send(&mut program, &frame, 0), None);
}

#[test]
fn an_icmp_error_is_judged_by_the_client_whose_flow_it_is_about() {
    let mut program = program();
    // Denied: the router that says something, and one of two clients.
    let lists = guard(None, Some(&["198.19.7.0/24", "198.19.0.2"]));
    let own = fill(&mut program, &lists, 1);
    put(&mut program, [ListId::NONE; 2], own);
    for (client, want) in [
        ([198, 19, 0, 1], None),
        ([198, 19, 0, 2], Some("drop_denied")),
    ] {
        let answer = Packet {
            source: Address::V4([198, 18, 9, 10]),
            destination: Address::V4(client),
            ports: (80, 40_000),
            ..Packet::v4(L4::Ack, 1)
        };
        let too_big = DestUnreachableHeader::FragmentationNeeded { next_hop_mtu: 1400 };
        let mut error = Vec::new();
        PacketBuilder::ipv4([198, 19, 7, 7], [198, 18, 9, 10], 60)
            .icmpv4(Icmpv4Type::DestinationUnreachable(too_big))
            .write(&mut error, &answer.ip())
            .unwrap();
        let frame = ethernet([2; 6], [2, 0, 0, 0, 0, 0xee], None, &error);
        let before = program.traces();
        let (verdict, _) = program.run(&frame);
        let found = program.traces().since(&before);
        assert_eq!(found["icmp_error"], 1);
        assert_eq!(verdict, if want.is_some() { XDP_DROP } else { XDP_TX });
        assert_eq!(found.contains_key("drop_denied"), want.is_some());
    }
}

/// Numbers that look random and are the same every time.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ z >> 31
    }

    /// An address of a small part of the world, so that prefixes contain one another.
    fn address(&mut self, v4: bool) -> IpAddr {
        if v4 {
            let bits = 0xc612_0000 | self.next() as u32 & 0x0001_3f0f;
            Ipv4Addr::from_bits(bits).into()
        } else {
            let high = 0x2001_0db8_0000_0000 | self.next() & 0x3f_0f07;
            let low = u128::from(self.next() & 0x8000_0000_0000_0003);
            Ipv6Addr::from_bits(u128::from(high) << 64 | low).into()
        }
    }

    fn prefixes(&mut self, count: u64, v4: bool) -> Prefixes {
        let max = if v4 { 33 } else { 129 };
        (0..count)
            .map(|_| {
                // Half of them long: short ones would hide the rest.
                let len = (self.next() % max).max(self.next() % max) as u8;
                Prefix::of(self.address(v4), len).unwrap()
            })
            .collect()
    }
}

#[test]
fn random_lists_judge_as_the_rule_says() {
    let mut random = Random(7);
    for round in 0..12 {
        for v4 in [true, false] {
            let mut program = program();
            let mut guards = [(); 2].map(|()| {
                let count = random.next() % 60;
                Guard {
                    allow: (!random.next().is_multiple_of(3)).then(|| random.prefixes(count, v4)),
                    deny: Some(random.prefixes(count, v4)),
                }
            });
            if round % 3 == 0 {
                guards[0] = Guard::default();
            }
            let global = fill(&mut program, &guards[0], 1);
            let own = fill(&mut program, &guards[1], 2);
            put(&mut program, global, own);
            for _ in 0..150 {
                let source = random.address(v4);
                let judged = guards.each_ref().map(|guard| guard.judge(source));
                let want = judged.iter().find_map(|judged| match judged {
                    Judged::LetIn(_) => None,
                    Judged::Denied(_) => Some("drop_denied"),
                    Judged::NotAllowed => Some("drop_not_allowed"),
                });
                let before = program.traces().counters;
                let (verdict, _) = program.run(&from(source, L4::Syn).frame(None));
                let after = program.traces().counters;
                assert_eq!(verdict == XDP_DROP, want.is_some(), "{source} {guards:?}");
                if let Some(want) = want {
                    let count = before.get(want).copied().unwrap_or(0) + 1;
                    assert_eq!(after.get(want), Some(&count), "{source} {guards:?}");
                }
            }
        }
    }
}

#[test]
fn a_hundred_thousand_prefixes_of_each_family_are_filled_at_once_and_found() {
    let mut random = Random(1);
    let mut prefixes = Vec::new();
    for number in 0..100_000_u32 {
        let v4 = number.wrapping_mul(0x9e37_79b1) & 0x7fff_ffff;
        prefixes.push(Prefix::of(Ipv4Addr::from_bits(v4).into(), 32 - (number % 9) as u8).unwrap());
        let v6 = u128::from(0x2001_0db8_0000_0000 | u64::from(number)) << 64;
        prefixes.push(Prefix::of(Ipv6Addr::from_bits(v6).into(), 64).unwrap());
    }
    let guard = Guard {
        deny: Some(prefixes.iter().copied().collect()),
        ..Guard::default()
    };
    let mut program = program();
    let start = Instant::now();
    let own = fill(&mut program, &guard, 1);
    // It takes a fifth of a second; others may have the processor.
    assert!(
        start.elapsed() < Duration::from_secs(10),
        "{:?}",
        start.elapsed()
    );
    put(&mut program, [ListId::NONE; 2], own);
    for _ in 0..500 {
        let listed = prefixes[random.next() as usize % prefixes.len()].address();
        let (verdict, _) = program.run(&from(listed, L4::Syn).frame(None));
        assert_eq!(verdict, XDP_DROP, "{listed}");
        let v4 = Ipv4Addr::from_bits(random.next() as u32);
        let v6 = Ipv6Addr::from_bits(u128::from(0x2001_0db8_0000_0000 | random.next() >> 46) << 64);
        for source in [IpAddr::from(v4), IpAddr::from(v6)] {
            let (verdict, _) = program.run(&from(source, L4::Syn).frame(None));
            let denied = matches!(guard.judge(source), Judged::Denied(_));
            assert_eq!(verdict == XDP_DROP, denied, "{source}");
        }
    }
}
