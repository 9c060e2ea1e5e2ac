//! The row rule and the flow tables of the loaded program: case by case, and against a model.

use std::collections::BTreeMap;
use std::net::IpAddr;

use lb_common::backend::Head;
use lb_common::flow::{FlowEntry, FlowKey4, Table};
use lb_common::row::{Choice, Entry, Row, choose, open_refused};
use lb_tests::frame::{L4, Packet};
use lb_tests::program::{How, Program, XDP_TX, grown, mac, slot};
use lb_user::dataplane::{Dataplane as _, FlowKey};
use lb_user::model::{Forward, L4Protocol};

const BACKENDS: u32 = 4;

/// A program with one service of one row, for TCP and UDP alike, and backends 1 to 4.
fn program(flows: u32, row: Row) -> Program {
    let vip = IpAddr::from([198, 18, 9, 10]);
    let mut program = Program::new(flows);
    for protocol in [L4Protocol::Tcp, L4Protocol::Udp] {
        program.service(vip, 80, protocol, &[row]);
    }
    for number in 1..=BACKENDS {
        program.backend(number, vip, &How::new(Forward::L2, true));
    }
    program
}

/// Sends a packet of flow `port`. Returns the backend that it went to.
#[track_caller]
fn send(program: &mut Program, l4: L4, port: u16) -> u32 {
    let (verdict, sent) = program.run(&Packet::v4(l4, port).frame(None));
    assert_eq!(verdict, XDP_TX);
    let number = u32::from(sent[5]);
    assert_eq!(sent[..6], mac(number));
    number
}

fn key(port: u16, l4: L4) -> FlowKey {
    FlowKey::V4(FlowKey4 {
        src: [198, 19, 0, 1],
        dst: [198, 18, 9, 10],
        src_port: port.to_be_bytes(),
        dst_port: [0, 80],
        proto: if l4 == L4::Udp { 17 } else { 6 },
        _pad: [0; 3],
    })
}

fn set_row(program: &mut Program, row: Row) {
    // The services' rows follow each other.
    program.kernel.set_row(0, row).unwrap();
    program.kernel.set_row(1, row).unwrap();
}

fn moved(owner: u32, untracked: u32) -> Row {
    Row::new(slot(owner), slot(untracked), true)
}

#[test]
fn a_settled_row_keeps_no_state() {
    let mut program = program(64, Row::settled(slot(1)));
    for l4 in [L4::Syn, L4::Ack, L4::Fin, L4::Rst, L4::Udp] {
        assert_eq!(send(&mut program, l4, 1), 1);
    }
    assert!(program.traces().flows.is_empty());
}

#[test]
fn a_moved_row_opens_at_its_owner_and_keeps_old_flows_where_they_are() {
    let mut program = program(64, moved(2, 1));
    assert_eq!(send(&mut program, L4::Syn, 1), 2);
    assert_eq!(
        program.traces().flows,
        BTreeMap::from([((Table::HalfOpen, key(1, L4::Syn)), (2, 0, 0))])
    );
    assert_eq!(
        send(&mut program, L4::Syn, 1),
        2,
        "again, as when it was lost"
    );
    assert_eq!(program.traces().flows.len(), 1);
    assert_eq!(send(&mut program, L4::Ack, 1), 2);
    let confirmed = (
        (Table::Confirmed, key(1, L4::Syn)),
        (2, 0, FlowEntry::CONFIRMED),
    );
    assert_eq!(program.traces().flows, BTreeMap::from([confirmed]));

    assert_eq!(send(&mut program, L4::Ack, 2), 1);
    assert_eq!(
        send(&mut program, L4::Udp, 3),
        1,
        "nobody sees where a UDP flow opens"
    );
    let flows = program.traces().flows;
    assert_eq!(flows[&(Table::Kept, key(2, L4::Ack))], (1, 0, 0));
    assert_eq!(flows[&(Table::Kept, key(3, L4::Udp))], (1, 0, 0));
    // Whatever the row does now, they stay.
    set_row(&mut program, moved(3, 1));
    assert_eq!([1, 2].map(|port| send(&mut program, L4::Ack, port)), [2, 1]);
    assert_eq!(send(&mut program, L4::Udp, 3), 1);
    set_row(&mut program, moved(3, 3));
    assert_eq!(
        [1, 2, 9].map(|port| send(&mut program, L4::Ack, port)),
        [2, 1, 3]
    );
}

#[test]
fn a_closed_flow_makes_room_for_a_new_one_with_its_tuple() {
    let mut program = program(64, moved(2, 1));
    assert_eq!(send(&mut program, L4::Ack, 1), 1);
    assert_eq!(send(&mut program, L4::Fin, 1), 1);
    assert_eq!(
        send(&mut program, L4::Ack, 1),
        1,
        "the last of the old flow"
    );
    assert_eq!(send(&mut program, L4::Syn, 1), 2, "a new flow");
    assert_eq!(send(&mut program, L4::Ack, 1), 2);
    assert_eq!(program.traces().flows.len(), 1);
}

#[test]
fn a_full_table_refuses_and_evicts_nobody() {
    let mut program = program(2, moved(2, 1));
    for port in [1, 2] {
        assert_eq!(send(&mut program, L4::Syn, port), 2);
    }
    let before = program.traces();
    assert_eq!(
        send(&mut program, L4::Syn, 3),
        1,
        "the move of this flow is delayed"
    );
    let bytes = Packet::v4(L4::Syn, 3).frame(None).len() as u64;
    let counters = [
        ("service 0 refused", 1),
        ("service 0 packets", 1),
        ("service 0 bytes", bytes),
        ("service 0 new flows", 1),
        ("backend 1 packets", 1),
        ("backend 1 bytes", bytes),
        ("backend 1 new flows", 1),
    ];
    assert_eq!(program.traces().since(&before), grown(&counters));
    assert_eq!(program.traces().flows, before.flows);
    assert!(program.kernel.service_stats(0).unwrap().refused_at > 0);
    // The other tables have room of their own.
    assert_eq!(send(&mut program, L4::Ack, 1), 2);
    assert_eq!(send(&mut program, L4::Ack, 9), 1);
    assert!(
        program
            .traces()
            .flows
            .contains_key(&(Table::Kept, key(9, L4::Ack)))
    );
}

#[test]
fn the_dead_lose_their_flows_and_the_revived_know_none_of_them() {
    let mut program = program(64, moved(2, 1));
    assert_eq!(send(&mut program, L4::Ack, 1), 1);
    assert_eq!(send(&mut program, L4::Syn, 2), 2);
    program.head(1, Head::new(0, false, false, 1));
    assert_eq!(send(&mut program, L4::Ack, 1), 2, "its backend is dead");
    program.head(1, Head::new(0, true, true, 1));
    assert_eq!(
        send(&mut program, L4::Syn, 1),
        2,
        "no entry of another generation holds"
    );
    assert_eq!(send(&mut program, L4::Ack, 2), 2);
}

#[test]
fn a_draining_backend_keeps_its_flows_and_takes_no_new_ones() {
    let mut program = program(64, moved(2, 1));
    assert_eq!(send(&mut program, L4::Ack, 1), 1);
    program.head(1, Head::new(0, true, false, 0));
    assert_eq!(send(&mut program, L4::Ack, 1), 1);
    assert_eq!(send(&mut program, L4::Syn, 1), 2);
}

/// What the tables hold, and the rule, in the plainest form.
struct Model {
    capacity: usize,
    row: Row,
    heads: BTreeMap<u32, Head>,
    flows: BTreeMap<FlowKey, (Table, u32, u16, u16)>,
}

impl Model {
    fn count(&self, table: Table) -> usize {
        self.flows.values().filter(|(of, ..)| *of == table).count()
    }

    fn insert(&mut self, table: Table, key: FlowKey, backend: u32) -> bool {
        if self.count(table) >= self.capacity {
            return false;
        }
        self.flows
            .insert(key, (table, backend, self.heads[&backend].generation(), 0));
        true
    }

    fn packet(&mut self, key: FlowKey, l4: L4) -> u32 {
        if !self.row.lookup() {
            return self.row.owner().get();
        }
        let entry = self.flows.get(&key).copied();
        let state = entry.map_or(Entry::Miss, |(_, backend, generation, flags)| {
            let head = self.heads[&backend];
            if !head.alive() || head.generation() != generation {
                Entry::Dead
            } else if !head.accepts() || flags & FlowEntry::CLOSED != 0 {
                Entry::Finished
            } else {
                Entry::Live
            }
        });
        let opening = l4 == L4::Syn;
        let untracked_lives = self.heads[&self.row.untracked().get()].alive();
        let (owner, untracked) = (self.row.owner().get(), self.row.untracked().get());
        match choose(self.row, opening, state, untracked_lives) {
            Choice::Entry => self.seen(key, l4),
            Choice::Owner => owner,
            Choice::Untracked => untracked,
            Choice::OwnerForget => {
                self.flows.remove(&key);
                owner
            }
            Choice::Open => {
                self.flows.remove(&key);
                if self.insert(Table::HalfOpen, key, owner) {
                    owner
                } else {
                    open_refused(self.row, untracked_lives).get()
                }
            }
            Choice::Keep => {
                self.flows.remove(&key);
                self.insert(Table::Kept, key, untracked);
                untracked
            }
        }
    }

    fn seen(&mut self, key: FlowKey, l4: L4) -> u32 {
        let room = self.count(Table::Confirmed) < self.capacity;
        let (table, backend, _, flags) = self.flows.get_mut(&key).expect("an entry");
        if matches!(l4, L4::Fin | L4::Rst) {
            *flags |= FlowEntry::CLOSED;
        }
        if *table == Table::HalfOpen && l4 != L4::Syn && *flags & FlowEntry::CONFIRMED == 0 {
            *flags |= FlowEntry::CONFIRMED;
            if room {
                *table = Table::Confirmed;
            }
        }
        *backend
    }
}

/// Random packets, moves, settlings, deaths, revivals and drains: after each packet the program
/// chose the same backend as the model, and after each change its tables hold the same.
#[test]
fn the_program_does_what_the_model_does() {
    const FLOWS: usize = 24;
    let capacity = 6;
    let mut program = program(capacity as u32, Row::settled(slot(1)));
    let mut model = Model {
        capacity,
        row: Row::settled(slot(1)),
        heads: (1..=BACKENDS)
            .map(|n| (n, Head::new(0, true, true, 0)))
            .collect(),
        flows: BTreeMap::new(),
    };
    let mut state = 0x2545_f491_4f6c_dd1d_u64;
    let mut random = |below: usize| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state % below as u64) as usize
    };
    let mut taken = BTreeMap::new();
    for step in 0..60_000 {
        if random(12) > 0 {
            let l4 = [L4::Syn, L4::Ack, L4::Ack, L4::Fin, L4::Rst, L4::Udp][random(6)];
            let port = 1 + random(FLOWS) as u16;
            let expected = model.packet(key(port, l4), l4);
            assert_eq!(
                send(&mut program, l4, port),
                expected,
                "step {step}: {l4:?} of flow {port}, {:?}",
                model.row
            );
            *taken.entry(expected).or_insert(0) += 1;
            continue;
        }
        let number = 1 + random(BACKENDS as usize) as u32;
        match random(8) {
            0..4 => {
                let untracked = 1 + random(BACKENDS as usize) as u32;
                model.row = moved(number, untracked);
                set_row(&mut program, model.row);
            }
            4 => {
                model.row = Row::settled(slot(number));
                set_row(&mut program, model.row);
            }
            5 => {
                // The sweep: everything ended.
                let flows: Vec<_> = program.traces().flows.into_keys().collect();
                for (table, key) in flows {
                    program.kernel.remove_flow(table, &key).unwrap();
                }
                model.flows.clear();
            }
            _ => {
                let head = model.heads[&number];
                let (alive, accepts) = [(true, true), (true, false), (false, false)][random(3)];
                let died = head.alive() && !alive;
                let head = Head::new(0, alive, accepts, head.generation() + u16::from(died));
                model.heads.insert(number, head);
                program.head(number, head);
            }
        }
        let flows: BTreeMap<_, _> = model
            .flows
            .iter()
            .map(|(key, (table, backend, generation, flags))| {
                ((*table, *key), (*backend, *generation, *flags))
            })
            .collect();
        assert_eq!(program.traces().flows, flows, "step {step}");
    }
    assert_eq!(
        taken.len(),
        BACKENDS as usize,
        "all backends took part: {taken:?}"
    );
}
