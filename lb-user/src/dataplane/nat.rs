//! The maps of what VMs' answers come from.

use aya::Ebpf;
use aya::maps::{HashMap, MapData, MapError as AyaError};
use lb_common::map_names as names;
use lb_common::nat::NatSource;
use lb_common::service::{ServiceKey4, ServiceKey6};

use super::MapError;
use super::kernel::{ignore_missing, update_error};
use super::keys::{ServiceKey, vip};
use super::load::LoadError;
use super::open::take;
use crate::model::{Limits, Vip};

/// Returns how many entries a map has room for: a backend has two for a moment when it moves.
pub(super) fn capacity(limits: &Limits) -> u32 {
    limits.backends.saturating_mul(2)
}

pub(super) struct NatSources {
    v4: HashMap<MapData, ServiceKey4, NatSource>,
    v6: HashMap<MapData, ServiceKey6, NatSource>,
    capacity: u32,
}

impl NatSources {
    pub fn take(ebpf: &mut Ebpf, limits: &Limits) -> Result<Self, LoadError> {
        Ok(Self {
            v4: take(ebpf, names::NAT_SOURCES_V4)?,
            v6: take(ebpf, names::NAT_SOURCES_V6)?,
            capacity: capacity(limits),
        })
    }

    pub fn set(&mut self, at: &Vip, source: &NatSource) -> Result<(), MapError> {
        let failed = |map, error| update_error(map, self.capacity, error);
        match ServiceKey::from(at) {
            ServiceKey::V4(key) => {
                let set = self.v4.insert(key, source, 0);
                set.map_err(|error| failed(names::NAT_SOURCES_V4, error))
            }
            ServiceKey::V6(key) => {
                let set = self.v6.insert(key, source, 0);
                set.map_err(|error| failed(names::NAT_SOURCES_V6, error))
            }
        }
    }

    pub fn remove(&mut self, at: &Vip) -> Result<(), MapError> {
        match ServiceKey::from(at) {
            ServiceKey::V4(key) => ignore_missing(names::NAT_SOURCES_V4, self.v4.remove(&key)),
            ServiceKey::V6(key) => ignore_missing(names::NAT_SOURCES_V6, self.v6.remove(&key)),
        }
    }

    pub fn all(&self) -> Result<Vec<(Vip, NatSource)>, MapError> {
        let failed = |map| move |source: AyaError| MapError::Kernel { map, source };
        let mut sources = Vec::new();
        for item in self.v4.iter() {
            let (key, source) = item.map_err(failed(names::NAT_SOURCES_V4))?;
            sources.extend(vip(key.vip.into(), key.port, key.proto).map(|at| (at, source)));
        }
        for item in self.v6.iter() {
            let (key, source) = item.map_err(failed(names::NAT_SOURCES_V6))?;
            sources.extend(vip(key.vip.into(), key.port, key.proto).map(|at| (at, source)));
        }
        Ok(sources)
    }
}
