//! The guard: what is addressed to a service and not let in. Between service and row, so that what
//! isn't ours never comes here, and what is kept out costs neither a flow table entry nor a hash.

mod lists;
mod rates;

use lb_common::{guard::Judgement, service::Service, stats::Reason};

use crate::{family::Family, parse::Parsed, trace::Trace};
pub use lists::{guard_v4, guard_v6};
pub use rates::guard_half_open;

const DENIED: u32 = Judgement::Denied as u32;
const NOT_ALLOWED: u32 = Judgement::NotAllowed as u32;
const SOURCE_PACKETS: u32 = Reason::DropSourcePackets as u32;
const SOURCE_FLOWS: u32 = Reason::DropSourceFlows as u32;
const PACKETS: u32 = Reason::DropPackets as u32;
const FLOWS: u32 = Reason::DropFlows as u32;

/// Returns why a packet is not let in to a service, if it isn't.
///
/// The source of an ICMP error is that of the flow which it is about: what a router says about an
/// allowed flow gets through, whatever address the router has.
#[inline(always)]
pub fn keeps_out<F: Family, T: Trace>(
    packet: &Parsed<F>,
    service: &Service,
    _: &T,
) -> Option<Reason> {
    let flags = service.flags;
    if flags & (Service::LISTS | Service::SOURCE_RATES | Service::RATES) == 0 {
        return None;
    }
    if flags & Service::LISTS != 0 {
        match F::judge_source(&packet.key, service.guard_list) {
            DENIED => return Some(Reason::DropDenied),
            NOT_ALLOWED => return Some(Reason::DropNotAllowed),
            _ => {}
        }
    }
    if flags & (Service::SOURCE_RATES | Service::RATES) == 0 {
        return None;
    }
    let flag = |is: bool, flag: u32| if is { flag } else { 0 };
    let what = flag(packet.opening, rates::OPENING)
        | flag(T::WRITES_FLOWS, rates::WRITES)
        | flag(flags & Service::SOURCE_RATES != 0, rates::SOURCES)
        | flag(flags & Service::RATES != 0, rates::SERVICE);
    let (a, b) = F::source_words(&packet.key);
    match rates::guard_rates(service.slot, a, b, what) {
        SOURCE_PACKETS => Some(Reason::DropSourcePackets),
        SOURCE_FLOWS => Some(Reason::DropSourceFlows),
        PACKETS => Some(Reason::DropPackets),
        FLOWS => Some(Reason::DropFlows),
        _ => None,
    }
}
