//! The real daemon on a real (veth) NIC: direct server return, weights, drains, deaths, restarts.

use std::cell::RefCell;
use std::collections::BTreeMap;

use lb_tests::lan::{Host, Lan};
use lb_tests::server::{Connection, Server, ask_tcp, ask_udp};
use lb_tests::wait;
use lb_tests::weir::Weir;
use nix::sys::signal::Signal;

const VIP: &str = "198.18.9.10";
const VIP6: &str = "2001:db8:9::10";

/// A client, the balancer's host, and VMs that serve the VIPs.
struct World {
    client: Host,
    balancer: Host,
    vms: Vec<Host>,
    servers: RefCell<Vec<Option<Server>>>,
    _lan: Lan,
}

impl World {
    fn new(vms: u8) -> Self {
        let lan = Lan::new();
        let client = lan.host("client", 1);
        let balancer = lan.host("balancer", 2);
        let vms: Vec<Host> = (1..=vms)
            .map(|n| lan.host(&format!("vm{n}"), 10 + n))
            .collect();
        for vip in [VIP, VIP6] {
            client.route_vip(vip, &balancer);
            vms.iter().for_each(|vm| vm.serve_vip(vip));
        }
        let servers = (1..)
            .zip(&vms)
            .map(|(n, vm)| Some(Server::start(vm, 80, &format!("vm{n}"))));
        Self {
            servers: RefCell::new(servers.collect()),
            client,
            balancer,
            vms,
            _lan: lan,
        }
    }

    /// Makes a VM's server end.
    fn stop_server(&self, vm: usize) {
        self.servers.borrow_mut()[vm - 1] = None;
    }

    /// Makes a VM serve again.
    fn start_server(&self, vm: usize) {
        let server = Server::start(&self.vms[vm - 1], 80, &format!("vm{vm}"));
        self.servers.borrow_mut()[vm - 1] = Some(server);
    }

    /// A service on `vip` with all VMs as backends.
    fn service(&self, name: &str, vip: &str, protocol: &str, more: &str) -> String {
        let mut text = format!(
            "[[service]]\nname = \"{name}\"\naddress = \"{vip}\"\nport = 80\nprotocol = \"{protocol}\"\n{more}\n"
        );
        for (n, vm) in (1..).zip(&self.vms) {
            let address = if vip.contains(':') { vm.v6() } else { vm.v4() };
            text += &format!("[[service.backend]]\nname = \"vm{n}\"\naddress = \"{address}\"\n");
        }
        text
    }

    fn weir(&self, services: &str) -> Weir<'_> {
        let weir = Weir::start(
            &self.balancer,
            &format!("[[interface]]\nname = \"eth\"\nmode = \"native\"\n{services}"),
        );
        weir.wait_serving("web");
        weir
    }

    /// Connects so many times; returns how often each VM answered.
    fn spread(&self, times: usize) -> BTreeMap<String, usize> {
        let mut answers = BTreeMap::new();
        for _ in 0..times {
            let name = ask_tcp(&self.client, &format!("{VIP}:80")).expect("an answer");
            *answers.entry(name).or_default() += 1;
        }
        answers
    }

    /// Opens connections until every VM has one at least.
    fn connections(&self, weir: &Weir<'_>) -> Vec<(String, Connection)> {
        let mut open: Vec<(String, Connection)> = Vec::new();
        wait::until(
            &format!("every VM to have a connection: {}", weir.log()),
            || {
                let mut connection =
                    Connection::open(&self.client, &format!("{VIP}:80")).expect("a connection");
                let name = connection.ask().expect("an answer");
                open.push((name, connection));
                let all = (1..=self.vms.len()).all(|n| {
                    open.iter()
                        .filter(|(name, _)| *name == format!("vm{n}"))
                        .count()
                        >= 2
                });
                all.then_some(())
            },
        );
        open
    }
}

/// Asks on every connection; each must be with the VM that it began with.
#[track_caller]
fn all_unharmed(connections: &mut [(String, Connection)]) {
    for (name, connection) in connections {
        let answer = connection.ask();
        assert_eq!(answer.expect("a connection unharmed"), *name);
    }
}

#[test]
fn tcp_and_udp_reach_the_vms_by_both_families_and_counters_are_exact() {
    let world = World::new(2);
    let services = [
        world.service("web", VIP, "tcp", ""),
        world.service("web6", VIP6, "tcp", ""),
        world.service("dns", VIP, "udp", ""),
        world.service("dns6", VIP6, "udp", ""),
    ];
    let weir = world.weir(&services.join(""));
    for service in ["web", "web6", "dns", "dns6"] {
        weir.wait_for(service, "vm1", "up");
        weir.wait_for(service, "vm2", "up");
    }
    let mut expected: BTreeMap<(&str, String), u64> = BTreeMap::new();
    for _ in 0..20 {
        for (service, answer) in [
            ("web", ask_tcp(&world.client, &format!("{VIP}:80"))),
            ("web6", ask_tcp(&world.client, &format!("[{VIP6}]:80"))),
            ("dns", ask_udp(&world.client, &format!("{VIP}:80"))),
            ("dns6", ask_udp(&world.client, &format!("[{VIP6}]:80"))),
        ] {
            let name = answer.unwrap_or_else(|error| panic!("{service}: {error}\n{}", weir.log()));
            *expected.entry((service, name)).or_default() += 1;
        }
    }
    for service in ["web", "web6", "dns", "dns6"] {
        let mut packets = 0;
        for vm in ["vm1", "vm2"] {
            let count = expected
                .get(&(service, vm.to_owned()))
                .copied()
                .unwrap_or(0);
            assert!(count > 0, "{service}: {vm} got nothing");
            let tcp = service.starts_with("web");
            assert_eq!(
                weir.backend(service, vm, "new_flows"),
                if tcp { count } else { 0 }
            );
            let sent = weir.backend(service, vm, "packets").as_u64().unwrap();
            if !tcp {
                assert_eq!(sent, count);
            }
            packets += sent;
        }
        assert_eq!(weir.service(service)["packets"], packets);
        assert_eq!(weir.service(service)["dropped"], 0);
    }
    weir.audit();
}

#[test]
fn a_weight_set_by_the_command_line_is_followed_and_survives_a_restart() {
    let world = World::new(2);
    let mut weir = world.weir(&world.service("web", VIP, "tcp", ""));
    let even = world.spread(60);
    assert!(even["vm1"] > 12 && even["vm2"] > 12, "{even:?}");
    let said = weir.cli("backend set-weight web vm1 0");
    assert_eq!(
        said.trim(),
        "service \"web\", backend \"vm1\", weight: 100 -> 0"
    );
    assert_eq!(world.spread(20), BTreeMap::from([("vm2".to_owned(), 20)]));
    let status = weir.json("status");
    assert_eq!(
        status["overrides"][0],
        "service \"web\", backend \"vm1\", weight: 0"
    );

    weir.end(Signal::SIGTERM);
    assert_eq!(
        world.spread(10),
        BTreeMap::from([("vm2".to_owned(), 10)]),
        "without a daemon"
    );
    weir.run();
    assert_eq!(weir.backend("web", "vm1", "weight"), 0);
    assert_eq!(world.spread(10), BTreeMap::from([("vm2".to_owned(), 10)]));
    weir.cli("backend set-weight web vm1 100");
    assert_eq!(weir.json("status")["overrides"], serde_json::json!([]));
    assert!(world.spread(40).contains_key("vm1"));
    weir.audit();
}

#[test]
fn no_connection_is_moved_by_weights_drains_restarts_or_reloads() {
    let world = World::new(3);
    let config = format!(
        "[[interface]]\nname = \"eth\"\nmode = \"native\"\n{}",
        world.service("web", VIP, "tcp", "")
    );
    let mut weir = world.weir(&world.service("web", VIP, "tcp", ""));
    let mut open = world.connections(&weir);
    let mut check = |weir: &Weir<'_>| {
        all_unharmed(&mut open);
        weir.audit();
    };
    check(&weir);
    for weight in [10, 1000, 100] {
        weir.cli(&format!("backend set-weight web vm1 {weight}"));
        check(&weir);
    }
    weir.cli("backend drain web vm2");
    check(&weir);
    assert!(!world.spread(20).contains_key("vm2"), "no new flows");
    check(&weir);
    weir.end(Signal::SIGKILL);
    all_unharmed(&mut open);
    weir.run();
    let mut check = |weir: &Weir<'_>| {
        all_unharmed(&mut open);
        weir.audit();
    };
    check(&weir);
    weir.cli("backend undrain web vm2");
    check(&weir);
    weir.write_config(&config.replace("name = \"vm3\"\n", "name = \"vm3\"\nweight = 7\n"));
    assert!(
        weir.cli("reload")
            .contains("backend \"vm3\", weight: 100 -> 7")
    );
    check(&weir);
    weir.cli("backend remove web vm1");
    check(&weir);
    assert_eq!(weir.backend("web", "vm1", "state"), "leaving");
    assert!(!world.spread(20).contains_key("vm1"));
    check(&weir);
}

#[test]
fn a_vm_that_dies_is_suspect_first_and_loses_its_flows_only_when_dead() {
    let world = World::new(2);
    let health = "[service.health]\ntype = \"tcp\"\ninterval = \"100ms\"\ntimeout = \"100ms\"\nfall = 2\ndead_after = \"2s\"";
    let services = world.service("web", VIP, "tcp", health);
    world.stop_server(1);
    let mut weir = world.weir(&services);
    weir.wait_for("web", "vm1", "dead");
    assert_eq!(world.spread(20), BTreeMap::from([("vm2".to_owned(), 20)]));
    weir.end(Signal::SIGKILL);
    weir.run();
    assert_eq!(
        weir.backend("web", "vm1", "state"),
        "dead",
        "a new daemon does not revive it"
    );
    assert_eq!(world.spread(20), BTreeMap::from([("vm2".to_owned(), 20)]));
    let why = weir.json("status");
    assert!(weir.log().contains("refused"), "{why:#}");

    world.start_server(1);
    weir.wait_for("web", "vm1", "up");
    assert!(world.spread(60).contains_key("vm1"));
    world.stop_server(2);
    weir.wait_for("web", "vm2", "suspect");
    assert_eq!(weir.service("web")["state"], "serving");
    world.stop_server(1);
    weir.wait_for("web", "vm1", "dead");
    assert_eq!(weir.service("web")["state"], "fail-open");
    assert!(weir.log().contains("fail open"));
    weir.audit();
}

#[test]
fn a_drained_vm_keeps_its_flows_over_a_restart_without_patience() {
    let world = World::new(2);
    let health = "[service.health]\ntype = \"tcp\"\ninterval = \"100ms\"\ntimeout = \"100ms\"\nfall = 2\ndead_after = \"0s\"";
    let mut weir = world.weir(&world.service("web", VIP, "tcp", health));
    let mut open = world.connections(&weir);
    weir.cli("backend drain web vm2");
    weir.end(Signal::SIGKILL);
    weir.run();
    // A few probes: it would be given up with the first.
    std::thread::sleep(std::time::Duration::from_millis(500));
    assert_eq!(weir.backend("web", "vm2", "state"), "draining");
    all_unharmed(&mut open);
    assert!(!weir.log().contains("dead"), "{}", weir.log());
}

#[test]
fn a_vm_that_is_gone_from_the_network_is_dead_by_proof() {
    let world = World::new(2);
    let weir = world.weir(&world.service("web", VIP, "tcp", ""));
    world.vms[0].netns.ip("link set eth down");
    // The kernel has to lose its trust in the neighbour first.
    world
        .balancer
        .netns
        .ip(&format!("neigh del {} dev eth", world.vms[0].v4()));
    weir.wait_for("web", "vm1", "dead");
    assert_eq!(world.spread(10), BTreeMap::from([("vm2".to_owned(), 10)]));
    weir.cli("backend set-weight web vm2 50");
    assert_eq!(
        weir.backend("web", "vm1", "state"),
        "dead",
        "a change of something else does not revive it"
    );
    world.vms[0].netns.ip("link set eth up");
    weir.wait_for("web", "vm1", "up");
    assert!(world.spread(60).contains_key("vm1"));
}

#[test]
fn an_explanation_says_who_takes_a_packet_and_leaves_no_trace() {
    let world = World::new(2);
    let weir = world.weir(&world.service("web", VIP, "tcp", ""));
    weir.cli("backend set-weight web vm1 10");
    let before = weir.json("stats");
    let mut takers = BTreeMap::new();
    for port in 1..200 {
        let flow = format!("explain 198.18.0.1:{port} {VIP}:80 --syn");
        let explained = weir.json(&flow);
        assert_eq!(explained["verdict"], "tx", "{explained:#}");
        assert_eq!(explained["service"], "web");
        let backend = explained["backend"].as_str().unwrap().to_owned();
        *takers.entry(backend).or_insert(0) += 1;
    }
    assert!(takers["vm2"] > takers["vm1"], "{takers:?}");
    let other = weir.json("explain 198.18.0.1:1 198.18.9.11:80");
    assert_eq!(
        (&other["verdict"], &other["reason"]),
        (&"pass".into(), &"pass_no_service".into())
    );
    // Packets of the network itself, which pass, may come in meanwhile.
    let after = weir.json("stats");
    assert_eq!(after["services"], before["services"], "no counter moved");
    assert_eq!(
        after["reasons"]["pass_no_service"],
        before["reasons"]["pass_no_service"]
    );
    assert!(
        weir.refused(&format!("explain nonsense {VIP}:80"))
            .contains("source: \"nonsense\"")
    );
}

#[test]
fn moved_rows_settle_and_a_removed_backend_goes_when_its_flows_have_ended() {
    let world = World::new(2);
    let weir = world.weir(&world.service("web", VIP, "tcp", "idle_timeout = \"1s\""));
    let mut open = world.connections(&weir);
    weir.cli("backend remove web vm2");
    assert_eq!(weir.service("web")["lookup_rows"], 256);
    // A busy connection of the removed VM holds its place for longer than the idle time-out.
    wait::until("everything but the busy flow to settle", || {
        open.retain_mut(|(name, connection)| name == "vm2" && connection.ask().is_ok());
        open.truncate(1);
        (weir.service("web")["lookup_rows"] == 1).then_some(())
    });
    all_unharmed(&mut open);
    assert_eq!(weir.backend("web", "vm2", "state"), "leaving");
    assert_eq!(weir.backend("web", "vm2", "tracked_flows"), 1);
    open.clear();
    wait::until("the removed VM to be gone", || {
        let service = weir.service("web");
        (service["backends"].as_array().unwrap().len() == 1 && service["lookup_rows"] == 0)
            .then_some(())
    });
    weir.audit();
    assert!(weir.log().contains("its flows have ended"));
}

#[test]
fn a_vm_that_was_removed_and_is_gone_serves_when_it_is_added_again() {
    let world = World::new(2);
    let weir = world.weir(&world.service("web", VIP, "tcp", "idle_timeout = \"1s\""));
    let address = world.vms[1].v4();
    for how in ["", " --drop-flows"] {
        weir.cli(&format!("backend remove web vm2{how}"));
        wait::until("the removed VM to be gone", || {
            let service = weir.service("web");
            (service["backends"].as_array().unwrap().len() == 1).then_some(())
        });
        weir.cli(&format!("backend add web vm2 {address}"));
        weir.wait_for("web", "vm2", "up");
        assert!(world.spread(60).contains_key("vm2"));
    }
    weir.cli("backend remove web vm2 --drop-flows");
    weir.cli(&format!("backend add web vm2 {address}"));
    weir.wait_for("web", "vm2", "up");
    assert!(world.spread(60).contains_key("vm2"));
    weir.audit();
}
