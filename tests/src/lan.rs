//! A network of hosts: namespaces that hang on one switch, by IPv4 and IPv6.

use std::os::fd::OwnedFd;

use crate::netns::Netns;

/// A switch with hosts. Host number `n` has the addresses 198.18.0.n and 2001:db8::n (in
/// hexadecimal) on its interface `eth`.
#[derive(Debug)]
pub struct Lan {
    switch: Netns,
}

/// A host on a [`Lan`].
#[derive(Debug)]
pub struct Host {
    /// Its namespace.
    pub netns: Netns,
    /// Its number.
    pub number: u8,
    _port: Option<OwnedFd>,
}

impl Default for Lan {
    fn default() -> Self {
        Self::new()
    }
}

impl Lan {
    /// Makes a switch.
    pub fn new() -> Self {
        let switch = Netns::new("switch");
        switch.ip("link add sw type bridge");
        switch.ip("link set sw up");
        Self { switch }
    }

    /// Returns the switch's namespace.
    #[must_use]
    pub fn switch(&self) -> &Netns {
        &self.switch
    }

    /// Adds a tap for a VM. Returns its name in the switch's namespace.
    pub fn tap(&self, number: u8) -> String {
        let tap = format!("tap{number}");
        self.switch.ip(&format!("tuntap add dev {tap} mode tap"));
        self.switch.ip(&format!("link set {tap} master sw up"));
        tap
    }

    /// Adds a host.
    pub fn host(&self, tag: &str, number: u8) -> Host {
        let netns = Netns::new(tag);
        let port = format!("port{number}");
        self.switch.ip(&format!(
            "link add {port} address 02:00:00:00:01:{number:02x} type veth peer name eth address 02:00:00:00:00:{number:02x}"
        ));
        let path = netns.path();
        self.switch
            .ip(&format!("link set eth netns {}", path.display()));
        self.switch.ip(&format!("link set {port} master sw up"));
        // A veth whose peer runs XDP takes frames from it only with NAPI, which GRO turns on.
        self.switch
            .run("ethtool", &format!("-K {port} gro on tx off"));
        // XDP doesn't carry checksums to be filled in later, and neither does a wire.
        netns.run("ethtool", "-K eth gro on tx off");
        // Until its address is sure to be nobody else's, a host sends no neighbour solicitation for
        // others: packets would be lost within the first seconds (RFC 4862 §5.4).
        netns.set("net/ipv6/conf/eth/accept_dad", "0");
        netns.ip("link set eth up");
        netns.ip(&format!("addr add 198.18.0.{number}/24 dev eth"));
        netns.ip(&format!("addr add 2001:db8::{number:x}/64 dev eth nodad"));
        let ifindex = self.switch.ifindex(&port);
        let link = self.switch.enter(|| crate::pass::attach(ifindex));
        Host {
            netns,
            number,
            _port: Some(link.expect("XDP on the switch's port")),
        }
    }
}

impl Host {
    /// Takes a namespace that hangs elsewhere.
    #[must_use]
    pub fn in_netns(netns: Netns, number: u8) -> Self {
        Self {
            netns,
            number,
            _port: None,
        }
    }

    /// Returns its IPv4 address.
    pub fn v4(&self) -> String {
        format!("198.18.0.{}", self.number)
    }

    /// Returns its IPv6 address.
    pub fn v6(&self) -> String {
        format!("2001:db8::{:x}", self.number)
    }

    /// Makes it answer for a virtual address, as a backend of direct server return does: on the
    /// loopback interface, and without ever claiming it on the network.
    pub fn serve_vip(&self, vip: &str) {
        if vip.contains(':') {
            self.netns.ip(&format!("addr add {vip}/128 dev lo nodad"));
        } else {
            self.netns.ip(&format!("addr add {vip}/32 dev lo"));
            self.netns.set("net/ipv4/conf/all/arp_ignore", "1");
            self.netns.set("net/ipv4/conf/all/arp_announce", "2");
        }
    }

    /// Sends packets for a virtual address to the balancer.
    pub fn route_vip(&self, vip: &str, balancer: &Host) {
        if vip.contains(':') {
            self.netns
                .ip(&format!("route add {vip}/128 via {}", balancer.v6()));
        } else {
            self.netns
                .ip(&format!("route add {vip}/32 via {}", balancer.v4()));
        }
    }
}
