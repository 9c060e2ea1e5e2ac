//! Echo requests to a service's address are answered here (RFC 792, RFC 4443 §4.2): the VMs have the
//! address too, but nobody could say which of them answered.
//!
//! The answer is made of the request, in place: addresses change places, so only the type and the
//! time to live change checksums. What isn't plain (options, extension headers, fragments, senders
//! that can't be answered) passes to the host as all other ICMP does.

use aya_ebpf::{bindings::xdp_md, programs::XdpContext};
use lb_common::{
    csum::replaced16,
    settings::{Limited, Settings},
};

use lb_ebpf::packet::{Context, Frame};

use crate::{
    answer::{self, HOP_LIMIT},
    maps,
    parse::{ETHERTYPE_IPV4, ETHERTYPE_IPV6, PROTO_ICMP, PROTO_ICMPV6, network_header},
};

/// It is none that is answered.
pub const PASS: u32 = 0;
/// The frame is the answer now.
pub const ANSWERED: u32 = 1;
/// There were too many.
pub const OVER_RATE: u32 = 2;

/// Answers an echo request. A function of its own for the verifier (see [`crate::flow`]): few packets
/// come here, by several ways. `counts` is 0 for an explanation, which leaves no trace.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn echo(ctx: *mut xdp_md, counts: u32) -> u32 {
    let ctx = Context::new(XdpContext::new(ctx));
    answer(ctx.frame(), counts != 0).unwrap_or(PASS)
}

#[inline(always)]
fn answer(frame: Frame<'_>, counts: bool) -> Option<u32> {
    let settings = maps::settings()?;
    if settings.echo == 0 {
        return None;
    }
    match network_header(frame).ok()? {
        (ETHERTYPE_IPV4, l3) => ipv4(frame, l3, settings, counts),
        (ETHERTYPE_IPV6, l3) => ipv6(frame, l3, settings, counts),
        _ => None,
    }
}

#[inline(always)]
fn ipv4(frame: Frame<'_>, l3: usize, settings: &Settings, counts: bool) -> Option<u32> {
    const ECHO: u8 = 8;
    const ECHO_REPLY: u8 = 0;
    /// All but "don't fragment".
    const FRAGMENT: u16 = u16::from_ne_bytes([0xbf, 0xff]);
    let header = frame.at::<28>(l3)?;
    let (source, destination) = (header.get32::<12>(), header.get32::<16>());
    let plain = header.get8::<0>() == 0x45
        && header.get16::<6>() & FRAGMENT == 0
        && header.get8::<9>() == PROTO_ICMP
        && u16::from_be(header.get16::<2>()) >= 28;
    if !plain || header.get16::<20>() != u16::from_ne_bytes([ECHO, 0]) {
        return None;
    }
    if !answer::ethernet_unicast(frame) || !answer::unicast_v4(source) || source == destination {
        return None;
    }
    if !maps::is_vip_v4(destination) {
        return None;
    }
    if !answer::admitted(Limited::Echo, &settings.echo_rate, counts) {
        return Some(OVER_RATE);
    }
    answer::swap_ethernet(frame)?;
    header.set32::<12>(destination);
    header.set32::<16>(source);
    // Time to live and protocol are one word of the checksum.
    let before = header.get16::<8>();
    let after = u16::from_ne_bytes([HOP_LIMIT, PROTO_ICMP]);
    header.set16::<8>(after);
    header.set16::<10>(replaced16(header.get16::<10>(), before, after));
    let before = u16::from_ne_bytes([ECHO, 0]);
    let after = u16::from_ne_bytes([ECHO_REPLY, 0]);
    header.set16::<20>(after);
    header.set16::<22>(replaced16(header.get16::<22>(), before, after));
    Some(ANSWERED)
}

#[inline(always)]
fn ipv6(frame: Frame<'_>, l3: usize, settings: &Settings, counts: bool) -> Option<u32> {
    const ECHO: u8 = 128;
    const ECHO_REPLY: u8 = 129;
    let header = frame.at::<48>(l3)?;
    let address = |at: usize| -> [u32; 4] {
        if at == 8 {
            [
                header.get32::<8>(),
                header.get32::<12>(),
                header.get32::<16>(),
                header.get32::<20>(),
            ]
        } else {
            [
                header.get32::<24>(),
                header.get32::<28>(),
                header.get32::<32>(),
                header.get32::<36>(),
            ]
        }
    };
    let (source, destination) = (address(8), address(24));
    let plain = header.get8::<0>() >> 4 == 6
        && header.get8::<6>() == PROTO_ICMPV6
        && u16::from_be(header.get16::<4>()) >= 8;
    if !plain || header.get16::<40>() != u16::from_ne_bytes([ECHO, 0]) {
        return None;
    }
    if !answer::ethernet_unicast(frame) || !answer::unicast_v6(&source) || source == destination {
        return None;
    }
    if !maps::is_vip_v6(destination) {
        return None;
    }
    if !answer::admitted(Limited::Echo, &settings.echo_rate, counts) {
        return Some(OVER_RATE);
    }
    answer::swap_ethernet(frame)?;
    header.set8::<7>(HOP_LIMIT);
    header.set32::<8>(destination[0]);
    header.set32::<12>(destination[1]);
    header.set32::<16>(destination[2]);
    header.set32::<20>(destination[3]);
    header.set32::<24>(source[0]);
    header.set32::<28>(source[1]);
    header.set32::<32>(source[2]);
    header.set32::<36>(source[3]);
    // The pseudo-header's addresses change places as well, and its hop limit isn't in it.
    let before = u16::from_ne_bytes([ECHO, 0]);
    let after = u16::from_ne_bytes([ECHO_REPLY, 0]);
    header.set16::<40>(after);
    header.set16::<42>(replaced16(header.get16::<42>(), before, after));
    Some(ANSWERED)
}
