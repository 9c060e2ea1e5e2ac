//! The decapsulating program: whole frames built by etherparse go in and come out.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::PathBuf;

use lb_common::decap::Outcome;
use lb_tests::frame::{Address, Entropy, L4, Packet, ethernet, wrap};
use lb_tests::netns::{pins, remove_pins};
use lb_tests::program::{XDP_DROP, XDP_PASS, grown};
use lb_user::decap::{Loaded, counters};
use lb_user::model::Forward;

const FROM: [u8; 6] = [2, 0, 0, 0, 0, 1];
const TO: [u8; 6] = [2, 0, 0, 0, 0, 2];
const OWN4: [u8; 4] = [198, 18, 1, 1];

fn own6() -> [u8; 16] {
    std::net::Ipv6Addr::new(0x2001, 0xdb8, 1, 0, 0, 0, 0, 1).octets()
}

/// The loaded program, for one address of each family.
struct Decap {
    directory: PathBuf,
    loaded: Loaded,
}

impl Decap {
    fn new() -> Self {
        assert!(
            nix::unistd::geteuid().is_root(),
            "this test loads BPF programs and needs root"
        );
        let directory = pins("decap");
        // The counters are read as `weir decap status` reads them: by interface.
        let own = [IpAddr::from(OWN4), IpAddr::from(own6())];
        let loaded = Loaded::new(&directory.join("test"), &own, Forward::GUE_PORT).unwrap();
        Self { directory, loaded }
    }

    fn counters(&self) -> BTreeMap<String, u64> {
        let counters = counters(&self.directory, "test").unwrap();
        counters
            .into_iter()
            .map(|(outcome, count)| (outcome.as_str().to_owned(), count))
            .collect()
    }

    /// Runs it on a frame; exactly this outcome must be counted.
    #[track_caller]
    fn run(&mut self, frame: &[u8], outcome: Outcome) -> (u32, Vec<u8>) {
        let before = self.counters();
        let result = self.loaded.run(frame).unwrap();
        let mut after = self.counters();
        after
            .iter_mut()
            .for_each(|(name, count)| *count -= before[name]);
        after.retain(|_, count| *count > 0);
        assert_eq!(after, grown(&[(outcome.as_str(), 1)]));
        result
    }

    #[track_caller]
    fn passes(&mut self, frame: &[u8], outcome: Outcome) {
        assert_eq!(self.run(frame, outcome), (XDP_PASS, frame.to_vec()));
    }
}

impl Drop for Decap {
    fn drop(&mut self) {
        remove_pins(&self.directory);
    }
}

#[test]
fn pins_in_directories_of_their_own_are_removed_as_well() {
    let directory = pins("left");
    for interface in ["eth", "eth1"] {
        Loaded::new(&directory.join(interface), &[], Forward::GUE_PORT).unwrap();
    }
    assert!(directory.join("eth").read_dir().unwrap().count() > 1);
    remove_pins(&directory);
    assert!(!directory.exists());
}

/// An outer header's ends: from the balancer to this host.
fn ends(v4: bool) -> (Address, Address) {
    if v4 {
        (Address::V4([198, 18, 0, 1]), Address::V4(OWN4))
    } else {
        let from = std::net::Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1).octets();
        (Address::V6(from), Address::V6(own6()))
    }
}

fn wrapped(inner: &[u8], outer_v4: bool, gue: bool) -> Vec<u8> {
    let (from, to) = ends(outer_v4);
    let entropy = Entropy {
        label: 0x54321,
        port: 50_000,
    };
    wrap(inner, from, to, gue.then_some(6080), entropy)
}

fn outcome(inner_v4: bool, outer_v4: bool, gue: bool) -> Outcome {
    match (gue, inner_v4, outer_v4) {
        (true, _, true) => Outcome::GueOverIpv4,
        (true, _, false) => Outcome::GueOverIpv6,
        (false, true, true) => Outcome::Ipv4InIpv4,
        (false, false, true) => Outcome::Ipv6InIpv4,
        (false, true, false) => Outcome::Ipv4InIpv6,
        (false, false, false) => Outcome::Ipv6InIpv6,
    }
}

#[test]
fn every_tunnel_is_unwrapped_to_the_packet_that_was_wrapped() {
    let mut decap = Decap::new();
    for inner_v4 in [true, false] {
        for outer_v4 in [true, false] {
            for gue in [true, false] {
                for vlan in [None, Some(0x321)] {
                    for (l4, len) in [(L4::Syn, 0), (L4::Udp, 1), (L4::Ack, 1400)] {
                        let make = if inner_v4 { Packet::v4 } else { Packet::v6 };
                        let inner = Packet {
                            payload: vec![9; len],
                            tos: 0b1011_1010,
                            ..make(l4, 7)
                        }
                        .ip();
                        let frame = ethernet(FROM, TO, vlan, &wrapped(&inner, outer_v4, gue));
                        let (verdict, out) = decap.run(&frame, outcome(inner_v4, outer_v4, gue));
                        assert_eq!((verdict, out), (XDP_PASS, ethernet(FROM, TO, vlan, &inner)));
                    }
                }
            }
        }
    }
}

#[test]
fn gue_variant_0_without_options_is_unwrapped_and_with_options_passed() {
    let mut decap = Decap::new();
    let inner = Packet::v4(L4::Ack, 7).ip();
    let gue = |header: [u8; 4]| {
        let mut outer = wrapped(&[&header, inner.as_slice()].concat(), true, true);
        // `wrap` takes its type of service from what it wraps.
        outer[1] = 0;
        ethernet(FROM, TO, None, &outer)
    };
    let frame = gue([0, 4, 0, 0]);
    let (verdict, out) = decap.run(&frame, Outcome::GueOverIpv4);
    assert_eq!((verdict, out), (XDP_PASS, ethernet(FROM, TO, None, &inner)));
    for header in [
        [1, 4, 0, 0],
        [0x20, 4, 0, 0],
        [0, 4, 0x80, 0],
        [0, 17, 0, 0],
    ] {
        decap.passes(&gue(header), Outcome::PassMalformed);
    }
}

#[test]
fn outer_options_are_skipped() {
    let mut decap = Decap::new();
    let inner = Packet::v4(L4::Ack, 7).ip();
    let mut outer = wrapped(&inner, true, false);
    outer.splice(20..20, [1, 1, 1, 0]);
    outer[0] = 0x46;
    let frame = ethernet(FROM, TO, None, &outer);
    let (verdict, out) = decap.run(&frame, Outcome::Ipv4InIpv4);
    assert_eq!((verdict, out), (XDP_PASS, ethernet(FROM, TO, None, &inner)));
}

#[test]
fn congestion_in_the_tunnel_is_told_to_the_packet_inside_or_it_is_dropped() {
    let mut decap = Decap::new();
    for inner_v4 in [true, false] {
        for outer_v4 in [true, false] {
            let make = if inner_v4 { Packet::v4 } else { Packet::v6 };
            for (ecn, expected) in [
                (0b00, None),
                (0b01, Some(0b11)),
                (0b10, Some(0b11)),
                (0b11, Some(0b11)),
            ] {
                let packet = |tos: u8| {
                    Packet {
                        tos,
                        ..make(L4::Ack, 7)
                    }
                    .ip()
                };
                let mut outer = wrapped(&packet(0b1010_0000 | ecn), outer_v4, false);
                if outer_v4 {
                    outer[1] |= 0b11;
                } else {
                    outer[1] |= 0b11 << 4;
                }
                let frame = ethernet(FROM, TO, None, &outer);
                match expected {
                    Some(ecn) => {
                        let (verdict, out) = decap.run(&frame, outcome(inner_v4, outer_v4, false));
                        let inner = packet(0b1010_0000 | ecn);
                        assert_eq!((verdict, out), (XDP_PASS, ethernet(FROM, TO, None, &inner)));
                    }
                    None => assert_eq!(decap.run(&frame, Outcome::DropCongestion).0, XDP_DROP),
                }
            }
        }
    }
}

#[test]
fn what_is_not_for_this_host_passes_as_it_came() {
    let mut decap = Decap::new();
    let inner = Packet::v4(L4::Ack, 7);
    decap.passes(&inner.frame(None), Outcome::PassOther);
    decap.passes(&Packet::v6(L4::Udp, 7).frame(Some(5)), Outcome::PassOther);
    let other = wrap(
        &inner.ip(),
        ends(true).0,
        Address::V4([198, 18, 1, 2]),
        None,
        Entropy::default(),
    );
    decap.passes(&ethernet(FROM, TO, None, &other), Outcome::PassAddress);
    let mut port = wrapped(&inner.ip(), true, true);
    port[23] += 1;
    decap.passes(&ethernet(FROM, TO, None, &port), Outcome::PassOther);
    let mut fragment = wrapped(&inner.ip(), true, false);
    fragment[6] = 0x20;
    decap.passes(&ethernet(FROM, TO, None, &fragment), Outcome::PassFragment);
    let mut wrong = wrapped(&inner.ip(), true, false);
    wrong[9] = 41;
    decap.passes(&ethernet(FROM, TO, None, &wrong), Outcome::PassMalformed);
}

#[test]
fn a_frame_cut_anywhere_passes_as_it_is_or_is_unwrapped() {
    let mut decap = Decap::new();
    let inner = Packet::v6(L4::Ack, 7).ip();
    for outer_v4 in [true, false] {
        for gue in [true, false] {
            let whole = ethernet(FROM, TO, Some(3), &wrapped(&inner, outer_v4, gue));
            for len in 14..whole.len() {
                let (verdict, out) = decap.loaded.run(&whole[..len]).unwrap();
                assert_eq!(verdict, XDP_PASS);
                // The packet inside is judged by the host's stack.
                let unwrapped = ethernet(FROM, TO, Some(3), &inner);
                let missing = whole.len() - len;
                assert!(
                    out == whole[..len] || out == unwrapped[..unwrapped.len() - missing],
                    "{len} bytes"
                );
            }
        }
    }
}
