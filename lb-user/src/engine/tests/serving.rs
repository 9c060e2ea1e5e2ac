//! What is installed, what is refused, and what an audit finds.

use super::*;

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
            settings: world.engine.settings,
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
    let added = differences(&|m| m.add_address(IpAddr::from([198, 18, 0, 9])).unwrap());
    assert_eq!(added, "address 198.18.0.9: found true, expected false");
    let removed = differences(&|m| m.remove_address(vip.address).unwrap());
    assert_eq!(removed, "address 198.18.0.10: found false, expected true");
    let settings = differences(&|m| m.set_settings(&Settings::default()).unwrap());
    assert!(settings.contains("settings: found"), "{settings}");
    let side = world.head(2).side();
    let template = Template::UNREACHABLE;
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
