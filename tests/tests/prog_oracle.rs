//! Clients and VMs that know each other, the loaded program between them, and a ring that the
//! daemon's rule adjusts: no flow may ever come to another VM while its own lives.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use lb_common::backend::Head;
use lb_common::flow::{FlowEntry, Table};
use lb_tests::frame::L4;
use lb_tests::program::{Program, slot};
use lb_tests::rows::Rows;
use lb_user::dataplane::{Dataplane as _, FlowKey};
use lb_user::ring::{Change, Member, Ring};

const BACKENDS: u32 = 5;
const ROWS: u32 = 16;
/// Sizes of the tables of half-open, confirmed and kept flows: when much moves, opening packets and
/// old flows find no room. That of confirmed flows is never full: a closed flow that had to stay among
/// the half-open ones can hide another one in the same way, once in some million packets.
const TABLES: [u32; 3] = [12, 400, 25];
const PORTS: u16 = 120;
const IDLE: Duration = Duration::from_secs(60);
/// How long entries of closed flows stay.
const CLOSED: Duration = Duration::from_secs(8);
/// How long entries stay of which only the opening packet was seen.
const HALF_OPEN: Duration = Duration::from_secs(12);

/// A flow, as its client and its VM know it.
#[derive(Clone, Copy)]
struct Flow {
    /// Its VM, and how often that had died when the flow opened.
    vm: (u32, u16),
    last: Instant,
    sequence: u32,
    /// Only its opening packet was sent.
    opening: bool,
}

#[derive(Clone, Copy)]
struct Vm {
    alive: bool,
    accepts: bool,
    weight: u32,
    deaths: u16,
}

#[derive(Debug, Default)]
struct Seen {
    packets: u32,
    flows: u32,
    moved_rows: usize,
    deaths: u32,
    refused: u64,
    /// Entries that sweeps found of another VM than their row's owner, by table.
    away: BTreeMap<Table, u32>,
}

struct World {
    rows: Rows,
    random: u64,
    /// The model's own clock: the kernel's can't be moved.
    now: Instant,
    ring: Ring,
    vms: BTreeMap<u32, Vm>,
    flows: BTreeMap<(u16, bool), Flow>,
    /// When a packet with this key was seen last.
    touched: BTreeMap<FlowKey, Instant>,
    refused_at: Option<Instant>,
    seen: Seen,
}

impl World {
    fn new(v4: bool, seed: u64) -> Self {
        let vm = Vm {
            alive: true,
            accepts: true,
            weight: 100,
            deaths: 0,
        };
        let vms: BTreeMap<u32, Vm> = (1..=BACKENDS).map(|number| (number, vm)).collect();
        let ring = Ring::new(ROWS, &members(&vms));
        Self {
            rows: Rows::new(Program::with_tables(TABLES), v4, BACKENDS, ring.rows()),
            random: seed | 1,
            now: Instant::now(),
            ring,
            vms,
            flows: BTreeMap::new(),
            touched: BTreeMap::new(),
            refused_at: None,
            seen: Seen::default(),
        }
    }

    fn below(&mut self, limit: u64) -> u64 {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        (self.random >> 11) % limit
    }

    fn send(&mut self, l4: L4, port: u16, sequence: u32) -> u32 {
        self.touched.insert(self.rows.key(port, l4), self.now);
        self.rows.send_at(l4, port, sequence)
    }

    fn lives(&self, (number, deaths): (u32, u16)) -> bool {
        let vm = self.vms[&number];
        vm.alive && vm.deaths == deaths
    }

    /// A client sends its next packet.
    fn packet(&mut self) {
        self.seen.packets += 1;
        let port = 1 + self.below(PORTS.into()) as u16;
        let udp = port.is_multiple_of(4);
        let now = self.now;
        let known = self.flows.get(&(port, udp)).copied().filter(|flow| {
            let limit = if flow.opening { HALF_OPEN } else { IDLE };
            now - flow.last < limit && self.lives(flow.vm)
        });
        let Some(flow) = known else {
            // Flows with one tuple begin far from each other, no two at the same number, and none at
            // zero; strays have the other half.
            self.seen.flows += 1;
            let opened = self.seen.flows.wrapping_mul(0x00c1_0001) & 0x7fff_ffff;
            let (l4, sequence) = if udp { (L4::Udp, 0) } else { (L4::Syn, opened) };
            let vm = self.send(l4, port, sequence);
            if !self.vms[&vm].alive {
                // The last owner, when no VM takes flows. Nobody answers.
                return;
            }
            let flow = Flow {
                vm: (vm, self.vms[&vm].deaths),
                last: now,
                sequence: sequence + u32::from(!udp),
                opening: !udp,
            };
            self.flows.insert((port, udp), flow);
            return;
        };
        let l4 = match self.below(10) {
            _ if udp => L4::Udp,
            0 => L4::Fin,
            1 => L4::Rst,
            _ => L4::Ack,
        };
        let vm = self.send(l4, port, flow.sequence);
        assert_eq!(
            vm, flow.vm.0,
            "packet {}: {l4:?} of flow {port} came to another VM",
            self.seen.packets
        );
        if matches!(l4, L4::Fin | L4::Rst) {
            self.flows.remove(&(port, udp));
            return;
        }
        // The program notes a recent sequence number ten times a second at most, and the clock of
        // this world is faster: so flows don't send much.
        let more = if udp { 0 } else { self.below(100) as u32 };
        let flow = Flow {
            last: now,
            sequence: flow.sequence + more,
            opening: false,
            ..flow
        };
        self.flows.insert((port, udp), flow);
    }

    /// Somebody sends with a client's address, as floods do. Before its second packet a flow is
    /// not known well enough to tell two of them from it.
    fn stray(&mut self) {
        let port = 1 + self.below(PORTS.into()) as u16;
        let opening = self
            .flows
            .get(&(port, false))
            .is_some_and(|flow| flow.opening);
        if opening || port.is_multiple_of(4) {
            return;
        }
        // Who forges an opening packet and one that follows it can't be told from a client: opening
        // packets and others have numbers far from each other, and from those of flows.
        let (l4, from) = match self.below(4) {
            0 | 1 => (L4::Syn, 0x8200_0000),
            2 => (L4::Fin, 0xc200_0000),
            _ => (L4::Rst, 0xc200_0000),
        };
        let sequence = from + self.below(1 << 29) as u32;
        self.send(l4, port, sequence);
    }

    /// The operator, or the VMs' fate; and what the daemon does about it.
    fn event(&mut self) {
        let number = 1 + self.below(BACKENDS.into()) as u32;
        let living = self.vms.values().filter(|vm| vm.alive).count();
        let (what, weight) = (self.below(8), [0, 50, 90, 100, 300][self.below(5) as usize]);
        let mut vm = self.vms[&number];
        match what {
            0..4 => vm.weight = weight,
            4 | 5 => vm.accepts = !vm.accepts,
            6 if vm.alive && living > 2 => {
                vm.alive = false;
                vm.deaths += 1;
                self.seen.deaths += 1;
            }
            _ => vm.alive = true,
        }
        self.vms.insert(number, vm);
        let head = Head::new(0, vm.alive, vm.alive && vm.accepts, vm.deaths);
        self.rows.program.head(number, head);
        let members = members(&self.vms);
        // All that are dead: rows stay with one while no other takes flows.
        let dead = self.vms.iter().filter(|(_, vm)| !vm.alive);
        for number in dead.map(|(number, _)| *number).collect::<Vec<_>>() {
            let changes = self.ring.death(slot(number), &members, self.now);
            self.store(&changes);
        }
        let changes = self.ring.rebalance(&members, self.now);
        self.seen.moved_rows += changes.len();
        self.store(&changes);
    }

    fn store(&mut self, changes: &[Change]) {
        for change in changes {
            self.rows.set(change.index, change.row);
        }
    }

    /// Deletes entries that have ended, and settles rows.
    fn sweep(&mut self) {
        let mut entries = Vec::new();
        self.rows
            .program
            .kernel
            .visit_flows(&mut |table, key, entry| entries.push((table, key, entry)))
            .expect("the flow tables");
        let mut others = BTreeSet::new();
        for (table, key, entry) in entries {
            let closed = entry.flags & FlowEntry::CLOSED != 0;
            let limit = if closed {
                CLOSED
            } else if table == Table::HalfOpen && entry.flags & FlowEntry::CONFIRMED == 0 {
                HALF_OPEN
            } else {
                IDLE
            };
            let lives = self.lives((entry.backend, entry.generation));
            if !lives || self.now - self.touched[&key] > limit {
                let kernel = &mut self.rows.program.kernel;
                kernel.remove_flow(table, &key).expect("the flow tables");
                continue;
            }
            let index = entry.hash & (ROWS - 1);
            let row = self.ring.row(index).expect("a row");
            if closed {
                others.insert(index);
            }
            if row.owner() != slot(entry.backend) {
                others.insert(index);
                *self.seen.away.entry(table).or_default() += 1;
            }
        }
        let kernel = &self.rows.program.kernel;
        let refused = [0, 1].map(|service| kernel.service_stats(service).expect("stats").refused);
        let refused = refused.iter().sum();
        if refused > self.seen.refused {
            self.seen.refused = refused;
            self.refused_at = Some(self.now);
        }
        let changes = self.ring.finish(self.now, |index| others.contains(&index));
        self.store(&changes);
        let changes = self.ring.settle(self.now, IDLE, self.refused_at);
        self.store(&changes);
    }

    fn run(mut self, packets: u32) -> Seen {
        while self.seen.packets < packets {
            self.packet();
            if self.below(20) == 0 {
                self.stray();
            }
            // Time passes so that a flow is mostly heard of before it counts as idle.
            let pause = self.below(200);
            self.now += Duration::from_millis(pause);
            match self.below(300) {
                0 => self.event(),
                1..=4 => self.sweep(),
                // A quiet time in which rows settle.
                5 if self.below(8) == 0 => self.now += IDLE / 2,
                _ => {}
            }
        }
        self.seen
    }
}

fn members(vms: &BTreeMap<u32, Vm>) -> Vec<Member> {
    let members = vms.iter().map(|(number, vm)| Member {
        slot: slot(*number),
        weight: if vm.alive && vm.accepts { vm.weight } else { 0 },
        identity: u64::from(*number),
    });
    members.collect()
}

#[test]
fn no_flow_comes_to_another_vm_while_its_own_lives() {
    for v4 in [true, false] {
        for seed in [0x5eed, 0xf10d, 3, 4, 5, 6, 7, 8] {
            let seen = World::new(v4, seed).run(60_000);
            // All that can go wrong was there.
            assert!(seen.moved_rows > 100 && seen.deaths > 5, "{seen:?}");
            assert!(seen.refused > 1000, "{seen:?}");
            for table in Table::ALL {
                assert!(seen.away.get(&table) > Some(&20), "{seen:?}");
            }
        }
    }
}
