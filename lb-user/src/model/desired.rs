use std::collections::BTreeMap;
use std::net::{Ipv4Addr, Ipv6Addr};

use super::{Fragments, Guard, Icmp, Name, Service};

/// In which mode the XDP program is attached to an interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum AttachMode {
    /// In the driver.
    Native,
    /// In the kernel's generic path, behind the allocation of a socket buffer. Works everywhere,
    /// and costs several times as much for each packet.
    Generic,
    /// Native, or generic if the driver can't.
    Auto,
}

impl AttachMode {
    /// Returns the mode's name.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Native => "native",
            Self::Generic => "generic",
            Self::Auto => "auto",
        }
    }
}

/// An interface that the program is attached to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Interface {
    /// How it is attached.
    pub mode: AttachMode,
}

/// The source addresses of outer headers. A prefix shorter than the address is filled up with
/// bits of the flow's hash, so that receivers spread flows over their queues.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct EncapSource {
    /// The IPv4 source and its prefix length, 8 ..= 32. Without it: the interface's own address.
    pub v4: Option<(Ipv4Addr, u8)>,
    /// The IPv6 source and its prefix length, 32 ..= 128. Only the last 32 bits are ever filled.
    pub v6: Option<(Ipv6Addr, u8)>,
}

/// Sizes of the kernel's maps, fixed while the pinned maps live.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Services, IPv4 and IPv6 each.
    pub services: u32,
    /// Backends of all services together.
    pub backends: u32,
    /// Rows of all rings together: a power of two.
    pub rows: u32,
    /// Entries of a table of half-open flows; there is one for IPv4 and one for IPv6.
    pub half_open_flows: u32,
    /// Entries of a table of confirmed flows.
    pub confirmed_flows: u32,
    /// Entries of a table of kept flows.
    pub kept_flows: u32,
    /// Entries of a table of first fragments; there is one for IPv4 and one for IPv6.
    pub fragments: u32,
    /// Prefixes in lists of sources; there is a trie for IPv4 and one for IPv6.
    pub guard_prefixes: u32,
    /// Places of sources whose rates are kept, on each CPU: a power of two.
    pub guard_sources: u32,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            services: 4096,
            backends: 16_384,
            rows: 1 << 22,
            half_open_flows: 1 << 18,
            confirmed_flows: 1 << 20,
            kept_flows: 1 << 20,
            fragments: 1 << 14,
            guard_prefixes: 1 << 20,
            guard_sources: 1 << 14,
        }
    }
}

/// What the operator declared: the configuration file with the changes made through the API.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Desired {
    /// The interfaces by name.
    pub interfaces: BTreeMap<String, Interface>,
    /// The source addresses of outer headers.
    pub encap_source: EncapSource,
    /// The sizes of the kernel's maps.
    pub limits: Limits,
    /// What is answered by ICMP.
    pub icmp: Icmp,
    /// How fragments are handled.
    pub fragments: Fragments,
    /// Who is let in to all services.
    pub guard: Guard,
    /// The services by name.
    pub services: BTreeMap<Name, Service>,
}
