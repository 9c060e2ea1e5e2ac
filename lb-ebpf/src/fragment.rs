//! Fragments: the first one of a datagram is balanced as a whole packet is, and the later ones, which
//! have no ports, follow it.
//!
//! The packet's way knows nothing of later fragments: they leave it at once, and have a way of their own
//! in here, in functions that the verifier looks at on their own (see [`crate::flow`]).

use aya_ebpf::{
    bindings::{BPF_ANY, xdp_action, xdp_md},
    maps::LruHashMap,
    programs::XdpContext,
};
use lb_common::{
    backend::BackendSlot,
    fragment::Fragment,
    outer::{self, DF_ONLY, traffic_class_v6},
    service::VIP_ADDRESS,
    stats::Reason,
};

use lb_ebpf::packet::{Context, Frame};

use crate::{
    extension::{self, Chain, PROTO_DESTINATION_OPTIONS},
    family::{Family, V4, V6},
    forward, maps,
    parse::{FRAGMENT_MASK, FRAGMENT_OFFSET, Parsed, carries_ports, network_header},
    trace::{Count, Explain, Trace},
};

/// A fragment table: LRU, so that datagrams that were never complete don't fill it for ever.
pub type FragmentTable<K> = LruHashMap<K, Fragment>;

/// What [`seek`] returns if the fragment follows a first one: no verdict of XDP's.
const FOLLOWS: u32 = 16;

macro_rules! global_functions {
    ($leave:ident, $seek:ident, $send:ident, $explain_seek:ident, $explain_send:ident, $family:ty) => {
        /// Writes down where a first fragment goes, before it does.
        #[unsafe(no_mangle)]
        #[inline(never)]
        pub extern "C" fn $leave(ctx: *mut xdp_md, slot: u32, service: u32, entropy: u32) -> u32 {
            let ctx = Context::new(XdpContext::new(ctx));
            if let Ok(key) = <$family>::fragment_key(ctx.frame()) {
                leave::<$family>(&key, slot, service, entropy);
            }
            0
        }

        /// Looks for what a later fragment follows.
        #[unsafe(no_mangle)]
        #[inline(never)]
        pub extern "C" fn $seek(ctx: *mut xdp_md) -> u32 {
            seek::<$family, _>(&Context::new(XdpContext::new(ctx)), &Count)
        }

        /// Sends it after that.
        #[unsafe(no_mangle)]
        #[inline(never)]
        pub extern "C" fn $send(ctx: *mut xdp_md) -> u32 {
            send::<$family, _>(&mut Context::new(XdpContext::new(ctx)), &Count)
        }

        /// As above, for an explanation.
        #[unsafe(no_mangle)]
        #[inline(never)]
        pub extern "C" fn $explain_seek(ctx: *mut xdp_md) -> u32 {
            Explain::resume().map_or(xdp_action::XDP_ABORTED, |explain| {
                seek::<$family, _>(&Context::new(XdpContext::new(ctx)), &explain)
            })
        }

        /// As above, for an explanation.
        #[unsafe(no_mangle)]
        #[inline(never)]
        pub extern "C" fn $explain_send(ctx: *mut xdp_md) -> u32 {
            Explain::resume().map_or(xdp_action::XDP_ABORTED, |explain| {
                send::<$family, _>(&mut Context::new(XdpContext::new(ctx)), &explain)
            })
        }
    };
}

global_functions!(
    leave_v4,
    seek_v4,
    send_v4,
    explain_seek_v4,
    explain_send_v4,
    V4
);
global_functions!(
    leave_v6,
    seek_v6,
    send_v6,
    explain_seek_v6,
    explain_send_v6,
    V6
);

/// Takes a later fragment to its verdict: in two functions beside each other, since one with the other
/// below it would not fit on the stack.
#[inline(always)]
pub fn follow<T: Trace>(ctx: &mut Context, v4: bool, _: &T) -> u32 {
    let sought = match (v4, T::WRITES_FLOWS) {
        (true, true) => seek_v4(ctx.raw()),
        (true, false) => explain_seek_v4(ctx.raw()),
        (false, true) => seek_v6(ctx.raw()),
        (false, false) => explain_seek_v6(ctx.raw()),
    };
    if sought != FOLLOWS {
        return sought;
    }
    match (v4, T::WRITES_FLOWS) {
        (true, true) => send_v4(ctx.raw()),
        (true, false) => explain_send_v4(ctx.raw()),
        (false, true) => send_v6(ctx.raw()),
        (false, false) => explain_send_v6(ctx.raw()),
    }
}

#[inline(always)]
fn leave<F: Family>(key: &F::FragmentKey, slot: u32, service: u32, entropy: u32) {
    let backend = maps::backend(BackendSlot::from_stored(slot));
    let (Some(backend), Some(settings)) = (backend, maps::settings()) else {
        return;
    };
    let entry = Fragment {
        backend: slot,
        generation: backend.head().generation().into(),
        service,
        entropy,
        since: maps::jiffies() as u32,
        lasts: settings.fragment_jiffies,
    };
    // Where there is no room, the others are fragments of which no first one was seen.
    let _ = F::fragments().insert(key, &entry, u64::from(BPF_ANY));
}

#[inline(always)]
fn seek<F: Family, T: Trace>(ctx: &Context, trace: &T) -> u32 {
    let key = match F::fragment_key(ctx.frame()) {
        Ok(key) => key,
        Err(reason) => {
            trace.left(reason);
            return xdp_action::XDP_PASS;
        }
    };
    let entry = if maps::vip_filter(F::fragment_low32(&key), 0) & VIP_ADDRESS == 0 {
        None
    } else {
        // SAFETY: an element may be replaced while we read it, each word as a whole; the kernel may
        // give it to another datagram, in which case one fragment goes astray.
        unsafe { F::fragments().get(&key) }
    };
    let Some(entry) = entry.filter(|entry| entry.holds(maps::jiffies() as u32)) else {
        return unknown::<F>(&key, trace);
    };
    let Some(backend) = maps::backend(BackendSlot::from_stored(entry.backend)) else {
        return unknown::<F>(&key, trace);
    };
    let head = backend.head();
    if !head.alive() || u32::from(head.generation()) != entry.generation {
        return unknown::<F>(&key, trace);
    }
    let Some(found) = maps::found_fragment() else {
        return unknown::<F>(&key, trace);
    };
    *found = *entry;
    FOLLOWS
}

#[inline(always)]
fn send<F: Family, T: Trace>(ctx: &mut Context, trace: &T) -> u32 {
    let (Some(packet), Some(found)) = (F::fragment(ctx.frame()), maps::found_fragment()) else {
        trace.left(Reason::PassMalformed);
        return xdp_action::XDP_PASS;
    };
    let (slot, service, entropy) = (
        BackendSlot::from_stored(found.backend),
        found.service,
        found.entropy,
    );
    let Some(backend) = maps::backend(slot) else {
        trace.left(Reason::PassFragment);
        return xdp_action::XDP_PASS;
    };
    let head = backend.head();
    trace.count(Reason::Fragment);
    trace.note(|e| {
        e.has_service = 1;
        e.service = service;
        e.backend = slot.get();
        e.head = head.to_bits();
    });
    let template = backend.template(head);
    if packet.ip_len > template.max_len && template.max_len != 0 {
        // Nobody is told: it has no ports to say what it was (RFC 1122 §3.2.2).
        trace.dropped(service, Reason::DropTooLong);
        return xdp_action::XDP_DROP;
    }
    let bytes = packet.frame_len as u64;
    match forward::forward(ctx, &packet, template, entropy) {
        Ok(forward::Sent::Back) => {
            trace.sent(slot, service, bytes, false, Reason::Sent);
            xdp_action::XDP_TX
        }
        Ok(forward::Sent::Elsewhere) => {
            trace.sent(slot, service, bytes, false, Reason::Redirected);
            xdp_action::XDP_REDIRECT
        }
        Err(reason) => {
            trace.dropped(service, reason);
            xdp_action::XDP_DROP
        }
    }
}

/// A later fragment without a first one passes, unless the operator wants none of those on addresses of
/// services.
#[inline(always)]
fn unknown<F: Family>(key: &F::FragmentKey, trace: &impl Trace) -> u32 {
    let drops = maps::settings().is_some_and(|settings| settings.drop_unknown_fragments != 0);
    if drops && F::fragment_is_ours(key) {
        trace.left(Reason::DropFragment);
        xdp_action::XDP_DROP
    } else {
        trace.left(Reason::PassFragment);
        xdp_action::XDP_PASS
    }
}

/// Returns what datagram a fragment of TCP or UDP over IPv4 is a part of.
#[inline(always)]
pub fn key_v4(frame: Frame<'_>) -> Result<[u32; 4], Reason> {
    let (_, l3) = network_header(frame)?;
    let header = frame.at::<20>(l3).ok_or(Reason::PassMalformed)?;
    let (word, proto) = (header.get32::<4>(), header.get8::<9>());
    if word & FRAGMENT_MASK == 0 || !carries_ports(proto) {
        return Err(Reason::PassFragment);
    }
    // The second eight bytes of a TCP header come only from those who want to write over its flags
    // (RFC 3128).
    if proto == lb_common::PROTO_TCP && word & FRAGMENT_OFFSET == u32::from_ne_bytes([0, 0, 0, 1]) {
        return Err(Reason::PassMalformed);
    }
    let [high, low, _, _] = word.to_ne_bytes();
    let datagram = u32::from_ne_bytes([high, low, proto, 0]);
    Ok([header.get32::<12>(), header.get32::<16>(), datagram, 0])
}

/// Returns what datagram a fragment over IPv6 is a part of, of anything but ICMPv6.
#[inline(always)]
pub fn key_v6(frame: Frame<'_>) -> Result<[u32; 10], Reason> {
    let (_, l3) = network_header(frame)?;
    let header = frame.at::<40>(l3).ok_or(Reason::PassMalformed)?;
    let Chain { proto, id, .. } = extension::chain(frame, l3 + 40, header.get8::<6>())?;
    // Also behind destination options, which are in the first fragment then (RFC 7112 §5).
    if !carries_ports(proto) && proto != PROTO_DESTINATION_OPTIONS {
        return Err(Reason::PassFragment);
    }
    Ok([
        header.get32::<8>(),
        header.get32::<12>(),
        header.get32::<16>(),
        header.get32::<20>(),
        header.get32::<24>(),
        header.get32::<28>(),
        header.get32::<32>(),
        header.get32::<36>(),
        id,
        0,
    ])
}

/// Returns what forwarding needs of a later fragment over IPv4.
#[inline(always)]
pub fn packet_v4(frame: Frame<'_>) -> Option<Parsed<V4>> {
    let (_, l3) = network_header(frame).ok()?;
    let header = frame.at::<20>(l3)?;
    Some(Parsed {
        key: [0; 4],
        l3,
        frame_len: frame.bytes(),
        ip_len: u16::from_be(header.get16::<2>()),
        tos: header.get8::<1>(),
        id_fragment: outer::of_fragment(header.get32::<4>()),
        // Nothing of the transport is here, and no flow key.
        l4: 0,
        quoted: 0,
        sum: None,
        opening: false,
        closing: false,
        sequence: 0,
        icmp_error: false,
        first_fragment: false,
    })
}

/// As [`packet_v4`], over IPv6.
#[inline(always)]
pub fn packet_v6(frame: Frame<'_>) -> Option<Parsed<V6>> {
    let (_, l3) = network_header(frame).ok()?;
    let header = frame.at::<40>(l3)?;
    Some(Parsed {
        key: [0; 10],
        l3,
        frame_len: frame.bytes(),
        ip_len: u16::from_be(header.get16::<4>()).saturating_add(40),
        tos: traffic_class_v6(header.get32::<0>()),
        id_fragment: DF_ONLY,
        // Nothing of the transport is here, and no flow key.
        l4: 0,
        quoted: 0,
        sum: None,
        opening: false,
        closing: false,
        sequence: 0,
        icmp_error: false,
        first_fragment: false,
    })
}
