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

/// What the tables of confirmed and kept flows said about a packet of a row with `lookup`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Established {
    /// No entry.
    None,
    /// An entry whose backend is dead, or lives in a later generation than the entry names.
    Dead,
    /// An entry of a living backend.
    Live,
    /// As `Live`, but the client closed the flow.
    Closed,
    /// As `Live`, but the backend takes no new flows.
    Leaving,
}

impl Established {
    /// Returns whether the half-open table must be asked as well. `reopened` says whether the
    /// entry has [`crate::flow::FlowEntry::REOPENED`].
    #[inline(always)]
    pub const fn asks_half_open(self, opening: bool, reopened: bool) -> bool {
        match self {
            Self::None | Self::Dead => true,
            Self::Live => reopened && !opening,
            Self::Closed | Self::Leaving => reopened || opening,
        }
    }
}

/// What the table of half-open flows said. An entry of a dead backend is none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HalfOpen {
    /// No entry.
    None,
    /// The entry is this packet's: it repeats the opening packet, or follows it.
    Same,
    /// An entry of another opening packet.
    Other,
    /// An entry that holds no new flow: it is closed, or the opening packet comes once more and its
    /// backend takes no new flows by now. That it comes once more says that nobody answered.
    Stale,
}

/// Where a packet goes, and what happens to the flow tables before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Choice {
    /// To the established entry's backend.
    Entry,
    /// To the half-open entry's backend. An opening packet makes the entry its own; another one
    /// confirms it, in place of an established entry of an earlier flow.
    HalfOpen,
    /// To the established entry's backend, which is the owner: the entry is the new flow's now.
    Reuse,
    /// To `owner`; the flow tables stay as they are.
    Owner,
    /// To `owner`, after deleting a dead entry of an earlier flow with the same key.
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
/// `owner_has_it` says whether the established entry is the owner's, `untracked_alive` whether
/// `row.untracked()` lives.
///
/// Rows without `lookup` don't come here: their packets go to `owner`.
#[inline(always)]
pub const fn choose(
    row: Row,
    opening: bool,
    established: Established,
    half_open: HalfOpen,
    owner_has_it: bool,
    untracked_alive: bool,
) -> Choice {
    let moved = row.owner().get() != row.untracked().get();
    match (established, half_open, opening) {
        // Whether an opening packet in the middle of a flow means anything, its VM decides.
        (Established::Live, _, true) => Choice::Entry,
        (_, HalfOpen::Same, _) => Choice::HalfOpen,
        (Established::Live | Established::Closed | Established::Leaving, _, false) => Choice::Entry,
        // Which of two opening packets is the client's, the next packet tells.
        (_, HalfOpen::Other, true) => Choice::HalfOpen,
        (Established::Closed | Established::Leaving, _, true) if owner_has_it => Choice::Reuse,
        (Established::Closed | Established::Leaving, _, true) => Choice::Open,
        // A stale half-open entry may be confirmed: the new flow's takes its place.
        (Established::None | Established::Dead, HalfOpen::Stale, true) => Choice::Open,
        (Established::None | Established::Dead, _, true) if moved => Choice::Open,
        (Established::None | Established::Dead, _, false) if moved && untracked_alive => {
            Choice::Keep
        }
        // I1 holds without an entry where owner and untracked are one; but an old entry of the
        // same key would win over it (I2) if its backend came to life.
        (Established::Dead, _, _) if !moved => Choice::OwnerForget,
        (Established::None, _, false) if untracked_alive => Choice::Untracked,
        (Established::None | Established::Dead, _, _) => Choice::Owner,
    }
}

/// Where an opening packet goes when its half-open entry was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refused {
    /// To the established entry's backend: the flow may well live.
    Entry,
    /// To this backend, after deleting what is left of an earlier flow.
    Forget(BackendSlot),
}

/// Where an opening packet goes when its half-open entry was refused: to `untracked` if it lives,
/// because a flow without an entry will be taken for one of its flows (I1). The move is delayed,
/// nothing breaks.
#[inline(always)]
pub const fn open_refused(row: Row, established: Established, untracked_alive: bool) -> Refused {
    match established {
        Established::Live | Established::Leaving => Refused::Entry,
        Established::None | Established::Dead | Established::Closed if untracked_alive => {
            Refused::Forget(row.untracked())
        }
        Established::None | Established::Dead | Established::Closed => Refused::Forget(row.owner()),
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
        use Choice::{Entry, Keep, Open, Owner, OwnerForget, Reuse, Untracked};
        use Established::{Closed, Dead, Leaving, Live, None};
        use HalfOpen::{Other, Same, Stale};
        let moved = Row::new(B, A, true);
        let same = Row::new(A, A, true);
        // Opening packets: (row, established, half-open, owner has it) -> choice
        for (row, established, half_open, owners, want) in [
            (moved, None, HalfOpen::None, false, Open),
            (moved, None, Same, false, Choice::HalfOpen),
            (moved, None, Other, false, Choice::HalfOpen),
            (moved, None, Stale, false, Open),
            (moved, Dead, HalfOpen::None, false, Open),
            (moved, Live, HalfOpen::None, false, Entry),
            (moved, Closed, HalfOpen::None, false, Open),
            (moved, Closed, HalfOpen::None, true, Reuse),
            (moved, Closed, Same, false, Choice::HalfOpen),
            (moved, Closed, Other, false, Choice::HalfOpen),
            (moved, Closed, Stale, false, Open),
            (moved, Leaving, HalfOpen::None, false, Open),
            (moved, Leaving, HalfOpen::None, true, Reuse),
            (same, None, HalfOpen::None, false, Owner),
            (same, None, Same, false, Choice::HalfOpen),
            (same, None, Stale, false, Open),
            (same, Dead, HalfOpen::None, false, OwnerForget),
            (same, Closed, HalfOpen::None, false, Open),
            (same, Live, HalfOpen::None, false, Entry),
        ] {
            for alive in [true, false] {
                assert_eq!(
                    choose(row, true, established, half_open, owners, alive),
                    want,
                    "{row:?} {established:?} {half_open:?} {owners}"
                );
            }
        }
        // Others: (row, established, half-open, untracked lives) -> choice
        for (row, established, half_open, alive, want) in [
            (moved, None, HalfOpen::None, true, Keep),
            (moved, None, HalfOpen::None, false, Owner),
            (moved, None, Same, true, Choice::HalfOpen),
            (moved, None, Other, true, Keep),
            (moved, None, Stale, false, Owner),
            (moved, Dead, HalfOpen::None, true, Keep),
            (moved, Dead, HalfOpen::None, false, Owner),
            (moved, Live, HalfOpen::None, false, Entry),
            (moved, Closed, Other, true, Entry),
            (moved, Leaving, Same, true, Choice::HalfOpen),
            (same, None, HalfOpen::None, true, Untracked),
            (same, None, HalfOpen::None, false, Owner),
            (same, None, Same, true, Choice::HalfOpen),
            (same, Dead, HalfOpen::None, true, OwnerForget),
            (same, Closed, HalfOpen::None, true, Entry),
        ] {
            assert_eq!(
                choose(row, false, established, half_open, false, alive),
                want,
                "{row:?} {established:?} {half_open:?} {alive}"
            );
        }
        assert_eq!(open_refused(moved, None, true), Refused::Forget(A));
        assert_eq!(open_refused(moved, Closed, false), Refused::Forget(B));
        assert_eq!(open_refused(moved, Leaving, true), Refused::Entry);
    }
}
