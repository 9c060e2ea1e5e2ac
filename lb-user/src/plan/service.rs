use std::collections::BTreeMap;
use std::time::Instant;

use lb_common::backend::{BackendSlot, Head, Template};
use lb_common::guard::ListId;
use lb_common::row::Row;
use lb_common::service::Service as Value;

use super::backend::{self, BackendState, Eligibility, Ways, eligibility};
use super::installed::{InstalledBackend, InstalledService, Segment};
use crate::model::{Backend, BackendId, HealthState, Name, Service, Vip};
use crate::ring::{Change, Member, Ring};

/// One map write.
#[derive(Clone, Debug, PartialEq)]
pub enum Step {
    /// Fill the side of a backend's templates that is not in force.
    Template {
        /// The backend.
        slot: BackendSlot,
        /// 0 or 1.
        side: u8,
        /// The bytes.
        template: Template,
    },
    /// Store a backend's head.
    Head {
        /// The backend.
        slot: BackendSlot,
        /// The word.
        head: Head,
    },
    /// Store a row.
    Row {
        /// Index in the ring map.
        index: u32,
        /// The row.
        row: Row,
    },
    /// Make packets for `vip` go to a ring.
    Service {
        /// The key.
        vip: Vip,
        /// The value.
        value: Value,
    },
}

/// What a plan is made from.
#[derive(Clone, Copy, Debug)]
pub struct Input<'a> {
    /// What the operator declared.
    pub desired: &'a Service,
    /// What is known of the ways to its backends.
    pub ways: Ways<'a>,
    /// The declarations of removed backends that still have flows.
    pub leaving: &'a BTreeMap<BackendId, Backend>,
    /// What the slots of backends that are not installed yet hold.
    pub fresh: &'a BTreeMap<Name, InstalledBackend>,
    /// Where the rows shall be. Longer than the installed segment: the ring grows.
    pub segment: Segment,
    /// The service's place in the statistics.
    pub slot: u32,
    /// The flags of its value in the service map.
    pub flags: u32,
    /// Its own list of sources.
    pub guard_list: ListId,
    /// The time.
    pub now: Instant,
}

/// What to do about one service.
#[derive(Debug)]
pub struct ServicePlan {
    /// The writes, in order.
    pub steps: Vec<Step>,
    /// What the maps hold afterwards.
    pub after: InstalledService,
    /// The state of every declared or leaving backend.
    pub states: BTreeMap<Name, BackendState>,
    /// How many rows change their owner.
    pub moved: usize,
    /// The VIP that the service had, if it has another one now. Who takes that over is for those
    /// to say who know the other services.
    pub vacated: Option<Vip>,
    /// A segment that is free once packets that read it have left.
    pub released: Option<Segment>,
    /// When there is more to do, though nothing new is seen.
    pub again_at: Option<Instant>,
}

/// Plans one service; `installed` is nothing if it is new.
pub fn service(input: &Input<'_>, installed: Option<&InstalledService>) -> ServicePlan {
    let mut steps = Vec::new();
    let mut states = BTreeMap::new();
    let mut backends = BTreeMap::new();
    let mut members = Vec::new();
    let mut declared = Vec::new();
    let mut again_at: Option<Instant> = None;

    let removed = installed
        .into_iter()
        .flat_map(|service| service.backends.keys())
        .filter(|name| !input.desired.backends.contains_key(*name));
    for name in input.desired.backends.keys().chain(removed) {
        let before = installed.and_then(|service| service.backends.get(name));
        // The engine gives every declared backend a slot before it comes here.
        let Some(before) = before.or_else(|| input.fresh.get(name)) else {
            continue;
        };
        let slot = before.slot;
        let eligible = backend_eligibility(input, name, &before.template);
        let plan = backend::plan(
            before,
            eligible.state,
            eligible.template.as_ref(),
            input.now,
            &mut steps,
        );
        again_at = again_at.into_iter().chain(plan.again_at).min();
        if let Some(backend) = input.desired.backends.get(name) {
            let weight = |counts: bool| u32::from(backend.weight.get()) * u32::from(counts);
            let identity = identity(&input.desired.name, name);
            // A template that waits for its turn doesn't reach the backend yet.
            let takes_flows = plan.after.head.accepts();
            members.push(Member {
                slot,
                weight: weight(takes_flows),
                identity,
            });
            declared.push(Member {
                slot,
                weight: weight(!backend.draining),
                identity,
            });
        }
        states.insert(name.clone(), eligible.state);
        backends.insert(name.clone(), plan.after);
    }

    // The first ring follows from the declared members alone, so that balancers that start alike
    // agree; the rows of those that can't be reached go to the others below.
    let (mut ring, released) = match installed {
        Some(service) => grow(service, input.segment),
        None => (Ring::new(input.segment.len, &declared), None),
    };
    let owners_before = owners(&ring);
    let mut changes = Vec::new();
    let dead = backends.values().filter(|backend| !backend.head.alive());
    // Mostly none of them has a row any more.
    for slot in ring.named(dead.map(|backend| backend.slot).collect()) {
        changes.extend(ring.death(slot, &members, input.now));
    }
    changes.extend(ring.rebalance(&members, input.now));
    let moved = match installed {
        Some(_) => differences(&owners_before, &ring),
        None => 0,
    };

    let after = InstalledService {
        vip: input.desired.vip,
        slot: input.slot,
        segment: input.segment,
        flags: input.flags,
        guard_list: input.guard_list,
        ring,
        backends,
    };
    let whole = installed.is_none_or(|service| service.segment != input.segment);
    steps.extend(rows(&after, &changes, whole));
    if installed.is_none_or(|service| service.vip != after.vip || service.value() != after.value())
    {
        steps.push(Step::Service {
            vip: after.vip,
            value: after.value(),
        });
    }
    let vacated = installed
        .map(|service| service.vip)
        .filter(|vip| *vip != after.vip);
    ServicePlan {
        steps,
        after,
        vacated,
        states,
        moved,
        released,
        again_at,
    }
}

/// Returns what makes a backend the same on every balancer: a hash of its names (FNV-1a, 64 bits).
pub fn identity(service: &Name, backend: &Name) -> u64 {
    let bytes = service
        .as_str()
        .bytes()
        .chain([b'/'])
        .chain(backend.as_str().bytes());
    bytes.fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    })
}

fn backend_eligibility(input: &Input<'_>, name: &Name, in_force: &Template) -> Eligibility {
    let id = BackendId {
        service: input.desired.name.clone(),
        backend: name.clone(),
    };
    let vip = input.desired.vip;
    let eligible = |backend| eligibility(&id, vip, backend, &input.ways, Some(in_force));
    if let Some(backend) = input.desired.backends.get(name) {
        return eligible(backend);
    }
    let health = input.ways.observed.health.get(&id).map(|seen| seen.value);
    let state = match health {
        Some(HealthState::Dead) => BackendState::Dead,
        _ => BackendState::Leaving,
    };
    let template = input.leaving.get(&id).and_then(|b| eligible(b).template);
    Eligibility { state, template }
}

/// Doubles the ring until it fills its new segment. No flow changes its backend by that.
fn grow(service: &InstalledService, segment: Segment) -> (Ring, Option<Segment>) {
    let mut ring = service.ring.clone();
    while ring.rows().len() < segment.len as usize {
        ring = ring.doubled();
    }
    let released = (service.segment != segment).then_some(service.segment);
    (ring, released)
}

fn owners(ring: &Ring) -> Vec<BackendSlot> {
    ring.rows().iter().map(|row| row.owner()).collect()
}

fn differences(before: &[BackendSlot], ring: &Ring) -> usize {
    before
        .iter()
        .zip(ring.rows())
        .filter(|(before, row)| **before != row.owner())
        .count()
}

fn rows(after: &InstalledService, changes: &[Change], whole: bool) -> Vec<Step> {
    let base = after.segment.base;
    let step = |index: u32, row: Row| Step::Row {
        index: base + index,
        row,
    };
    if whole {
        let rows = after.ring.rows().iter();
        (0..)
            .zip(rows)
            .map(|(index, row)| step(index, *row))
            .collect()
    } else {
        let changes = changes.iter();
        changes
            .map(|change| step(change.index, change.row))
            .collect()
    }
}
