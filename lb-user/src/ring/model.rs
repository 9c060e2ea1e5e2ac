//! A world of flows, moves, deaths, drains and floods against an oracle that knows every flow's VM:
//! the real [`Ring`], the real packet rule, a plain flow table. No living flow may ever reach
//! another VM than its own, but for the one gap that we know; and with any one clause of the rule
//! left out the oracle finds flows that do.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use lb_common::backend::BackendSlot;
use lb_common::flow::Table;
use lb_common::row::{Choice, Entry, Row, choose, open_refused};
use proptest::prelude::*;

use super::{Member, Ring};

const BACKENDS: u32 = 6;
const TUPLES: u64 = 500;
const IDLE: Duration = Duration::from_secs(60);
/// Entries of each table: some hundred flows don't fit when much moves.
const CAPACITY: usize = 150;

/// A clause of the rule that is left out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fault {
    None,
    /// Rows settle though inserts were refused.
    SettleWhileRefused,
    /// Rows settle at once.
    SettleEarly,
    /// Rows end their asking though entries of others are there.
    FinishEarly,
    /// A second move makes the owner before it the holder of untracked flows.
    ForgetFirstOwner,
    /// An old entry of a reused tuple stays when the row needs none for the new flow.
    KeepOldEntry,
    /// A refused opening packet goes to the owner all the same.
    RefusedToOwner,
    /// Packets of old flows are not entered.
    KeepNothing,
}

#[derive(Clone, Copy)]
struct Backend {
    alive: bool,
    accepts: bool,
    weight: u32,
    generation: u16,
}

#[derive(Clone, Copy)]
struct Tracked {
    table: Table,
    backend: u32,
    generation: u16,
    closed: bool,
    last: Instant,
}

/// A flow, as its client and its VM know it.
#[derive(Clone, Copy)]
struct Flow {
    vm: u32,
    /// The life of the VM that it opened in.
    life: u32,
    last: Instant,
    udp: bool,
    /// Only its opening packet was sent.
    opening: bool,
}

#[derive(Debug, Default, PartialEq, Eq)]
struct Outcome {
    packets: u64,
    /// Packets of living flows that reached another VM.
    moved: u64,
    /// Repeated opening packets that did: the gap.
    reopened: u64,
    moves: usize,
    deaths: u64,
    refused: u64,
    reused: u64,
}

struct World {
    fault: Fault,
    random: u64,
    now: Instant,
    ring: Ring,
    backends: BTreeMap<u32, Backend>,
    /// How often each VM was born; unlike the generation always told apart.
    lives: BTreeMap<u32, u32>,
    table: BTreeMap<u64, Tracked>,
    flows: BTreeMap<u64, Flow>,
    closed: BTreeSet<u64>,
    refused_at: Option<Instant>,
    outcome: Outcome,
}

fn slot(number: u32) -> BackendSlot {
    BackendSlot::new(number).unwrap()
}

impl World {
    fn new(seed: u64, fault: Fault) -> Self {
        let backend = Backend {
            alive: true,
            accepts: true,
            weight: 100,
            generation: 0,
        };
        let backends: BTreeMap<u32, Backend> = (1..=BACKENDS).map(|n| (n, backend)).collect();
        let mut world = Self {
            fault,
            random: seed | 1,
            now: Instant::now(),
            ring: Ring::new(1, &[]),
            lives: backends.keys().map(|n| (*n, 0)).collect(),
            backends,
            table: BTreeMap::new(),
            flows: BTreeMap::new(),
            closed: BTreeSet::new(),
            refused_at: None,
            outcome: Outcome::default(),
        };
        world.ring = Ring::new(32, &world.members());
        world
    }

    fn below(&mut self, limit: u64) -> u64 {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        (self.random >> 11) % limit
    }

    fn members(&self) -> Vec<Member> {
        let members = self.backends.iter().map(|(number, backend)| Member {
            slot: slot(*number),
            weight: if backend.alive && backend.accepts {
                backend.weight
            } else {
                0
            },
            identity: u64::from(*number),
        });
        members.collect()
    }

    /// What the planner does after any change.
    fn plan(&mut self) {
        let members = self.members();
        let before: Vec<Row> = self.ring.rows().to_vec();
        for (number, backend) in &self.backends {
            if !backend.alive {
                self.ring.death(slot(*number), &members, self.now);
            }
        }
        let moved = self.ring.rebalance(&members, self.now);
        self.outcome.moves += moved.len();
        if self.fault == Fault::ForgetFirstOwner {
            for change in moved {
                let last = before[change.index as usize].owner();
                self.ring.rows[change.index as usize] = Row::new(change.row.owner(), last, true);
            }
        }
    }

    fn sweep(&mut self) {
        let (now, backends) = (self.now, &self.backends);
        self.table.retain(|_, entry| {
            let backend = backends[&entry.backend];
            let lives = backend.alive && backend.generation == entry.generation;
            lives && now - entry.last <= IDLE
        });
        let mask = self.ring.rows().len() as u64 - 1;
        let mut busy = BTreeSet::new();
        for (tuple, entry) in &self.table {
            let index = (hash(*tuple) & mask) as u32;
            if self.ring.row(index).unwrap().owner() != slot(entry.backend) {
                busy.insert(index);
            }
        }
        let early = self.fault == Fault::FinishEarly;
        // The sweep is over in no time: what changed before it is seen.
        self.ring
            .finish(now, |index| !early && busy.contains(&index));
        let refused = self
            .refused_at
            .filter(|_| self.fault != Fault::SettleWhileRefused);
        let idle = if self.fault == Fault::SettleEarly {
            Duration::from_secs(5)
        } else {
            IDLE
        };
        self.ring.settle(now, idle, refused);
    }

    fn insert(&mut self, tuple: u64, table: Table, backend: u32) -> bool {
        if self
            .table
            .values()
            .filter(|entry| entry.table == table)
            .count()
            >= CAPACITY
        {
            self.refused_at = Some(self.now);
            self.outcome.refused += 1;
            return false;
        }
        let entry = Tracked {
            table,
            backend,
            generation: self.backends[&backend].generation,
            closed: false,
            last: self.now,
        };
        self.table.insert(tuple, entry);
        true
    }

    /// The packet rule, as the program has it. Returns the backend.
    fn forward(&mut self, tuple: u64, opening: bool, closing: bool) -> u32 {
        let mask = self.ring.rows().len() as u64 - 1;
        let row = self.ring.row((hash(tuple) & mask) as u32).unwrap();
        let (owner, untracked) = (row.owner().get(), row.untracked().get());
        if !row.lookup() {
            return owner;
        }
        let untracked_lives = self.backends[&untracked].alive;
        let found = self.table.get(&tuple).copied();
        let state = found.map_or(Entry::Miss, |entry| {
            let backend = self.backends[&entry.backend];
            if !backend.alive || backend.generation != entry.generation {
                Entry::Dead
            } else if !backend.accepts || entry.closed {
                Entry::Finished
            } else {
                Entry::Live
            }
        });
        match choose(row, opening, state, untracked_lives) {
            Choice::Entry => {
                let room = self
                    .table
                    .values()
                    .filter(|e| e.table == Table::Confirmed)
                    .count()
                    < CAPACITY;
                let now = self.now;
                let entry = self.table.get_mut(&tuple).unwrap();
                entry.last = now;
                entry.closed |= closing;
                if entry.table == Table::HalfOpen && !opening && room {
                    entry.table = Table::Confirmed;
                }
                entry.backend
            }
            Choice::Owner => owner,
            Choice::Untracked => untracked,
            Choice::OwnerForget => {
                if self.fault != Fault::KeepOldEntry {
                    self.table.remove(&tuple);
                }
                owner
            }
            Choice::Open => {
                self.table.remove(&tuple);
                if self.insert(tuple, Table::HalfOpen, owner) || self.fault == Fault::RefusedToOwner
                {
                    owner
                } else {
                    open_refused(row, untracked_lives).get()
                }
            }
            Choice::Keep => {
                self.table.remove(&tuple);
                if self.fault != Fault::KeepNothing {
                    self.insert(tuple, Table::Kept, untracked);
                }
                untracked
            }
        }
    }

    fn lives(&self, flow: &Flow) -> bool {
        self.backends[&flow.vm].alive && self.lives[&flow.vm] == flow.life
    }

    /// A packet of some flow, new or old.
    fn packet(&mut self) {
        self.outcome.packets += 1;
        let tuple = self.below(TUPLES);
        let now = self.now;
        // Who was silent for the idle time-out, or whose VM died, has ended.
        let old = self.flows.get(&tuple).copied();
        let old = old.filter(|flow| now - flow.last < IDLE && self.lives(flow));
        match old {
            None => {
                let reused = self.closed.remove(&tuple);
                self.outcome.reused += u64::from(reused);
                let udp = tuple.is_multiple_of(5);
                let vm = self.forward(tuple, !udp, false);
                let life = self.lives[&vm];
                let flow = Flow {
                    vm,
                    life,
                    last: now,
                    udp,
                    opening: !udp,
                };
                self.flows.insert(tuple, flow);
            }
            Some(flow) if flow.opening && self.below(10) == 0 => {
                let vm = self.forward(tuple, true, false);
                if vm != flow.vm {
                    self.outcome.reopened += 1;
                    self.flows.remove(&tuple);
                } else {
                    self.flows.insert(tuple, Flow { last: now, ..flow });
                }
            }
            Some(flow) => {
                let closing = !flow.udp && self.below(8) == 0;
                let vm = self.forward(tuple, false, closing);
                if vm != flow.vm {
                    self.outcome.moved += 1;
                    self.flows.remove(&tuple);
                } else if closing {
                    self.flows.remove(&tuple);
                    self.closed.insert(tuple);
                } else {
                    self.flows.insert(
                        tuple,
                        Flow {
                            last: now,
                            opening: false,
                            ..flow
                        },
                    );
                }
            }
        }
    }

    /// Something that the daemon sees or the operator does.
    fn event(&mut self) {
        let number = 1 + self.below(u64::from(BACKENDS)) as u32;
        let mut backend = self.backends[&number];
        match self.below(10) {
            0..=4 => backend.weight = [0, 50, 90, 100, 110, 300][self.below(6) as usize],
            5 | 6 => backend.accepts = !backend.accepts,
            7 => {
                let others = self
                    .backends
                    .values()
                    .filter(|backend| backend.alive)
                    .count()
                    > 2;
                if backend.alive && others {
                    backend.alive = false;
                    backend.generation += 1;
                    self.outcome.deaths += 1;
                }
            }
            8 => {
                if !backend.alive {
                    backend.alive = true;
                    *self.lives.get_mut(&number).unwrap() += 1;
                }
            }
            _ => {
                if self.ring.rows().len() < 256 && self.below(20) == 0 {
                    self.ring = self.ring.doubled();
                }
            }
        }
        self.backends.insert(number, backend);
        self.plan();
    }

    fn run(mut self, packets: u64) -> Outcome {
        while self.outcome.packets < packets {
            self.packet();
            // About ten packets a second, and every flow often enough to be alive mostly.
            let pause = self.below(200);
            self.now += Duration::from_millis(pause);
            match self.below(400) {
                0 => self.event(),
                1..=3 => self.sweep(),
                // A quiet time in which rows settle.
                4 if self.below(10) == 0 => self.now += IDLE / 2,
                _ => {}
            }
        }
        self.outcome
    }
}

fn hash(tuple: u64) -> u64 {
    tuple.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32
}

#[test]
fn no_flow_is_ever_moved_while_its_vm_lives() {
    let outcome = World::new(0x5eed, Fault::None).run(400_000);
    assert_eq!(outcome.moved, 0, "{outcome:?}");
    // All that can go wrong was there.
    assert!(outcome.moves > 1000 && outcome.deaths > 20, "{outcome:?}");
    assert!(
        outcome.refused > 100 && outcome.reused > 1000,
        "{outcome:?}"
    );
    // The gap: an opening packet that is repeated after its row moved. Here one in ten is repeated
    // and rows move every minute; even so it is rare.
    assert!(outcome.reopened > 0, "the model has it: {outcome:?}");
    assert!(outcome.reopened * 500 < outcome.packets, "{outcome:?}");
}

#[test]
fn every_clause_of_the_rule_is_needed() {
    for fault in [
        Fault::SettleWhileRefused,
        Fault::SettleEarly,
        Fault::FinishEarly,
        Fault::ForgetFirstOwner,
        Fault::KeepOldEntry,
        Fault::RefusedToOwner,
        Fault::KeepNothing,
    ] {
        let outcome = World::new(0x5eed, fault).run(400_000);
        assert!(outcome.moved > 0, "{fault:?} goes unnoticed: {outcome:?}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn no_flow_is_moved_in_any_world(seed: u64) {
        let outcome = World::new(seed, Fault::None).run(20_000);
        prop_assert_eq!(outcome.moved, 0);
    }
}
