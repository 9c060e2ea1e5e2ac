//! Questions to the kernel.

use std::net::IpAddr;

use futures_util::{StreamExt as _, TryStreamExt as _};
use netlink_packet_route::AddressFamily;
use netlink_packet_route::link::{
    AfSpecBridge, BridgeVlanInfoFlags, InfoBridge, InfoData, InfoKind, InfoVlan, LinkAttribute,
    LinkExtentMask, LinkFlags, LinkInfo, LinkLayerType, LinkMessage, VlanProtocol, VlanQosMapping,
};
use netlink_packet_route::neighbour::{
    NeighbourAddress, NeighbourAttribute, NeighbourFlags, NeighbourMessage, NeighbourState,
};
use netlink_packet_route::route::{
    RouteAddress, RouteAttribute, RouteMessage, RouteMetric, RouteType,
};
use rtnetlink::{Error, Handle};

use super::resolve::Route;
use super::tables::{Link, LinkKind, Neighbour, PortKey, Tables, VlanMember};
use crate::model::{Mac, TagProtocol, VlanTag};

/// Reads all links, neighbours and bridge ports.
pub(super) async fn tables(handle: &Handle) -> Result<Tables, Error> {
    let mut tables = Tables::default();
    let mut links = handle.link().get().execute();
    while let Some(message) = links.try_next().await? {
        if let Some(link) = link(&message) {
            tables.links.insert(message.header.index, link);
        }
    }
    let filtering = |link: &Link| link.kind == LinkKind::Bridge { filters: true };
    if tables.links.values().any(filtering) {
        read_vlans(handle, &mut tables).await?;
    }
    let mut neighbours = handle.neighbours().get().execute();
    while let Some(message) = neighbours.try_next().await? {
        put_neighbour(&mut tables, &message);
    }
    let request = handle.neighbours().get();
    let mut ports = request.set_address_family(AddressFamily::Bridge).execute();
    while let Some(message) = ports.try_next().await? {
        put_neighbour(&mut tables, &message);
    }
    Ok(tables)
}

/// Reads which VLANs bridges and their ports are in.
async fn read_vlans(handle: &Handle, tables: &mut Tables) -> Result<(), Error> {
    let request = handle.link().get();
    let request = request.set_filter_mask(AddressFamily::Bridge, vec![LinkExtentMask::Brvlan]);
    let mut links = request.execute();
    while let Some(message) = links.try_next().await? {
        let specs = message.attributes.iter().filter_map(|attribute| {
            if let LinkAttribute::AfSpecBridge(specs) = attribute {
                Some(specs)
            } else {
                None
            }
        });
        for spec in specs.flatten() {
            if let AfSpecBridge::VlanInfo(info) = spec {
                let member = VlanMember {
                    own: info.flags.contains(BridgeVlanInfoFlags::Pvid),
                    untagged: info.flags.contains(BridgeVlanInfoFlags::Untagged),
                };
                let key = (message.header.index, info.vid);
                tables.vlans.insert(key, member);
            }
        }
    }
    Ok(())
}

/// Takes over what the kernel says of a neighbour, or of what is behind a bridge's port. Returns
/// whether that is news.
pub(super) fn put_neighbour(tables: &mut Tables, message: &NeighbourMessage) -> bool {
    let ifindex = message.header.ifindex;
    if message.header.family == AddressFamily::Bridge {
        // The ports' own addresses are permanent entries: nobody is behind them.
        let own = message.header.state == NeighbourState::Permanent;
        port_key(message)
            .filter(|_| !own)
            .is_some_and(|key| tables.ports.insert(key, ifindex) != Some(ifindex))
    } else {
        neighbour(message).is_some_and(|(address, neighbour)| {
            let key = (ifindex, address);
            tables.neighbours.insert(key, neighbour) != Some(neighbour)
        })
    }
}

/// Forgets what the kernel has forgotten. Returns whether that is news.
pub(super) fn remove_neighbour(tables: &mut Tables, message: &NeighbourMessage) -> bool {
    let ifindex = message.header.ifindex;
    if message.header.family == AddressFamily::Bridge {
        let key = port_key(message).filter(|key| tables.ports.get(key) == Some(&ifindex));
        key.is_some_and(|key| tables.ports.remove(&key).is_some())
    } else {
        neighbour(message)
            .is_some_and(|(address, _)| tables.neighbours.remove(&(ifindex, address)).is_some())
    }
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
        master: None,
    };
    let mut parent = None;
    let mut elsewhere = false;
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
        } else if let LinkAttribute::LinkNetNsId(_) = attribute {
            elsewhere = true;
        } else if let LinkAttribute::Controller(index) = attribute {
            link.master = Some(*index);
        } else if let LinkAttribute::LinkInfo(found) = attribute {
            infos = found;
        }
    }
    for info in infos {
        if let LinkInfo::Kind(InfoKind::Bridge) = info {
            link.kind = LinkKind::Bridge { filters: false };
        } else if let LinkInfo::Data(InfoData::Bridge(data)) = info {
            let filters = data.contains(&InfoBridge::VlanFiltering(true));
            link.kind = LinkKind::Bridge { filters };
        } else if let (LinkInfo::Data(InfoData::Vlan(data)), Some(parent)) = (info, parent) {
            link.kind = vlan(data, parent, elsewhere).unwrap_or(link.kind);
        }
    }
    (!link.name.is_empty()).then_some(link)
}

fn vlan(data: &[InfoVlan], parent: u32, elsewhere: bool) -> Option<LinkKind> {
    let id = data.iter().find_map(|data| {
        if let InfoVlan::Id(id) = data {
            Some(*id)
        } else {
            None
        }
    })?;
    Some(if elsewhere {
        LinkKind::Unsupported("a VLAN of an interface in another network namespace")
    } else {
        let service = data.contains(&InfoVlan::Protocol(VlanProtocol::Ieee8021Ad));
        let protocol = if service {
            TagProtocol::Service
        } else {
            TagProtocol::Customer
        };
        let priority = priority(data);
        let tag = VlanTag {
            protocol,
            id,
            priority,
        };
        LinkKind::Vlan { parent, tag }
    })
}

/// Returns the priority that a VLAN gives to packets of the kernel's priority 0, which is what those
/// have that nobody gave another.
fn priority(data: &[InfoVlan]) -> u8 {
    let mappings = data.iter().filter_map(|data| {
        if let InfoVlan::EgressQos(mappings) = data {
            Some(mappings)
        } else {
            None
        }
    });
    let mut priorities = mappings.flatten().filter_map(|mapping| {
        if let VlanQosMapping::Mapping(0, priority) = mapping {
            Some((priority & 7) as u8)
        } else {
            None
        }
    });
    priorities.next().unwrap_or(0)
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

fn port_key(message: &NeighbourMessage) -> Option<PortKey> {
    let mut bridge = None;
    let mut lladdr = None;
    let mut vlan = None;
    for attribute in &message.attributes {
        if let NeighbourAttribute::Controller(index) = attribute {
            bridge = Some(*index);
        } else if let NeighbourAttribute::LinkLayerAddress(bytes) = attribute {
            lladdr = mac(bytes);
        } else if let NeighbourAttribute::Vlan(id) = attribute {
            vlan = Some(*id);
        }
    }
    Some((bridge?, vlan, lladdr?))
}

fn read_route(message: &RouteMessage) -> Option<Route> {
    let mut route = Route {
        interface: 0,
        port: None,
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
