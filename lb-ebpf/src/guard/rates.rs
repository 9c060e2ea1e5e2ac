//! Rates of packets, of new flows and of half-open entries. Global functions: see
//! `global_function!` in `flow.rs`.

use lb_common::{
    bucket::{Rate, places, time},
    hash,
    stats::Reason,
};

use crate::maps;

/// The packet opens a flow.
pub const OPENING: u32 = 1;
/// Buckets may be written.
pub const WRITES: u32 = 2;
/// The service's sources have rates.
pub const SOURCES: u32 = 4;
/// The service has rates of its own.
pub const SERVICE: u32 = 8;

/// What comes within all rates.
pub const WITHIN: u32 = Reason::Sent as u32;

/// Takes a packet of a source, given by two words, out of its buckets and those of its service.
/// `what` is of the flags above. Returns the [`Reason`] for which it is dropped, or [`WITHIN`].
///
/// The source goes first: what one of them sends too much takes nothing from the others' share.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn guard_rates(service: u32, a: u32, b: u32, what: u32) -> u32 {
    let Some(rates) = maps::rates(service) else {
        return WITHIN;
    };
    let now = time(maps::jiffies());
    let (opening, writes) = (what & OPENING != 0, what & WRITES != 0);
    if what & SOURCES != 0 {
        let hash = hash::source(maps::hash_key(), service, a, b);
        let (first, second) = places(hash, maps::source_places());
        let (Some(first), Some(second)) =
            (maps::source_buckets(first), maps::source_buckets(second))
        else {
            return WITHIN;
        };
        let buckets = [first.packets(), second.packets()];
        if !either(&rates.source_packets(), buckets, now, writes) {
            return Reason::DropSourcePackets as u32;
        }
        let buckets = [first.new_flows(), second.new_flows()];
        if opening && !either(&rates.source_new_flows(), buckets, now, writes) {
            return Reason::DropSourceFlows as u32;
        }
    }
    if what & SERVICE != 0 {
        let Some(buckets) = maps::service_buckets(service) else {
            return WITHIN;
        };
        if !one(&rates.packets(), buckets.packets(), now, writes) {
            return Reason::DropPackets as u32;
        }
        if opening && !one(&rates.new_flows(), buckets.new_flows(), now, writes) {
            return Reason::DropFlows as u32;
        }
    }
    WITHIN
}

/// Returns whether an opening packet on a row in transition may make a half-open entry, and takes it
/// out of its service's bucket.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn guard_half_open(service: u32) -> u32 {
    let (Some(rates), Some(buckets)) = (maps::rates(service), maps::service_buckets(service))
    else {
        return 1;
    };
    let now = time(maps::jiffies());
    u32::from(one(&rates.half_open(), buckets.half_open(), now, true))
}

#[inline(always)]
fn one(rate: &Rate, bucket: maps::Bucket, now: u64, writes: bool) -> bool {
    if rate.is_none() {
        return true;
    }
    let (next, within) = rate.take(bucket.get(), now);
    if writes {
        bucket.set(next);
    }
    within
}

/// Takes a packet out of both buckets of a source. It is within the rate if either says so: the
/// other one may be emptied by others.
#[inline(always)]
fn either(rate: &Rate, [first, second]: [maps::Bucket; 2], now: u64, writes: bool) -> bool {
    let first = one(rate, first, now, writes);
    // Both, whatever the first one says.
    one(rate, second, now, writes) || first
}
