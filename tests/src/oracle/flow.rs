//! The flow tables, and who a packet goes to where its row says that they must be asked.
//!
//! What ARCHITECTURE.md says of rows, once more: an opening packet proves nothing, so it makes a
//! half-open entry beside the flow's own, and the sequence number of the next packet says to which
//! of the two it belongs. Tables refuse, and never evict.

use std::collections::BTreeMap;

use super::clause::{Clause, Walk};
use super::read::{Kind, Packet};
use super::world::{Entry, Flow, Row, Table, World};

/// How many ticks an entry's time may lag behind.
const REFRESH: u32 = 100;
/// How far behind its opening packet a flow's next packet may be.
const WINDOW: u32 = 1 << 17;
/// How far ahead of a recent packet another one is of the same flow for sure.
const NEAR: u32 = 1 << 22;

/// The flow tables of both families.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tables {
    /// What is in them.
    pub entries: BTreeMap<(Table, Flow), Entry>,
    /// How many entries each of them holds.
    pub room: usize,
}

impl Tables {
    /// Returns how many entries a table of a flow's family has.
    fn count(&self, table: Table, flow: &Flow) -> usize {
        let of_table = |key: &&(Table, Flow)| {
            key.0 == table && key.1.client.is_ipv4() == flow.client.is_ipv4()
        };
        self.entries.keys().filter(of_table).count()
    }

    /// Puts an entry in, in place of another of the same flow. Returns whether there was room.
    fn put(&mut self, entry: Entry, walk: &mut Walk) -> bool {
        let key = (entry.table, entry.flow);
        let room =
            self.entries.contains_key(&key) || self.count(entry.table, &entry.flow) < self.room;
        if !walk.at(Clause::Room, room) {
            return false;
        }
        self.entries.insert(key, entry);
        true
    }

    fn own(&self, table: Table, flow: &Flow) -> Option<Entry> {
        self.entries
            .get(&(table, *flow))
            .filter(|entry| !entry.foreign)
            .copied()
    }
}

/// One packet of a row that asks.
pub struct Asking<'a> {
    /// The backends.
    pub world: &'a World,
    /// The tables.
    pub tables: &'a mut Tables,
    /// What was asked so far.
    pub walk: &'a mut Walk,
    /// The packet.
    pub packet: &'a Packet,
    /// Its service's slot.
    pub service: u32,
    /// Its row.
    pub row: Row,
    /// Whether the packet is only explained: it then has no sequence number that means anything.
    pub explains: bool,
    /// Whether it may change the tables.
    pub writes: bool,
    /// How many entries were refused.
    pub refused: u64,
}

impl Asking<'_> {
    fn opening(&self) -> bool {
        self.packet.kind == Kind::Opening
    }

    /// Whether a backend lives, whatever its generation.
    fn alive(&mut self, slot: u32) -> bool {
        let backend = self.world.backend(slot);
        self.walk.at(Clause::BackendExists, backend.is_some())
            && backend.is_some_and(|backend| self.walk.at(Clause::BackendAlive, backend.alive))
    }

    /// Whether the backend lives that the entry's flow belongs to.
    fn lives(&mut self, entry: &Entry) -> bool {
        let backend = self.world.backend(entry.backend);
        self.alive(entry.backend)
            && backend.is_some_and(|backend| {
                self.walk.at(
                    Clause::SameGeneration,
                    backend.generation == entry.generation,
                )
            })
    }

    fn accepts(&mut self, entry: &Entry) -> bool {
        let backend = self.world.backend(entry.backend);
        let accepts = backend.is_some_and(|backend| backend.accepts);
        self.walk.at(Clause::BackendAccepts, accepts)
    }

    /// Returns the backend that the packet goes to.
    pub fn backend(&mut self) -> u32 {
        if self.packet.kind == Kind::About {
            // About a flow is not of a flow: nothing is written.
            self.writes = false;
        }
        let flow = self.packet.flow;
        let confirmed = self.tables.own(Table::Confirmed, &flow);
        let kept = self.tables.own(Table::Kept, &flow);
        let established = if self.walk.at(Clause::HasConfirmed, confirmed.is_some()) {
            confirmed
        } else if self.walk.at(Clause::HasKept, kept.is_some()) {
            kept
        } else {
            None
        };
        let live = match established {
            Some(entry) if self.lives(&entry) => Some(entry),
            Some(_) | None => None,
        };
        if self.opening() {
            self.opening_packet(established, live)
        } else {
            self.other_packet(established, live)
        }
    }

    /// A packet that opens a flow. `live` is the established entry if its backend lives.
    fn opening_packet(&mut self, established: Option<Entry>, live: Option<Entry>) -> u32 {
        let sequence = self.packet.sequence;
        let mut over = false;
        if let Some(entry) = live {
            // The network may have brought the flow's own opening packet twice.
            let repeated = self.walk.at(Clause::SameOpening, entry.opened == sequence);
            let closed = self.walk.at(Clause::EntryClosed, entry.closed);
            if repeated || (!closed && self.accepts(&entry)) {
                // The VM knows what an opening packet in the middle of its flow means.
                self.seen(entry);
                return entry.backend;
            }
            over = closed;
        }
        let mut stale = false;
        if let Some(half) = self.half_open_entry()
            && self.lives(&half)
        {
            let again = half.opened == sequence || half.recent == sequence;
            if self.walk.at(Clause::SameOpening, again) {
                // If its backend takes no new flows any more, nobody will have answered.
                if self.walk.at(Clause::HalfConfirmed, half.confirmed) || self.accepts(&half) {
                    self.opened_again(half);
                    return half.backend;
                }
                stale = true;
            } else if self.walk.at(Clause::EntryClosed, half.closed) {
                stale = true;
            } else {
                // Which of two opening packets is the client's, the next packet tells.
                self.opened_again(half);
                return half.backend;
            }
        }
        if let Some(entry) = live {
            let owners = entry.backend == self.row.owner;
            if self.walk.at(Clause::OwnerHasEntry, owners) {
                self.reuse(entry);
                return self.row.owner;
            }
        } else {
            let moved = self.row.owner != self.row.untracked;
            if !stale && !self.walk.at(Clause::RowMoved, moved) {
                // The new flow needs no entry, since all flows without one are the owner's. But
                // the one of before would be taken for it.
                self.forget(established);
                return self.row.owner;
            }
        }
        self.open(established, live, over)
    }

    /// Makes a half-open entry for a new flow at the row's owner.
    fn open(&mut self, established: Option<Entry>, live: Option<Entry>, over: bool) -> u32 {
        if !self.writes {
            return self.row.owner;
        }
        if live.is_none() {
            self.forget(established);
        }
        let entry = self.new_entry(Table::HalfOpen, self.row.owner);
        if self.tables.put(entry, self.walk) {
            if let Some(earlier) = live {
                self.store(Entry {
                    reopened: true,
                    ..earlier
                });
            }
            return self.row.owner;
        }
        self.refused += 1;
        if let Some(entry) = live
            && !over
        {
            // For all that is known, the flow goes on.
            self.seen(entry);
            return entry.backend;
        }
        self.forget(established);
        // Without an entry it will be taken for one of the untracked flows.
        if self.untracked_alive() {
            self.row.untracked
        } else {
            self.row.owner
        }
    }

    /// Any other packet.
    fn other_packet(&mut self, established: Option<Entry>, live: Option<Entry>) -> u32 {
        let mut half = None;
        // Beside the entry of a flow that nobody opened anew there is nothing.
        if live.is_none_or(|entry| self.walk.at(Clause::Reopened, entry.reopened)) {
            half = self.half_open_entry();
        }
        if let Some(half) = half
            && self.lives(&half)
            && self.belongs_to(&half, established, live)
        {
            self.confirm(half, established);
            return half.backend;
        }
        if let Some(entry) = live {
            self.seen(entry);
            return entry.backend;
        }
        let moved = self
            .walk
            .at(Clause::RowMoved, self.row.owner != self.row.untracked);
        let untracked_alive = self.untracked_alive();
        if moved && untracked_alive {
            self.forget(established);
            let entry = Entry {
                opened: 0,
                reopened: half.is_some(),
                ..self.new_entry(Table::Kept, self.row.untracked)
            };
            // Unlike the others, this one is only made where there is none yet.
            let taken = self.tables.entries.contains_key(&(Table::Kept, entry.flow));
            if self.writes && (taken || !self.tables.put(entry, self.walk)) {
                self.refused += 1;
            }
            return self.row.untracked;
        }
        if !moved {
            self.forget(established);
        }
        if untracked_alive {
            self.row.untracked
        } else {
            self.row.owner
        }
    }

    /// Whether a packet belongs to the half-open entry rather than to the established one.
    fn belongs_to(
        &mut self,
        half: &Entry,
        established: Option<Entry>,
        live: Option<Entry>,
    ) -> bool {
        if self.explains || self.walk.at(Clause::HalfConfirmed, half.confirmed) {
            return true;
        }
        if self.packet.kind == Kind::About {
            // The numbers that an error quotes are the VM's: they say nothing, so the flow that is
            // established is the likelier one. One whose VM is dead is none.
            return live.is_none();
        }
        let sequence = self.packet.sequence;
        let follows = follows(half.opened, sequence) || follows(half.recent, sequence);
        if !self.walk.at(Clause::Follows, follows) {
            return false;
        }
        let Some(earlier) = established else {
            return true;
        };
        self.walk.at(Clause::EntryClosed, earlier.closed)
            || !self.walk.at(
                Clause::GoesOn,
                sequence.wrapping_sub(earlier.recent) < WINDOW,
            )
    }

    fn half_open_entry(&mut self) -> Option<Entry> {
        let half = self.tables.own(Table::HalfOpen, &self.packet.flow);
        half.filter(|_| self.walk.at(Clause::HasHalfOpen, true))
    }

    fn untracked_alive(&mut self) -> bool {
        let alive = self.alive(self.row.untracked);
        self.walk.at(Clause::UntrackedAlive, alive)
    }

    fn store(&mut self, entry: Entry) {
        if self.writes {
            self.tables.entries.insert((entry.table, entry.flow), entry);
        }
    }

    fn forget(&mut self, entry: Option<Entry>) {
        if let Some(entry) = entry
            && self.writes
        {
            self.tables.entries.remove(&(entry.table, entry.flow));
        }
    }

    /// A packet of an entry's flow.
    fn seen(&mut self, mut entry: Entry) {
        let sequence = self.packet.sequence;
        let near = sequence.wrapping_sub(entry.recent) < NEAR || follows(entry.opened, sequence);
        let near = self.walk.at(Clause::Near, !self.opening() && near);
        if self.walk.at(Clause::Refresh, entry.age >= REFRESH) {
            entry.age = 0;
            if near {
                entry.recent = sequence;
            }
        }
        if self.opening() {
            entry.opened = sequence;
        }
        // Who doesn't know where the flow is may not close it.
        entry.closed |= self.packet.kind == Kind::Closing && near;
        self.store(entry);
    }

    /// Another opening packet, or the same once more, for a half-open entry: it remembers two.
    fn opened_again(&mut self, mut half: Entry) {
        let sequence = self.packet.sequence;
        half.age = 0;
        if half.opened != sequence && half.recent != sequence {
            half.recent = half.opened;
            half.opened = sequence;
            half.closed = false;
        }
        self.store(half);
    }

    /// A new flow with the tuple of an earlier one, at the same backend.
    fn reuse(&mut self, mut entry: Entry) {
        entry.age = 0;
        entry.opened = self.packet.sequence;
        entry.recent = self.packet.sequence;
        entry.closed = false;
        self.store(entry);
    }

    /// The second packet of a half-open flow.
    fn confirm(&mut self, mut half: Entry, earlier: Option<Entry>) {
        if half.confirmed {
            self.seen(half);
            return;
        }
        if !self.writes {
            return;
        }
        let sequence = self.packet.sequence;
        if !self
            .walk
            .at(Clause::FollowsLast, follows(half.opened, sequence))
        {
            half.opened = half.recent;
        }
        half.recent = sequence;
        half.age = 0;
        half.confirmed = true;
        half.closed |= self.packet.kind == Kind::Closing;
        if earlier.is_some_and(|entry| entry.table == Table::Kept) {
            self.forget(earlier);
        }
        let confirmed = Entry {
            table: Table::Confirmed,
            ..half
        };
        if self.tables.put(confirmed, self.walk) {
            self.forget(Some(half));
        } else {
            // It's as good as confirmed where it is.
            self.store(half);
        }
    }

    fn new_entry(&self, table: Table, slot: u32) -> Entry {
        Entry {
            table,
            flow: self.packet.flow,
            backend: slot,
            generation: self.world.backend(slot).map_or(0, |b| b.generation),
            service: self.service,
            closed: false,
            confirmed: false,
            reopened: false,
            opened: self.packet.sequence,
            recent: self.packet.sequence,
            age: 0,
            foreign: false,
        }
    }
}

/// Whether a packet may be the first one after an opening packet.
fn follows(opened: u32, sequence: u32) -> bool {
    (1..=WINDOW).contains(&sequence.wrapping_sub(opened))
}
