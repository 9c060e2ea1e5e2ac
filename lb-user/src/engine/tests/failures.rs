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

#[test]
fn behind_an_interface_that_takes_no_packets_a_backend_is_not_up() {
    let mut world = World::new();
    // All places are taken by other interfaces.
    world.engine.dataplane.devices = (1000..1000 + lb_common::DEVICES).collect();
    world.declare(web(&[1]));
    world.reach(1);
    assert_eq!(world.state("vm1"), BackendState::Unresolved);
    assert!(!world.head(1).alive());
    let status = world.engine.status().unwrap();
    let why = status[0].backends[&name("vm1")].why.clone().unwrap();
    assert_eq!(
        why,
        "packets can't be sent out of interface 5: the map DEVICES is full: it has 1024 entries"
    );
    // One is deleted.
    world.engine.dataplane.devices.remove(&1000);
    world.pass(Duration::from_secs(2));
    assert_eq!(world.state("vm1"), BackendState::Up);
    assert_eq!(world.owned(1), 256);
}

#[test]
fn with_a_full_service_map_a_vip_can_still_change() {
    let mut world = World::new();
    let mut desired = web(&[1]);
    for number in 0..3_u8 {
        let mut service = desired.services[&name("web")].clone();
        service.name = name(&format!("s{number}"));
        service.vip.address = [198, 18, 2, number].into();
        desired.services.insert(service.name.clone(), service);
    }
    world.declare(desired.clone());
    world.pass(FIRST_HOPS);
    assert_eq!(world.engine.dataplane.services().unwrap().len(), 4);
    let web = desired.services.get_mut(&name("web")).unwrap();
    web.vip.address = [198, 18, 2, 99].into();
    let vip = web.vip;
    world.declare(desired);
    let services = world.engine.dataplane.services().unwrap();
    assert!(services.len() == 4 && services.iter().any(|(found, _)| *found == vip));
}
