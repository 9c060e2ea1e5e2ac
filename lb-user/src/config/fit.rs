use std::ops::Range;

use crate::model::{Limits, Service};
use crate::ring::MIN_ROWS;

/// Returns what of a declaration can't fit into maps of these sizes, each with the place in the
/// text of the first service that is too much.
pub(super) fn misfits(
    limits: &Limits,
    services: &[(Range<usize>, Service)],
) -> Vec<(Range<usize>, String)> {
    let mut misfits = Vec::new();
    for (family, v4) in [("IPv4", true), ("IPv6", false)] {
        let of_family = || {
            services
                .iter()
                .filter(move |(_, service)| service.vip.address.is_ipv4() == v4)
        };
        if let Some((span, _)) = of_family().nth(limits.services as usize) {
            let (wanted, limit) = (of_family().count(), limits.services);
            misfits.push((
                span.clone(),
                format!("limits.services: {wanted} services on {family}, allowed are {limit}"),
            ));
        }
    }
    let wanted: usize = services
        .iter()
        .map(|(_, service)| service.backends.len())
        .sum();
    let mut room = limits.backends as usize;
    let mut overflows = services.iter().filter(|(_, service)| {
        let fits = service.backends.len() <= room;
        room = room.saturating_sub(service.backends.len());
        !fits
    });
    if let Some((span, _)) = overflows.next() {
        let limit = limits.backends;
        misfits.push((
            span.clone(),
            format!("limits.backends: {wanted} backends, allowed are {limit}"),
        ));
    }
    if let Some((span, _)) = services.get((limits.rows / MIN_ROWS) as usize) {
        let (count, limit) = (services.len(), limits.rows);
        let wanted = count * MIN_ROWS as usize;
        misfits.push((
            span.clone(),
            format!(
                "limits.rows: {count} services need {MIN_ROWS} rows each at the least, {wanted} together, allowed are {limit}"
            ),
        ));
    }
    misfits
}
