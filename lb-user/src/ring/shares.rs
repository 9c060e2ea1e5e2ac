use lb_common::backend::BackendSlot;
use lb_common::row::Row;

use super::Member;
use super::quota::quotas;

/// How many rows each backend owns, by slot.
pub(super) struct Shares {
    owned: Vec<u32>,
}

impl Shares {
    pub fn count(rows: &[Row]) -> Self {
        let mut owned = Vec::new();
        for row in rows {
            *entry(&mut owned, row.owner()) += 1;
        }
        Self { owned }
    }

    /// Returns every owner and its rows. Slot 0 stands for the empty rows.
    pub fn owners(&self) -> impl Iterator<Item = (BackendSlot, u32)> {
        (0..)
            .zip(&self.owned)
            .filter(|(_, rows)| **rows > 0)
            .map(|(slot, rows)| (BackendSlot::from_stored(slot), *rows))
    }

    /// Compares with the members' quotas; nothing if no member has a weight.
    pub fn against(mut self, members: &[Member]) -> Option<Difference> {
        let rows = self.owned.iter().sum();
        let mut sorted: Vec<&Member> = members.iter().filter(|m| m.weight > 0).collect();
        if sorted.is_empty() {
            return None;
        }
        sorted.sort_by_key(|member| member.identity);
        let weights: Vec<u32> = sorted.iter().map(|member| member.weight).collect();
        let mut missing = Vec::new();
        let mut open = Vec::new();
        for (member, quota) in sorted.iter().zip(quotas(&weights, rows)) {
            let owned = entry(&mut self.owned, member.slot);
            *entry(&mut missing, member.slot) = quota.saturating_sub(*owned);
            if quota > *owned {
                open.push(member.slot);
            }
            *owned = owned.saturating_sub(quota);
        }
        // What is left of `owned` is above the quota; all of it for those that are no members.
        let to_move = self.owned.iter().sum();
        open.reverse();
        Some(Difference {
            surplus: self.owned,
            missing,
            open,
            to_move,
        })
    }
}

/// Who has too many rows and who too few.
pub(super) struct Difference {
    surplus: Vec<u32>,
    missing: Vec<u32>,
    /// Those below their quota; the last one is next.
    open: Vec<BackendSlot>,
    to_move: u32,
}

impl Difference {
    /// Returns how many rows have to move.
    pub fn to_move(&self) -> u32 {
        self.to_move
    }

    /// Takes a row from `from` for `to`, if the one has too many and the other too few.
    pub fn take(&mut self, from: BackendSlot, to: BackendSlot) -> bool {
        let surplus = entry(&mut self.surplus, from);
        let missing = entry(&mut self.missing, to);
        if *surplus == 0 || *missing == 0 {
            return false;
        }
        *surplus -= 1;
        *missing -= 1;
        self.to_move -= 1;
        true
    }

    /// Takes a row from `from`, if it has too many, for the next one that has too few.
    pub fn take_any(&mut self, from: BackendSlot) -> Option<BackendSlot> {
        loop {
            let to = *self.open.last()?;
            if self.take(from, to) {
                return Some(to);
            }
            if *entry(&mut self.surplus, from) == 0 {
                return None;
            }
            self.open.pop();
        }
    }
}

fn entry(table: &mut Vec<u32>, slot: BackendSlot) -> &mut u32 {
    let at = slot.get() as usize;
    if table.len() <= at {
        table.resize(at + 1, 0);
    }
    #[expect(clippy::indexing_slicing, reason = "the line above made the entry")]
    &mut table[at]
}
