//! The domain: services, backends, and the three states of the control loop.
//!
//! - [`Desired`]: what the operator declared.
//! - [`Observed`]: what readers saw, each value with its time.
//! - Installed: what the maps hold; see `crate::dataplane`.
//!
//! This module knows nobody else in the crate, does no I/O and reads no clock. Its types are not
//! serialisable on purpose: configuration and API have types of their own.

mod backend;
mod desired;
mod fragments;
mod guard;
mod health;
mod icmp;
mod name;
mod nat;
mod observed;
mod overlay;
mod rates;
mod service;
mod vlan;

pub use backend::{Backend, Forward, Mac, Weight};
pub use desired::{AttachMode, Desired, EncapSource, Interface, Limits};
pub use fragments::Fragments;
pub use guard::{Guard, Judged, ListKind, Prefix, PrefixError, Prefixes};
pub use health::{HealthCheck, HealthState, Probe};
pub use icmp::Icmp;
pub use name::{Name, NameError};
pub use nat::{Ambiguity, ambiguities};
pub use observed::{BackendId, NextHop, Observed, Seen};
pub use overlay::{GeneveOptions, GeneveOptionsError, Overlay, OverlayHeader, Vni};
pub use rates::{RateLimit, RateLimits};
pub use service::{L4Protocol, Service, ServicePort, Vip};
pub use vlan::{TagProtocol, Vlan, VlanTag};
