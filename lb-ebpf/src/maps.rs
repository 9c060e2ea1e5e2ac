//! The maps, and the kernel functions that belong to none. Sizes are defaults: the daemon sets
//! them when it loads the program.

use core::ptr;

use aya_ebpf::{
    bindings::{BPF_F_MMAPABLE, BPF_F_NO_PREALLOC, xdp_action},
    helpers::{bpf_jiffies64, bpf_ktime_get_ns},
    macros::map,
    maps::{Array, DevMapHash, HashMap, LpmTrie, PerCpuArray, lpm_trie},
};
use lb_common::{
    backend::{Backend, BackendSlot},
    bucket::{Rate, Rates, ServiceBuckets, SourceBuckets},
    explain::Explanation,
    flow::FlowEntry,
    fragment::Fragment,
    guard::{GuardSettings, LIST_BITS, ListId, NEAR_WORDS},
    hash::HashKey,
    nat::NatSource,
    row::Row,
    service::{Service, VIP_ADDRESS, VIP_FILTER_LEN},
    settings::{Limited, Settings},
    stats::{BackendStats, Reason, ServiceStats},
};

use crate::{flow::Question, fragment::FragmentTable};

/// The installation's secret; the daemon sets it when it loads the program.
#[unsafe(no_mangle)]
static HASH_KEY: HashKey = HashKey([0; 16]);

/// How many places a half of [`SOURCE_BUCKETS`] has, a power of two; set as the secret is.
#[unsafe(no_mangle)]
static SOURCE_PLACES: u32 = 1;

#[map]
static ABI: Array<u32> = Array::with_max_entries(1, 0);
#[map]
pub static SERVICES_V4: HashMap<[u32; 2], Service> = HashMap::with_max_entries(4096, 0);
#[map]
pub static SERVICES_V6: HashMap<[u32; 5], Service> = HashMap::with_max_entries(4096, 0);
/// What the answers of VMs come from. Empty, and allocated entry by entry, where nobody uses NAT.
#[map]
pub static NAT_SOURCES_V4: HashMap<[u32; 2], NatSource> =
    HashMap::with_max_entries(16_384, BPF_F_NO_PREALLOC);
#[map]
pub static NAT_SOURCES_V6: HashMap<[u32; 5], NatSource> =
    HashMap::with_max_entries(16_384, BPF_F_NO_PREALLOC);
#[map]
static VIP_FILTER: Array<u8> = Array::with_max_entries(VIP_FILTER_LEN, 0);
#[map]
static VIPS_V4: HashMap<u32, u32> = HashMap::with_max_entries(4096, 0);
#[map]
static VIPS_V6: HashMap<Address6, u32> = HashMap::with_max_entries(4096, 0);
#[map]
static SETTINGS: Array<Settings> = Array::with_max_entries(1, 0);
/// States of limits, by [`Limited`]. Not pinned: a new daemon's begin anew.
#[map]
static LIMITS: PerCpuArray<u64> = PerCpuArray::with_max_entries(Limited::COUNT, 0);
#[map]
static RING: Array<u64> = Array::with_max_entries(1 << 22, BPF_F_MMAPABLE);
#[map]
static BACKENDS: Array<Backend> = Array::with_max_entries(16_384, BPF_F_MMAPABLE);
#[map]
static DEVICES: DevMapHash = DevMapHash::with_max_entries(lb_common::DEVICES, 0);
#[map]
static BACKEND_STATS: PerCpuArray<BackendStats> = PerCpuArray::with_max_entries(16_384, 0);
#[map]
static SERVICE_STATS: PerCpuArray<ServiceStats> = PerCpuArray::with_max_entries(8192, 0);
#[map]
static REASONS: PerCpuArray<u64> = PerCpuArray::with_max_entries(Reason::COUNT as u32, 0);
#[map]
static EXPLAIN: PerCpuArray<Explanation> = PerCpuArray::with_max_entries(1, 0);

/// Where a packet puts its question to the flow tables. Not pinned.
#[map]
pub static QUESTIONS_V4: PerCpuArray<Question<[u32; 4]>> = PerCpuArray::with_max_entries(1, 0);
#[map]
pub static QUESTIONS_V6: PerCpuArray<Question<[u32; 10]>> = PerCpuArray::with_max_entries(1, 0);

/// Where a later fragment puts what it follows. Not pinned.
#[map]
static FOUND_FRAGMENT: PerCpuArray<Fragment> = PerCpuArray::with_max_entries(1, 0);
#[map]
static GUARD: Array<GuardSettings> = Array::with_max_entries(1, 0);
#[map]
static PREFIXES_V4: LpmTrie<[u32; 2], u32> = LpmTrie::with_max_entries(1 << 20, 0);
#[map]
static PREFIXES_V6: LpmTrie<[u32; 5], u32> = LpmTrie::with_max_entries(1 << 20, 0);
#[map]
static NEAR: Array<u64> = Array::with_max_entries(NEAR_WORDS, BPF_F_MMAPABLE);

#[map]
static RATES: Array<Rates> = Array::with_max_entries(8192, 0);
#[map]
static SERVICE_BUCKETS: PerCpuArray<ServiceBuckets> = PerCpuArray::with_max_entries(8192, 0);
#[map]
static SOURCE_BUCKETS: PerCpuArray<SourceBuckets> = PerCpuArray::with_max_entries(2, 0);

/// A flow table. Not an LRU map: under pressure it refuses new entries and never evicts. Its
/// memory is allocated entry by entry, since in peace it's nearly empty.
pub type FlowTable<K> = HashMap<K, FlowEntry>;

#[map]
pub static HALF_OPEN_V4: FlowTable<[u32; 4]> =
    FlowTable::with_max_entries(1 << 18, BPF_F_NO_PREALLOC);
#[map]
pub static CONFIRMED_V4: FlowTable<[u32; 4]> =
    FlowTable::with_max_entries(1 << 20, BPF_F_NO_PREALLOC);
#[map]
pub static KEPT_V4: FlowTable<[u32; 4]> = FlowTable::with_max_entries(1 << 20, BPF_F_NO_PREALLOC);
#[map]
pub static HALF_OPEN_V6: FlowTable<[u32; 10]> =
    FlowTable::with_max_entries(1 << 18, BPF_F_NO_PREALLOC);
#[map]
pub static CONFIRMED_V6: FlowTable<[u32; 10]> =
    FlowTable::with_max_entries(1 << 20, BPF_F_NO_PREALLOC);
#[map]
pub static KEPT_V6: FlowTable<[u32; 10]> = FlowTable::with_max_entries(1 << 20, BPF_F_NO_PREALLOC);

#[map]
pub static FRAGMENTS_V4: FragmentTable<[u32; 4]> = FragmentTable::with_max_entries(16_384, 0);
#[map]
pub static FRAGMENTS_V6: FragmentTable<[u32; 10]> = FragmentTable::with_max_entries(16_384, 0);

/// Returns the installation's secret. It lies in read-only data, so that its words cost a load
/// each and no map lookup.
#[inline(always)]
pub fn hash_key() -> &'static HashKey {
    // The daemon writes the key into the object before it is loaded; the compiler must not take
    // the zeros above for it.
    let key = core::hint::black_box(&raw const HASH_KEY);
    // SAFETY: it points at a static that nobody writes once the program is loaded.
    unsafe { &*key }
}

/// Returns what kinds of service may exist for an address, from its last 32 bits, on a port; 0 for
/// any.
#[inline(always)]
pub fn vip_filter(low32: u32, port: u16) -> u8 {
    match VIP_FILTER.get_ptr(lb_common::service::vip_filter_index(low32, port)) {
        // SAFETY: the lookup returned a pointer to an element; the daemon may write it meanwhile,
        // one byte can't be torn.
        Some(entry) => unsafe { ptr::read_volatile(entry) },
        None => 0,
    }
}

/// Returns whether an address, in memory order, is one of a service.
#[inline(always)]
pub fn is_vip_v4(address: u32) -> bool {
    // SAFETY: only whether there is an element is asked.
    vip_filter(address, 0) & VIP_ADDRESS != 0 && unsafe { VIPS_V4.get(&address).is_some() }
}

/// An IPv6 address as a key: LLVM writes it as 64-bit words, and the verifier wants those aligned.
#[repr(C, align(8))]
struct Address6([u32; 4]);

/// Returns whether an address is one of a service.
#[inline(always)]
pub fn is_vip_v6(address: [u32; 4]) -> bool {
    let [.., low32] = address;
    // SAFETY: as for IPv4.
    vip_filter(low32, 0) & VIP_ADDRESS != 0 && unsafe { VIPS_V6.get(&Address6(address)).is_some() }
}

/// Returns what the operator set for all services.
#[inline(always)]
pub fn settings() -> Option<&'static Settings> {
    // SAFETY: an element lives as long as the map; the daemon may write it meanwhile, whole words of
    // which each is valid.
    SETTINGS.get_ptr(0).map(|settings| unsafe { &*settings })
}

/// Returns this CPU's state of a limit.
#[inline(always)]
pub fn limit(limited: Limited) -> Option<&'static mut u64> {
    // SAFETY: a per-CPU element; the program isn't preempted by itself on this CPU.
    LIMITS
        .get_ptr_mut(limited as u32)
        .map(|state| unsafe { &mut *state })
}

/// Returns how many places a half of the sources' buckets has.
#[inline(always)]
pub fn source_places() -> u32 {
    // As for the secret.
    let places = core::hint::black_box(&raw const SOURCE_PLACES);
    // SAFETY: as for the secret.
    unsafe { *places }
}

/// Returns the rates of a service.
#[inline(always)]
pub fn rates(service: u32) -> Option<RatesRef> {
    RATES.get_ptr(service).map(RatesRef)
}

/// Rates in the map, which the daemon may change at any time: for a moment a rate may be mixed of
/// two, which lets a packet more in or out.
#[derive(Clone, Copy)]
pub struct RatesRef(*const Rates);

macro_rules! rates {
    ($($name:ident),*) => {
        impl RatesRef {
            $(
                #[inline(always)]
                pub fn $name(self) -> Rate {
                    // SAFETY: a pointer to a map element, of words that are valid in themselves.
                    unsafe { ptr::read_volatile(&raw const (*self.0).$name) }
                }
            )*
        }
    };
}

rates!(
    source_packets,
    source_new_flows,
    packets,
    new_flows,
    half_open
);

/// A bucket, of this CPU.
#[derive(Clone, Copy)]
pub struct Bucket(*mut u64);

impl Bucket {
    #[inline(always)]
    pub fn get(self) -> u64 {
        // SAFETY: a word of a per-CPU map element.
        unsafe { ptr::read_volatile(self.0) }
    }

    #[inline(always)]
    pub fn set(self, value: u64) {
        // SAFETY: a word of a per-CPU map element.
        unsafe { ptr::write_volatile(self.0, value) }
    }
}

macro_rules! buckets {
    ($type:ident, $value:ident, $($name:ident),*) => {
        /// Buckets in the map.
        #[derive(Clone, Copy)]
        pub struct $type(*mut $value);

        impl $type {
            $(
                #[inline(always)]
                pub fn $name(self) -> Bucket {
                    // SAFETY: a pointer to a map element.
                    Bucket(unsafe { &raw mut (*self.0).$name })
                }
            )*
        }
    };
}

buckets!(
    ServiceBucketsRef,
    ServiceBuckets,
    packets,
    new_flows,
    half_open
);
buckets!(SourceBucketsRef, SourceBuckets, packets, new_flows);

/// Returns a service's buckets on this CPU.
#[inline(always)]
pub fn service_buckets(service: u32) -> Option<ServiceBucketsRef> {
    SERVICE_BUCKETS.get_ptr_mut(service).map(ServiceBucketsRef)
}

/// Returns the buckets at a place of sources on this CPU.
#[inline(always)]
pub fn source_buckets(place: u32) -> Option<SourceBucketsRef> {
    SOURCE_BUCKETS.get_ptr_mut(place).map(SourceBucketsRef)
}

/// Returns what is in force for all services.
#[inline(always)]
pub fn guard_settings() -> GuardSettings {
    match GUARD.get_ptr(0) {
        // SAFETY: the lookup returned a pointer to an element; the daemon may write it meanwhile,
        // a word at a time.
        Some(settings) => unsafe { ptr::read_volatile(settings) },
        None => GuardSettings {
            list_v4: 0,
            list_v6: 0,
        },
    }
}

/// Returns a bit of the filter in front of the tries of prefixes.
#[inline(always)]
pub fn near(bit: u32) -> bool {
    match NEAR.get_ptr(bit >> 6) {
        Some(word) => {
            // SAFETY: the lookup returned a pointer to an element, which is aligned to 8 bytes; the
            // daemon stores whole words.
            let word = unsafe { ptr::read_volatile(word) };
            word >> (bit & 63) & 1 != 0
        }
        None => true,
    }
}

/// Returns what a list has for an IPv4 source.
#[inline(always)]
pub fn longest_prefix_v4(list: ListId, source: u32) -> Option<u32> {
    let key = [trie_key(32, list), u64::from(source)];
    // SAFETY: a key is the first twelve of these bytes, on a little-endian machine.
    let key: &lpm_trie::Key<[u32; 2]> = unsafe { &*(&raw const key).cast() };
    PREFIXES_V4.get(key).copied()
}

/// Returns what a list has for an IPv6 source.
#[inline(always)]
pub fn longest_prefix_v6(list: ListId, [a, b, c, d]: [u32; 4]) -> Option<u32> {
    let words = |low: u32, high: u32| u64::from(low) | u64::from(high) << 32;
    let key = [trie_key(128, list), words(a, b), words(c, d)];
    // SAFETY: a key is these 24 bytes, on a little-endian machine.
    let key: &lpm_trie::Key<[u32; 5]> = unsafe { &*(&raw const key).cast() };
    PREFIXES_V6.get(key).copied()
}

/// Returns the first two words of a trie's key as one. Keys are made of such: of smaller words LLVM
/// would put pairs together that are not aligned, which the verifier refuses on the stack.
#[inline(always)]
fn trie_key(bits: u32, list: ListId) -> u64 {
    u64::from(LIST_BITS + bits) | u64::from(list.get()) << 32
}

const _: () = assert!(cfg!(target_endian = "little"));

/// Returns the row at `index`.
#[inline(always)]
pub fn row(index: u32) -> Row {
    match RING.get_ptr(index) {
        // SAFETY: the lookup returned a pointer to an element, which is aligned to 8 bytes; the
        // daemon stores rows as whole 64-bit words.
        Some(row) => Row::from_bits(unsafe { ptr::read_volatile(row) }),
        None => Row::EMPTY,
    }
}

/// Returns the backend at `slot`.
#[inline(always)]
pub fn backend(slot: BackendSlot) -> Option<BackendRef> {
    if slot.is_none() {
        return None;
    }
    BACKENDS.get_ptr(slot.get()).map(BackendRef)
}

/// A backend in the map, which the daemon may change at any time: only its head and the template
/// that the head names may be read.
#[derive(Clone, Copy)]
pub struct BackendRef(*const Backend);

impl BackendRef {
    /// Returns the backend's head as it is now.
    #[inline(always)]
    pub fn head(self) -> lb_common::backend::Head {
        // SAFETY: a pointer to a map element, aligned to 8 bytes, written as whole 64-bit words.
        lb_common::backend::Head::from_bits(unsafe {
            ptr::read_volatile(&raw const (*self.0).head)
        })
    }

    /// Returns the template that `head` names.
    #[inline(always)]
    pub fn template(self, head: lb_common::backend::Head) -> TemplateRef {
        let side = head.side() as usize & 1;
        // SAFETY: the index is 0 or 1.
        TemplateRef(unsafe {
            (&raw const (*self.0).templates)
                .cast::<lb_common::backend::Template>()
                .add(side)
        })
    }
}

/// A template in the map. The daemon doesn't write the side that is in force, nor one that was
/// in force a moment ago, so its bytes hold still while a packet copies them.
#[derive(Clone, Copy)]
pub struct TemplateRef(*const lb_common::backend::Template);

impl core::ops::Deref for TemplateRef {
    type Target = lb_common::backend::Template;

    #[inline(always)]
    fn deref(&self) -> &Self::Target {
        // SAFETY: a pointer to a map element, which lives as long as the map; nobody writes it
        // (see the type).
        unsafe { &*self.0 }
    }
}

/// Counts a packet and its bytes for a backend and its service.
#[inline(always)]
pub fn count_sent(slot: BackendSlot, service: u32, bytes: u64, opening: bool) {
    if let Some(stats) = BACKEND_STATS.get_ptr_mut(slot.get()) {
        // SAFETY: a per-CPU element; the program isn't preempted by itself on this CPU.
        let stats = unsafe { &mut *stats };
        stats.packets += 1;
        stats.bytes += bytes;
        stats.new_flows += opening as u64;
    }
    if let Some(stats) = SERVICE_STATS.get_ptr_mut(service) {
        // SAFETY: as above.
        let stats = unsafe { &mut *stats };
        stats.packets += 1;
        stats.bytes += bytes;
        stats.new_flows += opening as u64;
    }
}

/// Counts a packet that a service's backends could not take.
#[inline(always)]
pub fn count_dropped(service: u32) {
    if let Some(stats) = SERVICE_STATS.get_ptr_mut(service) {
        // SAFETY: a per-CPU element, as above.
        unsafe { (*stats).dropped += 1 };
    }
}

/// Counts a refused flow table entry, and writes down when.
#[inline(always)]
pub fn count_refused(service: u32, now: u64) {
    if let Some(stats) = SERVICE_STATS.get_ptr_mut(service) {
        // SAFETY: a per-CPU element, as above.
        let stats = unsafe { &mut *stats };
        stats.refused += 1;
        stats.refused_at = now;
    }
}

/// Counts a packet that was passed or dropped.
#[inline(always)]
pub fn count_reason(reason: Reason) {
    if let Some(count) = REASONS.get_ptr_mut(reason as u32) {
        // SAFETY: a per-CPU element, as above.
        unsafe { *count += 1 };
    }
}

/// Returns this CPU's place for what would take too much of the stack.
#[inline(always)]
#[expect(
    clippy::mut_from_ref,
    reason = "the map is not the element, and every CPU has its own"
)]
pub fn place<T>(places: &'static PerCpuArray<T>) -> Option<&'static mut T> {
    // SAFETY: a per-CPU element; the program isn't preempted by itself on this CPU.
    places.get_ptr_mut(0).map(|place| unsafe { &mut *place })
}

/// Returns this CPU's place for what a later fragment follows.
#[inline(always)]
pub fn found_fragment() -> Option<&'static mut Fragment> {
    place(&FOUND_FRAGMENT)
}

/// Returns this CPU's explanation record.
#[inline(always)]
pub fn explanation() -> Option<*mut Explanation> {
    EXPLAIN.get_ptr_mut(0)
}

/// Sends the frame out of the interface `ifindex`. Returns whether that interface is in the map.
#[inline(always)]
pub fn redirect(ifindex: u32) -> bool {
    DEVICES
        .redirect(ifindex, u64::from(xdp_action::XDP_DROP))
        .is_ok()
}

/// Returns the kernel's jiffies.
#[inline(always)]
pub fn jiffies() -> u64 {
    // SAFETY: the helper takes nothing and reads a clock.
    unsafe { bpf_jiffies64() }
}

/// Returns the monotonic clock in nanoseconds. Costs more than [`jiffies`]: not for packets on the
/// way to a backend.
#[inline(always)]
pub fn monotonic_ns() -> u64 {
    // SAFETY: the helper takes nothing and reads a clock.
    unsafe { bpf_ktime_get_ns() }
}
