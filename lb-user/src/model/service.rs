use std::collections::BTreeMap;
use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::num::NonZeroU16;
use std::time::Duration;

use super::{Backend, Forward, Guard, HealthCheck, Name, RateLimits};

/// A transport protocol that a service can have.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum L4Protocol {
    /// TCP (RFC 9293).
    Tcp,
    /// UDP (RFC 768).
    Udp,
}

impl L4Protocol {
    /// Returns the IP protocol number.
    pub const fn number(self) -> u8 {
        match self {
            Self::Tcp => lb_common::PROTO_TCP,
            Self::Udp => lb_common::PROTO_UDP,
        }
    }

    /// Returns `tcp` or `udp`.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
        }
    }
}

/// The port of a service. An exact port wins over "any port" of the same address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ServicePort {
    /// Every port that has no service of its own.
    Any,
    /// This port.
    Exact(NonZeroU16),
}

/// What makes a service: virtual address, port, protocol. Unique within an installation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Vip {
    /// The virtual address.
    pub address: IpAddr,
    /// The port.
    pub port: ServicePort,
    /// The protocol.
    pub protocol: L4Protocol,
}

impl fmt::Display for Vip {
    /// `198.18.0.10:80/tcp`, `[2001:db8::10]:any/udp`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = match (self.port, self.address) {
            (ServicePort::Exact(port), address) => {
                format!(
                    "{}/{}",
                    SocketAddr::new(address, port.get()),
                    self.protocol.as_str()
                )
            }
            (ServicePort::Any, IpAddr::V4(address)) => {
                format!("{address}:any/{}", self.protocol.as_str())
            }
            (ServicePort::Any, IpAddr::V6(address)) => {
                format!("[{address}]:any/{}", self.protocol.as_str())
            }
        };
        f.pad(&text)
    }
}

/// A virtual IP, port and protocol, and how to serve it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Service {
    /// Its name.
    pub name: Name,
    /// Its address, port and protocol.
    pub vip: Vip,
    /// How packets reach its backends, where a backend doesn't say otherwise.
    pub forward: Forward,
    /// How long a flow may be silent and still be known. Range 1 s ..= 24 h; default 15 min for
    /// TCP, 30 s for UDP.
    pub idle_timeout: Duration,
    /// How its backends are probed; without it they count as up.
    pub health: Option<HealthCheck>,
    /// Who is let in.
    pub guard: Guard,
    /// How much of it.
    pub rates: RateLimits,
    /// The backends by name.
    pub backends: BTreeMap<Name, Backend>,
}
