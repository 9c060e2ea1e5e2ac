//! What the operator sets for all services: read by the few packets that it is about, and never on
//! the way of a packet to its backend.

use crate::rate::Rate;

/// The value of the settings map. The daemon replaces it as a whole; a packet may read some words of
/// the old one and some of the new, of which each is valid in itself.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, bytemuck::Pod, bytemuck::Zeroable)]
pub struct Settings {
    /// 1 if echo requests to virtual addresses are answered, 0 if they pass to the host.
    pub echo: u32,
    /// 1 if fragments to virtual addresses of which no first one was seen are dropped, 0 if they pass
    /// to the host.
    pub drop_unknown_fragments: u32,
    /// How often they are answered, by each CPU.
    pub echo_rate: Rate,
    /// How often a sender is told that its packet is too long for the way to its backend, by each CPU.
    pub too_big_rate: Rate,
    /// For how many jiffies later fragments may follow a first one.
    pub fragment_jiffies: u32,
    /// Not used, zero.
    pub _pad: u32,
}

/// What has a limit of its own on each CPU; an index of the map of limits' states.
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Limited {
    /// Answers to echo requests.
    Echo = 0,
    /// Packets whose senders are told that they are too long.
    TooBig = 1,
}

impl Limited {
    /// Number of limits.
    pub const COUNT: u32 = 2;
}

const _: () = assert!(size_of::<Settings>() == 48);
