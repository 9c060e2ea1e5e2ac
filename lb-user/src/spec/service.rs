use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::NumberOrText;
use super::backend::BackendSpec;
use super::check::{Checker, SpecError};
use super::duration::show_duration;
use super::forward::{ForwardSpec, gue_port_of, overlay_of};
use super::guard::{GuardSpec, ReadList, no_list};
use super::health::HealthSpec;
use super::overlay::OverlaySpec;
use crate::model::{L4Protocol, Name, Service, ServicePort, Vip, ambiguities};

/// A service: a virtual address, port and protocol, and who serves it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ServiceSpec {
    /// Its name.
    pub name: String,
    /// The virtual address.
    pub address: String,
    /// The port, 1 to 65,535, or `"any"`.
    pub port: NumberOrText,
    /// `tcp` or `udp`.
    pub protocol: String,
    /// `l2`, `ipip`, `gue`, `vxlan`, `geneve` or `nat`; default `l2`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub forward: Option<String>,
    /// GUE's destination port; default 6080.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gue_port: Option<i64>,
    /// `vxlan` and `geneve`: the overlay that the VMs are in.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub overlay: Option<OverlaySpec>,
    /// How long a flow may be silent and still be known, 1s to 24h; default `15m` for TCP, `30s`
    /// for UDP.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub idle_timeout: Option<String>,
    /// How its backends are probed; without it they count as up.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub health: Option<HealthSpec>,
    /// Who is let in; without it everybody is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub guard: Option<GuardSpec>,
    /// The backends. In the configuration file: `[[service.backend]]`.
    #[serde(default, alias = "backend")]
    pub backends: Vec<BackendSpec>,
}

impl ServiceSpec {
    /// Checks it, and returns everything that is wrong.
    pub fn to_model(&self) -> Result<Service, Vec<SpecError>> {
        self.to_model_with(&no_list)
    }

    /// Checks it. `read` reads the files that it names.
    pub fn to_model_with(&self, read: ReadList<'_>) -> Result<Service, Vec<SpecError>> {
        let mut check = Checker::new(format!("service \"{}\"", self.name));
        let service = self.check(&mut check, read);
        check.finish(service)
    }

    fn check(&self, check: &mut Checker, read: ReadList<'_>) -> Option<Service> {
        let name = check.parse("name", &self.name);
        let address = check.address("address", &self.address);
        if let Some(address) = address {
            check_vip(check, address);
        }
        let port = self.check_port(check);
        let protocols = [L4Protocol::Tcp, L4Protocol::Udp].map(|p| (p.as_str(), p));
        let protocol = check.word("protocol", &self.protocol, &protocols);
        let forward = ForwardSpec {
            forward: self.forward.as_deref(),
            gue_port: self.gue_port,
            overlay: self.overlay.as_ref(),
        };
        let forward = forward.of_service(check);
        let default = default_idle(protocol.unwrap_or(L4Protocol::Tcp));
        let second = Duration::from_secs(1);
        let idle_timeout = check.duration(
            "idle_timeout",
            self.idle_timeout.as_deref(),
            default,
            second..=24 * 3600 * second,
        );
        let health = match (&self.health, port) {
            (Some(health), port) => health
                .check(check, port.unwrap_or(ServicePort::Any))
                .map(Some),
            (None, _) => Some(None),
        };
        let v4 = address.map(|address| address.is_ipv4());
        let guard = self.guard.as_ref().map(|guard| {
            check.within("guard", |check| {
                (guard.check(check, v4, read), guard.check_rates(check))
            })
        });
        let (guard, rates) = guard.unwrap_or_default();
        let backends: Vec<_> = self
            .backends
            .iter()
            .map(|backend| backend.check(check, forward))
            .collect();
        let mut service = Service {
            name: name?,
            vip: Vip {
                address: address?,
                port: port?,
                protocol: protocol?,
            },
            forward: forward?,
            idle_timeout: idle_timeout?,
            health: health?,
            guard,
            rates,
            backends: BTreeMap::new(),
        };
        for (spec, backend) in self.backends.iter().zip(backends) {
            let (name, backend) = backend?;
            check.within(&format!("backend \"{name}\""), |check| {
                if service.backends.contains_key(&name) {
                    check.error(
                        "name",
                        format!("\"{name}\" is another backend's name already"),
                    );
                }
                spec.check_in(check, &service, &backend);
            });
            service.backends.insert(name, backend);
        }
        Some(service)
    }

    fn check_port(&self, check: &mut Checker) -> Option<ServicePort> {
        match &self.port {
            NumberOrText::Text(text) if text == "any" => Some(ServicePort::Any),
            NumberOrText::Number(port) => check.port("port", *port).map(ServicePort::Exact),
            NumberOrText::Text(text) => {
                check.error(
                    "port",
                    format!("\"{text}\" is not a port: allowed is 1 to 65535, or \"any\""),
                );
                None
            }
        }
    }
}

fn default_idle(protocol: L4Protocol) -> Duration {
    match protocol {
        L4Protocol::Tcp => Duration::from_secs(15 * 60),
        L4Protocol::Udp => Duration::from_secs(30),
    }
}

fn check_vip(check: &mut Checker, address: IpAddr) {
    let broadcast = matches!(address, IpAddr::V4(v4) if v4.is_broadcast());
    let what = if address.is_unspecified() {
        "the unspecified address"
    } else if address.is_multicast() {
        "a multicast address"
    } else if address.is_loopback() {
        "a loopback address"
    } else if broadcast {
        "the broadcast address"
    } else {
        return;
    };
    check.error(
        "address",
        format!("{address} is {what}: allowed is a unicast address"),
    );
}

/// Returns what two services have both and only one may have: a name, or address, port and
/// protocol, also as those of a VM behind NAT. The later one is at fault.
pub fn clashes<'a>(services: impl IntoIterator<Item = &'a Service>) -> Vec<(Name, SpecError)> {
    let services: Vec<&Service> = services.into_iter().collect();
    let mut names = BTreeMap::new();
    let mut vips: BTreeMap<Vip, &Name> = BTreeMap::new();
    let mut errors = Vec::new();
    for service in &services {
        let path = format!("service \"{}\"", service.name);
        let mut error = |field: &str, message: String| {
            let path = format!("{path}, {field}");
            errors.push((service.name.clone(), SpecError { path, message }));
        };
        if names.insert(&service.name, ()).is_some() {
            error(
                "name",
                format!("\"{}\" is another service's name already", service.name),
            );
        } else if let Some(other) = vips.insert(service.vip, &service.name) {
            error(
                "address",
                format!("{} is served by service \"{other}\" already", service.vip),
            );
        }
    }
    errors.extend(ambiguities(services).into_iter().map(|ambiguity| {
        let path = format!(
            "service \"{}\", backend \"{}\", address",
            ambiguity.service, ambiguity.backend
        );
        let message = ambiguity.to_string();
        (ambiguity.service, SpecError { path, message })
    }));
    errors
}

impl From<&Service> for ServiceSpec {
    fn from(service: &Service) -> Self {
        Self {
            name: service.name.to_string(),
            address: service.vip.address.to_string(),
            port: match service.vip.port {
                ServicePort::Any => NumberOrText::Text("any".to_owned()),
                ServicePort::Exact(port) => NumberOrText::Number(port.get().into()),
            },
            protocol: service.vip.protocol.as_str().to_owned(),
            forward: Some(service.forward.as_str().to_owned()),
            gue_port: gue_port_of(service.forward),
            overlay: overlay_of(service.forward),
            idle_timeout: Some(show_duration(service.idle_timeout)),
            health: service.health.as_ref().map(HealthSpec::from),
            guard: GuardSpec::of_service(service),
            backends: service
                .backends
                .iter()
                .map(|(name, backend)| BackendSpec::from_model(name, backend, service.forward))
                .collect(),
        }
    }
}
