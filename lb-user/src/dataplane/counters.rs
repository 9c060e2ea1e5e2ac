//! What packets count: per CPU, added up when it is read.

use std::io;

use aya::Ebpf;
use aya::maps::{MapData, MapError as AyaError, PerCpuArray, PerCpuValues};
use lb_common::backend::BackendSlot;
use lb_common::map_names as names;
use lb_common::stats::{BackendStats, Reason, ServiceStats};

use super::MapError;
use super::load::LoadError;
use super::open::take;

pub(super) struct Counters {
    backends: PerCpuArray<MapData, BackendStats>,
    services: PerCpuArray<MapData, ServiceStats>,
    reasons: PerCpuArray<MapData, u64>,
}

impl Counters {
    pub fn take(ebpf: &mut Ebpf) -> Result<Self, LoadError> {
        Ok(Self {
            backends: take(ebpf, names::BACKEND_STATS)?,
            services: take(ebpf, names::SERVICE_STATS)?,
            reasons: take(ebpf, names::REASONS)?,
        })
    }

    pub fn backend(&self, slot: BackendSlot) -> Result<BackendStats, MapError> {
        let mut total = BackendStats::default();
        for cpu in read(&self.backends, names::BACKEND_STATS, slot.get())?.iter() {
            total.packets += cpu.packets;
            total.bytes += cpu.bytes;
            total.new_flows += cpu.new_flows;
        }
        Ok(total)
    }

    pub fn clear_backend(&mut self, slot: BackendSlot) -> Result<(), MapError> {
        clear(&mut self.backends, names::BACKEND_STATS, slot.get())
    }

    pub fn service(&self, slot: u32) -> Result<ServiceStats, MapError> {
        let mut total = ServiceStats::default();
        for cpu in read(&self.services, names::SERVICE_STATS, slot)?.iter() {
            total.packets += cpu.packets;
            total.bytes += cpu.bytes;
            total.new_flows += cpu.new_flows;
            total.dropped += cpu.dropped;
            total.refused += cpu.refused;
            total.refused_at = total.refused_at.max(cpu.refused_at);
        }
        Ok(total)
    }

    pub fn clear_service(&mut self, slot: u32) -> Result<(), MapError> {
        clear(&mut self.services, names::SERVICE_STATS, slot)
    }

    pub fn reason(&self, reason: Reason) -> Result<u64, MapError> {
        let values = read(&self.reasons, names::REASONS, reason as u32)?;
        Ok(values.iter().sum())
    }
}

fn read<T: aya::Pod>(
    from: &PerCpuArray<MapData, T>,
    map: &'static str,
    index: u32,
) -> Result<PerCpuValues<T>, MapError> {
    from.get(&index, 0)
        .map_err(|source| MapError::Kernel { map, source })
}

fn clear<T: aya::Pod + Default>(
    of: &mut PerCpuArray<MapData, T>,
    map: &'static str,
    index: u32,
) -> Result<(), MapError> {
    let failed = |source| MapError::Kernel { map, source };
    let zeros = zeros().map_err(|error| failed(AyaError::IoError(error)))?;
    of.set(index, zeros, 0).map_err(failed)
}

fn zeros<T: aya::Pod + Default>() -> io::Result<PerCpuValues<T>> {
    let cpus = aya::util::nr_cpus().map_err(|(_, error)| error)?;
    PerCpuValues::try_from(vec![T::default(); cpus])
}
