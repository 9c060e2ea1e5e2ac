use std::collections::BTreeMap;
use std::net::IpAddr;

use crate::model::Mac;

/// What an interface is to us.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LinkKind {
    /// An interface that frames can be sent from.
    Plain,
    /// A VLAN of another interface.
    Vlan {
        /// The interface below.
        parent: u32,
        /// The VLAN, 1 to 4094.
        id: u16,
    },
    /// A bridge: frames go out of one of its ports.
    Bridge,
}

/// An interface.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Link {
    /// Its name.
    pub name: String,
    /// Its Ethernet address; nothing if it is no Ethernet interface.
    pub mac: Option<Mac>,
    /// The largest IP packet that fits, in bytes.
    pub mtu: u32,
    /// Whether it is up and has a carrier.
    pub up: bool,
    /// What it is to us.
    pub kind: LinkKind,
}

/// What the kernel knows of a neighbour.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Neighbour {
    /// Its address.
    Known {
        /// The address.
        mac: Mac,
        /// Whether the kernel is sure of it: it was confirmed lately, or is permanent.
        fresh: bool,
    },
    /// The kernel is asking.
    Pending,
    /// Nobody answered.
    Failed,
}

/// The kernel's tables, as far as they matter.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tables {
    /// Interfaces by index.
    pub links: BTreeMap<u32, Link>,
    /// Neighbours by interface and address.
    pub neighbours: BTreeMap<(u32, IpAddr), Neighbour>,
    /// Ports of bridges by bridge and Ethernet address.
    pub ports: BTreeMap<(u32, Mac), u32>,
}

impl Tables {
    /// Returns the interface of that name.
    pub fn link_named(&self, name: &str) -> Option<(u32, &Link)> {
        let mut links = self.links.iter();
        links
            .find(|(_, link)| link.name == name)
            .map(|(index, link)| (*index, link))
    }
}
