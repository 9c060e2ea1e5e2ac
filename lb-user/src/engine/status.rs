use std::collections::BTreeMap;

use lb_common::stats::{BackendStats, ServiceStats};

use super::{Engine, EngineError};
use crate::dataplane::Dataplane;
use crate::model::{Backend, BackendId, Name, Service};
use crate::plan::{BackendState, InstalledBackend, eligibility};

/// How a service is.
#[derive(Clone, Debug)]
pub struct ServiceStatus {
    /// What was declared.
    pub service: Service,
    /// Whether packets are served: a new service waits for its backends' next hops.
    pub installed: bool,
    /// Rows of its ring.
    pub rows: usize,
    /// Rows that moved and have not settled.
    pub unsettled: usize,
    /// Rows that ask the flow table.
    pub lookups: usize,
    /// Its counters.
    pub stats: ServiceStats,
    /// Its backends, also those that are leaving.
    pub backends: BTreeMap<Name, BackendStatus>,
}

/// How a backend is.
#[derive(Clone, Debug)]
pub struct BackendStatus {
    /// What was declared; nothing for one that is leaving.
    pub backend: Option<Backend>,
    /// Its state.
    pub state: BackendState,
    /// Why it is in that state, where that isn't plain.
    pub why: Option<String>,
    /// Rows that it owns.
    pub rows: u32,
    /// Flow table entries, as of the last sweep.
    pub flows: u64,
    /// Its counters.
    pub stats: BackendStats,
}

impl<D: Dataplane> Engine<D> {
    /// Returns how all services are.
    pub fn status(&self) -> Result<Vec<ServiceStatus>, EngineError> {
        let services = self.desired.services.values();
        services
            .map(|service| self.service_status(service))
            .collect()
    }

    fn service_status(&self, service: &Service) -> Result<ServiceStatus, EngineError> {
        let mut backends = BTreeMap::new();
        let installed = self.installed.get(&service.name);
        let counts = installed
            .map(|installed| installed.ring.counts())
            .unwrap_or_default();
        let leaving = installed
            .into_iter()
            .flat_map(|service| service.backends.keys())
            .filter(|name| !service.backends.contains_key(*name));
        for name in service.backends.keys().chain(leaving) {
            let id = BackendId {
                service: service.name.clone(),
                backend: name.clone(),
            };
            let found = installed.and_then(|service| service.backends.get(name));
            let slot = found.map(|backend| backend.slot);
            let stats = match slot {
                Some(slot) => self.dataplane.backend_stats(slot)?,
                None => BackendStats::default(),
            };
            let states = self.states.get(&service.name);
            let state = states
                .and_then(|states| states.get(name))
                .copied()
                .unwrap_or_else(|| self.state_before_plan(service, &id, found));
            let status = BackendStatus {
                backend: service.backends.get(name).cloned(),
                state,
                why: self.reason(&id),
                rows: slot
                    .and_then(|slot| counts.get(&slot).copied())
                    .unwrap_or(0),
                flows: slot
                    .and_then(|slot| self.flows.get(&slot).copied())
                    .unwrap_or(0),
                stats,
            };
            backends.insert(name.clone(), status);
        }
        let stats = match installed {
            Some(installed) => self.dataplane.service_stats(installed.slot)?,
            None => ServiceStats::default(),
        };
        Ok(ServiceStatus {
            service: service.clone(),
            installed: installed.is_some(),
            rows: installed.map_or(0, |installed| installed.ring.rows().len()),
            unsettled: installed.map_or(0, |installed| installed.ring.unsettled()),
            lookups: installed.map_or(0, |installed| installed.ring.lookups()),
            stats,
            backends,
        })
    }

    /// Returns the state of a backend whose service was not planned yet: of an earlier daemon, or
    /// new.
    fn state_before_plan(
        &self,
        service: &Service,
        id: &BackendId,
        found: Option<&InstalledBackend>,
    ) -> BackendState {
        match (service.backends.get(&id.backend), found) {
            (None, _) => BackendState::Leaving,
            (Some(_), None) => BackendState::Unresolved,
            (Some(backend), Some(found)) => {
                let vip = service.vip;
                eligibility(id, vip, backend, &self.ways(), Some(&found.template)).state
            }
        }
    }
}
