//! Cases made up at random, from a seed: the same one gives the same case.

pub mod draft;
pub mod frame;
pub mod mutate;
pub mod pool;
pub mod random;
pub mod world;

use std::net::IpAddr;

use super::case::Case;
use super::world::{Row, Service};
use random::Random;

/// Returns a service on port 80 whose only row is backend 1's, or 5's for IPv6.
#[must_use]
pub fn pool_service(vip: IpAddr, protocol: u8) -> Service {
    let owner = if vip.is_ipv4() { 1 } else { 5 };
    Service {
        vip,
        port: 80,
        protocol,
        ring: vec![Row {
            owner,
            untracked: owner,
            lookup: false,
        }],
    }
}

/// Returns the case of a seed, with up to so many frames.
#[must_use]
pub fn case(seed: u64, frames: usize) -> Case {
    let mut random = Random::new(seed);
    let world = world::world(&mut random);
    let frames = (0..frames)
        .map(|_| {
            let mut frame = frame::frame(&mut random, &world);
            if random.one_in(4) {
                mutate::mutate(&mut random, &mut frame);
            }
            frame
        })
        .collect();
    Case {
        name: format!("seed {seed}"),
        why: String::new(),
        frames,
        world,
    }
}
