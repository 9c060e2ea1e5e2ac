use std::collections::BTreeMap;
use std::net::IpAddr;

use crate::model::{Mac, VlanTag};

/// What an interface is to us.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LinkKind {
    /// An interface that frames can be sent from.
    Plain,
    /// A VLAN of another interface.
    Vlan {
        /// The interface below.
        parent: u32,
        /// Its tag. The priority is that of packets which have none of their own to the kernel.
        tag: VlanTag,
    },
    /// A bridge: frames go out of one of its ports.
    Bridge {
        /// Whether it keeps VLANs apart.
        filters: bool,
    },
    /// One that XDP can't stand in for, and why.
    Unsupported(&'static str),
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
    /// The interface that it belongs to: the bridge whose port it is, a bond, a VRF.
    pub master: Option<u32>,
}

/// An interface in a VLAN of a bridge that filters VLANs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VlanMember {
    /// Whether frames without a tag that come in by it are in this VLAN.
    pub own: bool,
    /// Whether frames of this VLAN leave by it without a tag.
    pub untagged: bool,
}

/// What a bridge knows an Ethernet address by: itself, the VLAN if it filters VLANs, the address.
pub type PortKey = (u32, Option<u16>, Mac);

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
    /// Ports of bridges by what is behind them.
    pub ports: BTreeMap<PortKey, u32>,
    /// Members of VLANs, by interface and VLAN: bridges that filter VLANs and their ports.
    pub vlans: BTreeMap<(u32, u16), VlanMember>,
}

impl Tables {
    /// Returns the interface of that name.
    pub fn link_named(&self, name: &str) -> Option<(u32, &Link)> {
        let mut links = self.links.iter();
        links
            .find(|(_, link)| link.name == name)
            .map(|(index, link)| (*index, link))
    }

    /// Returns what an interface is called, or its index if it is gone.
    pub fn name_of(&self, index: u32) -> String {
        let link = self.links.get(&index);
        link.map_or_else(|| index.to_string(), |link| link.name.clone())
    }

    /// Returns the bridge that an interface is a port of.
    pub fn bridge_of(&self, index: u32) -> Option<u32> {
        let master = self.links.get(&index)?.master?;
        let kind = self.links.get(&master)?.kind;
        matches!(kind, LinkKind::Bridge { .. }).then_some(master)
    }

    /// Returns the VLAN that frames without a tag are in which the host itself sends by a bridge.
    pub fn untagged_vlan(&self, bridge: u32) -> Option<u16> {
        let mut members = self.vlans.range((bridge, 0)..=(bridge, u16::MAX));
        let own = members.find(|(_, member)| member.own);
        own.map(|((_, vlan), _)| *vlan)
    }
}
