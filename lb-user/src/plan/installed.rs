use std::collections::BTreeMap;
use std::time::Instant;

use lb_common::backend::{Backend, BackendSlot, Head, Template};
use lb_common::guard::ListId;
use lb_common::service::Service;

use crate::model::{Name, Vip};
use crate::ring::Ring;

/// A part of the ring map.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segment {
    /// Index of the first row.
    pub base: u32,
    /// Number of rows, a power of two.
    pub len: u32,
}

/// What the maps hold for a service.
#[derive(Clone, Debug)]
pub struct InstalledService {
    /// The key in the service map.
    pub vip: Vip,
    /// Its place in the service statistics.
    pub slot: u32,
    /// Where its rows are.
    pub segment: Segment,
    /// The flags of its value in the service map.
    pub flags: u32,
    /// Its own list of sources.
    pub guard_list: ListId,
    /// Its rows.
    pub ring: Ring,
    /// Its backends, also those that are leaving.
    pub backends: BTreeMap<Name, InstalledBackend>,
}

impl InstalledService {
    /// Returns the value in the service map.
    pub fn value(&self) -> Service {
        Service {
            ring_base: self.segment.base,
            ring_mask: self.segment.len.saturating_sub(1),
            slot: self.slot,
            flags: self.flags,
            guard_list: self.guard_list.get(),
            _pad: 0,
        }
    }

    /// Returns the backend in a slot, if it is one of this service.
    pub fn backend_in(&self, slot: BackendSlot) -> Option<&Name> {
        self.backends
            .iter()
            .find(|(_, backend)| backend.slot == slot)
            .map(|(name, _)| name)
    }
}

/// What the maps hold for a backend.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct InstalledBackend {
    /// Its place in the backend map.
    pub slot: BackendSlot,
    /// The word that packets read.
    pub head: Head,
    /// The template in force.
    pub template: Template,
    /// When packets that still read the other template have surely left, and it may be written.
    pub spare_from: Option<Instant>,
}

impl InstalledBackend {
    /// Returns what was found in a slot. `spare_from` says when the side that is not in force may
    /// be written, if packets may still read it.
    pub fn found(slot: BackendSlot, backend: &Backend, spare_from: Option<Instant>) -> Self {
        let head = Head::from_bits(backend.head);
        let in_force = backend.templates.get(usize::from(head.side()));
        Self {
            slot,
            head,
            template: in_force.copied().unwrap_or(Template::UNREACHABLE),
            spare_from,
        }
    }
}
