//! Next hops of backends, from the kernel's routes and neighbours.
//!
//! The kernel itself looks routes up (`RTM_GETROUTE`), so policy routing and source addresses are
//! right. Links, neighbours and bridge forwarding tables are mirrored, and read anew when the
//! kernel says that they changed.

mod kernel;
mod resolve;
mod resolver;
mod tables;

#[cfg(test)]
mod tests;

pub use resolve::{Route, Target, Unresolved, resolve};
pub use resolver::{Event, NetlinkError, Resolver};
pub use tables::{Link, LinkKind, Neighbour, Tables};
