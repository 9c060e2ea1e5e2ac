//! Names of the BPF maps, as they are pinned.

/// `Array<u32>` of one entry: the [`crate::ABI_VERSION`] of the pinned maps.
pub const ABI: &str = "ABI";
/// `HashMap<ServiceKey4, Service>`.
pub const SERVICES_V4: &str = "SERVICES_V4";
/// `HashMap<ServiceKey6, Service>`.
pub const SERVICES_V6: &str = "SERVICES_V6";
/// `Array<u8>`: which kinds of service may exist for a destination address, by its hash.
pub const VIP_FILTER: &str = "VIP_FILTER";
/// `HashMap<[u8; 4], u32>`: the IPv4 addresses of services. A set: the values are zero.
pub const VIPS_V4: &str = "VIPS_V4";
/// `HashMap<[u8; 16], u32>`: the IPv6 addresses of services.
pub const VIPS_V6: &str = "VIPS_V6";
/// `Array<Settings>` of one entry.
pub const SETTINGS: &str = "SETTINGS";
/// `Array<u64>` of [`crate::row::Row`]s, memory-mapped by the daemon.
pub const RING: &str = "RING";
/// `Array<Backend>`, memory-mapped by the daemon.
pub const BACKENDS: &str = "BACKENDS";
/// Flow tables, IPv4: opening packet seen, second packet seen, kept for a row's untracked backend.
pub const FLOWS_V4: [&str; 3] = ["HALF_OPEN_V4", "CONFIRMED_V4", "KEPT_V4"];
/// Flow tables, IPv6.
pub const FLOWS_V6: [&str; 3] = ["HALF_OPEN_V6", "CONFIRMED_V6", "KEPT_V6"];
/// `LruHashMap<FragmentKey4, Fragment>`.
pub const FRAGMENTS_V4: &str = "FRAGMENTS_V4";
/// `LruHashMap<FragmentKey6, Fragment>`.
pub const FRAGMENTS_V6: &str = "FRAGMENTS_V6";
/// `HashMap<ServiceKey4, NatSource>`, by a VM's address, port (0: any) and protocol.
pub const NAT_SOURCES_V4: &str = "NAT_SOURCES_V4";
/// `HashMap<ServiceKey6, NatSource>`.
pub const NAT_SOURCES_V6: &str = "NAT_SOURCES_V6";
/// `DevMapHash`: the interfaces that packets may be redirected to, by index.
pub const DEVICES: &str = "DEVICES";
/// `PerCpuArray<BackendStats>`, by backend slot.
pub const BACKEND_STATS: &str = "BACKEND_STATS";
/// `PerCpuArray<ServiceStats>`, by service slot.
pub const SERVICE_STATS: &str = "SERVICE_STATS";
/// `PerCpuArray<u64>`, by [`crate::stats::Reason`].
pub const REASONS: &str = "REASONS";
/// `PerCpuArray<Explanation>` of one entry.
pub const EXPLAIN: &str = "EXPLAIN";
/// `Array<GuardSettings>` of one entry.
pub const GUARD: &str = "GUARD";
/// `LpmTrie` from [`crate::guard::PrefixKey4`] to `u32`: lists of sources, IPv4.
pub const PREFIXES_V4: &str = "PREFIXES_V4";
/// `LpmTrie` from [`crate::guard::PrefixKey6`] to `u32`: lists of sources, IPv6.
pub const PREFIXES_V6: &str = "PREFIXES_V6";
/// `Array<u64>`, memory-mapped by the daemon: the filter in front of the tries.
pub const NEAR: &str = "NEAR";
/// `Array<Rates>`, by service slot.
pub const RATES: &str = "RATES";
/// `PerCpuArray<ServiceBuckets>`, by service slot.
pub const SERVICE_BUCKETS: &str = "SERVICE_BUCKETS";
/// `PerCpuArray<SourceBuckets>`, by [`crate::bucket::places`].
pub const SOURCE_BUCKETS: &str = "SOURCE_BUCKETS";
