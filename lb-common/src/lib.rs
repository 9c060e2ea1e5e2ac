//! What Weir's XDP programs and its daemon share.
//!
//! The types in here are the values and keys of BPF maps, so their layout is an interface between
//! two programs that may be of different ages: a daemon adopts the maps that an older one pinned.
//! Each type derives [`bytemuck::Pod`], which refuses a type with padding at compile time, and
//! [`ABI_VERSION`] changes whenever the layout or the meaning of one of them does.
//!
//! Everything with arithmetic worth a test (hash, checksums, the row rule, outer headers) is pure
//! code in here. The XDP program adds pointers and maps, the daemon adds decisions.
#![cfg_attr(not(test), no_std)]

pub mod backend;
pub mod bench;
pub mod bucket;
pub mod csum;
pub mod decap;
pub mod explain;
pub mod flow;
pub mod fragment;
pub mod guard;
pub mod hash;
pub mod map_names;
pub mod nat;
pub mod outer;
#[cfg(feature = "user")]
mod pod;
pub mod rate;
pub mod row;
pub mod service;
pub mod settings;
pub mod stats;

/// Version of the map layout. A daemon refuses pinned maps of another version.
pub const ABI_VERSION: u32 = 4;

/// Number of interfaces that packets can be redirected to.
pub const DEVICES: u32 = 1024;

/// `IPPROTO_TCP`.
pub const PROTO_TCP: u8 = 6;
/// `IPPROTO_UDP`.
pub const PROTO_UDP: u8 = 17;
/// `IPPROTO_IPIP`: an IPv4 packet in an IP packet (RFC 2003).
pub const PROTO_IPIP: u8 = 4;
/// `IPPROTO_IPV6`: an IPv6 packet in an IP packet (RFC 2473).
pub const PROTO_IPV6: u8 = 41;
