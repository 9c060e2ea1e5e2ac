//! The packet's way through the program.

use aya_ebpf::bindings::xdp_action;
use lb_common::{hash, stats::Reason};

use lb_ebpf::packet::Context;

use crate::{
    echo,
    family::{Family, find_service},
    flow, forward, fragment, guard, maps, nat,
    parse::{ETHERTYPE_IPV4, Packet, Parsed, network_header, parse},
    too_big,
    trace::Trace,
};

/// Takes a packet from its headers to its verdict.
#[inline(always)]
pub fn run(ctx: &mut Context, trace: &impl Trace) -> u32 {
    match parse(ctx.frame()) {
        Ok(Packet::V4(packet)) => serve(ctx, &packet, trace),
        Ok(Packet::V6(packet)) => serve(ctx, &packet, trace),
        Err(Reason::PassIcmp) => icmp(ctx, trace),
        Err(Reason::PassFragment) => fragment(ctx, trace),
        Err(reason) => {
            trace.left(reason);
            xdp_action::XDP_PASS
        }
    }
}

/// What is ICMP and not about a flow: the program's own to answer, or the host's.
#[inline(always)]
fn icmp<T: Trace>(ctx: &mut Context, trace: &T) -> u32 {
    let (reason, verdict) = match echo::echo(ctx.raw(), u32::from(T::WRITES_FLOWS)) {
        echo::ANSWERED => (Reason::Echo, xdp_action::XDP_TX),
        echo::OVER_RATE => (Reason::DropEchoRate, xdp_action::XDP_DROP),
        _ => (Reason::PassIcmp, xdp_action::XDP_PASS),
    };
    trace.left(reason);
    verdict
}

/// What is a fragment and not the first one of a service's.
#[inline(always)]
fn fragment(ctx: &mut Context, trace: &impl Trace) -> u32 {
    let v4 = network_header(ctx.frame()).is_ok_and(|(ethertype, _)| ethertype == ETHERTYPE_IPV4);
    fragment::follow(ctx, v4, trace)
}

#[inline(always)]
fn serve<F: Family, T: Trace>(ctx: &mut Context, packet: &Parsed<F>, trace: &T) -> u32 {
    let Some(service) = find_service::<F>(&packet.key) else {
        return nat::from_vm(ctx, packet, trace);
    };
    if packet.icmp_error {
        trace.count(Reason::IcmpError);
    }
    trace.note(|e| {
        e.has_service = 1;
        e.service = service.slot;
        e.opening = packet.opening as u32;
    });
    if let Some(reason) = guard::keeps_out(packet, service, trace) {
        trace.dropped(service.slot, reason);
        return xdp_action::XDP_DROP;
    }
    let hash = F::hash(&packet.key);
    let index = service.ring_base + (hash::row_bits(hash) & service.ring_mask);
    let row = maps::row(index);
    trace.note(|e| {
        e.hash = hash;
        e.row_index = index;
        e.row = row.to_bits();
    });

    let slot = if row.lookup() {
        flow::backend_of(packet, service, hash::row_bits(hash), row, trace)
    } else {
        row.owner()
    };
    let Some(backend) = maps::backend(slot) else {
        trace.dropped(service.slot, Reason::DropNoBackend);
        return xdp_action::XDP_DROP;
    };
    let head = backend.head();
    trace.note(|e| {
        e.backend = slot.get();
        e.head = head.to_bits();
    });

    let template = backend.template(head);
    // Zero: no limit is known.
    if packet.ip_len > template.max_len
        && template.max_len != 0
        && let Some(verdict) = too_long(ctx, packet, template.max_len, service.slot, trace)
    {
        return verdict;
    }
    let entropy = hash::entropy_bits(hash);
    if packet.first_fragment && T::WRITES_FLOWS {
        F::leave_trail(ctx.raw(), slot.get(), service.slot, entropy);
    }
    match forward::forward(ctx, packet, template, entropy) {
        Ok(forward::Sent::Back) => {
            trace.sent(
                slot,
                service.slot,
                packet.frame_len as u64,
                packet.opening,
                Reason::Sent,
            );
            xdp_action::XDP_TX
        }
        Ok(forward::Sent::Elsewhere) => {
            trace.sent(
                slot,
                service.slot,
                packet.frame_len as u64,
                packet.opening,
                Reason::Redirected,
            );
            xdp_action::XDP_REDIRECT
        }
        Err(reason) => {
            trace.dropped(service.slot, reason);
            xdp_action::XDP_DROP
        }
    }
}

/// What becomes of a packet that is too long for the way to its backend; nothing if it is sent all
/// the same.
#[inline(always)]
fn too_long<F: Family, T: Trace>(
    ctx: &mut Context,
    packet: &Parsed<F>,
    max_len: u16,
    service: u32,
    trace: &T,
) -> Option<u32> {
    // Nobody is told about an error (RFC 1122 §3.2.2, RFC 4443 §2.4).
    let told = if packet.icmp_error {
        too_big::UNTOLD
    } else {
        let counts = u32::from(T::WRITES_FLOWS);
        F::too_big(ctx.raw(), packet.l3 as u32, max_len.into(), counts)
    };
    let (reason, verdict) = match told {
        too_big::TOLD => (Reason::TooBig, xdp_action::XDP_TX),
        too_big::OVER_RATE => (Reason::DropTooBigRate, xdp_action::XDP_DROP),
        too_big::UNCUT => return None,
        _ => (Reason::DropTooLong, xdp_action::XDP_DROP),
    };
    trace.dropped(service, reason);
    Some(verdict)
}
