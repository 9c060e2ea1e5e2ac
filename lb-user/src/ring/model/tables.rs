//! The flow tables of the model, and the packet's way through them: what the program does with its
//! maps, on plain ones.

use lb_common::flow::{FlowEntry, Table};
use lb_common::row::{Choice, Established, HalfOpen, Refused, Row, choose, open_refused};

use super::{CAPACITY, Fault, Packet, Tracked, World, hash};

impl World {
    /// Returns whether a table takes another entry.
    fn room(&self, table: Table) -> bool {
        match table {
            Table::HalfOpen => self.half_open.len() < CAPACITY,
            Table::Confirmed | Table::Kept => {
                let of_table = self.established.values().filter(|t| t.table == table);
                of_table.count() < CAPACITY
            }
        }
    }

    fn insert(&mut self, packet: &Packet, table: Table, backend: u32, flags: u16) -> bool {
        let there = table == Table::HalfOpen && self.half_open.contains_key(&packet.tuple);
        if !there && !self.room(table) {
            self.refused_at = Some(self.now);
            self.outcome.refused += 1;
            return false;
        }
        let entry = FlowEntry {
            backend,
            generation: self.backends[&backend].generation,
            flags,
            last: 0,
            hash: 0,
            service: 0,
            opened: packet.sequence,
            recent: packet.sequence,
            _pad: 0,
        };
        let last = self.now;
        let tracked = Tracked { table, entry, last };
        if table == Table::HalfOpen {
            self.half_open.insert(packet.tuple, tracked);
        } else {
            self.established.insert(packet.tuple, tracked);
        }
        true
    }

    fn established(&self, packet: &Packet, found: Option<Tracked>) -> Established {
        let Some(found) = found else {
            return Established::None;
        };
        let backend = self.backends[&found.entry.backend];
        if !backend.alive || backend.generation != found.entry.generation {
            Established::Dead
        } else if packet.opening && packet.sequence == found.entry.opened {
            Established::Live
        } else if found.closed() {
            Established::Closed
        } else if !backend.accepts {
            Established::Leaving
        } else {
            Established::Live
        }
    }

    fn half_open(
        &self,
        packet: &Packet,
        half: Option<Tracked>,
        earlier: Option<Tracked>,
    ) -> HalfOpen {
        let Some(half) = half else {
            return HalfOpen::None;
        };
        let backend = self.backends[&half.entry.backend];
        let confirmed = half.entry.flags & FlowEntry::CONFIRMED != 0;
        let own = packet.opening && half.entry.is_opened_by(packet.sequence);
        let same = if packet.opening {
            own && (confirmed || backend.accepts)
        } else {
            confirmed
                || match earlier {
                    Some(earlier) => half.entry.wins_over(&earlier.entry, packet.sequence),
                    None => half.entry.is_followed_by(packet.sequence),
                }
                || self.fault == Fault::TrustAnySequence
        };
        if !backend.alive || backend.generation != half.entry.generation {
            HalfOpen::None
        } else if same {
            HalfOpen::Same
        } else if own || half.closed() {
            HalfOpen::Stale
        } else {
            HalfOpen::Other
        }
    }

    fn seen(&self, packet: &Packet, tracked: &mut Tracked) {
        let near = !packet.opening && tracked.entry.is_near(packet.sequence);
        tracked.last = self.now;
        if near {
            tracked.entry.recent = packet.sequence;
        }
        if packet.opening {
            tracked.entry.opened = packet.sequence;
        }
        if packet.closing && (near || self.fault == Fault::TrustAnyEnd) {
            tracked.entry.flags |= FlowEntry::CLOSED;
        }
    }

    fn open_again(&self, packet: &Packet, tracked: &mut Tracked) {
        tracked.last = self.now;
        if tracked.entry.opened != packet.sequence {
            tracked.entry.opened = packet.sequence;
            tracked.entry.recent = packet.sequence;
            tracked.entry.flags &= !FlowEntry::CLOSED;
        }
    }

    fn repeat(&self, packet: &Packet, half: &mut Tracked) {
        half.last = self.now;
        if !half.entry.is_opened_by(packet.sequence) {
            half.entry.recent = half.entry.opened;
            half.entry.opened = packet.sequence;
            half.entry.flags &= !FlowEntry::CLOSED;
        }
    }

    /// A packet follows the opening packet of a half-open flow.
    fn confirm(&mut self, packet: &Packet, mut half: Tracked) {
        if half.entry.flags & FlowEntry::CONFIRMED != 0 {
            self.seen(packet, &mut half);
            self.half_open.insert(packet.tuple, half);
            return;
        }
        half.entry.flags |= FlowEntry::CONFIRMED;
        half.entry.opened = half.entry.opening_of(packet.sequence);
        half.entry.recent = packet.sequence;
        half.last = self.now;
        if packet.closing {
            half.entry.flags |= FlowEntry::CLOSED;
        }
        let earlier = self.established.get(&packet.tuple).map(|t| t.table);
        if earlier == Some(Table::Kept) {
            self.established.remove(&packet.tuple);
        }
        if earlier == Some(Table::Confirmed) || self.room(Table::Confirmed) {
            half.table = Table::Confirmed;
            self.established.insert(packet.tuple, half);
            self.half_open.remove(&packet.tuple);
        } else {
            self.half_open.insert(packet.tuple, half);
        }
    }

    /// The packet rule, as the program has it. Returns the backend.
    pub(super) fn forward(&mut self, packet: Packet) -> u32 {
        let tuple = packet.tuple;
        let mask = self.ring.rows().len() as u64 - 1;
        let row = self.ring.row((hash(tuple) & mask) as u32).unwrap();
        let (owner, untracked) = (row.owner().get(), row.untracked().get());
        if !row.lookup() {
            return owner;
        }
        let untracked_lives = self.backends[&untracked].alive;
        let found = self.established.get(&tuple).copied();
        let established = self.established(&packet, found);
        let reopened = found.is_some_and(|f| f.entry.flags & FlowEntry::REOPENED != 0);
        let half = self.half_open.get(&tuple).copied();
        let half = half.filter(|_| established.asks_half_open(packet.opening, reopened));
        let half_open = self.half_open(&packet, half, found);
        let owner_has_it = found.is_some_and(|found| found.entry.backend == owner);
        match choose(
            row,
            packet.opening,
            established,
            half_open,
            owner_has_it,
            untracked_lives,
        ) {
            Choice::Entry => {
                let mut found = found.unwrap();
                self.seen(&packet, &mut found);
                self.established.insert(tuple, found);
                found.entry.backend
            }
            Choice::HalfOpen => {
                let mut half = half.unwrap();
                if packet.opening {
                    self.repeat(&packet, &mut half);
                    self.half_open.insert(tuple, half);
                } else {
                    self.confirm(&packet, half);
                }
                half.entry.backend
            }
            Choice::Reuse => {
                let mut found = found.unwrap();
                self.open_again(&packet, &mut found);
                self.established.insert(tuple, found);
                owner
            }
            Choice::Owner => owner,
            Choice::Untracked => untracked,
            Choice::OwnerForget => {
                self.established.remove(&tuple);
                owner
            }
            Choice::Open => self.open(&packet, row, established, untracked_lives),
            Choice::Keep => {
                self.established.remove(&tuple);
                if self.fault != Fault::KeepNothing {
                    let flags = if half.is_some() {
                        FlowEntry::REOPENED
                    } else {
                        0
                    };
                    self.insert(&packet, Table::Kept, untracked, flags);
                    if let Some(kept) = self.established.get_mut(&tuple) {
                        kept.entry.opened = 0;
                    }
                }
                untracked
            }
        }
    }

    fn open(
        &mut self,
        packet: &Packet,
        row: Row,
        established: Established,
        untracked_lives: bool,
    ) -> u32 {
        let owner = row.owner().get();
        let inserted = self.insert(packet, Table::HalfOpen, owner, 0);
        let deletes = self.fault == Fault::DeleteOnOpening;
        if established == Established::Dead || deletes {
            self.established.remove(&packet.tuple);
        }
        if inserted {
            if let Some(found) = self.established.get_mut(&packet.tuple) {
                found.entry.flags |= FlowEntry::REOPENED;
            }
            return owner;
        }
        if self.fault == Fault::RefusedToOwner {
            return owner;
        }
        match open_refused(row, established, untracked_lives) {
            Refused::Entry => {
                let Some(mut found) = self.established.get(&packet.tuple).copied() else {
                    return owner;
                };
                self.seen(packet, &mut found);
                self.established.insert(packet.tuple, found);
                found.entry.backend
            }
            Refused::Forget(slot) => {
                if self.fault != Fault::KeepOldEntry {
                    self.established.remove(&packet.tuple);
                }
                slot.get()
            }
        }
    }
}
