use std::collections::BTreeMap;
use std::time::Instant;

use lb_common::backend::TemplateKind;
use lb_common::service::VIP_FILTER_LEN;
use tracing::{info, warn};

use super::{Engine, EngineError};
use crate::dataplane::{Dataplane, GRACE};
use crate::model::{BackendId, HealthState, Name, Seen, Vip};
use crate::plan::{InstalledBackend, InstalledService, Segment};
use crate::ring::Ring;

impl<D: Dataplane> Engine<D> {
    /// Takes over what an earlier daemon left in the maps.
    pub(super) fn adopt(&mut self, now: Instant) -> Result<(), EngineError> {
        let mut by_slot: BTreeMap<u32, (Vip, lb_common::service::Service)> = self
            .dataplane
            .services()?
            .into_iter()
            .map(|(vip, service)| (service.slot, (vip, service)))
            .collect();
        let known: Vec<(Name, u32, Segment)> = self.slots.services().collect();
        for (name, slot, segment) in known {
            let found = by_slot.remove(&slot);
            // The daemon may have died between storing a longer segment and using it.
            let segment = found.map_or(segment, |(_, service)| Segment {
                base: service.ring_base,
                len: service.ring_mask.saturating_add(1),
            });
            if let Err(error) = self.segments.reserve(segment.base, segment.len) {
                warn!(service = %name, %error, "the service's ring is not where it can be; it is made anew");
                self.slots.remove_service(&name);
                by_slot.extend(found.map(|found| (slot, found)));
                continue;
            }
            self.slots.set_segment(&name, segment);
            let Some((vip, _)) = found else {
                self.retired.insert(name, now);
                continue;
            };
            let service = self.adopt_service(&name, vip, slot, segment, now)?;
            self.adopt_health(&name, &service, now);
            let backends = service.backends.keys().map(|backend| BackendId {
                service: name.clone(),
                backend: backend.clone(),
            });
            self.unanswered.extend(backends);
            if service.ring.lookups() > 0 {
                self.sweep.wanted(now, self.interval());
            }
            self.installed.insert(name.clone(), service);
            self.dirty.insert(name);
        }
        for (vip, _) in by_slot.into_values() {
            warn!(%vip, "a service that the state directory does not know was taken out");
            self.dataplane.remove_service(&vip)?;
        }
        for index in 0..VIP_FILTER_LEN {
            let kinds = self.dataplane.vip_filter(index)?;
            if kinds != 0 {
                self.filter.insert(index, kinds);
            }
        }
        if !self.installed.is_empty() {
            info!(
                services = self.installed.len(),
                "took over the maps of an earlier daemon"
            );
        }
        Ok(())
    }

    /// What was thought of backends stands in their heads: until somebody says otherwise, a dead VM
    /// stays dead, and a suspect one takes no new flows.
    fn adopt_health(&mut self, name: &Name, service: &InstalledService, now: Instant) {
        for (backend, installed) in &service.backends {
            let reached = installed.template.kind() != TemplateKind::Unreachable;
            let value = if installed.head.suspect() {
                HealthState::Suspect
            } else if reached && !installed.head.alive() {
                HealthState::Dead
            } else {
                continue;
            };
            let id = BackendId {
                service: name.clone(),
                backend: backend.clone(),
            };
            self.observed.health.insert(id, Seen { value, at: now });
        }
    }

    pub(super) fn adopt_service(
        &self,
        name: &Name,
        vip: Vip,
        slot: u32,
        segment: Segment,
        now: Instant,
    ) -> Result<InstalledService, EngineError> {
        let rows = (segment.base..segment.base + segment.len)
            .map(|index| self.dataplane.row(index))
            .collect::<Result<Vec<_>, _>>()?;
        let ring = match Ring::adopt(rows, now) {
            Ok(ring) => ring,
            // Its length was checked when it was reserved.
            Err(_) => Ring::new(segment.len, &[]),
        };
        let mut backends = BTreeMap::new();
        for (backend, slot) in self.slots.backends(name) {
            let found = self.dataplane.backend(slot)?;
            // When its template was changed last is not known.
            let spare_from = Some(now + GRACE);
            backends.insert(backend, InstalledBackend::found(slot, &found, spare_from));
        }
        Ok(InstalledService {
            vip,
            slot,
            segment,
            ring,
            backends,
        })
    }
}
