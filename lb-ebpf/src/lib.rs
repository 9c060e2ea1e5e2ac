//! What Weir's XDP programs share.
#![no_std]

pub mod packet;
