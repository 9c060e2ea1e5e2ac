//! Rows of the ring, and the rule by which a packet's backend follows from a row.
//!
//! A row says three things: who takes new flows (`owner`), who holds the flows that are not in the
//! flow table (`untracked`), and whether the flow table must be asked at all (`lookup`).
//!
//! **Row invariants**
//! - I1. A live flow of the row that is not in the flow table belongs to `untracked`.
//! - I2. A flow in the flow table belongs to its entry's backend.
//! - I3. `lookup == false` implies `owner == untracked` and no live flow of the row is tracked to
//!   anyone else.

use crate::backend::BackendSlot;

/// One row, packed into 64 bits so that the daemon stores it atomically and a packet never sees
/// half of a change. Bits 0..24 owner, 24..48 untracked, 48 lookup, the others zero.
#[repr(transparent)]
#[derive(Clone, Copy, PartialEq, Eq, bytemuck::Pod, bytemuck::Zeroable)]
pub struct Row(u64);

const SLOT_BITS: u32 = 24;
const LOOKUP_BIT: u64 = 1 << 48;

impl Row {
    /// A row without a backend, as fresh map memory has it.
    pub const EMPTY: Self = Self(0);

    /// Returns a row. Slots are below 2^24 by their type.
    #[inline(always)]
    pub const fn new(owner: BackendSlot, untracked: BackendSlot, lookup: bool) -> Self {
        Self(
            owner.get() as u64
                | (untracked.get() as u64) << SLOT_BITS
                | if lookup { LOOKUP_BIT } else { 0 },
        )
    }

    /// Returns a row that is settled on `owner`: no flow table access, no state.
    #[inline(always)]
    pub const fn settled(owner: BackendSlot) -> Self {
        Self::new(owner, owner, false)
    }

    /// Returns the row stored as `bits`.
    #[inline(always)]
    pub const fn from_bits(bits: u64) -> Self {
        Self(bits)
    }

    /// Returns the 64 bits to store.
    #[inline(always)]
    pub const fn to_bits(self) -> u64 {
        self.0
    }

    /// Returns the backend that takes new flows.
    #[inline(always)]
    pub const fn owner(self) -> BackendSlot {
        BackendSlot::from_low_bits(self.0 as u32)
    }

    /// Returns the backend that holds the flows that are not in the flow table.
    #[inline(always)]
    pub const fn untracked(self) -> BackendSlot {
        BackendSlot::from_low_bits((self.0 >> SLOT_BITS) as u32)
    }

    /// Returns whether the flow table must be asked.
    #[inline(always)]
    pub const fn lookup(self) -> bool {
        self.0 & LOOKUP_BIT != 0
    }
}

impl core::fmt::Debug for Row {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("Row")
            .field("owner", &self.owner().get())
            .field("untracked", &self.untracked().get())
            .field("lookup", &self.lookup())
            .finish()
    }
}

/// What the flow table said about a packet of a row with `lookup`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Entry {
    /// No entry.
    Miss,
    /// An entry whose backend is dead, or lives in a later generation than the entry names.
    Dead,
    /// An entry of a living backend that takes no new flows, or of a flow that was closed.
    Finished,
    /// An entry of a living backend.
    Live,
}

/// Where a packet goes, and what happens to the flow table before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Choice {
    /// To the entry's backend.
    Entry,
    /// To `owner`; the flow table stays as it is.
    Owner,
    /// To `owner`, after deleting a stale entry of an earlier flow with the same key.
    OwnerForget,
    /// To `owner`, after inserting a half-open entry. If the insert is refused: see
    /// [`open_refused`].
    Open,
    /// To `untracked`, after inserting a kept entry. If the insert is refused: to `untracked` all
    /// the same.
    Keep,
    /// To `untracked`, which needs no entry because it is the owner as well.
    Untracked,
}

/// The packet rule for a row with `lookup`.
///
/// `opening` says whether the packet opens a flow (a TCP SYN without ACK); plain UDP never does.
/// `untracked_alive` says whether `row.untracked()` lives.
///
/// Rows without `lookup` don't come here: their packets go to `owner`.
#[inline(always)]
pub const fn choose(row: Row, opening: bool, entry: Entry, untracked_alive: bool) -> Choice {
    let moved = row.owner().get() != row.untracked().get();
    match (entry, opening) {
        (Entry::Live, _) | (Entry::Finished, false) => Choice::Entry,
        // I1 holds without an entry where owner and untracked are one; but an old entry of the
        // same key would win over it (I2).
        (Entry::Miss, true) if !moved => Choice::Owner,
        (Entry::Dead | Entry::Finished, true) if !moved => Choice::OwnerForget,
        (_, true) => Choice::Open,
        (_, false) if !untracked_alive => Choice::Owner,
        (Entry::Miss, false) if !moved => Choice::Untracked,
        (Entry::Dead, false) if !moved => Choice::OwnerForget,
        (_, false) => Choice::Keep,
    }
}

/// Where an opening packet goes when its half-open entry was refused: to `untracked` if it lives,
/// because a flow without an entry will be taken for one of its flows (I1). The move is delayed,
/// nothing breaks.
#[inline(always)]
pub const fn open_refused(row: Row, untracked_alive: bool) -> BackendSlot {
    if untracked_alive {
        row.untracked()
    } else {
        row.owner()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: BackendSlot = BackendSlot::new(1).unwrap();
    const B: BackendSlot = BackendSlot::new(0xff_ffff).unwrap();

    #[test]
    fn a_row_keeps_its_three_parts() {
        for (owner, untracked, lookup) in [(A, B, true), (B, A, false), (B, B, true)] {
            let row = Row::new(owner, untracked, lookup);
            assert_eq!(row.owner(), owner);
            assert_eq!(row.untracked(), untracked);
            assert_eq!(row.lookup(), lookup);
            assert_eq!(Row::from_bits(row.to_bits()), row);
            assert_eq!(row.to_bits() >> 49, 0, "the high bits are reserved");
        }
        assert!(Row::EMPTY.owner().is_none());
    }

    #[test]
    fn the_packet_rule_as_a_table() {
        use Choice::{Entry as E, Keep, Open, Owner, OwnerForget, Untracked};
        use Entry::{Dead, Finished, Live, Miss};
        let moved = Row::new(B, A, true);
        let same = Row::new(A, A, true);
        // (row, opening, entry, untracked lives) -> choice
        let table = [
            (moved, true, Miss, true, Open),
            (moved, true, Miss, false, Open),
            (moved, true, Dead, true, Open),
            (moved, true, Finished, true, Open),
            (moved, true, Live, true, E),
            (moved, false, Miss, true, Keep),
            (moved, false, Miss, false, Owner),
            (moved, false, Dead, true, Keep),
            (moved, false, Dead, false, Owner),
            (moved, false, Finished, true, E),
            (moved, false, Live, false, E),
            (same, true, Miss, true, Owner),
            (same, true, Dead, true, OwnerForget),
            (same, true, Finished, true, OwnerForget),
            (same, true, Live, true, E),
            (same, false, Miss, true, Untracked),
            (same, false, Miss, false, Owner),
            (same, false, Dead, true, OwnerForget),
            (same, false, Finished, true, E),
        ];
        for (row, opening, entry, alive, want) in table {
            assert_eq!(
                choose(row, opening, entry, alive),
                want,
                "{row:?} opening={opening} {entry:?} untracked alive={alive}"
            );
        }
        assert_eq!(open_refused(moved, true), A);
        assert_eq!(open_refused(moved, false), B);
    }
}
