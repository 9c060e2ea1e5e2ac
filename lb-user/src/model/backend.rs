use std::fmt;
use std::net::IpAddr;
use std::num::NonZeroU16;
use std::str::FromStr;

use super::Overlay;

/// A backend's share of new flows, relative to the others of its service: 0 ..= 65,535.
/// Zero means no new flows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Weight(u16);

impl Weight {
    /// The weight of a backend that declares none.
    pub const DEFAULT: Self = Self(100);

    /// Returns a weight.
    pub const fn new(weight: u16) -> Self {
        Self(weight)
    }

    /// Returns the number.
    pub const fn get(self) -> u16 {
        self.0
    }
}

/// How a packet gets to a backend. Only [`Forward::Nat`] changes the packet itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Forward {
    /// Direct server return by a new Ethernet header: the backend is on a network of an interface
    /// of this host.
    L2,
    /// In an outer IP header: IPv4 or IPv6 in IPv4 or IPv6 (RFC 2003, 2473, 4213).
    Ipip,
    /// In an outer IP and UDP header: Generic UDP Encapsulation, variant 1 (the inner IP header
    /// follows the UDP header directly), to this destination port.
    Gue(NonZeroU16),
    /// In an overlay network's tunnel: VXLAN or Geneve.
    Overlay(Overlay),
    /// With the VM's address and port in place of the virtual ones, by a new Ethernet header; the
    /// VM's answers come back through this host, which puts the virtual ones into them.
    Nat,
}

impl Forward {
    /// The destination port of GUE where none is given (IANA: gue, 6080).
    pub const GUE_PORT: NonZeroU16 = NonZeroU16::new(6080).unwrap();

    /// Returns `l2`, `ipip`, `gue`, `vxlan`, `geneve` or `nat`.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::L2 => "l2",
            Self::Ipip => "ipip",
            Self::Gue(_) => "gue",
            Self::Overlay(overlay) => overlay.header.as_str(),
            Self::Nat => "nat",
        }
    }
}

impl fmt::Display for Forward {
    /// `l2`, `ipip`, `nat`, `gue(6080)`; see [`Overlay`] for the others.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::L2 | Self::Ipip | Self::Nat => f.write_str(self.as_str()),
            Self::Gue(port) => write!(f, "gue({port})"),
            Self::Overlay(overlay) => overlay.fmt(f),
        }
    }
}

/// An Ethernet address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Mac(pub [u8; 6]);

impl fmt::Display for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

/// Why a text is not a [`Mac`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "\"{0}\" is not an Ethernet address: allowed are six pairs of hexadecimal digits, as in 52:54:00:12:34:56"
)]
pub struct MacError(String);

impl FromStr for Mac {
    type Err = MacError;

    fn from_str(text: &str) -> Result<Self, MacError> {
        let parts: Vec<u8> = text
            .split(':')
            .filter(|pair| pair.len() == 2 && pair.bytes().all(|b| b.is_ascii_hexdigit()))
            .filter_map(|pair| u8::from_str_radix(pair, 16).ok())
            .collect();
        match <[u8; 6]>::try_from(parts) {
            Ok(bytes) if text.len() == 17 => Ok(Self(bytes)),
            _ => Err(MacError(text.to_owned())),
        }
    }
}

/// One VM (or host) that serves a service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Backend {
    /// Where it is reached: the address of the VM, or of the outer header's end.
    pub address: IpAddr,
    /// Its share of new flows.
    pub weight: Weight,
    /// Whether the operator is draining it: no new flows, old ones stay.
    pub draining: bool,
    /// How packets reach it.
    pub forward: Forward,
    /// Where it listens, if not on the service's port: only with [`Forward::Nat`].
    pub port: Option<NonZeroU16>,
    /// The interface to send from (a VM's tap, say) instead of the one that the kernel's routes
    /// name.
    pub interface: Option<String>,
    /// The Ethernet address to send to, instead of what the kernel's neighbour table says.
    pub mac: Option<Mac>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ethernet_addresses_read_as_they_are_written() {
        let mac: Mac = "52:54:00:aB:34:56".parse().unwrap();
        assert_eq!(mac, Mac([0x52, 0x54, 0, 0xab, 0x34, 0x56]));
        assert_eq!(mac.to_string(), "52:54:00:ab:34:56");
        for bad in [
            "",
            "52:54:00:ab:34",
            "52:54:00:ab:34:5",
            "52:54:00:ab:34:+5",
            "52:54:00:ab:34:56:78",
        ] {
            assert!(bad.parse::<Mac>().is_err(), "{bad}");
        }
    }
}
