//! Sweeps that fail, and what happens while one is under way.

use super::*;

/// A service of two backends whose second one is losing its rows, with a flow in such a row.
fn moving() -> (World, (Table, FlowKey)) {
    let mut world = World::new();
    world.declare(web(&[1, 1]));
    world.reach(2);
    world.declare(web(&[1, 0]));
    let mut rows = (0..).zip(world.rows());
    let row = rows.find(|(_, row)| row.lookup()).unwrap().0;
    let key = world.track(2, row);
    (world, key)
}

#[test]
fn after_a_failure_another_sweep_begins_soon() {
    let (mut world, _) = moving();
    world.engine.dataplane.broken_flows = true;
    let due = world.engine.next_deadline().unwrap();
    world.tick(due - world.now);
    assert!(world.engine.sweep(world.now).is_err());
    let next = world.engine.next_deadline().unwrap();
    assert!(next > world.now && next <= world.now + Duration::from_secs(1));
    world.engine.dataplane.broken_flows = false;
    world.pass(Duration::from_secs(200));
    assert!(world.engine.dataplane.flows.is_empty());
    assert!(world.rows().iter().all(|row| *row == Row::settled(slot(1))));
}

#[test]
fn flows_of_a_service_that_came_during_a_sweep_stay() {
    let (mut world, key) = moving();
    world.engine.dataplane.more = true;
    let due = world.engine.next_deadline().unwrap();
    world.tick(due - world.now);
    world.run();
    let mut desired = world.engine.desired().clone();
    let mut other = desired.services[&name("web")].clone();
    other.name = name("other");
    other.vip.address = "198.18.0.11".parse().unwrap();
    desired.services.insert(name("other"), other);
    world.declare(desired);
    for backend in ["vm1", "vm2"] {
        let id = BackendId {
            service: name("other"),
            backend: name(backend),
        };
        world.engine.observe_hop(&id, hop(9), world.now);
    }
    world.run();
    let place = world.engine.installed(&name("other")).unwrap();
    let mut entry = world.engine.dataplane.flows[&key];
    entry.service = place.slot;
    entry.backend = place.backends[&name("vm1")].slot.get();
    entry.generation = 0;
    let (table, FlowKey::V4(mut new)) = key else {
        unreachable!()
    };
    new.dst = [198, 18, 0, 11];
    let new = (table, FlowKey::V4(new));
    world.engine.dataplane.flows.insert(new, entry);
    world.run();
    world.engine.dataplane.more = false;
    world.run();
    assert!(world.engine.dataplane.flows.contains_key(&new));
    assert!(world.engine.dataplane.flows.contains_key(&key));
}

#[test]
fn an_entry_that_a_packet_used_since_it_was_judged_stays() {
    let (mut world, key) = moving();
    world.tick(Duration::from_secs(70));
    let mut fresh = world.engine.dataplane.flows[&key];
    fresh.last = world.engine.dataplane.clock.now.0 as u32;
    world.engine.dataplane.arrivals.insert(key, fresh);
    world.run();
    assert!(world.engine.dataplane.flows.contains_key(&key));
    let status = world.engine.status().unwrap();
    assert_eq!(status[0].backends[&name("vm2")].flows, 1);
    // Nothing more comes.
    world.engine.dataplane.arrivals.clear();
    world.pass(Duration::from_secs(30));
    assert!(world.engine.dataplane.flows.is_empty());
}

#[test]
fn flows_of_a_service_that_waits_to_be_taken_down_stay() {
    let (mut world, key) = moving();
    let mut desired = web(&[1]);
    let mut other = desired.services.remove(&name("web")).unwrap();
    other.name = name("other");
    desired.services.insert(name("other"), other);
    // The VIP goes to a service whose next hops are not known yet.
    world.declare(desired);
    let due = world.engine.sweep.next().unwrap();
    world.engine.sweep.wanted(world.now, Duration::ZERO);
    world.run();
    assert!(due > world.now && world.engine.dataplane.flows.contains_key(&key));
    world.pass(Duration::from_secs(10));
    assert!(world.engine.dataplane.flows.is_empty());
}

#[test]
fn the_entry_of_a_flow_whose_end_was_seen_goes_long_before_the_idle_timeout() {
    let hour = Duration::from_secs(3600);
    for (flags, gone) in [(0, false), (FlowEntry::CLOSED, true)] {
        let mut desired = web(&[1, 1]);
        desired.services.get_mut(&name("web")).unwrap().idle_timeout = hour;
        let mut world = World::new();
        world.declare(desired.clone());
        world.reach(2);
        let key = world.track(1, 3);
        world.engine.dataplane.flows.get_mut(&key).unwrap().flags = flags;
        for service in desired.services.values_mut() {
            service.backends.get_mut(&name("vm2")).unwrap().draining = true;
        }
        world.declare(desired);
        world.pass(Duration::from_secs(180));
        assert_eq!(world.engine.dataplane.flows.is_empty(), gone, "{flags}");
    }
}

#[test]
fn a_row_asks_until_the_entries_of_closed_flows_have_gone() {
    let mut world = World::new();
    world.declare(web(&[1, 1]));
    world.reach(2);
    world.declare(web(&[1, 0]));
    let mut rows = (0..).zip(world.rows());
    let row = rows.find(|(_, row)| row.lookup()).unwrap().0;
    // Its owner's, closed, and refreshed now and then by a new flow with its tuple.
    let key = world.track(1, row);
    let idle = world.engine.desired.services[&name("web")].idle_timeout;
    for _ in 0..40 {
        let now = world.engine.dataplane.clock.now.0 as u32;
        let entry = world.engine.dataplane.flows.get_mut(&key).unwrap();
        (entry.flags, entry.last) = (FlowEntry::CLOSED, now);
        world.pass(idle / 10);
    }
    let asking = world.rows().iter().filter(|row| row.lookup()).count();
    assert_eq!(asking, 1, "all others have settled");
    world.engine.dataplane.flows.get_mut(&key).unwrap().flags = 0;
    world.pass(idle / 2);
    assert!(world.rows().iter().all(|row| !row.lookup()));
}
