//! The way that the host's own stack would send a packet: its rules, routes and neighbours.

use aya_ebpf::helpers::bpf_fib_lookup;

use lb_ebpf::packet::{Bytes, Context};

/// `struct bpf_fib_lookup`: what a packet is, and then the way that was found.
#[repr(C, align(8))]
pub struct Route {
    family: u8,
    protocol: u8,
    /// Source and destination port, in memory order.
    ports: [u16; 2],
    /// Length of the IP packet in bytes.
    total_len: u16,
    /// Where the packet came in; then where it shall leave.
    pub ifindex: u32,
    /// IPv4: the type of service in the first byte. IPv6: traffic class and flow label.
    tos: u32,
    /// IPv4: in the first four bytes, the low ones.
    source: [u64; 2],
    destination: [u64; 2],
    /// Always zero: a VLAN is an interface of its own.
    vlan: u32,
    /// The Ethernet addresses of the interface and of the next hop.
    source_mac: [u16; 3],
    destination_mac: [u16; 3],
}

const _: () = assert!(size_of::<Route>() == 64);

/// What the host knows.
pub enum Found {
    /// The way.
    Way,
    /// The next hop, but not how to send to it.
    NoNeighbour,
    /// The way, which is too narrow for the packet.
    TooBig,
    /// This host forwards nothing.
    ForwardingOff,
    /// The packet is for this host, or for nobody.
    Nothing,
}

const AF_INET: u8 = 2;
const AF_INET6: u8 = 10;

/// `BPF_FIB_LKUP_RET_*`.
const SUCCESS: i64 = 0;
const FORWARDING_DISABLED: i64 = 5;
const UNSUPPORTED_TUNNEL: i64 = 6;
const NO_NEIGHBOUR: i64 = 7;
const FRAGMENTATION_NEEDED: i64 = 8;

impl Route {
    /// Returns a question about a packet with this IPv4 header.
    #[inline(always)]
    pub fn of_v4(header: Bytes<'_, 20>, ports: u32) -> Self {
        Self {
            family: AF_INET,
            protocol: header.get8::<9>(),
            total_len: u16::from_be(header.get16::<2>()),
            tos: u32::from_ne_bytes([header.get8::<1>(), 0, 0, 0]),
            source: [header.get32::<12>().into(), 0],
            destination: [header.get32::<16>().into(), 0],
            ..Self::with_ports(ports)
        }
    }

    /// Returns a question about a packet with this IPv6 header.
    #[inline(always)]
    pub fn of_v6(header: Bytes<'_, 40>, protocol: u8, ports: u32) -> Self {
        Self {
            family: AF_INET6,
            protocol,
            total_len: u16::from_be(header.get16::<4>()) + 40,
            tos: header.get32::<0>() & u32::from_ne_bytes([0x0f, 0xff, 0xff, 0xff]),
            source: [header.get64::<8>(), header.get64::<16>()],
            destination: [header.get64::<24>(), header.get64::<32>()],
            ..Self::with_ports(ports)
        }
    }

    #[inline(always)]
    fn with_ports(ports: u32) -> Self {
        let [a, b, c, d] = ports.to_ne_bytes();
        Self {
            family: 0,
            protocol: 0,
            ports: [u16::from_ne_bytes([a, b]), u16::from_ne_bytes([c, d])],
            total_len: 0,
            ifindex: 0,
            tos: 0,
            source: [0; 2],
            destination: [0; 2],
            vlan: 0,
            source_mac: [0; 3],
            destination_mac: [0; 3],
        }
    }

    /// Asks, for a packet that came in as the program's did.
    #[inline(always)]
    pub fn find(&mut self, ctx: &mut Context) -> Found {
        self.ifindex = ctx.ingress_ifindex();
        // SAFETY: the context is the kernel's, and the question has the layout and the size that it
        // expects.
        let result = unsafe {
            bpf_fib_lookup(
                ctx.raw().cast(),
                (&raw mut *self).cast(),
                size_of::<Self>() as i32,
                0,
            )
        };
        match result {
            SUCCESS => Found::Way,
            NO_NEIGHBOUR | UNSUPPORTED_TUNNEL => Found::NoNeighbour,
            FRAGMENTATION_NEEDED => Found::TooBig,
            FORWARDING_DISABLED => Found::ForwardingOff,
            _ => Found::Nothing,
        }
    }

    /// Writes the Ethernet header of the way that was found. `ethertype` is in memory order.
    #[inline(always)]
    pub fn write(&self, header: Bytes<'_, 14>, ethertype: u16) {
        header.set16::<0>(self.destination_mac[0]);
        header.set16::<2>(self.destination_mac[1]);
        header.set16::<4>(self.destination_mac[2]);
        header.set16::<6>(self.source_mac[0]);
        header.set16::<8>(self.source_mac[1]);
        header.set16::<10>(self.source_mac[2]);
        header.set16::<12>(ethertype);
    }
}
