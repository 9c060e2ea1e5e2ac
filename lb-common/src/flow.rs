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
///
/// A flow key may have an established entry (confirmed or kept) and a half-open one beside it: an
/// opening packet alone proves nothing, since the network may have brought it twice, and floods
/// come with addresses of others. To which of the two a later packet belongs its sequence number
/// tells. Who forges both an opening packet and one that follows it can't be told from a client:
/// only the VM knows what it answered.
///
/// Aligned to eight bytes: LLVM copies two words as one, and the verifier wants that one aligned.
#[repr(C, align(8))]
#[derive(Clone, Copy, Debug, PartialEq, Eq, bytemuck::Pod, bytemuck::Zeroable)]
pub struct FlowEntry {
    /// The backend slot.
    pub backend: u32,
    /// The generation of the backend that the flow belongs to.
    pub generation: u16,
    /// [`FlowEntry::CLOSED`], [`FlowEntry::CONFIRMED`], [`FlowEntry::REOPENED`].
    pub flags: u16,
    /// The flow's hash, so that a sweep finds its row without computing it again.
    pub hash: u32,
    /// The service's slot.
    pub service: u32,
    /// When the last packet was seen: the low 32 bits of the kernel's jiffies.
    pub last: u32,
    /// TCP: the sequence number of the last opening packet. 0 for a kept flow, whose opening packet
    /// nobody saw.
    pub opened: u32,
    /// TCP: the sequence number of a recent packet, stored when `last` is. Half-open: that of the
    /// opening packet before, if there was another.
    pub recent: u32,
    /// Not used, zero.
    pub _pad: u32,
}

impl FlowEntry {
    /// The client sent a FIN or RST. A new opening packet with this key is a new flow.
    pub const CLOSED: u16 = 1;
    /// A second packet was seen, but the table of confirmed flows was full, so the entry had to
    /// stay where it is. It is as good as confirmed.
    pub const CONFIRMED: u16 = 2;
    /// An opening packet with this key was seen, and made a half-open entry beside this one.
    pub const REOPENED: u16 = 4;

    /// How far behind its opening packet the first packet after it may be, in bytes: an initial
    /// window of ten jumbo segments (RFC 6928), and some.
    pub const OPENING_WINDOW: u32 = 1 << 17;
    /// How far ahead of `recent` a packet is of the same flow for sure, in bytes. A client that
    /// sends more than that in a second leaves `recent` behind; the end of its flow then goes
    /// unseen, and the entry stays for the whole idle time-out.
    const NEAR: u32 = 1 << 22;

    /// Returns whether a packet with that sequence number may be the first after this half-open
    /// entry's opening packet, or after the one before: one of them may be a stray.
    #[inline(always)]
    pub const fn is_followed_by(&self, sequence: u32) -> bool {
        follows(self.opened, sequence) || follows(self.recent, sequence)
    }

    /// Returns the sequence number of the opening packet that a packet follows.
    #[inline(always)]
    pub const fn opening_of(&self, sequence: u32) -> u32 {
        if follows(self.opened, sequence) {
            self.opened
        } else {
            self.recent
        }
    }

    /// Returns whether an opening packet with that sequence number made this half-open entry.
    #[inline(always)]
    pub const fn is_opened_by(&self, sequence: u32) -> bool {
        sequence == self.opened || sequence == self.recent
    }

    /// Returns whether a packet with that sequence number belongs to this half-open entry rather
    /// than to `earlier`, the established entry beside it. A flow's own opening packet that came
    /// once more, late, must not take it away from its entry.
    #[inline(always)]
    pub const fn wins_over(&self, earlier: &Self, sequence: u32) -> bool {
        let goes_on = sequence.wrapping_sub(earlier.recent) < Self::OPENING_WINDOW;
        self.is_followed_by(sequence) && (earlier.flags & Self::CLOSED != 0 || !goes_on)
    }

    /// Returns whether a packet with that sequence number is of this entry's flow for sure: only
    /// then may it close the flow. A stray FIN or RST passes once in 2^10 times.
    #[inline(always)]
    pub const fn is_near(&self, sequence: u32) -> bool {
        sequence.wrapping_sub(self.recent) < Self::NEAR || follows(self.opened, sequence)
    }
}

#[inline(always)]
const fn follows(opened: u32, sequence: u32) -> bool {
    sequence.wrapping_sub(opened).wrapping_sub(1) < FlowEntry::OPENING_WINDOW
}

const _: () = assert!(size_of::<FlowKey4>() == 16);
const _: () = assert!(size_of::<FlowKey6>() == 40);
const _: () = assert!(size_of::<FlowEntry>() == 32);

#[cfg(test)]
mod tests {
    use super::*;
    use bytemuck::Zeroable as _;

    #[test]
    fn sequence_numbers_are_compared_across_their_wrap() {
        for opened in [0, 7, u32::MAX, u32::MAX - 1000] {
            let entry = FlowEntry {
                opened,
                recent: opened,
                ..FlowEntry::zeroed()
            };
            for (distance, follows, near) in [
                (0, false, true),
                (1, true, true),
                (1461, true, true),
                (1 << 17, true, true),
                ((1 << 17) + 1, false, true),
                ((1 << 22) - 1, false, true),
                (1 << 22, false, false),
                (u32::MAX, false, false),
            ] {
                let sequence = opened.wrapping_add(distance);
                assert_eq!(entry.is_followed_by(sequence), follows, "{distance}");
                assert_eq!(entry.is_near(sequence), near, "{distance}");
            }
        }
    }
}
