//! Sweeps: walks over the flow tables that delete what has ended, settle rows, and free the
//! places of removed backends and services. A walk goes a batch at a time, so that the daemon
//! stays responsive with millions of entries; without tracked flows there is none.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use lb_common::backend::{BackendSlot, Head, Template};
use lb_common::flow::{FlowEntry, Table};
use tracing::{debug, info};

use super::{Engine, EngineError, RETRY};
use crate::dataplane::{Clock, Dataplane, FlowCursor, FlowKey, GRACE, Jiffies};
use crate::model::{BackendId, Name};
use crate::plan::InstalledBackend;

/// An entry's time may be this much older than its flow's last packet: the program writes it
/// again only after a hundred ticks of the kernel's clock, which has at least 100 a second.
const REFRESH: Duration = Duration::from_secs(1);
/// A flow that sent nothing after its opening packets is forgotten this long after the last of
/// them: by then the client has given up (RFC 9293 §3.8.3 asks for three minutes at least).
const HALF_OPEN: Duration = Duration::from_secs(180);
/// A flow whose end was seen is forgotten this long after its last packet: twice as long as Linux
/// waits for the end of its peer (`tcp_fin_timeout`). Entries would else fill the tables with flows
/// that are over, and a drain under load would not end.
const CLOSED: Duration = Duration::from_secs(120);
/// Pause between sweeps at the most, and at the least.
const PAUSE: (Duration, Duration) = (Duration::from_millis(250), Duration::from_secs(30));
/// A sweep is followed by a pause of this many times its length.
const PAUSE_FACTOR: u32 = 20;

/// When the next sweep begins, or how far the one under way has come.
#[derive(Debug, Default)]
pub(super) struct Schedule {
    next: Option<Instant>,
    running: Option<Sweep>,
}

/// A sweep under way.
#[derive(Debug)]
struct Sweep {
    started: Instant,
    clock: Clock,
    cursor: FlowCursor,
    /// Services by slot: name and number of rows when it began.
    services: BTreeMap<u32, (Name, u32)>,
    /// Rows with an entry of another backend than their owner.
    busy: BTreeMap<Name, BTreeSet<u32>>,
    flows: BTreeMap<BackendSlot, u64>,
}

impl Schedule {
    /// Asks for a sweep within `pause`.
    pub fn wanted(&mut self, now: Instant, pause: Duration) {
        let at = now + pause;
        self.next = Some(self.next.map_or(at, |next| next.min(at)));
    }

    /// Returns when there is something to do.
    pub fn next(&self) -> Option<Instant> {
        match &self.running {
            // The next batch can be read at once.
            Some(sweep) => Some(sweep.started),
            None => self.next,
        }
    }
}

impl<D: Dataplane> Engine<D> {
    /// Does the next piece of a sweep, if one is due. After a failure it begins anew.
    pub fn sweep(&mut self, now: Instant) -> Result<(), EngineError> {
        let result = self.sweep_on(now);
        if result.is_err() {
            self.sweep.wanted(now, RETRY);
        }
        result
    }

    fn sweep_on(&mut self, now: Instant) -> Result<(), EngineError> {
        let mut sweep = match self.sweep.running.take() {
            Some(sweep) => sweep,
            None if self.sweep.next.is_some_and(|at| at <= now) => {
                self.sweep.next = None;
                self.begin(now)?
            }
            None => return Ok(()),
        };
        let places = self.places();
        let mut cursor = sweep.cursor;
        let mut ended = Vec::new();
        let more = self
            .dataplane
            .walk_flows(&mut cursor, &mut |table, key, entry| {
                if self.has_ended(&sweep, &places, table, &entry) {
                    ended.push((table, key, entry));
                } else {
                    self.count(&mut sweep, &entry);
                }
            })?;
        sweep.cursor = cursor;
        self.remove(&ended, &mut sweep)?;
        if more {
            self.sweep.running = Some(sweep);
            return Ok(());
        }
        self.end(sweep, now)
    }

    fn begin(&self, now: Instant) -> Result<Sweep, EngineError> {
        let services = self
            .installed
            .iter()
            .map(|(name, service)| (service.slot, (name.clone(), service.segment.len)));
        Ok(Sweep {
            started: now,
            clock: self.dataplane.clock()?,
            cursor: FlowCursor::default(),
            services: services.collect(),
            busy: BTreeMap::new(),
            flows: BTreeMap::new(),
        })
    }

    /// Returns the places of all services that are there or may be soon.
    fn places(&self) -> BTreeSet<u32> {
        let declared = self.desired.services.keys();
        let declared = declared.filter_map(|name| self.slots.service(name));
        let installed = self.installed.values().map(|service| service.slot);
        declared.map(|(slot, _)| slot).chain(installed).collect()
    }

    /// Returns whether an entry's flow has ended, or lost its backend or its service.
    fn has_ended(
        &self,
        sweep: &Sweep,
        places: &BTreeSet<u32>,
        table: Table,
        entry: &FlowEntry,
    ) -> bool {
        if !places.contains(&entry.service) {
            return true;
        }
        let name = sweep.services.get(&entry.service).map(|(name, _)| name);
        let Some(service) = name.and_then(|name| self.desired.services.get(name)) else {
            // It came since the sweep began, or waits to be taken down: the next one judges.
            return false;
        };
        let backend = self
            .dataplane
            .backend(BackendSlot::from_stored(entry.backend));
        let head = backend.map_or(Head::default(), |backend| Head::from_bits(backend.head));
        is_over(entry, table, head, &sweep.clock, service.idle_timeout)
    }

    /// Counts the entry of a flow that goes on.
    fn count(&self, sweep: &mut Sweep, entry: &FlowEntry) {
        let backend = BackendSlot::from_stored(entry.backend);
        *sweep.flows.entry(backend).or_default() += 1;
        let Some((name, rows)) = sweep.services.get(&entry.service) else {
            return;
        };
        let index = entry.hash & rows.saturating_sub(1);
        let row = self.installed.get(name).and_then(|s| s.ring.row(index));
        // The entry of a closed flow goes soon. Until it has, its row asks: or the next flow with
        // its tuple opened unseen, would be taken for the closed one, and be forgotten with it.
        let closed = entry.flags & FlowEntry::CLOSED != 0;
        if row.is_some_and(|row| closed || row.owner() != backend) {
            sweep.busy.entry(name.clone()).or_default().insert(index);
        }
    }

    /// Deletes entries that were judged, unless packets have come for them since: the same flow
    /// may have gone on, and another one may have begun with the same addresses and ports. The
    /// kernel can't compare and delete in one go, so a packet between the two system calls, some
    /// microseconds, still loses its entry: it would have to come just after the idle time-out.
    fn remove(
        &mut self,
        ended: &[(Table, FlowKey, FlowEntry)],
        sweep: &mut Sweep,
    ) -> Result<(), EngineError> {
        for (table, key, entry) in ended {
            let Some(found) = self.dataplane.flow(*table, key)? else {
                continue;
            };
            let judged = |entry: &FlowEntry| (entry.backend, entry.generation, entry.last);
            if judged(&found) == judged(entry) {
                self.dataplane.remove_flow(*table, key)?;
            } else {
                self.count(sweep, &found);
            }
        }
        Ok(())
    }

    fn end(&mut self, sweep: Sweep, now: Instant) -> Result<(), EngineError> {
        let tracked: u64 = sweep.flows.values().sum();
        for (name, rows) in sweep.services.values() {
            let idle = self
                .desired
                .services
                .get(name)
                .map(|service| service.idle_timeout);
            let Some(service) = self.installed.get_mut(name) else {
                continue;
            };
            // A ring that grew meanwhile has other rows than the walk saw.
            if service.segment.len != *rows || service.ring.lookups() == 0 {
                continue;
            }
            let refused_at = self.dataplane.service_stats(service.slot)?.refused_at;
            let refused = (refused_at != 0)
                .then(|| now.checked_sub(sweep.clock.since(Jiffies(refused_at))))
                .flatten();
            let empty = BTreeSet::new();
            let busy = sweep.busy.get(name).unwrap_or(&empty);
            let since = sweep.started.checked_sub(GRACE).unwrap_or(sweep.started);
            let mut changes = service.ring.finish(since, |index| busy.contains(&index));
            if let Some(idle) = idle {
                changes.extend(service.ring.settle(now, idle + REFRESH, refused));
            }
            for change in &changes {
                self.dataplane
                    .set_row(service.segment.base + change.index, change.row)?;
            }
            if !changes.is_empty() {
                let left = service.ring.lookups();
                debug!(service = %name, changed = changes.len(), left, "rows settled");
            }
        }
        self.flows = sweep.flows;
        self.free_backends(sweep.started, now)?;
        self.update_nat_sources()?;
        self.update_filter()?;
        self.free_services(sweep.started)?;
        self.save_slots()?;
        let rings = self.installed.values();
        let pending = rings.map(|service| service.ring.lookups()).sum::<usize>() > 0;
        if tracked > 0 || pending || !self.retired.is_empty() || self.any_leaving() {
            let took = now.saturating_duration_since(sweep.started);
            self.sweep
                .wanted(now, self.interval().max(took * PAUSE_FACTOR));
        }
        Ok(())
    }

    fn any_leaving(&self) -> bool {
        self.leavers().next().is_some()
    }

    /// Returns the installed backends that nobody declares.
    fn leavers(&self) -> impl Iterator<Item = (BackendId, InstalledBackend)> {
        self.installed.iter().flat_map(|(name, service)| {
            let declared = self.desired.services.get(name);
            let gone = move |backend: &Name| {
                declared.is_none_or(|service| !service.backends.contains_key(backend))
            };
            service
                .backends
                .iter()
                .filter(move |(backend, _)| gone(backend))
                .map(|(backend, installed)| {
                    let id = BackendId {
                        service: name.clone(),
                        backend: backend.clone(),
                    };
                    (id, *installed)
                })
        })
    }

    /// Frees the places of removed backends that no row and no entry names.
    fn free_backends(&mut self, started: Instant, now: Instant) -> Result<(), EngineError> {
        let leavers: Vec<_> = self.leavers().collect();
        for (id, backend) in leavers {
            let slot = backend.slot;
            let Some(service) = self.installed.get_mut(&id.service) else {
                continue;
            };
            let quiet = service
                .ring
                .unchanged_since(started.checked_sub(GRACE).unwrap_or(started));
            // Its other template may have been in force a moment ago.
            let read = backend.spare_from.is_some_and(|free| free > now);
            if self.flows.contains_key(&slot) || service.ring.names(slot) || !quiet || read {
                continue;
            }
            service.backends.remove(&id.backend);
            self.clear(slot)?;
            self.leaving.remove(&id);
            if let Some(states) = self.states.get_mut(&id.service) {
                states.remove(&id.backend);
            }
            self.unanswered.remove(&id);
            self.unresolved.remove(&id);
            self.observed.next_hops.remove(&id);
            self.observed.health.remove(&id);
            self.slots.remove_backend(&id);
            self.freed = true;
            info!(service = %id.service, backend = %id.backend, "backend is gone: its flows have ended");
        }
        Ok(())
    }

    /// Frees the places of removed services: this sweep deleted their entries.
    fn free_services(&mut self, started: Instant) -> Result<(), EngineError> {
        if !self.vacated.is_empty() {
            // They may still name the rows.
            return Ok(());
        }
        let done: Vec<Name> = self
            .retired
            .iter()
            // One that comes back takes its places over.
            .filter(|(name, _)| !self.desired.services.contains_key(*name))
            .filter(|(_, at)| **at + GRACE <= started)
            .map(|(name, _)| name.clone())
            .collect();
        for name in done {
            self.retired.remove(&name);
            let backends: Vec<_> = self.slots.backends(&name).collect();
            for (_, slot) in backends {
                self.clear(slot)?;
            }
            if let Some((_, segment)) = self.slots.service(&name) {
                self.segments.free(segment.base, segment.len);
            }
            self.slots.remove_service(&name);
        }
        Ok(())
    }

    /// Makes a backend's place fit for another: its template leads nowhere, whatever a row says.
    /// Not before packets that read the side that is not in force have left.
    pub(super) fn clear(&mut self, slot: BackendSlot) -> Result<(), EngineError> {
        let head = Head::from_bits(self.dataplane.backend(slot)?.head);
        let generation = head.generation().wrapping_add(1);
        let side = head.side() ^ 1;
        self.dataplane
            .set_template(slot, side, &Template::UNREACHABLE)?;
        let dead = Head::new(side, false, false, generation);
        self.dataplane.set_head(slot, dead)?;
        self.dataplane.clear_backend_stats(slot)?;
        Ok(())
    }

    /// Returns the pause between sweeps: a quarter of the shortest idle time-out.
    pub(super) fn interval(&self) -> Duration {
        let services = self.desired.services.values();
        let shortest = services.map(|service| service.idle_timeout).min();
        (shortest.unwrap_or(PAUSE.1) / 4).clamp(PAUSE.0, PAUSE.1)
    }
}

/// Returns whether an entry's flow has ended, or lost its backend.
fn is_over(entry: &FlowEntry, table: Table, backend: Head, clock: &Clock, idle: Duration) -> bool {
    let lives = backend.alive() && backend.generation() == entry.generation;
    let limit = if entry.flags & FlowEntry::CLOSED != 0 {
        idle.min(CLOSED)
    } else if table == Table::HalfOpen && entry.flags & FlowEntry::CONFIRMED == 0 {
        idle.min(HALF_OPEN)
    } else {
        idle
    };
    !lives || clock.age_of(entry.last) > limit + REFRESH
}
