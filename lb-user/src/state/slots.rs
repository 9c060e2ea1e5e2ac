use std::collections::{BTreeMap, BTreeSet};

use lb_common::backend::BackendSlot;
use serde::{Deserialize, Serialize};

use crate::model::{BackendId, Name};
use crate::plan::Segment;

const VERSION: u32 = 1;

/// Why a service or a backend gets no place in the kernel's maps.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("limits.{field}: all {limit} are in use; a removed one counts until its flows have ended")]
pub struct NoSlot {
    /// The limit.
    pub field: &'static str,
    /// Its value.
    pub limit: u32,
}

/// The places of a map that nobody has, lowest first.
#[derive(Clone, Debug)]
pub struct Unused {
    used: BTreeSet<u32>,
    next: u32,
    end: u32,
    full: NoSlot,
}

impl Unused {
    fn take(&mut self) -> Result<u32, NoSlot> {
        while self.used.contains(&self.next) {
            self.next = self.next.saturating_add(1);
        }
        if self.next >= self.end {
            return Err(self.full.clone());
        }
        let slot = self.next;
        self.next = self.next.saturating_add(1);
        Ok(slot)
    }
}

/// The places of services and backends in the kernel's maps. They stay the same as long as the
/// service or backend is there, whatever the daemon goes through.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Slots {
    version: u32,
    services: BTreeMap<String, ServiceSlots>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct ServiceSlots {
    slot: u32,
    base: u32,
    rows: u32,
    backends: BTreeMap<String, u32>,
}

impl Default for Slots {
    fn default() -> Self {
        Self {
            version: VERSION,
            services: BTreeMap::new(),
        }
    }
}

impl Slots {
    /// Returns the services that have a place, with it and their segment of the ring map.
    pub fn services(&self) -> impl Iterator<Item = (Name, u32, Segment)> {
        self.services.iter().filter_map(|(name, service)| {
            let segment = Segment {
                base: service.base,
                len: service.rows,
            };
            Some((name.parse().ok()?, service.slot, segment))
        })
    }

    /// Returns a service's place and its segment of the ring map.
    pub fn service(&self, name: &Name) -> Option<(u32, Segment)> {
        let service = self.services.get(name.as_str())?;
        let segment = Segment {
            base: service.base,
            len: service.rows,
        };
        Some((service.slot, segment))
    }

    /// Returns the backends of a service that have a place.
    pub fn backends(&self, service: &Name) -> impl Iterator<Item = (Name, BackendSlot)> {
        let service = self.services.get(service.as_str());
        let backends = service.into_iter().flat_map(|service| &service.backends);
        backends.filter_map(|(name, slot)| Some((name.parse().ok()?, BackendSlot::new(*slot)?)))
    }

    /// Returns a backend's place.
    pub fn backend(&self, id: &BackendId) -> Option<BackendSlot> {
        let service = self.services.get(id.service.as_str())?;
        BackendSlot::new(*service.backends.get(id.backend.as_str())?)
    }

    /// Returns whether a service has all the places here that it has in `other`. It may have more:
    /// those that were freed since.
    pub fn include(&self, other: &Self, name: &Name) -> bool {
        let (Some(here), Some(there)) = (
            self.services.get(name.as_str()),
            other.services.get(name.as_str()),
        ) else {
            return !other.services.contains_key(name.as_str());
        };
        let segment = |service: &ServiceSlots| (service.slot, service.base, service.rows);
        let mut backends = there.backends.iter();
        segment(here) == segment(there)
            && backends.all(|(name, slot)| here.backends.get(name) == Some(slot))
    }

    /// Returns the places of services that nobody has, of `limit`.
    pub fn unused_services(&self, limit: u32) -> Unused {
        Unused {
            used: self.services.values().map(|service| service.slot).collect(),
            next: 0,
            end: limit,
            full: NoSlot {
                field: "services",
                limit,
            },
        }
    }

    /// Returns the places of backends that nobody has, of `limit`. There is no place 0.
    pub fn unused_backends(&self, limit: u32) -> Unused {
        let services = self.services.values();
        Unused {
            used: services
                .flat_map(|service| service.backends.values().copied())
                .collect(),
            next: 1,
            end: limit.saturating_add(1),
            full: NoSlot {
                field: "backends",
                limit,
            },
        }
    }

    /// Gives a service an unused place, with a segment of the ring map.
    pub fn add_service(
        &mut self,
        name: &Name,
        segment: Segment,
        unused: &mut Unused,
    ) -> Result<u32, NoSlot> {
        let slot = unused.take()?;
        self.services.insert(
            name.to_string(),
            ServiceSlots {
                slot,
                base: segment.base,
                rows: segment.len,
                backends: BTreeMap::new(),
            },
        );
        Ok(slot)
    }

    /// Gives a service another segment of the ring map.
    pub fn set_segment(&mut self, name: &Name, segment: Segment) {
        if let Some(service) = self.services.get_mut(name.as_str()) {
            service.base = segment.base;
            service.rows = segment.len;
        }
    }

    /// Gives each of `backends` that has none an unused place.
    pub fn add_backends<'a>(
        &mut self,
        service: &Name,
        backends: impl Iterator<Item = &'a Name>,
        unused: &mut Unused,
    ) -> Result<(), NoSlot> {
        let Some(service) = self.services.get_mut(service.as_str()) else {
            return Ok(());
        };
        for name in backends {
            if !service.backends.contains_key(name.as_str()) {
                service.backends.insert(name.to_string(), unused.take()?);
            }
        }
        Ok(())
    }

    /// Frees a service's place and those of its backends.
    pub fn remove_service(&mut self, name: &Name) {
        self.services.remove(name.as_str());
    }

    /// Frees a backend's place.
    pub fn remove_backend(&mut self, id: &BackendId) {
        if let Some(service) = self.services.get_mut(id.service.as_str()) {
            service.backends.remove(id.backend.as_str());
        }
    }

    pub(super) fn check(&self) -> Result<(), String> {
        if self.version != VERSION {
            return Err(format!(
                "version {}, this weir knows {VERSION}",
                self.version
            ));
        }
        let mut services = BTreeSet::new();
        let mut backends = BTreeSet::new();
        for (name, service) in &self.services {
            if name.parse::<Name>().is_err()
                || service.backends.keys().any(|n| n.parse::<Name>().is_err())
            {
                return Err(format!(
                    "\"{name}\" or one of its backends has no valid name"
                ));
            }
            if !services.insert(service.slot) {
                return Err(format!("two services have slot {}", service.slot));
            }
            if !service.rows.is_power_of_two() {
                return Err(format!("service \"{name}\" has {} rows", service.rows));
            }
            for slot in service.backends.values() {
                if BackendSlot::new(*slot).is_none() || !backends.insert(*slot) {
                    return Err(format!("two backends have slot {slot}, or it is no slot"));
                }
            }
        }
        Ok(())
    }
}
