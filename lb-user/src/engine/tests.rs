use std::cell::RefCell;
use std::rc::Rc;

use lb_common::backend::Head;
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
};

/// An engine on memory, with a clock that only moves when told.
struct World {
    engine: Engine<Memory>,
    stored: Rc<RefCell<Slots>>,
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
        let store = {
            let stored = stored.clone();
            Box::new(move |slots: &Slots| {
                *stored.borrow_mut() = slots.clone();
                Ok(())
            })
        };
        Self {
            engine: Engine::new(memory, slots, LIMITS, store, now).unwrap(),
            stored,
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
        };
        let key = (Table::Confirmed, FlowKey::V4(key));
        self.engine.dataplane.flows.insert(key, entry);
        key
    }
}

#[test]
fn a_service_waits_for_its_next_hops_and_then_serves() {
    let mut world = World::new();
    world.declare(web(&[100, 100]));
    assert!(world.engine.dataplane.services().unwrap().is_empty());
    world.reach(1);
    assert!(
        world.engine.dataplane.services().unwrap().is_empty(),
        "one is missing"
    );
    world.reach(2);
    assert_eq!(world.engine.dataplane.services().unwrap().len(), 1);
    assert_eq!((world.owned(1), world.owned(2)), (256, 256));
    assert!(world.head(1).alive() && world.head(1).accepts());
    assert!(world.rows().iter().all(|row| !row.lookup()));
    assert!(world.engine.dataplane.devices.contains(&5));
    assert_eq!(*world.stored.borrow(), world.engine.slots);
    assert_eq!(
        world.engine.next_deadline(),
        None,
        "nothing to do: the daemon sleeps"
    );
}

#[test]
fn a_backend_that_cannot_be_reached_gets_no_flows_until_it_can() {
    let mut world = World::new();
    world.declare(web(&[100, 100]));
    world.reach(1);
    let failed = Hop::Failed("no route".to_owned());
    world
        .engine
        .observe_hop(&id("vm2"), failed.clone(), world.now);
    world.run();
    assert_eq!((world.owned(1), world.owned(2)), (512, 0));
    assert_eq!(world.state("vm2"), BackendState::Unresolved);
    let status = world.engine.status().unwrap();
    assert_eq!(
        status[0].backends[&name("vm2")].why.as_deref(),
        Some("no route")
    );

    world.reach(2);
    assert_eq!((world.owned(1), world.owned(2)), (256, 256));
    // Its way is lost again: it keeps its flows, by the old template.
    let template = world.engine.dataplane.backend(slot(2)).unwrap();
    world.engine.observe_hop(&id("vm2"), failed, world.now);
    world.run();
    assert_eq!(world.owned(2), 0);
    assert!(world.head(2).alive() && !world.head(2).accepts());
    assert_eq!(
        world.engine.dataplane.backend(slot(2)).unwrap().templates,
        template.templates
    );
}

#[test]
fn without_any_next_hop_a_service_is_there_after_a_second() {
    let mut world = World::new();
    world.declare(web(&[100]));
    world.pass(FIRST_HOPS);
    assert_eq!(world.engine.dataplane.services().unwrap().len(), 1);
    assert!(!world.head(1).alive());
}

#[test]
fn a_weight_change_moves_the_minimum_with_as_many_stores() {
    let mut world = World::new();
    world.declare(web(&[100, 100, 100, 100]));
    world.reach(4);
    let stores = world.engine.dataplane.row_stores;
    let before = world.rows();
    assert_eq!(world.engine.diff(&web(&[100, 100, 100, 0]))[0].moved, 256);
    world.declare(web(&[100, 100, 100, 0]));
    assert_eq!(world.engine.dataplane.row_stores - stores, 256);
    assert_eq!(world.state("vm4"), BackendState::Idle);
    for (before, row) in before.iter().zip(world.rows()) {
        if before.owner() == slot(4) {
            assert_eq!((row.untracked(), row.lookup()), (slot(4), true));
        } else {
            assert_eq!(*before, row);
        }
    }
}

#[test]
fn moved_rows_settle_once_their_flows_have_ended() {
    let mut world = World::new();
    world.declare(web(&[1, 1]));
    world.reach(2);
    world.declare(web(&[1, 0]));
    let row = (0..)
        .zip(world.rows())
        .find(|(_, row)| row.lookup())
        .unwrap()
        .0;
    let key = world.track(2, row);
    world.pass(Duration::from_secs(55));
    let service = world.engine.installed(&name("web")).unwrap();
    assert_eq!(service.ring.unsettled(), 256, "within the idle time-out");
    // The flow goes on: its row can't finish.
    let now = world.engine.dataplane.clock.now.0 as u32;
    world.engine.dataplane.flows.get_mut(&key).unwrap().last = now;
    world.pass(Duration::from_secs(40));
    let service = world.engine.installed(&name("web")).unwrap();
    assert_eq!((service.ring.unsettled(), service.ring.lookups()), (0, 1));
    assert_eq!(
        world.engine.status().unwrap()[0].backends[&name("vm2")].flows,
        1
    );
    world.pass(Duration::from_secs(80));
    assert!(
        world.engine.dataplane.flows.is_empty(),
        "it was idle too long"
    );
    assert!(world.rows().iter().all(|row| *row == Row::settled(slot(1))));
    assert_eq!(world.engine.next_deadline(), None);
}

#[test]
fn a_refused_insert_delays_settling() {
    let mut world = World::new();
    world.declare(web(&[1, 1]));
    world.reach(2);
    world.declare(web(&[1, 0]));
    world.pass(Duration::from_secs(50));
    let refused_at = world.engine.dataplane.clock.now.0;
    let stats = lb_common::stats::ServiceStats {
        refused: 1,
        refused_at,
        ..Default::default()
    };
    world.engine.dataplane.service_stats.insert(0, stats);
    world.pass(Duration::from_secs(55));
    assert_eq!(
        world
            .engine
            .installed(&name("web"))
            .unwrap()
            .ring
            .unsettled(),
        256
    );
    world.pass(Duration::from_secs(30));
    assert_eq!(
        world
            .engine
            .installed(&name("web"))
            .unwrap()
            .ring
            .unsettled(),
        0
    );
}

#[test]
fn suspect_keeps_flows_and_dead_gives_them_up() {
    let mut world = World::new();
    world.declare(web(&[100, 100]));
    world.reach(2);
    world
        .engine
        .observe_health(&id("vm2"), HealthState::Suspect, world.now);
    world.run();
    assert!(world.head(2).alive() && !world.head(2).accepts());
    assert_eq!(world.owned(2), 0);
    let kept = world
        .rows()
        .iter()
        .filter(|row| row.untracked() == slot(2))
        .count();
    assert_eq!(kept, 256);

    let row = (0..)
        .zip(world.rows())
        .find(|(_, row)| row.lookup())
        .unwrap()
        .0;
    world.track(2, row);
    world
        .engine
        .observe_health(&id("vm2"), HealthState::Dead, world.now);
    world.run();
    assert!(!world.head(2).alive());
    assert_eq!(world.head(2).generation(), 1);
    assert!(
        world
            .rows()
            .iter()
            .all(|row| row.owner() == slot(1) && row.untracked() == slot(1))
    );
    world.pass(Duration::from_secs(40));
    assert!(
        world.engine.dataplane.flows.is_empty(),
        "its entries go with the next sweeps"
    );

    world
        .engine
        .observe_health(&id("vm2"), HealthState::Up, world.now);
    world.run();
    assert!(world.head(2).alive() && world.head(2).accepts());
    assert_eq!((world.owned(2), world.head(2).generation()), (256, 1));
}

#[test]
fn when_all_are_dead_the_last_owners_stay() {
    let mut world = World::new();
    world.declare(web(&[100, 100]));
    world.reach(2);
    for backend in ["vm1", "vm2"] {
        world
            .engine
            .observe_health(&id(backend), HealthState::Dead, world.now);
        world.run();
    }
    assert_eq!((world.owned(1), world.owned(2)), (0, 512));
    world
        .engine
        .observe_health(&id("vm1"), HealthState::Up, world.now);
    world.run();
    assert_eq!(world.owned(1), 512);
    assert!(
        world.rows().iter().all(|row| row.untracked() == slot(1)),
        "the dead hold nothing"
    );
}

#[test]
fn a_new_template_waits_until_the_old_one_is_out_of_use() {
    let mut world = World::new();
    world.declare(web(&[100]));
    world.reach(1);
    let in_force = |world: &World| {
        let backend = world.engine.dataplane.backend(slot(1)).unwrap();
        backend.templates[usize::from(world.head(1).side())].eth[5]
    };
    assert_eq!(in_force(&world), 1);
    world.engine.observe_hop(&id("vm1"), hop(7), world.now);
    world.run();
    assert_eq!(
        in_force(&world),
        1,
        "the other side was in force a moment ago"
    );
    world.pass(GRACE);
    assert_eq!(in_force(&world), 7);
}

#[test]
fn a_removed_backend_leaves_when_its_flows_have_ended() {
    let mut world = World::new();
    world.declare(web(&[1, 1, 1]));
    world.reach(3);
    world.declare(web(&[1, 1]));
    assert_eq!(world.state("vm3"), BackendState::Leaving);
    assert!(
        world.engine.reachable().contains_key(&id("vm3")),
        "its way is still followed"
    );
    world.engine.observe_hop(&id("vm3"), hop(9), world.now);
    world.pass(Duration::from_secs(200));
    assert!(!world.engine.states[&name("web")].contains_key(&name("vm3")));
    assert_eq!(world.engine.slots.backend(&id("vm3")), None);
    assert!(!world.head(3).alive());
    assert_eq!(
        world.head(3).generation(),
        1,
        "the next one in its place knows no old flow"
    );
    assert_eq!(*world.stored.borrow(), world.engine.slots);
}

#[test]
fn a_removed_service_frees_its_places_and_entries() {
    let mut world = World::new();
    world.declare(web(&[1, 1]));
    world.reach(2);
    world.track(1, 3);
    world.declare(Desired {
        limits: LIMITS,
        ..Desired::default()
    });
    assert!(world.engine.dataplane.services().unwrap().is_empty());
    world.pass(Duration::from_secs(40));
    assert!(world.engine.dataplane.flows.is_empty());
    assert_eq!(world.engine.slots, Slots::default());
    assert_eq!(world.engine.segments.largest(), LIMITS.rows);
    assert_eq!(world.engine.next_deadline(), None);
}

#[test]
fn a_service_that_comes_back_at_once_knows_its_flows() {
    let mut world = World::new();
    world.declare(web(&[1, 1]));
    world.reach(2);
    world.track(1, 3);
    world.declare(Desired {
        limits: LIMITS,
        ..Desired::default()
    });
    world.declare(web(&[1]));
    world.reach(1);
    world.pass(Duration::from_secs(10));
    assert_eq!(world.engine.dataplane.flows.len(), 1);
    assert_eq!(world.engine.slots.backend(&id("vm2")), None);
    assert_eq!(world.head(2).generation(), 1);
}

#[test]
fn a_ring_grows_with_its_backends_and_moves_nothing_by_that() {
    let mut world = World::new();
    world.declare(web(&[1, 1]));
    world.reach(2);
    let before = world.rows();
    world.declare(web(&[1, 1, 0]));
    world.reach(3);
    let after = world.rows();
    assert_eq!(after.len(), rows_for(3) as usize);
    for (index, row) in after.iter().enumerate() {
        assert_eq!(*row, before[index % before.len()]);
    }
    world.pass(GRACE);
    let used = rows_for(3);
    assert_eq!(
        world.engine.segments.available(),
        u64::from(LIMITS.rows - used)
    );
}

#[test]
fn a_restart_changes_nothing_and_goes_on() {
    let mut world = World::new();
    world.declare(web(&[1, 1]));
    world.reach(2);
    world.declare(web(&[1, 0]));
    let stores = world.engine.dataplane.row_stores;
    let (rows, head) = (world.rows(), world.head(2));
    let mut world = world.restart();
    world.audit();
    world.declare(web(&[1, 0]));
    world.reach(2);
    assert_eq!((world.rows(), world.head(2)), (rows, head));
    assert_eq!(world.engine.dataplane.row_stores, stores);
    world.pass(Duration::from_secs(120));
    assert_eq!(
        world.engine.installed(&name("web")).unwrap().ring.lookups(),
        0
    );
}

#[test]
fn what_the_file_lost_while_the_daemon_was_away_is_taken_down() {
    let mut world = World::new();
    world.declare(web(&[1, 1]));
    world.reach(2);
    let mut world = world.restart();
    world.declare(Desired {
        limits: LIMITS,
        ..Desired::default()
    });
    assert!(world.engine.dataplane.services().unwrap().is_empty());
    world.pass(Duration::from_secs(40));
    assert_eq!(world.engine.slots, Slots::default());
}

#[test]
fn what_does_not_fit_is_refused_and_changes_nothing() {
    let mut world = World::new();
    world.declare(web(&[1, 1]));
    world.reach(2);
    let (rows, slots) = (world.rows(), world.engine.slots.clone());
    let refused = |desired: Desired| world.engine.prepare(desired).unwrap_err().to_string();
    let error = refused(web(&[1; 9]));
    assert!(error.contains("service \"web\""), "{error}");
    let mut other = web(&[1]);
    other.limits.rows *= 2;
    assert!(refused(other).contains("weir detach --all"));
    let mut many = web(&[1]);
    for number in 0..5_u8 {
        let mut service = many.services[&name("web")].clone();
        service.name = name(&format!("s{number}"));
        service.vip.address = [198, 18, 2, number].into();
        many.services.insert(service.name.clone(), service);
    }
    assert!(refused(many).contains("limits.services: 6"));
    assert_eq!((world.rows(), world.engine.slots.clone()), (rows, slots));
}

#[test]
fn an_audit_finds_every_kind_of_tampering() {
    let mut world = World::new();
    world.declare(web(&[1, 1]));
    world.reach(2);
    let differences = |change: &dyn Fn(&mut Memory)| {
        let mut memory = world.engine.dataplane.clone();
        change(&mut memory);
        let engine = World::on(memory, world.stored.borrow().clone(), world.now).engine;
        // What another daemon would take over, held against what this one put there.
        let other = Engine {
            installed: world.engine.installed.clone(),
            ..engine
        };
        let (differences, _) = other.audit().unwrap();
        differences
            .iter()
            .map(ToString::to_string)
            .collect::<Vec<_>>()
            .join("\n")
    };
    let vip = world.engine.installed(&name("web")).unwrap().vip;
    assert_eq!(differences(&|_| {}), "");
    let row = Row::new(slot(7), slot(7), false);
    assert!(differences(&|m| m.set_row(9, row).unwrap()).contains("row 9: found"));
    assert!(differences(&|m| m.remove_service(&vip).unwrap()).contains("missing"));
    assert!(
        differences(&|m| m.set_head(slot(1), Head::default()).unwrap()).contains("backend \"vm1\"")
    );
    assert!(differences(&|m| m.set_vip_filter(4, 1).unwrap()).contains("VIP filter entry 4"));
    let side = world.head(2).side();
    let template = lb_common::backend::Template::UNREACHABLE;
    assert!(
        differences(&|m| m.set_template(slot(2), side, &template).unwrap()).contains("template")
    );
}

#[test]
fn two_engines_that_start_alike_have_the_same_ring() {
    let world = || {
        let mut world = World::new();
        world.declare(web(&[100, 50, 25]));
        world.reach(3);
        world
    };
    assert_eq!(world().rows(), world().rows());
    assert_eq!(Weight::DEFAULT.get(), 100);
}
