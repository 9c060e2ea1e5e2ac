//! Next hops: found by the kernel's routes, neighbours and bridges, and followed when they change.

use std::os::fd::OwnedFd;

use lb_tests::lan::{Host, Lan};
use lb_tests::netns::Netns;
use lb_tests::server::{Connection, Server, ask_tcp};
use lb_tests::wait;
use lb_tests::weir::Weir;

const VIP: &str = "198.18.9.10";

fn config(backends: &[(&str, &str, &str)]) -> String {
    let mut text = format!(
        "[[interface]]\nname = \"eth\"\n[[service]]\nname = \"web\"\naddress = \"{VIP}\"\nport = 80\nprotocol = \"tcp\"\n"
    );
    for (name, address, more) in backends {
        text +=
            &format!("[[service.backend]]\nname = \"{name}\"\naddress = \"{address}\"\n{more}\n");
    }
    text
}

#[test]
fn a_vm_that_changes_its_ethernet_address_is_followed_and_keeps_its_connections() {
    let lan = Lan::new();
    let (client, balancer, vm) = (
        lan.host("client", 1),
        lan.host("balancer", 2),
        lan.host("vm", 11),
    );
    client.route_vip(VIP, &balancer);
    vm.serve_vip(VIP);
    let _server = Server::start(&vm, 80, "vm");
    let weir = Weir::start(&balancer, &config(&[("vm", &vm.v4(), "")]));
    weir.wait_serving("web");
    let mut connection = Connection::open(&client, &format!("{VIP}:80")).unwrap();
    assert_eq!(connection.ask().unwrap(), "vm");
    vm.netns.ip("link set eth address 02:00:00:00:00:77");
    // Its kernel tells the network, as a hypervisor does for a VM that has moved.
    balancer.netns.ip(&format!(
        "neigh replace {} lladdr 02:00:00:00:00:77 dev eth nud reachable",
        vm.v4()
    ));
    let frame = |weir: &Weir<'_>| {
        weir.json(&format!("explain 198.18.0.1:1 {VIP}:80"))["frame"]
            .as_str()
            .unwrap()[..12]
            .to_owned()
    };
    wait::until("the new address", || {
        (frame(&weir) == "020000000077").then_some(())
    });
    assert_eq!(connection.ask().unwrap(), "vm");
    assert_eq!(ask_tcp(&client, &format!("{VIP}:80")).unwrap(), "vm");
    weir.audit();
}

#[test]
fn a_backend_without_a_way_is_unresolved_and_says_why_until_there_is_one() {
    let lan = Lan::new();
    let (balancer, router, second) = (
        lan.host("balancer", 2),
        lan.host("router", 3),
        lan.host("second", 4),
    );
    let weir = Weir::start(
        &balancer,
        &config(&[
            ("far", "198.19.5.1", "forward = \"ipip\""),
            ("behind", "198.19.5.2", ""),
            ("gone", "198.18.0.99", "interface = \"nonsense\""),
        ]),
    );
    weir.wait_for("web", "far", "unresolved");
    let why = |backend: &str| {
        weir.backend("web", backend, "why")
            .as_str()
            .unwrap_or_default()
            .to_owned()
    };
    assert!(
        why("far").starts_with("no route to 198.19.5.1"),
        "{}",
        why("far")
    );
    assert_eq!(why("gone"), "there is no interface \"nonsense\"");
    assert_eq!(weir.service("web")["state"], "fail-open");

    balancer
        .netns
        .ip(&format!("route add 198.19.5.0/24 via {}", router.v4()));
    weir.wait_for("web", "far", "up");
    wait::until("the router to be named", || {
        why("behind")
            .contains("behind the router 198.18.0.3, which \"l2\" can't cross")
            .then_some(())
    });
    let to = |weir: &Weir<'_>| {
        weir.json(&format!("explain 198.18.0.1:1 {VIP}:80"))["frame"]
            .as_str()
            .unwrap()[..12]
            .to_owned()
    };
    wait::until("frames to go to the router", || {
        (to(&weir) == "020000000003").then_some(())
    });
    balancer
        .netns
        .ip(&format!("route replace 198.19.5.0/24 via {}", second.v4()));
    wait::until("frames to go to the other router", || {
        (to(&weir) == "020000000004").then_some(())
    });
    balancer.netns.ip("route del 198.19.5.0/24");
    weir.wait_for("web", "far", "unresolved");
    assert_eq!(
        to(&weir),
        "020000000004",
        "old flows keep the way that they had"
    );
    weir.audit();
}

/// A VM on a bridge of the balancer's own host: frames are redirected to its port, `vnet0`.
struct Bridged {
    client: Host,
    balancer: Host,
    _server: Server,
    _program: OwnedFd,
    _vm: Host,
    _lan: Lan,
}

impl Bridged {
    fn new() -> Self {
        let lan = Lan::new();
        let (client, balancer) = (lan.host("client", 1), lan.host("balancer", 2));
        client.route_vip(VIP, &balancer);
        let host = &balancer.netns;
        host.ip("link add br0 type bridge");
        host.ip("addr add 198.19.0.1/24 dev br0");
        host.ip("link set br0 up");
        host.set("net/ipv4/ip_forward", "1");
        let netns = Netns::new("vm");
        host.ip("link add vnet0 type veth peer name inside address 02:00:00:00:02:0b");
        host.ip(&format!("link set inside netns {}", netns.path().display()));
        host.ip("link set vnet0 master br0 up");
        netns.ip("link set inside name eth");
        netns.run("ethtool", "-K eth tx off");
        netns.ip("link set eth up");
        netns.ip("addr add 198.19.0.11/24 dev eth");
        netns.ip("route add default via 198.19.0.1");
        let ifindex = netns.ifindex("eth");
        // A veth takes redirected frames only with NAPI, which an XDP program turns on.
        let program = netns.enter(|| lb_tests::pass::attach(ifindex)).unwrap();
        let vm = Host::in_netns(netns, 11);
        vm.serve_vip(VIP);
        Self {
            _server: Server::start(&vm, 80, "vm"),
            _program: program,
            _vm: vm,
            client,
            balancer,
            _lan: lan,
        }
    }

    #[track_caller]
    fn assert_served_by_the_port(&self, weir: &Weir<'_>) {
        weir.wait_serving("web");
        let explained = weir.json(&format!("explain 198.18.0.1:1 {VIP}:80"));
        assert_eq!(explained["verdict"], "redirect");
        let steps = explained["steps"].to_string();
        assert!(steps.contains("out of interface vnet0"), "{steps}");
        for _ in 0..10 {
            assert_eq!(ask_tcp(&self.client, &format!("{VIP}:80")).unwrap(), "vm");
        }
    }
}

#[test]
fn a_vm_on_a_bridge_of_the_host_is_reached_by_its_port() {
    let bridged = Bridged::new();
    let weir = Weir::start(&bridged.balancer, &config(&[("vm", "198.19.0.11", "")]));
    bridged.assert_served_by_the_port(&weir);
    assert_eq!(weir.backend("web", "vm", "new_flows"), 10);
    weir.audit();
}

/// The kernel learns the VM's Ethernet address on the bridge, not on the port that is named.
#[test]
fn a_port_of_a_bridge_that_is_named_is_sent_from_and_the_neighbour_is_the_bridges() {
    let bridged = Bridged::new();
    let named = [("vm", "198.19.0.11", "interface = \"vnet0\"")];
    let weir = Weir::start(&bridged.balancer, &config(&named));
    bridged.assert_served_by_the_port(&weir);
    // An answer that is asked for in vain is given up after three seconds.
    for _ in 0..10 {
        std::thread::sleep(std::time::Duration::from_millis(500));
        let state = weir.backend("web", "vm", "state");
        assert_eq!(state, "up", "{}", weir.log());
    }
    bridged.assert_served_by_the_port(&weir);
    weir.audit();
}

#[test]
fn icmp_echo_tells_who_is_there_from_who_is_not() {
    use lb_user::health::{ProbeError, probe};
    use lb_user::model::Probe;
    use std::net::IpAddr;
    use std::time::Duration;

    let host = Netns::new("echo");
    host.ip("addr add 198.18.0.5/24 dev lo");
    // The probe's socket belongs to the namespace of the thread that opens it.
    let run = |address: &'static str, patience: Duration| {
        host.enter(move || {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .unwrap();
            let address: IpAddr = address.parse().unwrap();
            runtime.block_on(probe(&Probe::Icmp, address, patience))
        })
    };
    let long = Duration::from_secs(20);
    run("198.18.0.5", long).unwrap();
    run("::1", long).unwrap();
    host.ip("link add out type veth peer name far");
    host.ip("link set out up");
    host.ip("link set far up");
    host.ip("addr add 198.18.5.1/24 dev out");
    let silent = run("198.18.5.2", Duration::from_millis(50));
    assert!(matches!(silent, Err(ProbeError::TimedOut(_))), "{silent:?}");
    assert!(
        run("2001:db8::9", long)
            .unwrap_err()
            .to_string()
            .contains("unreachable")
    );
}
