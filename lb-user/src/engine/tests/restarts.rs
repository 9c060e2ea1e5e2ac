//! Restarts: what an earlier daemon left is taken over.

use super::*;

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
fn a_restart_writes_nothing_whenever_next_hops_come() {
    let mut world = World::new();
    world.declare(web(&[1, 2, 3]));
    world.reach(3);
    let writes = |world: &World| {
        let memory = &world.engine.dataplane;
        (memory.row_stores, memory.head_stores)
    };
    let (before, rows) = (writes(&world), world.rows());
    let mut world = world.restart();
    world.declare(web(&[1, 2, 3]));
    let status = |world: &World| {
        let status = world.engine.status().unwrap();
        let backends = status[0].backends.values();
        backends
            .map(|b| (b.state, b.why.clone()))
            .collect::<Vec<_>>()
    };
    assert_eq!(status(&world), [(); 3].map(|()| (BackendState::Up, None)));
    // The kernel asks its neighbours: no answer within the first second, then one by one.
    for backend in ["vm1", "vm2"] {
        let asked = Hop::Pending("asked".to_owned());
        world.engine.observe_hop(&id(backend), asked, world.now);
    }
    world.pass(FIRST_HOPS * 2);
    assert_eq!(status(&world), [(); 3].map(|()| (BackendState::Up, None)));
    for number in [3, 1, 2] {
        let id = id(&format!("vm{number}"));
        world.engine.observe_hop(&id, hop(number), world.now);
        world.run();
    }
    assert_eq!((writes(&world), world.rows()), (before, rows));
    // The word of the kernel counts as soon as there is one.
    let lost = Hop::Failed("no route".to_owned());
    world.engine.observe_hop(&id("vm3"), lost, world.now);
    world.run();
    assert_eq!(world.state("vm3"), BackendState::Unresolved);
}

#[test]
fn what_changed_while_the_daemon_was_away_moves_rows_once() {
    let mut world = World::new();
    world.declare(web(&[1, 1, 2]));
    world.reach(3);
    let (stores, owned) = (world.engine.dataplane.row_stores, world.owned(3));
    let mut world = world.restart();
    // vm4 has taken vm3's place: vm3's rows wait for its next hop, and go to nobody else.
    let mut desired = web(&[1, 1, 0, 2]);
    let service = desired.services.get_mut(&name("web")).unwrap();
    service.backends.remove(&name("vm3"));
    world.declare(desired);
    assert_eq!(world.engine.dataplane.row_stores, stores);
    world.reach(4);
    assert_eq!(world.engine.dataplane.row_stores - stores, owned as u64);
    assert_eq!((world.owned(3), world.owned(4)), (0, owned));
}

#[test]
fn a_restart_follows_the_operator_at_once() {
    let mut world = World::new();
    world.declare(web(&[1, 1]));
    world.reach(2);
    let mut world = world.restart();
    world.declare(web(&[1, 0]));
    assert_eq!((world.owned(1), world.owned(2)), (512, 0));
}

#[test]
fn a_restart_does_not_revive_the_dead() {
    let mut world = World::new();
    world.declare(web(&[1, 1]));
    world.reach(2);
    world
        .engine
        .observe_health(&id("vm2"), HealthState::Dead, world.now);
    world.run();
    let (rows, head) = (world.rows(), world.head(2));
    let mut world = world.restart();
    world.declare(web(&[1, 1]));
    world.reach(2);
    assert_eq!(
        (world.state("vm2"), world.rows(), world.head(2)),
        (BackendState::Dead, rows, head)
    );
    world
        .engine
        .observe_health(&id("vm2"), HealthState::Up, world.now);
    world.run();
    assert_eq!(world.owned(2), 256);
}

#[test]
fn a_restart_suspects_only_those_that_were_suspect() {
    let mut world = World::new();
    let mut desired = web(&[1, 1, 0, 1, 1]);
    let service = desired.services.get_mut(&name("web")).unwrap();
    service.backends.get_mut(&name("vm2")).unwrap().draining = true;
    world.declare(desired.clone());
    world.reach(5);
    let lost = Hop::Failed("no route".to_owned());
    world.engine.observe_hop(&id("vm4"), lost, world.now);
    world
        .engine
        .observe_health(&id("vm5"), HealthState::Suspect, world.now);
    world.run();
    let accepting: Vec<u32> = (1..=5).filter(|n| world.head(*n).accepts()).collect();
    assert_eq!(accepting, [1]);
    let mut world = world.restart();
    let health = world.engine.health().iter();
    let health: Vec<_> = health.map(|(id, seen)| (id.clone(), seen.value)).collect();
    assert_eq!(health, [(id("vm5"), HealthState::Suspect)]);
    world.declare(desired);
    world.reach(5);
    assert_eq!(world.state("vm2"), BackendState::Draining);
    assert_eq!(world.state("vm3"), BackendState::Idle);
    assert_eq!(world.state("vm4"), BackendState::Up);
    assert_eq!(world.state("vm5"), BackendState::Suspect);
    assert!((1..=5).all(|number| world.head(number).generation() == 0));
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
fn a_service_removed_before_a_restart_is_freed_after_it() {
    let nothing = || Desired {
        limits: LIMITS,
        ..Desired::default()
    };
    let mut world = World::new();
    world.declare(web(&[1, 1]));
    world.reach(2);
    world.track(1, 3);
    world.declare(nothing());
    let mut world = world.restart();
    world.declare(nothing());
    world.pass(Duration::from_secs(1));
    assert_eq!(world.engine.slots, Slots::default());
    assert_eq!(*world.stored.borrow(), Slots::default());
    assert!(world.engine.dataplane.flows.is_empty());
    assert_eq!(world.engine.next_deadline(), None);
}

#[test]
fn of_two_vips_of_a_service_the_declared_one_stays() {
    for declared in ["198.18.0.10", "198.18.0.99"] {
        let mut world = World::new();
        world.declare(web(&[1, 1]));
        world.reach(2);
        // The daemon dies while it changes the VIP.
        let service = world.engine.installed(&name("web")).unwrap();
        let (mut other, value) = (service.vip, service.value());
        other.address = "198.18.0.99".parse().unwrap();
        world.engine.dataplane.set_service(&other, &value).unwrap();
        let mut world = world.restart();
        let mut desired = web(&[1, 1]);
        let service = desired.services.get_mut(&name("web")).unwrap();
        service.vip.address = declared.parse().unwrap();
        let vip = service.vip;
        world.declare(desired);
        let found = world.engine.dataplane.services().unwrap();
        assert_eq!(found, [(vip, value)]);
        assert_eq!(world.engine.dataplane.service_removals, 1);
    }
}

#[test]
fn a_vip_left_over_with_an_older_ring_goes_at_once() {
    let mut world = World::new();
    world.declare(web(&[1, 1]));
    world.reach(2);
    let service = world.engine.installed(&name("web")).unwrap();
    let (vip, value) = (service.vip, service.value());
    let (mut other, mut older) = (vip, value);
    other.address = "198.18.0.1".parse().unwrap();
    older.ring_base = 4096;
    world.engine.dataplane.set_service(&other, &older).unwrap();
    let world = world.restart();
    let found = world.engine.dataplane.services().unwrap();
    assert_eq!(found, [(vip, value)]);
}
