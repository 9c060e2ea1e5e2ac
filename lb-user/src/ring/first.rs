use lb_common::backend::BackendSlot;
use lb_common::row::Row;

use super::Member;
use super::quota::quotas;

/// Assigns the rows of a first ring, as Maglev fills its table (Eisenbud et al., NSDI 2016, §3.4):
/// every member walks the rows in an order of its own and takes the next free one when it is its
/// turn, heavier ones more often. Balancers whose members differ a little still agree on most rows.
pub(super) fn assign(rows: u32, members: &[Member]) -> Vec<Row> {
    let mut members: Vec<&Member> = members.iter().filter(|member| member.weight > 0).collect();
    members.sort_by_key(|member| member.identity);
    let weights: Vec<u32> = members.iter().map(|member| member.weight).collect();
    let quotas = quotas(&weights, rows);
    let longest = quotas.iter().copied().max().unwrap_or(0);
    let mut owners = vec![None; rows as usize];
    let mut walks: Vec<Walk> = members
        .iter()
        .zip(quotas)
        .map(|(member, quota)| Walk::new(member, quota, rows))
        .collect();
    for _ in 0..longest {
        for walk in &mut walks {
            walk.credit += u64::from(walk.quota);
            if walk.credit >= u64::from(longest) {
                walk.credit -= u64::from(longest);
                walk.take(&mut owners);
            }
        }
    }
    owners
        .into_iter()
        .map(|owner| owner.map_or(Row::EMPTY, Row::settled))
        .collect()
}

struct Walk {
    slot: BackendSlot,
    quota: u32,
    credit: u64,
    at: u32,
    /// Odd, so that the walk over a power of two comes by every row.
    step: u32,
    mask: u32,
}

impl Walk {
    fn new(member: &Member, quota: u32, rows: u32) -> Self {
        let mixed = mix(member.identity);
        Self {
            slot: member.slot,
            quota,
            credit: 0,
            at: mixed as u32 & (rows - 1),
            step: (mixed >> 32) as u32 | 1,
            mask: rows - 1,
        }
    }

    fn take(&mut self, owners: &mut [Option<BackendSlot>]) {
        for _ in 0..owners.len() {
            let at = self.at as usize;
            self.at = self.at.wrapping_add(self.step) & self.mask;
            if let Some(free @ None) = owners.get_mut(at) {
                *free = Some(self.slot);
                return;
            }
        }
    }
}

/// The finaliser of SplitMix64: similar identities get walks that have nothing in common.
fn mix(identity: u64) -> u64 {
    let mut z = identity.wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}
