//! What differs between IPv4 and IPv6 once a packet is parsed: its keys and its maps.

use aya_ebpf::bindings::xdp_md;
use lb_common::{
    backend::TemplateKind,
    hash,
    nat::Translation,
    service::{Service, VIP_ANY_PORT, VIP_EXACT},
    stats::Reason,
};

use lb_ebpf::packet::Frame;

use crate::{
    flow::{self, Question},
    fragment::{self, FragmentTable},
    guard,
    maps::{self, FlowTable},
    nat,
    parse::Parsed,
    too_big,
    trace::Trace,
    translate::Packed,
};

/// An address family.
pub trait Family {
    /// A flow key as 32-bit words: [`lb_common::flow::FlowKey4`], [`lb_common::flow::FlowKey6`].
    type Key: Copy + 'static;

    /// The kind of template that translates within the family.
    const NAT: TemplateKind;

    /// Returns the flow's hash.
    fn hash(key: &Self::Key) -> u64;

    /// Returns the last 32 bits of the destination address.
    fn destination_low32(key: &Self::Key) -> u32;

    /// Returns the service of the flow's destination address and protocol on `port` (network byte
    /// order, in memory order; 0 for "any port").
    fn service(key: &Self::Key, port: u16) -> Option<&'static Service>;

    /// Returns the flow's destination port, in memory order.
    fn destination_port(key: &Self::Key) -> u16;

    /// What tells datagrams apart whose fragments come: [`lb_common::fragment::FragmentKey4`],
    /// [`lb_common::fragment::FragmentKey6`].
    type FragmentKey: 'static;

    /// Returns the last 32 bits of the destination address.
    fn fragment_low32(key: &Self::FragmentKey) -> u32;

    /// Returns whether the destination is a service's address.
    fn fragment_is_ours(key: &Self::FragmentKey) -> bool;

    /// The table of first fragments.
    fn fragments() -> &'static FragmentTable<Self::FragmentKey>;

    /// Returns what datagram the frame is a fragment of.
    fn fragment_key(frame: Frame<'_>) -> Result<Self::FragmentKey, Reason>;

    /// Returns what forwarding needs of a later fragment.
    fn fragment(frame: Frame<'_>) -> Option<Parsed<Self>>
    where
        Self: Sized;

    /// Writes down where a first fragment goes: see [`crate::fragment`].
    fn leave_trail(ctx: *mut xdp_md, slot: u32, service: u32, entropy: u32);
    /// Returns the last 32 bits of the source address.
    fn source_low32(key: &Self::Key) -> u32;

    /// Returns the flow's protocol.
    fn protocol(key: &Self::Key) -> u32;

    /// Translates a packet to a VM. Returns 0 if it could not.
    fn to_vm(ctx: *mut xdp_md, place: Packed, to: &Translation) -> u32;

    /// Translates a VM's answer and finds its way: see [`crate::nat`].
    fn answer(ctx: *mut xdp_md, place: Packed) -> u32;

    /// The tables, in the order of [`lb_common::flow::Table`].
    fn half_open() -> &'static FlowTable<Self::Key>;
    fn confirmed() -> &'static FlowTable<Self::Key>;
    fn kept() -> &'static FlowTable<Self::Key>;

    /// Tells a packet's sender that it is too long: see [`crate::too_big`].
    fn too_big(ctx: *mut xdp_md, l3: u32, max_len: u32, counts: u32) -> u32;

    /// This CPU's place for a question to them.
    fn question_place() -> Option<&'static mut Question<Self::Key>>;

    /// Returns what rates know a source by: its address, or the /64 that it is in.
    fn source_words(key: &Self::Key) -> (u32, u32);

    /// Judges the flow's source by the lists: see [`crate::guard::keeps_out`].
    fn judge_source(key: &Self::Key, own_list: u32) -> u32;

    /// Asks them: see [`crate::flow::backend_of`].
    fn ask_flow_tables<T: Trace>(question: &Question<Self::Key>) -> u32;
}

/// Returns the service that a flow is for: one on its port, else one on any port.
#[inline(always)]
pub fn find_service<F: Family>(key: &F::Key) -> Option<&'static Service> {
    let (address, port) = (F::destination_low32(key), F::destination_port(key));
    if maps::vip_filter(address, port) & VIP_EXACT != 0
        && let Some(service) = F::service(key, port)
    {
        return Some(service);
    }
    if maps::vip_filter(address, 0) & VIP_ANY_PORT != 0 {
        return F::service(key, 0);
    }
    None
}

/// Puts a key's last word together: port and protocol, as they lie in a service key.
#[inline(always)]
fn port_and_protocol(port: u16, protocol: u32) -> u32 {
    let [a, b] = port.to_ne_bytes();
    let [protocol, ..] = protocol.to_ne_bytes();
    u32::from_ne_bytes([a, b, protocol, 0])
}

/// Returns the second half of a word with both ports.
#[inline(always)]
fn second_port(ports: u32) -> u16 {
    let [_, _, a, b] = ports.to_ne_bytes();
    u16::from_ne_bytes([a, b])
}

/// Returns the first byte of a key's last word.
#[inline(always)]
fn first_byte(word: u32) -> u32 {
    let [byte, ..] = word.to_ne_bytes();
    byte.into()
}

/// IPv4.
pub struct V4;

impl Family for V4 {
    /// Source, destination, ports, protocol.
    type Key = [u32; 4];

    const NAT: TemplateKind = TemplateKind::NatIpv4;

    #[inline(always)]
    fn hash(key: &Self::Key) -> u64 {
        hash::words4(maps::hash_key(), key)
    }

    #[inline(always)]
    fn destination_low32(key: &Self::Key) -> u32 {
        key[1]
    }

    #[inline(always)]
    fn service(key: &Self::Key, port: u16) -> Option<&'static Service> {
        let key = [key[1], port_and_protocol(port, key[3])];
        // SAFETY: an element may be replaced while we read it, in which case we read the old one;
        // the kernel frees it after this run.
        unsafe { maps::SERVICES_V4.get(&key) }
    }

    #[inline(always)]
    fn destination_port(key: &Self::Key) -> u16 {
        second_port(key[2])
    }

    type FragmentKey = [u32; 4];

    #[inline(always)]
    fn fragment_low32(key: &Self::FragmentKey) -> u32 {
        key[1]
    }

    #[inline(always)]
    fn fragment_is_ours(key: &Self::FragmentKey) -> bool {
        maps::is_vip_v4(key[1])
    }

    #[inline(always)]
    fn fragments() -> &'static FragmentTable<Self::FragmentKey> {
        &maps::FRAGMENTS_V4
    }

    #[inline(always)]
    fn fragment_key(frame: Frame<'_>) -> Result<Self::FragmentKey, Reason> {
        fragment::key_v4(frame)
    }

    #[inline(always)]
    fn fragment(frame: Frame<'_>) -> Option<Parsed<Self>> {
        fragment::packet_v4(frame)
    }

    #[inline(always)]
    fn leave_trail(ctx: *mut xdp_md, slot: u32, service: u32, entropy: u32) {
        fragment::leave_v4(ctx, slot, service, entropy);
    }

    #[inline(always)]
    fn source_low32(key: &Self::Key) -> u32 {
        key[0]
    }

    #[inline(always)]
    fn protocol(key: &Self::Key) -> u32 {
        first_byte(key[3])
    }

    #[inline(always)]
    fn to_vm(ctx: *mut xdp_md, place: Packed, to: &Translation) -> u32 {
        nat::nat_to_vm_v4(ctx, place.0, place.1, to)
    }

    #[inline(always)]
    fn answer(ctx: *mut xdp_md, place: Packed) -> u32 {
        nat::nat_answer_v4(ctx, place.0, place.1)
    }

    #[inline(always)]
    fn half_open() -> &'static FlowTable<Self::Key> {
        &maps::HALF_OPEN_V4
    }

    #[inline(always)]
    fn confirmed() -> &'static FlowTable<Self::Key> {
        &maps::CONFIRMED_V4
    }

    #[inline(always)]
    fn kept() -> &'static FlowTable<Self::Key> {
        &maps::KEPT_V4
    }

    #[inline(always)]
    fn too_big(ctx: *mut xdp_md, l3: u32, max_len: u32, counts: u32) -> u32 {
        too_big::too_big_v4(ctx, l3, max_len, counts)
    }

    #[inline(always)]
    fn question_place() -> Option<&'static mut Question<Self::Key>> {
        maps::place(&maps::QUESTIONS_V4)
    }

    #[inline(always)]
    fn source_words(key: &Self::Key) -> (u32, u32) {
        (key[0], 0)
    }

    #[inline(always)]
    fn judge_source(key: &Self::Key, own_list: u32) -> u32 {
        guard::guard_v4(key[0], own_list)
    }

    #[inline(always)]
    fn ask_flow_tables<T: Trace>(question: &Question<Self::Key>) -> u32 {
        if T::WRITES_FLOWS {
            flow::flow_v4(question)
        } else {
            flow::explain_flow_v4(question)
        }
    }
}

/// IPv6.
pub struct V6;

impl Family for V6 {
    /// Source, destination (four words each), ports, protocol.
    type Key = [u32; 10];

    const NAT: TemplateKind = TemplateKind::NatIpv6;

    #[inline(always)]
    fn hash(key: &Self::Key) -> u64 {
        hash::words6(maps::hash_key(), key)
    }

    #[inline(always)]
    fn destination_low32(key: &Self::Key) -> u32 {
        key[7]
    }

    #[inline(always)]
    fn service(key: &Self::Key, port: u16) -> Option<&'static Service> {
        let key = [
            key[4],
            key[5],
            key[6],
            key[7],
            port_and_protocol(port, key[9]),
        ];
        // SAFETY: as for IPv4.
        unsafe { maps::SERVICES_V6.get(&key) }
    }

    #[inline(always)]
    fn destination_port(key: &Self::Key) -> u16 {
        second_port(key[8])
    }

    type FragmentKey = [u32; 10];

    #[inline(always)]
    fn fragment_low32(key: &Self::FragmentKey) -> u32 {
        key[7]
    }

    #[inline(always)]
    fn fragment_is_ours(key: &Self::FragmentKey) -> bool {
        maps::is_vip_v6([key[4], key[5], key[6], key[7]])
    }

    #[inline(always)]
    fn fragments() -> &'static FragmentTable<Self::FragmentKey> {
        &maps::FRAGMENTS_V6
    }

    #[inline(always)]
    fn fragment_key(frame: Frame<'_>) -> Result<Self::FragmentKey, Reason> {
        fragment::key_v6(frame)
    }

    #[inline(always)]
    fn fragment(frame: Frame<'_>) -> Option<Parsed<Self>> {
        fragment::packet_v6(frame)
    }

    #[inline(always)]
    fn leave_trail(ctx: *mut xdp_md, slot: u32, service: u32, entropy: u32) {
        fragment::leave_v6(ctx, slot, service, entropy);
    }

    #[inline(always)]
    fn source_low32(key: &Self::Key) -> u32 {
        key[3]
    }

    #[inline(always)]
    fn protocol(key: &Self::Key) -> u32 {
        first_byte(key[9])
    }

    #[inline(always)]
    fn to_vm(ctx: *mut xdp_md, place: Packed, to: &Translation) -> u32 {
        nat::nat_to_vm_v6(ctx, place.0, place.1, to)
    }

    #[inline(always)]
    fn answer(ctx: *mut xdp_md, place: Packed) -> u32 {
        nat::nat_answer_v6(ctx, place.0, place.1)
    }

    #[inline(always)]
    fn half_open() -> &'static FlowTable<Self::Key> {
        &maps::HALF_OPEN_V6
    }

    #[inline(always)]
    fn confirmed() -> &'static FlowTable<Self::Key> {
        &maps::CONFIRMED_V6
    }

    #[inline(always)]
    fn kept() -> &'static FlowTable<Self::Key> {
        &maps::KEPT_V6
    }

    #[inline(always)]
    fn too_big(ctx: *mut xdp_md, l3: u32, max_len: u32, counts: u32) -> u32 {
        too_big::too_big_v6(ctx, l3, max_len, counts)
    }

    #[inline(always)]
    fn question_place() -> Option<&'static mut Question<Self::Key>> {
        maps::place(&maps::QUESTIONS_V6)
    }

    #[inline(always)]
    fn source_words(key: &Self::Key) -> (u32, u32) {
        (key[0], key[1])
    }

    #[inline(always)]
    fn judge_source(key: &Self::Key, own_list: u32) -> u32 {
        guard::guard_v6(key[0], key[1], key[2], key[3], own_list)
    }

    #[inline(always)]
    fn ask_flow_tables<T: Trace>(question: &Question<Self::Key>) -> u32 {
        if T::WRITES_FLOWS {
            flow::flow_v6(question)
        } else {
            flow::explain_flow_v6(question)
        }
    }
}
