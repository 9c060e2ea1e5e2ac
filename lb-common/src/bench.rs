//! What the benchmark's driver program is told.

/// How many bytes of the frame the driver restores.
pub const TEMPLATE_LEN: usize = 56;

/// The value of the driver's only map.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, bytemuck::Pod, bytemuck::Zeroable)]
pub struct Setup {
    /// The first bytes of the frame.
    pub template: [u64; TEMPLATE_LEN / 8],
    /// The frame's length in bytes.
    pub frame_len: i32,
    /// Number of flows minus one; the number is a power of two, up to 2^32.
    pub flow_mask: u32,
    /// The next flow's number; the driver counts it up.
    pub next: u32,
    /// 1 for an IPv6 frame: its source address and ports lie elsewhere.
    pub ipv6: u32,
    /// What lies behind the first bytes: the destination port of an IPv6 frame, which NAT changes, in
    /// memory order.
    pub port_v6: u16,
    /// Not used, zero.
    pub _pad: [u8; 6],
}
