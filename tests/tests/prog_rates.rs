//! Rates: of sources, of services, of half-open entries.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use lb_common::bucket::{Rate, Rates};
use lb_common::flow::Table;
use lb_common::row::Row;
use lb_common::service::Service;
use lb_tests::frame::{Address, L4, Packet};
use lb_tests::program::{How, Program, XDP_DROP, XDP_TX, grown, slot};
use lb_tests::rows::Rows;
use lb_user::dataplane::Lists as _;
use lb_user::model::{Forward, L4Protocol};
use nix::sched::{CpuSet, sched_setaffinity};
use nix::unistd::Pid;

/// What may come at once. After that comes none within the time that a test takes.
const BURST: u64 = 20;

fn rate() -> Rate {
    slow(BURST as u32)
}

/// Returns a rate of one in 100,000 jiffies: minutes at the least.
fn slow(burst: u32) -> Rate {
    Rate::new(1, burst, 100_000)
}

/// Buckets are per CPU: stay on one.
fn pin() {
    let mut set = CpuSet::new();
    set.set(0).unwrap();
    sched_setaffinity(Pid::from_raw(0), &set).unwrap();
}

fn vip(v4: bool) -> IpAddr {
    if v4 {
        Ipv4Addr::new(198, 18, 9, 10).into()
    } else {
        Ipv6Addr::new(0x2001, 0xdb8, 9, 0, 0, 0, 0, 0x10).into()
    }
}

/// A service with these rates, beside one without: both on one VIP, with settled rows.
fn program(v4: bool, rates: &Rates, flags: u32) -> Program {
    let mut program = Program::default();
    for protocol in [L4Protocol::Tcp, L4Protocol::Udp] {
        program.service(vip(v4), 80, protocol, &[Row::settled(slot(1))]);
    }
    program.backend(1, vip(v4), &How::new(Forward::L2, v4));
    program.kernel.set_rates(0, rates).unwrap();
    program.change_services(|service| {
        if service.slot == 0 {
            service.flags = flags;
        }
    });
    program
}

/// The packet of a client: one of its number's /24 or /64.
fn packet(v4: bool, l4: L4, client: u16, host: u8, port: u16) -> Packet {
    let [high, low] = client.to_be_bytes();
    if v4 {
        Packet {
            source: Address::V4([198, high, low, host]),
            ..Packet::v4(l4, port)
        }
    } else {
        let source = Ipv6Addr::new(0x2001, 0xdb8, 0x77, client, 0, 0, 0, host.into());
        Packet {
            source: Address::V6(source.octets()),
            ..Packet::v6(l4, port)
        }
    }
}

/// Sends packets; checks verdicts and counters. Returns how many were let in.
#[track_caller]
fn send(program: &mut Program, packets: &[Packet], reason: &str) -> u64 {
    let before = program.traces();
    let (mut sent, mut dropped, mut opening, mut bytes) = (0, 0, 0, 0);
    for packet in packets {
        let frame = packet.frame(None);
        match program.run(&frame) {
            (XDP_TX, _) => {
                sent += 1;
                bytes += frame.len() as u64;
                opening += u64::from(packet.l4 == L4::Syn);
            }
            (verdict, after) => {
                assert_eq!((verdict, after), (XDP_DROP, frame));
                dropped += 1;
            }
        }
    }
    let service = u32::from(packets[0].l4.is_udp());
    let names =
        ["packets", "bytes", "new flows", "dropped"].map(|n| format!("service {service} {n}"));
    let [packets, of_bytes, flows, drops] = names.each_ref().map(String::as_str);
    let counters = [
        (packets, sent),
        (of_bytes, bytes),
        (flows, opening),
        (drops, dropped),
        (reason, dropped),
        ("backend 1 packets", sent),
        ("backend 1 bytes", bytes),
        ("backend 1 new flows", opening),
    ];
    assert_eq!(program.traces().since(&before), grown(&counters));
    sent
}

#[test]
fn each_rate_limits_what_it_says_and_nothing_else() {
    pin();
    let none = Rates::default();
    let (of_sources, of_service) = (Service::SOURCE_RATES, Service::RATES);
    // The rates, the packets that are limited, why, whether others of the source are too, and
    // whether another source is.
    for (name, rates, flags, l4, reason, others, all) in [
        (
            "packets of a source",
            Rates {
                source_packets: rate(),
                ..none
            },
            of_sources,
            L4::Ack,
            "drop_source_packets",
            true,
            false,
        ),
        (
            "flows of a source",
            Rates {
                source_new_flows: rate(),
                ..none
            },
            of_sources,
            L4::Syn,
            "drop_source_flows",
            false,
            false,
        ),
        (
            "packets of a service",
            Rates {
                packets: rate(),
                ..none
            },
            of_service,
            L4::Ack,
            "drop_packets",
            true,
            true,
        ),
        (
            "flows of a service",
            Rates {
                new_flows: rate(),
                ..none
            },
            of_service,
            L4::Syn,
            "drop_flows",
            false,
            true,
        ),
    ] {
        for v4 in [true, false] {
            let mut program = program(v4, &rates, flags);
            // Of all ports; and of IPv6 from all addresses of a /64.
            let host = |port: u16| if v4 { 7 } else { port as u8 };
            let flood = |client: u16, l4: L4, count: u16| -> Vec<Packet> {
                (0..count)
                    .map(|port| packet(v4, l4, client, host(port), port))
                    .collect()
            };
            let sent = send(&mut program, &flood(1, l4, 100), reason);
            assert_eq!(sent, BURST, "{name}, {v4}");
            let other = if l4 == L4::Syn { L4::Ack } else { L4::Syn };
            let sent = send(&mut program, &flood(1, other, 50), reason);
            assert_eq!(sent == 0, others, "{name}, {v4}: {sent}");
            let sent = send(&mut program, &flood(2, l4, 10), reason);
            assert_eq!(sent == 0, all, "{name}, {v4}: {sent}");
            let sent = send(&mut program, &flood(1, L4::Udp, 50), reason);
            assert_eq!(sent, 50, "{name}, {v4}: the other service has no rate");
            // An explanation takes nothing, and says the same.
            let last = packet(v4, l4, 1, 7, 9).frame(None);
            let before = program.traces();
            assert_eq!(program.explain(&last).verdict, XDP_DROP);
            assert_eq!(program.traces(), before);
        }
    }
}

#[test]
fn a_flooding_source_takes_nothing_from_the_others_of_its_service() {
    pin();
    let rates = Rates {
        source_packets: rate(),
        packets: slow(100),
        ..Rates::default()
    };
    let mut program = program(true, &rates, Service::SOURCE_RATES | Service::RATES);
    let flood: Vec<_> = (0..500)
        .map(|port| packet(true, L4::Ack, 1, 1, port))
        .collect();
    assert_eq!(send(&mut program, &flood, "drop_source_packets"), BURST);
    for client in 2..5 {
        let few: Vec<_> = (0..15)
            .map(|port| packet(true, L4::Ack, client, 1, port))
            .collect();
        assert_eq!(send(&mut program, &few, "drop_source_packets"), 15);
    }
}

#[test]
fn few_sources_suffer_from_others_that_flood() {
    pin();
    let rates = Rates {
        source_packets: rate(),
        ..Rates::default()
    };
    // 256 places, of which 13 sources empty 13 at the most in each half: one of 400 others suffers.
    let mut program = program(true, &rates, Service::SOURCE_RATES);
    for client in 0..13 {
        for port in 0..100 {
            program.run(&packet(true, L4::Ack, 100 + client, 1, port).frame(None));
        }
    }
    let mut suffering = 0;
    for client in 0..200 {
        let (verdict, _) = program.run(&packet(true, L4::Ack, 1000 + client, 1, 1).frame(None));
        suffering += u32::from(verdict == XDP_DROP);
    }
    // The chance of more than five is one of ten thousand; and the hash is always the same.
    assert!(suffering <= 5, "{suffering}");
}

#[test]
fn half_open_entries_beyond_their_rate_are_refused_and_nothing_breaks() {
    pin();
    for v4 in [true, false] {
        let moved = Row::new(slot(2), slot(1), true);
        let mut rows = Rows::new(Program::new(4096), v4, 2, &[moved]);
        let rates = Rates {
            half_open: rate(),
            ..Rates::default()
        };
        rows.program.kernel.set_rates(0, &rates).unwrap();
        rows.program
            .change_services(|service| service.flags = Service::HALF_OPEN_RATE);
        // An old flow, one that opened since, and one that opens now.
        assert_eq!(rows.send(L4::Ack, 1), 1);
        assert_eq!(rows.send(L4::Syn, 2), 2);
        assert_eq!(rows.send(L4::Ack, 2), 2);
        assert_eq!(rows.send(L4::Syn, 3), 2);
        let mut opened = 0;
        for port in 100..400 {
            // Beyond the rate the move of the flow is delayed.
            opened += u64::from(rows.send(L4::Syn, port) == 2);
        }
        assert_eq!(opened + 2, BURST);
        let traces = rows.program.traces();
        assert_eq!(traces.counters["service 0 refused"], 300 - opened);
        let half_open = traces
            .flows
            .keys()
            .filter(|(table, _)| *table == Table::HalfOpen);
        assert_eq!(half_open.count() as u64, opened + 1);
        for (port, home) in [(1, 1), (2, 2), (3, 2), (399, 1)] {
            assert_eq!(rows.send(L4::Ack, port), home, "flow {port}");
        }
    }
}

#[test]
fn a_syn_flood_on_settled_rows_writes_no_state_at_all() {
    for flags in [0, Service::HALF_OPEN_RATE] {
        let mut rows = Rows::new(Program::new(64), true, 1, &[Row::settled(slot(1))]);
        rows.program
            .change_services(|service| service.flags = flags);
        for port in 0..5000 {
            assert_eq!(rows.send(L4::Syn, port), 1);
        }
        let traces = rows.program.traces();
        assert!(traces.flows.is_empty());
        assert_eq!(traces.counters["service 0 new flows"], 5000);
        assert!(!traces.counters.contains_key("service 0 refused"));
    }
}
