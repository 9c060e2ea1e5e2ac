//! Smaller cases that differ in the same way: those that a reader can follow.

use super::case::Case;

/// Returns the smallest case that was found for which `differs` still holds: one without frames,
/// entries, services or backends that don't matter.
pub fn shrink(case: &Case, mut differs: impl FnMut(&Case) -> bool) -> Case {
    let mut smallest = case.clone();
    loop {
        let before = smallest.clone();
        remove(&mut smallest, |case| &mut case.frames, &mut differs);
        remove(&mut smallest, |case| &mut case.world.entries, &mut differs);
        remove(&mut smallest, |case| &mut case.world.backends, &mut differs);
        // The place of a service is its slot: only the last ones can go.
        while smallest.world.services.len() > 1 {
            let mut smaller = smallest.clone();
            smaller.world.services.pop();
            if !differs(&smaller) {
                break;
            }
            smallest = smaller;
        }
        for service in 0..smallest.world.services.len() {
            one_row(&mut smallest, service, &mut differs);
        }
        if smallest == before {
            return smallest;
        }
    }
}

/// Removes what it can of a list: at first halves, at last single ones.
fn remove<T: Clone>(
    case: &mut Case,
    list: impl Fn(&mut Case) -> &mut Vec<T>,
    differs: &mut impl FnMut(&Case) -> bool,
) {
    let mut chunk = list(case).len().div_ceil(2);
    while chunk > 0 {
        let mut at = 0;
        while at < list(case).len() {
            let mut smaller = case.clone();
            let end = (at + chunk).min(list(case).len());
            list(&mut smaller).drain(at..end);
            if differs(&smaller) {
                *case = smaller;
            } else {
                at += chunk;
            }
        }
        chunk /= 2;
    }
}

/// Makes a ring of one row, if one of its rows does.
fn one_row(case: &mut Case, service: usize, differs: &mut impl FnMut(&Case) -> bool) {
    let ring = case.world.services[service].ring.clone();
    if ring.len() == 1 {
        return;
    }
    for row in ring {
        let mut smaller = case.clone();
        smaller.world.services[service].ring = vec![row];
        if differs(&smaller) {
            *case = smaller;
            return;
        }
    }
}
