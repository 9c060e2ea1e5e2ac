use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::Instant;

use super::{HealthState, Mac, Name, Vlan};

/// Names one backend of one service.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct BackendId {
    /// The service.
    pub service: Name,
    /// The backend within the service.
    pub backend: Name,
}

/// A value, and when it was seen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Seen<T> {
    /// The value.
    pub value: T,
    /// When a reader saw it.
    pub at: Instant,
}

/// How a destination is reached: what the kernel's routes and neighbours say.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NextHop {
    /// The interface that an attached program sends from: for a VLAN interface, the one below it.
    pub ifindex: u32,
    /// The VLAN tags of frames.
    pub vlan: Option<Vlan>,
    /// The interface's own Ethernet address.
    pub source_mac: Mac,
    /// The next hop's Ethernet address.
    pub destination_mac: Mac,
    /// The address that the kernel would send from: the outer source if none is configured.
    pub source_address: Option<IpAddr>,
    /// The largest IP packet that fits, in bytes.
    pub mtu: u32,
}

/// What readers saw.
#[derive(Clone, Debug, Default)]
pub struct Observed {
    /// What health checks think of the backends that are probed.
    pub health: BTreeMap<BackendId, Seen<HealthState>>,
    /// The next hops of the backends that have one.
    pub next_hops: BTreeMap<BackendId, Seen<NextHop>>,
}
