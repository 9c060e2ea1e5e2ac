//! The row rule and the flow tables of the loaded program: case by case, and against a model that
//! says the rule once more, in its own words.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use lb_common::backend::Head;
use lb_common::flow::{FlowEntry, FlowKey4, Table};
use lb_common::row::Row;
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
    send_at(program, l4, port, l4.sequence())
}

/// Sends a packet of flow `port` with a sequence number.
#[track_caller]
fn send_at(program: &mut Program, l4: L4, port: u16, sequence: u32) -> u32 {
    let packet = Packet {
        sequence,
        ..Packet::v4(l4, port)
    };
    let (verdict, sent) = program.run(&packet.frame(None));
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
    assert_eq!(
        send_at(&mut program, L4::Syn, 1, 5_000_000),
        2,
        "a new flow"
    );
    assert_eq!(
        program.traces().flows,
        BTreeMap::from([
            (
                (Table::Kept, key(1, L4::Syn)),
                (1, 0, FlowEntry::CLOSED | FlowEntry::REOPENED)
            ),
            ((Table::HalfOpen, key(1, L4::Syn)), (2, 0, 0)),
        ])
    );
    assert_eq!(
        send(&mut program, L4::Ack, 1),
        1,
        "the very last of the old flow"
    );
    assert_eq!(send_at(&mut program, L4::Ack, 1, 5_000_001), 2);
    assert_eq!(
        program.traces().flows,
        BTreeMap::from([(
            (Table::Confirmed, key(1, L4::Syn)),
            (2, 0, FlowEntry::CONFIRMED)
        )])
    );
}

#[test]
fn a_stray_opening_packet_takes_no_flow_away() {
    // An old flow that has no entry yet.
    let mut program = program(64, moved(2, 1));
    assert_eq!(send_at(&mut program, L4::Syn, 1, 7_000_000), 2, "a stray");
    assert_eq!(send(&mut program, L4::Ack, 1), 1, "the flow goes on");
    assert_eq!(send(&mut program, L4::Ack, 1), 1);
    // One with an entry, whose VM is being drained.
    program.head(1, Head::new(0, true, false, 0));
    assert_eq!(send_at(&mut program, L4::Syn, 1, 9_000_000), 2, "a stray");
    assert_eq!(send(&mut program, L4::Ack, 1), 1, "the flow goes on");
    // One that is being opened.
    assert_eq!(send(&mut program, L4::Syn, 2), 2);
    assert_eq!(send_at(&mut program, L4::Syn, 2, 7_000_000), 2, "a stray");
    assert_eq!(send(&mut program, L4::Ack, 2), 2, "the flow goes on");
    // Its opening packet once more, late: its VM takes no new flows by now.
    program.head(2, Head::new(0, true, false, 0));
    set_row(&mut program, moved(3, 1));
    assert_eq!(send(&mut program, L4::Syn, 2), 2);
    assert_eq!(send(&mut program, L4::Ack, 2), 2);
}

#[test]
fn a_stray_end_closes_no_flow() {
    let mut program = program(64, moved(2, 1));
    assert_eq!(send(&mut program, L4::Ack, 1), 1);
    for l4 in [L4::Fin, L4::Rst] {
        assert_eq!(send_at(&mut program, l4, 1, 0x7000_0000), 1);
        let (_, _, flags) = program.traces().flows[&(Table::Kept, key(1, L4::Ack))];
        assert_eq!(flags, 0);
    }
    assert_eq!(send(&mut program, L4::Fin, 1), 1);
    let (_, _, flags) = program.traces().flows[&(Table::Kept, key(1, L4::Ack))];
    assert_eq!(flags, FlowEntry::CLOSED);
}

#[test]
fn an_opening_packet_comes_to_the_owner_when_nobody_answered_at_a_suspect_vm() {
    let mut program = program(64, moved(2, 1));
    assert_eq!(send(&mut program, L4::Syn, 1), 2);
    program.head(2, Head::new(0, true, false, 0));
    set_row(&mut program, moved(3, 1));
    assert_eq!(send(&mut program, L4::Syn, 1), 3, "once more");
    assert_eq!(send(&mut program, L4::Ack, 1), 3);
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
    assert_eq!(send_at(&mut program, L4::Syn, 1, 5_000_000), 2);
}

/// An entry of the model.
#[derive(Clone, Copy)]
struct Entry {
    backend: u32,
    generation: u16,
    closed: bool,
    confirmed: bool,
    reopened: bool,
    /// The sequence numbers of the last two opening packets; of an established flow the last
    /// opening packet's and a recent packet's.
    numbers: [u32; 2],
}

impl Entry {
    fn flags(&self) -> u16 {
        let flag = |is: bool, flag: u16| if is { flag } else { 0 };
        flag(self.closed, FlowEntry::CLOSED)
            | flag(self.confirmed, FlowEntry::CONFIRMED)
            | flag(self.reopened, FlowEntry::REOPENED)
    }
}

/// What the tables hold, and the rule, in the plainest form.
struct Model {
    capacity: usize,
    row: Row,
    heads: BTreeMap<u32, Head>,
    established: BTreeMap<FlowKey, (Table, Entry)>,
    half_open: BTreeMap<FlowKey, Entry>,
}

/// Whether `sequence` is 1 to `most` bytes behind `from`.
fn behind(from: u32, sequence: u32, most: u32) -> bool {
    let distance = sequence.wrapping_sub(from);
    (1..=most).contains(&distance)
}

impl Model {
    fn room(&self, table: Table) -> bool {
        let count = match table {
            Table::HalfOpen => self.half_open.len(),
            Table::Confirmed | Table::Kept => self
                .established
                .values()
                .filter(|(of, _)| *of == table)
                .count(),
        };
        count < self.capacity
    }

    fn entry(&self, backend: u32, sequence: u32) -> Entry {
        Entry {
            backend,
            generation: self.heads[&backend].generation(),
            closed: false,
            confirmed: false,
            reopened: false,
            numbers: [sequence, sequence],
        }
    }

    fn lives(&self, entry: &Entry) -> bool {
        let head = self.heads[&entry.backend];
        head.alive() && head.generation() == entry.generation
    }

    fn packet(&mut self, key: FlowKey, l4: L4, sequence: u32) -> u32 {
        if !self.row.lookup() {
            return self.row.owner().get();
        }
        if l4 == L4::Syn {
            self.opening(key, sequence)
        } else {
            self.other(key, l4, sequence)
        }
    }

    /// An opening packet.
    fn opening(&mut self, key: FlowKey, sequence: u32) -> u32 {
        let (owner, untracked) = (self.row.owner().get(), self.row.untracked().get());
        let live = self
            .established
            .get(&key)
            .map(|(_, entry)| *entry)
            .filter(|entry| self.lives(entry));
        // A flow that goes on, as far as anybody knows: its VM shall say.
        if let Some(entry) = live {
            let accepts = self.heads[&entry.backend].accepts();
            if entry.numbers[0] == sequence || (accepts && !entry.closed) {
                let (_, entry) = self.established.get_mut(&key).expect("an entry");
                entry.numbers[0] = sequence;
                return entry.backend;
            }
        }
        // Another opening packet was there before.
        let mut stale = false;
        if let Some(half) = self.half_open.get(&key).copied().filter(|h| self.lives(h)) {
            let again = half.numbers.contains(&sequence);
            let answered = half.confirmed || self.heads[&half.backend].accepts();
            if (again && answered) || (!again && !half.closed) {
                let half = self.half_open.get_mut(&key).expect("an entry");
                if !again {
                    half.numbers = [sequence, half.numbers[0]];
                }
                return half.backend;
            }
            stale = true;
        }
        if let Some(entry) = live
            && entry.backend == owner
        {
            let (_, entry) = self.established.get_mut(&key).expect("an entry");
            entry.closed = false;
            entry.numbers = [sequence, sequence];
            return owner;
        }
        // Where all flows without an entry are the owner's, a new one needs none.
        if live.is_none() && owner == untracked && !stale {
            self.established.remove(&key);
            return owner;
        }
        if live.is_none() {
            self.established.remove(&key);
        }
        if self.room(Table::HalfOpen) || self.half_open.contains_key(&key) {
            let entry = self.entry(owner, sequence);
            self.half_open.insert(key, entry);
            if let Some((_, entry)) = self.established.get_mut(&key) {
                entry.reopened = true;
            }
            return owner;
        }
        if let Some(entry) = live
            && !entry.closed
        {
            let (_, kept) = self.established.get_mut(&key).expect("an entry");
            kept.numbers[0] = sequence;
            return entry.backend;
        }
        self.established.remove(&key);
        if self.heads[&untracked].alive() {
            untracked
        } else {
            owner
        }
    }

    /// Any other packet.
    fn other(&mut self, key: FlowKey, l4: L4, sequence: u32) -> u32 {
        let (owner, untracked) = (self.row.owner().get(), self.row.untracked().get());
        let found = self.established.get(&key).copied();
        let live = found.filter(|(_, entry)| self.lives(entry));
        let half = self.half_open.get(&key).copied();
        // An entry that nobody opened anew has nothing beside it.
        let half = half.filter(|_| live.is_none_or(|(_, entry)| entry.reopened));
        let follows = |half: &Entry| {
            let follows = half.numbers.iter().any(|n| behind(*n, sequence, 1 << 17));
            let goes_on = found.is_some_and(|(_, entry)| {
                !entry.closed && sequence.wrapping_sub(entry.numbers[1]) < 1 << 17
            });
            half.confirmed || (follows && !goes_on)
        };
        if let Some(half) = half.filter(|half| self.lives(half) && follows(half)) {
            return self.confirm(key, l4, sequence, half);
        }
        if let Some((_, entry)) = live {
            let (_, kept) = self.established.get_mut(&key).expect("an entry");
            seen(kept, l4, sequence);
            return entry.backend;
        }
        if !self.heads[&untracked].alive() {
            if owner == untracked {
                self.established.remove(&key);
            }
            return owner;
        }
        self.established.remove(&key);
        if owner != untracked && self.room(Table::Kept) {
            let mut entry = self.entry(untracked, sequence);
            entry.numbers[0] = 0;
            entry.reopened = half.is_some();
            self.established.insert(key, (Table::Kept, entry));
        }
        untracked
    }

    fn confirm(&mut self, key: FlowKey, l4: L4, sequence: u32, mut half: Entry) -> u32 {
        if half.confirmed {
            seen(&mut half, l4, sequence);
            self.half_open.insert(key, half);
            return half.backend;
        }
        let opened = half.numbers.iter().find(|n| behind(**n, sequence, 1 << 17));
        half.numbers = [*opened.expect("an opening packet"), sequence];
        half.confirmed = true;
        half.closed |= matches!(l4, L4::Fin | L4::Rst);
        if matches!(self.established.get(&key), Some((Table::Kept, _))) {
            self.established.remove(&key);
        }
        if self.room(Table::Confirmed) || self.established.contains_key(&key) {
            self.half_open.remove(&key);
            self.established.insert(key, (Table::Confirmed, half));
        } else {
            self.half_open.insert(key, half);
        }
        half.backend
    }
}

/// A packet of an entry's flow. In a test no time passes, so no recent number is noted.
fn seen(entry: &mut Entry, l4: L4, sequence: u32) {
    let near = sequence.wrapping_sub(entry.numbers[1]) < 1 << 22
        || behind(entry.numbers[0], sequence, 1 << 17);
    entry.closed |= matches!(l4, L4::Fin | L4::Rst) && near;
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
        established: BTreeMap::new(),
        half_open: BTreeMap::new(),
    };
    let mut state = 0x2545_f491_4f6c_dd1d_u64;
    let mut random = |below: usize| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state % below as u64) as usize
    };
    let mut taken = BTreeMap::new();
    let mut swept = Instant::now();
    for step in 0..60_000 {
        // The model has no clock: entries must go before the program writes their time anew.
        let old = swept.elapsed() > Duration::from_millis(30);
        if !old && random(12) > 0 {
            let l4 = [L4::Syn, L4::Ack, L4::Ack, L4::Fin, L4::Rst, L4::Udp][random(6)];
            let port = 1 + random(FLOWS) as u16;
            let sequence = match (l4, random(8)) {
                (L4::Udp, _) => 0,
                (_, 0..5) => l4.sequence(),
                // Another flow with this tuple, or a stray.
                (_, 5 | 6) => l4.sequence() + 100_000_000,
                _ => l4.sequence() + [1 << 17, (1 << 17) + 1, 1 << 22, 3_000_000_000][random(4)],
            };
            let expected = model.packet(key(port, l4), l4, sequence);
            assert_eq!(
                send_at(&mut program, l4, port, sequence),
                expected,
                "step {step}: {l4:?} {sequence} of flow {port}, {:?}",
                model.row
            );
            *taken.entry(expected).or_insert(0) += 1;
            continue;
        }
        let number = 1 + random(BACKENDS as usize) as u32;
        match if old { 5 } else { random(8) } {
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
                model.established.clear();
                model.half_open.clear();
                swept = Instant::now();
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
        let show = |entry: &Entry| (entry.backend, entry.generation, entry.flags());
        let established = model.established.iter();
        let mut flows: BTreeMap<_, _> = established
            .map(|(key, (table, entry))| ((*table, *key), show(entry)))
            .collect();
        for (key, half) in &model.half_open {
            flows.insert((Table::HalfOpen, *key), show(half));
        }
        assert_eq!(program.traces().flows, flows, "step {step}");
    }
    assert_eq!(
        taken.len(),
        BACKENDS as usize,
        "all backends took part: {taken:?}"
    );
}
