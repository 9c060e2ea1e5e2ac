mod failures;
mod guard;
mod lives;
mod nat;
mod restarts;
mod serving;
mod sweeps;
mod vips;

use std::cell::{Cell, RefCell};
use std::rc::Rc;

use lb_common::backend::{Head, Template};
use lb_common::flow::{FlowEntry, FlowKey4, Table};
use lb_common::row::Row;

use super::*;
use crate::config::Config;
use crate::dataplane::{FlowKey, GRACE, Jiffies, Memory};
use crate::model::{Limits, Mac, Weight};
use crate::ring::rows_for;

const LIMITS: Limits = Limits {
    services: 4,
    backends: 8,
    rows: 8192,
    half_open_flows: 64,
    confirmed_flows: 64,
    kept_flows: 64,
    fragments: 256,
    guard_prefixes: 64,
    guard_sources: 256,
};

/// An engine on memory, with a clock that only moves when told.
struct World {
    engine: Engine<Memory>,
    stored: Rc<RefCell<Slots>>,
    /// Whether nothing can be stored.
    full: Rc<Cell<bool>>,
    now: Instant,
}

fn name(text: &str) -> Name {
    text.parse().unwrap()
}

fn id(backend: &str) -> BackendId {
    BackendId {
        service: name("web"),
        backend: name(backend),
    }
}

fn slot(number: u32) -> BackendSlot {
    BackendSlot::new(number).unwrap()
}

/// A service `web` with backends `vm1`, `vm2` … of these weights, and an idle time-out of 60 s.
fn web(weights: &[u16]) -> Desired {
    let mut text = "[[service]]\nname = \"web\"\naddress = \"198.18.0.10\"\nport = 80\nprotocol = \"tcp\"\nidle_timeout = \"60s\"\n".to_owned();
    for (number, weight) in (1..).zip(weights) {
        text += &format!(
            "[[service.backend]]\nname = \"vm{number}\"\naddress = \"198.18.1.{number}\"\nweight = {weight}\n"
        );
    }
    let mut desired = Config::parse(&text, "test").unwrap().desired;
    desired.limits = LIMITS;
    desired
}

fn hop(number: u8) -> Hop {
    Hop::Found(NextHop {
        ifindex: 5,
        vlan: None,
        source_mac: Mac([2, 0, 0, 0, 0, 0]),
        destination_mac: Mac([2, 0, 0, 0, 0, number]),
        source_address: Some("198.18.1.254".parse().unwrap()),
        mtu: 1500,
    })
}

impl World {
    fn new() -> Self {
        Self::on(Memory::new(LIMITS), Slots::default(), Instant::now())
    }

    fn on(memory: Memory, slots: Slots, now: Instant) -> Self {
        let stored = Rc::new(RefCell::new(slots.clone()));
        let full = Rc::new(Cell::new(false));
        let store = {
            let (stored, full) = (stored.clone(), full.clone());
            Box::new(move |slots: &Slots| {
                if full.get() {
                    return Err(StateError::File {
                        path: "slots.json".into(),
                        source: std::io::ErrorKind::StorageFull.into(),
                    });
                }
                *stored.borrow_mut() = slots.clone();
                Ok(())
            })
        };
        Self {
            engine: Engine::new(memory, slots, LIMITS, store, now).unwrap(),
            stored,
            full,
            now,
        }
    }

    /// The daemon dies here, and another one starts.
    fn restart(self) -> Self {
        let slots = self.stored.borrow().clone();
        Self::on(self.engine.dataplane, slots, self.now)
    }

    fn declare(&mut self, desired: Desired) {
        let prepared = self.engine.prepare(desired).unwrap();
        self.engine.commit(prepared, self.now);
        self.run();
    }

    fn reach(&mut self, backends: u8) {
        for number in 1..=backends {
            let id = id(&format!("vm{number}"));
            self.engine.observe_hop(&id, hop(number), self.now);
        }
        self.run();
    }

    fn run(&mut self) {
        self.engine.reconcile(self.now).unwrap();
        self.engine.sweep(self.now).unwrap();
        self.audit();
    }

    /// Lets time pass, doing what is due on the way.
    fn pass(&mut self, time: Duration) {
        let end = self.now + time;
        while let Some(at) = self.engine.next_deadline().filter(|at| *at <= end) {
            self.tick(at.max(self.now) - self.now);
            self.run();
        }
        self.tick(end - self.now);
    }

    fn tick(&mut self, time: Duration) {
        self.now += time;
        let clock = &mut self.engine.dataplane.clock;
        clock.now = Jiffies(clock.now.0 + time.as_millis() as u64);
    }

    fn audit(&self) {
        let (differences, compared) = self.engine.audit().unwrap();
        assert_eq!(differences, []);
        assert!(compared >= 4096);
    }

    fn rows(&self) -> Vec<Row> {
        let service = self.engine.installed(&name("web")).unwrap();
        let Segment { base, len } = service.segment;
        (base..base + len)
            .map(|index| self.engine.dataplane.row(index).unwrap())
            .collect()
    }

    fn owned(&self, number: u32) -> usize {
        self.rows()
            .iter()
            .filter(|row| row.owner() == slot(number))
            .count()
    }

    fn head(&self, number: u32) -> Head {
        Head::from_bits(self.engine.dataplane.backend(slot(number)).unwrap().head)
    }

    fn state(&self, backend: &str) -> BackendState {
        self.engine.states[&name("web")][&name(backend)]
    }

    /// A flow of a row that some backend has, as the program would enter it.
    fn track(&mut self, backend: u32, row: u32) -> (Table, FlowKey) {
        let key = FlowKey4 {
            src: [198, 19, 0, backend as u8],
            dst: [198, 18, 0, 10],
            src_port: (row as u16).to_be_bytes(),
            dst_port: [0, 80],
            proto: 6,
            _pad: [0; 3],
        };
        let entry = FlowEntry {
            backend,
            generation: self.head(backend).generation(),
            flags: 0,
            last: self.engine.dataplane.clock.now.0 as u32,
            hash: row,
            service: 0,
            opened: 0,
            recent: 0,
            _pad: 0,
        };
        let key = (Table::Confirmed, FlowKey::V4(key));
        self.engine.dataplane.flows.insert(key, entry);
        key
    }
}
