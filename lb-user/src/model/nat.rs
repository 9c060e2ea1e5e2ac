use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;

use super::{Backend, Forward, L4Protocol, Name, Service, ServicePort, Vip};

impl Backend {
    /// Returns where a service's packets arrive at this backend by NAT, which is where their
    /// answers come from.
    pub fn translated(&self, vip: &Vip) -> Vip {
        Vip {
            address: self.address,
            port: self.port.map_or(vip.port, ServicePort::Exact),
            protocol: vip.protocol,
        }
    }
}

/// A VM's address and port from which answers could not be told: nothing is remembered of a flow,
/// so all that comes from there must belong to one service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ambiguity {
    /// The service at fault: the later one.
    pub service: Name,
    /// Its backend.
    pub backend: Name,
    at: Vip,
    other: Other,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Other {
    /// Another service has packets translated to there.
    Backend { service: Name, backend: Name },
    /// Another service has it as its own.
    Vip { service: Name },
}

impl fmt::Display for Ambiguity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let at = self.at;
        match &self.other {
            Other::Backend { service, backend } => write!(
                f,
                "{at} is backend \"{backend}\" of service \"{service}\" by \"nat\" already, and its answers could not be told apart: allowed is another port of the VM, or another forward"
            ),
            Other::Vip { service } => write!(
                f,
                "{at} is served by service \"{service}\", and \"nat\" would change what it sends: allowed is another address or port of the VM, or another forward"
            ),
        }
    }
}

/// Returns what is ambiguous in these services.
pub fn ambiguities<'a>(services: impl IntoIterator<Item = &'a Service>) -> Vec<Ambiguity> {
    type Place = (IpAddr, L4Protocol);
    let services: Vec<&Service> = services.into_iter().collect();
    let mut vips: BTreeMap<Place, Vec<&Service>> = BTreeMap::new();
    for service in &services {
        let place = (service.vip.address, service.vip.protocol);
        vips.entry(place).or_default().push(service);
    }
    let mut taken: BTreeMap<Place, Vec<(Vip, &Service, &Name)>> = BTreeMap::new();
    let mut found = Vec::new();
    for service in services {
        let backends = service.backends.iter();
        for (name, backend) in backends.filter(|(_, b)| b.forward == Forward::Nat) {
            let at = backend.translated(&service.vip);
            let place = (at.address, at.protocol);
            let mut ambiguous = |other| {
                found.push(Ambiguity {
                    service: service.name.clone(),
                    backend: name.clone(),
                    at,
                    other,
                });
            };
            let own = vips.get(&place).into_iter().flatten();
            for other in own.filter(|other| overlap(at.port, other.vip.port)) {
                let service = other.name.clone();
                ambiguous(Other::Vip { service });
            }
            let there = taken.entry(place).or_default();
            for (other_at, other, backend) in there.iter() {
                if overlap(at.port, other_at.port)
                    && !agree((at, service.vip), (*other_at, other.vip))
                {
                    ambiguous(Other::Backend {
                        service: other.name.clone(),
                        backend: (*backend).clone(),
                    });
                }
            }
            there.push((at, service, name));
        }
    }
    found
}

fn overlap(one: ServicePort, other: ServicePort) -> bool {
    one == other || one == ServicePort::Any || other == ServicePort::Any
}

/// Returns whether two overlapping places of VMs have their answers come from the same address and
/// port: where one of them is for any port, which stays, so must that of the other.
fn agree((at, vip): (Vip, Vip), (other_at, other_vip): (Vip, Vip)) -> bool {
    let kept = at.port == vip.port && other_at.port == other_vip.port;
    vip.address == other_vip.address && (kept || vip.port == other_vip.port)
}

#[cfg(test)]
mod tests {
    use std::num::NonZeroU16;
    use std::time::Duration;

    use super::*;
    use crate::model::{Guard, RateLimits, Weight};

    fn port(port: u16) -> ServicePort {
        NonZeroU16::new(port).map_or(ServicePort::Any, ServicePort::Exact)
    }

    /// A service of one backend, `vm`.
    fn service(name: &str, vip: (&str, u16), to: (&str, u16), forward: Forward) -> Service {
        let backend = Backend {
            address: to.0.parse().unwrap(),
            weight: Weight::DEFAULT,
            draining: false,
            forward,
            port: NonZeroU16::new(to.1),
            interface: None,
            mac: None,
        };
        Service {
            name: name.parse().unwrap(),
            vip: Vip {
                address: vip.0.parse().unwrap(),
                port: port(vip.1),
                protocol: L4Protocol::Tcp,
            },
            forward,
            idle_timeout: Duration::from_secs(60),
            health: None,
            guard: Guard::default(),
            rates: RateLimits::default(),
            backends: BTreeMap::from([("vm".parse().unwrap(), backend)]),
        }
    }

    const A: &str = "198.18.9.10";
    const B: &str = "198.18.9.11";
    const VM: &str = "198.18.1.1";

    #[test]
    fn what_comes_from_a_vm_belongs_to_one_service() {
        let nat = |name, vip, to| service(name, vip, to, Forward::Nat);
        let udp = |mut service: Service| {
            service.vip.protocol = L4Protocol::Udp;
            service
        };
        let already = "is backend \"vm\" of service \"one\" by \"nat\" already";
        let served = "is served by service \"two\"";
        let cases = [
            (
                "two ports of a VM",
                nat("one", (A, 80), (VM, 0)),
                nat("two", (A, 443), (VM, 0)),
                None,
            ),
            (
                "two protocols",
                nat("one", (A, 80), (VM, 0)),
                udp(nat("two", (B, 80), (VM, 0))),
                None,
            ),
            (
                "two VMs",
                nat("one", (A, 80), (VM, 0)),
                nat("two", (B, 80), ("198.18.1.2", 0)),
                None,
            ),
            (
                "the same port",
                nat("one", (A, 80), (VM, 0)),
                nat("two", (B, 80), (VM, 0)),
                Some(already),
            ),
            (
                "one port by two ways",
                nat("one", (A, 80), (VM, 8080)),
                nat("two", (A, 8080), (VM, 0)),
                Some(already),
            ),
            (
                "any port and one",
                nat("one", (A, 0), (VM, 0)),
                nat("two", (B, 80), (VM, 0)),
                Some(already),
            ),
            (
                "any port and one of the same address, where it stays",
                nat("one", (A, 0), (VM, 0)),
                nat("two", (A, 80), (VM, 0)),
                None,
            ),
            (
                "any port and one of the same address, where it changes",
                nat("one", (A, 0), (VM, 0)),
                nat("two", (A, 80), (VM, 8080)),
                Some(already),
            ),
            (
                "a VM's port that is a service",
                nat("one", (A, 80), (VM, 8080)),
                service("two", (VM, 8080), ("198.18.1.2", 0), Forward::L2),
                Some(served),
            ),
            (
                "a VM's port on whose address any is a service",
                nat("one", (A, 80), (VM, 8080)),
                service("two", (VM, 0), ("198.18.1.2", 0), Forward::Ipip),
                Some(served),
            ),
            (
                "another port of a service's address",
                nat("one", (A, 80), (VM, 8080)),
                service("two", (VM, 80), ("198.18.1.2", 0), Forward::L2),
                None,
            ),
            (
                "a VM that another service reaches otherwise",
                nat("one", (A, 80), (VM, 0)),
                service("two", (B, 80), (VM, 0), Forward::L2),
                None,
            ),
        ];
        for (case, one, two, expected) in cases {
            let found = ambiguities([&one, &two]);
            let texts: Vec<String> = found.iter().map(ToString::to_string).collect();
            match expected {
                None => assert_eq!(texts, Vec::<String>::new(), "{case}"),
                Some(expected) => {
                    assert_eq!(texts.len(), 1, "{case}: {texts:?}");
                    assert!(texts[0].contains(expected), "{case}: {}", texts[0]);
                }
            }
        }
    }
}
