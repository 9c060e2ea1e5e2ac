//! Lists of sources: replaced whole, kept over restarts, and nothing left behind.

use lb_common::guard::{ALLOW, DENY, ListId};
use lb_common::service::Service;

use super::*;
use crate::dataplane::Lists as _;
use crate::model::{Guard, Prefixes};

fn prefixes(texts: &[&str]) -> Option<Prefixes> {
    Some(texts.iter().map(|text| text.parse().unwrap()).collect())
}

fn denying(texts: &[&str]) -> Guard {
    Guard {
        deny: prefixes(texts),
        ..Guard::default()
    }
}

/// The service `web` with a guard of its own.
fn guarded(guard: &Guard) -> Desired {
    let mut desired = web(&[1]);
    desired.services.get_mut(&name("web")).unwrap().guard = guard.clone();
    desired
}

impl World {
    fn value(&self) -> Service {
        self.engine.dataplane.services().unwrap()[0].1
    }

    /// What is in the tries: serial numbers of lists, prefixes, what they do.
    fn tries(&self) -> Vec<(u32, String, u32)> {
        let mut found = Vec::new();
        let tries = &self.engine.dataplane;
        tries
            .visit_prefixes(&mut |list, (prefix, action)| {
                found.push((list.get() >> 2, prefix.to_string(), action));
            })
            .unwrap();
        found
    }
}

fn entry(serial: u32, prefix: &str, action: u32) -> (u32, String, u32) {
    (serial, prefix.to_owned(), action)
}

#[test]
fn a_list_is_filled_before_packets_are_told_and_the_old_one_emptied_long_after() {
    let mut world = World::new();
    world.declare(web(&[1]));
    world.reach(1);
    let plain = world.value();
    assert_eq!((plain.flags & Service::LISTS, plain.guard_list), (0, 0));

    world.declare(guarded(&denying(&["198.19.0.0/24"])));
    let first = world.value();
    assert_eq!(first.flags & Service::LISTS, Service::LISTS);
    assert_eq!(first.guard_list, ListId::new(1, false, false).get());
    assert_eq!(world.tries(), [entry(1, "198.19.0.0/24", DENY)]);

    let both = Guard {
        allow: prefixes(&["198.19.0.0/16", "198.19.7.0/24"]),
        ..denying(&["198.19.7.0/24"])
    };
    world.declare(guarded(&both));
    assert_eq!(
        world.value().guard_list,
        ListId::new(2, true, false).get(),
        "a list that allows keeps all others out"
    );
    let new = [
        entry(2, "198.19.0.0/16", ALLOW),
        entry(2, "198.19.7.0/24", DENY),
    ];
    let old = entry(1, "198.19.0.0/24", DENY);
    assert_eq!(
        world.tries(),
        [[old].as_slice(), &new].concat(),
        "packets may still read the old list"
    );
    world.pass(GRACE);
    assert_eq!(world.tries(), new);

    world.declare(web(&[1]));
    assert_eq!(world.value(), plain);
    world.pass(GRACE);
    assert!(world.tries().is_empty());
    assert!(world.engine.dataplane.near_words().unwrap().is_empty());
}

#[test]
fn the_global_list_is_read_by_the_services_of_its_family_only() {
    let mut world = World::new();
    let mut desired = web(&[1]);
    desired.guard = denying(&["2001:db8::/32"]);
    world.declare(desired.clone());
    world.reach(1);
    assert_eq!(world.value().flags & Service::LISTS, 0);
    desired.guard = denying(&["2001:db8::/32", "198.19.0.0/24"]);
    world.declare(desired.clone());
    let settings = world.engine.dataplane.guard().unwrap();
    assert_eq!(world.value().flags & Service::LISTS, Service::LISTS);
    assert!(settings.list_v4 != 0 && settings.list_v6 != 0);
    desired.guard = Guard::default();
    world.declare(desired);
    world.pass(GRACE);
    assert_eq!(world.value().flags & Service::LISTS, 0);
    assert!(world.tries().is_empty());
}

#[test]
fn equal_lists_are_one_and_short_prefixes_are_always_asked_for() {
    let mut world = World::new();
    let mut desired = guarded(&denying(&["0.0.0.0/0"]));
    desired.guard = denying(&["0.0.0.0/0"]);
    world.declare(desired);
    world.reach(1);
    let list = ListId::new(1, false, true);
    assert_eq!(world.value().guard_list, list.get());
    assert_eq!(world.engine.dataplane.guard().unwrap().list_v4, list.get());
    assert_eq!(world.tries().len(), 1);
}

#[test]
fn a_restart_knows_lists_by_what_is_in_them_and_cleans_up_what_a_crash_left() {
    let guard = denying(&["198.19.0.0/24", "198.19.1.1/32"]);
    let mut world = World::new();
    world.declare(guarded(&guard));
    world.reach(1);
    let (value, tries) = (world.value(), world.tries());
    // A daemon died while it filled a list, and before it wrote down which.
    let half = ListId::new(9, false, false);
    let prefix = ("203.0.113.0/24".parse().unwrap(), DENY);
    let memory = &mut world.engine.dataplane;
    memory.add_prefixes(half, &[prefix]).unwrap();
    memory.set_near(77, 1).unwrap();

    let mut world = world.restart();
    assert_eq!(world.value(), value, "it is judged while nobody declares");
    world.declare(guarded(&guard));
    world.reach(1);
    world.pass(GRACE);
    assert_eq!((world.value(), world.tries()), (value, tries));
    assert_eq!(world.engine.dataplane.near(77).unwrap(), 0);
}

#[test]
fn more_prefixes_than_fit_are_refused_and_nothing_changes() {
    let mut world = World::new();
    let many = |count: u32| {
        let prefixes = (0..count).map(|n| format!("198.19.{n}.0/24").parse().unwrap());
        guarded(&Guard {
            deny: Some(prefixes.collect()),
            ..Guard::default()
        })
    };
    world.declare(many(40));
    world.reach(1);
    // The old list and the new one are there at once for a moment.
    let refused = world.engine.prepare(many(30)).unwrap_err();
    assert_eq!(
        refused.to_string(),
        "limits.guard_prefixes: 70 prefixes of IPv4 while lists take the place of others, allowed are 64"
    );
    world.declare(many(24));
    world.pass(GRACE);
    world.declare(many(40));
}

#[test]
fn audit_finds_what_is_not_in_the_lists() {
    let mut world = World::new();
    world.declare(guarded(&denying(&["198.19.0.0/24"])));
    world.reach(1);
    let list = ListId::from_stored(world.value().guard_list);
    let memory = &mut world.engine.dataplane;
    let lost = ("198.19.0.0/24".parse().unwrap(), DENY);
    let foreign = ("198.19.9.0/24".parse().unwrap(), DENY);
    memory.remove_prefixes(list, &[lost]).unwrap();
    memory.add_prefixes(list, &[foreign]).unwrap();
    memory.set_near(5, 1).unwrap();
    let (found, _) = world.engine.audit().unwrap();
    let found: Vec<String> = found.iter().map(ToString::to_string).collect();
    assert_eq!(
        found,
        [
            "list 4, prefix 198.19.0.0/24: missing",
            "list 4, prefix 198.19.9.0/24: found, but not declared",
            "filter of prefixes, word 5: found Some(1), expected None",
        ]
    );
}
