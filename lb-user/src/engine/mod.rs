//! The engine: holds the three states and carries plans out on a data plane.
//!
//! It does no I/O besides the [`Dataplane`] and the store for [`Slots`], and takes the time as an
//! argument, so the whole control loop runs in tests on [`crate::dataplane::Memory`].

mod adopt;
mod audit;
mod declare;
mod lists;
mod nat;
mod rates;
mod reconcile;
mod settings;
mod status;
mod sweep;
mod vips;

#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::{Duration, Instant};

use lb_common::backend::BackendSlot;
use lb_common::nat::NatSource;
use lb_common::settings::Settings;

pub use audit::Discrepancy;
pub use declare::{Prepared, Refused, ServiceDiff};
pub use lists::fill_list;
pub use status::{BackendStatus, ServiceStatus};

use crate::dataplane::{Dataplane, MapError};
use crate::model::{
    Backend, BackendId, Desired, Fragments, HealthState, Icmp, Name, NextHop, Observed, Seen, Vip,
};
use crate::plan::{BackendState, InstalledService, Segment, Ways};
use crate::ring::Segments;
use crate::state::{Slots, StateError};

/// Where the engine keeps the places in the kernel's maps, before it uses them.
pub type Store = Box<dyn FnMut(&Slots) -> Result<(), StateError>>;

/// How long a service waits for the next hops of its backends: so that the first ring of a new one
/// is that of all of them, and nothing changes for one of an earlier daemon.
const FIRST_HOPS: Duration = Duration::from_secs(1);

/// After this long what failed is tried again.
const RETRY: Duration = Duration::from_secs(1);

/// Why the data plane could not be brought to what is desired.
#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    /// A map.
    #[error(transparent)]
    Map(#[from] MapError),
    /// The state directory.
    #[error(transparent)]
    State(#[from] StateError),
    /// One service.
    #[error("service \"{service}\"")]
    Service {
        /// The service.
        service: Name,
        /// What went wrong.
        #[source]
        source: Box<EngineError>,
    },
}

impl EngineError {
    /// Returns the error with the service that it is about.
    fn of(self, service: &Name) -> Self {
        Self::Service {
            service: service.clone(),
            source: Box::new(self),
        }
    }
}

/// What could not be done, while the rest was. It is tried again.
#[derive(Debug, thiserror::Error)]
#[error("{} of the changes of the maps failed", .0.len())]
pub struct Failed(pub Vec<EngineError>);

/// What is known of the way to a backend.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Hop {
    /// It is known.
    Found(NextHop),
    /// The kernel was asked, and has not answered yet.
    Pending(String),
    /// There is none, for this reason.
    Failed(String),
}

/// The three states, and the data plane.
pub struct Engine<D> {
    dataplane: D,
    store: Store,
    desired: Desired,
    /// Who is declared on each VIP.
    vips: BTreeMap<Vip, Name>,
    /// VIPs in the service map that services had, until others take them or they are taken out.
    vacated: BTreeSet<Vip>,
    observed: Observed,
    /// Backends of an earlier daemon whose next hops nobody told this one yet.
    unanswered: BTreeSet<BackendId>,
    /// Why backends have no next hop.
    unresolved: BTreeMap<BackendId, Hop>,
    installed: BTreeMap<Name, InstalledService>,
    slots: Slots,
    /// The slots as they were stored last.
    stored: Slots,
    segments: Segments,
    /// Services that something changed for since they were planned last.
    dirty: BTreeSet<Name>,
    /// Services with work that waits for a time.
    again: BTreeMap<Name, Instant>,
    /// When to try again what failed.
    retry: Option<Instant>,
    /// Services that are new to this daemon and wait for next hops, until then.
    waiting: BTreeMap<Name, Instant>,
    states: BTreeMap<Name, BTreeMap<Name, BackendState>>,
    /// Declarations of removed backends whose flows have not ended, so that their next hops are
    /// still followed. Not kept over a restart: then the last template stays.
    leaving: BTreeMap<BackendId, Backend>,
    /// Removed services whose flow entries and slots a sweep still has to free.
    retired: BTreeMap<Name, Instant>,
    /// Segments of the ring map that packets may still read.
    released: Vec<(Instant, Segment)>,
    lists: lists::Lists,
    sweep: sweep::Schedule,
    /// Whether places were freed since somebody asked.
    freed: bool,
    /// Flow table entries of each backend, as of the last sweep.
    flows: BTreeMap<BackendSlot, u64>,
    filter: BTreeMap<u32, u8>,
    /// The addresses of services in the maps.
    addresses: BTreeSet<IpAddr>,
    /// The settings in the map.
    settings: Settings,
    /// What they were made of.
    settings_of: Option<(Icmp, Fragments)>,
    /// What the answers of VMs come from.
    nat_sources: BTreeMap<Vip, NatSource>,
    /// Interfaces that packets can be redirected to.
    devices: BTreeSet<u32>,
    /// Those that they can't be redirected to, and why.
    no_devices: BTreeMap<u32, String>,
}

impl<D: Dataplane> Engine<D> {
    /// Returns an engine that knows what the maps hold already. `slots` are those in the store.
    pub fn new(
        dataplane: D,
        slots: Slots,
        limits: crate::model::Limits,
        store: Store,
        now: Instant,
    ) -> Result<Self, EngineError> {
        let mut engine = Self {
            dataplane,
            store,
            desired: Desired {
                limits,
                ..Desired::default()
            },
            vips: BTreeMap::new(),
            vacated: BTreeSet::new(),
            observed: Observed::default(),
            unanswered: BTreeSet::new(),
            unresolved: BTreeMap::new(),
            installed: BTreeMap::new(),
            stored: slots.clone(),
            slots,
            segments: Segments::new(limits.rows),
            dirty: BTreeSet::new(),
            again: BTreeMap::new(),
            retry: None,
            waiting: BTreeMap::new(),
            states: BTreeMap::new(),
            leaving: BTreeMap::new(),
            retired: BTreeMap::new(),
            released: Vec::new(),
            lists: lists::Lists::default(),
            sweep: sweep::Schedule::default(),
            freed: false,
            flows: BTreeMap::new(),
            filter: BTreeMap::new(),
            addresses: BTreeSet::new(),
            settings: Settings::default(),
            settings_of: None,
            nat_sources: BTreeMap::new(),
            devices: BTreeSet::new(),
            no_devices: BTreeMap::new(),
        };
        engine.adopt(now)?;
        Ok(engine)
    }

    /// Returns the data plane.
    pub fn dataplane(&self) -> &D {
        &self.dataplane
    }

    /// Returns the data plane, to attach and detach.
    pub fn dataplane_mut(&mut self) -> &mut D {
        &mut self.dataplane
    }

    /// Returns what the operator declared.
    pub fn desired(&self) -> &Desired {
        &self.desired
    }

    /// Returns what the maps hold for a service.
    pub fn installed(&self, name: &Name) -> Option<&InstalledService> {
        self.installed.get(name)
    }

    /// Returns the service with a place in the statistics.
    pub fn service_in(&self, slot: u32) -> Option<(&Name, &InstalledService)> {
        let mut services = self.installed.iter();
        services.find(|(_, service)| service.slot == slot)
    }

    /// Returns the name of the backend in a slot.
    pub fn backend_in(&self, slot: BackendSlot) -> Option<&Name> {
        let mut services = self.installed.values();
        services.find_map(|service| service.backend_in(slot))
    }

    /// Returns whether a backend is declared.
    pub fn declares(&self, id: &BackendId) -> bool {
        let service = self.desired.services.get(&id.service);
        service.is_some_and(|service| service.backends.contains_key(&id.backend))
    }

    /// Returns a backend that is declared, or was and is leaving.
    pub fn backend(&self, id: &BackendId) -> Option<&Backend> {
        let service = self.desired.services.get(&id.service);
        let declared = service.and_then(|service| service.backends.get(&id.backend));
        declared.or_else(|| self.leaving.get(id))
    }

    /// Returns every backend whose next hop is wanted: declared, or leaving.
    pub fn reachable(&self) -> BTreeMap<BackendId, Backend> {
        let mut backends = self.leaving.clone();
        for service in self.desired.services.values() {
            for (name, backend) in &service.backends {
                let id = BackendId {
                    service: service.name.clone(),
                    backend: name.clone(),
                };
                backends.insert(id, backend.clone());
            }
        }
        backends
    }

    /// Returns what is known of the ways to backends.
    fn ways(&self) -> Ways<'_> {
        Ways {
            encap: &self.desired.encap_source,
            observed: &self.observed,
            unanswered: &self.unanswered,
            devices: &self.devices,
        }
    }

    /// Takes in what is known of the way to a backend.
    pub fn observe_hop(&mut self, id: &BackendId, hop: Hop, now: Instant) {
        if !matches!(hop, Hop::Pending(_)) {
            self.unanswered.remove(id);
        }
        match hop {
            Hop::Found(value) => {
                self.unresolved.remove(id);
                self.observed
                    .next_hops
                    .insert(id.clone(), Seen { value, at: now });
            }
            missing @ (Hop::Pending(_) | Hop::Failed(_)) => {
                self.observed.next_hops.remove(id);
                self.unresolved.insert(id.clone(), missing);
            }
        }
        self.dirty.insert(id.service.clone());
    }

    /// Takes in what health checks think of a backend.
    pub fn observe_health(&mut self, id: &BackendId, value: HealthState, now: Instant) {
        let seen = Seen { value, at: now };
        let before = self.observed.health.insert(id.clone(), seen);
        if before.map(|before| before.value) != Some(value) {
            self.dirty.insert(id.service.clone());
        }
    }

    /// Forgets what health checks thought of a backend that is not probed any more.
    pub fn forget_health(&mut self, id: &BackendId) {
        if self.observed.health.remove(id).is_some() {
            self.dirty.insert(id.service.clone());
        }
    }

    /// Returns whether backends are gone since the last call: nobody has to follow them any more.
    pub fn take_freed(&mut self) -> bool {
        std::mem::take(&mut self.freed)
    }

    /// Stores the places in the maps, if they changed: always before they are used.
    fn save_slots(&mut self) -> Result<(), StateError> {
        if self.stored != self.slots {
            (self.store)(&self.slots)?;
            self.stored = self.slots.clone();
        }
        Ok(())
    }

    /// Stores the places of a service, if it has new ones. One that has none is served also while
    /// nothing can be stored.
    fn save_slots_of(&mut self, name: &Name) -> Result<(), StateError> {
        if self.stored.include(&self.slots, name) {
            return Ok(());
        }
        self.save_slots()
    }

    /// Returns when there is something to do though nothing new is seen.
    pub fn next_deadline(&self) -> Option<Instant> {
        let released = self.released.iter().map(|(at, _)| at);
        self.again
            .values()
            .chain(self.waiting.values())
            .chain(released)
            .copied()
            .chain(self.sweep.next())
            .chain(self.retry)
            .chain(self.lists_deadline())
            .min()
    }
}
