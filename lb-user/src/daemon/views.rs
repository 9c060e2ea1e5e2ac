use lb_common::stats::Reason;
use std::num::NonZeroU16;

use super::Daemon;
use super::interfaces::note;
use crate::api::{BackendView, FragmentsView, IcmpView, InterfaceView, ServiceView, Stats, Status};
use crate::dataplane::Dataplane as _;
use crate::engine::{BackendStatus, EngineError, ServiceStatus};
use crate::model::{Fragments, Icmp, Name, ServicePort};
use crate::plan::BackendState;
use crate::spec::{NumberOrText, show_duration};

impl Daemon {
    pub(super) fn status(&self) -> Result<Status, EngineError> {
        Ok(Status {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            pid: std::process::id(),
            config: self.config_path.display().to_string(),
            interfaces: self.interface_views(),
            icmp: icmp_view(&self.engine.desired().icmp),
            fragments: fragments_view(&self.engine.desired().fragments),
            services: self.service_views()?,
            overrides: [self.overrides.lines(), self.lists.lines()].concat(),
            ineffective: self.ineffective.clone(),
        })
    }

    pub(super) fn stats(&self) -> Result<Stats, EngineError> {
        let mut reasons = std::collections::BTreeMap::new();
        // What is sent is counted by its service and backend only: a packet pays for no more.
        let unsent = |reason: &Reason| !matches!(reason, Reason::Sent | Reason::Redirected);
        for reason in Reason::ALL.into_iter().filter(unsent) {
            let count = self.engine.dataplane().reason(reason)?;
            reasons.insert(reason.as_str().to_owned(), count);
        }
        Ok(Stats {
            reasons,
            services: self.service_views()?,
        })
    }

    fn interface_views(&self) -> Vec<InterfaceView> {
        let interfaces = self.engine.desired().interfaces.iter();
        interfaces
            .map(|(name, interface)| {
                let attached = self.interfaces.get(name);
                InterfaceView {
                    name: name.clone(),
                    mode: interface.mode.as_str().to_owned(),
                    attached: attached.is_some_and(Result::is_ok),
                    note: match attached {
                        Some(Ok(attached)) => note(attached),
                        Some(Err(reason)) => reason.clone(),
                        None => String::new(),
                    },
                }
            })
            .collect()
    }

    fn service_views(&self) -> Result<Vec<ServiceView>, EngineError> {
        Ok(self.engine.status()?.iter().map(service_view).collect())
    }
}

fn icmp_view(icmp: &Icmp) -> IcmpView {
    IcmpView {
        echo: icmp.echo,
        echo_rate: icmp.echo_rate,
        too_big_rate: icmp.too_big_rate,
    }
}

fn fragments_view(fragments: &Fragments) -> FragmentsView {
    let unknown = if fragments.drop_unknown {
        "drop"
    } else {
        "pass"
    };
    FragmentsView {
        unknown: unknown.to_owned(),
        timeout: show_duration(fragments.timeout),
    }
}

fn service_view(status: &ServiceStatus) -> ServiceView {
    let service = &status.service;
    let up = status
        .backends
        .values()
        .any(|backend| backend.state == BackendState::Up);
    let state = match (status.installed, up) {
        (false, _) => "waiting",
        (true, true) => "serving",
        (true, false) if status.backends.is_empty() => "empty",
        (true, false) => "fail-open",
    };
    ServiceView {
        name: service.name.to_string(),
        address: service.vip.address.to_string(),
        port: match service.vip.port {
            ServicePort::Any => NumberOrText::Text("any".to_owned()),
            ServicePort::Exact(port) => NumberOrText::Number(port.get().into()),
        },
        protocol: service.vip.protocol.as_str().to_owned(),
        forward: service.forward.as_str().to_owned(),
        state: state.to_owned(),
        rows: status.rows as u64,
        unsettled_rows: status.unsettled as u64,
        lookup_rows: status.lookups as u64,
        packets: status.stats.packets,
        bytes: status.stats.bytes,
        new_flows: status.stats.new_flows,
        dropped: status.stats.dropped,
        refused: status.stats.refused,
        backends: status
            .backends
            .iter()
            .map(|(name, backend)| backend_view(name, backend))
            .collect(),
    }
}

fn backend_view(name: &Name, status: &BackendStatus) -> BackendView {
    let backend = status.backend.as_ref();
    BackendView {
        name: name.to_string(),
        address: backend.map(|backend| backend.address.to_string()),
        port: backend.and_then(|backend| backend.port.map(NonZeroU16::get)),
        weight: backend.map_or(0, |backend| backend.weight.get()),
        state: status.state.as_str().to_owned(),
        why: status.why.clone(),
        rows: status.rows.into(),
        tracked_flows: status.flows,
        packets: status.stats.packets,
        bytes: status.stats.bytes,
        new_flows: status.stats.new_flows,
    }
}
