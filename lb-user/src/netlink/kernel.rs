//! Questions to the kernel.

use std::net::IpAddr;

use futures_util::{StreamExt as _, TryStreamExt as _};
use netlink_packet_route::AddressFamily;
use netlink_packet_route::link::{
    InfoData, InfoKind, InfoVlan, LinkAttribute, LinkFlags, LinkInfo, LinkLayerType, LinkMessage,
};
use netlink_packet_route::neighbour::{
    NeighbourAddress, NeighbourAttribute, NeighbourFlags, NeighbourMessage, NeighbourState,
};
use netlink_packet_route::route::{
    RouteAddress, RouteAttribute, RouteMessage, RouteMetric, RouteType,
};
use rtnetlink::{Error, Handle};

use super::resolve::Route;
use super::tables::{Link, LinkKind, Neighbour, Tables};
use crate::model::Mac;

/// Reads all links, neighbours and bridge ports.
pub(super) async fn tables(handle: &Handle) -> Result<Tables, Error> {
    let mut tables = Tables::default();
    let mut links = handle.link().get().execute();
    while let Some(message) = links.try_next().await? {
        if let Some(link) = link(&message) {
            tables.links.insert(message.header.index, link);
        }
    }
    read_neighbours(handle, &mut tables).await?;
    Ok(tables)
}

/// Reads neighbours and bridge ports anew.
pub(super) async fn read_neighbours(handle: &Handle, tables: &mut Tables) -> Result<(), Error> {
    tables.neighbours.clear();
    tables.ports.clear();
    let mut neighbours = handle.neighbours().get().execute();
    while let Some(message) = neighbours.try_next().await? {
        if let Some((address, neighbour)) = neighbour(&message) {
            let key = (message.header.ifindex, address);
            tables.neighbours.insert(key, neighbour);
        }
    }
    let request = handle.neighbours().get();
    let mut ports = request.set_address_family(AddressFamily::Bridge).execute();
    while let Some(message) = ports.try_next().await? {
        if let Some(key) = bridge_entry(&message) {
            tables.ports.insert(key, message.header.ifindex);
        }
    }
    Ok(())
}

/// Asks where packets to `address` go; `interface` binds the question to one.
pub(super) async fn route(
    handle: &Handle,
    address: IpAddr,
    interface: Option<u32>,
) -> Result<Route, Error> {
    let mut message = RouteMessage::default();
    message.header.address_family = match address {
        IpAddr::V4(_) => AddressFamily::Inet,
        IpAddr::V6(_) => AddressFamily::Inet6,
    };
    message.header.destination_prefix_length = if address.is_ipv4() { 32 } else { 128 };
    let destination = RouteAttribute::Destination(RouteAddress::from(address));
    message.attributes.push(destination);
    message
        .attributes
        .extend(interface.map(RouteAttribute::Oif));
    let mut answers = handle.route().get(message).execute();
    let answer = answers.try_next().await?;
    // The end of the answer has to be read too.
    while answers.next().await.is_some() {}
    answer
        .and_then(|answer| read_route(&answer))
        .ok_or(Error::RequestFailed)
}

/// Makes the kernel find out a neighbour's Ethernet address, or make sure of it.
pub(super) async fn use_neighbour(handle: &Handle, interface: u32, address: IpAddr) {
    let request = handle.neighbours().add(interface, address);
    let request = request
        .state(NeighbourState::None)
        .flags(NeighbourFlags::Use);
    // If the interface is gone meanwhile, the next look at the tables says so.
    let _ = request.replace().execute().await;
}

fn link(message: &LinkMessage) -> Option<Link> {
    let mut link = Link {
        name: String::new(),
        mac: None,
        mtu: 0,
        up: message
            .header
            .flags
            .contains(LinkFlags::Up | LinkFlags::LowerUp),
        kind: LinkKind::Plain,
    };
    let mut parent = None;
    let mut infos: &[LinkInfo] = &[];
    for attribute in &message.attributes {
        if let LinkAttribute::IfName(name) = attribute {
            link.name.clone_from(name);
        } else if let LinkAttribute::Address(bytes) = attribute {
            let ethernet = message.header.link_layer_type == LinkLayerType::Ether;
            link.mac = mac(bytes).filter(|_| ethernet);
        } else if let LinkAttribute::Mtu(mtu) = attribute {
            link.mtu = *mtu;
        } else if let LinkAttribute::Link(index) = attribute {
            parent = Some(*index);
        } else if let LinkAttribute::LinkInfo(found) = attribute {
            infos = found;
        }
    }
    for info in infos {
        if let LinkInfo::Kind(InfoKind::Bridge) = info {
            link.kind = LinkKind::Bridge;
        } else if let (LinkInfo::Data(InfoData::Vlan(data)), Some(parent)) = (info, parent) {
            let id = data.iter().find_map(|data| {
                if let InfoVlan::Id(id) = data {
                    Some(*id)
                } else {
                    None
                }
            });
            link.kind = id.map_or(link.kind, |id| LinkKind::Vlan { parent, id });
        }
    }
    (!link.name.is_empty()).then_some(link)
}

fn neighbour(message: &NeighbourMessage) -> Option<(IpAddr, Neighbour)> {
    let mut address = None;
    let mut lladdr = None;
    for attribute in &message.attributes {
        if let NeighbourAttribute::Destination(NeighbourAddress::Inet(v4)) = attribute {
            address = Some(IpAddr::V4(*v4));
        } else if let NeighbourAttribute::Destination(NeighbourAddress::Inet6(v6)) = attribute {
            address = Some(IpAddr::V6(*v6));
        } else if let NeighbourAttribute::LinkLayerAddress(bytes) = attribute {
            lladdr = mac(bytes);
        }
    }
    let state = message.header.state;
    let fresh = matches!(
        state,
        NeighbourState::Reachable | NeighbourState::Permanent | NeighbourState::Noarp
    );
    let neighbour = match (state, lladdr) {
        (NeighbourState::Failed, _) => Neighbour::Failed,
        (NeighbourState::Incomplete | NeighbourState::None, _) | (_, None) => Neighbour::Pending,
        (_, Some(mac)) => Neighbour::Known { mac, fresh },
    };
    Some((address?, neighbour))
}

fn bridge_entry(message: &NeighbourMessage) -> Option<(u32, Mac)> {
    let mut bridge = None;
    let mut lladdr = None;
    for attribute in &message.attributes {
        if let NeighbourAttribute::Controller(index) = attribute {
            bridge = Some(*index);
        } else if let NeighbourAttribute::LinkLayerAddress(bytes) = attribute {
            lladdr = mac(bytes);
        }
    }
    // The ports' own addresses are permanent entries: nobody is behind them.
    (message.header.state != NeighbourState::Permanent)
        .then_some(())
        .and(bridge.zip(lladdr))
}

fn read_route(message: &RouteMessage) -> Option<Route> {
    let mut route = Route {
        interface: 0,
        gateway: None,
        source: None,
        mtu: None,
        local: message.header.kind == RouteType::Local,
    };
    for attribute in &message.attributes {
        if let RouteAttribute::Oif(index) = attribute {
            route.interface = *index;
        } else if let RouteAttribute::Gateway(gateway) = attribute {
            route.gateway = ip(gateway);
        } else if let RouteAttribute::PrefSource(source) = attribute {
            route.source = ip(source);
        } else if let RouteAttribute::Via(via) = attribute {
            // An IPv4 route over an IPv6 router (RFC 5549).
            route.gateway = via_address(via);
        } else if let RouteAttribute::Metrics(metrics) = attribute {
            let mtu = metrics.iter().find_map(|metric| {
                if let RouteMetric::Mtu(mtu) = metric {
                    Some(*mtu)
                } else {
                    None
                }
            });
            route.mtu = mtu.filter(|mtu| *mtu > 0);
        }
    }
    (route.interface != 0).then_some(route)
}

fn via_address(via: &netlink_packet_route::route::RouteVia) -> Option<IpAddr> {
    use netlink_packet_route::route::RouteVia;
    if let RouteVia::Inet(v4) = via {
        Some(IpAddr::V4(*v4))
    } else if let RouteVia::Inet6(v6) = via {
        Some(IpAddr::V6(*v6))
    } else {
        None
    }
}

fn ip(address: &RouteAddress) -> Option<IpAddr> {
    if let RouteAddress::Inet(v4) = address {
        Some(IpAddr::V4(*v4))
    } else if let RouteAddress::Inet6(v6) = address {
        Some(IpAddr::V6(*v6))
    } else {
        None
    }
}

fn mac(bytes: &[u8]) -> Option<Mac> {
    bytes.try_into().ok().map(Mac)
}
