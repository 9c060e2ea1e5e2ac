//! Rates of services: stored before the service's flags send packets there.

use lb_common::bucket::{Rate, Rates};
use lb_common::service::Service;

use super::{Engine, EngineError};
use crate::dataplane::{Dataplane, MapError};
use crate::model::{Name, RateLimit, RateLimits};

/// Returns the flags of a service with these limits.
pub(super) const fn flags(limits: &RateLimits) -> u32 {
    let mut flags = 0;
    if limits.of_sources() {
        flags |= Service::SOURCE_RATES;
    }
    if limits.of_service() {
        flags |= Service::RATES;
    }
    if limits.half_open.is_some() {
        flags |= Service::HALF_OPEN_RATE;
    }
    flags
}

fn stored(limits: &RateLimits, hz: u64) -> Rates {
    let rate = |limit: Option<RateLimit>| {
        limit.map_or(Rate::default(), |limit| {
            Rate::new(limit.per_second, limit.burst, hz)
        })
    };
    Rates {
        source_packets: rate(limits.source_packets),
        source_new_flows: rate(limits.source_new_flows),
        packets: rate(limits.packets),
        new_flows: rate(limits.new_flows),
        half_open: rate(limits.half_open),
    }
}

impl<D: Dataplane> Engine<D> {
    /// Stores the rates of a declared service.
    pub(super) fn store_rates(&mut self, name: &Name, slot: u32) -> Result<(), EngineError> {
        let wanted = self.wanted_rates(name)?;
        if self.dataplane.rates(slot)? != wanted {
            self.dataplane.set_rates(slot, &wanted)?;
        }
        Ok(())
    }

    fn wanted_rates(&self, name: &Name) -> Result<Rates, MapError> {
        let service = self.desired.services.get(name);
        let limits = service.map_or(RateLimits::default(), |service| service.rates);
        if limits == RateLimits::default() {
            // The clock need not be known.
            return Ok(Rates::default());
        }
        Ok(stored(&limits, self.dataplane.clock()?.hz))
    }

    /// Compares the rates of the services that are served as they are declared.
    pub(super) fn audit_rates(
        &self,
        compare: &mut dyn FnMut(bool, &dyn Fn() -> String),
    ) -> Result<(), MapError> {
        for (name, service) in &self.installed {
            let declared = self.desired.services.get(name);
            if declared.is_none_or(|declared| flags(&declared.rates) & !service.flags != 0) {
                continue;
            }
            let (found, wanted) = (
                self.dataplane.rates(service.slot)?,
                self.wanted_rates(name)?,
            );
            compare(found == wanted, &|| {
                format!("service \"{name}\", rates: found {found:?}, expected {wanted:?}")
            });
        }
        Ok(())
    }
}
