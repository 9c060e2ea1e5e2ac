//! The flow tables: asked only for rows with `lookup`.

use aya_ebpf::bindings::{BPF_ANY, BPF_NOEXIST};
use lb_common::{
    backend::BackendSlot,
    flow::{FlowEntry, Table},
    row::{self, Choice, Entry, Row},
    service::Service,
};

use crate::{family::Family, maps, maps::FlowTable, parse::Parsed, trace::Trace};

/// An entry's time is written again once it is this old, in jiffies: 1 s with 100 ticks a second,
/// 0.1 s with 1000. So a busy flow does not write to its entry with every packet.
const REFRESH_JIFFIES: u32 = 100;

/// An entry that was found.
#[derive(Clone, Copy)]
struct Found {
    table: Table,
    entry: *mut FlowEntry,
}

/// Returns the backend of a packet whose row says that the flow table must be asked, and does to
/// the tables what the row rule says.
#[inline(always)]
pub fn backend_of<F: Family, T: Trace>(
    packet: &Parsed<F>,
    service: &Service,
    hash: u32,
    row: Row,
    trace: &T,
) -> BackendSlot {
    let untracked_alive = alive(row.untracked());
    let found = find::<F>(&packet.key);
    let state = found.map_or(Entry::Miss, |found| state(&found));
    let choice = row::choose(row, packet.opening, state, untracked_alive);
    trace.note(|e| {
        e.table = found.map_or(1, |found| 2 + found.table as u32);
        e.choice = 1 + choice as u32;
    });

    match choice {
        Choice::Entry => match found {
            Some(found) => {
                // SAFETY: an element of a flow table. It may be replaced while we read it, by a
                // packet of the same flow on another CPU or by a sweep of idle flows.
                let slot = BackendSlot::from_stored(unsafe { (*found.entry).backend });
                if T::WRITES_FLOWS {
                    seen::<F>(packet, &found, maps::jiffies());
                }
                slot
            }
            None => row.owner(),
        },
        Choice::Owner => row.owner(),
        Choice::Untracked => row.untracked(),
        Choice::OwnerForget => {
            if T::WRITES_FLOWS {
                forget::<F>(&packet.key, found);
            }
            row.owner()
        }
        Choice::Open if T::WRITES_FLOWS => {
            forget::<F>(&packet.key, found);
            let (entry, now) = new_entry(row.owner(), service, hash);
            match F::half_open().insert(&packet.key, entry, u64::from(BPF_ANY)) {
                Ok(()) => row.owner(),
                Err(_) => {
                    maps::count_refused(service.slot, now);
                    row::open_refused(row, untracked_alive)
                }
            }
        }
        Choice::Open => row.owner(),
        Choice::Keep => {
            if T::WRITES_FLOWS {
                forget::<F>(&packet.key, found);
                let (entry, now) = new_entry(row.untracked(), service, hash);
                if F::kept()
                    .insert(&packet.key, entry, u64::from(BPF_ANY))
                    .is_err()
                {
                    maps::count_refused(service.slot, now);
                }
            }
            row.untracked()
        }
    }
}

/// Returns the flow's entry. At most one table has one.
#[inline(always)]
fn find<F: Family>(key: &F::Key) -> Option<Found> {
    let look = |table: &FlowTable<F::Key>, name| {
        table
            .get_ptr_mut(key)
            .map(|entry| Found { table: name, entry })
    };
    look(F::confirmed(), Table::Confirmed)
        .or_else(|| look(F::kept(), Table::Kept))
        .or_else(|| look(F::half_open(), Table::HalfOpen))
}

#[inline(always)]
fn alive(slot: BackendSlot) -> bool {
    maps::backend(slot).is_some_and(|backend| backend.head().alive())
}

#[inline(always)]
fn state(found: &Found) -> Entry {
    // SAFETY: an element of a flow table, see `backend_of`.
    let (slot, generation, flags) = unsafe {
        (
            (*found.entry).backend,
            (*found.entry).generation,
            (*found.entry).flags,
        )
    };
    let Some(backend) = maps::backend(BackendSlot::from_stored(slot)) else {
        return Entry::Dead;
    };
    let head = backend.head();
    if !head.alive() || head.generation() != generation {
        Entry::Dead
    } else if !head.accepts() || flags & FlowEntry::CLOSED != 0 {
        Entry::Finished
    } else {
        Entry::Live
    }
}

/// Keeps an entry up to date with a packet of its flow.
#[inline(always)]
fn seen<F: Family>(packet: &Parsed<F>, found: &Found, now: u64) {
    // SAFETY: an element of a flow table, see `backend_of`. Each store is a whole word; packets of
    // one flow on two CPUs may overwrite each other's flags, which loses a hint and no flow.
    let entry = unsafe { &mut *found.entry };
    let now = now as u32;
    if now.wrapping_sub(entry.last) >= REFRESH_JIFFIES {
        entry.last = now;
    }
    if packet.closing && entry.flags & FlowEntry::CLOSED == 0 {
        entry.flags |= FlowEntry::CLOSED;
    }
    let second_packet = found.table as u32 == Table::HalfOpen as u32
        && !packet.opening
        && entry.flags & FlowEntry::CONFIRMED == 0;
    if second_packet {
        entry.flags |= FlowEntry::CONFIRMED;
        let confirmed = FlowEntry {
            last: now,
            ..*entry
        };
        if F::confirmed()
            .insert(&packet.key, confirmed, u64::from(BPF_NOEXIST))
            .is_ok()
        {
            let _ = F::half_open().remove(&packet.key);
        }
    }
}

/// Deletes an entry that an earlier flow with the same key left behind.
#[inline(always)]
fn forget<F: Family>(key: &F::Key, found: Option<Found>) {
    if let Some(found) = found {
        // Another CPU may have been quicker.
        let _ = match found.table {
            Table::HalfOpen => F::half_open().remove(key),
            Table::Confirmed => F::confirmed().remove(key),
            Table::Kept => F::kept().remove(key),
        };
    }
}

#[inline(always)]
fn new_entry(slot: BackendSlot, service: &Service, hash: u32) -> (FlowEntry, u64) {
    let now = maps::jiffies();
    let generation = maps::backend(slot).map_or(0, |backend| backend.head().generation());
    let entry = FlowEntry {
        backend: slot.get(),
        generation,
        flags: 0,
        last: now as u32,
        hash,
        service: service.slot,
    };
    (entry, now)
}
