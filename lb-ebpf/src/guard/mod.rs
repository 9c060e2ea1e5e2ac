//! The guard: what is addressed to a service and not let in. Between service and row, so that what
//! isn't ours never comes here, and what is kept out costs neither a flow table entry nor a hash.

mod lists;

use lb_common::{guard::Judgement, service::Service, stats::Reason};

use crate::family::Family;
pub use lists::{guard_v4, guard_v6};

const DENIED: u32 = Judgement::Denied as u32;
const NOT_ALLOWED: u32 = Judgement::NotAllowed as u32;

/// Returns why a flow's packet is not let in to a service, if it isn't.
///
/// The source of an ICMP error is that of the flow which it is about: what a router says about an
/// allowed flow gets through, whatever address the router has.
#[inline(always)]
pub fn keeps_out<F: Family>(key: &F::Key, service: &Service) -> Option<Reason> {
    if service.flags & Service::LISTS == 0 {
        return None;
    }
    match F::judge_source(key, service.guard_list) {
        DENIED => Some(Reason::DropDenied),
        NOT_ALLOWED => Some(Reason::DropNotAllowed),
        _ => None,
    }
}
