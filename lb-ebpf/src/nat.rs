//! Network address translation: a packet to a VM gets the VM's address and port for the virtual
//! ones, an answer of the VM gets the virtual ones back. Nothing is remembered: a VM's address and
//! port belong to one service.

use aya_ebpf::{
    bindings::{xdp_action, xdp_md},
    programs::XdpContext,
};
use lb_common::{nat::Translation, service::VIP_NAT_SOURCE, stats::Reason};

use lb_ebpf::packet::Context;

use crate::{
    family::{Family, V4, V6},
    maps,
    parse::Parsed,
    route::Found,
    trace::Trace,
    translate::{Packed, Place, Translate},
};

/// Writes the address and port of a template's VM into a packet, in place of the virtual ones.
#[inline(always)]
pub fn to_vm<F: Family>(
    ctx: &mut Context,
    packet: &Parsed<F>,
    translation: &Translation,
) -> Result<(), Reason> {
    if F::to_vm(ctx.raw(), Packed::of(packet), translation) == 0 {
        return Err(Reason::DropUnreachable);
    }
    Ok(())
}

/// Takes a packet that is for no service: it may be a VM's answer. Returns the verdict.
#[inline(always)]
pub fn from_vm<F: Family>(ctx: &mut Context, packet: &Parsed<F>, trace: &impl Trace) -> u32 {
    let outcome = if maps::vip_filter(F::source_low32(&packet.key), 0) & VIP_NAT_SOURCE == 0 {
        NOT_OURS
    } else {
        F::answer(ctx.raw(), Packed::of(packet))
    };
    let (reason, verdict) = match outcome {
        UNTOUCHED => (Reason::PassFromVm, xdp_action::XDP_PASS),
        FORWARDING_OFF => (Reason::PassForwardingOff, xdp_action::XDP_PASS),
        BY_HOST => (Reason::AnswerByHost, xdp_action::XDP_PASS),
        BACK => (Reason::Answer, xdp_action::XDP_TX),
        ELSEWHERE => (Reason::Answer, xdp_action::XDP_REDIRECT),
        _ if packet.icmp_error => (Reason::PassIcmp, xdp_action::XDP_PASS),
        _ => (Reason::PassNoService, xdp_action::XDP_PASS),
    };
    trace.left(reason);
    verdict
}

/// No answer of a VM.
const NOT_OURS: u32 = 0;
/// One that the host's stack shall have as it is.
const UNTOUCHED: u32 = 1;
/// The same, because this host forwards nothing.
const FORWARDING_OFF: u32 = 2;
/// Translated, for the host's stack to forward.
const BY_HOST: u32 = 3;
/// Translated, to be sent out of the interface that it came in by.
const BACK: u32 = 4;
/// Translated, to be sent out of another interface.
const ELSEWHERE: u32 = 5;

/// Makes the global functions of a family; see [`crate::flow`] for why they are global.
macro_rules! global_functions {
    ($to_vm:ident, $answer:ident, $family:ty) => {
        /// Returns whether the packet was translated. `offsets` and `end` are a [`Packed`].
        #[unsafe(no_mangle)]
        #[inline(never)]
        pub extern "C" fn $to_vm(
            ctx: *mut xdp_md,
            offsets: u64,
            end: u32,
            translation: *const Translation,
        ) -> u32 {
            // SAFETY: a pointer to a template's translation.
            let Some(translation) = (unsafe { translation.as_ref() }) else {
                return 0;
            };
            let place = Packed(offsets, end).unpack();
            let ctx = Context::new(XdpContext::new(ctx));
            <$family>::translate::<false>(ctx.frame(), &place, translation).is_some() as u32
        }

        /// Returns what was done. `offsets` and `end` are a [`Packed`].
        #[unsafe(no_mangle)]
        #[inline(never)]
        pub extern "C" fn $answer(ctx: *mut xdp_md, offsets: u64, end: u32) -> u32 {
            let place = Packed(offsets, end).unpack();
            let mut ctx = Context::new(XdpContext::new(ctx));
            self::answer::<$family>(&mut ctx, &place).unwrap_or(NOT_OURS)
        }
    };
}

global_functions!(nat_to_vm_v4, nat_answer_v4, V4);
global_functions!(nat_to_vm_v6, nat_answer_v6, V6);

/// Looks for the way of an answer as the host's stack would, by its real source, and translates it
/// unless the host shall have it as it is. Returns nothing for a packet that is no answer.
#[inline(always)]
fn answer<F: Translate>(ctx: &mut Context, place: &Place) -> Option<u32> {
    let source = F::nat_source(ctx.frame(), place)?;
    let Some(mut route) = F::question(ctx.frame(), place) else {
        return Some(UNTOUCHED);
    };
    let known = match route.find(ctx) {
        Found::Way => true,
        Found::NoNeighbour => false,
        // Of what the host may cut itself the pieces must be translated; else it tells the VM.
        Found::TooBig if F::may_be_cut(ctx.frame(), place) => false,
        Found::TooBig | Found::Nothing => return Some(UNTOUCHED),
        Found::ForwardingOff => return Some(FORWARDING_OFF),
    };
    F::translate::<true>(ctx.frame(), place, &source.translation)?;
    let back = route.ifindex == ctx.ingress_ifindex();
    // Where XDP can't send from, the host's stack can.
    if !known || !(back || maps::redirect(route.ifindex)) {
        return Some(BY_HOST);
    }
    F::decrement_hops(ctx.frame(), place)?;
    route.write(ctx.frame().at::<14>(place.front)?, F::ETHERTYPE.to_be());
    // A VLAN is an interface of its own, which XDP can't send from: the way has no tag.
    if place.front > 0 {
        ctx.move_head(place.front as i32).ok()?;
    }
    Some(if back { BACK } else { ELSEWHERE })
}
