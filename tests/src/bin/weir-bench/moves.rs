use std::collections::BTreeMap;

use anyhow::{Result, ensure};
use lb_common::row::Row;

fn owned(rows: &[Row]) -> BTreeMap<u32, usize> {
    let mut counts = BTreeMap::new();
    for row in rows {
        *counts.entry(row.owner().get()).or_insert(0) += 1;
    }
    counts
}

/// Checks that no fewer moves lead from the rows before to the shares after: what an owner gained
/// is the least that had to come to it. Returns how many rows moved.
pub fn check_least(before: &[Row], after: &[Row]) -> Result<usize> {
    let pairs = before.iter().zip(after);
    let moved = pairs
        .filter(|(old, new)| old.owner() != new.owner())
        .count();
    let had = owned(before);
    let gained = owned(after).into_iter().map(|(owner, now)| {
        let had = had.get(&owner).copied().unwrap_or(0);
        now.saturating_sub(had)
    });
    let least: usize = gained.sum();
    ensure!(
        moved == least && moved > 0,
        "{moved} rows moved, {least} would do"
    );
    Ok(moved)
}

/// Checks that each owner has the share of the rows that its weight says, rounded up or down. Who
/// has which weight is not asked: the heavier have more.
pub fn check_shares(rows: &[Row], weights: &[u16]) -> Result<()> {
    let mut counts: Vec<usize> = owned(rows).into_values().collect();
    let mut weights: Vec<usize> = weights.iter().map(|weight| usize::from(*weight)).collect();
    counts.sort_unstable();
    weights.sort_unstable();
    ensure!(
        counts.len() == weights.len(),
        "{} owners, not {}",
        counts.len(),
        weights.len()
    );
    let sum: usize = weights.iter().sum();
    for (count, weight) in counts.iter().zip(weights) {
        let down = rows.len() * weight / sum;
        ensure!(
            (down..=down + 1).contains(count),
            "weight {weight} of {sum} has {count} rows of {}",
            rows.len()
        );
    }
    Ok(())
}
