use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::check::{Checker, SpecError};
use super::forward::{ForwardSpec, gue_port_of, overlay_of};
use super::overlay::OverlaySpec;
use crate::model::{Backend, Forward, Mac, Name, Service, ServicePort, Weight};

/// A backend of a service.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct BackendSpec {
    /// Its name within the service.
    pub name: String,
    /// Where it is reached: the VM's address, or that of the tunnel's end.
    pub address: String,
    /// Its share of new flows relative to the others, 0 to 65,535; default 100.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub weight: Option<i64>,
    /// Takes no new flows; default false.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub draining: Option<bool>,
    /// `nat`: where it listens, 1 to 65,535; default: on the service's port.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub port: Option<i64>,
    /// `l2`, `ipip`, `gue`, `vxlan`, `geneve` or `nat`; default: the service's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub forward: Option<String>,
    /// GUE's destination port; default 6080.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gue_port: Option<i64>,
    /// `vxlan` and `geneve`: the VM in its overlay. What is not said here is the service's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub overlay: Option<OverlaySpec>,
    /// The interface to send from; default: the one that the kernel's routes name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub interface: Option<String>,
    /// The Ethernet address to send to; default: what the kernel's neighbour table says.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mac: Option<String>,
}

impl BackendSpec {
    /// Checks it as a backend of `service`.
    pub fn to_model(&self, service: &Service) -> Result<(Name, Backend), Vec<SpecError>> {
        let mut check = Checker::new(format!("service \"{}\"", service.name));
        let backend = self.check(&mut check, Some(service.forward));
        if let Some((_, backend)) = &backend {
            let part = format!("backend \"{}\"", self.name);
            check.within(&part, |check| self.check_in(check, service, backend));
        }
        check.finish(backend)
    }

    /// Checks it by itself. `forward` is the service's, if that was right.
    pub(super) fn check(
        &self,
        check: &mut Checker,
        forward: Option<Forward>,
    ) -> Option<(Name, Backend)> {
        check.within(&format!("backend \"{}\"", self.name), |check| {
            let name = check.parse("name", &self.name);
            let address = check.address("address", &self.address);
            let weight = match self.weight {
                Some(weight) => check
                    .number("weight", weight, 0..=u16::MAX)
                    .map(Weight::new),
                None => Some(Weight::DEFAULT),
            };
            let own = ForwardSpec {
                forward: self.forward.as_deref(),
                gue_port: self.gue_port,
                overlay: self.overlay.as_ref(),
            };
            let forward = forward.and_then(|forward| own.of_backend(check, forward));
            let port = match self.port {
                Some(port) => check.port("port", port).map(Some),
                None => Some(None),
            };
            let mac = match &self.mac {
                Some(mac) => check.parse::<Mac>("mac", mac).map(Some),
                None => Some(None),
            };
            Some((
                name?,
                Backend {
                    address: address?,
                    weight: weight?,
                    draining: self.draining.unwrap_or(false),
                    forward: forward?,
                    port: port?,
                    interface: self.interface.clone(),
                    mac: mac?,
                },
            ))
        })
    }

    /// Checks it against its service and the other backends.
    pub(super) fn check_in(&self, check: &mut Checker, service: &Service, backend: &Backend) {
        if matches!(backend.forward, Forward::L2 | Forward::Nat)
            && backend.address.is_ipv4() != service.vip.address.is_ipv4()
        {
            check.error(
                "address",
                format!(
                    "{} and the service's {} are of different families, which \"{forward}\" can't bridge: allowed is the same family, or a forward other than \"l2\" and \"nat\"",
                    backend.address,
                    service.vip.address,
                    forward = backend.forward.as_str()
                ),
            );
        }
        match (backend.port, backend.forward, service.vip.port) {
            (Some(_), Forward::Nat, ServicePort::Exact(_)) | (None, _, _) => {}
            (Some(port), Forward::Nat, ServicePort::Any) => check.error(
                "port",
                format!("{port}: a service on any port keeps each packet's port: allowed is no port"),
            ),
            (Some(port), Forward::L2 | Forward::Ipip | Forward::Gue(_) | Forward::Overlay(_), _) => check.error(
                "port",
                format!("{port} is only allowed with forward \"nat\", the others keep the service's port"),
            ),
        }
        let twin = service.backends.iter().find(|(name, other)| {
            name.as_str() != self.name
                && (other.address, other.port, other.forward, &other.interface)
                    == (
                        backend.address,
                        backend.port,
                        backend.forward,
                        &backend.interface,
                    )
        });
        if let Some((twin, _)) = twin {
            check.error(
                "address",
                format!(
                    "{} is the address of backend \"{twin}\" already",
                    backend.address
                ),
            );
        }
    }
}

impl BackendSpec {
    /// Writes a backend of a service that forwards by `forward`.
    pub fn from_model(name: &Name, backend: &Backend, forward: Forward) -> Self {
        let own = (backend.forward != forward).then_some(backend.forward);
        Self {
            name: name.to_string(),
            address: backend.address.to_string(),
            weight: Some(backend.weight.get().into()),
            draining: backend.draining.then_some(true),
            port: backend.port.map(|port| port.get().into()),
            forward: own.map(|forward| forward.as_str().to_owned()),
            gue_port: own.and_then(gue_port_of),
            overlay: own.and_then(overlay_of),
            interface: backend.interface.clone(),
            mac: backend.mac.map(|mac| mac.to_string()),
        }
    }
}
