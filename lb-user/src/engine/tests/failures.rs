//! Full disks and maps: what can't be done doesn't keep the rest from being done.

use super::*;

/// `web` and a service like it.
fn with_another(another: &str, weights: &[u16]) -> Desired {
    let mut desired = web(weights);
    let mut service = desired.services[&name("web")].clone();
    service.name = name(another);
    service.vip.address = "198.18.0.11".parse().unwrap();
    desired.services.insert(service.name.clone(), service);
    desired
}

fn dies(world: &mut World, backend: &str) {
    world
        .engine
        .observe_health(&id(backend), HealthState::Dead, world.now);
}

#[test]
fn with_a_full_disk_deaths_still_reach_the_maps() {
    let mut world = World::new();
    world.declare(web(&[1, 1]));
    world.reach(2);
    let mut world = world.restart();
    world.full.set(true);
    world.declare(web(&[1, 2]));
    world.reach(2);
    dies(&mut world, "vm2");
    world.run();
    assert!(!world.head(2).alive());
    assert_eq!(world.owned(2), 0);
}

#[test]
fn a_service_that_fails_keeps_no_other_from_its_turn() {
    for another in ["a", "z"] {
        let mut world = World::new();
        world.declare(web(&[1, 1]));
        world.reach(2);
        world.full.set(true);
        let desired = with_another(another, &[1, 1]);
        let prepared = world.engine.prepare(desired).unwrap();
        world.engine.commit(prepared, world.now);
        world.tick(FIRST_HOPS);
        dies(&mut world, "vm2");
        let Failed(errors) = world.engine.reconcile(world.now).unwrap_err();
        assert_eq!(errors.len(), 1);
        assert_eq!(errors[0].to_string(), format!("service \"{another}\""));
        assert!(!world.head(2).alive(), "{another}");
        world.audit();
        world.full.set(false);
        world.pass(Duration::from_secs(2));
        assert!(world.engine.installed(&name(another)).is_some());
    }
}

#[test]
fn a_declaration_that_needs_no_new_place_needs_no_storing() {
    let mut world = World::new();
    world.declare(web(&[1, 1]));
    world.reach(2);
    world.full.set(true);
    let prepared = world.engine.prepare(web(&[5])).unwrap();
    world.engine.reserve(&prepared).unwrap();
    let prepared = world.engine.prepare(with_another("z", &[1])).unwrap();
    assert!(world.engine.reserve(&prepared).is_err());
    world.full.set(false);
    world.engine.reserve(&prepared).unwrap();
    assert!(world.stored.borrow().service(&name("z")).is_some());
}

#[test]
fn a_full_disk_delays_only_the_saving_of_what_was_freed() {
    let mut world = World::new();
    world.declare(web(&[1, 1]));
    world.reach(2);
    world.full.set(true);
    world.declare(web(&[1]));
    while world.engine.slots.backend(&id("vm2")).is_some() {
        let due = world.engine.next_deadline().unwrap();
        world.tick(due.saturating_duration_since(world.now));
        world.engine.reconcile(world.now).unwrap();
        let _ = world.engine.sweep(world.now);
    }
    world.declare(web(&[7]));
    dies(&mut world, "vm1");
    world.run();
    assert!(!world.head(1).alive());
    world.full.set(false);
    world.pass(Duration::from_secs(2));
    assert_eq!(*world.stored.borrow(), world.engine.slots);
}
