//! What a packet meets: services, rings, backends, flow table entries.

use std::collections::BTreeMap;
use std::net::IpAddr;

use serde::{Deserialize, Serialize};

/// All that is in the maps before the first packet of a case.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct World {
    /// Services; the place of each is its slot.
    #[serde(default)]
    pub services: Vec<Service>,
    /// Backends.
    #[serde(default)]
    pub backends: Vec<Backend>,
    /// Flow table entries.
    #[serde(default)]
    pub entries: Vec<Entry>,
}

/// A service and its ring.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Service {
    /// The virtual address.
    pub vip: IpAddr,
    /// The port; 0 for any.
    pub port: u16,
    /// The IP protocol: 6 or 17.
    pub protocol: u8,
    /// Its rows: a power of two.
    pub ring: Vec<Row>,
}

/// A row.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Row {
    /// Who takes new flows; 0 for nobody.
    pub owner: u32,
    /// Who holds the flows that are not in the flow tables.
    pub untracked: u32,
    /// Whether these must be asked.
    pub lookup: bool,
}

/// A backend.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Backend {
    /// Its slot.
    pub slot: u32,
    /// Its address: the destination of outer headers.
    pub address: IpAddr,
    /// Whether the packets inside are IPv4.
    pub inner_v4: bool,
    /// Whether it lives.
    pub alive: bool,
    /// Whether it takes new flows.
    pub accepts: bool,
    /// Which life of it this is.
    pub generation: u16,
    /// Which of its two templates is in force.
    pub side: u8,
    /// How it is reached.
    pub way: Way,
    /// The tag control information of a VLAN tag.
    pub vlan: Option<u16>,
    /// The VLAN of a provider's tag in front of that, which has priority 3.
    #[serde(default)]
    pub around: Option<u16>,
    /// Where its packets leave.
    pub out: Out,
    /// How many bits of the outer source address are the host's own; the others are the flow's.
    /// Nothing: all.
    pub source_prefix: Option<u8>,
}

/// How a backend is reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Way {
    /// Its next hop is not known.
    Unreachable,
    /// Only the Ethernet header changes.
    L2,
    /// In an IP packet (RFC 2003, RFC 2473, RFC 4213).
    Ipip,
    /// In UDP to this port (GUE variant 1).
    Gue(u16),
}

/// Where packets leave.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Out {
    /// By the interface that they came in by.
    Back,
    /// By another one.
    Elsewhere,
    /// By one that the program may not redirect to.
    Nowhere,
}

/// What identifies a flow, in the client's direction.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Flow {
    /// The client's address.
    pub client: IpAddr,
    /// The virtual address.
    pub vip: IpAddr,
    /// The client's port.
    pub client_port: u16,
    /// The service's port.
    pub vip_port: u16,
    /// The IP protocol.
    pub protocol: u8,
}

/// A flow table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Table {
    /// An opening packet was seen.
    HalfOpen,
    /// A second packet was seen.
    Confirmed,
    /// Inserted on a miss.
    Kept,
}

/// A flow table entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// In which table it is.
    pub table: Table,
    /// Whose it is.
    pub flow: Flow,
    /// The backend's slot.
    pub backend: u32,
    /// Which life of the backend.
    pub generation: u16,
    /// The service's slot.
    pub service: u32,
    /// The client closed the flow.
    pub closed: bool,
    /// A second packet was seen.
    pub confirmed: bool,
    /// Another opening packet was seen.
    pub reopened: bool,
    /// The sequence number of the opening packet.
    pub opened: u32,
    /// That of a recent packet, or of the opening packet before.
    pub recent: u32,
    /// How long ago the last packet was seen, in the kernel's ticks.
    pub age: u32,
    /// The entry's memory is another flow's by now: it has another hash than its key.
    #[serde(default)]
    pub foreign: bool,
}

/// Counters that grew, by name.
pub type Counters = BTreeMap<String, u64>;

/// The last slot that the backend map has.
pub const LAST_SLOT: u32 = 8;

impl World {
    /// Returns the backend at a slot, if the map has that slot. One that nobody filled is dead and
    /// can't be reached.
    #[must_use]
    pub fn backend(&self, slot: u32) -> Option<Backend> {
        if slot == 0 || slot > LAST_SLOT {
            return None;
        }
        let filled = self.backends.iter().find(|backend| backend.slot == slot);
        Some(filled.cloned().unwrap_or_else(|| Backend::blank(slot)))
    }
}

impl Backend {
    /// Returns one that nobody filled.
    #[must_use]
    pub fn blank(slot: u32) -> Self {
        Self {
            slot,
            address: IpAddr::from([0; 4]),
            inner_v4: true,
            alive: false,
            accepts: false,
            generation: 0,
            side: 0,
            way: Way::Unreachable,
            vlan: None,
            around: None,
            out: Out::Nowhere,
            source_prefix: None,
        }
    }
}
