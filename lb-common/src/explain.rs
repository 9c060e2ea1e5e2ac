//! What `weir explain` reads: the decisions of one packet, written by the explaining program.

/// The record of one packet. Fields that the packet did not get far enough for are zero.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, bytemuck::Pod, bytemuck::Zeroable)]
pub struct Explanation {
    /// The flow's hash.
    pub hash: u64,
    /// The row, as stored.
    pub row: u64,
    /// The head of the backend, as stored.
    pub head: u64,
    /// A [`crate::stats::Reason`].
    pub reason: u32,
    /// 1 if a service was found, and the next two fields say something.
    pub has_service: u32,
    /// The service's slot.
    pub service: u32,
    /// Index of the row in the ring map.
    pub row_index: u32,
    /// The backend slot.
    pub backend: u32,
    /// 1 if the packet is an opening packet.
    pub opening: u32,
    /// 0 if the flow table was not asked, 1 for a miss, else 2 + the [`crate::flow::Table`].
    pub table: u32,
    /// 0 if the flow table was not asked, else 1 + the number of the [`crate::row::Choice`] in the
    /// order of its declaration.
    pub choice: u32,
}

const _: () = assert!(size_of::<Explanation>() == 56);
