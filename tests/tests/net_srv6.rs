//! SRv6 with one segment: what `ipip` in IPv6 sends is a reduced encapsulation (RFC 8986 §5.2), which
//! the kernel's own SRv6 ends at a segment identifier of the VM.

use lb_tests::lan::Lan;
use lb_tests::server::{Server, ask_tcp, ask_udp};
use lb_tests::weir::Weir;

const SID: &str = "2001:db8:5000::d";

fn through(vip: &str, action: &str) {
    let lan = Lan::new();
    let client = lan.host("client", 1);
    let balancer = lan.host("balancer", 2);
    let vm = lan.host("vm", 11);
    client.route_vip(vip, &balancer);
    vm.serve_vip(vip);
    vm.netns.set("net/ipv4/conf/all/rp_filter", "0");
    vm.netns.set("net/ipv4/conf/eth/rp_filter", "0");
    vm.netns.set("net/ipv6/conf/all/forwarding", "1");
    vm.netns.ip(&format!(
        "-6 route add {SID}/128 encap seg6local action {action} dev eth"
    ));
    balancer
        .netns
        .ip(&format!("route add {SID}/128 via {}", vm.v6()));
    let _server = Server::start(&vm, 80, "vm");
    let service = |name: &str, protocol: &str| {
        format!(
            "[[service]]\nname = \"{name}\"\naddress = \"{vip}\"\nport = 80\nprotocol = \"{protocol}\"\nforward = \"ipip\"\n\
             [[service.backend]]\nname = \"vm\"\naddress = \"{SID}\"\n"
        )
    };
    let config = format!(
        "[[interface]]\nname = \"eth\"\n{}{}",
        service("web", "tcp"),
        service("dns", "udp")
    );
    let weir = Weir::start(&balancer, &config);
    weir.wait_serving("web");
    weir.wait_serving("dns");
    let to = if vip.contains(':') {
        format!("[{vip}]:80")
    } else {
        format!("{vip}:80")
    };
    for _ in 0..5 {
        assert_eq!(ask_tcp(&client, &to).expect("an answer by TCP"), "vm");
        assert_eq!(ask_udp(&client, &to).expect("an answer by UDP"), "vm");
    }
    let sent = weir.backend("web", "vm", "packets").as_u64().unwrap();
    assert!(sent >= 15, "{sent}");
    weir.audit();
}

#[test]
fn ipv4_ends_at_a_segment_that_hands_it_on_by_its_own_destination() {
    through("198.18.9.10", "End.DX4 nh4 0.0.0.0");
}

#[test]
fn ipv6_ends_at_a_segment_that_looks_it_up_among_the_hosts_own_addresses() {
    through("2001:db8:9::10", "End.DT6 table local");
}
