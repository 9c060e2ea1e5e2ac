//! A service's ring: who owns which row, adjusted with as few moves as possible.
//!
//! The ring is never built anew. When weights change, quotas follow by largest remainder, and only
//! rows of backends above their quota move, only to backends below it, and just as many as the
//! difference. Rows and their invariants: [`lb_common::row`].

mod first;
mod quota;
mod segments;
mod shares;

#[cfg(test)]
mod model;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use lb_common::backend::BackendSlot;
use lb_common::row::Row;

pub use quota::quotas;
pub use segments::{NotFree, Segments};
use shares::Shares;

/// Rows for each backend: enough that weights are met to about half a percent.
pub const ROWS_PER_BACKEND: u32 = 256;
/// The shortest ring.
pub const MIN_ROWS: u32 = 256;
/// The longest ring.
pub const MAX_ROWS: u32 = 1 << 20;

/// Returns how long the ring of a service with that many backends is: a power of two.
pub fn rows_for(backends: usize) -> u32 {
    u32::try_from(backends)
        .ok()
        .and_then(|backends| backends.checked_mul(ROWS_PER_BACKEND))
        .and_then(u32::checked_next_power_of_two)
        .map_or(MAX_ROWS, |rows| rows.clamp(MIN_ROWS, MAX_ROWS))
}

/// A backend that may own rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Member {
    /// Its slot.
    pub slot: BackendSlot,
    /// Its share of the rows, relative to the others; 0 for none.
    pub weight: u32,
    /// What makes it the same backend on every balancer; slots may differ from one to another.
    pub identity: u64,
}

/// A row to store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Change {
    /// Index within the ring.
    pub index: u32,
    /// The row.
    pub row: Row,
}

/// Why rows are no ring.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a ring of {0} rows: allowed is a power of two")]
pub struct AdoptError(usize);

/// The rows of a service.
#[derive(Clone, Debug)]
pub struct Ring {
    rows: Vec<Row>,
    /// The rows with `lookup`, by index.
    pending: BTreeMap<u32, Pending>,
}

/// The times of a row that asks the flow tables.
#[derive(Clone, Copy, Debug)]
struct Pending {
    /// When it changed last.
    changed: Instant,
    /// Since when its owner has been another than `untracked`, whoever it was: since then every
    /// packet of an untracked flow has made an entry.
    away: Instant,
}

impl Ring {
    /// Returns a service's first ring, with `rows` rows, a power of two. It follows from the
    /// members' identities and weights alone. Without any weight its rows are empty.
    pub fn new(rows: u32, members: &[Member]) -> Self {
        Self {
            rows: first::assign(rows, members),
            pending: BTreeMap::new(),
        }
    }

    /// Takes over the rows that an earlier daemon left. When rows with `lookup` moved is not
    /// known: it counts as `now`, which can only delay their settling.
    pub fn adopt(rows: Vec<Row>, now: Instant) -> Result<Self, AdoptError> {
        if !rows.len().is_power_of_two() {
            return Err(AdoptError(rows.len()));
        }
        let pending = (0..)
            .zip(&rows)
            .filter(|(_, row)| row.lookup())
            .map(|(index, _)| {
                let (changed, away) = (now, now);
                (index, Pending { changed, away })
            })
            .collect();
        Ok(Self { rows, pending })
    }

    /// Returns the rows.
    pub fn rows(&self) -> &[Row] {
        &self.rows
    }

    /// Returns the row at `index`.
    pub fn row(&self, index: u32) -> Option<Row> {
        self.rows.get(index as usize).copied()
    }

    /// Returns how many rows each backend owns.
    pub fn counts(&self) -> BTreeMap<BackendSlot, u32> {
        Shares::count(&self.rows)
            .owners()
            .filter(|(slot, _)| !slot.is_none())
            .collect()
    }

    /// Returns whether a row names the backend as owner or as untracked.
    pub fn names(&self, slot: BackendSlot) -> bool {
        let mut rows = self.rows.iter();
        rows.any(|row| row.owner() == slot || row.untracked() == slot)
    }

    /// Returns those of some backends that a row names as owner or as untracked.
    pub fn named(&self, mut slots: BTreeSet<BackendSlot>) -> Vec<BackendSlot> {
        let mut named = Vec::new();
        for row in &self.rows {
            if slots.is_empty() {
                break;
            }
            for slot in [row.owner(), row.untracked()] {
                named.extend(slots.take(&slot));
            }
        }
        named
    }

    /// Returns whether no row that asks the flow table changed after `since`.
    pub fn unchanged_since(&self, since: Instant) -> bool {
        self.pending.values().all(|row| row.changed <= since)
    }

    /// Returns how many rows have moved and not settled yet.
    pub fn unsettled(&self) -> usize {
        let pending = self.pending.keys().filter_map(|index| self.row(*index));
        pending.filter(|row| row.owner() != row.untracked()).count()
    }

    /// Returns how many rows ask the flow table.
    pub fn lookups(&self) -> usize {
        self.pending.len()
    }

    /// Returns how many rows [`Self::rebalance`] would move.
    pub fn moves_for(&self, members: &[Member]) -> usize {
        Shares::count(&self.rows)
            .against(members)
            .map_or(0, |shares| shares.to_move() as usize)
    }

    /// Brings every backend to its quota. Rows of backends that are no members all move.
    ///
    /// Preferred are rows whose move undoes an earlier one, then other rows that the flow table is
    /// asked for anyhow: under steady re-weighting the same few rows change hands, and the others
    /// cost nothing. Without any weight nothing changes: the last owners stay (fail open).
    pub fn rebalance(&mut self, members: &[Member], now: Instant) -> Vec<Change> {
        let mut changes = Vec::new();
        let Some(mut shares) = Shares::count(&self.rows).against(members) else {
            return changes;
        };
        if shares.to_move() == 0 {
            return changes;
        }
        let pending: Vec<u32> = self.pending.keys().copied().collect();
        for &index in &pending {
            let Some(row) = self.row(index) else { continue };
            if row.owner() != row.untracked() && shares.take(row.owner(), row.untracked()) {
                self.moved(index, row.untracked(), now, &mut changes);
            }
        }
        for &index in &pending {
            let Some(row) = self.row(index) else { continue };
            if let Some(to) = shares.take_any(row.owner()) {
                self.moved(index, to, now, &mut changes);
            }
        }
        for index in 0..self.rows.len() as u32 {
            if shares.to_move() == 0 {
                break;
            }
            let Some(row) = self.row(index).filter(|row| !row.lookup()) else {
                continue;
            };
            if let Some(to) = shares.take_any(row.owner()) {
                self.moved(index, to, now, &mut changes);
            }
        }
        changes
    }

    /// Gives up a dead backend: its rows go to members below their quota, and where it was
    /// `untracked` the owner takes its place. Rows that don't name it are not touched. Without any
    /// weight among the members its own rows stay with it (fail open).
    pub fn death(&mut self, dead: BackendSlot, members: &[Member], now: Instant) -> Vec<Change> {
        let mut changes = Vec::new();
        let living: Vec<Member> = members
            .iter()
            .copied()
            .filter(|member| member.slot != dead)
            .collect();
        let mut shares = Shares::count(&self.rows).against(&living);
        for index in 0..self.rows.len() as u32 {
            let Some(row) = self.row(index) else { continue };
            if row.owner() != dead && row.untracked() != dead {
                continue;
            }
            let owner = if row.owner() != dead {
                row.owner()
            } else {
                let Some(shares) = shares.as_mut() else {
                    continue;
                };
                let back = row.untracked();
                if back != dead && shares.take(dead, back) {
                    back
                } else if let Some(to) = shares.take_any(dead) {
                    to
                } else {
                    continue;
                }
            };
            let untracked = if row.untracked() == dead {
                owner
            } else {
                row.untracked()
            };
            self.store(
                index,
                Row::new(owner, untracked, row.lookup() || owner != untracked),
                now,
            );
            changes.extend(self.row(index).map(|row| Change { index, row }));
        }
        changes
    }

    /// Settles rows one `idle` time-out after they left `untracked` and after the last refused
    /// insert: every flow of it that lives has sent a packet by then, and is in the flow table.
    /// Moves from one owner to the next meanwhile don't matter: their flows are all in the table.
    /// So rows settle, and drains end, under steady re-weighting as well.
    pub fn settle(
        &mut self,
        now: Instant,
        idle: Duration,
        refused: Option<Instant>,
    ) -> Vec<Change> {
        let passed = |since: Instant| now.saturating_duration_since(since) >= idle;
        if !refused.is_none_or(passed) {
            return Vec::new();
        }
        let mut changes = Vec::new();
        let due: Vec<u32> = self
            .pending
            .iter()
            .filter(|(_, row)| passed(row.away))
            .map(|(index, _)| *index)
            .collect();
        for index in due {
            let Some(row) = self.row(index) else { continue };
            if row.owner() != row.untracked() {
                self.store(index, Row::new(row.owner(), row.owner(), true), now);
                changes.extend(self.row(index).map(|row| Change { index, row }));
            }
        }
        changes
    }

    /// Ends the asking for settled rows that have no flow table entry of another backend than
    /// their owner. `has_other` comes from a sweep that began after `since`: rows that changed
    /// later may have got entries that it missed.
    pub fn finish(&mut self, since: Instant, has_other: impl Fn(u32) -> bool) -> Vec<Change> {
        let mut changes = Vec::new();
        let due: Vec<u32> = self
            .pending
            .iter()
            .filter(|(index, row)| row.changed <= since && !has_other(**index))
            .map(|(index, _)| *index)
            .collect();
        for index in due {
            let Some(row) = self.row(index) else { continue };
            if row.owner() == row.untracked() {
                self.store(index, Row::settled(row.owner()), since);
                changes.extend(self.row(index).map(|row| Change { index, row }));
            }
        }
        changes
    }

    /// Returns a ring of twice the length whose halves are this one: every flow finds the same
    /// row as before, so nothing moves.
    pub fn doubled(&self) -> Self {
        let rows = [self.rows.as_slice(), self.rows.as_slice()].concat();
        let len = self.rows.len() as u32;
        let pending = self
            .pending
            .iter()
            .flat_map(|(index, row)| [(*index, *row), (*index + len, *row)])
            .collect();
        Self { rows, pending }
    }

    /// Moves a row to a new owner by the daemon rule: `untracked` stays, through any number of
    /// moves, until the row settles.
    fn moved(&mut self, index: u32, to: BackendSlot, now: Instant, changes: &mut Vec<Change>) {
        let Some(row) = self.row(index) else { return };
        let next = if row.owner().is_none() {
            // Nobody had a flow of this row.
            Row::settled(to)
        } else {
            Row::new(to, row.untracked(), true)
        };
        self.store(index, next, now);
        changes.push(Change { index, row: next });
    }

    fn store(&mut self, index: u32, row: Row, now: Instant) {
        let Some(entry) = self.rows.get_mut(index as usize) else {
            return;
        };
        let before = std::mem::replace(entry, row);
        if !row.lookup() {
            self.pending.remove(&index);
            return;
        }
        let was_away = before.owner() != before.untracked() && !before.untracked().is_none();
        let still = was_away && row.untracked() == before.untracked();
        let pending = self.pending.entry(index).or_insert(Pending {
            changed: now,
            away: now,
        });
        pending.changed = now;
        if !still {
            pending.away = now;
        }
    }
}
