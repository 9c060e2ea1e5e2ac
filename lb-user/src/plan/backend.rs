use std::collections::BTreeSet;
use std::time::Instant;

use lb_common::backend::{Head, Template, TemplateKind};

use super::installed::InstalledBackend;
use super::service::Step;
use crate::dataplane::GRACE;
use crate::model::{Backend, BackendId, EncapSource, HealthState, Observed, Vip};
use crate::template;

/// Why a backend takes new flows or doesn't.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum BackendState {
    /// Takes new flows.
    Up,
    /// Takes none: its weight is zero.
    Idle,
    /// Takes none: the operator drains it. Its flows stay.
    Draining,
    /// Takes none: nobody knows how to reach it. Its flows stay if it was ever reached.
    Unresolved,
    /// Takes none: health checks failed. Its flows stay.
    Suspect,
    /// Takes none: given up, and its flows with it.
    Dead,
    /// Takes none: the operator removed it. Its flows stay until they end.
    Leaving,
}

impl BackendState {
    /// Returns the state's name, as listings show it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Up => "up",
            Self::Idle => "idle",
            Self::Draining => "draining",
            Self::Unresolved => "unresolved",
            Self::Suspect => "suspect",
            Self::Dead => "dead",
            Self::Leaving => "leaving",
        }
    }
}

/// What a backend may be sent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Eligibility {
    /// Its state.
    pub state: BackendState,
    /// The template that reaches it, if one can be made.
    pub template: Option<Template>,
}

/// What is known of the ways to backends.
#[derive(Clone, Copy, Debug)]
pub struct Ways<'a> {
    /// The source addresses of outer headers.
    pub encap: &'a EncapSource,
    /// What readers saw.
    pub observed: &'a Observed,
    /// Backends of an earlier daemon whose next hops this one was not told yet: what is in force
    /// holds until then.
    pub unanswered: &'a BTreeSet<BackendId>,
    /// Interfaces that packets can be redirected to.
    pub devices: &'a BTreeSet<u32>,
}

/// Decides what a declared backend may be sent. `in_force` is what it is sent by now.
pub fn eligibility(
    id: &BackendId,
    vip: Vip,
    backend: &Backend,
    ways: &Ways<'_>,
    in_force: Option<&Template>,
) -> Eligibility {
    let observed = ways.observed;
    let in_force = in_force
        .filter(|template| template.kind() != TemplateKind::Unreachable)
        .filter(|_| ways.unanswered.contains(id));
    let template = match observed.next_hops.get(id) {
        Some(hop) => template::build(vip, backend, &hop.value, ways.encap)
            .ok()
            .filter(|template| ways.devices.contains(&template.ifindex)),
        None => in_force.copied(),
    };
    let health = observed
        .health
        .get(id)
        .map_or(HealthState::Unknown, |seen| seen.value);
    let state = match health {
        HealthState::Dead => BackendState::Dead,
        HealthState::Suspect => BackendState::Suspect,
        HealthState::Unknown | HealthState::Up if template.is_none() => BackendState::Unresolved,
        HealthState::Unknown | HealthState::Up if backend.draining => BackendState::Draining,
        HealthState::Unknown | HealthState::Up if backend.weight.get() == 0 => BackendState::Idle,
        HealthState::Unknown | HealthState::Up => BackendState::Up,
    };
    Eligibility { state, template }
}

/// What happens to one backend.
#[derive(Debug)]
pub(super) struct BackendPlan {
    pub after: InstalledBackend,
    /// When the rest can be done.
    pub again_at: Option<Instant>,
}

/// Plans the template and the head of one backend, and appends the writes to `steps`.
pub(super) fn plan(
    installed: &InstalledBackend,
    state: BackendState,
    wanted: Option<&Template>,
    now: Instant,
    steps: &mut Vec<Step>,
) -> BackendPlan {
    let mut after = *installed;
    let mut again_at = None;
    // Without a next hop the old template stays: the old path may still work for old flows.
    if let Some(template) = wanted.filter(|template| **template != installed.template) {
        match installed.spare_from {
            Some(free) if free > now => again_at = Some(free),
            _ => {
                let side = installed.head.side() ^ 1;
                steps.push(Step::Template {
                    slot: installed.slot,
                    side,
                    template: *template,
                });
                after.template = *template;
                after.spare_from = Some(now + GRACE);
            }
        }
    }
    let flipped = after.spare_from != installed.spare_from;
    let side = installed.head.side() ^ u8::from(flipped);
    let reachable = after.template.kind() != TemplateKind::Unreachable;
    let alive = reachable && state != BackendState::Dead;
    let accepts = alive && state == BackendState::Up;
    let died = installed.head.alive() && !alive;
    let generation = installed.head.generation().wrapping_add(u16::from(died));
    after.head =
        Head::new(side, alive, accepts, generation).with_suspect(state == BackendState::Suspect);
    if after.head != installed.head {
        steps.push(Step::Head {
            slot: installed.slot,
            head: after.head,
        });
    }
    BackendPlan { after, again_at }
}
