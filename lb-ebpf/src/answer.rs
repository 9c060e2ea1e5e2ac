//! What packets have in common that the program itself sends back to a client.

use lb_common::{rate::Rate, settings::Limited};

use lb_ebpf::packet::Frame;

use crate::maps;

/// The longest Ethernet header with tags.
pub const ETH_MAX: usize = 22;

/// Has all bits of an offset behind an Ethernet header. A function of its own takes such an offset for
/// any number: the verifier wants to see that it is none.
pub const L3_MASK: usize = 0x1f;
const _: () = assert!(ETH_MAX <= L3_MASK);

/// The time to live and hop limit of answers.
pub const HOP_LIMIT: u8 = 64;

/// Returns whether an answer may be sent now, and takes note of it unless `counts` is false.
#[inline(always)]
pub fn admitted(limited: Limited, rate: &Rate, counts: bool) -> bool {
    let Some(state) = maps::limit(limited) else {
        return false;
    };
    let next = rate.admit(*state, maps::monotonic_ns());
    if let Some(next) = next
        && counts
    {
        *state = next;
    }
    next.is_some()
}

/// Returns whether a frame came to this host alone: what came to many is not answered, or one frame
/// would bring many (RFC 1122 §3.2.2, RFC 4443 §2.4).
#[inline(always)]
pub fn ethernet_unicast(frame: Frame<'_>) -> bool {
    frame
        .at::<14>(0)
        .is_some_and(|header| (header.get8::<0>() | header.get8::<6>()) & 1 == 0)
}

/// Returns whether an address, in memory order, is one host's (RFC 1122 §3.2.1.3): not 0.0.0.0/8, nor
/// 127.0.0.0/8, nor multicast, reserved or broadcast.
#[inline(always)]
pub const fn unicast_v4(address: u32) -> bool {
    let first = u32::from_be(address) >> 24;
    first != 0 && first != 127 && first < 224
}

/// Returns whether an address is one host's (RFC 4291 §2.5): not multicast, unspecified or loopback.
#[inline(always)]
pub const fn unicast_v6(address: &[u32; 4]) -> bool {
    let low = address[0] | address[1] | address[2] == 0 && u32::from_be(address[3]) <= 1;
    !low && address[0].to_ne_bytes()[0] != 0xff
}

/// Makes the Ethernet header that of an answer.
#[inline(always)]
pub fn swap_ethernet(frame: Frame<'_>) -> Option<()> {
    let header = frame.at::<14>(0)?;
    let (to, from) = (
        (header.get32::<0>(), header.get16::<4>()),
        (header.get32::<6>(), header.get16::<10>()),
    );
    header.set32::<0>(from.0);
    header.set16::<4>(from.1);
    header.set32::<6>(to.0);
    header.set16::<10>(to.1);
    Some(())
}
