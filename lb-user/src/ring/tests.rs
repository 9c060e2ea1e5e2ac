use std::collections::BTreeSet;

use proptest::prelude::*;

use super::*;

fn slot(number: u32) -> BackendSlot {
    BackendSlot::new(number).unwrap()
}

/// Members with slots and identities from 1 on.
fn members(weights: &[u32]) -> Vec<Member> {
    (1..)
        .zip(weights)
        .map(|(number, weight)| Member {
            slot: slot(number),
            weight: *weight,
            identity: u64::from(number) * 0x1234_5678_9abc,
        })
        .collect()
}

fn owned(ring: &Ring, number: u32) -> u32 {
    ring.counts().get(&slot(number)).copied().unwrap_or(0)
}

/// The moves that a rebalance needs at the very least.
fn minimum(ring: &Ring, members: &[Member]) -> u32 {
    let mut sorted = members.to_vec();
    sorted.retain(|member| member.weight > 0);
    sorted.sort_by_key(|member| member.identity);
    let weights: Vec<u32> = sorted.iter().map(|member| member.weight).collect();
    let quotas = quotas(&weights, ring.rows().len() as u32);
    let missing = sorted.iter().zip(quotas).map(|(member, quota)| {
        quota.saturating_sub(ring.counts().get(&member.slot).copied().unwrap_or(0))
    });
    missing.sum()
}

#[test]
fn a_ring_has_some_hundred_rows_a_backend() {
    assert_eq!(rows_for(0), 256);
    assert_eq!(rows_for(1), 256);
    assert_eq!(rows_for(3), 1024);
    assert_eq!(rows_for(100), 32_768);
    assert_eq!(rows_for(1_000_000), MAX_ROWS);
    assert_eq!(rows_for(usize::MAX), MAX_ROWS);
}

#[test]
fn a_first_ring_meets_its_quotas_and_is_settled() {
    let ring = Ring::new(1024, &members(&[1, 2, 1, 0]));
    assert_eq!([1, 2, 3, 4].map(|n| owned(&ring, n)), [256, 512, 256, 0]);
    assert_eq!((ring.lookups(), ring.unsettled()), (0, 0));
}

#[test]
fn a_ring_says_which_backends_its_rows_name() {
    let mut ring = Ring::new(1024, &members(&[1, 0, 1]));
    let all = || [1, 2, 3, 4].map(slot).into();
    let named = |ring: &Ring| ring.named(all()).into_iter().collect::<BTreeSet<_>>();
    assert_eq!(named(&ring), [slot(1), slot(3)].into());
    ring.rebalance(&members(&[0, 1, 0]), Instant::now());
    assert_eq!(
        named(&ring),
        [1, 2, 3].map(slot).into(),
        "also those that hold old flows only"
    );
}

#[test]
fn a_ring_without_any_weight_is_empty_and_fills_without_tracking() {
    let mut ring = Ring::new(256, &members(&[0, 0]));
    assert!(ring.rows().iter().all(|row| *row == Row::EMPTY));
    let changes = ring.rebalance(&members(&[1, 0]), Instant::now());
    assert_eq!(changes.len(), 256);
    assert!(ring.rows().iter().all(|row| *row == Row::settled(slot(1))));
}

#[test]
fn the_first_moves_go_back_where_they_came_from() {
    let now = Instant::now();
    let mut ring = Ring::new(1024, &members(&[100, 100, 100]));
    let before = ring.rows().to_vec();
    let there = ring.rebalance(&members(&[100, 50, 100]), now);
    assert!(!there.is_empty());
    let back = ring.rebalance(&members(&[100, 100, 100]), now);
    let moved = |changes: &[Change]| changes.iter().map(|c| c.index).collect::<BTreeSet<_>>();
    assert_eq!(moved(&there), moved(&back), "the same rows change hands");
    assert_eq!(ring.unsettled(), 0);
    assert_eq!(
        ring.lookups(),
        there.len(),
        "their flows may be in the table"
    );
    for (row, before) in ring.rows().iter().zip(before) {
        assert_eq!(
            (row.owner(), row.untracked()),
            (before.owner(), before.untracked())
        );
    }
}

#[test]
fn a_second_move_keeps_who_holds_the_untracked_flows() {
    let now = Instant::now();
    let mut ring = Ring::new(256, &members(&[1]));
    ring.rebalance(&members(&[0, 1]), now);
    ring.rebalance(&members(&[0, 0, 1]), now);
    let third = Row::new(slot(3), slot(1), true);
    assert!(ring.rows().iter().all(|row| *row == third));
}

#[test]
fn without_any_weight_the_last_owners_stay() {
    let now = Instant::now();
    let mut ring = Ring::new(256, &members(&[1, 1]));
    let before = ring.rows().to_vec();
    assert_eq!(ring.rebalance(&members(&[0, 0]), now), []);
    assert_eq!(ring.death(slot(1), &members(&[0, 0]), now), []);
    assert_eq!(ring.rows(), before);
}

#[test]
fn a_death_hands_over_rows_and_what_was_untracked() {
    let now = Instant::now();
    let mut ring = Ring::new(256, &members(&[1, 1]));
    // Some of the second's rows go to the first, still with untracked flows of the second.
    ring.rebalance(&members(&[3, 1]), now);
    ring.death(slot(2), &members(&[3, 0]), now);
    for row in ring.rows() {
        assert_eq!((row.owner(), row.untracked()), (slot(1), slot(1)));
    }
    assert_eq!(
        ring.lookups(),
        64,
        "rows that moved before may have entries"
    );
    assert!(!ring.names(slot(2)));
}

#[test]
fn a_row_settles_after_both_timers_and_finishes_after_a_clean_sweep() {
    let start = Instant::now();
    let after = |seconds| start + Duration::from_secs(seconds);
    let idle = Duration::from_secs(10);
    let mut ring = Ring::new(256, &members(&[1, 1]));
    let moved = ring.rebalance(&members(&[1, 0]), start).len();
    assert_eq!(moved, 128);

    assert_eq!(ring.settle(after(9), idle, None), [], "too early");
    assert_eq!(
        ring.settle(after(12), idle, Some(after(3))),
        [],
        "an insert was refused since"
    );
    assert_eq!(ring.settle(after(13), idle, Some(after(3))).len(), moved);
    assert_eq!(ring.unsettled(), 0);
    assert_eq!(ring.lookups(), moved);

    assert_eq!(
        ring.finish(after(12), |_| false),
        [],
        "the sweep began before they settled"
    );
    let held = ring
        .finish(after(14), |index| index.is_multiple_of(2))
        .len();
    assert!(held < moved && ring.lookups() == moved - held);
    ring.finish(after(15), |_| false);
    assert_eq!(ring.lookups(), 0);
    assert!(ring.rows().iter().all(|row| *row == Row::settled(slot(1))));
}

#[test]
fn a_row_that_goes_from_owner_to_owner_settles_all_the_same() {
    let start = Instant::now();
    let after = |seconds| start + Duration::from_secs(seconds);
    let idle = Duration::from_secs(10);
    let mut ring = Ring::new(256, &members(&[1, 1, 1]));
    let away = ring.rebalance(&members(&[1, 1, 0]), start).len();
    for second in 1..10 {
        let weights = [1 + second % 2, 2 - second % 2, 0].map(|weight| weight as u32);
        assert!(!ring.rebalance(&members(&weights), after(second)).is_empty());
        assert_eq!(ring.settle(after(second), idle, None), []);
    }
    assert!(ring.settle(after(10), idle, None).len() >= away);
    assert!(!ring.names(slot(3)), "the drain is over");
    // A row that goes back has to wait anew when it leaves again: what opened there meanwhile has
    // no entry.
    let mut ring = Ring::new(256, &members(&[1, 1]));
    ring.rebalance(&members(&[1, 0]), start);
    ring.rebalance(&members(&[1, 1]), after(5));
    ring.rebalance(&members(&[1, 0]), after(6));
    assert_eq!(ring.settle(after(15), idle, None), []);
    assert_eq!(ring.settle(after(16), idle, None).len(), 128);
}

#[test]
fn an_adopted_ring_goes_on_where_it_was() {
    let start = Instant::now();
    let mut ring = Ring::new(256, &members(&[1, 1]));
    ring.rebalance(&members(&[1, 3]), start);
    let mut adopted = Ring::adopt(ring.rows().to_vec(), start).unwrap();
    assert_eq!(adopted.rows(), ring.rows());
    assert_eq!(adopted.lookups(), ring.lookups());
    let idle = Duration::from_secs(1);
    let later = start + idle;
    assert_eq!(
        adopted.settle(later, idle, None),
        ring.settle(later, idle, None)
    );
    assert!(Ring::adopt(vec![Row::EMPTY; 3], start).is_err());
}

fn weights() -> impl Strategy<Value = Vec<u32>> {
    prop::collection::vec(prop_oneof![Just(0_u32), 1..10_u32, 1..65_536_u32], 1..20)
}

proptest! {
    #[test]
    fn a_first_ring_depends_on_nothing_but_identities_and_weights(
        weights in weights(), shuffle in any::<prop::sample::Index>(), shift in 1_u32..1000,
    ) {
        let here = members(&weights);
        let mut there: Vec<Member> = here
            .iter()
            .map(|member| Member { slot: slot(member.slot.get() + shift), ..*member })
            .collect();
        let at = shuffle.index(there.len());
        there.rotate_left(at);
        let here = Ring::new(1024, &here);
        let there = Ring::new(1024, &there);
        for (here, there) in here.rows().iter().zip(there.rows()) {
            if here.owner().is_none() {
                prop_assert!(there.owner().is_none());
            } else {
                prop_assert_eq!(here.owner().get() + shift, there.owner().get());
            }
        }
    }

    #[test]
    fn moves_are_the_minimum_and_quotas_are_met(
        sequence in prop::collection::vec(weights(), 1..8),
    ) {
        let now = Instant::now();
        let mut ring = Ring::new(1024, &members(&sequence[0]));
        for weights in &sequence {
            let members = members(weights);
            let minimum = if weights.iter().all(|w| *w == 0) { 0 } else { minimum(&ring, &members) };
            let before = ring.rows().to_vec();
            prop_assert_eq!(ring.moves_for(&members), minimum as usize);
            let changes = ring.rebalance(&members, now);
            prop_assert_eq!(changes.len(), minimum as usize);
            let indexes: BTreeSet<u32> = changes.iter().map(|change| change.index).collect();
            prop_assert_eq!(indexes.len(), changes.len(), "no row moves twice");
            for (index, (before, row)) in (0..).zip(before.iter().zip(ring.rows())) {
                if indexes.contains(&index) {
                    prop_assert_ne!(before.owner(), row.owner());
                } else {
                    prop_assert_eq!(before, row);
                }
                prop_assert!(row.lookup() || row.owner() == row.untracked(), "I3");
            }
            prop_assert_eq!(ring.moves_for(&members), 0);
        }
    }

    #[test]
    fn a_death_touches_no_row_of_the_living(
        sequence in prop::collection::vec(weights(), 1..5), dead in any::<prop::sample::Index>(),
    ) {
        let now = Instant::now();
        let mut ring = Ring::new(512, &members(&sequence[0]));
        for weights in &sequence {
            ring.rebalance(&members(weights), now);
        }
        let last = members(&sequence[sequence.len() - 1]);
        let dead = last[dead.index(last.len())].slot;
        let before = ring.rows().to_vec();
        ring.death(dead, &last, now);
        let others = last.iter().any(|member| member.slot != dead && member.weight > 0);
        for (before, row) in before.iter().zip(ring.rows()) {
            if before.owner() != dead && before.untracked() != dead {
                prop_assert_eq!(before, row);
            } else if before.owner() != dead {
                prop_assert_eq!(before.owner(), row.owner());
            } else if before.untracked() != dead && others {
                prop_assert_eq!(before.untracked(), row.untracked());
            }
            if others {
                prop_assert!(row.owner() != dead && row.untracked() != dead);
            }
            prop_assert!(row.lookup() || row.owner() == row.untracked(), "I3");
        }
    }

    #[test]
    fn doubling_moves_no_flow(weights in weights(), hash: u32) {
        let now = Instant::now();
        let mut ring = Ring::new(256, &members(&[1, 1]));
        ring.rebalance(&members(&weights), now);
        let doubled = ring.doubled();
        prop_assert_eq!(doubled.row(hash & 511), ring.row(hash & 255));
        prop_assert_eq!(doubled.lookups(), 2 * ring.lookups());
    }
}
