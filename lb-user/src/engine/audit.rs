use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use lb_common::backend::Head;
use lb_common::service::VIP_FILTER_LEN;

use super::{Engine, EngineError};
use crate::dataplane::Dataplane;

/// One map entry that is not what the daemon put there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Discrepancy(String);

impl fmt::Display for Discrepancy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

impl<D: Dataplane> Engine<D> {
    /// Compares the maps with what the daemon put there, entry by entry. Returns what differs, and
    /// how many entries were compared.
    pub fn audit(&self) -> Result<(Vec<Discrepancy>, usize), EngineError> {
        let mut differences = Vec::new();
        let mut compared = 0;
        let mut compare = |same: bool, text: &dyn Fn() -> String| {
            compared += 1;
            if !same {
                differences.push(Discrepancy(text()));
            }
        };
        let services = self.dataplane.services()?;
        for (vip, found) in &services {
            let expected = self.installed.values().find(|service| service.vip == *vip);
            let same = expected.is_some_and(|service| service.value() == *found);
            compare(same, &|| match expected {
                Some(service) => format!(
                    "service {vip}: found {found:?}, expected {:?}",
                    service.value()
                ),
                None => format!("service {vip}: found, but not declared"),
            });
        }
        for (name, service) in &self.installed {
            if !services.iter().any(|(vip, _)| *vip == service.vip) {
                compare(false, &|| {
                    format!("service \"{name}\" {}: missing", service.vip)
                });
            }
            for (index, row) in (service.segment.base..).zip(service.ring.rows()) {
                let found = self.dataplane.row(index)?;
                compare(found == *row, &|| {
                    format!("service \"{name}\", row {index}: found {found:?}, expected {row:?}")
                });
            }
            for (backend, installed) in &service.backends {
                let found = self.dataplane.backend(installed.slot)?;
                let head = Head::from_bits(found.head);
                let path = || format!("service \"{name}\", backend \"{backend}\"");
                compare(head == installed.head, &|| {
                    format!("{}: found {head:?}, expected {:?}", path(), installed.head)
                });
                let template = found.templates.get(usize::from(installed.head.side()));
                compare(template == Some(&installed.template), &|| {
                    format!("{}: the template in force is another", path())
                });
            }
        }
        let found: BTreeMap<_, _> = self.dataplane.nat_sources()?.into_iter().collect();
        let expected = self.wanted_nat_sources();
        let all: BTreeSet<_> = found.keys().chain(expected.keys()).collect();
        for at in all {
            let (found, expected) = (found.get(at), expected.get(at));
            compare(found == expected, &|| {
                format!("NAT source {at}: found {found:?}, expected {expected:?}")
            });
        }
        let filter = self.expected_filter();
        for index in 0..VIP_FILTER_LEN {
            let found = self.dataplane.vip_filter(index)?;
            let expected = filter.get(&index).copied().unwrap_or(0);
            compare(found == expected, &|| {
                format!("VIP filter entry {index}: found {found}, expected {expected}")
            });
        }
        let (found, expected) = (self.dataplane.addresses()?, self.expected_addresses());
        for address in found.union(&expected) {
            let (found, expected) = (found.contains(address), expected.contains(address));
            compare(found == expected, &|| {
                format!("address {address}: found {found}, expected {expected}")
            });
        }
        let (found, expected) = (self.dataplane.settings()?, self.settings);
        compare(found == expected, &|| {
            format!("settings: found {found:?}, expected {expected:?}")
        });
        self.audit_lists(&mut compare)?;
        self.audit_rates(&mut compare)?;
        Ok((differences, compared))
    }
}
