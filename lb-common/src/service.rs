//! Services: what a destination address, port and protocol mean.

/// Key of an IPv4 service. Eight bytes: the kernel hashes and compares it as one word.
#[repr(C)]
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, bytemuck::Pod, bytemuck::Zeroable,
)]
pub struct ServiceKey4 {
    /// The virtual address, as it lies in a header.
    pub vip: [u8; 4],
    /// The port in network byte order; 0 for "any port".
    pub port: [u8; 2],
    /// The IP protocol number: TCP or UDP.
    pub proto: u8,
    /// Not used, zero.
    pub _pad: u8,
}

/// Key of an IPv6 service.
#[repr(C)]
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, bytemuck::Pod, bytemuck::Zeroable,
)]
pub struct ServiceKey6 {
    /// The virtual address, as it lies in a header.
    pub vip: [u8; 16],
    /// The port in network byte order; 0 for "any port".
    pub port: [u8; 2],
    /// The IP protocol number: TCP or UDP.
    pub proto: u8,
    /// Not used, zero.
    pub _pad: u8,
}

/// A value of the service maps.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, bytemuck::Pod, bytemuck::Zeroable)]
pub struct Service {
    /// Index of the service's first row in the ring map.
    pub ring_base: u32,
    /// Number of its rows, minus one. The number is a power of two.
    pub ring_mask: u32,
    /// Its place in the service statistics.
    pub slot: u32,
    /// What else packets have to go through: [`Service::LISTS`] and the like.
    pub flags: u32,
    /// The [`crate::guard::ListId`] of the service's own list of sources; 0 if it has none.
    pub guard_list: u32,
    /// Not used, zero.
    pub _pad: u32,
}

impl Service {
    /// Sources are judged by the service's list, the global one, or both.
    pub const LISTS: u32 = 1 << 8;
    /// Each source's packets are limited to a rate.
    pub const SOURCE_RATES: u32 = 1 << 9;
    /// The service's packets are limited to a rate.
    pub const RATES: u32 = 1 << 10;
    /// Opening packets that may make a half-open entry are limited to a rate.
    pub const HALF_OPEN_RATE: u32 = 1 << 11;
}

/// Number of entries of the VIP filter; a power of two.
pub const VIP_FILTER_LEN: u32 = 4096;
/// Bit of a VIP filter entry: some address and port of this entry have a service on an exact port.
pub const VIP_EXACT: u8 = 1;
/// Bit of a VIP filter entry: some address of this entry has a service on any port.
pub const VIP_ANY_PORT: u8 = 2;
/// Bit of a VIP filter entry, by port 0: some address of this entry is one of a service. It is asked
/// by packets that have no port.
pub const VIP_ADDRESS: u8 = 4;
/// Bit of a VIP filter entry: some address of this entry, with port 0, is a VM's whose answers are
/// translated.
pub const VIP_NAT_SOURCE: u8 = 8;

/// Returns the VIP filter entry of an address, from its last 32 bits in memory order, and a port in
/// memory order; 0 for "any port".
///
/// Most packets that are not for a service, on its address or not, leave the program after two
/// array reads, without a hash lookup. The filter is not keyed: who aims at an entry on purpose only
/// makes the program ask the service map, as it would without the filter.
#[inline(always)]
pub const fn vip_filter_index(low32: u32, port: u16) -> u32 {
    low32
        .wrapping_add((port as u32).wrapping_mul(0x85eb_ca6b))
        .wrapping_mul(0x9e37_79b1)
        >> 20
}

const _: () = assert!(1 << (32 - 20) == VIP_FILTER_LEN);
const _: () = assert!(size_of::<ServiceKey4>() == 8);
const _: () = assert!(size_of::<ServiceKey6>() == 20);
