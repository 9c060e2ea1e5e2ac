//! What the suites of NAT share: the packets on both sides of it, and a host that forwards.

use std::net::IpAddr;
use std::num::NonZeroU16;

use crate::frame::{Address, L4, Packet, ethernet};
use crate::netns::{Netns, Stay};
use crate::program::{How, Program, XDP_PASS, XDP_REDIRECT, XDP_TX, address, mac, slot};
use lb_common::row::Row;
use lb_user::dataplane::Dataplane as _;
use lb_user::model::{Forward, L4Protocol, ServicePort, Vip};

/// The next hop towards clients.
pub const ROUTER: [u8; 6] = [2, 0, 0, 0, 9, 9];
/// The Ethernet address of the interface towards clients.
pub const UP: [u8; 6] = [2, 0, 0, 0, 7, 1];
/// The port that VMs serve on.
pub const PORT: NonZeroU16 = NonZeroU16::new(8080).expect("a port");

/// Returns an address as frames have it.
pub fn wire(address: IpAddr) -> Address {
    match address {
        IpAddr::V4(address) => Address::V4(address.octets()),
        IpAddr::V6(address) => Address::V6(address.octets()),
    }
}

/// Returns an address of a frame.
pub fn ip(address: Address) -> IpAddr {
    match address {
        Address::V4(address) => address.into(),
        Address::V6(address) => address.into(),
    }
}

/// A packet of a client to the virtual address.
pub fn client(v4: bool, l4: L4, port: u16) -> Packet {
    if v4 {
        Packet::v4(l4, port)
    } else {
        Packet::v6(l4, port)
    }
}

/// The same packet as backend 1 gets it.
pub fn at_vm(packet: &Packet, port: Option<NonZeroU16>) -> Packet {
    let (from, to) = packet.ports;
    Packet {
        destination: wire(address(1, matches!(packet.source, Address::V4(_)))),
        ports: (from, port.map_or(to, NonZeroU16::get)),
        ..packet.clone()
    }
}

/// What its receiver answers.
pub fn answer(packet: &Packet) -> Packet {
    Packet {
        source: packet.destination,
        destination: packet.source,
        ports: (packet.ports.1, packet.ports.0),
        payload: vec![0xcd; 31],
        ..packet.clone()
    }
}

/// Services on port 80 of both families and protocols, whose only backend is reached by NAT.
pub fn program(how: &How) -> Program {
    let mut program = Program::default();
    for v4 in [true, false] {
        let vip = ip(client(v4, L4::Ack, 1).destination);
        for protocol in [L4Protocol::Tcp, L4Protocol::Udp] {
            let number = if v4 { 1 } else { 2 };
            let (service, _) = program.service(vip, 80, protocol, &[Row::settled(slot(number))]);
            let vip = Vip {
                address: vip,
                port: ServicePort::Exact(NonZeroU16::new(80).unwrap()),
                protocol,
            };
            program.nat_source(1, vip, service, how);
        }
        // Slots 1 and 2; at the same place of both families.
        let how = How {
            outer_v4: v4,
            ..*how
        };
        if v4 {
            program.backend(1, vip, &how);
        } else {
            program.backend_at(2, 1, vip, &how);
        }
    }
    program
}

/// How backends are reached: by NAT, on that port.
pub fn nat(port: Option<NonZeroU16>) -> How {
    How {
        port,
        ..How::new(Forward::Nat, true)
    }
}

/// A host that forwards between an interface to VMs and one to clients. `out` and `vm` are in the
/// device map.
pub struct World {
    /// The program, on that host.
    pub program: Program,
    /// The interface to VMs.
    pub vm: u32,
    /// The interface to clients.
    pub up: u32,
    /// The host.
    pub netns: Netns,
    _stay: Stay,
}

impl World {
    /// Makes it, with services whose backend serves on that port.
    pub fn new(port: Option<NonZeroU16>) -> Self {
        let netns = Netns::new("nat");
        netns.set("net/ipv4/ip_forward", "1");
        netns.set("net/ipv6/conf/all/forwarding", "1");
        for (device, address, own) in [
            ("vm", "02:00:00:00:01:fe", "1.254"),
            ("out", "02:00:00:00:07:01", "7.1"),
        ] {
            netns.ip(&format!(
                "link add {device} address {address} type veth peer name {device}-peer"
            ));
            netns.set(&format!("net/ipv6/conf/{device}/accept_dad"), "0");
            netns.ip(&format!("link set {device}-peer up"));
            netns.ip(&format!("link set {device} up"));
            netns.ip(&format!("addr add 198.18.{own}/24 dev {device}"));
            let own = own.replace('.', "::");
            netns.ip(&format!("addr add 2001:db8:{own}/64 dev {device} nodad"));
        }
        for via in ["198.18.7.2", "2001:db8:7::2"] {
            netns.ip(&format!(
                "neigh add {via} lladdr 02:00:00:00:09:09 dev out nud permanent"
            ));
        }
        for route in [
            "198.19.0.0/16 via 198.18.7.2",
            "198.19.200.0/24 via 198.18.7.3",
            "2001:db8:5::/64 via 2001:db8:7::2",
            "2001:db8:6::/64 via 2001:db8:7::3",
        ] {
            netns.ip(&format!("route add {route}"));
        }
        let stay = netns.stay();
        let (vm, up) = (netns.ifindex("vm"), netns.ifindex("out"));
        let mut program = program(&nat(port));
        program.kernel.add_device(vm).unwrap();
        program.kernel.add_device(up).unwrap();
        Self {
            program,
            vm,
            up,
            netns,
            _stay: stay,
        }
    }

    /// Sends an IP packet in by an interface. Returns the verdict, the frame, and what was counted.
    #[track_caller]
    pub fn send(&mut self, ip: &[u8], vlan: Option<u16>, ifindex: u32) -> (u32, Vec<u8>, String) {
        let frame = ethernet(mac(1), UP, vlan, ip);
        let before = self.program.traces();
        let explained = self.program.kernel.explain(&frame, ifindex).unwrap();
        assert_eq!(
            self.program.traces(),
            before,
            "an explanation leaves no trace"
        );
        let (verdict, left) = self.program.run_from(&frame, ifindex);
        assert_eq!((explained.verdict, &explained.frame), (verdict, &left));
        let counted = self.program.traces().since(&before);
        let counted: Vec<_> = counted
            .iter()
            .map(|(name, n)| format!("{name} {n}"))
            .collect();
        (verdict, left, counted.join(", "))
    }

    /// Sends what must be translated and sent to the router.
    #[track_caller]
    pub fn answered(&mut self, what: &str, ip: &[u8], expected: &[u8]) {
        for (from, vlan, verdict) in [
            (self.vm, None, XDP_REDIRECT),
            (self.vm, Some(9), XDP_REDIRECT),
            (self.up, None, XDP_TX),
        ] {
            let expected = ethernet(UP, ROUTER, None, expected);
            let found = self.send(ip, vlan, from);
            assert_eq!(found, (verdict, expected, "answer 1".to_owned()), "{what}");
        }
    }

    /// Sends what must pass, as `left`.
    #[track_caller]
    pub fn passed(&mut self, what: &str, ip: &[u8], left: &[u8], reason: &str) {
        for vlan in [None, Some(9)] {
            let found = self.send(ip, vlan, self.vm);
            let left = ethernet(mac(1), UP, vlan, left);
            assert_eq!(found, (XDP_PASS, left, format!("{reason} 1")), "{what}");
        }
    }
}

/// The same packet after a router.
pub fn hop(packet: &Packet) -> Packet {
    Packet {
        hops: packet.hops - 1,
        ..packet.clone()
    }
}
