//! VIPs that go from one service to another.

use super::*;
use crate::model::Vip;

/// Services of these names on 198.18.0.x, each with a backend `vm1` of its own.
fn site(services: &[(&str, u8)]) -> Desired {
    let mut text = String::new();
    for (service, vip) in services {
        let address: u32 = service.bytes().map(u32::from).sum();
        text += &format!(
            "[[service]]\nname = \"{service}\"\naddress = \"198.18.0.{vip}\"\nport = 80\nprotocol = \"tcp\"\n\
             [[service.backend]]\nname = \"vm1\"\naddress = \"198.18.1.{address}\"\n"
        );
    }
    let mut desired = Config::parse(&text, "test").unwrap().desired;
    desired.limits = LIMITS;
    desired
}

fn reach(world: &mut World, service: &str) {
    let id = BackendId {
        service: name(service),
        backend: name("vm1"),
    };
    world.engine.observe_hop(&id, hop(1), world.now);
    world.run();
}

/// Who has which VIP in the service map.
fn served(world: &World) -> Vec<(u8, String)> {
    let last = |vip: Vip| match vip.address {
        IpAddr::V4(address) => address.octets()[3],
        IpAddr::V6(_) => 0,
    };
    let services = world.engine.dataplane.services().unwrap();
    let named = services.into_iter().map(|(vip, service)| {
        let owner = world.engine.service_in(service.slot).unwrap().0;
        (last(vip), owner.to_string())
    });
    named.collect()
}

fn start(services: &[(&str, u8)]) -> World {
    let mut world = World::new();
    world.declare(site(services));
    for (service, _) in services {
        reach(&mut world, service);
    }
    world
}

#[test]
fn a_vip_handed_over_in_one_declaration_is_served_all_the_time() {
    for (first, second) in [("a", "b"), ("b", "a")] {
        // `first` gives its VIP to `second`, and takes another.
        let mut world = start(&[(first, 10), (second, 11)]);
        world.declare(site(&[(first, 12), (second, 10)]));
        let mut expected = [(10, second.to_owned()), (12, first.to_owned())];
        expected.sort();
        assert_eq!(served(&world), expected);
        assert_eq!(
            world.engine.dataplane.service_removals, 1,
            "only that of VIP 11, which nobody has any more"
        );
        assert_eq!(world.engine.next_deadline(), None);
    }
}

#[test]
fn two_services_swap_their_vips() {
    let mut world = start(&[("a", 10), ("b", 11)]);
    world.declare(site(&[("a", 11), ("b", 10)]));
    assert_eq!(served(&world), [(10, "b".to_owned()), (11, "a".to_owned())]);
    assert_eq!(world.engine.dataplane.service_removals, 0);
}

#[test]
fn a_removed_services_vip_goes_to_another_one() {
    for (old, new) in [("a", "b"), ("b", "a")] {
        let mut world = start(&[(old, 10), (new, 11)]);
        world.declare(site(&[(new, 10)]));
        assert_eq!(served(&world), [(10, new.to_owned())]);
        assert_eq!(world.engine.dataplane.service_removals, 1, "that of VIP 11");
        world.pass(Duration::from_secs(60));
        assert_eq!(served(&world), [(10, new.to_owned())]);
        assert_eq!(world.engine.slots.service(&name(old)), None);
    }
}

#[test]
fn a_vip_stays_where_it_is_until_a_new_service_can_take_it() {
    for (old, new) in [("a", "b"), ("b", "a")] {
        for after in [vec![(old, 11), (new, 10)], vec![(new, 10)]] {
            let mut world = start(&[(old, 10)]);
            world.declare(site(&after));
            assert_eq!(served(&world), [(10, old.to_owned())]);
            reach(&mut world, new);
            let mut expected: Vec<_> = after
                .iter()
                .map(|(service, vip)| (*vip, (*service).to_owned()))
                .collect();
            expected.sort();
            assert_eq!(served(&world), expected);
            assert_eq!(world.engine.dataplane.service_removals, 0);
        }
    }
}

#[test]
fn a_chain_of_handovers_waits_for_its_last() {
    let mut world = start(&[("a", 10), ("b", 11)]);
    world.declare(site(&[("a", 9), ("b", 10), ("c", 11)]));
    assert_eq!(served(&world), [(10, "a".to_owned()), (11, "b".to_owned())]);
    world.pass(FIRST_HOPS);
    let expected = [(9, "a"), (10, "b"), (11, "c")];
    assert_eq!(
        served(&world),
        expected.map(|(vip, service)| (vip, service.to_owned()))
    );
    assert_eq!(world.engine.dataplane.service_removals, 0);
}

#[test]
fn addresses_are_there_while_a_service_has_them_and_over_a_restart() {
    let mut world = start(&[("a", 10), ("b", 11)]);
    let last = |world: &World| -> Vec<u8> {
        let addresses = world.engine.dataplane.addresses().unwrap();
        let last = addresses.into_iter().map(|address| match address {
            IpAddr::V4(address) => address.octets()[3],
            IpAddr::V6(_) => 0,
        });
        last.collect()
    };
    assert_eq!(last(&world), [10, 11]);
    world.declare(site(&[("a", 12), ("b", 10)]));
    assert_eq!(last(&world), [10, 12]);
    let mut world = world.restart();
    world.audit();
    assert_eq!(last(&world), [10, 12]);
    world.declare(site(&[("b", 10)]));
    assert_eq!(last(&world), [10]);
    world.declare(site(&[]));
    assert!(last(&world).is_empty());
}

#[test]
fn settings_follow_the_declaration_and_are_written_once() {
    let mut world = start(&[("a", 10)]);
    let settings = |world: &World| world.engine.dataplane.settings().unwrap();
    assert_eq!(settings(&world).echo, 1);
    let mut desired = site(&[("a", 10)]);
    desired.icmp.echo = false;
    desired.icmp.echo_rate = 4;
    world.declare(desired.clone());
    assert_eq!(settings(&world).echo, 0);
    assert_eq!(settings(&world).echo_rate.interval_ns, 250_000_000);
    // A thousand jiffies a second.
    assert_eq!(settings(&world).fragment_jiffies, 30_000);
    desired.fragments.drop_unknown = true;
    desired.fragments.timeout = Duration::from_secs(2);
    world.declare(desired.clone());
    assert_eq!(settings(&world).drop_unknown_fragments, 1);
    assert_eq!(settings(&world).fragment_jiffies, 2000);
    // Until it is told, a new daemon leaves them alone.
    let mut world = world.restart();
    assert_eq!(settings(&world).echo, 0);
    world.declare(desired);
    assert_eq!(settings(&world).echo, 0);
}
