//! The addresses of services: one set for each family.

use std::collections::BTreeSet;
use std::net::IpAddr;

use aya::Ebpf;
use aya::maps::{HashMap, MapData};
use lb_common::map_names as names;

use super::MapError;
use super::kernel::{ignore_missing, update_error};
use super::load::LoadError;
use super::open::take;

pub(super) struct Addresses {
    v4: HashMap<MapData, [u8; 4], u32>,
    v6: HashMap<MapData, [u8; 16], u32>,
    capacity: u32,
}

impl Addresses {
    pub(super) fn take(ebpf: &mut Ebpf, capacity: u32) -> Result<Self, LoadError> {
        Ok(Self {
            v4: take(ebpf, names::VIPS_V4)?,
            v6: take(ebpf, names::VIPS_V6)?,
            capacity,
        })
    }

    pub(super) fn add(&mut self, address: IpAddr) -> Result<(), MapError> {
        match address {
            IpAddr::V4(address) => self
                .v4
                .insert(address.octets(), 0, 0)
                .map_err(|e| update_error(names::VIPS_V4, self.capacity, e)),
            IpAddr::V6(address) => self
                .v6
                .insert(address.octets(), 0, 0)
                .map_err(|e| update_error(names::VIPS_V6, self.capacity, e)),
        }
    }

    pub(super) fn remove(&mut self, address: IpAddr) -> Result<(), MapError> {
        match address {
            IpAddr::V4(address) => {
                ignore_missing(names::VIPS_V4, self.v4.remove(&address.octets()))
            }
            IpAddr::V6(address) => {
                ignore_missing(names::VIPS_V6, self.v6.remove(&address.octets()))
            }
        }
    }

    pub(super) fn all(&self) -> Result<BTreeSet<IpAddr>, MapError> {
        let mut all = BTreeSet::new();
        for address in self.v4.keys() {
            let address = address.map_err(|source| MapError::Kernel {
                map: names::VIPS_V4,
                source,
            })?;
            all.insert(address.into());
        }
        for address in self.v6.keys() {
            let address = address.map_err(|source| MapError::Kernel {
                map: names::VIPS_V6,
                source,
            })?;
            all.insert(address.into());
        }
        Ok(all)
    }
}
