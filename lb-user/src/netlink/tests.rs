use std::collections::BTreeMap;

use super::*;
use crate::model::{Mac, NextHop, TagProtocol, Vlan, VlanTag};

const ROUTER: Mac = Mac([2, 0, 0, 0, 0, 1]);
const VM: Mac = Mac([2, 0, 0, 0, 0, 2]);
const OWN: Mac = Mac([2, 0, 0, 0, 0, 9]);

fn link(name: &str, kind: LinkKind) -> Link {
    Link {
        name: name.to_owned(),
        mac: Some(OWN),
        mtu: 1500,
        up: true,
        kind,
        master: None,
    }
}

/// `ens3` (2), `ens3.7` (3) over it, a bridge `br0` (4) with the port `tap6` (6), `tun0` (7), a VLAN
/// in a VLAN (8), `br0.10` (9), and a bridge `br1` (10) that filters VLANs, with `br1.10` (11), the
/// access port `tap12` (12) and the trunk `tap13` (13).
fn tables() -> Tables {
    let known = |mac| Neighbour::Known { mac, fresh: true };
    let ip = |text: &str| text.parse().unwrap();
    let mut tun = link("tun0", LinkKind::Plain);
    tun.mac = None;
    let port = |name, master| {
        let mut port = link(name, LinkKind::Plain);
        port.master = Some(master);
        port
    };
    let bridge = |name, filters| link(name, LinkKind::Bridge { filters });
    let vlan = |name, parent, id| {
        let tag = VlanTag::customer(id);
        link(name, LinkKind::Vlan { parent, tag })
    };
    let member = |own, untagged| VlanMember { own, untagged };
    Tables {
        links: BTreeMap::from([
            (2, link("ens3", LinkKind::Plain)),
            (3, vlan("ens3.7", 2, 7)),
            (4, bridge("br0", false)),
            (6, port("tap6", 4)),
            (7, tun),
            (8, vlan("ens3.7.8", 3, 8)),
            (9, vlan("br0.10", 4, 10)),
            (10, bridge("br1", true)),
            (11, vlan("br1.10", 10, 10)),
            (12, port("tap12", 10)),
            (13, port("tap13", 10)),
        ]),
        neighbours: BTreeMap::from([
            ((2, ip("198.18.1.1")), known(VM)),
            ((2, ip("198.18.1.254")), known(ROUTER)),
            ((2, ip("198.18.1.2")), Neighbour::Pending),
            ((2, ip("198.18.1.3")), Neighbour::Failed),
            ((3, ip("198.18.7.1")), known(VM)),
            ((4, ip("198.18.4.1")), known(VM)),
            ((4, ip("198.18.4.2")), known(ROUTER)),
            ((8, ip("198.18.8.1")), known(VM)),
            ((9, ip("198.18.9.1")), known(VM)),
            ((10, ip("198.18.10.1")), known(VM)),
            ((11, ip("198.18.11.1")), known(VM)),
            ((11, ip("198.18.11.2")), known(ROUTER)),
        ]),
        ports: BTreeMap::from([
            ((4, None, VM), 6),
            ((10, Some(1), VM), 12),
            ((10, Some(10), VM), 12),
            ((10, Some(10), ROUTER), 13),
        ]),
        vlans: BTreeMap::from([
            ((10, 1), member(true, true)),
            ((10, 10), member(false, false)),
            ((12, 1), member(false, false)),
            ((12, 10), member(true, true)),
            ((13, 10), member(false, false)),
        ]),
    }
}

fn target(address: &str) -> Target {
    Target {
        address: address.parse().unwrap(),
        on_link: true,
        interface: None,
        mac: None,
    }
}

fn route(interface: u32, gateway: Option<&str>) -> Route {
    Route {
        interface,
        port: None,
        gateway: gateway.map(|gateway| gateway.parse().unwrap()),
        source: Some("198.18.1.9".parse().unwrap()),
        mtu: None,
        local: false,
    }
}

fn hop(ifindex: u32, vlan: Option<u16>, destination_mac: Mac) -> NextHop {
    NextHop {
        ifindex,
        vlan: vlan.map(Vlan::customer),
        source_mac: OWN,
        destination_mac,
        source_address: Some("198.18.1.9".parse().unwrap()),
        mtu: 1500,
    }
}

#[test]
fn a_neighbour_is_reached_directly_and_others_by_their_router() {
    let tables = tables();
    let direct = resolve(&target("198.18.1.1"), &route(2, None), &tables);
    assert_eq!(direct, Ok(hop(2, None, VM)));
    let far = Target {
        on_link: false,
        ..target("198.18.99.1")
    };
    let routed = resolve(&far, &route(2, Some("198.18.1.254")), &tables);
    assert_eq!(routed, Ok(hop(2, None, ROUTER)));
    let error = resolve(
        &target("198.18.99.1"),
        &route(2, Some("198.18.1.254")),
        &tables,
    );
    assert!(matches!(error, Err(Unresolved::ViaGateway { .. })));
}

#[test]
fn a_vlan_is_a_tag_on_the_interface_below() {
    let found = resolve(&target("198.18.7.1"), &route(3, None), &tables());
    assert_eq!(found, Ok(hop(2, Some(7), VM)));
}

#[test]
fn a_vlan_in_a_vlan_is_two_tags_and_the_lower_one_comes_first() {
    let mut tables = tables();
    let found = |tables: &Tables| {
        resolve(&target("198.18.8.1"), &route(8, None), tables).map(|hop| (hop.ifindex, hop.vlan))
    };
    let two = |outermost| {
        let inner = Some(VlanTag::customer(8));
        Ok((2, Some(Vlan { outermost, inner })))
    };
    assert_eq!(found(&tables), two(VlanTag::customer(7)));
    let tag = VlanTag {
        protocol: TagProtocol::Service,
        id: 7,
        priority: 3,
    };
    tables.links.get_mut(&3).unwrap().kind = LinkKind::Vlan { parent: 2, tag };
    assert_eq!(found(&tables), two(tag));
}

#[test]
fn a_bridge_that_filters_vlans_sees_the_outermost_tag_of_its_kind() {
    let mut tables = tables();
    let inner = VlanTag::customer(5);
    // A VLAN in the VLAN that the bridge filters by: one tag less behind an access port.
    let upper = link(
        "br1.10.5",
        LinkKind::Vlan {
            parent: 11,
            tag: inner,
        },
    );
    tables.links.insert(21, upper);
    let known = Neighbour::Known {
        mac: VM,
        fresh: true,
    };
    tables
        .neighbours
        .insert((21, "198.18.21.1".parse().unwrap()), known);
    let found = |tables: &Tables| {
        resolve(&target("198.18.21.1"), &route(21, None), tables).map(|hop| (hop.ifindex, hop.vlan))
    };
    assert_eq!(found(&tables), Ok((12, Some(Vlan::customer(5)))));
    // A provider's tag is content to it: the frame is in its own VLAN, which gets a tag here.
    let service = VlanTag {
        protocol: TagProtocol::Service,
        ..VlanTag::customer(10)
    };
    tables.links.get_mut(&21).unwrap().kind = LinkKind::Vlan {
        parent: 10,
        tag: service,
    };
    let tags = Vlan::push(Vlan::push(None, service), VlanTag::customer(1));
    assert_eq!(found(&tables), Ok((12, tags)));
}

#[test]
fn a_bridge_stands_for_the_port_behind_which_the_vm_is() {
    let tables = tables();
    let found = resolve(&target("198.18.4.1"), &route(4, None), &tables);
    assert_eq!(found, Ok(hop(6, None, VM)));
    let error = resolve(&target("198.18.4.2"), &route(4, None), &tables).unwrap_err();
    assert!(error.is_pending(), "{error}");
}

#[test]
fn a_vlan_of_a_bridge_leaves_by_the_bridges_port_with_a_tag() {
    let found = resolve(&target("198.18.9.1"), &route(9, None), &tables());
    assert_eq!(found, Ok(hop(6, Some(10), VM)), "not by the bridge itself");
}

#[test]
fn a_bridge_that_filters_vlans_decides_over_port_and_tag() {
    let tables = tables();
    let found = |address, interface| resolve(&target(address), &route(interface, None), &tables);
    assert_eq!(
        found("198.18.11.1", 11),
        Ok(hop(12, None, VM)),
        "an access port"
    );
    assert_eq!(
        found("198.18.11.2", 11),
        Ok(hop(13, Some(10), ROUTER)),
        "a trunk"
    );
    // The host's own frames without a tag are in VLAN 1, which this port sends with a tag.
    assert_eq!(found("198.18.10.1", 10), Ok(hop(12, Some(1), VM)));
}

#[test]
fn a_port_that_is_named_is_taken_instead_of_the_learned_one() {
    let tables = tables();
    let named = |interface, port| Route {
        port: Some(port),
        ..route(interface, None)
    };
    assert_eq!(tables.bridge_of(6), Some(4));
    assert_eq!(tables.bridge_of(2), None);
    let found = resolve(&target("198.18.4.2"), &named(4, 6), &tables);
    assert_eq!(found, Ok(hop(6, None, ROUTER)), "the bridge knows no port");
    let error = resolve(&target("198.18.10.1"), &named(10, 13), &tables).unwrap_err();
    assert!(error.to_string().contains("\"tap13\""), "{error}");
    assert!(!error.is_pending(), "{error}");
}

#[test]
fn interfaces_that_lie_on_each_other_too_deep_are_refused_with_the_reason() {
    let mut tables = tables();
    let tag = VlanTag::customer(9);
    let third = link("ens3.7.8.9", LinkKind::Vlan { parent: 8, tag });
    tables.links.insert(20, third);
    tables.neighbours.insert(
        (20, "198.18.20.1".parse().unwrap()),
        Neighbour::Known {
            mac: VM,
            fresh: true,
        },
    );
    let error = resolve(&target("198.18.20.1"), &route(20, None), &tables).unwrap_err();
    let text = error.to_string();
    assert!(
        text.starts_with("interface \"ens3.7\": frames would have three VLAN tags"),
        "{text}"
    );
    assert!(!error.is_pending());
    let reason = "it is elsewhere";
    tables.links.get_mut(&3).unwrap().kind = LinkKind::Unsupported(reason);
    let error = resolve(&target("198.18.7.1"), &route(3, None), &tables).unwrap_err();
    assert!(error.to_string().contains(reason), "{error}");
    tables.links.get_mut(&2).unwrap().kind = LinkKind::Vlan { parent: 2, tag };
    assert!(resolve(&target("198.18.1.1"), &route(2, None), &tables).is_err());
    tables.links.get_mut(&6).unwrap().up = false;
    let error = resolve(&target("198.18.4.1"), &route(4, None), &tables).unwrap_err();
    assert_eq!(error.to_string(), "interface \"tap6\" is down");
}

#[test]
fn what_is_missing_is_named() {
    let mut tables = tables();
    let error = |address: &str, interface: u32, tables: &Tables| {
        resolve(&target(address), &route(interface, None), tables)
            .unwrap_err()
            .to_string()
    };
    assert!(
        error("198.18.1.2", 2, &tables)
            .starts_with("asking for the Ethernet address of 198.18.1.2")
    );
    assert!(error("198.18.1.77", 2, &tables).starts_with("asking"));
    assert_eq!(
        error("198.18.1.3", 2, &tables),
        "198.18.1.3 does not answer on \"ens3\""
    );
    assert_eq!(
        error("198.18.1.1", 7, &tables),
        "interface \"tun0\" is no Ethernet interface"
    );
    tables.links.get_mut(&2).unwrap().up = false;
    assert_eq!(
        error("198.18.1.1", 2, &tables),
        "interface \"ens3\" is down"
    );
    let local = Route {
        local: true,
        ..route(2, None)
    };
    let own = resolve(&target("198.18.1.9"), &local, &tables);
    assert!(matches!(own, Err(Unresolved::Local(_))));
}

#[test]
fn a_given_ethernet_address_needs_no_neighbour() {
    let fixed = Target {
        mac: Some(ROUTER),
        ..target("198.18.1.3")
    };
    assert_eq!(
        resolve(&fixed, &route(2, None), &tables()),
        Ok(hop(2, None, ROUTER))
    );
}

#[test]
fn the_smaller_mtu_counts() {
    let narrow = Route {
        mtu: Some(1400),
        ..route(2, None)
    };
    assert_eq!(
        resolve(&target("198.18.1.1"), &narrow, &tables())
            .unwrap()
            .mtu,
        1400
    );
}
