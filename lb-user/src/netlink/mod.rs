//! Next hops of backends, from the kernel's routes and neighbours.
//!
//! The kernel itself looks routes up (`RTM_GETROUTE`), so policy routing and source addresses are
//! right. Links, neighbours and bridge forwarding tables are mirrored: what the kernel says of
//! neighbours is taken over, everything else is read anew when the kernel says that it changed.

mod egress;
mod kernel;
mod pace;
mod resolve;
mod resolver;
mod tables;

#[cfg(test)]
mod tests;

pub use egress::Egress;
pub use resolve::{Route, Target, Unresolved, resolve};
pub use resolver::{Event, NetlinkError, Resolver};
pub use tables::{Link, LinkKind, Neighbour, PortKey, Tables, VlanMember};
