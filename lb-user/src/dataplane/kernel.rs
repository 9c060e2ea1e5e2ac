//! The real data plane: maps in the kernel.

use std::cell::OnceCell;
use std::collections::BTreeSet;
use std::io;
use std::net::IpAddr;
use std::sync::atomic::{Ordering, fence};
use std::time::Duration;

use aya::Ebpf;
use aya::maps::xdp::{DevMapHash, XdpMapError};
use aya::maps::{Array, HashMap, MapData, MapError as AyaError, PerCpuArray};
use aya::programs::Xdp;
use lb_common::{
    DEVICES,
    backend::{Backend, BackendSlot, Head, Template},
    explain::Explanation,
    flow::{FlowEntry, FlowKey4, FlowKey6, Table},
    map_names as names,
    nat::NatSource,
    row::Row,
    service::{Service, ServiceKey4, ServiceKey6, VIP_FILTER_LEN},
    settings::Settings,
    stats::{BackendStats, Reason, ServiceStats},
};

use super::addresses::Addresses;
use super::attach::{self, AttachError, Attached};
use super::clock::{Clock, Jiffies};
use super::counters::Counters;
use super::explain::{PinnedToCpu, test_run};
use super::keys::{ServiceKey, vip};
use super::lists::KernelLists;
use super::load::LoadError;
use super::mapped::Mapped;
use super::nat::NatSources;
use super::open::{mapped, take, walk};
use super::pins::{PinError, Pins};
use super::walk::{FlowCursor, Walk};
use super::{Dataplane, Explained, FlowKey, MapError};
use crate::model::{AttachMode, Limits, Vip};

const HEAD_WORDS: usize = size_of::<Backend>() / 8;
const TEMPLATE_WORDS: usize = size_of::<Template>() / 8;

/// The loaded programs and their maps.
pub struct Kernel {
    ebpf: Ebpf,
    pins: Pins,
    limits: Limits,
    adopted: bool,
    hz: OnceCell<u64>,
    services_v4: HashMap<MapData, ServiceKey4, Service>,
    services_v6: HashMap<MapData, ServiceKey6, Service>,
    nat_sources: NatSources,
    vip_filter: Array<MapData, u8>,
    vips: Addresses,
    settings: Array<MapData, Settings>,
    ring: Mapped,
    backends: Mapped,
    devices: DevMapHash<MapData>,
    flows_v4: [HashMap<MapData, FlowKey4, FlowEntry>; 3],
    flows_v6: [HashMap<MapData, FlowKey6, FlowEntry>; 3],
    walks_v4: [Walk<FlowKey4>; 3],
    walks_v6: [Walk<FlowKey6>; 3],
    counters: Counters,
    explanation: PerCpuArray<MapData, Explanation>,
    pub(super) lists: KernelLists,
}

impl Kernel {
    pub(super) fn new(
        mut ebpf: Ebpf,
        pins: Pins,
        limits: Limits,
        adopted: bool,
    ) -> Result<Self, LoadError> {
        let e = &mut ebpf;
        Ok(Self {
            services_v4: take(e, names::SERVICES_V4)?,
            services_v6: take(e, names::SERVICES_V6)?,
            nat_sources: NatSources::take(e, &limits)?,
            vip_filter: take(e, names::VIP_FILTER)?,
            vips: Addresses::take(e, limits.services.saturating_add(1))?,
            settings: take(e, names::SETTINGS)?,
            ring: mapped(e, names::RING, limits.rows as usize)?,
            backends: mapped(
                e,
                names::BACKENDS,
                (limits.backends as usize + 1) * HEAD_WORDS,
            )?,
            devices: take(e, names::DEVICES)?,
            walks_v4: [
                walk(e, names::FLOWS_V4[0])?,
                walk(e, names::FLOWS_V4[1])?,
                walk(e, names::FLOWS_V4[2])?,
            ],
            walks_v6: [
                walk(e, names::FLOWS_V6[0])?,
                walk(e, names::FLOWS_V6[1])?,
                walk(e, names::FLOWS_V6[2])?,
            ],
            flows_v4: [
                take(e, names::FLOWS_V4[0])?,
                take(e, names::FLOWS_V4[1])?,
                take(e, names::FLOWS_V4[2])?,
            ],
            flows_v6: [
                take(e, names::FLOWS_V6[0])?,
                take(e, names::FLOWS_V6[1])?,
                take(e, names::FLOWS_V6[2])?,
            ],
            counters: Counters::take(e)?,
            explanation: take(e, names::EXPLAIN)?,
            lists: KernelLists::take(e, limits.guard_prefixes)?,
            ebpf,
            pins,
            limits,
            adopted,
            hz: OnceCell::new(),
        })
    }

    /// Returns whether the maps are those that an earlier daemon pinned.
    pub fn adopted(&self) -> bool {
        self.adopted
    }

    /// Attaches the program to an interface, or takes over an earlier daemon's link without a gap.
    pub fn attach(&mut self, interface: &str, mode: AttachMode) -> Result<Attached, AttachError> {
        let pins = self.pins.clone();
        let program = self.program("weir").map_err(|source| AttachError::Link {
            interface: interface.to_owned(),
            source,
        })?;
        attach::attach(program, &pins, interface, mode)
    }

    /// Detaches the program from an interface. Returns whether it was attached.
    pub fn detach(&mut self, interface: &str) -> Result<bool, PinError> {
        self.pins.remove_link(interface)
    }

    /// Returns the interfaces that the program is attached to.
    pub fn attached(&self) -> Result<Vec<String>, PinError> {
        self.pins.links()
    }

    /// Runs the explaining program on `frame`, as if it came in by `ingress_ifindex`.
    pub fn explain(&mut self, frame: &[u8], ingress_ifindex: u32) -> io::Result<Explained> {
        // The record is per CPU: stay on one between running the program and reading it.
        let _pinned = PinnedToCpu::new()?;
        let (verdict, frame) = test_run(self.program("weir_explain")?, frame, ingress_ifindex)?;
        let values = self.explanation.get(&0, 0).map_err(io::Error::other)?;
        let cpu = nix::sched::sched_getcpu()?;
        let explanation = values.get(cpu).copied().unwrap_or_default();
        Ok(Explained {
            verdict,
            frame,
            explanation,
        })
    }

    /// Runs the attached program itself on `frame`. Unlike [`Self::explain`] this counts, and
    /// writes flow entries: for tests.
    pub fn run(&mut self, frame: &[u8], ingress_ifindex: u32) -> io::Result<(u32, Vec<u8>)> {
        test_run(self.program("weir")?, frame, ingress_ifindex)
    }

    /// Returns a loaded program: `weir`, `weir_explain` or `weir_clock`.
    pub fn program(&mut self, name: &str) -> io::Result<&mut Xdp> {
        self.ebpf
            .program_mut(name)
            .ok_or_else(|| io::Error::other(format!("no program {name}")))?
            .try_into()
            .map_err(io::Error::other)
    }

    /// Returns jiffies and the monotonic clock, read at the same time.
    fn read_clock(&self) -> Result<(u64, Duration), MapError> {
        let program = self
            .ebpf
            .program("weir_clock")
            .ok_or_else(|| MapError::Clock(io::Error::other("no program weir_clock")))?;
        let program: &Xdp = program
            .try_into()
            .map_err(|e| MapError::Clock(io::Error::other(e)))?;
        let (_, frame) = test_run(program, &[0; 64], 0).map_err(MapError::Clock)?;
        let word = |at: usize| {
            frame
                .get(at..at + 8)
                .and_then(|bytes| bytes.try_into().ok())
                .map(u64::from_ne_bytes)
                .ok_or_else(|| MapError::Clock(io::Error::other("the clock's frame is short")))
        };
        Ok((word(0)?, Duration::from_nanos(word(8)?)))
    }

    fn ring_word(&self, index: u32) -> Result<&std::sync::atomic::AtomicU64, MapError> {
        self.ring.word(index as usize).ok_or(MapError::OutOfRange {
            map: names::RING,
            index,
            capacity: self.limits.rows,
        })
    }

    fn no_backend(&self, slot: BackendSlot) -> MapError {
        MapError::OutOfRange {
            map: names::BACKENDS,
            index: slot.get(),
            capacity: self.limits.backends.saturating_add(1),
        }
    }
}

/// Returns an error of a map update; a full map says so plainly.
pub(super) fn update_error(map: &'static str, capacity: u32, source: AyaError) -> MapError {
    if let AyaError::SyscallError(error) = &source
        && error.io_error.raw_os_error() == Some(libc::E2BIG)
    {
        return MapError::Full { map, capacity };
    }
    MapError::Kernel { map, source }
}

pub(super) fn ignore_missing(
    map: &'static str,
    result: Result<(), AyaError>,
) -> Result<(), MapError> {
    match result {
        Ok(()) | Err(AyaError::KeyNotFound) => Ok(()),
        Err(AyaError::SyscallError(error))
            if error.io_error.raw_os_error() == Some(libc::ENOENT) =>
        {
            Ok(())
        }
        Err(source) => Err(MapError::Kernel { map, source }),
    }
}

impl Dataplane for Kernel {
    fn set_service(&mut self, vip: &Vip, service: &Service) -> Result<(), MapError> {
        let capacity = self.limits.services.saturating_add(1);
        match ServiceKey::from(vip) {
            ServiceKey::V4(key) => self
                .services_v4
                .insert(key, service, 0)
                .map_err(|e| update_error(names::SERVICES_V4, capacity, e)),
            ServiceKey::V6(key) => self
                .services_v6
                .insert(key, service, 0)
                .map_err(|e| update_error(names::SERVICES_V6, capacity, e)),
        }
    }

    fn remove_service(&mut self, vip: &Vip) -> Result<(), MapError> {
        match ServiceKey::from(vip) {
            ServiceKey::V4(key) => {
                ignore_missing(names::SERVICES_V4, self.services_v4.remove(&key))
            }
            ServiceKey::V6(key) => {
                ignore_missing(names::SERVICES_V6, self.services_v6.remove(&key))
            }
        }
    }

    fn services(&self) -> Result<Vec<(Vip, Service)>, MapError> {
        let mut services = Vec::new();
        for item in self.services_v4.iter() {
            let (key, service) = item.map_err(|source| MapError::Kernel {
                map: names::SERVICES_V4,
                source,
            })?;
            services.extend(vip(key.vip.into(), key.port, key.proto).map(|vip| (vip, service)));
        }
        for item in self.services_v6.iter() {
            let (key, service) = item.map_err(|source| MapError::Kernel {
                map: names::SERVICES_V6,
                source,
            })?;
            services.extend(vip(key.vip.into(), key.port, key.proto).map(|vip| (vip, service)));
        }
        services.sort_by_key(|(vip, _)| *vip);
        Ok(services)
    }

    fn set_nat_source(&mut self, at: &Vip, source: &NatSource) -> Result<(), MapError> {
        self.nat_sources.set(at, source)
    }

    fn remove_nat_source(&mut self, at: &Vip) -> Result<(), MapError> {
        self.nat_sources.remove(at)
    }

    fn nat_sources(&self) -> Result<Vec<(Vip, NatSource)>, MapError> {
        self.nat_sources.all()
    }

    fn set_vip_filter(&mut self, index: u32, kinds: u8) -> Result<(), MapError> {
        self.vip_filter
            .set(index, kinds, 0)
            .map_err(|e| update_error(names::VIP_FILTER, VIP_FILTER_LEN, e))
    }

    fn vip_filter(&self, index: u32) -> Result<u8, MapError> {
        self.vip_filter
            .get(&index, 0)
            .map_err(|source| MapError::Kernel {
                map: names::VIP_FILTER,
                source,
            })
    }

    fn add_address(&mut self, address: IpAddr) -> Result<(), MapError> {
        self.vips.add(address)
    }

    fn remove_address(&mut self, address: IpAddr) -> Result<(), MapError> {
        self.vips.remove(address)
    }

    fn addresses(&self) -> Result<BTreeSet<IpAddr>, MapError> {
        self.vips.all()
    }

    fn set_settings(&mut self, settings: &Settings) -> Result<(), MapError> {
        self.settings
            .set(0, settings, 0)
            .map_err(|e| update_error(names::SETTINGS, 1, e))
    }

    fn settings(&self) -> Result<Settings, MapError> {
        self.settings.get(&0, 0).map_err(|source| MapError::Kernel {
            map: names::SETTINGS,
            source,
        })
    }

    fn set_row(&mut self, index: u32, row: Row) -> Result<(), MapError> {
        self.ring_word(index)?
            .store(row.to_bits(), Ordering::Release);
        Ok(())
    }

    fn row(&self, index: u32) -> Result<Row, MapError> {
        Ok(Row::from_bits(
            self.ring_word(index)?.load(Ordering::Acquire),
        ))
    }

    fn set_template(
        &mut self,
        slot: BackendSlot,
        side: u8,
        template: &Template,
    ) -> Result<(), MapError> {
        let start = slot.get() as usize * HEAD_WORDS + 1 + usize::from(side & 1) * TEMPLATE_WORDS;
        let words: [u64; TEMPLATE_WORDS] = bytemuck::cast(*template);
        self.backends
            .write(start, &words)
            .ok_or_else(|| self.no_backend(slot))
    }

    fn set_head(&mut self, slot: BackendSlot, head: Head) -> Result<(), MapError> {
        // The template's words must be there before the head that names them.
        fence(Ordering::Release);
        self.backends
            .word(slot.get() as usize * HEAD_WORDS)
            .ok_or_else(|| self.no_backend(slot))?
            .store(head.to_bits(), Ordering::Release);
        Ok(())
    }

    fn backend(&self, slot: BackendSlot) -> Result<Backend, MapError> {
        let mut words = [0_u64; HEAD_WORDS];
        self.backends
            .read(slot.get() as usize * HEAD_WORDS, &mut words)
            .ok_or_else(|| self.no_backend(slot))?;
        Ok(bytemuck::cast(words))
    }

    fn add_device(&mut self, ifindex: u32) -> Result<(), MapError> {
        self.devices
            .insert(ifindex, ifindex, None, 0)
            .map_err(|source| match source {
                XdpMapError::MapError(source) => update_error(names::DEVICES, DEVICES, source),
                source @ XdpMapError::ChainedProgramNotSupported => MapError::Kernel {
                    map: names::DEVICES,
                    source: AyaError::IoError(io::Error::other(source)),
                },
            })
    }

    fn walk_flows(
        &self,
        cursor: &mut FlowCursor,
        visit: &mut dyn FnMut(Table, FlowKey, FlowEntry),
    ) -> Result<bool, MapError> {
        let number = cursor.table;
        let position = &mut cursor.position;
        let tables = Table::ALL.len();
        let (map, result) = if let (Some(walk), Some(table)) =
            (self.walks_v4.get(number), Table::ALL.get(number))
        {
            let visit = &mut |key, entry| visit(*table, FlowKey::V4(key), entry);
            (names::FLOWS_V4.get(number), walk.step(position, visit))
        } else if let (Some(walk), Some(table)) = (
            self.walks_v6.get(number - tables),
            Table::ALL.get(number - tables),
        ) {
            let visit = &mut |key, entry| visit(*table, FlowKey::V6(key), entry);
            (
                names::FLOWS_V6.get(number - tables),
                walk.step(position, visit),
            )
        } else {
            return Ok(false);
        };
        let more = result.map_err(|error| MapError::Kernel {
            map: map.copied().unwrap_or_default(),
            source: AyaError::IoError(error),
        })?;
        if !more {
            *cursor = FlowCursor {
                table: number + 1,
                position: None,
            };
        }
        Ok(cursor.table < 2 * tables)
    }

    fn flow(&self, table: Table, key: &FlowKey) -> Result<Option<FlowEntry>, MapError> {
        let index = table as usize;
        let found = match key {
            FlowKey::V4(key) => self.flows_v4.get(index).map(|map| map.get(key, 0)),
            FlowKey::V6(key) => self.flows_v6.get(index).map(|map| map.get(key, 0)),
        };
        match found {
            None | Some(Err(AyaError::KeyNotFound)) => Ok(None),
            Some(Ok(entry)) => Ok(Some(entry)),
            Some(Err(source)) => Err(MapError::Kernel {
                map: "flows",
                source,
            }),
        }
    }

    fn remove_flow(&mut self, table: Table, key: &FlowKey) -> Result<(), MapError> {
        let index = table as usize;
        match key {
            FlowKey::V4(key) => match self.flows_v4.get_mut(index) {
                Some(map) => ignore_missing("flows", map.remove(key)),
                None => Ok(()),
            },
            FlowKey::V6(key) => match self.flows_v6.get_mut(index) {
                Some(map) => ignore_missing("flows", map.remove(key)),
                None => Ok(()),
            },
        }
    }

    fn backend_stats(&self, slot: BackendSlot) -> Result<BackendStats, MapError> {
        self.counters.backend(slot)
    }

    fn clear_backend_stats(&mut self, slot: BackendSlot) -> Result<(), MapError> {
        self.counters.clear_backend(slot)
    }

    fn service_stats(&self, slot: u32) -> Result<ServiceStats, MapError> {
        self.counters.service(slot)
    }

    fn clear_service_stats(&mut self, slot: u32) -> Result<(), MapError> {
        self.counters.clear_service(slot)
    }

    fn reason(&self, reason: Reason) -> Result<u64, MapError> {
        self.counters.reason(reason)
    }

    fn clock(&self) -> Result<Clock, MapError> {
        let (jiffies, monotonic) = self.read_clock()?;
        // The frequency never changes.
        let known = self.hz.get().map(|hz| Clock {
            now: Jiffies(jiffies),
            hz: *hz,
        });
        if let Some(clock) = known.or_else(|| Clock::from_reading(jiffies, monotonic)) {
            let hz = *self.hz.get_or_init(|| clock.hz);
            return Ok(Clock { hz, ..clock });
        }
        let error = "five minutes after boot its frequency can't be told for some seconds";
        Err(MapError::Clock(io::Error::other(error)))
    }
}
