//! Reconciliation: a pure function of what is desired, observed and installed.
//!
//! [`service`] compares what the operator declared of one service and what readers saw of its
//! backends with what the maps hold, and returns the map writes that close the gap, in an order
//! in which a packet is well served at every point between them. Nothing here does I/O; the same
//! plan is printed by a dry run and carried out by `crate::engine`.

mod backend;
mod installed;
mod nat;
mod service;

pub use backend::{BackendState, Eligibility, Ways, eligibility};
pub use installed::{InstalledBackend, InstalledService, Segment};
pub use service::{Input, ServicePlan, Step, identity, service};
