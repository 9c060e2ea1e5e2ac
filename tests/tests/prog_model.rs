//! The loaded program against a model that says the row rule once more, in its own words: random
//! packets, moves, deaths, drains and full tables, in both families.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use lb_common::backend::Head;
use lb_common::flow::{FlowEntry, Table};
use lb_common::row::Row;
use lb_tests::frame::L4;
use lb_tests::program::{Program, slot};
use lb_tests::rows::Rows;
use lb_user::dataplane::{Dataplane as _, FlowKey};

const BACKENDS: u32 = 4;

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
        // Where all flows without an entry are the owner's, a new one needs none; but one of before
        // would be taken for it.
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
    for v4 in [true, false] {
        same_choices(v4);
    }
}

fn same_choices(v4: bool) {
    const FLOWS: usize = 24;
    let capacity = 6;
    let mut rows = Rows::new(
        Program::new(capacity as u32),
        v4,
        BACKENDS,
        &[Row::settled(slot(1))],
    );
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
            let expected = model.packet(rows.key(port, l4), l4, sequence);
            assert_eq!(
                rows.send_at(l4, port, sequence),
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
                model.row = Row::new(slot(number), slot(untracked), true);
                rows.set(0, model.row);
            }
            4 => {
                model.row = Row::settled(slot(number));
                rows.set(0, model.row);
            }
            5 => {
                // The sweep: everything ended.
                let flows: Vec<_> = rows.program.traces().flows.into_keys().collect();
                for (table, key) in flows {
                    rows.program.kernel.remove_flow(table, &key).unwrap();
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
                rows.program.head(number, head);
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
        assert_eq!(rows.program.traces().flows, flows, "step {step}");
    }
    assert_eq!(
        taken.len(),
        BACKENDS as usize,
        "all backends took part: {taken:?}"
    );
}
