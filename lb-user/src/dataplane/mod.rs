//! The data plane: the only module that names a BPF map.
//!
//! [`Dataplane`] is what the control loop needs of it: plain reads and writes of map entries, no
//! decisions. [`Kernel`] is the real one, [`Memory`] its twin without a kernel, with which the
//! whole loop runs in tests without root.

mod addresses;
mod attach;
mod clock;
mod counters;
mod explain;
mod features;
mod kernel;
mod keys;
mod link_mode;
mod lists;
mod load;
#[cfg(feature = "log")]
mod log;
mod mapped;
mod memory;
mod nat;
mod object;
mod open;
mod pins;
mod sys;
mod walk;

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::time::Duration;

use lb_common::{
    backend::{Backend, BackendSlot, Head, Template},
    explain::Explanation,
    flow::{FlowEntry, FlowKey4, FlowKey6, Table},
    nat::NatSource,
    row::Row,
    service::Service,
    settings,
    stats::{BackendStats, Reason, ServiceStats},
};

pub(crate) use attach::attach as attach_program;
pub use attach::{AttachError, Attached, XdpMode};
pub use clock::{Clock, Jiffies};
pub(crate) use explain::test_run;
pub use features::{Feature, FeatureError, probe};
pub use kernel::Kernel;
pub use keys::{nat_filter_index, vip_filter_entries};
pub use lists::{Entry, Lists};
pub use load::{LoadError, Settings, load};
pub use memory::Memory;
#[cfg(feature = "bench")]
pub use object::BENCH_OBJECT;
pub use object::{DECAP_OBJECT, OBJECT};
pub use pins::{PinError, Pins};
pub use walk::FlowCursor;

use crate::model::Vip;

/// Why a map could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum MapError {
    /// The map has no room.
    #[error("the map {map} is full: it has {capacity} entries")]
    Full {
        /// The map's name.
        map: &'static str,
        /// Its size.
        capacity: u32,
    },
    /// An index lies outside of the map.
    #[error("index {index} is outside of the map {map}, which has {capacity} entries")]
    OutOfRange {
        /// The map's name.
        map: &'static str,
        /// The index.
        index: u32,
        /// The map's size.
        capacity: u32,
    },
    /// The kernel refused.
    #[error("map {map}")]
    Kernel {
        /// The map's name.
        map: &'static str,
        /// What it said.
        #[source]
        source: aya::maps::MapError,
    },
    /// The clock program did not run.
    #[error("the kernel's clock could not be read")]
    Clock(#[source] std::io::Error),
}

/// A flow key of either family.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum FlowKey {
    /// IPv4.
    V4(FlowKey4),
    /// IPv6.
    V6(FlowKey6),
}

/// What the control loop needs of the data plane. Every call is one map access.
pub trait Dataplane: Lists {
    /// Makes packets for `vip` go to a ring, or changes to which. Packets see the old service or
    /// the new.
    fn set_service(&mut self, vip: &Vip, service: &Service) -> Result<(), MapError>;
    /// Lets packets for `vip` pass.
    fn remove_service(&mut self, vip: &Vip) -> Result<(), MapError>;
    /// Returns all services.
    fn services(&self) -> Result<Vec<(Vip, Service)>, MapError>;

    /// Makes a VM's answers from an address, port and protocol come from a service.
    fn set_nat_source(&mut self, at: &Vip, source: &NatSource) -> Result<(), MapError>;
    /// Leaves what comes from there as it is.
    fn remove_nat_source(&mut self, at: &Vip) -> Result<(), MapError>;
    /// Returns what the answers of all VMs come from.
    fn nat_sources(&self) -> Result<Vec<(Vip, NatSource)>, MapError>;

    /// Sets an entry of the VIP filter; see [`vip_filter_entry`].
    fn set_vip_filter(&mut self, index: u32, kinds: u8) -> Result<(), MapError>;
    /// Returns an entry of the VIP filter.
    fn vip_filter(&self, index: u32) -> Result<u8, MapError>;

    /// Makes an address one of a service's, for packets that have no port.
    fn add_address(&mut self, address: IpAddr) -> Result<(), MapError>;
    /// Makes an address nobody's.
    fn remove_address(&mut self, address: IpAddr) -> Result<(), MapError>;
    /// Returns all addresses of services.
    fn addresses(&self) -> Result<BTreeSet<IpAddr>, MapError>;

    /// Sets what the operator sets for all services.
    fn set_settings(&mut self, settings: &settings::Settings) -> Result<(), MapError>;
    /// Returns it.
    fn settings(&self) -> Result<settings::Settings, MapError>;

    /// Stores a row. One atomic store.
    fn set_row(&mut self, index: u32, row: Row) -> Result<(), MapError>;
    /// Returns a row.
    fn row(&self, index: u32) -> Result<Row, MapError>;

    /// Fills a template of a backend: only the side that is not in force, and not before packets
    /// that read it while it was have left.
    fn set_template(
        &mut self,
        slot: BackendSlot,
        side: u8,
        template: &Template,
    ) -> Result<(), MapError>;
    /// Stores a backend's head. One atomic store, after everything that was written before it.
    fn set_head(&mut self, slot: BackendSlot, head: Head) -> Result<(), MapError>;
    /// Returns a backend.
    fn backend(&self, slot: BackendSlot) -> Result<Backend, MapError>;

    /// Makes an interface one that packets can be redirected to.
    fn add_device(&mut self, ifindex: u32) -> Result<(), MapError>;

    /// Calls `visit` with some thousand flow table entries from `cursor` on, and moves it. Returns
    /// whether there may be more. Entries that come or go meanwhile may be missed.
    fn walk_flows(
        &self,
        cursor: &mut FlowCursor,
        visit: &mut dyn FnMut(Table, FlowKey, FlowEntry),
    ) -> Result<bool, MapError>;
    /// Calls `visit` with every flow table entry.
    fn visit_flows(
        &self,
        visit: &mut dyn FnMut(Table, FlowKey, FlowEntry),
    ) -> Result<(), MapError> {
        let mut cursor = FlowCursor::default();
        while self.walk_flows(&mut cursor, visit)? {}
        Ok(())
    }
    /// Returns a flow table entry, if there is one.
    fn flow(&self, table: Table, key: &FlowKey) -> Result<Option<FlowEntry>, MapError>;
    /// Deletes a flow table entry; it may be gone already.
    fn remove_flow(&mut self, table: Table, key: &FlowKey) -> Result<(), MapError>;

    /// Returns a backend's counters, summed over CPUs.
    fn backend_stats(&self, slot: BackendSlot) -> Result<BackendStats, MapError>;
    /// Sets a backend's counters to zero. Only for slots that no row names.
    fn clear_backend_stats(&mut self, slot: BackendSlot) -> Result<(), MapError>;
    /// Returns a service's counters, summed over CPUs.
    fn service_stats(&self, slot: u32) -> Result<ServiceStats, MapError>;
    /// Sets a service's counters to zero. Only for slots that no service names.
    fn clear_service_stats(&mut self, slot: u32) -> Result<(), MapError>;
    /// Returns how many packets left for a reason, summed over CPUs.
    fn reason(&self, reason: Reason) -> Result<u64, MapError>;

    /// Returns the clock of the flow entries.
    fn clock(&self) -> Result<Clock, MapError>;
}

/// What a program did with a crafted packet.
#[derive(Clone, Debug)]
pub struct Explained {
    /// The verdict: a number of `enum xdp_action`.
    pub verdict: u32,
    /// The frame as it would leave.
    pub frame: Vec<u8>,
    /// The decisions on the way.
    pub explanation: Explanation,
}

/// How long a packet can be under way in the program at the very most: the pause between taking
/// something out of force and writing over it. The kernel runs the program in one go with
/// bottom halves off, for microseconds.
pub const GRACE: Duration = Duration::from_millis(100);
