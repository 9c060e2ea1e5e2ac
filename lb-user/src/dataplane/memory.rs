//! The data plane without a kernel: the same entries in ordinary memory.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use bytemuck::Zeroable as _;
use lb_common::{
    DEVICES,
    backend::{Backend, BackendSlot, Head, Template},
    bucket::Rates,
    flow::{FlowEntry, Table},
    guard::{GuardSettings, ListId},
    map_names as names,
    nat::NatSource,
    row::Row,
    service::{Service, VIP_FILTER_LEN},
    settings::Settings,
    stats::{BackendStats, Reason, ServiceStats},
};

use super::clock::{Clock, Jiffies};
use super::{Dataplane, FlowCursor, FlowKey, MapError};
use crate::model::{Limits, Prefix, Vip};

/// An in-memory data plane. Its flow tables, counters and clock are public: a test plays the
/// kernel's part.
#[derive(Clone, Debug)]
pub struct Memory {
    pub(super) limits: Limits,
    services: BTreeMap<Vip, Service>,
    nat_sources: BTreeMap<Vip, NatSource>,
    vip_filter: Vec<u8>,
    addresses: BTreeSet<IpAddr>,
    settings: Settings,
    ring: Vec<Row>,
    backends: Vec<Backend>,
    /// What the tries of prefixes hold.
    pub(super) prefixes: BTreeMap<(ListId, Prefix), u32>,
    /// The words of their filter that are not zero.
    pub(super) near: BTreeMap<u32, u64>,
    pub(super) guard: GuardSettings,
    pub(super) rates: BTreeMap<u32, Rates>,
    /// The interfaces that packets can be redirected to.
    pub devices: BTreeSet<u32>,
    /// The flow tables.
    pub flows: BTreeMap<(Table, FlowKey), FlowEntry>,
    /// Entries that packets make between the walk over a table and the next access to it.
    pub arrivals: BTreeMap<(Table, FlowKey), FlowEntry>,
    /// Whether a walk over the flow tables has more to come.
    pub more: bool,
    /// Whether a walk over the flow tables fails.
    pub broken_flows: bool,
    /// Counters by backend slot.
    pub backend_stats: BTreeMap<u32, BackendStats>,
    /// Counters by service slot.
    pub service_stats: BTreeMap<u32, ServiceStats>,
    /// The clock.
    pub clock: Clock,
    /// How many rows were stored.
    pub row_stores: u64,
    /// How many heads were stored.
    pub head_stores: u64,
    /// How many VIPs were taken out.
    pub service_removals: u64,
}

impl Memory {
    /// Returns an empty data plane.
    pub fn new(limits: Limits) -> Self {
        Self {
            limits,
            services: BTreeMap::new(),
            nat_sources: BTreeMap::new(),
            vip_filter: vec![0; VIP_FILTER_LEN as usize],
            addresses: BTreeSet::new(),
            settings: Settings::default(),
            ring: vec![Row::EMPTY; limits.rows as usize],
            backends: vec![Backend::zeroed(); limits.backends as usize + 1],
            prefixes: BTreeMap::new(),
            near: BTreeMap::new(),
            guard: GuardSettings::default(),
            rates: BTreeMap::new(),
            devices: BTreeSet::new(),
            flows: BTreeMap::new(),
            arrivals: BTreeMap::new(),
            more: false,
            broken_flows: false,
            backend_stats: BTreeMap::new(),
            service_stats: BTreeMap::new(),
            clock: Clock {
                now: Jiffies(1 << 33),
                hz: 1000,
            },
            row_stores: 0,
            head_stores: 0,
            service_removals: 0,
        }
    }

    fn out_of_range(&self, map: &'static str, index: u32, capacity: usize) -> MapError {
        MapError::OutOfRange {
            map,
            index,
            capacity: capacity as u32,
        }
    }
}

impl Dataplane for Memory {
    fn set_service(&mut self, vip: &Vip, service: &Service) -> Result<(), MapError> {
        let same_family = |other: &&Vip| other.address.is_ipv4() == vip.address.is_ipv4();
        let used = self.services.keys().filter(same_family).count();
        // A service that changes its VIP has two of them for a moment.
        let capacity = self.limits.services.saturating_add(1);
        if used >= capacity as usize && !self.services.contains_key(vip) {
            let map = if vip.address.is_ipv4() {
                names::SERVICES_V4
            } else {
                names::SERVICES_V6
            };
            return Err(MapError::Full { map, capacity });
        }
        self.services.insert(*vip, *service);
        Ok(())
    }

    fn remove_service(&mut self, vip: &Vip) -> Result<(), MapError> {
        if self.services.remove(vip).is_some() {
            self.service_removals += 1;
        }
        Ok(())
    }

    fn services(&self) -> Result<Vec<(Vip, Service)>, MapError> {
        Ok(self
            .services
            .iter()
            .map(|(vip, service)| (*vip, *service))
            .collect())
    }

    fn set_nat_source(&mut self, at: &Vip, source: &NatSource) -> Result<(), MapError> {
        self.nat_sources.insert(*at, *source);
        Ok(())
    }

    fn remove_nat_source(&mut self, at: &Vip) -> Result<(), MapError> {
        self.nat_sources.remove(at);
        Ok(())
    }

    fn nat_sources(&self) -> Result<Vec<(Vip, NatSource)>, MapError> {
        let sources = self.nat_sources.iter();
        Ok(sources.map(|(at, source)| (*at, *source)).collect())
    }

    fn set_vip_filter(&mut self, index: u32, kinds: u8) -> Result<(), MapError> {
        match self.vip_filter.get_mut(index as usize) {
            Some(entry) => *entry = kinds,
            None => return Err(self.out_of_range(names::VIP_FILTER, index, self.vip_filter.len())),
        }
        Ok(())
    }

    fn vip_filter(&self, index: u32) -> Result<u8, MapError> {
        let entry = self.vip_filter.get(index as usize).copied();
        entry.ok_or_else(|| self.out_of_range(names::VIP_FILTER, index, self.vip_filter.len()))
    }

    fn add_address(&mut self, address: IpAddr) -> Result<(), MapError> {
        self.addresses.insert(address);
        Ok(())
    }

    fn remove_address(&mut self, address: IpAddr) -> Result<(), MapError> {
        self.addresses.remove(&address);
        Ok(())
    }

    fn addresses(&self) -> Result<BTreeSet<IpAddr>, MapError> {
        Ok(self.addresses.clone())
    }

    fn set_settings(&mut self, settings: &Settings) -> Result<(), MapError> {
        self.settings = *settings;
        Ok(())
    }

    fn settings(&self) -> Result<Settings, MapError> {
        Ok(self.settings)
    }

    fn set_row(&mut self, index: u32, row: Row) -> Result<(), MapError> {
        match self.ring.get_mut(index as usize) {
            Some(entry) => *entry = row,
            None => return Err(self.out_of_range(names::RING, index, self.ring.len())),
        }
        self.row_stores += 1;
        Ok(())
    }

    fn row(&self, index: u32) -> Result<Row, MapError> {
        let row = self.ring.get(index as usize).copied();
        row.ok_or_else(|| self.out_of_range(names::RING, index, self.ring.len()))
    }

    fn set_template(
        &mut self,
        slot: BackendSlot,
        side: u8,
        template: &Template,
    ) -> Result<(), MapError> {
        let backend = self.backends.get_mut(slot.get() as usize);
        match backend.and_then(|backend| backend.templates.get_mut(usize::from(side & 1))) {
            Some(entry) => *entry = *template,
            None => {
                return Err(self.out_of_range(names::BACKENDS, slot.get(), self.backends.len()));
            }
        }
        Ok(())
    }

    fn set_head(&mut self, slot: BackendSlot, head: Head) -> Result<(), MapError> {
        self.head_stores += 1;
        match self.backends.get_mut(slot.get() as usize) {
            Some(backend) => backend.head = head.to_bits(),
            None => {
                return Err(self.out_of_range(names::BACKENDS, slot.get(), self.backends.len()));
            }
        }
        Ok(())
    }

    fn backend(&self, slot: BackendSlot) -> Result<Backend, MapError> {
        let backend = self.backends.get(slot.get() as usize).copied();
        backend.ok_or_else(|| self.out_of_range(names::BACKENDS, slot.get(), self.backends.len()))
    }

    fn add_device(&mut self, ifindex: u32) -> Result<(), MapError> {
        if self.devices.len() >= DEVICES as usize && !self.devices.contains(&ifindex) {
            return Err(MapError::Full {
                map: names::DEVICES,
                capacity: DEVICES,
            });
        }
        self.devices.insert(ifindex);
        Ok(())
    }

    fn walk_flows(
        &self,
        _: &mut FlowCursor,
        visit: &mut dyn FnMut(Table, FlowKey, FlowEntry),
    ) -> Result<bool, MapError> {
        if self.broken_flows {
            let source = std::io::Error::other("broken for a test").into();
            let map = names::FLOWS_V4[0];
            return Err(MapError::Kernel { map, source });
        }
        for ((table, key), entry) in &self.flows {
            visit(*table, *key, *entry);
        }
        Ok(self.more)
    }

    fn flow(&self, table: Table, key: &FlowKey) -> Result<Option<FlowEntry>, MapError> {
        let news = self.arrivals.get(&(table, *key));
        Ok(news.or_else(|| self.flows.get(&(table, *key))).copied())
    }

    fn remove_flow(&mut self, table: Table, key: &FlowKey) -> Result<(), MapError> {
        self.flows.remove(&(table, *key));
        Ok(())
    }

    fn backend_stats(&self, slot: BackendSlot) -> Result<BackendStats, MapError> {
        Ok(self
            .backend_stats
            .get(&slot.get())
            .copied()
            .unwrap_or_default())
    }

    fn clear_backend_stats(&mut self, slot: BackendSlot) -> Result<(), MapError> {
        self.backend_stats.remove(&slot.get());
        Ok(())
    }

    fn service_stats(&self, slot: u32) -> Result<ServiceStats, MapError> {
        Ok(self.service_stats.get(&slot).copied().unwrap_or_default())
    }

    fn clear_service_stats(&mut self, slot: u32) -> Result<(), MapError> {
        self.service_stats.remove(&slot);
        Ok(())
    }

    fn reason(&self, _: Reason) -> Result<u64, MapError> {
        Ok(0)
    }

    fn clock(&self) -> Result<Clock, MapError> {
        Ok(self.clock)
    }
}
