//! Path MTU discovery through the balancer: a router behind it, with a narrower link to the client,
//! says that a VM's packets are too big. The VM must hear of it, or its connections stall.

use lb_tests::bulk::{Bulk, DOWNLOAD, download};
use lb_tests::lan::Lan;
use lb_tests::netns::Netns;
use lb_tests::weir::Weir;

const VIP: &str = "198.18.9.10";
const VIP6: &str = "2001:db8:9::10";
const CONNECTIONS: usize = 8;

#[test]
fn a_vm_learns_that_its_packets_are_too_big_for_the_clients_link() {
    let lan = Lan::new();
    let balancer = lan.host("balancer", 2);
    let router = lan.host("router", 3);
    let vms = [lan.host("vm1", 11), lan.host("vm2", 12)];
    let client = Netns::new("client");
    router
        .netns
        .ip("link add narrow mtu 1400 type veth peer name wan");
    router
        .netns
        .ip(&format!("link set wan netns {}", client.path().display()));
    for (netns, device, last) in [(&router.netns, "narrow", 1), (&client, "wan", 2)] {
        netns.run("ethtool", &format!("-K {device} tx off"));
        netns.set(&format!("net/ipv6/conf/{device}/accept_dad"), "0");
        netns.ip(&format!("link set {device} up"));
        netns.ip(&format!("addr add 198.18.5.{last}/24 dev {device}"));
        netns.ip(&format!(
            "addr add 2001:db8:5::{last}/64 dev {device} nodad"
        ));
    }
    // The client doesn't know: it announces a segment size that doesn't fit.
    client.ip("link set wan mtu 1500");
    client.ip("route add default via 198.18.5.1");
    client.ip("-6 route add default via 2001:db8:5::1");
    router.netns.set("net/ipv4/ip_forward", "1");
    router.netns.set("net/ipv6/conf/all/forwarding", "1");
    for vip in [VIP, VIP6] {
        router.route_vip(vip, &balancer);
    }
    let mut config = "[[interface]]\nname = \"eth\"\nmode = \"native\"\n".to_owned();
    for (name, vip, back) in [
        ("web", VIP, "198.18.5.0/24 via 198.18.0.3"),
        ("web6", VIP6, "2001:db8:5::/64 via 2001:db8::3"),
    ] {
        config += &format!(
            "[[service]]\nname = \"{name}\"\naddress = \"{vip}\"\nport = 80\nprotocol = \"tcp\"\n"
        );
        for (n, vm) in (1..).zip(&vms) {
            vm.serve_vip(vip);
            vm.netns.ip(&format!("route add {back}"));
            let address = if vip.contains(':') { vm.v6() } else { vm.v4() };
            config += &format!("[[service.backend]]\nname = \"vm{n}\"\naddress = \"{address}\"\n");
        }
    }
    let weir = Weir::start(&balancer, &config);
    let _servers: Vec<_> = vms.iter().map(|vm| Bulk::start(vm, 80)).collect();
    for (name, to) in [
        ("web", format!("{VIP}:80")),
        ("web6", format!("[{VIP6}]:80")),
    ] {
        weir.wait_serving(name);
        let before = weir.json("stats")["reasons"]["icmp_error"]
            .as_u64()
            .unwrap();
        for _ in 0..CONNECTIONS {
            let length = download(&client, &to);
            let length = length.unwrap_or_else(|error| panic!("{to}: {error}\n{}", weir.log()));
            assert_eq!(length, DOWNLOAD, "{to}");
        }
        let after = weir.json("stats")["reasons"]["icmp_error"]
            .as_u64()
            .unwrap();
        assert!(
            after > before,
            "{to}: nobody said that a packet was too big"
        );
    }
}
