//! A world of flows, moves, deaths, drains and floods against an oracle that knows every flow's VM:
//! the real [`Ring`], the real packet rule, a plain flow table. No living flow may ever reach
//! another VM than its own, but for the one gap that we know; and with any one clause of the rule
//! left out the oracle finds flows that do.

mod tables;
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use lb_common::backend::BackendSlot;
use lb_common::flow::{FlowEntry, Table};
use lb_common::row::Row;

use super::{Member, Ring};

const BACKENDS: u32 = 6;
const TUPLES: u64 = 500;
const IDLE: Duration = Duration::from_secs(60);
/// How long the entry of a closed flow stays, and that of one that was only opened.
const CLOSED: Duration = Duration::from_secs(20);
const HALF_OPEN: Duration = Duration::from_secs(12);
/// Entries of each table: some hundred flows don't fit when much moves.
const CAPACITY: usize = 100;

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
    /// Rows end their asking though entries of closed flows are there.
    FinishOverClosed,
    /// A second move makes the owner before it the holder of untracked flows.
    ForgetFirstOwner,
    /// An old entry of a reused tuple stays when the row needs none for the new flow.
    KeepOldEntry,
    /// A refused opening packet goes to the owner all the same.
    RefusedToOwner,
    /// Packets of old flows are not entered.
    KeepNothing,
    /// Any packet confirms a half-open flow.
    TrustAnySequence,
    /// Any FIN or RST closes a flow.
    TrustAnyEnd,
    /// An opening packet deletes the entry of a flow whose backend takes no new ones.
    DeleteOnOpening,
}

#[derive(Clone, Copy)]
struct Backend {
    alive: bool,
    accepts: bool,
    weight: u32,
    generation: u16,
}

/// An entry of a flow table, as far as the model needs it.
#[derive(Clone, Copy)]
struct Tracked {
    table: Table,
    entry: FlowEntry,
    last: Instant,
}

impl Tracked {
    fn closed(&self) -> bool {
        self.entry.flags & FlowEntry::CLOSED != 0
    }
}

/// A packet.
#[derive(Clone, Copy)]
struct Packet {
    tuple: u64,
    opening: bool,
    closing: bool,
    sequence: u32,
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
    /// The sequence numbers of its opening packet and of the next.
    opened: u32,
    sequence: u32,
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
    /// Packets that are not of the flow whose addresses they carry, or come twice.
    stray: u64,
}

struct World {
    fault: Fault,
    random: u64,
    now: Instant,
    ring: Ring,
    backends: BTreeMap<u32, Backend>,
    /// How often each VM was born; unlike the generation always told apart.
    lives: BTreeMap<u32, u32>,
    /// Confirmed and kept flows.
    established: BTreeMap<u64, Tracked>,
    half_open: BTreeMap<u64, Tracked>,
    flows: BTreeMap<u64, Flow>,
    closed: BTreeSet<u64>,
    /// Flows whose opening was followed by a stray opening packet.
    disturbed: BTreeSet<u64>,
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
            established: BTreeMap::new(),
            half_open: BTreeMap::new(),
            flows: BTreeMap::new(),
            closed: BTreeSet::new(),
            disturbed: BTreeSet::new(),
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
        let stays = |tracked: &Tracked| {
            let backend = backends[&tracked.entry.backend];
            let lives = backend.alive && backend.generation == tracked.entry.generation;
            let opening =
                tracked.table == Table::HalfOpen && tracked.entry.flags & FlowEntry::CONFIRMED == 0;
            let limit = if tracked.closed() {
                CLOSED
            } else if opening {
                HALF_OPEN
            } else {
                IDLE
            };
            lives && now - tracked.last <= limit
        };
        self.established.retain(|_, tracked| stays(tracked));
        self.half_open.retain(|_, tracked| stays(tracked));
        let mask = self.ring.rows().len() as u64 - 1;
        let mut busy = BTreeSet::new();
        for (tuple, tracked) in self.established.iter().chain(&self.half_open) {
            let index = (hash(*tuple) & mask) as u32;
            let owner = self.ring.row(index).unwrap().owner();
            let hides = tracked.closed() && self.fault != Fault::FinishOverClosed;
            if hides || owner != slot(tracked.entry.backend) {
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
        let old = old.filter(|flow| {
            let limit = if flow.opening { HALF_OPEN } else { IDLE };
            now - flow.last < limit && self.lives(flow)
        });
        let packet = |opening, closing, sequence| Packet {
            tuple,
            opening,
            closing,
            sequence,
        };
        match old {
            None => {
                let reused = self.closed.remove(&tuple);
                self.outcome.reused += u64::from(reused);
                let udp = tuple.is_multiple_of(5);
                // Flows with one tuple begin far from each other. Strays have the other half of the
                // numbers.
                let opened = if udp {
                    0
                } else {
                    (self.outcome.packets as u32 % (1 << 11)) << 20
                };
                let vm = self.forward(packet(!udp, false, opened));
                let life = self.lives[&vm];
                let flow = Flow {
                    vm,
                    life,
                    last: now,
                    udp,
                    opening: !udp,
                    opened,
                    sequence: if udp { 0 } else { opened + 1 },
                };
                self.flows.insert(tuple, flow);
                self.disturbed.remove(&tuple);
            }
            Some(flow) if flow.opening && self.below(10) == 0 => {
                let vm = self.forward(packet(true, false, flow.opened));
                if vm != flow.vm {
                    self.outcome.reopened += 1;
                    self.flows.remove(&tuple);
                } else {
                    self.flows.insert(tuple, Flow { last: now, ..flow });
                }
            }
            // An opening packet of before that the network brings once more. If it left no entry
            // when it came first, it is the gap again.
            Some(flow) if !flow.udp && !flow.opening && self.below(30) == 0 => {
                self.outcome.stray += 1;
                let entry = self.established.get(&tuple).map(|tracked| tracked.entry);
                let known = entry.is_some_and(|entry| entry.opened == flow.opened);
                let vm = self.forward(packet(true, false, flow.opened));
                if vm != flow.vm && !known {
                    self.outcome.reopened += 1;
                    self.flows.remove(&tuple);
                }
            }
            Some(flow) => {
                let closing = !flow.udp && self.below(8) == 0;
                let vm = self.forward(packet(false, closing, flow.sequence));
                if vm != flow.vm {
                    self.outcome.moved += 1;
                    self.flows.remove(&tuple);
                } else if closing {
                    self.flows.remove(&tuple);
                    self.closed.insert(tuple);
                } else {
                    let more = if flow.udp { 0 } else { self.below(1000) as u32 };
                    self.flows.insert(
                        tuple,
                        Flow {
                            last: now,
                            opening: false,
                            sequence: flow.sequence + more,
                            ..flow
                        },
                    );
                }
            }
        }
    }

    /// A packet that somebody sends with a client's addresses, as floods do: an opening packet, or
    /// the end of a flow, whose sequence number is a guess, and wrong.
    fn stray(&mut self) {
        let tuple = self.below(TUPLES);
        let opening = self.below(2) == 0;
        if tuple.is_multiple_of(5) {
            return;
        }
        // Two of them between a flow's first packet and its second are more than an entry remembers.
        let opening_flow = self.flows.get(&tuple).is_some_and(|flow| flow.opening);
        if opening && opening_flow && !self.disturbed.insert(tuple) {
            return;
        }
        self.outcome.stray += 1;
        let sequence = (1 << 31) + (1 << 25) + self.below(1 << 30) as u32;
        self.forward(Packet {
            tuple,
            opening,
            closing: !opening,
            sequence,
        });
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
            if self.below(20) == 0 {
                self.stray();
            }
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
