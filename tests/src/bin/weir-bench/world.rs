use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::num::NonZeroU16;
use std::path::PathBuf;

use anyhow::{Context as _, Result};
use aya::maps::MapData;
use aya::programs::ProgramFd;
use lb_common::backend::{BackendSlot, Head};
use lb_common::hash::HashKey;
use lb_common::row::Row;
use lb_common::service::Service;
use lb_common::stats::Reason;
use lb_tests::netns;
use lb_user::dataplane::{Dataplane as _, Kernel, Pins, Settings, load, vip_filter_entries};
use lb_user::engine::fill_list;
use lb_user::model::{
    Backend, EncapSource, Guard, L4Protocol, Limits, Mac, NextHop, Prefix, Prefixes, ServicePort,
    Vip, Weight,
};
use lb_user::template;

use super::cases::Case;

/// Given to the host's stack.
pub const XDP_PASS: u32 = 2;
/// Sent out of the interface that it came in by.
pub const XDP_TX: u32 = 3;

/// Backends of the service.
pub const BACKENDS: u32 = 100;
/// Rows of its ring: twice as many as a service of that many backends has
/// (`lb_user::ring::rows_for`), as in the measurement that the design began with.
pub const ROWS: u32 = 65_536;

/// The Ethernet address that frames are sent from.
pub const OWN: [u8; 6] = [2, 0, 0, 0, 0, 1];

/// Returns a backend's Ethernet address.
pub const fn mac(number: u8) -> [u8; 6] {
    [2, 0, 0, 0, 1, number]
}

/// Returns a backend's address.
pub fn address(number: u8, v4: bool) -> IpAddr {
    if v4 {
        [198, 18, 1, number].into()
    } else {
        [0x2001, 0xdb8, 1, 0, 0, 0, 0, number.into()].into()
    }
}

/// Returns the source address of outer headers.
pub fn source(v4: bool) -> IpAddr {
    if v4 {
        [198, 18, 0, 1].into()
    } else {
        [0x2001, 0xdb8, 0, 0, 0, 0, 0, 1].into()
    }
}

/// What packets counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Counters {
    /// Sent.
    pub sent: u64,
    /// Passed to the host.
    pub passed: u64,
    /// Flow table entries refused.
    pub refused: u64,
}

impl Counters {
    /// Returns by how much they grew.
    pub fn since(&self, before: &Self) -> Self {
        Self {
            sent: self.sent - before.sent,
            passed: self.passed - before.passed,
            refused: self.refused - before.refused,
        }
    }
}

/// A loaded data plane with one service.
pub struct World {
    /// The data plane.
    pub kernel: Kernel,
    pins: Pins,
}

pub fn slot(number: u32) -> BackendSlot {
    BackendSlot::from_stored(number)
}

impl World {
    /// Loads the program with the service of a case.
    pub fn new(case: &Case) -> Result<Self> {
        let directory = netns::pins("bench");
        let pins = Pins::new(&directory);
        let kernel = load(&settings(directory, case.limits())).context("loading; are you root?")?;
        let mut world = Self { kernel, pins };
        world.fill(case)?;
        Ok(world)
    }

    fn fill(&mut self, case: &Case) -> Result<()> {
        let kernel = &mut self.kernel;
        let vip = Vip {
            address: case.vip,
            port: ServicePort::Exact(NonZeroU16::new(80).context("a port")?),
            protocol: if case.udp {
                L4Protocol::Udp
            } else {
                L4Protocol::Tcp
            },
        };
        for number in 1..=BACKENDS {
            let outer_v4 = case.backend.is_ipv4();
            let backend = Backend {
                address: address(number as u8, outer_v4),
                weight: Weight::DEFAULT,
                draining: false,
                forward: case.forward,
                port: case.port,
                interface: None,
                mac: None,
            };
            let hop = NextHop {
                // Where test runs come in by: so packets leave by XDP_TX.
                ifindex: 1,
                vlan: None,
                source_mac: Mac(OWN),
                destination_mac: Mac(mac(number as u8)),
                source_address: Some(source(outer_v4)),
                mtu: 1500,
            };
            let template = template::build(vip, &backend, &hop, &EncapSource::default())?;
            kernel.set_template(slot(number), 0, &template)?;
            kernel.set_head(slot(number), Head::new(0, true, true, 0))?;
        }
        for index in 0..ROWS {
            let owner = slot(1 + index % BACKENDS);
            let before = slot(1 + (index + 1) % BACKENDS);
            let row = if case.moved {
                Row::new(owner, before, true)
            } else {
                Row::settled(owner)
            };
            kernel.set_row(index, row)?;
        }
        let guard = Guard {
            deny: Some(denied(case.denied, case.vip.is_ipv4())),
            ..Guard::default()
        };
        let list = fill_list(kernel, &guard, case.vip.is_ipv4(), 1)?;
        let service = Service {
            ring_base: 0,
            ring_mask: ROWS - 1,
            slot: 0,
            flags: if list.is_none() { 0 } else { Service::LISTS },
            guard_list: list.get(),
            _pad: 0,
        };
        kernel.set_service(&vip, &service)?;
        for (index, kind) in vip_filter_entries(&vip) {
            let kinds = kernel.vip_filter(index)?;
            kernel.set_vip_filter(index, kinds | kind)?;
        }
        kernel.add_address(vip.address)?;
        kernel.set_settings(&lb_common::settings::Settings {
            fragment_jiffies: u32::MAX,
            ..Default::default()
        })?;
        Ok(())
    }

    /// Returns the program under test.
    pub fn program_fd(&mut self) -> Result<&ProgramFd> {
        Ok(self.kernel.program("weir")?.fd()?)
    }

    /// Returns how many instructions the verifier went through, by program.
    pub fn instructions(&mut self) -> Result<Vec<(String, u32)>> {
        let mut counts = Vec::new();
        for name in ["weir", "weir_explain"] {
            let info = self.kernel.program(name)?.info()?;
            let count = info.verified_instruction_count().unwrap_or(0);
            counts.push((name.to_owned(), count));
        }
        Ok(counts)
    }

    /// Returns what was counted so far.
    pub fn counters(&self) -> Result<Counters> {
        let stats = self.kernel.service_stats(0)?;
        let mut passed = 0;
        for reason in [
            Reason::PassNoService,
            Reason::PassNotIp,
            Reason::PassProtocol,
        ] {
            passed += self.kernel.reason(reason)?;
        }
        Ok(Counters {
            sent: stats.packets,
            passed,
            refused: stats.refused,
        })
    }

    /// Returns how many half-open, confirmed and kept flows there are.
    pub fn entries(&self) -> Result<[u64; 3]> {
        let mut counts = [0; 3];
        self.kernel
            .visit_flows(&mut |table, _, _| counts[table as usize] += 1)?;
        Ok(counts)
    }

    /// Empties the flow tables.
    pub fn forget_flows(&mut self) -> Result<()> {
        let mut all = Vec::new();
        self.kernel
            .visit_flows(&mut |table, key, _| all.push((table, key)))?;
        for (table, key) in all {
            self.kernel.remove_flow(table, &key)?;
        }
        Ok(())
    }
}

impl Drop for World {
    fn drop(&mut self) {
        let _ = self.pins.remove_all();
    }
}

/// Returns so many prefixes, none of which has a client: addresses and networks of all parts of
/// the world but those that are for tests.
fn denied(count: u32, v4: bool) -> Prefixes {
    let prefixes = (0..count).filter_map(|number| {
        let bits = number.wrapping_mul(0x9e37_79b1) | 1 << 28;
        let len = 24 + (number % 9) as u8;
        if v4 {
            Prefix::of(Ipv4Addr::from_bits(bits & 0x7fff_ffff).into(), len)
        } else {
            let address = u128::from(0x2600_0000 | bits >> 8) << 96 | u128::from(number) << 64;
            Prefix::of(Ipv6Addr::from_bits(address).into(), 32 + len)
        }
    });
    prefixes.collect()
}

/// Returns settings with a fixed secret: two runs meet the same rows.
pub fn settings(pin_dir: PathBuf, limits: Limits) -> Settings {
    let word = |at: u64| (at + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    Settings {
        pin_dir,
        limits,
        hash_key: HashKey(std::array::from_fn(|at| word(at as u64))),
    }
}

/// Returns the memory of all maps for 1,000 services and 10,000 backends.
pub fn memory() -> Result<u64> {
    let directory = netns::pins("memory");
    let limits = Limits {
        services: 1000,
        backends: 10_000,
        // 10 backends a service need 4,096 rows each at most.
        rows: 1 << 22,
        ..Limits::default()
    };
    let pins = Pins::new(&directory);
    let kernel = load(&settings(directory.clone(), limits))?;
    let mut bytes = 0;
    for entry in std::fs::read_dir(&directory)?.flatten() {
        if entry.file_type()?.is_dir() {
            continue;
        }
        let map = MapData::from_pin(entry.path())?;
        let fd = std::os::fd::AsRawFd::as_raw_fd(&std::os::fd::AsFd::as_fd(map.fd()));
        let info = std::fs::read_to_string(format!("/proc/self/fdinfo/{fd}"))?;
        let line = info.lines().find_map(|line| line.strip_prefix("memlock:"));
        bytes += line.context("no memlock")?.trim().parse::<u64>()?;
    }
    drop(kernel);
    pins.remove_all()?;
    Ok(bytes)
}
