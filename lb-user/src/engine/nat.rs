//! What the answers of VMs come from, where their packets are translated.

use std::collections::BTreeMap;

use lb_common::nat::NatSource;
use lb_common::service::VIP_NAT_SOURCE;
use tracing::warn;

use super::Engine;
use crate::dataplane::{Attached, Dataplane, MapError, XdpMode, nat_filter_index};
use crate::model::{Name, Vip};
use crate::plan::InstalledService;

impl<D: Dataplane> Engine<D> {
    /// Makes the answers of a service's backends known, before packets go there.
    pub(super) fn expect_answers(&mut self, service: &InstalledService) -> Result<(), MapError> {
        for (_, at, source) in service.nat_sources() {
            if self.nat_sources.get(&at) != Some(&source) {
                self.dataplane.set_nat_source(&at, &source)?;
                self.nat_sources.insert(at, source);
            }
            let index = nat_filter_index(&at);
            let kinds = self.filter.get(&index).copied().unwrap_or(0);
            if kinds & VIP_NAT_SOURCE == 0 {
                let kinds = kinds | VIP_NAT_SOURCE;
                self.dataplane.set_vip_filter(index, kinds)?;
                self.filter.insert(index, kinds);
            }
        }
        Ok(())
    }

    /// Returns what the answers of all backends come from. Where a VM went from one service to
    /// another, those of the one that declares it now.
    pub(super) fn wanted_nat_sources(&self) -> BTreeMap<Vip, NatSource> {
        let mut wanted = BTreeMap::new();
        let mut declared = Vec::new();
        for (name, service) in &self.installed {
            for (backend, at, source) in service.nat_sources() {
                if self.declares_at(name, backend, &at) {
                    declared.push((at, source));
                } else {
                    wanted.insert(at, source);
                }
            }
        }
        wanted.extend(declared);
        wanted
    }

    fn declares_at(&self, service: &Name, backend: &Name, at: &Vip) -> bool {
        let service = self.desired.services.get(service);
        service.is_some_and(|service| {
            let backend = service.backends.get(backend);
            backend.is_some_and(|backend| backend.translated(&service.vip) == *at)
        })
    }

    /// Forgets what nobody answers from any more.
    pub(super) fn update_nat_sources(&mut self) -> Result<(), MapError> {
        let wanted = self.wanted_nat_sources();
        for (at, source) in &wanted {
            if self.nat_sources.get(at) != Some(source) {
                self.dataplane.set_nat_source(at, source)?;
                self.nat_sources.insert(*at, *source);
            }
        }
        let gone: Vec<Vip> = {
            let known = self.nat_sources.keys();
            known
                .filter(|at| !wanted.contains_key(*at))
                .copied()
                .collect()
        };
        for at in gone {
            self.dataplane.remove_nat_source(&at)?;
            self.nat_sources.remove(&at);
        }
        Ok(())
    }

    /// Makes it possible to send answers of VMs out of an interface that the program is attached
    /// to. One that has no native XDP can't be redirected to by all others: there the host's stack
    /// sends them. Where it fails, too.
    pub fn add_way_out(&mut self, attached: &Attached) {
        let native = attached.mode == XdpMode::Native;
        if native && !self.devices.contains(&attached.ifindex) {
            match self.dataplane.add_device(attached.ifindex) {
                Ok(()) => {
                    self.devices.insert(attached.ifindex);
                }
                Err(error) => {
                    let error = anyhow::Error::from(error);
                    warn!(
                        ifindex = attached.ifindex,
                        "answers of VMs can't be redirected there: {error:#}"
                    );
                }
            }
        }
    }

    /// Returns the service whose answers come from a VM's address and port.
    pub fn answers(&self, at: &Vip) -> Option<(&Name, &InstalledService)> {
        let any = Vip {
            port: crate::model::ServicePort::Any,
            ..*at
        };
        let source = self
            .nat_sources
            .get(at)
            .or_else(|| self.nat_sources.get(&any))?;
        self.service_in(source.service)
    }
}
