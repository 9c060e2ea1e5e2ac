//! NAT with the real daemon: VMs without any configuration but a default route, behind the
//! balancer's NIC and on a veth of its own; clients behind a router with a narrow link.

use std::io::{self};
use std::net::{SocketAddr, UdpSocket};
use std::os::fd::OwnedFd;
use std::time::Duration;

use lb_tests::bulk::{Bulk, DOWNLOAD, download};
use lb_tests::lan::{Host, Lan};
use lb_tests::netns::Netns;
use lb_tests::pass;
use lb_tests::server::{Connection, Server, ask_tcp, ask_udp};
use lb_tests::wait;
use lb_tests::weir::Weir;
use nix::sys::signal::Signal;

const VIP: &str = "198.18.9.10";
const VIP6: &str = "2001:db8:9::10";
const PATIENCE: Duration = Duration::from_secs(10);

/// A client behind a router; the balancer, `vm1` behind the balancer's NIC, and `vm2` on a veth of
/// the balancer.
struct World {
    client: Host,
    router: Host,
    balancer: Host,
    vms: [Host; 2],
    _ends: Vec<OwnedFd>,
    _lan: Lan,
}

/// Joins two namespaces by a veth: `198.18.NET.1` and `.2`, `2001:db8:NET::1` and `::2`.
fn join(one: &Netns, device: &str, other: &Netns, peer: &str, net: u8) {
    let path = other.path();
    one.ip(&format!(
        "link add {device} type veth peer name {peer} netns {}",
        path.display()
    ));
    for (netns, device, last) in [(one, device, 1), (other, peer, 2)] {
        netns.run("ethtool", &format!("-K {device} gro on tx off"));
        netns.set(&format!("net/ipv6/conf/{device}/accept_dad"), "0");
        netns.ip(&format!("link set {device} up"));
        netns.ip(&format!("addr add 198.18.{net}.{last}/24 dev {device}"));
        netns.ip(&format!(
            "addr add 2001:db8:{net}::{last}/64 dev {device} nodad"
        ));
    }
}

/// A wire's other end: see [`pass`].
fn wire(netns: &Netns, device: &str) -> OwnedFd {
    let ifindex = netns.ifindex(device);
    netns.enter(|| pass::attach(ifindex)).expect("XDP")
}

fn forwards(netns: &Netns) {
    netns.set("net/ipv4/ip_forward", "1");
    netns.set("net/ipv6/conf/all/forwarding", "1");
}

fn default_by(netns: &Netns, v4: &str, v6: &str) {
    netns.ip(&format!("route add default via {v4}"));
    netns.ip(&format!("-6 route add default via {v6}"));
}

impl World {
    fn new() -> Self {
        let lan = Lan::new();
        let (balancer, router) = (lan.host("balancer", 2), lan.host("router", 3));
        let client = Host::in_netns(Netns::new("client"), 2);
        let near = lan.host("vm1", 11);
        let own = Host::in_netns(Netns::new("vm2"), 2);
        join(&router.netns, "narrow", &client.netns, "wan", 5);
        join(&balancer.netns, "tap2", &own.netns, "eth", 6);
        let ends = vec![wire(&own.netns, "eth")];
        forwards(&router.netns);
        forwards(&balancer.netns);
        default_by(&client.netns, "198.18.5.1", "2001:db8:5::1");
        default_by(&near.netns, &balancer.v4(), &balancer.v6());
        default_by(&own.netns, "198.18.6.1", "2001:db8:6::1");
        for vip in [VIP, VIP6] {
            router.route_vip(vip, &balancer);
        }
        for net in [
            "198.18.5.0/24 via 198.18.0.3",
            "2001:db8:5::/64 via 2001:db8::3",
        ] {
            balancer.netns.ip(&format!("route add {net}"));
        }
        Self {
            client,
            router,
            balancer,
            vms: [near, own],
            _ends: ends,
            _lan: lan,
        }
    }

    fn address(&self, vm: usize, v4: bool) -> String {
        match (vm, v4) {
            (0, true) => self.vms[0].v4(),
            (0, false) => self.vms[0].v6(),
            (_, true) => "198.18.6.2".to_owned(),
            (_, false) => "2001:db8:6::2".to_owned(),
        }
    }

    /// Services `web`, `dns`, `web6`, `dns6` on port 80, whose VMs listen on 8080.
    fn config(&self, more: &str) -> String {
        let mut text = "[[interface]]\nname = \"eth\"\nmode = \"native\"\n[[interface]]\nname = \"tap2\"\nmode = \"native\"\n".to_owned();
        for (name, vip, protocol) in [
            ("web", VIP, "tcp"),
            ("dns", VIP, "udp"),
            ("web6", VIP6, "tcp"),
            ("dns6", VIP6, "udp"),
        ] {
            text += &format!(
                "[[service]]\nname = \"{name}\"\naddress = \"{vip}\"\nport = 80\nprotocol = \"{protocol}\"\nforward = \"nat\"\n"
            );
            if protocol == "tcp" {
                text += more;
            }
            for vm in 0..2 {
                let address = self.address(vm, !vip.contains(':'));
                text += &format!(
                    "[[service.backend]]\nname = \"vm{}\"\naddress = \"{address}\"\nport = 8080\n",
                    vm + 1
                );
            }
        }
        text
    }

    fn weir(&self, more: &str) -> Weir<'_> {
        let weir = Weir::start(&self.balancer, &self.config(more));
        for service in ["web", "dns", "web6", "dns6"] {
            for vm in ["vm1", "vm2"] {
                weir.wait_for(service, vm, "up");
            }
        }
        weir
    }

    fn servers(&self) -> Vec<Server> {
        let vms = (1..).zip(&self.vms);
        vms.map(|(n, vm)| Server::start(vm, 8080, &format!("vm{n}")))
            .collect()
    }
}

fn reason(weir: &Weir<'_>, name: &str) -> u64 {
    weir.json("stats")["reasons"][name]
        .as_u64()
        .expect("a counter")
}

fn destinations() -> [(&'static str, String); 2] {
    [("", format!("{VIP}:80")), ("6", format!("[{VIP6}]:80"))]
}

#[test]
fn vms_without_configuration_serve_by_both_families_and_protocols() {
    let world = World::new();
    let _servers = world.servers();
    let weir =
        world.weir("[service.health]\ntype = \"tcp\"\ninterval = \"100ms\"\ntimeout = \"100ms\"\n");
    for (suffix, to) in destinations() {
        for (service, udp) in [("web", false), ("dns", true)] {
            let service = format!("{service}{suffix}");
            let mut seen = std::collections::BTreeMap::new();
            for _ in 0..30 {
                let answer = if udp {
                    ask_udp(&world.client, &to)
                } else {
                    ask_tcp(&world.client, &to)
                };
                let name =
                    answer.unwrap_or_else(|error| panic!("{service}: {error}\n{}", weir.log()));
                *seen.entry(name).or_insert(0) += 1;
            }
            assert_eq!(seen.len(), 2, "{service}: {seen:?}");
            for (vm, count) in seen {
                if !udp {
                    assert_eq!(weir.backend(&service, &vm, "new_flows"), count);
                }
            }
        }
    }
    weir.audit();
    // The host's own connections to the VMs, as the health checks are, are left alone.
    assert!(reason(&weir, "answer") > 300, "{:#}", weir.json("stats"));
    assert!(reason(&weir, "pass_from_vm") > 0, "the probes' answers");
    for vm in 0..2 {
        for v4 in [true, false] {
            let address = world.address(vm, v4);
            let to = if v4 {
                format!("{address}:8080")
            } else {
                format!("[{address}]:8080")
            };
            let name = ask_tcp(&world.balancer, &to).expect("an answer to the host itself");
            assert_eq!(name, format!("vm{}", vm + 1));
        }
    }
    // A VM that stops listening is found out, by the port that it listens on.
    drop(_servers);
    weir.wait_for("web", "vm1", "suspect");
    weir.wait_for("web6", "vm2", "suspect");
}

#[test]
fn an_explanation_shows_the_translation_both_ways() {
    let world = World::new();
    let weir = world.weir("");
    assert!(weir.cli("status").contains("198.18.6.2:8080"));
    assert_eq!(weir.backend("web", "vm2", "port"), 8080);
    let there = weir.json(&format!("explain 198.18.5.2:40000 {VIP}:80 --syn"));
    let steps = there["steps"].to_string();
    assert!(steps.contains("NAT to 198.18."), "{steps}");
    assert!(steps.contains(":8080/tcp"), "{steps}");
    let _servers = world.servers();
    ask_tcp(&world.client, &format!("{VIP}:80")).expect("an answer, so that neighbours are known");
    let back = weir.json("explain 198.18.6.2:8080 198.18.5.2:40000");
    assert_eq!(back["service"], "web", "{back:#}");
    assert_eq!(back["reason"], "answer", "{back:#}");
    assert!(
        back["steps"]
            .to_string()
            .contains("to come from 198.18.9.10:80/tcp"),
        "{back:#}"
    );
    let own = weir.json("explain 198.18.6.2:8080 198.18.6.1:40000");
    assert_eq!(own["reason"], "pass_from_vm", "{own:#}");
}

/// Asks on every connection; each must be with the VM that it began with.
#[track_caller]
fn all_unharmed(connections: &mut [(String, Connection)]) {
    for (name, connection) in connections {
        assert_eq!(connection.ask().expect("a connection unharmed"), *name);
    }
}

#[test]
fn no_connection_is_moved_by_weights_restarts_or_a_removal() {
    let world = World::new();
    let _servers = world.servers();
    let mut weir = world.weir("");
    let mut open: Vec<(String, Connection)> = Vec::new();
    wait::until("both VMs to have connections by both families", || {
        for (_, to) in destinations() {
            let mut connection = Connection::open(&world.client, &to).expect("a connection");
            open.push((connection.ask().expect("an answer"), connection));
        }
        let of = |vm: &str| open.iter().filter(|(name, _)| name == vm).count();
        (of("vm1") >= 4 && of("vm2") >= 4).then_some(())
    });
    for weight in [0, 1000, 100] {
        for service in ["web", "web6"] {
            weir.cli(&format!("backend set-weight {service} vm1 {weight}"));
        }
        all_unharmed(&mut open);
        weir.audit();
    }
    weir.end(Signal::SIGKILL);
    all_unharmed(&mut open);
    weir.run();
    all_unharmed(&mut open);
    weir.audit();
    weir.cli("backend remove web vm2");
    assert_eq!(weir.backend("web", "vm2", "state"), "leaving");
    all_unharmed(&mut open);
    weir.audit();
    weir.end(Signal::SIGKILL);
    weir.run();
    all_unharmed(&mut open);
    weir.audit();
}

#[test]
fn vms_learn_path_mtus_and_clients_learn_that_a_port_is_closed() {
    let world = World::new();
    // The client doesn't know: it announces a segment size that doesn't fit.
    world.router.netns.ip("link set narrow mtu 1400");
    let weir = world.weir("");
    let _servers: Vec<_> = world.vms.iter().map(|vm| Bulk::start(vm, 8080)).collect();
    for (suffix, to) in destinations() {
        let before = reason(&weir, "icmp_error");
        for _ in 0..8 {
            let length = download(&world.client.netns, &to);
            let length = length.unwrap_or_else(|error| panic!("{to}: {error}\n{}", weir.log()));
            assert_eq!(length, DOWNLOAD, "web{suffix}");
        }
        assert!(
            reason(&weir, "icmp_error") > before,
            "nobody said that a packet was too big"
        );
        // Nobody listens for UDP: the VM says so, and the client's kernel believes that it comes
        // from whom it asked.
        let asked: SocketAddr = to.parse().unwrap();
        let any = if asked.is_ipv4() {
            "0.0.0.0:0"
        } else {
            "[::]:0"
        };
        let socket = world.client.netns.enter(|| UdpSocket::bind(any)).unwrap();
        socket.connect(asked).unwrap();
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        socket.send(b"who?").unwrap();
        let error = socket.recv(&mut [0; 16]).unwrap_err();
        assert_eq!(
            error.kind(),
            io::ErrorKind::ConnectionRefused,
            "dns{suffix}"
        );
    }
}

#[test]
fn the_operator_is_told_what_keeps_answers_from_clients() {
    let world = World::new();
    world.balancer.netns.set("net/ipv4/ip_forward", "0");
    world.balancer.netns.set("net/ipv4/conf/eth/rp_filter", "1");
    let _servers = world.servers();
    let weir = world.weir("");
    let log = weir.log();
    assert!(
        log.contains("forwards no IPv4 packets") && log.contains("net.ipv4.ip_forward=1"),
        "{log}"
    );
    assert!(
        log.contains("interface \"eth\" filters by reverse path"),
        "{log}"
    );
    assert!(!log.contains("forwards no IPv6 packets"), "{log}");
    // Answers pass untouched, and the kernel keeps them.
    let refused = ask_tcp(&world.client, &format!("{VIP}:80"));
    refused.expect_err("nothing is forwarded");
    assert!(reason(&weir, "pass_forwarding_off") > 0);
    assert!(
        ask_tcp(&world.balancer, "198.18.6.2:8080").is_ok(),
        "the host is served all the same"
    );
}

#[test]
fn a_vms_port_belongs_to_one_service() {
    let world = World::new();
    let weir = world.weir("");
    let before = weir.json("status")["services"].clone();
    weir.cli("service add other 198.18.9.11 443 tcp --forward nat");
    let said = weir.refused("backend add other one 198.18.6.2 --port 8080");
    assert!(
        said.contains("service \"other\"") && said.contains("service \"web\""),
        "{said}"
    );
    let said = weir.refused("service add own 198.18.6.2 8080 tcp");
    assert!(
        said.contains("service \"own\"") && said.contains("service \"web\""),
        "{said}"
    );
    weir.cli("service remove other");
    let mut file = world.config("");
    file += "[[service]]\nname = \"more\"\naddress = \"198.18.9.12\"\nport = 80\nprotocol = \"tcp\"\nforward = \"nat\"\n[[service.backend]]\nname = \"x\"\naddress = \"198.18.6.2\"\nport = 8080\n";
    weir.write_config(&file);
    let path = weir.config();
    for command in ["check", "diff"] {
        let said = weir.refused(&format!("{command} {}", path.display()));
        assert!(
            said.contains("service \"more\", backend \"x\", address: 198.18.6.2:8080/tcp"),
            "{command}: {said}"
        );
        assert!(said.contains("of service \"web\""), "{command}: {said}");
    }
    assert!(weir.refused("reload").contains("198.18.6.2:8080/tcp"));
    assert_eq!(weir.json("status")["services"], before);
    weir.audit();
}
