//! Walking the kernel's flow tables a batch at a time.

use std::cell::RefCell;
use std::io;
use std::os::fd::{AsFd as _, OwnedFd};

use aya::maps::MapData;
use bytemuck::Zeroable as _;
use lb_common::flow::FlowEntry;

use super::sys::lookup_batch;

/// Entries that a batch begins with; it grows where a bucket of the map holds more.
const BATCH: usize = 4096;

/// Where a walk over all flow tables stands.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FlowCursor {
    /// Number of the table: IPv4 first, each in the order of `Table::ALL`.
    pub(super) table: usize,
    /// Where the kernel stopped in it.
    pub(super) position: Option<u32>,
}

/// A descriptor of a flow table, and the buffers to read it into.
pub(super) struct Walk<K> {
    map: OwnedFd,
    buffers: RefCell<(Vec<K>, Vec<FlowEntry>)>,
}

impl<K: bytemuck::Pod> Walk<K> {
    /// Returns a walk over a hash map with keys `K` and flow entries as values.
    pub fn new(map: &MapData) -> io::Result<Self> {
        Ok(Self {
            map: map.fd().as_fd().try_clone_to_owned()?,
            buffers: RefCell::new((Vec::new(), Vec::new())),
        })
    }

    /// Visits the next batch. Returns whether there may be more.
    pub fn step(
        &self,
        position: &mut Option<u32>,
        visit: &mut dyn FnMut(K, FlowEntry),
    ) -> io::Result<bool> {
        let mut buffers = self.buffers.borrow_mut();
        let (keys, values) = &mut *buffers;
        if keys.is_empty() {
            keys.resize(BATCH, K::zeroed());
            values.resize(BATCH, FlowEntry::zeroed());
        }
        let (count, more) = loop {
            match lookup_batch(self.map.as_fd(), position, keys, values) {
                Err(error) if error.raw_os_error() == Some(libc::ENOSPC) => {
                    keys.resize(keys.len() * 2, K::zeroed());
                    values.resize(values.len() * 2, FlowEntry::zeroed());
                }
                result => break result?,
            }
        };
        for (key, entry) in keys.iter().zip(values.iter()).take(count) {
            visit(*key, *entry);
        }
        Ok(more)
    }
}
