//! The state directory: what must survive the daemon and isn't in the kernel.
//!
//! - `overrides.json`: the operator's own changes, made through the API over the file.
//! - `slots.json`: which service and backend has which place in the kernel's maps.
//! - `guard-deny`, `guard-allow@SERVICE` and so on: lists of sources that were loaded through the API.
//! - `secret`: the key of the flow hash. Balancers that share a VIP share it.
//! - `lock`: held by the daemon that uses the directory.

mod directory;
mod lists;
mod overrides;
mod slots;

#[cfg(test)]
mod tests;

pub use directory::{Directory, StateError};
pub use lists::{ListOwner, LoadedLists};
pub use overrides::{BackendOverride, NotThere, Overrides, ServiceOverride};
pub use slots::{NoSlot, Slots, Unused};
