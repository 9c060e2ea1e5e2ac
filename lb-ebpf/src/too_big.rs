//! A packet that is too long for the way to its backend, with what is put in front of it: its sender is
//! told how long one may be (RFC 1191 §4, RFC 8201 §4), by the virtual address that it was for.
//!
//! Without "don't fragment" an IPv4 packet would have to be fragmented, which XDP can't. Its sender is
//! told as well: it learns to send shorter fragments, where silence would lose every packet.

use aya_ebpf::{bindings::xdp_md, programs::XdpContext};
use lb_common::{
    csum::{add32, fold},
    outer::{DF_ONLY, ipv6_first_word},
    settings::Limited,
};

use lb_ebpf::packet::Context;

use crate::{
    answer::{self, ETH_MAX, HOP_LIMIT, L3_MASK},
    maps,
    parse::{FRAGMENT_OFFSET, PROTO_ICMP, PROTO_ICMPV6},
};

/// Its sender can't be told.
pub const UNTOLD: u32 = 0;
/// The frame is what its sender is told now.
pub const TOLD: u32 = 1;
/// There were too many.
pub const OVER_RATE: u32 = 2;
/// It never was one packet on a wire: a sender on this host left it to its interface to cut it up.
pub const UNCUT: u32 = 3;

/// Length of an ICMP header in bytes.
const ICMP: usize = 8;

/// How much of the packet is quoted: as much as fits into 576 bytes (RFC 1812 §4.3.2.3), and always
/// as much, since the verifier wants a constant. No way is so narrow that a shorter packet
/// doesn't fit: IPv4 hosts don't believe in less than 552.
const QUOTE_V4: usize = 576 - 20 - ICMP;
/// As much as fits into the smallest MTU (RFC 4443 §3.2).
const QUOTE_V6: usize = 1280 - 40 - ICMP;

/// The type of service of errors (RFC 1812 §4.3.2.5: precedence 6).
const INTERNETWORK_CONTROL: u8 = 0xc0;

/// What the verifier looks at on its own (see [`crate::flow`]). `l3` is the offset of the IP header,
/// `max_len` the longest packet that fits; `counts` is 0 for an explanation, which leaves no trace.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn too_big_v4(ctx: *mut xdp_md, l3: u32, max_len: u32, counts: u32) -> u32 {
    let mut ctx = Context::new(XdpContext::new(ctx));
    ipv4(&mut ctx, l3 as usize & L3_MASK, max_len as u16, counts != 0).unwrap_or(UNTOLD)
}

/// As [`too_big_v4`].
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn too_big_v6(ctx: *mut xdp_md, l3: u32, max_len: u32, counts: u32) -> u32 {
    let mut ctx = Context::new(XdpContext::new(ctx));
    ipv6(&mut ctx, l3 as usize & L3_MASK, max_len as u16, counts != 0).unwrap_or(UNTOLD)
}

#[inline(always)]
fn ipv4(ctx: &mut Context, l3: usize, max_len: u16, counts: bool) -> Option<u32> {
    const GROW: usize = 20 + ICMP;
    const MESSAGE: usize = ICMP + QUOTE_V4;
    const UNREACHABLE: u8 = 3;
    const FRAGMENTATION_NEEDED: u8 = 4;
    let mtu = ctx.ingress_mtu()?;
    let frame = ctx.frame();
    // Asked first: later LLVM knows that the header is there, and the verifier doesn't.
    let alone = answer::ethernet_unicast(frame);
    let header = frame.at::<QUOTE_V4>(l3)?;
    if u32::from(u16::from_be(header.get16::<2>())) > mtu {
        return Some(UNCUT);
    }
    let (source, destination) = (header.get32::<12>(), header.get32::<16>());
    // RFC 1122 §3.2.2: about no fragment but the first, and to nobody who isn't one host.
    let may_be_told = header.get32::<4>() & FRAGMENT_OFFSET == 0
        && answer::unicast_v4(source)
        && source != destination
        && alone;
    if !may_be_told {
        return None;
    }
    if !admitted(counts)? {
        return Some(OVER_RATE);
    }
    quote::<GROW>(ctx, l3 + QUOTE_V4)?;
    let frame = ctx.frame();
    let ip = frame.at::<20>(l3)?;
    let [high, low] = ((GROW + QUOTE_V4) as u16).to_be_bytes();
    let first = u32::from_ne_bytes([0x45, INTERNETWORK_CONTROL, high, low]);
    let third = u32::from_ne_bytes([HOP_LIMIT, PROTO_ICMP, 0, 0]);
    let sum = u64::from(first)
        + u64::from(DF_ONLY)
        + u64::from(third)
        + u64::from(destination)
        + u64::from(source);
    ip.set32::<0>(first);
    ip.set32::<4>(DF_ONLY);
    ip.set32::<8>(third);
    ip.set16::<10>(!fold(sum));
    ip.set32::<12>(destination);
    ip.set32::<16>(source);
    let icmp = frame.at::<ICMP>(l3 + 20)?;
    icmp.set32::<0>(u32::from_ne_bytes([
        UNREACHABLE,
        FRAGMENTATION_NEEDED,
        0,
        0,
    ]));
    icmp.set16::<4>(0);
    icmp.set16::<6>(max_len.to_be());
    let sum = frame.at::<512>(l3 + 20)?.sum(0);
    let rest = frame.at::<{ MESSAGE - 512 }>(l3 + 20 + 512)?;
    icmp.set16::<2>(!fold(rest.sum(sum).into()));
    Some(TOLD)
}

#[inline(always)]
fn ipv6(ctx: &mut Context, l3: usize, max_len: u16, counts: bool) -> Option<u32> {
    const GROW: usize = 40 + ICMP;
    const MESSAGE: usize = ICMP + QUOTE_V6;
    const PACKET_TOO_BIG: u8 = 2;
    // A host doesn't believe in less (RFC 8201 §4).
    if max_len < 1280 {
        return None;
    }
    let mtu = ctx.ingress_mtu()?;
    let frame = ctx.frame();
    // Asked first: later LLVM knows that the header is there, and the verifier doesn't.
    let alone = answer::ethernet_unicast(frame);
    let header = frame.at::<QUOTE_V6>(l3)?;
    if u32::from(u16::from_be(header.get16::<4>())) + 40 > mtu {
        return Some(UNCUT);
    }
    let source = [
        header.get32::<8>(),
        header.get32::<12>(),
        header.get32::<16>(),
        header.get32::<20>(),
    ];
    let destination = [
        header.get32::<24>(),
        header.get32::<28>(),
        header.get32::<32>(),
        header.get32::<36>(),
    ];
    // RFC 4443 §2.4 (e).
    let may_be_told = answer::unicast_v6(&source) && source != destination && alone;
    if !may_be_told {
        return None;
    }
    if !admitted(counts)? {
        return Some(OVER_RATE);
    }
    quote::<GROW>(ctx, l3 + QUOTE_V6)?;
    let frame = ctx.frame();
    let ip = frame.at::<40>(l3)?;
    ip.set32::<0>(ipv6_first_word(0, 0));
    ip.set16::<4>((MESSAGE as u16).to_be());
    ip.set16::<6>(u16::from_ne_bytes([PROTO_ICMPV6, HOP_LIMIT]));
    ip.set32::<8>(destination[0]);
    ip.set32::<12>(destination[1]);
    ip.set32::<16>(destination[2]);
    ip.set32::<20>(destination[3]);
    ip.set32::<24>(source[0]);
    ip.set32::<28>(source[1]);
    ip.set32::<32>(source[2]);
    ip.set32::<36>(source[3]);
    let icmp = frame.at::<ICMP>(l3 + 40)?;
    icmp.set32::<0>(u32::from_ne_bytes([PACKET_TOO_BIG, 0, 0, 0]));
    icmp.set32::<4>(u32::from(max_len).to_be());
    let mut pseudo =
        u64::from((MESSAGE as u16).to_be()) + u64::from(u16::from_ne_bytes([0, PROTO_ICMPV6]));
    for (a, b) in source.into_iter().zip(destination) {
        pseudo = add32(add32(pseudo, a), b);
    }
    let mut sum = frame.at::<512>(l3 + 40)?.sum(fold(pseudo).into());
    sum = frame.at::<512>(l3 + 40 + 512)?.sum(sum);
    let rest = frame.at::<{ MESSAGE - 1024 }>(l3 + 40 + 1024)?;
    icmp.set16::<2>(!fold(rest.sum(sum).into()));
    Some(TOLD)
}

/// Returns whether a sender may be told now.
#[inline(always)]
fn admitted(counts: bool) -> Option<bool> {
    let rate = &maps::settings()?.too_big_rate;
    Some(answer::admitted(Limited::TooBig, rate, counts))
}

/// Cuts the frame off after `len` bytes, makes room for `GROW` bytes between the Ethernet header and
/// the packet, and turns the Ethernet header around.
#[inline(always)]
fn quote<const GROW: usize>(ctx: &mut Context, len: usize) -> Option<()> {
    let cut = ctx.buffer_len() as i32 - len as i32;
    if cut > 0 {
        ctx.move_tail(-cut).ok()?;
    }
    ctx.move_head(-(GROW as i32)).ok()?;
    let frame = ctx.frame();
    let old = frame.at::<ETH_MAX>(GROW)?;
    let (to, from) = (
        (old.get32::<0>(), old.get16::<4>()),
        (old.get32::<6>(), old.get16::<10>()),
    );
    // With the tags; what isn't one is written over.
    let (tags, more) = (old.get64::<12>(), old.get16::<20>());
    let new = frame.at::<ETH_MAX>(0)?;
    new.set32::<0>(from.0);
    new.set16::<4>(from.1);
    new.set32::<6>(to.0);
    new.set16::<10>(to.1);
    new.set64::<12>(tags);
    new.set16::<20>(more);
    Some(())
}
