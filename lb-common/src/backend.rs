//! Backends and the templates that reach them.

use crate::nat::Translation;

/// A backend's place in the backend map: 1 ..= 2^24 - 1. Slot 0 means "no backend".
#[repr(transparent)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct BackendSlot(u32);

impl BackendSlot {
    /// "No backend", as an empty row has it.
    pub const NONE: Self = Self(0);
    /// The largest number of a slot.
    pub const MAX: u32 = (1 << 24) - 1;

    /// Returns the slot of that number, or nothing if it is 0 or does not fit 24 bits.
    #[inline(always)]
    pub const fn new(slot: u32) -> Option<Self> {
        if slot == 0 || slot > Self::MAX {
            None
        } else {
            Some(Self(slot))
        }
    }

    /// Returns the slot in the low 24 bits of `bits`.
    #[inline(always)]
    pub(crate) const fn from_low_bits(bits: u32) -> Self {
        Self(bits & Self::MAX)
    }

    /// Returns the slot that a flow entry or a record names; higher bits are ignored.
    #[inline(always)]
    pub const fn from_stored(slot: u32) -> Self {
        Self::from_low_bits(slot)
    }

    /// Returns the number.
    #[inline(always)]
    pub const fn get(self) -> u32 {
        self.0
    }

    /// Returns whether this is "no backend".
    #[inline(always)]
    pub const fn is_none(self) -> bool {
        self.0 == 0
    }
}

/// The word of a backend that a packet reads: which of the two templates is in force, whether the
/// backend lives, and in which generation. 64 bits, so that the daemon stores it atomically.
///
/// Bit 0: template side; bit 1: alive; bit 2: accepts new flows; bit 3: suspect; bits 16..32:
/// generation. Bit 3 means nothing to packets: a daemon writes down for the next one why the
/// backend takes no new flows. Heads of daemons that did not know it have 0 there.
#[repr(transparent)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, bytemuck::Pod, bytemuck::Zeroable)]
pub struct Head(u64);

impl Head {
    const SIDE: u64 = 1;
    const ALIVE: u64 = 1 << 1;
    const ACCEPTS: u64 = 1 << 2;
    const SUSPECT: u64 = 1 << 3;
    const GENERATION_SHIFT: u32 = 16;

    /// Returns a head. `side` is 0 or 1.
    pub const fn new(side: u8, alive: bool, accepts: bool, generation: u16) -> Self {
        Self(
            (side as u64 & Self::SIDE)
                | if alive { Self::ALIVE } else { 0 }
                | if accepts { Self::ACCEPTS } else { 0 }
                | (generation as u64) << Self::GENERATION_SHIFT,
        )
    }

    /// Returns the head with or without the mark that health checks suspect the backend.
    #[must_use]
    pub const fn with_suspect(self, suspect: bool) -> Self {
        Self(self.0 & !Self::SUSPECT | if suspect { Self::SUSPECT } else { 0 })
    }

    /// Returns the head stored as `bits`.
    #[inline(always)]
    pub const fn from_bits(bits: u64) -> Self {
        Self(bits)
    }

    /// Returns the 64 bits to store.
    #[inline(always)]
    pub const fn to_bits(self) -> u64 {
        self.0
    }

    /// Returns which of the two templates is in force: 0 or 1.
    #[inline(always)]
    pub const fn side(self) -> u8 {
        (self.0 & Self::SIDE) as u8
    }

    /// Returns whether the backend lives. A *suspect* backend does.
    #[inline(always)]
    pub const fn alive(self) -> bool {
        self.0 & Self::ALIVE != 0
    }

    /// Returns whether the backend takes new flows: it is up, not draining, and has a next hop.
    #[inline(always)]
    pub const fn accepts(self) -> bool {
        self.0 & Self::ACCEPTS != 0
    }

    /// Returns whether health checks suspect the backend. Draining backends, those without weight
    /// or without a next hop take no new flows either, and are not suspect.
    pub const fn suspect(self) -> bool {
        self.0 & Self::SUSPECT != 0
    }

    /// Returns the generation: a death counts it up, so that a revived VM knows none of the flows
    /// that it had before. Wraps around.
    #[inline(always)]
    pub const fn generation(self) -> u16 {
        (self.0 >> Self::GENERATION_SHIFT) as u16
    }
}

/// How a template's bytes go onto a packet.
#[repr(u8)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TemplateKind {
    /// The backend can't be reached: its next hop is not known.
    Unreachable = 0,
    /// A new Ethernet header, nothing else.
    L2 = 1,
    /// Ethernet and an outer IPv4 header (RFC 2003; RFC 4213 for IPv6 inside).
    Ipv4 = 2,
    /// Ethernet and an outer IPv6 header (RFC 2473).
    Ipv6 = 3,
    /// Ethernet, outer IPv4 and UDP.
    Ipv4Udp = 4,
    /// Ethernet, outer IPv6 and UDP.
    Ipv6Udp = 5,
    /// Ethernet, outer IPv4, UDP and the header of an overlay: VXLAN (RFC 7348) or Geneve
    /// (RFC 8926), with an inner Ethernet header.
    Ipv4Overlay = 10,
    /// Ethernet, outer IPv6, UDP and the header of an overlay.
    Ipv6Overlay = 11,
    /// A new Ethernet header, and another IPv4 destination and port.
    NatIpv4 = 6,
    /// A new Ethernet header, and another IPv6 destination and port.
    NatIpv6 = 7,
}

impl TemplateKind {
    /// Returns the kind stored as `byte`; anything unknown is unreachable.
    #[inline(always)]
    pub const fn from_byte(byte: u8) -> Self {
        match byte {
            1 => Self::L2,
            2 => Self::Ipv4,
            3 => Self::Ipv6,
            4 => Self::Ipv4Udp,
            5 => Self::Ipv6Udp,
            10 => Self::Ipv4Overlay,
            11 => Self::Ipv6Overlay,
            6 => Self::NatIpv4,
            7 => Self::NatIpv6,
            _ => Self::Unreachable,
        }
    }

    /// Returns the length of the outer headers behind the Ethernet header, in bytes, up to and with
    /// UDP's.
    #[inline(always)]
    pub const fn outer_len(self) -> usize {
        match self {
            Self::Unreachable | Self::L2 | Self::NatIpv4 | Self::NatIpv6 => 0,
            Self::Ipv4 => 20,
            Self::Ipv6 => 40,
            Self::Ipv4Udp | Self::Ipv4Overlay => 28,
            Self::Ipv6Udp | Self::Ipv6Overlay => 48,
        }
    }
}

/// The longest Ethernet header that a template has: two VLAN tags.
pub const ETH_MAX: usize = 22;
/// How much of it stands where every packet reads: one VLAN tag.
const ETH_FRONT: usize = 18;
/// The longest outer header that a template has.
pub const OUTER_MAX: usize = 48;
/// The longest overlay part that a template has, in bytes. Ethernet, IPv4, UDP, VXLAN and the inner
/// Ethernet header are just as long together, so a copy of this length that ends where the packet
/// begins never begins before the frame.
pub const OVERLAY_MAX: usize = 64;

/// The bytes in front of a packet that bring it to a backend. See [`crate::outer`] for what is
/// patched per packet.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, bytemuck::Pod, bytemuck::Zeroable)]
pub struct Template {
    /// A [`TemplateKind`].
    pub kind: u8,
    /// Length of the Ethernet header: 14, 18 with a VLAN tag, or 22 with two.
    pub eth_len: u8,
    /// The longest IP packet that fits the way to the backend, without what is put in front of it, in
    /// bytes, host order; 0 if no limit is known.
    pub max_len: u16,
    /// The interface to send from. If the packet came in there, it goes back by `XDP_TX`.
    pub ifindex: u32,
    /// Outer IPv4: the header's one's-complement sum (16-bit words in memory order) over all that
    /// does not depend on the packet. Outer IPv6 with UDP: the same for the UDP pseudo-header and
    /// header (RFC 8200 §8.1), and the overlay part. Otherwise 0.
    pub csum: u32,
    /// The bits of the outer source address' low 32 bits that a flow's hash fills in, in memory
    /// order; 0 for a fixed source address.
    pub entropy_mask: u32,
    /// The first bytes of the Ethernet header, `eth_len` or 18: see [`Self::ethernet`].
    pub eth: [u8; ETH_FRONT],
    /// Length of the overlay part in bytes: 22 to [`OVERLAY_MAX`], or 0 if the template has none.
    pub overlay_len: u8,
    /// Not used, zero: puts `outer` on a multiple of four bytes.
    pub _pad2: u8,
    /// The outer headers, `kind.outer_len()` bytes. Lengths, checksums and entropy bits are zero.
    /// NAT: a [`Translation`], see [`Template::translation`].
    pub outer: [u8; OUTER_MAX],
    /// The last four bytes of an Ethernet header with two VLAN tags. They are so far back that all
    /// other templates stay in the cache lines that they have.
    pub eth_tail: [u8; 4],
    /// What stands between the outer headers and the packet: the overlay's header, its options and
    /// an Ethernet header. It fills the last `overlay_len` bytes; those before are zero.
    pub overlay: [u8; OVERLAY_MAX],
    /// Not used, zero: puts a backend's other template on a cache line of its own.
    pub _spare: [u8; 32],
}

impl Template {
    /// The template of a backend that can't be reached.
    pub const UNREACHABLE: Self = Self {
        kind: TemplateKind::Unreachable as u8,
        eth_len: 0,
        max_len: 0,
        ifindex: 0,
        csum: 0,
        entropy_mask: 0,
        eth: [0; ETH_FRONT],
        overlay_len: 0,
        _pad2: 0,
        outer: [0; OUTER_MAX],
        eth_tail: [0; 4],
        overlay: [0; OVERLAY_MAX],
        _spare: [0; 32],
    };

    /// Returns the template with an Ethernet header of so many bytes: 14, 18 or 22.
    #[must_use]
    pub fn with_ethernet(mut self, header: [u8; ETH_MAX], len: u8) -> Self {
        let (front, tail) = header.split_at(ETH_FRONT);
        self.eth.copy_from_slice(front);
        self.eth_tail.copy_from_slice(tail);
        self.eth_len = len;
        self
    }

    /// Returns the Ethernet header: its first `eth_len` bytes, and zeros.
    #[must_use]
    pub fn ethernet(&self) -> [u8; ETH_MAX] {
        let mut header = [0; ETH_MAX];
        let (front, tail) = header.split_at_mut(ETH_FRONT);
        front.copy_from_slice(&self.eth);
        tail.copy_from_slice(&self.eth_tail);
        header
    }

    /// Returns how the template's bytes go onto a packet.
    #[inline(always)]
    pub const fn kind(&self) -> TemplateKind {
        TemplateKind::from_byte(self.kind)
    }

    /// Returns what a template of a NAT kind puts in place of the virtual address and port.
    #[inline(always)]
    pub const fn translation(&self) -> &Translation {
        // SAFETY: the assertions below say that it fits in there, aligned; it takes every pattern
        // of bits, and has no padding.
        unsafe { &*self.outer.as_ptr().cast() }
    }
}

/// A value of the backend map: one map lookup gives all that forwarding needs.
///
/// The daemon changes a backend's template by filling the side that is not in force and then
/// storing the head, so a packet sees the old bytes or the new, never a mix.
///
/// Laid out in cache lines, which the map's memory begins with: the head and all that a packet
/// needs of the first template are in the first line (with UDP in two), of the second in the fourth
/// (with UDP in two). Overlay parts are in lines that nobody else reads.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, bytemuck::Pod, bytemuck::Zeroable)]
pub struct Backend {
    /// A [`Head`].
    pub head: u64,
    /// The two templates; the head says which is in force.
    pub templates: [Template; 2],
    /// Not used, zero: a backend is six cache lines.
    pub _pad: [u8; 8],
}

const CACHE_LINE: usize = 64;
const _: () = assert!(size_of::<Template>() == 184);
const _: () = assert!(size_of::<Backend>() == 6 * CACHE_LINE);
const _: () = assert!(
    core::mem::offset_of!(Backend, templates) + core::mem::offset_of!(Template, outer) + 20
        <= CACHE_LINE
);
const _: () = assert!(
    (core::mem::offset_of!(Backend, templates) + size_of::<Template>()).is_multiple_of(CACHE_LINE)
);
const _: () = assert!(core::mem::offset_of!(Template, outer) % align_of::<Translation>() == 0);
const _: () = assert!(align_of::<Template>() >= align_of::<Translation>());
const _: () = assert!(OUTER_MAX >= size_of::<Translation>());

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_head_keeps_its_parts() {
        for side in [0, 1] {
            for (alive, accepts) in [(false, false), (true, false), (true, true)] {
                for generation in [0, 1, u16::MAX] {
                    let head = Head::new(side, alive, accepts, generation);
                    assert_eq!(head.side(), side);
                    assert_eq!(head.alive(), alive);
                    assert_eq!(head.accepts(), accepts);
                    assert_eq!(head.generation(), generation);
                    assert!(!head.suspect(), "as daemons of old left it");
                    let suspect = head.with_suspect(true);
                    assert!(suspect.suspect());
                    assert_eq!(suspect.with_suspect(false), head);
                }
            }
        }
        assert!(
            !Head::default().alive(),
            "fresh map memory is a dead backend"
        );
    }

    #[test]
    fn a_slot_is_never_zero_nor_wider_than_a_row_holds() {
        assert_eq!(BackendSlot::new(0), None);
        assert_eq!(BackendSlot::new(1 << 24), None);
        assert_eq!(
            BackendSlot::new(BackendSlot::MAX).map(BackendSlot::get),
            Some(0xff_ffff)
        );
    }
}
