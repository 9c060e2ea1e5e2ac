use std::collections::BTreeMap;
use std::time::Instant;

use lb_common::backend::Head;
use lb_common::service::{VIP_ANY_PORT, VIP_EXACT, vip_filter_index};
use tracing::{info, warn};

use super::{Engine, EngineError, Hop};
use crate::dataplane::{Dataplane, GRACE, MapError};
use crate::model::{BackendId, Name, ServicePort, Vip};
use crate::plan::{self, BackendState, Input, InstalledBackend, ServicePlan, Step};
use crate::template;

impl<D: Dataplane> Engine<D> {
    /// Brings the maps to what is desired and observed, as far as it can be done now.
    pub fn reconcile(&mut self, now: Instant) -> Result<(), EngineError> {
        self.free_released(now);
        let due = self.again.iter().filter(|(_, at)| **at <= now);
        let due: Vec<Name> = due.map(|(name, _)| name.clone()).collect();
        self.dirty.extend(due);
        let waiting: Vec<Name> = self.waiting.keys().cloned().collect();
        self.dirty.extend(waiting);
        while let Some(name) = self.dirty.pop_first() {
            self.again.remove(&name);
            let result = if self.desired.services.contains_key(&name) {
                self.bring_up(&name, now)
            } else {
                self.take_down(&name, now)
            };
            if let Err(error) = result {
                self.read_back(&name, now)?;
                self.again.insert(name, now + GRACE * 10);
                return Err(error);
            }
        }
        self.update_filter()?;
        Ok(())
    }

    /// After a failure: how far the writes came is not known, but the maps tell.
    fn read_back(&mut self, name: &Name, now: Instant) -> Result<(), EngineError> {
        if let Some(service) = self.installed.get(name) {
            let (vip, slot, segment) = (service.vip, service.slot, service.segment);
            let found = self.adopt_service(name, vip, slot, segment, now)?;
            self.installed.insert(name.clone(), found);
        }
        Ok(())
    }

    fn bring_up(&mut self, name: &Name, now: Instant) -> Result<(), EngineError> {
        let Some(desired) = self.desired.services.get(name) else {
            return Ok(());
        };
        if let Some(until) = self.waiting.get(name) {
            let answered = desired.backends.keys().all(|backend| {
                let id = BackendId {
                    service: name.clone(),
                    backend: backend.clone(),
                };
                self.observed.next_hops.contains_key(&id)
                    || matches!(self.unresolved.get(&id), Some(Hop::Failed(_)))
            });
            if !answered && *until > now {
                return Ok(());
            }
            self.waiting.remove(name);
        }
        if !self.installed.contains_key(name) {
            self.forget_leftovers(name)?;
        }
        self.save_slots()?;
        let Some((slot, segment)) = self.slots.service(name) else {
            return Ok(());
        };
        let Some(desired) = self.desired.services.get(name) else {
            return Ok(());
        };
        let installed = self.installed.get(name);
        let mut fresh = BTreeMap::new();
        for (backend, slot) in self.slots.backends(name) {
            if installed.is_none_or(|service| !service.backends.contains_key(&backend)) {
                let found = Head::from_bits(self.dataplane.backend(slot)?.head);
                fresh.insert(backend, InstalledBackend::unused(slot, found));
            }
        }
        let plan = plan::service(
            &Input {
                desired,
                encap: &self.desired.encap_source,
                observed: &self.observed,
                fresh: &fresh,
                segment,
                slot,
                now,
            },
            installed,
        );
        self.apply(name, plan, now)
    }

    /// Frees the places that a service's backends had when it was removed, if it comes back
    /// without them before a sweep did it. A new generation makes their flow entries worthless.
    fn forget_leftovers(&mut self, name: &Name) -> Result<(), EngineError> {
        let had: Vec<_> = self.slots.backends(name).collect();
        for (backend, slot) in had {
            let declared = self.desired.services.get(name);
            if declared.is_none_or(|service| !service.backends.contains_key(&backend)) {
                self.clear(slot)?;
                self.slots.remove_backend(&BackendId {
                    service: name.clone(),
                    backend,
                });
            }
        }
        Ok(())
    }

    fn apply(&mut self, name: &Name, plan: ServicePlan, now: Instant) -> Result<(), EngineError> {
        if !self.installed.contains_key(name) {
            self.dataplane.clear_service_stats(plan.after.slot)?;
        }
        for backend in plan.after.backends.values() {
            let ifindex = backend.template.ifindex;
            if ifindex != 0 && self.devices.insert(ifindex) {
                self.dataplane.add_device(ifindex)?;
            }
        }
        for step in &plan.steps {
            apply(&mut self.dataplane, step)?;
        }
        if plan.moved > 0 {
            let rows = plan.after.ring.rows().len();
            info!(service = %name, moved = plan.moved, rows, "rows moved");
        }
        self.note_states(name, &plan);
        if let Some(segment) = plan.released {
            self.released.push((now + GRACE, segment));
        }
        if let Some(at) = plan.again_at {
            self.again.insert(name.clone(), at);
        }
        if plan.after.ring.lookups() > 0 || plan.states.len() > self.declared(name) {
            self.sweep.wanted(now, self.interval());
        }
        self.installed.insert(name.clone(), plan.after);
        Ok(())
    }

    fn declared(&self, name: &Name) -> usize {
        let service = self.desired.services.get(name);
        service.map_or(0, |service| service.backends.len())
    }

    fn note_states(&mut self, name: &Name, plan: &ServicePlan) {
        let before = self.states.insert(name.clone(), plan.states.clone());
        let any_up = |states: &BTreeMap<Name, BackendState>| {
            states.values().any(|state| *state == BackendState::Up)
        };
        if !any_up(&plan.states) && before.as_ref().is_none_or(any_up) {
            warn!(service = %name, "no backend can take new flows; the last owners keep them (fail open)");
        }
        for (backend, state) in &plan.states {
            if before.as_ref().and_then(|before| before.get(backend)) != Some(state) {
                let why = self.reason(&BackendId {
                    service: name.clone(),
                    backend: backend.clone(),
                });
                let (state, why) = (state.as_str(), why.unwrap_or_default());
                info!(service = %name, %backend, state, why, "backend");
            }
        }
    }

    /// Returns why nobody knows how to reach a backend.
    pub(super) fn reason(&self, id: &BackendId) -> Option<String> {
        match self.unresolved.get(id) {
            Some(Hop::Pending(why) | Hop::Failed(why)) => return Some(why.clone()),
            Some(Hop::Found(_)) | None => {}
        }
        let service = self.desired.services.get(&id.service)?;
        let backend = service.backends.get(&id.backend)?;
        let Some(hop) = self.observed.next_hops.get(id) else {
            return Some("its next hop is not known yet".to_owned());
        };
        let encap = &self.desired.encap_source;
        let built = template::build(service.vip.address, backend, &hop.value, encap);
        built.err().map(|error| error.to_string())
    }

    fn take_down(&mut self, name: &Name, now: Instant) -> Result<(), EngineError> {
        if !self.installed.contains_key(name) && self.slots.service(name).is_none() {
            return Ok(());
        }
        if let Some(service) = self.installed.get(name) {
            self.dataplane.remove_service(&service.vip)?;
        }
        self.installed.remove(name);
        self.states.remove(name);
        self.unresolved.retain(|id, _| id.service != *name);
        self.observed.next_hops.retain(|id, _| id.service != *name);
        self.observed.health.retain(|id, _| id.service != *name);
        if self.slots.service(name).is_some() {
            self.retired.insert(name.clone(), now);
            self.sweep.wanted(now, GRACE * 2);
        }
        info!(service = %name, "service removed");
        Ok(())
    }

    fn free_released(&mut self, now: Instant) {
        let segments = &mut self.segments;
        self.released.retain(|(at, segment)| {
            if *at <= now {
                segments.free(segment.base, segment.len);
            }
            *at > now
        });
    }

    /// The filter knows which addresses have services; it must never lack one that has.
    fn update_filter(&mut self) -> Result<(), MapError> {
        let mut wanted: BTreeMap<u32, u8> = BTreeMap::new();
        for service in self.installed.values() {
            let (index, kind) = filter_entry(&service.vip);
            *wanted.entry(index).or_default() |= kind;
        }
        for (index, kinds) in &wanted {
            if self.filter.get(index) != Some(kinds) {
                self.dataplane.set_vip_filter(*index, *kinds)?;
            }
        }
        for index in self
            .filter
            .keys()
            .filter(|index| !wanted.contains_key(*index))
        {
            self.dataplane.set_vip_filter(*index, 0)?;
        }
        self.filter = wanted;
        Ok(())
    }
}

/// Returns the filter entry of a VIP, and the bit to set in it.
pub(super) fn filter_entry(vip: &Vip) -> (u32, u8) {
    let last = match vip.address {
        std::net::IpAddr::V4(address) => address.octets(),
        std::net::IpAddr::V6(address) => {
            let [.., a, b, c, d] = address.octets();
            [a, b, c, d]
        }
    };
    let kind = match vip.port {
        ServicePort::Any => VIP_ANY_PORT,
        ServicePort::Exact(_) => VIP_EXACT,
    };
    (vip_filter_index(u32::from_ne_bytes(last)), kind)
}

pub(super) fn apply(dataplane: &mut impl Dataplane, step: &Step) -> Result<(), MapError> {
    match step {
        Step::Template {
            slot,
            side,
            template,
        } => dataplane.set_template(*slot, *side, template),
        Step::Head { slot, head } => dataplane.set_head(*slot, *head),
        Step::Row { index, row } => dataplane.set_row(*index, *row),
        Step::Service { vip, value } => dataplane.set_service(vip, value),
        Step::RemoveService { vip } => dataplane.remove_service(vip),
    }
}
