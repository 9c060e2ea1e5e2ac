//! The flow tables: asked only for rows with `lookup`.

use aya_ebpf::bindings::{BPF_ANY, BPF_NOEXIST};
use lb_common::{
    backend::BackendSlot,
    flow::{FlowEntry, Table},
    row::{self, Choice, Established, HalfOpen, Refused, Row},
    service::Service,
};

use crate::{
    family::{Family, V4, V6},
    guard, maps,
    maps::FlowTable,
    parse::Parsed,
    trace::{Count, Explain, Trace},
};

/// An entry's time is written again once it is this old, in jiffies: 1 s with 100 ticks a second,
/// 0.1 s with 1000. So a busy flow does not write to its entry with every packet.
const REFRESH_JIFFIES: u32 = 100;

/// What a table has for a flow. Not an `Option`: what is undefined where it is `None`, LLVM copies
/// all the same, and the verifier refuses that. Small: the stack is, too.
#[derive(Clone, Copy)]
struct Found {
    table: Table,
    /// Null if the table has no entry; the other fields are zero then.
    place: *mut FlowEntry,
    backend: u32,
    flags: u16,
}

impl Found {
    const NOTHING: Self = Self {
        table: Table::HalfOpen,
        place: core::ptr::null_mut(),
        backend: 0,
        flags: 0,
    };

    #[inline(always)]
    fn is_there(&self) -> bool {
        !self.place.is_null()
    }

    #[inline(always)]
    fn slot(&self) -> BackendSlot {
        BackendSlot::from_stored(self.backend)
    }

    /// Returns the entry as it is now, and where it is. A sweep may delete it at any time, and the
    /// kernel may give its memory to another flow, which has another hash.
    #[inline(always)]
    fn read(&self, hash: u32) -> Option<(FlowEntry, &'static mut FlowEntry)> {
        if !self.is_there() {
            return None;
        }
        // SAFETY: an element of a flow table, of which every word is valid in itself. Each store
        // through the reference is a whole word; packets of one flow on two CPUs may overwrite each
        // other's flags, which loses a hint.
        let (entry, place) = unsafe { (self.place.read_volatile(), &mut *self.place) };
        (entry.hash == hash).then_some((entry, place))
    }
}

/// What the flow tables need to know of a packet and its row. A copy, so that only packets that
/// come here pay for one in memory; without padding, since the verifier wants all of it written.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Question<K> {
    row: u64,
    key: K,
    hash: u32,
    service: u32,
    sequence: u32,
    /// [`OPENING`], [`CLOSING`], [`ABOUT`], [`REFUSED`].
    flags: u32,
}

const OPENING: u32 = 1;
const CLOSING: u32 = 2;
/// The packet is about the flow, and not one of it: it changes no table.
const ABOUT: u32 = 4;
/// The packet must make no half-open entry: its service's rate of them is reached.
const REFUSED: u32 = 8;

impl<K> Question<K> {
    #[inline(always)]
    fn row(&self) -> Row {
        Row::from_bits(self.row)
    }

    #[inline(always)]
    fn opening(&self) -> bool {
        self.flags & OPENING != 0
    }

    #[inline(always)]
    fn about(&self) -> bool {
        self.flags & ABOUT != 0
    }

    #[inline(always)]
    fn closing(&self) -> bool {
        self.flags & CLOSING != 0
    }
}

/// Returns the backend of a packet whose row says that the flow tables must be asked, and does to
/// the tables what the row rule says.
#[inline(always)]
pub fn backend_of<F: Family, T: Trace>(
    packet: &Parsed<F>,
    service: &Service,
    hash: u32,
    row: Row,
    _: &T,
) -> BackendSlot {
    let flag = |is: bool, flag: u32| if is { flag } else { 0 };
    // Asked here, since a third function would not fit on the stack.
    let limited = T::WRITES_FLOWS && service.flags & Service::HALF_OPEN_RATE != 0;
    let refused = limited && packet.opening && guard::guard_half_open(service.slot) == 0;
    // Not on the stack, of which a packet's way and the functions below it have 512 bytes together, each
    // rounded up to 32 by Linux 6.1.
    let Some(question) = F::question_place() else {
        return BackendSlot::NONE;
    };
    *question = Question {
        row: row.to_bits(),
        key: packet.key,
        hash,
        service: service.slot,
        sequence: packet.sequence,
        flags: flag(packet.opening, OPENING)
            | flag(packet.closing, CLOSING)
            | flag(packet.icmp_error, ABOUT)
            | flag(refused, REFUSED),
    };
    BackendSlot::from_stored(F::ask_flow_tables::<T>(question))
}

/// Makes a function that the verifier looks at on its own, once, whoever calls it. The many ways
/// through the flow tables would else be followed to the end of the program each, from each of the
/// many ways that lead here. It must be known by name, and take nothing but numbers and pointers
/// to memory of fixed size (Linux 5.12, e5069b9c23b3), which may be null for all that the verifier
/// knows.
macro_rules! global_function {
    ($name:ident, $family:ty, $trace:expr) => {
        #[unsafe(no_mangle)]
        #[inline(never)]
        pub extern "C" fn $name(question: *const Question<<$family as Family>::Key>) -> u32 {
            // SAFETY: a pointer to the caller's question.
            let (Some(question), Some(trace)) = (unsafe { question.as_ref() }, $trace) else {
                return 0;
            };
            // A map's key must lie on the function's own stack.
            ask::<$family, _>(&{ *question }, &trace).get()
        }
    };
}

global_function!(flow_v4, V4, Some(Count));
global_function!(flow_v6, V6, Some(Count));
global_function!(explain_flow_v4, V4, Explain::resume());
global_function!(explain_flow_v6, V6, Explain::resume());

#[inline(always)]
fn ask<F: Family, T: Trace>(question: &Question<F::Key>, trace: &T) -> BackendSlot {
    let (key, hash, row) = (&question.key, question.hash, question.row());
    let opening = question.opening();
    let writes = T::WRITES_FLOWS && !question.about();
    let untracked_alive = alive(row.untracked());
    let (mut found, mut entry) = find(F::confirmed(), Table::Confirmed, key, hash);
    if !found.is_there() {
        (found, entry) = find(F::kept(), Table::Kept, key, hash);
    }
    let established = if found.is_there() {
        established(&entry, question)
    } else {
        Established::None
    };
    let reopened = found.flags & FlowEntry::REOPENED != 0;
    let (mut half, mut half_open) = (Found::NOTHING, HalfOpen::None);
    if established.asks_half_open(opening, reopened) {
        let earlier = entry;
        (half, entry) = find(F::half_open(), Table::HalfOpen, key, hash);
        if half.is_there() {
            let rival = !matches!(established, Established::None | Established::Dead);
            half_open = self::half_open::<F::Key, T>(&entry, &found, &earlier, rival, question);
        }
    }
    let owner_has_it = found.backend == row.owner().get();
    let choice = row::choose(
        row,
        opening,
        established,
        half_open,
        owner_has_it,
        untracked_alive,
    );

    trace.note(|e| {
        e.table = if matches!(choice, Choice::HalfOpen) {
            2 + Table::HalfOpen as u32
        } else if found.is_there() {
            2 + found.table as u32
        } else {
            1
        };
        e.choice = 1 + choice as u32;
    });

    match choice {
        Choice::Entry => {
            if writes {
                seen(question, &found, maps::jiffies());
            }
            found.slot()
        }
        Choice::HalfOpen => {
            if writes {
                if opening {
                    repeat(question, &half);
                } else {
                    confirm::<F>(question, &half, &found);
                }
            }
            half.slot()
        }
        Choice::Reuse => {
            if writes {
                open_again(question, &found);
            }
            row.owner()
        }
        Choice::Owner => row.owner(),
        Choice::Untracked => row.untracked(),
        Choice::OwnerForget => {
            if writes {
                forget::<F>(key, &found);
            }
            row.owner()
        }
        Choice::Open if writes => open::<F>(question, &found, established, untracked_alive),
        Choice::Open => row.owner(),
        Choice::Keep => {
            if writes {
                keep::<F>(question, &found, &half);
            }
            row.untracked()
        }
    }
}

/// Returns what a table has for a flow, with its entry, which is all zero if there is none.
#[inline(always)]
fn find<K>(map: &FlowTable<K>, table: Table, key: &K, hash: u32) -> (Found, FlowEntry) {
    const NO_ENTRY: FlowEntry = FlowEntry {
        backend: 0,
        generation: 0,
        flags: 0,
        last: 0,
        hash: 0,
        service: 0,
        opened: 0,
        recent: 0,
        _pad: 0,
    };
    let Some(place) = map.get_ptr_mut(key) else {
        return (Found::NOTHING, NO_ENTRY);
    };
    // SAFETY: see `Found::read`.
    let entry = unsafe { place.read_volatile() };
    if entry.hash != hash {
        return (Found::NOTHING, NO_ENTRY);
    }
    let found = Found {
        table,
        place,
        backend: entry.backend,
        flags: entry.flags,
    };
    (found, entry)
}

#[inline(always)]
fn alive(slot: BackendSlot) -> bool {
    maps::backend(slot).is_some_and(|backend| backend.head().alive())
}

#[inline(always)]
fn established<K>(entry: &FlowEntry, question: &Question<K>) -> Established {
    let Some(backend) = maps::backend(BackendSlot::from_stored(entry.backend)) else {
        return Established::Dead;
    };
    let head = backend.head();
    if !head.alive() || head.generation() != entry.generation {
        Established::Dead
    } else if question.opening() && question.sequence == entry.opened {
        // The network brought the opening packet twice.
        Established::Live
    } else if entry.flags & FlowEntry::CLOSED != 0 {
        Established::Closed
    } else if !head.accepts() {
        Established::Leaving
    } else {
        Established::Live
    }
}

/// Returns what a half-open entry is to a packet. `rival` says whether there is an established entry
/// of a living backend beside it.
#[inline(always)]
fn half_open<K, T: Trace>(
    entry: &FlowEntry,
    found: &Found,
    earlier: &FlowEntry,
    rival: bool,
    question: &Question<K>,
) -> HalfOpen {
    let Some(backend) = maps::backend(BackendSlot::from_stored(entry.backend)) else {
        return HalfOpen::None;
    };
    let head = backend.head();
    let confirmed = entry.flags & FlowEntry::CONFIRMED != 0;
    let own = question.opening() && entry.is_opened_by(question.sequence);
    let same = if question.opening() {
        own && (confirmed || head.accepts())
    } else {
        // An explanation doesn't know the flow's sequence numbers, and what an error quotes are the
        // VM's: the flow that is established is the likelier one.
        !T::WRITES_FLOWS
            || confirmed
            || if question.about() {
                !rival
            } else if found.is_there() {
                entry.wins_over(earlier, question.sequence)
            } else {
                entry.is_followed_by(question.sequence)
            }
    };
    if !head.alive() || head.generation() != entry.generation {
        HalfOpen::None
    } else if same {
        HalfOpen::Same
    } else if own || entry.flags & FlowEntry::CLOSED != 0 {
        HalfOpen::Stale
    } else {
        HalfOpen::Other
    }
}

/// Keeps an entry up to date with a packet of its flow.
#[inline(always)]
fn seen<K>(question: &Question<K>, found: &Found, now: u64) {
    let Some((entry, place)) = found.read(question.hash) else {
        return;
    };
    let now = now as u32;
    let near = !question.opening() && entry.is_near(question.sequence);
    if now.wrapping_sub(entry.last) >= REFRESH_JIFFIES {
        place.last = now;
        if near {
            place.recent = question.sequence;
        }
    }
    if question.opening() && entry.opened != question.sequence {
        place.opened = question.sequence;
    }
    if question.closing() && near && entry.flags & FlowEntry::CLOSED == 0 {
        place.flags = entry.flags | FlowEntry::CLOSED;
    }
}

/// Notes another opening packet in a half-open entry, or the same once more.
#[inline(always)]
fn repeat<K>(question: &Question<K>, half: &Found) {
    let Some((entry, place)) = half.read(question.hash) else {
        return;
    };
    place.last = maps::jiffies() as u32;
    if !entry.is_opened_by(question.sequence) {
        place.recent = entry.opened;
        place.opened = question.sequence;
        place.flags = entry.flags & !FlowEntry::CLOSED;
    }
}

/// Gives an established entry to the flow that an opening packet opens.
#[inline(always)]
fn open_again<K>(question: &Question<K>, found: &Found) {
    let Some((entry, place)) = found.read(question.hash) else {
        return;
    };
    place.last = maps::jiffies() as u32;
    if entry.opened != question.sequence {
        place.opened = question.sequence;
        place.recent = question.sequence;
        place.flags = entry.flags & !FlowEntry::CLOSED;
    }
}

/// Confirms a half-open flow by a packet that follows its opening packet, in place of an earlier
/// flow with the same key.
#[inline(always)]
fn confirm<F: Family>(question: &Question<F::Key>, half: &Found, earlier: &Found) {
    let now = maps::jiffies();
    if half.flags & FlowEntry::CONFIRMED != 0 {
        seen(question, half, now);
        return;
    }
    let Some((mut entry, place)) = half.read(question.hash) else {
        return;
    };
    entry.opened = entry.opening_of(question.sequence);
    entry.recent = question.sequence;
    entry.last = now as u32;
    entry.flags |= FlowEntry::CONFIRMED;
    if question.closing() {
        entry.flags |= FlowEntry::CLOSED;
    }
    if matches!(earlier.table, Table::Kept) {
        forget::<F>(&question.key, earlier);
    }
    let confirmed = F::confirmed().insert(&question.key, entry, u64::from(BPF_ANY));
    if confirmed.is_ok() {
        let _ = F::half_open().remove(&question.key);
    } else {
        *place = entry;
    }
}

/// Opens a flow at its row's owner. An earlier flow with the same key that may still live keeps its
/// entry, until a packet follows this one.
#[inline(always)]
fn open<F: Family>(
    question: &Question<F::Key>,
    found: &Found,
    established: Established,
    untracked_alive: bool,
) -> BackendSlot {
    let row = question.row();
    let entry = new_entry(question, row.owner());
    // Beyond the rate it is as if the table were full.
    let may = question.flags & REFUSED == 0;
    let any = u64::from(BPF_ANY);
    let inserted = may && F::half_open().insert(&question.key, entry, any).is_ok();
    if matches!(established, Established::Dead) {
        forget::<F>(&question.key, found);
    } else if inserted && let Some((entry, place)) = found.read(question.hash) {
        place.flags = entry.flags | FlowEntry::REOPENED;
    }
    if inserted {
        return row.owner();
    }
    maps::count_refused(question.service, maps::jiffies());
    match row::open_refused(row, established, untracked_alive) {
        Refused::Entry => {
            seen(question, found, maps::jiffies());
            found.slot()
        }
        Refused::Forget(slot) => {
            forget::<F>(&question.key, found);
            slot
        }
    }
}

/// Makes an entry for an old flow that was not tracked so far.
#[inline(always)]
fn keep<F: Family>(question: &Question<F::Key>, found: &Found, half: &Found) {
    forget::<F>(&question.key, found);
    let mut entry = new_entry(question, question.row().untracked());
    entry.opened = 0;
    if half.is_there() {
        entry.flags = FlowEntry::REOPENED;
    }
    let kept = F::kept().insert(&question.key, entry, u64::from(BPF_NOEXIST));
    if kept.is_err() {
        maps::count_refused(question.service, maps::jiffies());
    }
}

/// Deletes an established entry that an earlier flow with the same key left behind.
#[inline(always)]
fn forget<F: Family>(key: &F::Key, found: &Found) {
    if !found.is_there() {
        return;
    }
    // Another CPU may have been quicker.
    let _ = if matches!(found.table, Table::Kept) {
        F::kept().remove(key)
    } else {
        F::confirmed().remove(key)
    };
}

#[inline(always)]
fn new_entry<K>(question: &Question<K>, slot: BackendSlot) -> FlowEntry {
    FlowEntry {
        backend: slot.get(),
        generation: maps::backend(slot).map_or(0, |backend| backend.head().generation()),
        flags: 0,
        last: maps::jiffies() as u32,
        hash: question.hash,
        service: question.service,
        opened: question.sequence,
        recent: question.sequence,
        _pad: 0,
    }
}
