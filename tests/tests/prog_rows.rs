//! The row rule and the flow tables of the loaded program, case by case, in both families.

use std::collections::BTreeMap;

use lb_common::backend::Head;
use lb_common::flow::{FlowEntry, Table};
use lb_common::row::Row;
use lb_tests::frame::L4;
use lb_tests::program::{Program, grown, slot};
use lb_tests::rows::Rows;
use lb_user::dataplane::Dataplane as _;

/// Runs a case with one row, backends 1 to 4, and room for so many flows.
fn both(flows: u32, row: Row, case: impl Fn(&mut Rows)) {
    for v4 in [true, false] {
        case(&mut Rows::new(Program::new(flows), v4, 4, &[row]));
    }
}

fn moved(owner: u32, untracked: u32) -> Row {
    Row::new(slot(owner), slot(untracked), true)
}

#[test]
fn a_settled_row_keeps_no_state() {
    both(64, Row::settled(slot(1)), |rows| {
        for l4 in [L4::Syn, L4::Ack, L4::Fin, L4::Rst, L4::Udp] {
            assert_eq!(rows.send(l4, 1), 1);
        }
        assert!(rows.program.traces().flows.is_empty());
    });
}

#[test]
fn a_moved_row_opens_at_its_owner_and_keeps_old_flows_where_they_are() {
    both(64, moved(2, 1), |rows| {
        assert_eq!(rows.send(L4::Syn, 1), 2);
        assert_eq!(
            rows.program.traces().flows,
            BTreeMap::from([((Table::HalfOpen, rows.key(1, L4::Syn)), (2, 0, 0))])
        );
        assert_eq!(rows.send(L4::Syn, 1), 2, "again, as when it was lost");
        assert_eq!(rows.program.traces().flows.len(), 1);
        assert_eq!(rows.send(L4::Ack, 1), 2);
        let confirmed = (
            (Table::Confirmed, rows.key(1, L4::Syn)),
            (2, 0, FlowEntry::CONFIRMED),
        );
        assert_eq!(rows.program.traces().flows, BTreeMap::from([confirmed]));

        assert_eq!(rows.send(L4::Ack, 2), 1);
        assert_eq!(
            rows.send(L4::Udp, 3),
            1,
            "nobody sees where a UDP flow opens"
        );
        let flows = rows.program.traces().flows;
        assert_eq!(flows[&(Table::Kept, rows.key(2, L4::Ack))], (1, 0, 0));
        assert_eq!(flows[&(Table::Kept, rows.key(3, L4::Udp))], (1, 0, 0));
        // Whatever the row does now, they stay.
        rows.set(0, moved(3, 1));
        assert_eq!([1, 2].map(|port| rows.send(L4::Ack, port)), [2, 1]);
        assert_eq!(rows.send(L4::Udp, 3), 1);
        rows.set(0, moved(3, 3));
        assert_eq!([1, 2, 9].map(|port| rows.send(L4::Ack, port)), [2, 1, 3]);
    });
}

#[test]
fn a_closed_flow_makes_room_for_a_new_one_with_its_tuple() {
    both(64, moved(2, 1), |rows| {
        assert_eq!(rows.send(L4::Ack, 1), 1);
        assert_eq!(rows.send(L4::Fin, 1), 1);
        assert_eq!(rows.send(L4::Ack, 1), 1, "the last of the old flow");
        assert_eq!(rows.send_at(L4::Syn, 1, 5_000_000), 2, "a new flow");
        assert_eq!(
            rows.program.traces().flows,
            BTreeMap::from([
                (
                    (Table::Kept, rows.key(1, L4::Syn)),
                    (1, 0, FlowEntry::CLOSED | FlowEntry::REOPENED)
                ),
                ((Table::HalfOpen, rows.key(1, L4::Syn)), (2, 0, 0)),
            ])
        );
        assert_eq!(rows.send(L4::Ack, 1), 1, "the very last of the old flow");
        assert_eq!(rows.send_at(L4::Ack, 1, 5_000_001), 2);
        assert_eq!(
            rows.program.traces().flows,
            BTreeMap::from([(
                (Table::Confirmed, rows.key(1, L4::Syn)),
                (2, 0, FlowEntry::CONFIRMED)
            )])
        );
    });
}

#[test]
fn a_stray_opening_packet_takes_no_flow_away() {
    both(64, moved(2, 1), |rows| {
        // An old flow that has no entry yet.
        assert_eq!(rows.send_at(L4::Syn, 1, 7_000_000), 2, "a stray");
        assert_eq!(rows.send(L4::Ack, 1), 1, "the flow goes on");
        assert_eq!(rows.send(L4::Ack, 1), 1);
        // One with an entry, whose VM is being drained.
        rows.program.head(1, Head::new(0, true, false, 0));
        assert_eq!(rows.send_at(L4::Syn, 1, 9_000_000), 2, "a stray");
        assert_eq!(rows.send(L4::Ack, 1), 1, "the flow goes on");
        // One that is being opened.
        assert_eq!(rows.send(L4::Syn, 2), 2);
        assert_eq!(rows.send_at(L4::Syn, 2, 7_000_000), 2, "a stray");
        assert_eq!(rows.send(L4::Ack, 2), 2, "the flow goes on");
        // Its opening packet once more, late: its VM takes no new flows by now.
        rows.program.head(2, Head::new(0, true, false, 0));
        rows.set(0, moved(3, 1));
        assert_eq!(rows.send(L4::Syn, 2), 2);
        assert_eq!(rows.send(L4::Ack, 2), 2);
    });
}

#[test]
fn a_stray_end_closes_no_flow() {
    both(64, moved(2, 1), |rows| {
        assert_eq!(rows.send(L4::Ack, 1), 1);
        for l4 in [L4::Fin, L4::Rst] {
            assert_eq!(rows.send_at(l4, 1, 0x7000_0000), 1);
            let (_, _, flags) = rows.program.traces().flows[&(Table::Kept, rows.key(1, L4::Ack))];
            assert_eq!(flags, 0);
        }
        assert_eq!(rows.send(L4::Fin, 1), 1);
        let (_, _, flags) = rows.program.traces().flows[&(Table::Kept, rows.key(1, L4::Ack))];
        assert_eq!(flags, FlowEntry::CLOSED);
    });
}

#[test]
fn an_opening_packet_comes_to_the_owner_when_nobody_answered_at_a_suspect_vm() {
    both(64, moved(2, 1), |rows| {
        assert_eq!(rows.send(L4::Syn, 1), 2);
        rows.program.head(2, Head::new(0, true, false, 0));
        rows.set(0, moved(3, 1));
        assert_eq!(rows.send(L4::Syn, 1), 3, "once more");
        assert_eq!(rows.send(L4::Ack, 1), 3);
    });
}

#[test]
fn a_full_table_refuses_and_evicts_nobody() {
    both(2, moved(2, 1), |rows| {
        for port in [1, 2] {
            assert_eq!(rows.send(L4::Syn, port), 2);
        }
        let before = rows.program.traces();
        assert_eq!(rows.send(L4::Syn, 3), 1, "the move of this flow is delayed");
        let bytes = rows.packet(L4::Syn, 3).frame(None).len() as u64;
        let counters = [
            ("service 0 refused", 1),
            ("service 0 packets", 1),
            ("service 0 bytes", bytes),
            ("service 0 new flows", 1),
            ("backend 1 packets", 1),
            ("backend 1 bytes", bytes),
            ("backend 1 new flows", 1),
        ];
        assert_eq!(rows.program.traces().since(&before), grown(&counters));
        assert_eq!(rows.program.traces().flows, before.flows);
        assert!(rows.program.kernel.service_stats(0).unwrap().refused_at > 0);
        // The other tables have room of their own.
        assert_eq!(rows.send(L4::Ack, 1), 2);
        assert_eq!(rows.send(L4::Ack, 9), 1);
        assert!(
            rows.program
                .traces()
                .flows
                .contains_key(&(Table::Kept, rows.key(9, L4::Ack)))
        );
    });
}

#[test]
fn the_dead_lose_their_flows_and_the_revived_know_none_of_them() {
    both(64, moved(2, 1), |rows| {
        assert_eq!(rows.send(L4::Ack, 1), 1);
        assert_eq!(rows.send(L4::Syn, 2), 2);
        rows.program.head(1, Head::new(0, false, false, 1));
        assert_eq!(rows.send(L4::Ack, 1), 2, "its backend is dead");
        rows.program.head(1, Head::new(0, true, true, 1));
        assert_eq!(
            rows.send(L4::Syn, 1),
            2,
            "no entry of another generation holds"
        );
        assert_eq!(rows.send(L4::Ack, 2), 2);
    });
}

#[test]
fn a_draining_backend_keeps_its_flows_and_takes_no_new_ones() {
    both(64, moved(2, 1), |rows| {
        assert_eq!(rows.send(L4::Ack, 1), 1);
        rows.program.head(1, Head::new(0, true, false, 0));
        assert_eq!(rows.send(L4::Ack, 1), 1);
        assert_eq!(rows.send_at(L4::Syn, 1, 5_000_000), 2);
    });
}
