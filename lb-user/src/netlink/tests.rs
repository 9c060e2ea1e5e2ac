use std::collections::BTreeMap;

use super::*;
use crate::model::{Mac, NextHop};

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
    }
}

/// `ens3` (2), `ens3.7` (3) over it, a bridge `br0` (4) with ports 5 and 6, and `tun0` (7).
fn tables() -> Tables {
    let known = |mac| Neighbour::Known { mac, fresh: true };
    let ip = |text: &str| text.parse().unwrap();
    let mut tun = link("tun0", LinkKind::Plain);
    tun.mac = None;
    Tables {
        links: BTreeMap::from([
            (2, link("ens3", LinkKind::Plain)),
            (3, link("ens3.7", LinkKind::Vlan { parent: 2, id: 7 })),
            (4, link("br0", LinkKind::Bridge)),
            (7, tun),
        ]),
        neighbours: BTreeMap::from([
            ((2, ip("198.18.1.1")), known(VM)),
            ((2, ip("198.18.1.254")), known(ROUTER)),
            ((2, ip("198.18.1.2")), Neighbour::Pending),
            ((2, ip("198.18.1.3")), Neighbour::Failed),
            ((3, ip("198.18.7.1")), known(VM)),
            ((4, ip("198.18.4.1")), known(VM)),
            ((4, ip("198.18.4.2")), known(ROUTER)),
        ]),
        ports: BTreeMap::from([((4, VM), 6)]),
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
        gateway: gateway.map(|gateway| gateway.parse().unwrap()),
        source: Some("198.18.1.9".parse().unwrap()),
        mtu: None,
        local: false,
    }
}

fn hop(ifindex: u32, vlan: Option<u16>, destination_mac: Mac) -> NextHop {
    NextHop {
        ifindex,
        vlan,
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
fn a_bridge_stands_for_the_port_behind_which_the_vm_is() {
    let tables = tables();
    let found = resolve(&target("198.18.4.1"), &route(4, None), &tables);
    assert_eq!(found, Ok(hop(6, None, VM)));
    let error = resolve(&target("198.18.4.2"), &route(4, None), &tables).unwrap_err();
    assert!(error.is_pending(), "{error}");
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
