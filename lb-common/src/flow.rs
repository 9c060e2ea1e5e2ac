//! Flow keys and flow table entries.

/// Key of an IPv4 flow, in the client's direction, as the fields lie in the headers.
#[repr(C)]
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, bytemuck::Pod, bytemuck::Zeroable,
)]
pub struct FlowKey4 {
    /// The client's address.
    pub src: [u8; 4],
    /// The virtual address.
    pub dst: [u8; 4],
    /// The client's port, network byte order.
    pub src_port: [u8; 2],
    /// The service's port, network byte order.
    pub dst_port: [u8; 2],
    /// The IP protocol number.
    pub proto: u8,
    /// Not used, zero.
    pub _pad: [u8; 3],
}

/// Key of an IPv6 flow, in the client's direction.
#[repr(C)]
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, bytemuck::Pod, bytemuck::Zeroable,
)]
pub struct FlowKey6 {
    /// The client's address.
    pub src: [u8; 16],
    /// The virtual address.
    pub dst: [u8; 16],
    /// The client's port, network byte order.
    pub src_port: [u8; 2],
    /// The service's port, network byte order.
    pub dst_port: [u8; 2],
    /// The IP protocol number.
    pub proto: u8,
    /// Not used, zero.
    pub _pad: [u8; 3],
}

/// Which flow table an entry is in. They are separate so that a flood of one kind fills its own
/// table and can't push out a flow of another.
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Table {
    /// An opening packet was seen.
    HalfOpen = 0,
    /// A second packet was seen.
    Confirmed = 1,
    /// Inserted on a miss, for the row's untracked backend.
    Kept = 2,
}

impl Table {
    /// All tables, in the order of their numbers.
    pub const ALL: [Self; 3] = [Self::HalfOpen, Self::Confirmed, Self::Kept];

    /// Returns the table's name, as counters and listings show it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::HalfOpen => "half-open",
            Self::Confirmed => "confirmed",
            Self::Kept => "kept",
        }
    }
}

/// A value of a flow table.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, bytemuck::Pod, bytemuck::Zeroable)]
pub struct FlowEntry {
    /// The backend slot.
    pub backend: u32,
    /// The generation of the backend that the flow belongs to.
    pub generation: u16,
    /// [`FlowEntry::CLOSED`], [`FlowEntry::CONFIRMED`].
    pub flags: u16,
    /// When the last packet was seen: the low 32 bits of the kernel's jiffies.
    pub last: u32,
    /// The flow's hash, so that a sweep finds its row without computing it again.
    pub hash: u32,
    /// The service's slot.
    pub service: u32,
}

impl FlowEntry {
    /// The client sent a FIN or RST. A new opening packet with this key is a new flow.
    pub const CLOSED: u16 = 1;
    /// A second packet was seen, but the table of confirmed flows was full, so the entry had to
    /// stay where it is. It is as good as confirmed.
    pub const CONFIRMED: u16 = 2;
}

const _: () = assert!(size_of::<FlowKey4>() == 16);
const _: () = assert!(size_of::<FlowKey6>() == 40);
const _: () = assert!(size_of::<FlowEntry>() == 20);
