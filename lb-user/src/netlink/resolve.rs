use std::net::IpAddr;

use super::egress::Egress;
use super::tables::{Neighbour, Tables};
use crate::model::{Backend, Forward, Mac, NextHop};

/// A backend to be reached.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    /// Its address.
    pub address: IpAddr,
    /// Whether it must be on the same network: `l2` can't cross a router.
    pub on_link: bool,
    /// The interface to send from, instead of what the routes say.
    pub interface: Option<String>,
    /// The Ethernet address to send to, instead of what the neighbour table says.
    pub mac: Option<Mac>,
}

impl From<&Backend> for Target {
    fn from(backend: &Backend) -> Self {
        Self {
            address: backend.address,
            on_link: backend.forward == Forward::L2,
            interface: backend.interface.clone(),
            mac: backend.mac,
        }
    }
}

/// The kernel's answer to where a packet would go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Route {
    /// The interface.
    pub interface: u32,
    /// The port to send from if that is a bridge, instead of the one that the bridge has learned.
    pub port: Option<u32>,
    /// The router, if there is one on the way.
    pub gateway: Option<IpAddr>,
    /// The source address that the kernel would take.
    pub source: Option<IpAddr>,
    /// The route's own limit for IP packets, in bytes.
    pub mtu: Option<u32>,
    /// Whether the address is this host's own.
    pub local: bool,
}

/// Why a backend can't be reached.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unresolved {
    /// The kernel has no route.
    #[error("no route to {address}: {reason}")]
    NoRoute {
        /// The backend.
        address: IpAddr,
        /// What the kernel said.
        reason: String,
    },
    /// The address is this host's.
    #[error("{0} is an address of this host")]
    Local(IpAddr),
    /// `l2` can't cross a router.
    #[error(
        "{address} is behind the router {gateway}, which \"l2\" can't cross: use \"ipip\" or \"gue\""
    )]
    ViaGateway {
        /// The backend.
        address: IpAddr,
        /// The router.
        gateway: IpAddr,
    },
    /// The interface that was asked for isn't there.
    #[error("there is no interface \"{0}\"")]
    NoInterface(String),
    /// The interface is down.
    #[error("interface \"{0}\" is down")]
    LinkDown(String),
    /// The interface has no Ethernet address.
    #[error("interface \"{0}\" is no Ethernet interface")]
    NotEthernet(String),
    /// The kernel is asking for the neighbour's Ethernet address.
    #[error("asking for the Ethernet address of {address} on \"{link}\"")]
    Pending {
        /// The neighbour.
        address: IpAddr,
        /// The interface's name.
        link: String,
    },
    /// The neighbour does not answer.
    #[error("{address} does not answer on \"{link}\"")]
    NeighbourFailed {
        /// The neighbour.
        address: IpAddr,
        /// The interface's name.
        link: String,
    },
    /// The bridge has not seen a frame of the neighbour.
    #[error("the bridge \"{bridge}\" does not know behind which port {mac} is")]
    NoPort {
        /// The bridge's name.
        bridge: String,
        /// The neighbour's Ethernet address.
        mac: Mac,
    },
    /// Interfaces lie on each other in a way that XDP can't stand in for.
    #[error(
        "interface \"{link}\": {reason}: allowed is a NIC, a tap or a veth, a VLAN of it or a VLAN of that, a bridge, or a VLAN of a bridge"
    )]
    Unsupported {
        /// The interface's name.
        link: String,
        /// What is in the way.
        reason: &'static str,
    },
}

impl Unresolved {
    /// Returns whether the answer is still to come.
    pub const fn is_pending(&self) -> bool {
        matches!(self, Self::Pending { .. } | Self::NoPort { .. })
    }
}

/// Returns the interface and the address whose neighbour entry decides over a target.
pub fn neighbour_of(target: &Target, route: &Route) -> (u32, IpAddr) {
    (route.interface, route.gateway.unwrap_or(target.address))
}

/// Returns how a target is reached.
pub fn resolve(target: &Target, route: &Route, tables: &Tables) -> Result<NextHop, Unresolved> {
    if route.local {
        return Err(Unresolved::Local(target.address));
    }
    if let (true, Some(gateway)) = (target.on_link, route.gateway) {
        let address = target.address;
        return Err(Unresolved::ViaGateway { address, gateway });
    }
    let link = tables
        .links
        .get(&route.interface)
        .ok_or_else(|| Unresolved::NoInterface(route.interface.to_string()))?;
    if !link.up {
        return Err(Unresolved::LinkDown(link.name.clone()));
    }
    let source_mac = link
        .mac
        .ok_or_else(|| Unresolved::NotEthernet(link.name.clone()))?;
    let destination_mac = match target.mac {
        Some(mac) => mac,
        None => {
            let (_, address) = neighbour_of(target, route);
            let name = link.name.clone();
            match tables.neighbours.get(&(route.interface, address)) {
                Some(Neighbour::Known { mac, .. }) => *mac,
                Some(Neighbour::Failed) => {
                    return Err(Unresolved::NeighbourFailed {
                        address,
                        link: name,
                    });
                }
                Some(Neighbour::Pending) | None => {
                    return Err(Unresolved::Pending {
                        address,
                        link: name,
                    });
                }
            }
        }
    };
    let egress = Egress::find(tables, route.interface, route.port, destination_mac)?;
    Ok(NextHop {
        ifindex: egress.ifindex,
        vlan: egress.vlan,
        source_mac,
        destination_mac,
        source_address: route.source,
        mtu: route.mtu.map_or(egress.mtu, |mtu| mtu.min(egress.mtu)),
    })
}
