//! Services and backends that come and go while the daemon runs, by the command line and by the
//! API, with real traffic.

use std::collections::BTreeMap;

use lb_tests::lan::{Host, Lan};
use lb_tests::server::{Server, ask_tcp};
use lb_tests::wait;
use lb_tests::weir::Weir;
use nix::sys::signal::Signal;
use serde_json::json;

const VIP: &str = "198.18.9.10";
const INTERFACE: &str = "[[interface]]\nname = \"eth\"\nmode = \"native\"\n";

struct World {
    client: Host,
    balancer: Host,
    vms: Vec<Host>,
    _servers: Vec<Server>,
    _lan: Lan,
}

impl World {
    fn new() -> Self {
        let lan = Lan::new();
        let client = lan.host("client", 1);
        let balancer = lan.host("balancer", 2);
        client.route_vip(VIP, &balancer);
        let vms: Vec<Host> = (1..=2)
            .map(|n| lan.host(&format!("vm{n}"), 10 + n))
            .collect();
        vms.iter().for_each(|vm| vm.serve_vip(VIP));
        let servers = (1..)
            .zip(&vms)
            .map(|(n, vm)| Server::start(vm, 80, &format!("vm{n}")));
        Self {
            _servers: servers.collect(),
            client,
            balancer,
            vms,
            _lan: lan,
        }
    }

    fn spread(&self, times: usize) -> BTreeMap<String, usize> {
        let mut answers = BTreeMap::new();
        for _ in 0..times {
            let name = ask_tcp(&self.client, &format!("{VIP}:80")).expect("an answer");
            *answers.entry(name).or_default() += 1;
        }
        answers
    }

    /// Without a service the packets are the host's own, which forwards none.
    fn assert_unserved(&self) {
        let to = format!("{VIP}:80").parse().unwrap();
        let patience = std::time::Duration::from_millis(300);
        let answer = self
            .client
            .netns
            .enter(|| std::net::TcpStream::connect_timeout(&to, patience));
        assert!(answer.is_err(), "nobody serves it");
    }
}

#[test]
fn services_and_backends_are_added_and_removed_by_the_command_line() {
    let world = World::new();
    let (vm1, vm2) = (world.vms[0].v4(), world.vms[1].v4());
    let mut weir = Weir::start(&world.balancer, INTERFACE);
    world.assert_unserved();
    assert_eq!(
        weir.cli(&format!("service add web {VIP} 80 tcp")).trim(),
        format!("service \"web\" {VIP}:80/tcp added, 0 backends")
    );
    assert_eq!(
        weir.cli(&format!("backend add web vm1 {vm1}")).trim(),
        format!("service \"web\", backend \"vm1\" {vm1} added, weight 100")
    );
    weir.wait_serving("web");
    assert_eq!(world.spread(10), BTreeMap::from([("vm1".to_owned(), 10)]));
    weir.cli(&format!("backend add web vm2 {vm2} --weight 300"));
    weir.wait_for("web", "vm2", "up");
    let shared = world.spread(60);
    assert!(shared["vm2"] > shared["vm1"], "{shared:?}");

    weir.end(Signal::SIGTERM);
    weir.run();
    weir.wait_for("web", "vm2", "up");
    assert_eq!(weir.backend("web", "vm2", "weight"), 300, "kept");
    weir.cli("backend remove web vm1 --drop-flows");
    assert_eq!(world.spread(10), BTreeMap::from([("vm2".to_owned(), 10)]));
    assert_eq!(
        weir.cli("service remove web").trim(),
        format!("service \"web\" {VIP}:80/tcp removed")
    );
    assert_eq!(weir.json("service list"), json!([]));
    world.assert_unserved();
    weir.audit();
}

#[test]
fn services_and_backends_are_added_and_removed_by_the_api() {
    let world = World::new();
    let (vm1, vm2) = (world.vms[0].v4(), world.vms[1].v4());
    let weir = Weir::start(&world.balancer, INTERFACE);
    let done = |method: &str, path: &str, body: &serde_json::Value| {
        let (status, answer) = weir.http(method, path, body.to_string().as_bytes());
        assert_eq!(status, 200, "{method} {path}: {answer}");
        answer["done"].to_string()
    };
    let service = json!({
        "name": "web", "address": VIP, "port": 80, "protocol": "tcp",
        "backend": [{"name": "vm1", "address": vm1}]
    });
    assert!(done("POST", "/v1/services", &service).contains("added, 1 backends"));
    weir.wait_serving("web");
    assert_eq!(world.spread(10), BTreeMap::from([("vm1".to_owned(), 10)]));
    let backend = json!({"name": "vm2", "address": vm2, "weight": 300});
    done("POST", "/v1/services/web/backends", &backend);
    weir.wait_for("web", "vm2", "up");
    let shared = world.spread(60);
    assert!(shared["vm2"] > shared["vm1"], "{shared:?}");
    done("DELETE", "/v1/services/web/backends/vm1", &json!(null));
    wait::until("vm1 to take nothing", || {
        (weir.backend("web", "vm1", "state") == "leaving").then_some(())
    });
    assert_eq!(world.spread(10), BTreeMap::from([("vm2".to_owned(), 10)]));
    done("DELETE", "/v1/services/web", &json!(null));
    world.assert_unserved();
    weir.audit();
}
