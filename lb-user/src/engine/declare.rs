use std::collections::BTreeMap;
use std::time::Instant;

use lb_common::backend::BackendSlot;

use super::{Engine, FIRST_HOPS};
use crate::dataplane::Dataplane;
use crate::model::{Ambiguity, BackendId, Desired, HealthState, Limits, Name, Seen, ambiguities};
use crate::plan::{BackendState, Segment, Ways, eligibility, identity};
use crate::ring::{MIN_ROWS, Member, Segments, rows_for};
use crate::state::{NoSlot, Slots, StateError};

/// Why a declaration can't be carried out. Nothing was changed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// Sizes of maps are fixed.
    #[error(
        "limits: they can't change while the maps live; to change them, stop weir and run `weir detach --all` (traffic then passes to the host until `weir run`)"
    )]
    Limits,
    /// The answers of a VM could not be told apart.
    #[error("service \"{}\", backend \"{}\", address: {}", .0.service, .0.backend, .0)]
    Ambiguous(Ambiguity),
    /// A map is full.
    #[error("service \"{service}\": {source}")]
    Slots {
        /// The service.
        service: Name,
        /// Which map.
        #[source]
        source: NoSlot,
    },
    /// The service maps have room for so many of each family.
    #[error("limits.services: {wanted} services of one address family, allowed are {limit}")]
    Services {
        /// How many are declared.
        wanted: usize,
        /// How many fit.
        limit: u32,
    },
    /// The tries of prefixes have room for so many of each family.
    #[error(
        "limits.guard_prefixes: {wanted} prefixes of {family} while lists take the place of others, allowed are {limit}"
    )]
    Prefixes {
        /// The family.
        family: &'static str,
        /// How many there would be.
        wanted: usize,
        /// How many fit.
        limit: u32,
    },
    /// The ring map is full.
    #[error(
        "service \"{service}\": no room for a ring of {rows} rows: limits.rows is {limit}, the longest free part has {largest}"
    )]
    Rows {
        /// The service.
        service: Name,
        /// How many rows it needs at the very least.
        rows: u32,
        /// How many there are.
        limit: u32,
        /// How many are free in one piece.
        largest: u32,
    },
}

/// A declaration that fits, with everything allocated for it. Not in force yet.
#[derive(Clone, Debug)]
pub struct Prepared {
    desired: Desired,
    slots: Slots,
    segments: Segments,
}

/// What a declaration would do to a service's ring.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServiceDiff {
    /// The service.
    pub service: Name,
    /// Rows that would change their owner: new flows of these go elsewhere.
    pub moved: usize,
    /// Rows of the ring.
    pub rows: usize,
}

impl<D: Dataplane> Engine<D> {
    /// Checks whether a declaration fits into the maps. Changes nothing.
    pub fn prepare(&self, desired: Desired) -> Result<Prepared, Refused> {
        let limits = desired.limits;
        if limits != self.desired.limits {
            return Err(Refused::Limits);
        }
        if let Some(ambiguity) = ambiguities(desired.services.values()).into_iter().next() {
            return Err(Refused::Ambiguous(ambiguity));
        }
        let services = desired.services.values();
        let v4 = services
            .filter(|service| service.vip.address.is_ipv4())
            .count();
        let wanted = v4.max(desired.services.len() - v4);
        if wanted > limits.services as usize {
            return Err(Refused::Services {
                wanted,
                limit: limits.services,
            });
        }
        for (family, v4) in [("IPv4", true), ("IPv6", false)] {
            let guards = desired.services.values().map(|service| &service.guard);
            let wanted = self.lists.wanted(guards.chain([&desired.guard]), v4);
            if wanted > limits.guard_prefixes as usize {
                return Err(Refused::Prefixes {
                    family,
                    wanted,
                    limit: limits.guard_prefixes,
                });
            }
        }
        let mut slots = self.slots.clone();
        let mut segments = self.segments.clone();
        let mut services = slots.unused_services(limits.services.saturating_mul(2));
        let mut backends = slots.unused_backends(limits.backends);
        for (name, service) in &desired.services {
            let refused = |source| Refused::Slots {
                service: name.clone(),
                source,
            };
            let wanted = rows_for(service.backends.len());
            match slots.service(name) {
                None => {
                    let segment = first_segment(&mut segments, name, wanted, &limits)?;
                    slots
                        .add_service(name, segment, &mut services)
                        .map_err(refused)?;
                }
                // A ring that can't grow still serves; its weights are coarser.
                Some((_, segment)) if segment.len < wanted => {
                    if let Some(base) = segments.alloc(wanted) {
                        slots.set_segment(name, Segment { base, len: wanted });
                    }
                }
                Some(_) => {}
            }
            slots
                .add_backends(name, service.backends.keys(), &mut backends)
                .map_err(refused)?;
        }
        Ok(Prepared {
            desired,
            slots,
            segments,
        })
    }

    /// Stores the places that a prepared declaration needs. Without that it can't be carried out.
    pub fn reserve(&mut self, prepared: &Prepared) -> Result<(), StateError> {
        let mut services = prepared.desired.services.keys();
        if !services.all(|name| self.stored.include(&prepared.slots, name)) {
            (self.store)(&prepared.slots)?;
            self.stored = prepared.slots.clone();
        }
        Ok(())
    }

    /// Puts a prepared declaration in force. The next [`Self::reconcile`] carries it out.
    pub fn commit(&mut self, prepared: Prepared, now: Instant) {
        let before = std::mem::replace(&mut self.desired, prepared.desired);
        self.slots = prepared.slots;
        self.segments = prepared.segments;
        let services = self.desired.services.iter();
        self.vips = services
            .map(|(name, service)| (service.vip, name.clone()))
            .collect();
        let all = before.encap_source != self.desired.encap_source;
        for (name, service) in &self.desired.services {
            if all || before.services.get(name) != Some(service) {
                self.dirty.insert(name.clone());
            }
            // Also one that an earlier daemon left: this one has no next hops yet.
            if !self.states.contains_key(name) {
                self.waiting.entry(name.clone()).or_insert(now + FIRST_HOPS);
            }
        }
        self.forget_earlier_lives(&before);
        for (name, service) in before.services {
            match self.desired.services.get(&name) {
                None => {
                    self.dirty.insert(name.clone());
                    self.waiting.remove(&name);
                }
                Some(now_declared) => {
                    for (backend, declaration) in service.backends {
                        let now_declared = now_declared.backends.get(&backend);
                        let id = BackendId {
                            service: name.clone(),
                            backend,
                        };
                        if now_declared != Some(&declaration) {
                            self.unanswered.remove(&id);
                        }
                        if now_declared.is_none() {
                            self.leaving.insert(id, declaration);
                        }
                    }
                }
            }
        }
        let desired = &self.desired;
        self.leaving.retain(|id, _| {
            desired
                .services
                .get(&id.service)
                .is_some_and(|service| !service.backends.contains_key(&id.backend))
        });
    }

    /// A backend that is declared again is not the one that was thought dead before. What an
    /// earlier daemon thought of those that it had declared holds.
    fn forget_earlier_lives(&mut self, before: &Desired) {
        for (name, service) in &self.desired.services {
            let was = before.services.get(name);
            if was.is_none() && !self.states.contains_key(name) {
                continue;
            }
            for backend in service.backends.keys() {
                if was.is_none_or(|was| !was.backends.contains_key(backend)) {
                    self.observed.health.remove(&BackendId {
                        service: name.clone(),
                        backend: backend.clone(),
                    });
                }
            }
        }
    }

    /// Gives up a backend on the operator's word: its flows are lost.
    pub fn give_up(&mut self, id: &BackendId, now: Instant) {
        let seen = Seen {
            value: HealthState::Dead,
            at: now,
        };
        self.observed.health.insert(id.clone(), seen);
        self.dirty.insert(id.service.clone());
    }

    /// Says what a declaration would move, if all its backends that are not there yet can be
    /// reached.
    pub fn diff(&self, desired: &Desired) -> Vec<ServiceDiff> {
        let services = desired.services.values();
        services
            .filter_map(|service| {
                let installed = self.installed.get(&service.name)?;
                // Slots of backends that are not there yet: any that nobody has.
                let unused = self.desired.limits.backends.saturating_add(1)..;
                let mut next = unused.map_while(BackendSlot::new);
                let ways = Ways {
                    encap: &desired.encap_source,
                    ..self.ways()
                };
                let members: Vec<Member> = service
                    .backends
                    .iter()
                    .filter_map(|(name, backend)| {
                        let id = BackendId {
                            service: service.name.clone(),
                            backend: name.clone(),
                        };
                        let vip = service.vip;
                        let known = installed.backends.get(name);
                        let takes = match known {
                            Some(known) => {
                                let in_force = Some(&known.template);
                                let eligible = eligibility(&id, vip, backend, &ways, in_force);
                                eligible.state == BackendState::Up
                            }
                            None => !backend.draining,
                        };
                        Some(Member {
                            slot: known.map_or_else(|| next.next(), |known| Some(known.slot))?,
                            weight: u32::from(backend.weight.get()) * u32::from(takes),
                            identity: identity(&service.name, name),
                        })
                    })
                    .collect();
                Some(ServiceDiff {
                    service: service.name.clone(),
                    moved: installed.ring.moves_for(&members),
                    rows: installed.ring.rows().len(),
                })
            })
            .collect()
    }

    /// Returns the observed health by backend.
    pub fn health(&self) -> &BTreeMap<BackendId, Seen<HealthState>> {
        &self.observed.health
    }
}

/// A new service takes a shorter ring than it should have where the map is nearly full.
fn first_segment(
    segments: &mut Segments,
    service: &Name,
    wanted: u32,
    limits: &Limits,
) -> Result<Segment, Refused> {
    let mut len = wanted.min(limits.rows);
    loop {
        if let Some(base) = segments.alloc(len) {
            return Ok(Segment { base, len });
        }
        if len <= MIN_ROWS {
            return Err(Refused::Rows {
                service: service.clone(),
                rows: MIN_ROWS,
                limit: limits.rows,
                largest: segments.largest(),
            });
        }
        len /= 2;
    }
}
