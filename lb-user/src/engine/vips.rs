//! Which service has which VIP. A VIP that goes from one service to another has one all the time.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use lb_common::service::VIP_NAT_SOURCE;

use super::{Engine, EngineError};
use crate::dataplane::{Dataplane, MapError, nat_filter_index, vip_filter_entries};
use crate::model::{Name, Vip};

impl<D: Dataplane> Engine<D> {
    /// Returns the VIP of an installed service that is declared for another one.
    pub(super) fn handed_over(&self, name: &Name) -> Option<(Vip, &Name)> {
        let vip = self.installed.get(name)?.vip;
        let next = self.vips.get(&vip).filter(|next| *next != name)?;
        Some((vip, next))
    }

    /// Returns whether a service has to stay as it is, because its VIP goes to one that still
    /// waits for next hops: until then nobody else would serve the VIP.
    pub(super) fn held_up(&self, name: &Name) -> bool {
        let mut holder = name;
        let mut seen = BTreeSet::new();
        while !self.waiting.is_empty() && seen.insert(holder) {
            match self.handed_over(holder) {
                Some((_, next)) if self.waiting.contains_key(next) => return true,
                // It may be held up itself.
                Some((_, next)) => holder = next,
                None => return false,
            }
        }
        false
    }

    /// Lets packets for a VIP pass that a service had, at once if nobody else is declared for it.
    pub(super) fn vacate(&mut self, vip: Vip) -> Result<(), MapError> {
        if self.vips.contains_key(&vip) {
            self.vacated.insert(vip);
            return Ok(());
        }
        let removed = self.dataplane.remove_service(&vip);
        if removed.is_err() {
            self.vacated.insert(vip);
        }
        removed
    }

    /// Takes out the VIPs that services had, unless others have them by now.
    pub(super) fn remove_vacated(&mut self) -> Result<(), EngineError> {
        if self.vacated.is_empty() {
            return Ok(());
        }
        let waiting = self.waiting.keys();
        let coming = waiting.filter_map(|name| self.desired.services.get(name));
        let coming: BTreeSet<Vip> = coming.map(|service| service.vip).collect();
        let served: BTreeSet<Vip> = self.installed.values().map(|s| s.vip).collect();
        let mut result = Ok(());
        self.vacated.retain(|vip| {
            if served.contains(vip) {
                return false;
            }
            if coming.contains(vip) {
                return true;
            }
            let removed = self.dataplane.remove_service(vip);
            let failed = removed.is_err();
            if failed {
                result = removed.map_err(EngineError::from);
            }
            failed
        });
        result
    }

    /// The filter knows which addresses have services; it must never lack one that has.
    pub(super) fn update_filter(&mut self) -> Result<(), MapError> {
        let vips = self.installed.values().map(|service| &service.vip);
        let wanted = filter(vips.chain(&self.vacated), self.nat_sources.keys());
        for (index, kinds) in &wanted {
            if self.filter.get(index) != Some(kinds) {
                self.dataplane.set_vip_filter(*index, *kinds)?;
            }
        }
        for index in self
            .filter
            .keys()
            .filter(|index| !wanted.contains_key(*index))
        {
            self.dataplane.set_vip_filter(*index, 0)?;
        }
        self.filter = wanted;
        Ok(())
    }

    /// Returns what the filter should hold for the services that are installed.
    pub(super) fn expected_filter(&self) -> BTreeMap<u32, u8> {
        let vips = self.installed.values().map(|service| &service.vip);
        filter(vips, self.wanted_nat_sources().keys())
    }

    /// Brings the sets of addresses to those of the services that are installed.
    pub(super) fn update_addresses(&mut self) -> Result<(), MapError> {
        let wanted = self.expected_addresses();
        for address in self
            .addresses
            .difference(&wanted)
            .copied()
            .collect::<Vec<_>>()
        {
            self.dataplane.remove_address(address)?;
            self.addresses.remove(&address);
        }
        for address in wanted {
            if !self.addresses.contains(&address) {
                self.dataplane.add_address(address)?;
                self.addresses.insert(address);
            }
        }
        Ok(())
    }

    /// Returns the addresses of the services that are installed.
    pub(super) fn expected_addresses(&self) -> BTreeSet<IpAddr> {
        let services = self.installed.values();
        services.map(|service| service.vip.address).collect()
    }
}

/// Returns what the filter holds for these VIPs, and these places of VMs behind NAT.
fn filter<'a>(
    vips: impl Iterator<Item = &'a Vip>,
    nat: impl Iterator<Item = &'a Vip>,
) -> BTreeMap<u32, u8> {
    let mut filter: BTreeMap<u32, u8> = BTreeMap::new();
    for (index, kind) in vips.flat_map(vip_filter_entries) {
        *filter.entry(index).or_default() |= kind;
    }
    for at in nat {
        *filter.entry(nat_filter_index(at)).or_default() |= VIP_NAT_SOURCE;
    }
    filter
}
