//! Fragments: which backend the later ones of a datagram go to.
//!
//! Only the first fragment has ports. It is balanced as a whole packet is, and leaves an entry by which
//! the others follow it, whichever CPU they come to.

/// Key of an IPv4 datagram (RFC 791 §3.2), as the fields lie in the header.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, bytemuck::Pod, bytemuck::Zeroable)]
pub struct FragmentKey4 {
    /// The client's address.
    pub src: [u8; 4],
    /// The virtual address.
    pub dst: [u8; 4],
    /// The identification, network byte order.
    pub id: [u8; 2],
    /// The IP protocol number.
    pub proto: u8,
    /// Not used, zero: keys are whole 64-bit words, since LLVM copies them as such and the verifier wants
    /// those aligned.
    pub _pad: [u8; 5],
}

/// Key of an IPv6 datagram (RFC 8200 §4.5). What follows the fragment header is no part of it: later
/// fragments may say otherwise than the first.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, bytemuck::Pod, bytemuck::Zeroable)]
pub struct FragmentKey6 {
    /// The client's address.
    pub src: [u8; 16],
    /// The virtual address.
    pub dst: [u8; 16],
    /// The identification, network byte order.
    pub id: [u8; 4],
    /// Not used, zero.
    pub _pad: [u8; 4],
}

/// A value of the fragment tables.
#[repr(C, align(8))]
#[derive(Clone, Copy, Debug, PartialEq, Eq, bytemuck::Pod, bytemuck::Zeroable)]
pub struct Fragment {
    /// The backend slot.
    pub backend: u32,
    /// The generation of the backend that the first fragment went to.
    pub generation: u32,
    /// The service's slot.
    pub service: u32,
    /// The flow's entropy: all fragments reach the same receive queue.
    pub entropy: u32,
    /// When the first fragment came: the low 32 bits of the kernel's jiffies.
    pub since: u32,
    /// For how many jiffies the entry holds.
    pub lasts: u32,
}

impl Fragment {
    /// Returns whether the entry still holds.
    #[inline(always)]
    pub const fn holds(&self, now: u32) -> bool {
        now.wrapping_sub(self.since) < self.lasts
    }
}

const _: () = assert!(size_of::<FragmentKey4>() == 16);
const _: () = assert!(size_of::<FragmentKey6>() == 40);
const _: () = assert!(size_of::<Fragment>() == 24);

#[cfg(test)]
mod tests {
    use super::*;
    use bytemuck::Zeroable as _;

    #[test]
    fn an_entry_holds_from_its_first_jiffy_to_its_last_also_across_their_wrap() {
        for since in [0, 1000, u32::MAX, u32::MAX - 10] {
            let entry = Fragment {
                since,
                lasts: 30,
                ..Fragment::zeroed()
            };
            assert!(entry.holds(since));
            assert!(entry.holds(since.wrapping_add(29)));
            assert!(!entry.holds(since.wrapping_add(30)));
            assert!(!entry.holds(since.wrapping_add(1 << 31)));
            assert!(!entry.holds(since.wrapping_sub(1)));
        }
        assert!(!Fragment::zeroed().holds(0), "nothing lasts for no time");
    }
}
