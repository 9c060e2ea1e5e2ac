//! A world in the maps of the loaded program, and what the maps hold afterwards.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::num::NonZeroU16;

use aya::maps::{HashMap, Map, MapData};
use lb_common::backend::{BackendSlot, Head, Template};
use lb_common::flow::{FlowEntry, FlowKey4, FlowKey6, Table as MapTable};
use lb_common::map_names;
use lb_common::row::Row as MapRow;
use lb_user::dataplane::{Dataplane as _, FlowKey};
use lb_user::model::{EncapSource, Forward, L4Protocol};

use super::build::{SOURCE4, SOURCE6};
use super::compare::ROOM;
use super::hash::hash;
use super::world::{Backend, Entry, Flow, LAST_SLOT, Out, Row, Service, Table, Way, World};
use crate::netns::Netns;
use crate::program::{self, How, Program, Traces, slot};

/// The interface that test runs come in by: the loopback interface.
const INGRESS: u32 = 1;
/// An interface that doesn't exist.
const NOWHERE: u32 = 77;

/// The loaded program, and the world that is in its maps.
pub struct Installed {
    /// The program.
    pub program: Program,
    flows_v4: [HashMap<MapData, FlowKey4, FlowEntry>; 3],
    flows_v6: [HashMap<MapData, FlowKey6, FlowEntry>; 3],
    key: [u64; 16],
    elsewhere: u32,
    before: Traces,
    /// When the world was installed, in the kernel's ticks.
    since: u32,
}

/// What packets changed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Changes {
    /// Counters that grew.
    pub counters: BTreeMap<String, u64>,
    /// All flow table entries afterwards.
    pub entries: BTreeMap<(Table, Flow), Entry>,
    /// How many ticks passed since the world was installed.
    pub ticks: u32,
}

/// Runs `work` with a program of its own, in a namespace that has an interface to redirect to.
pub fn with_program<T: Send>(work: impl FnOnce(&mut Installed) -> T + Send) -> T {
    let host = Netns::new("oracle");
    host.ip("link add out type veth peer name far");
    let ifindex = host.ifindex("out");
    host.enter(|| work(&mut Installed::new(Program::new(ROOM as u32), ifindex)))
}

impl Installed {
    /// Takes a program whose maps are empty. `elsewhere` is an interface to redirect to.
    #[must_use]
    pub fn new(mut program: Program, elsewhere: u32) -> Self {
        program
            .kernel
            .add_device(elsewhere)
            .expect("an interface of this namespace");
        let flows_v4 = map_names::FLOWS_V4.map(|name| open(&program, name));
        let flows_v6 = map_names::FLOWS_V6.map(|name| open(&program, name));
        Self {
            key: program.hash_key().0,
            before: program.traces(),
            program,
            flows_v4,
            flows_v6,
            elsewhere,
            since: 0,
        }
    }

    /// Returns the program's secret.
    #[must_use]
    pub fn key(&self) -> [u64; 16] {
        self.key
    }

    fn now(&self) -> u32 {
        self.program.kernel.clock().expect("the clock").now.0 as u32
    }

    /// Puts a world into the maps, and takes out whatever was there.
    pub fn install(&mut self, world: &World) {
        self.program.clear();
        for service in &world.services {
            let rows: Vec<_> = service.ring.iter().copied().map(row).collect();
            let protocol = protocol(service);
            let port = service.port;
            self.program.service(service.vip, port, protocol, &rows);
        }
        for number in 1..=LAST_SLOT {
            let backend = world.backend(number).expect("a slot of the map");
            self.backend(&backend);
        }
        self.since = self.now();
        for entry in &world.entries {
            self.entry(entry);
        }
    }

    fn backend(&mut self, backend: &Backend) {
        let vip = vip_of(backend.inner_v4);
        let ifindex = match backend.out {
            Out::Back => INGRESS,
            Out::Elsewhere => self.elsewhere,
            Out::Nowhere => NOWHERE,
        };
        let template = match backend.way {
            Way::Unreachable => Template::UNREACHABLE,
            Way::L2 | Way::Ipip | Way::Gue(_) => {
                let how = How {
                    forward: match backend.way {
                        Way::Gue(port) => Forward::Gue(NonZeroU16::new(port).expect("a port")),
                        Way::Ipip => Forward::Ipip,
                        Way::L2 | Way::Unreachable => Forward::L2,
                    },
                    outer_v4: backend.address.is_ipv4(),
                    vlan: backend.vlan,
                    around: backend.around,
                    ifindex,
                    source: EncapSource {
                        v4: backend.source_prefix.map(|prefix| (SOURCE4, prefix)),
                        v6: backend.source_prefix.map(|prefix| (SOURCE6, prefix)),
                    },
                    port: None,
                };
                Template {
                    // The model knows no ways that are too narrow.
                    max_len: 0,
                    ..program::template(backend.slot, backend.address, vip, &how)
                }
            }
        };
        // The side that is not in force leads elsewhere.
        let mut other = program::template(
            backend.slot,
            backend.address,
            vip,
            &How::new(Forward::L2, true),
        );
        other.eth[..6].fill(0xdd);
        let kernel = &mut self.program.kernel;
        let slot = slot(backend.slot);
        for (side, template) in [(backend.side, template), (1 - backend.side, other)] {
            kernel
                .set_template(slot, side, &template)
                .expect("a template");
        }
        let head = Head::new(
            backend.side,
            backend.alive,
            backend.accepts,
            backend.generation,
        );
        kernel.set_head(slot, head).expect("a head");
    }

    fn entry(&mut self, entry: &Entry) {
        let flow_hash = hash(&self.key, &entry.flow) as u32;
        let flag = |is: bool, flag: u16| if is { flag } else { 0 };
        let value = FlowEntry {
            backend: entry.backend,
            generation: entry.generation,
            flags: flag(entry.closed, FlowEntry::CLOSED)
                | flag(entry.confirmed, FlowEntry::CONFIRMED)
                | flag(entry.reopened, FlowEntry::REOPENED),
            hash: if entry.foreign { !flow_hash } else { flow_hash },
            service: entry.service,
            last: self.since.wrapping_sub(entry.age),
            opened: entry.opened,
            recent: entry.recent,
            _pad: 0,
        };
        let table = match entry.table {
            Table::HalfOpen => 0,
            Table::Confirmed => 1,
            Table::Kept => 2,
        };
        match key(&entry.flow) {
            FlowKey::V4(key) => self.flows_v4[table].insert(key, value, 0),
            FlowKey::V6(key) => self.flows_v6[table].insert(key, value, 0),
        }
        .expect("room in a flow table");
    }

    /// Returns what changed since the last call.
    pub fn changes(&mut self) -> Changes {
        let now = self.now();
        let after = self.program.traces();
        let counters = after.since(&self.before);
        self.before = after;
        let mut entries = BTreeMap::new();
        let (since, secret) = (self.since, self.key);
        self.program
            .kernel
            .visit_flows(&mut |table, key, value| {
                let flow = flow(&key);
                let has = |flag: u16| value.flags & flag != 0;
                let entry = Entry {
                    table: match table {
                        MapTable::HalfOpen => Table::HalfOpen,
                        MapTable::Confirmed => Table::Confirmed,
                        MapTable::Kept => Table::Kept,
                    },
                    flow,
                    backend: value.backend,
                    generation: value.generation,
                    service: value.service,
                    closed: has(FlowEntry::CLOSED),
                    confirmed: has(FlowEntry::CONFIRMED),
                    reopened: has(FlowEntry::REOPENED),
                    opened: value.opened,
                    recent: value.recent,
                    // What was written since then counts as new.
                    age: since.wrapping_sub(value.last).cast_signed().max(0) as u32,
                    foreign: value.hash != hash(&secret, &flow) as u32,
                };
                entries.insert((entry.table, flow), entry);
            })
            .expect("the flow tables");
        Changes {
            counters,
            entries,
            ticks: now.wrapping_sub(since),
        }
    }
}

fn open<K: aya::Pod>(program: &Program, name: &str) -> HashMap<MapData, K, FlowEntry> {
    let data = MapData::from_pin(program.pins().map(name)).expect("a pinned map");
    HashMap::try_from(Map::HashMap(data)).expect("a flow table")
}

fn row(row: Row) -> MapRow {
    let slot = |number| BackendSlot::new(number).unwrap_or(BackendSlot::NONE);
    MapRow::new(slot(row.owner), slot(row.untracked), row.lookup)
}

fn protocol(service: &Service) -> L4Protocol {
    if service.protocol == 6 {
        L4Protocol::Tcp
    } else {
        L4Protocol::Udp
    }
}

fn vip_of(v4: bool) -> IpAddr {
    if v4 {
        IpAddr::from([198, 18, 9, 10])
    } else {
        IpAddr::from([0x2001, 0xdb8, 9, 0, 0, 0, 0, 0x10])
    }
}

fn key(flow: &Flow) -> FlowKey {
    let (src_port, dst_port) = (flow.client_port.to_be_bytes(), flow.vip_port.to_be_bytes());
    match (flow.client, flow.vip) {
        (IpAddr::V4(src), IpAddr::V4(dst)) => FlowKey::V4(FlowKey4 {
            src: src.octets(),
            dst: dst.octets(),
            src_port,
            dst_port,
            proto: flow.protocol,
            _pad: [0; 3],
        }),
        (IpAddr::V6(src), IpAddr::V6(dst)) => FlowKey::V6(FlowKey6 {
            src: src.octets(),
            dst: dst.octets(),
            src_port,
            dst_port,
            proto: flow.protocol,
            _pad: [0; 3],
        }),
        _ => panic!("a flow of two families"),
    }
}

fn flow(key: &FlowKey) -> Flow {
    match key {
        FlowKey::V4(key) => Flow {
            client: key.src.into(),
            vip: key.dst.into(),
            client_port: u16::from_be_bytes(key.src_port),
            vip_port: u16::from_be_bytes(key.dst_port),
            protocol: key.proto,
        },
        FlowKey::V6(key) => Flow {
            client: key.src.into(),
            vip: key.dst.into(),
            client_port: u16::from_be_bytes(key.src_port),
            vip_port: u16::from_be_bytes(key.dst_port),
            protocol: key.proto,
        },
    }
}
