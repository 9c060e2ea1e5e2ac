use std::collections::BTreeMap;
use std::time::Instant;

use lb_common::backend::TemplateKind;
use lb_common::guard::ListId;
use lb_common::service::{Service, VIP_FILTER_LEN};
use tracing::{info, warn};

use super::{Engine, EngineError};
use crate::dataplane::{Dataplane, GRACE};
use crate::model::{BackendId, HealthState, Name, Seen, Vip};
use crate::plan::{InstalledBackend, InstalledService, Segment};
use crate::ring::Ring;

/// An entry of the service map.
type Entry = (Vip, Service);

fn segment_of((_, service): &Entry) -> Segment {
    Segment {
        base: service.ring_base,
        len: service.ring_mask.saturating_add(1),
    }
}

impl<D: Dataplane> Engine<D> {
    /// Takes over what an earlier daemon left in the maps.
    pub(super) fn adopt(&mut self, now: Instant) -> Result<(), EngineError> {
        self.adopt_lists()?;
        let mut by_slot: BTreeMap<u32, Vec<Entry>> = BTreeMap::new();
        for (vip, service) in self.dataplane.services()? {
            by_slot
                .entry(service.slot)
                .or_default()
                .push((vip, service));
        }
        let known: Vec<(Name, u32, Segment)> = self.slots.services().collect();
        for (name, slot, stored) in known {
            let found = self.adopt_vip(by_slot.remove(&slot).unwrap_or_default(), stored)?;
            // The daemon may have died between storing a longer segment and using it.
            let segment = found.as_ref().map_or(stored, segment_of);
            if let Err(error) = self.segments.reserve(segment.base, segment.len) {
                warn!(service = %name, %error, "the service's ring is not where it can be; it is made anew");
                self.disown(&name, found)?;
                continue;
            }
            self.slots.set_segment(&name, segment);
            let Some((vip, value)) = found else {
                self.retired.insert(name, now);
                continue;
            };
            let service = InstalledService {
                flags: value.flags,
                guard_list: ListId::from_stored(value.guard_list),
                ..self.adopt_service(&name, vip, slot, segment, now)?
            };
            self.adopt_health(&name, &service, now);
            let backends = service.backends.keys().map(|backend| BackendId {
                service: name.clone(),
                backend: backend.clone(),
            });
            self.unanswered.extend(backends);
            self.installed.insert(name.clone(), service);
            self.dirty.insert(name);
        }
        for (vip, _) in by_slot.into_values().flatten() {
            warn!(%vip, "a service that the state directory does not know was taken out");
            self.dataplane.remove_service(&vip)?;
        }
        self.nat_sources = self.dataplane.nat_sources()?.into_iter().collect();
        for index in 0..VIP_FILTER_LEN {
            let kinds = self.dataplane.vip_filter(index)?;
            if kinds != 0 {
                self.filter.insert(index, kinds);
            }
        }
        self.addresses = self.dataplane.addresses()?;
        self.settings = self.dataplane.settings()?;
        // Also where no row asks the flow tables: their last entries are left.
        if !self.installed.is_empty() || !self.retired.is_empty() {
            self.sweep.wanted(now, GRACE * 2);
        }
        if !self.installed.is_empty() {
            info!(
                services = self.installed.len(),
                "took over the maps of an earlier daemon"
            );
        }
        Ok(())
    }

    /// Returns the entry by which a service is adopted. A daemon that died while it changed a VIP
    /// left the old one as well: that one goes, unless it is the declared one after all.
    fn adopt_vip(
        &mut self,
        mut entries: Vec<Entry>,
        stored: Segment,
    ) -> Result<Option<Entry>, EngineError> {
        // The entry is written after the rows: they are all there where one names what was stored.
        let stored = entries.iter().position(|entry| segment_of(entry) == stored);
        let kept = match stored {
            Some(at) => Some(entries.swap_remove(at)),
            None => entries.pop(),
        };
        for entry in entries {
            if kept.as_ref().map(segment_of) == Some(segment_of(&entry)) {
                self.vacated.insert(entry.0);
            } else {
                self.dataplane.remove_service(&entry.0)?;
            }
        }
        Ok(kept)
    }

    /// Takes a service out, and frees the places that it had.
    fn disown(&mut self, name: &Name, entry: Option<Entry>) -> Result<(), EngineError> {
        if let Some((vip, _)) = entry {
            self.dataplane.remove_service(&vip)?;
        }
        let had: Vec<_> = self.slots.backends(name).collect();
        for (_, slot) in had {
            self.clear(slot)?;
        }
        self.slots.remove_service(name);
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
            flags: 0,
            guard_list: ListId::NONE,
            ring,
            backends,
        })
    }
}
