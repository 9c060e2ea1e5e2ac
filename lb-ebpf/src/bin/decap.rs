//! Unwraps IPIP and GUE packets that are addressed to this host, for VMs without tunnel devices.
//!
//! `parse → address → unwrap → count`. What is no tunnel of ours goes to the host's stack as it
//! came. Outer checksums are not verified again: the NIC or the hypervisor did, and the packet
//! inside has its own.
#![no_std]
#![no_main]
#![expect(
    missing_docs,
    reason = "the `xdp` macro makes a function without a comment"
)]

use aya_ebpf::{
    bindings::xdp_action,
    macros::{map, xdp},
    maps::{Array, HashMap, PerCpuArray},
    programs::XdpContext,
};
use lb_common::{
    PROTO_IPIP, PROTO_IPV6, PROTO_UDP,
    decap::{MAX_ADDRESSES, Outcome, inner_tos, updated_checksum},
};
use lb_ebpf::packet::{Context, Frame};

#[map]
static ADDRESSES_V4: HashMap<u32, u8> = HashMap::with_max_entries(MAX_ADDRESSES, 0);
#[map]
static ADDRESSES_V6: HashMap<[u64; 2], u8> = HashMap::with_max_entries(MAX_ADDRESSES, 0);
#[map]
static GUE_PORT: Array<u32> = Array::with_max_entries(1, 0);
#[map]
static OUTCOMES: PerCpuArray<u64> = PerCpuArray::with_max_entries(Outcome::COUNT as u32, 0);

const ETHERTYPE_IPV4: u16 = 0x0800;
const ETHERTYPE_IPV6: u16 = 0x86dd;
const ETHERTYPE_VLAN: u16 = 0x8100;
/// Bits of an IPv4 header's second word, in memory order: "more fragments" and the offset.
const FRAGMENT_MASK: u32 = u32::from_ne_bytes([0, 0, 0x3f, 0xff]);

/// An outer header that was recognised.
struct Outer {
    /// Offset of the outer IP header.
    l3: usize,
    /// By how many bytes the packet inside lies behind it.
    len: usize,
    /// Type of service or traffic class.
    tos: u8,
    /// What to count.
    outcome: Outcome,
}

/// The program that is attached.
#[xdp]
pub fn weir_decap(ctx: XdpContext) -> u32 {
    let mut ctx = Context::new(ctx);
    let result = unwrap(&mut ctx);
    let (outcome, verdict) = match result {
        Ok(outcome) => (outcome, xdp_action::XDP_PASS),
        Err(outcome @ Outcome::DropCongestion) => (outcome, xdp_action::XDP_DROP),
        Err(outcome) => (outcome, xdp_action::XDP_PASS),
    };
    if let Some(count) = OUTCOMES.get_ptr_mut(outcome as u32) {
        // SAFETY: this CPU's own element; XDP programs are not interrupted by each other.
        unsafe { *count += 1 };
    }
    verdict
}

#[inline(always)]
fn recognise(frame: Frame<'_>) -> Result<Outer, Outcome> {
    let ethernet = frame.at::<14>(0).ok_or(Outcome::PassOther)?;
    let mut ethertype = u16::from_be(ethernet.get16::<12>());
    let mut l3 = 14;
    if ethertype == ETHERTYPE_VLAN {
        let tag = frame.at::<4>(14).ok_or(Outcome::PassOther)?;
        ethertype = u16::from_be(tag.get16::<2>());
        l3 = 18;
    }
    match ethertype {
        ETHERTYPE_IPV4 => ipv4(frame, l3),
        ETHERTYPE_IPV6 => ipv6(frame, l3),
        _ => Err(Outcome::PassOther),
    }
}

#[inline(always)]
fn ipv4(frame: Frame<'_>, l3: usize) -> Result<Outer, Outcome> {
    let header = frame.at::<20>(l3).ok_or(Outcome::PassOther)?;
    let version_ihl = header.get8::<0>();
    let header_len = usize::from(version_ihl & 0xf) * 4;
    if version_ihl >> 4 != 4 || header_len < 20 {
        return Err(Outcome::PassOther);
    }
    let proto = header.get8::<9>();
    if !matches!(proto, PROTO_IPIP | PROTO_IPV6 | PROTO_UDP) {
        return Err(Outcome::PassOther);
    }
    let fragment = header.get32::<4>() & FRAGMENT_MASK != 0;
    if proto == PROTO_UDP && (fragment || !is_gue(frame, l3 + header_len)) {
        return Err(Outcome::PassOther);
    }
    // SAFETY: the value is not read.
    if unsafe { ADDRESSES_V4.get(header.get32::<16>()) }.is_none() {
        return Err(Outcome::PassAddress);
    }
    if fragment {
        return Err(Outcome::PassFragment);
    }
    let (len, outcome) = match proto {
        PROTO_IPIP => (header_len, Outcome::Ipv4InIpv4),
        PROTO_IPV6 => (header_len, Outcome::Ipv6InIpv4),
        _ => (
            header_len + gue(frame, l3 + header_len)?,
            Outcome::GueOverIpv4,
        ),
    };
    Ok(Outer {
        l3,
        len,
        tos: header.get8::<1>(),
        outcome,
    })
}

/// Extension headers are not walked over: the load balancer sends none.
#[inline(always)]
fn ipv6(frame: Frame<'_>, l3: usize) -> Result<Outer, Outcome> {
    let header = frame.at::<40>(l3).ok_or(Outcome::PassOther)?;
    let first = u32::from_be(header.get32::<0>());
    if first >> 28 != 6 {
        return Err(Outcome::PassOther);
    }
    let next = header.get8::<6>();
    let (len, outcome) = match next {
        PROTO_IPIP => (40, Outcome::Ipv4InIpv6),
        PROTO_IPV6 => (40, Outcome::Ipv6InIpv6),
        PROTO_UDP if is_gue(frame, l3 + 40) => (0, Outcome::GueOverIpv6),
        _ => return Err(Outcome::PassOther),
    };
    let address = [header.get64::<24>(), header.get64::<32>()];
    // SAFETY: the value is not read.
    if unsafe { ADDRESSES_V6.get(address) }.is_none() {
        return Err(Outcome::PassAddress);
    }
    let len = if len == 0 {
        40 + gue(frame, l3 + 40)?
    } else {
        len
    };
    Ok(Outer {
        l3,
        len,
        tos: (first >> 20) as u8,
        outcome,
    })
}

/// Returns whether a UDP header is for GUE's port.
#[inline(always)]
fn is_gue(frame: Frame<'_>, l4: usize) -> bool {
    let (Some(header), Some(port)) = (frame.at::<8>(l4), GUE_PORT.get(0)) else {
        return false;
    };
    u32::from(u16::from_be(header.get16::<2>())) == *port
}

/// Returns the length of the UDP and GUE headers: of variant 1, which has none of its own, or of
/// variant 0 without options (draft-ietf-intarea-gue-09 §3.1 and §4).
#[inline(always)]
fn gue(frame: Frame<'_>, l4: usize) -> Result<usize, Outcome> {
    let header = frame.at::<12>(l4).ok_or(Outcome::PassMalformed)?;
    let first = header.get8::<8>();
    if first >> 6 == 1 {
        return Ok(8);
    }
    let proto = header.get8::<9>();
    let plain = first == 0 && header.get16::<10>() == 0;
    if plain && matches!(proto, PROTO_IPIP | PROTO_IPV6) {
        return Ok(12);
    }
    Err(Outcome::PassMalformed)
}

/// Takes the outer headers away.
#[inline(always)]
fn unwrap(ctx: &mut Context) -> Result<Outcome, Outcome> {
    let outer = prepare(ctx.frame())?;
    ctx.move_head(outer.len as i32)
        .map_err(|_| Outcome::PassMalformed)?;
    Ok(outer.outcome)
}

/// Recognises the outer headers and makes the packet inside ready to stand alone.
#[inline(always)]
fn prepare(frame: Frame<'_>) -> Result<Outer, Outcome> {
    let outer = recognise(frame)?;
    // Rust has no arithmetic on const parameters, so each offset is one.
    if outer.l3 == 18 {
        rewrite::<18, 16, 28, 38>(frame, &outer)?;
    } else {
        rewrite::<14, 12, 24, 34>(frame, &outer)?;
    }
    Ok(outer)
}

/// Puts the Ethernet header right in front of the packet inside, which is `L3` bytes behind it,
/// and makes this packet's header say what the tunnel's said of congestion. The outer headers are
/// longer than the Ethernet header, so nothing overlaps.
///
/// All that is written lies in one piece of `LEN` bytes: the verifier sees its bounds once.
#[inline(always)]
fn rewrite<const L3: usize, const ETHERTYPE: usize, const CHECKSUM: usize, const LEN: usize>(
    frame: Frame<'_>,
    outer: &Outer,
) -> Result<(), Outcome> {
    let ethernet = frame.at::<14>(0).ok_or(Outcome::PassMalformed)?;
    let moved = frame.at::<LEN>(outer.len).ok_or(Outcome::PassMalformed)?;
    let version = moved.get8::<L3>() >> 4;
    // IPIP's outer header names the version of the packet inside, GUE's doesn't.
    let only_v4 = matches!(outer.outcome, Outcome::Ipv4InIpv4 | Outcome::Ipv4InIpv6);
    let only_v6 = matches!(outer.outcome, Outcome::Ipv6InIpv4 | Outcome::Ipv6InIpv6);
    let fits = (version == 4 && !only_v6) || (version == 6 && !only_v4);
    if !fits {
        return Err(Outcome::PassMalformed);
    }
    let ethertype = if version == 4 {
        let first = moved.get16::<L3>();
        let [version_ihl, tos] = first.to_ne_bytes();
        let tos = inner_tos(outer.tos, tos).ok_or(Outcome::DropCongestion)?;
        let updated = u16::from_ne_bytes([version_ihl, tos]);
        if updated != first {
            let checksum = moved.get16::<CHECKSUM>();
            moved.set16::<L3>(updated);
            moved.set16::<CHECKSUM>(updated_checksum(checksum, first, updated));
        }
        ETHERTYPE_IPV4
    } else {
        let first = u32::from_be(moved.get32::<L3>());
        let tos = inner_tos(outer.tos, (first >> 20) as u8).ok_or(Outcome::DropCongestion)?;
        moved.set32::<L3>((first & 0xf00f_ffff | u32::from(tos) << 20).to_be());
        ETHERTYPE_IPV6
    };
    moved.set64::<0>(ethernet.get64::<0>());
    moved.set32::<8>(ethernet.get32::<8>());
    if L3 == 18 {
        let tag = frame.at::<4>(14).ok_or(Outcome::PassMalformed)?;
        moved.set16::<12>(ETHERTYPE_VLAN.to_be());
        moved.set16::<14>(tag.get16::<0>());
    }
    moved.set16::<ETHERTYPE>(ethertype.to_be());
    Ok(())
}

/// The kernel lends helpers to GPL-compatible programs only.
#[unsafe(no_mangle)]
#[unsafe(link_section = "license")]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";

/// A panic that could be reached would be an endless loop, which the verifier refuses: that the
/// program loads proves that it has none.
#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}
