//! Puts a template in front of a packet and fills in what depends on the packet.

use core::hint;

use lb_common::{
    backend::{OVERLAY_MAX, Template, TemplateKind},
    outer,
    stats::Reason,
};

use lb_ebpf::packet::{Bytes, Context, Frame};

use crate::{family::Family, maps, nat, parse::Parsed};

/// How a packet was sent.
pub enum Sent {
    /// Out of the interface that it came in by.
    Back,
    /// Out of another interface.
    Elsewhere,
}

/// Sends a packet to the backend that `template` reaches.
#[inline(always)]
pub fn forward<F: Family>(
    ctx: &mut Context,
    packet: &Parsed<F>,
    template: impl core::ops::Deref<Target = Template>,
    entropy: u32,
) -> Result<Sent, Reason> {
    let template = &*template;
    match template.kind() {
        TemplateKind::Unreachable => return Err(Reason::DropUnreachable),
        TemplateKind::L2 => {
            ethernet::<0>(ctx, packet.l3, template)?;
        }
        kind @ (TemplateKind::NatIpv4 | TemplateKind::NatIpv6) => {
            if kind != F::NAT {
                return Err(Reason::DropUnreachable);
            }
            nat::to_vm(ctx, packet, template.translation())?;
            ethernet::<0>(ctx, packet.l3, template)?;
        }
        TemplateKind::Ipv4 => {
            let outer = ethernet::<20>(ctx, packet.l3, template)?;
            ipv4(outer, packet, template, entropy, packet.ip_len + 20);
        }
        TemplateKind::Ipv6 => {
            let outer = ethernet::<40>(ctx, packet.l3, template)?;
            ipv6(outer, packet, template, entropy, packet.ip_len);
        }
        TemplateKind::Ipv4Udp => {
            let outer = ethernet::<28>(ctx, packet.l3, template)?;
            ipv4(outer, packet, template, entropy, packet.ip_len + 28);
            // Over IPv4 the checksum is optional, and zero says so (RFC 768).
            udp::<28, 20, 22, 24, 26>(
                outer,
                template,
                outer::udp_source_port(entropy),
                packet.ip_len + 8,
                0,
            );
        }
        TemplateKind::Ipv6Udp => {
            let outer = ethernet::<48>(ctx, packet.l3, template)?;
            let udp_len = packet.ip_len + 8;
            ipv6(outer, packet, template, entropy, udp_len);
            udp_v6(outer, packet, template, entropy, udp_len);
        }
        TemplateKind::Ipv4Overlay => {
            let outer = overlay::<28>(ctx, packet.l3, template)?;
            let inner_len = packet.ip_len + u16::from(template.overlay_len);
            ipv4(outer, packet, template, entropy, inner_len + 28);
            let source_port = outer::udp_source_port(entropy);
            // RFC 7348 §5, RFC 8926 §3.3: zero, over IPv4.
            udp::<28, 20, 22, 24, 26>(outer, template, source_port, inner_len + 8, 0);
        }
        TemplateKind::Ipv6Overlay => {
            let outer = overlay::<48>(ctx, packet.l3, template)?;
            let udp_len = packet.ip_len + u16::from(template.overlay_len) + 8;
            ipv6(outer, packet, template, entropy, udp_len);
            udp_v6(outer, packet, template, entropy, udp_len);
        }
    }
    if template.ifindex == ctx.ingress_ifindex() {
        Ok(Sent::Back)
    } else if maps::redirect(template.ifindex) {
        Ok(Sent::Elsewhere)
    } else {
        Err(Reason::DropUnreachable)
    }
}

/// Makes room for `OUTER` bytes between a new Ethernet header and the packet at `l3`, writes the
/// Ethernet header, and returns the room.
#[inline(always)]
fn ethernet<'a, const OUTER: usize>(
    ctx: &'a mut Context,
    l3: usize,
    template: &Template,
) -> Result<Bytes<'a, OUTER>, Reason> {
    let eth_len = eth_len(template);
    let grow = (eth_len + OUTER) as i32 - l3 as i32;
    if grow != 0 {
        ctx.move_head(-grow).map_err(|_| Reason::DropNoRoom)?;
    }
    headers(ctx.frame(), eth_len, template)
}

/// As [`ethernet`], with the template's overlay part between the room and the packet.
///
/// The part is copied whole, with the zeros in front of it, which the headers are written over: as
/// many instructions whatever its length, and no loop.
#[inline(always)]
fn overlay<'a, const OUTER: usize>(
    ctx: &'a mut Context,
    l3: usize,
    template: &Template,
) -> Result<Bytes<'a, OUTER>, Reason> {
    let eth_len = eth_len(template);
    let l3_after = eth_len + OUTER + usize::from(template.overlay_len);
    ctx.move_head(l3 as i32 - l3_after as i32)
        .map_err(|_| Reason::DropNoRoom)?;
    let frame = ctx.frame();
    // Never negative: see `OVERLAY_MAX`. The mask shows it to the verifier. The compiler must know
    // nothing of it: it would check where the part ends and count back from there, or leave out the
    // checks of what is before it, and the verifier can follow neither.
    let start = hint::black_box(l3_after.wrapping_sub(OVERLAY_MAX) & 0x1ff);
    let part = frame.at::<OVERLAY_MAX>(start).ok_or(Reason::DropNoRoom)?;
    part.set64::<0>(word64::<0, _>(&template.overlay));
    part.set64::<8>(word64::<8, _>(&template.overlay));
    part.set64::<16>(word64::<16, _>(&template.overlay));
    part.set64::<24>(word64::<24, _>(&template.overlay));
    part.set64::<32>(word64::<32, _>(&template.overlay));
    part.set64::<40>(word64::<40, _>(&template.overlay));
    part.set64::<48>(word64::<48, _>(&template.overlay));
    part.set64::<56>(word64::<56, _>(&template.overlay));
    headers(frame, eth_len, template)
}

/// Returns the length of the template's Ethernet header, as the verifier can see it.
#[inline(always)]
fn eth_len(template: &Template) -> usize {
    if template.eth_len < 18 {
        14
    } else if template.eth_len == 18 {
        18
    } else {
        22
    }
}

/// Writes the Ethernet header, and returns the room behind it.
#[inline(always)]
fn headers<'a, const OUTER: usize>(
    frame: Frame<'a>,
    eth_len: usize,
    template: &Template,
) -> Result<Bytes<'a, OUTER>, Reason> {
    // The frame is long enough: it held an IP packet. The verifier wants to see it.
    let header = frame.at::<14>(0).ok_or(Reason::DropNoRoom)?;
    header.set64::<0>(word64::<0, _>(&template.eth));
    header.set32::<8>(word32::<8, _>(&template.eth));
    header.set16::<12>(word16::<12, _>(&template.eth));
    if eth_len > 14 {
        let tag = frame.at::<4>(14).ok_or(Reason::DropNoRoom)?;
        tag.set32::<0>(word32::<14, _>(&template.eth));
    }
    if eth_len > 18 {
        let tag = frame.at::<4>(18).ok_or(Reason::DropNoRoom)?;
        tag.set32::<0>(word32::<0, _>(&template.eth_tail));
    }
    frame.at::<OUTER>(eth_len).ok_or(Reason::DropNoRoom)
}

#[inline(always)]
fn ipv4<F: Family, const LEN: usize>(
    outer: Bytes<'_, LEN>,
    packet: &Parsed<F>,
    template: &Template,
    entropy: u32,
    total_len: u16,
) {
    let source = word32::<12, _>(&template.outer);
    let words = outer::ipv4(
        template.csum,
        packet.tos,
        total_len,
        packet.id_fragment,
        source,
        entropy & template.entropy_mask,
    );
    outer.set32::<0>(words.version_tos_len);
    outer.set32::<4>(words.id_fragment);
    outer.set16::<8>(word16::<8, _>(&template.outer));
    outer.set16::<10>(words.checksum);
    outer.set32::<12>(words.source);
    outer.set32::<16>(word32::<16, _>(&template.outer));
}

#[inline(always)]
fn ipv6<F: Family, const LEN: usize>(
    outer: Bytes<'_, LEN>,
    packet: &Parsed<F>,
    template: &Template,
    entropy: u32,
    payload_len: u16,
) {
    outer.set32::<0>(outer::ipv6_first_word(packet.tos, entropy));
    outer.set16::<4>(payload_len.to_be());
    outer.set16::<6>(word16::<6, _>(&template.outer));
    outer.set64::<8>(word64::<8, _>(&template.outer));
    outer.set32::<16>(word32::<16, _>(&template.outer));
    outer.set32::<20>(word32::<20, _>(&template.outer) | entropy & template.entropy_mask);
    outer.set64::<24>(word64::<24, _>(&template.outer));
    outer.set64::<32>(word64::<32, _>(&template.outer));
}

/// Writes a UDP header behind an outer IPv6 header, with a checksum where it follows from the
/// packet's headers.
#[inline(always)]
fn udp_v6<F: Family>(
    outer: Bytes<'_, 48>,
    packet: &Parsed<F>,
    template: &Template,
    entropy: u32,
    udp_len: u16,
) {
    let source_port = outer::udp_source_port(entropy);
    let source_entropy = entropy & template.entropy_mask;
    let checksum = match packet.sum {
        Some(sum) => outer::udp_checksum(template.csum, udp_len, source_port, source_entropy, sum),
        // RFC 6935 allows a tunnel to send none over IPv6.
        None => 0,
    };
    udp::<48, 40, 42, 44, 46>(outer, template, source_port, udp_len, checksum);
}

/// Writes a UDP header. Rust has no arithmetic on const parameters, so each field's offset is one.
#[inline(always)]
fn udp<
    const LEN: usize,
    const SOURCE: usize,
    const DEST: usize,
    const SIZE: usize,
    const SUM: usize,
>(
    outer: Bytes<'_, LEN>,
    template: &Template,
    source_port: u16,
    udp_len: u16,
    checksum: u16,
) {
    outer.set16::<SOURCE>(source_port);
    outer.set16::<DEST>(word16::<DEST, _>(&template.outer));
    outer.set16::<SIZE>(udp_len.to_be());
    outer.set16::<SUM>(checksum);
}

macro_rules! word {
    ($name:ident, $type:ty) => {
        /// Returns the word at `OFFSET`, as it lies in memory.
        #[inline(always)]
        fn $name<const OFFSET: usize, const LEN: usize>(bytes: &[u8; LEN]) -> $type {
            const { assert!(OFFSET + size_of::<$type>() <= LEN) };
            // SAFETY: the line above checked that the word is within the array.
            unsafe { bytes.as_ptr().add(OFFSET).cast::<$type>().read_unaligned() }
        }
    };
}

word!(word16, u16);
word!(word32, u32);
word!(word64, u64);
