//! `weir explain` runs a program of its own: it must do to a packet what the attached one does, and
//! leave no trace.

use std::net::IpAddr;

use lb_common::row::Row;
use lb_common::stats::Reason;
use lb_tests::frame::{L4, Packet};
use lb_tests::program::{How, Program, slot};
use lb_user::model::{Forward, L4Protocol};

#[test]
fn the_explaining_program_does_the_same_and_leaves_no_trace() {
    let mut program = Program::default();
    let vips = [
        IpAddr::from([198, 18, 9, 10]),
        IpAddr::from([0x2001, 0xdb8, 9, 0, 0, 0, 0, 0x10]),
    ];
    let rows = [
        Row::settled(slot(1)),
        Row::new(slot(2), slot(1), true),
        Row::new(slot(2), slot(2), true),
        Row::settled(slot(7)),
    ];
    for vip in vips {
        for protocol in [L4Protocol::Tcp, L4Protocol::Udp] {
            program.service(vip, 80, protocol, &rows);
        }
    }
    program.backend(1, vips[0], &How::new(Forward::Ipip, true));
    program.backend(
        2,
        vips[0],
        &How::new(Forward::Gue(Forward::GUE_PORT), false),
    );
    let mut frames = vec![
        Packet {
            ports: (1, 81),
            ..Packet::v4(L4::Syn, 1)
        }
        .frame(None),
        vec![0; 60],
        Packet::v4(L4::Syn, 1).frame(None)[..40].to_vec(),
    ];
    for port in 1..40 {
        for l4 in [L4::Syn, L4::Ack, L4::Udp] {
            frames.push(Packet::v4(l4, port).frame(None));
            frames.push(Packet::v6(l4, port).frame(Some(3)));
        }
    }
    let mut reasons = std::collections::BTreeSet::new();
    // Twice: without entries in the flow table, and with.
    for round in 0..2 {
        for frame in &frames {
            let before = program.traces();
            let explained = program.explain(frame);
            assert_eq!(program.traces(), before, "an explanation leaves no trace");
            let (verdict, sent) = program.run(frame);
            assert_eq!(
                (explained.verdict, &explained.frame),
                (verdict, &sent),
                "round {round}"
            );
            let reason = Reason::ALL[explained.explanation.reason as usize];
            let counted = program.traces().since(&before);
            let counter = if reason == Reason::Sent {
                format!("backend {} packets", explained.explanation.backend)
            } else {
                reason.as_str().to_owned()
            };
            assert_eq!(counted.get(&counter), Some(&1), "{counted:?}");
            reasons.insert(reason.as_str());
        }
    }
    let expected = [
        "drop_unreachable",
        "pass_malformed",
        "pass_no_service",
        "pass_not_ip",
        "sent",
    ];
    assert_eq!(reasons.into_iter().collect::<Vec<_>>(), expected);
}
