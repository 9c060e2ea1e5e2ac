//! Moves that settle, deaths and removals.

use super::*;

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
    let kept = world.head(3);
    world.engine.observe_hop(&id("vm3"), hop(9), world.now);
    world.run();
    world.pass(GRACE);
    let found = world.engine.dataplane.backend(slot(3)).unwrap();
    let head = world.head(3);
    assert_eq!(found.templates[usize::from(head.side())].eth[5], 9);
    assert!(head.alive() && head.generation() == kept.generation());
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
fn a_backend_given_up_and_declared_again_serves() {
    let mut world = World::new();
    world.declare(web(&[1, 1]));
    world.reach(2);
    world.declare(web(&[1]));
    world.engine.give_up(&id("vm2"), world.now);
    world.run();
    assert_eq!(
        (world.state("vm2"), world.head(2).alive()),
        (BackendState::Dead, false)
    );
    world.declare(web(&[1, 1]));
    assert_eq!(world.state("vm2"), BackendState::Up);
    assert_eq!((world.owned(2), world.head(2).generation()), (256, 1));
    // A change of something else is no new life.
    world
        .engine
        .observe_health(&id("vm2"), HealthState::Dead, world.now);
    world.declare(web(&[2, 1]));
    assert_eq!(world.state("vm2"), BackendState::Dead);
}

#[test]
fn who_is_gone_is_said_once() {
    let mut world = World::new();
    world.declare(web(&[1, 1]));
    world.reach(2);
    world.declare(web(&[1]));
    assert!(!world.engine.take_freed());
    world.pass(Duration::from_secs(200));
    assert!(world.engine.take_freed() && !world.engine.take_freed());
    assert!(!world.engine.reachable().contains_key(&id("vm2")));
}

#[test]
fn a_freed_place_leads_nowhere_whoever_gets_it() {
    let mut world = World::new();
    world.declare(web(&[1, 1]));
    world.reach(2);
    world.declare(web(&[1]));
    world.pass(Duration::from_secs(200));
    let in_force = |world: &World| {
        let backend = world.engine.dataplane.backend(slot(2)).unwrap();
        backend.templates[usize::from(world.head(2).side())]
    };
    assert_eq!(in_force(&world), Template::UNREACHABLE);
    // Another service gets the place, and can't reach its backend: it fails open.
    let mut desired = web(&[1]);
    let mut other = desired.services[&name("web")].clone();
    other.name = name("other");
    other.vip.address = "198.18.0.11".parse().unwrap();
    desired.services.insert(name("other"), other);
    world.declare(desired);
    world.pass(FIRST_HOPS);
    let other = world.engine.installed(&name("other")).unwrap();
    assert_eq!(other.backends[&name("vm1")].slot, slot(2));
    assert_eq!(other.ring.row(0), Some(Row::settled(slot(2))));
    assert_eq!(in_force(&world), Template::UNREACHABLE);
    assert!(!world.head(2).alive());
}

#[test]
fn a_service_that_comes_back_waits_until_packets_have_left_its_places() {
    let mut world = World::new();
    world.declare(web(&[1, 1]));
    world.reach(2);
    world.declare(Desired {
        limits: LIMITS,
        ..Desired::default()
    });
    let before = world.engine.dataplane.backend(slot(2)).unwrap();
    world.declare(web(&[1]));
    world.reach(1);
    assert_eq!(world.engine.dataplane.backend(slot(2)).unwrap(), before);
    assert!(world.engine.dataplane.services().unwrap().is_empty());
    world.pass(GRACE);
    assert_eq!(world.engine.dataplane.services().unwrap().len(), 1);
    assert_eq!(
        (world.head(2).alive(), world.head(2).generation()),
        (false, 1)
    );
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
fn a_service_that_comes_back_at_once_knows_none_of_its_flows() {
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
    world.pass(Duration::from_secs(40));
    assert_eq!(world.engine.dataplane.services().unwrap().len(), 1);
    assert_eq!(
        world.engine.dataplane.flows.len(),
        0,
        "or a row that moves would find them in force again"
    );
    assert_eq!(world.engine.slots.backend(&id("vm2")), None);
    assert_eq!(
        (world.head(1).alive(), world.head(1).generation()),
        (true, 1)
    );
}
