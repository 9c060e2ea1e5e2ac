use std::collections::{BTreeMap, BTreeSet};
use std::time::Instant;

use lb_common::backend::TemplateKind;
use lb_common::service::Service as Value;
use tracing::{info, warn};

use super::{Engine, EngineError, Failed, Hop, RETRY, rates};
use crate::dataplane::{Dataplane, GRACE, MapError};
use crate::model::{BackendId, Name};
use crate::plan::{
    self, BackendState, Input, InstalledBackend, InstalledService, ServicePlan, Step,
};
use crate::template;

impl<D: Dataplane> Engine<D> {
    /// Brings the maps to what is desired and observed, as far as it can be done now. What fails
    /// does not keep the rest from being done, and is tried again.
    pub fn reconcile(&mut self, now: Instant) -> Result<(), Failed> {
        self.retry = None;
        self.free_released(now);
        self.wake(now);
        let mut failed = self.fill_lists(now);
        for name in self.in_order() {
            if self.waiting.contains_key(&name) {
                continue;
            }
            if self.held_up(&name) {
                self.dirty.insert(name);
                continue;
            }
            self.again.remove(&name);
            let result = if self.desired.services.contains_key(&name) {
                self.bring_up(&name, now)
            } else {
                self.take_down(&name, now)
            };
            if let Err(error) = result {
                failed.push(error.of(&name));
                let read = self.read_back(&name, now);
                failed.extend(read.err().map(|error| error.of(&name)));
                self.again.insert(name, now + RETRY);
            }
        }
        failed.extend(self.remove_vacated().err());
        failed.extend(self.update_nat_sources().err().map(EngineError::from));
        failed.extend(self.empty_lists(now).err().map(EngineError::from));
        failed.extend(self.update_filter().err().map(EngineError::from));
        failed.extend(self.update_addresses().err().map(EngineError::from));
        failed.extend(self.update_settings().err().map(EngineError::from));
        if failed.is_empty() {
            return Ok(());
        }
        self.retry = Some(now + RETRY);
        Err(Failed(failed))
    }

    /// Makes dirty what waited for a time or for next hops, and waits no more.
    fn wake(&mut self, now: Instant) {
        let due = self.again.iter().filter(|(_, at)| **at <= now);
        let due = due.map(|(name, _)| name);
        let waiting = self.waiting.iter();
        let ready = waiting.filter(|(name, until)| **until <= now || self.answered(name));
        let ready: Vec<Name> = ready.map(|(name, _)| name.clone()).collect();
        self.dirty.extend(due.chain(&ready).cloned());
        for name in ready {
            self.waiting.remove(&name);
        }
    }

    /// Plans a service again at that time, if not before.
    fn again_by(&mut self, name: &Name, at: Instant) {
        let by = self.again.entry(name.clone()).or_insert(at);
        *by = at.min(*by);
    }

    /// Returns whether the ways to all backends of a service are known, or known not to be. What an
    /// earlier daemon knew holds until there is an answer.
    fn answered(&self, name: &Name) -> bool {
        let service = self.desired.services.get(name);
        let installed = self.installed.get(name);
        let mut backends = service.into_iter().flat_map(|s| s.backends.keys());
        backends.all(|backend| {
            let id = BackendId {
                service: name.clone(),
                backend: backend.clone(),
            };
            let held = installed
                .and_then(|service| service.backends.get(backend))
                .is_some_and(|backend| backend.template.kind() != TemplateKind::Unreachable);
            self.observed.next_hops.contains_key(&id)
                || matches!(self.unresolved.get(&id), Some(Hop::Failed(_)))
                || held && self.unanswered.contains(&id)
        })
    }

    /// Returns the dirty services. Removed ones go first, which makes room in the service map; but
    /// after those that take over their VIPs.
    fn in_order(&mut self) -> Vec<Name> {
        let dirty = std::mem::take(&mut self.dirty).into_iter();
        let (declared, removed): (Vec<Name>, Vec<Name>) =
            dirty.partition(|name| self.desired.services.contains_key(name));
        let (handed_over, mut order): (Vec<Name>, Vec<Name>) = removed
            .into_iter()
            .partition(|name| self.handed_over(name).is_some());
        order.extend(declared);
        order.extend(handed_over);
        order
    }

    /// After a failure: how far the writes came is not known, but the maps tell.
    fn read_back(&mut self, name: &Name, now: Instant) -> Result<(), EngineError> {
        if let Some(service) = self.installed.get(name) {
            let (vip, slot, segment) = (service.vip, service.slot, service.segment);
            let found = InstalledService {
                flags: service.flags,
                guard_list: service.guard_list,
                ..self.adopt_service(name, vip, slot, segment, now)?
            };
            self.installed.insert(name.clone(), found);
        }
        Ok(())
    }

    fn bring_up(&mut self, name: &Name, now: Instant) -> Result<(), EngineError> {
        if !self.installed.contains_key(name) {
            // Packets may still read what it had when it was removed.
            let free = self.retired.get(name).map(|at| *at + GRACE);
            if let Some(free) = free.filter(|free| *free > now) {
                self.again.insert(name.clone(), free);
                return Ok(());
            }
            if self.retired.contains_key(name) {
                self.forget_leftovers(name)?;
                self.retired.remove(name);
            }
        }
        self.save_slots_of(name)?;
        let Some((slot, segment)) = self.slots.service(name) else {
            return Ok(());
        };
        self.add_devices(name, now);
        // Without its list it is as it was, or isn't served yet.
        let Some((guard_list, lists)) = self.list_of(name) else {
            return Ok(());
        };
        self.store_rates(name, slot)?;
        let Some(desired) = self.desired.services.get(name) else {
            return Ok(());
        };
        let installed = self.installed.get(name);
        let mut fresh = BTreeMap::new();
        for (backend, slot) in self.slots.backends(name) {
            if installed.is_none_or(|service| !service.backends.contains_key(&backend)) {
                // No row named it for a while: packets read neither of its sides.
                let found = self.dataplane.backend(slot)?;
                fresh.insert(backend, InstalledBackend::found(slot, &found, None));
            }
        }
        let plan = plan::service(
            &Input {
                desired,
                ways: self.ways(),
                leaving: &self.leaving,
                fresh: &fresh,
                segment,
                slot,
                flags: if lists { Value::LISTS } else { 0 } | rates::flags(&desired.rates),
                guard_list,
                now,
            },
            installed,
        );
        self.apply(name, plan, now)
    }

    /// Makes the interfaces of a service's next hops such that packets can be redirected to. Where
    /// that fails the backend is not reached for now.
    fn add_devices(&mut self, name: &Name, now: Instant) {
        let service = self.desired.services.get(name);
        let declared = service.into_iter().flat_map(|s| s.backends.keys());
        let installed = self.installed.get(name);
        let installed = installed.into_iter().flat_map(|s| s.backends.keys());
        let hops = declared.chain(installed).filter_map(|backend| {
            self.observed.next_hops.get(&BackendId {
                service: name.clone(),
                backend: backend.clone(),
            })
        });
        let wanted: BTreeSet<u32> = hops.map(|hop| hop.value.ifindex).collect();
        for ifindex in wanted {
            if self.devices.contains(&ifindex) {
                continue;
            }
            match self.dataplane.add_device(ifindex) {
                Ok(()) => {
                    self.devices.insert(ifindex);
                    self.no_devices.remove(&ifindex);
                }
                Err(error) => {
                    let error = anyhow::Error::from(error);
                    let why =
                        format!("packets can't be sent out of interface {ifindex}: {error:#}");
                    self.no_devices.insert(ifindex, why);
                    self.again_by(name, now + RETRY);
                }
            }
        }
    }

    /// Makes the flow entries worthless that a service left when it was removed, if it comes back
    /// before a sweep deleted them, by a new generation of its backends: its new ring begins
    /// settled, which says that no flow is tracked (I3). Frees the places of those that it comes
    /// back without.
    fn forget_leftovers(&mut self, name: &Name) -> Result<(), EngineError> {
        let had: Vec<_> = self.slots.backends(name).collect();
        for (backend, slot) in had {
            self.clear(slot)?;
            let declared = self.desired.services.get(name);
            if declared.is_none_or(|service| !service.backends.contains_key(&backend)) {
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
        self.expect_answers(&plan.after)?;
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
            self.again_by(name, at);
        }
        if plan.after.ring.lookups() > 0 || plan.states.len() > self.declared(name) {
            self.sweep.wanted(now, self.interval());
        }
        self.installed.insert(name.clone(), plan.after);
        plan.vacated.map_or(Ok(()), |vip| Ok(self.vacate(vip)?))
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
        if self.unanswered.contains(id) {
            return None;
        }
        match self.unresolved.get(id) {
            Some(Hop::Pending(why) | Hop::Failed(why)) => return Some(why.clone()),
            Some(Hop::Found(_)) | None => {}
        }
        let service = self.desired.services.get(&id.service)?;
        let backend = service.backends.get(&id.backend)?;
        let Some(hop) = self.observed.next_hops.get(id) else {
            return Some("its next hop is not known yet".to_owned());
        };
        if let Some(why) = self.no_devices.get(&hop.value.ifindex) {
            return Some(why.clone());
        }
        let encap = &self.desired.encap_source;
        let built = template::build(service.vip, backend, &hop.value, encap);
        built.err().map(|error| error.to_string())
    }

    fn take_down(&mut self, name: &Name, now: Instant) -> Result<(), EngineError> {
        if !self.installed.contains_key(name) && self.slots.service(name).is_none() {
            return Ok(());
        }
        if let Some(service) = self.installed.get(name) {
            self.vacate(service.vip)?;
        }
        self.installed.remove(name);
        self.states.remove(name);
        self.unanswered.retain(|id| id.service != *name);
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
        if !self.vacated.is_empty() {
            // They may still name these rows.
            return;
        }
        let segments = &mut self.segments;
        self.released.retain(|(at, segment)| {
            if *at <= now {
                segments.free(segment.base, segment.len);
            }
            *at > now
        });
    }
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
    }
}
