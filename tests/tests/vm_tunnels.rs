//! A real VM behind the real daemon: Debian's own kernel unwraps IPIP and GUE and answers the
//! client directly; or packets go from the NIC's program straight into the VM's tap.

use lb_tests::http::get;
use lb_tests::lan::Lan;
use lb_tests::vm::{More, Port, Vm};
use lb_tests::wait;
use lb_tests::weir::Weir;

const IPIP_VIP: &str = "198.18.9.10";
const GUE_VIP: &str = "198.18.9.11";
const L2_VIP: &str = "198.18.9.12";

#[test]
fn debians_kernel_unwraps_ipip_and_gue_and_answers_the_client() {
    let lan = Lan::new();
    let client = lan.host("client", 1);
    let balancer = lan.host("balancer", 2);
    for vip in [IPIP_VIP, GUE_VIP] {
        client.route_vip(vip, &balancer);
    }
    let vm = Vm::boot(&lan, 21, &[IPIP_VIP, GUE_VIP]);
    wait::until("the guest to serve", || {
        get(&client, vm.address(), "/")
            .ok()
            .filter(|name| name == "vm")
    });
    let unwrapped = || -> u64 {
        let count = get(&client, vm.address(), "/cgi-bin/unwrapped").expect("the guest's count");
        count
            .parse()
            .unwrap_or_else(|_| panic!("{count:?}: {}", vm.console()))
    };
    assert_eq!(unwrapped(), 0, "nothing came through a tunnel yet");

    let service = |name: &str, vip: &str, forward: &str| {
        format!(
            "[[service]]\nname = \"{name}\"\naddress = \"{vip}\"\nport = 80\nprotocol = \"tcp\"\nforward = \"{forward}\"\n\
             [[service.backend]]\nname = \"vm\"\naddress = \"{}\"\n",
            vm.address()
        )
    };
    let config = format!(
        "[[interface]]\nname = \"eth\"\n{}{}",
        service("ipip", IPIP_VIP, "ipip"),
        service("gue", GUE_VIP, "gue")
    );
    let weir = Weir::start(&balancer, &config);
    let mut sent = 0;
    for (name, vip) in [("ipip", IPIP_VIP), ("gue", GUE_VIP)] {
        weir.wait_serving(name);
        for _ in 0..5 {
            let answer = get(&client, vip, "/");
            assert_eq!(
                answer.unwrap_or_else(|error| panic!("{name}: {error}: {}", vm.console())),
                "vm"
            );
        }
        let packets = weir.backend(name, "vm", "packets").as_u64().unwrap();
        assert!(
            packets >= 20,
            "a request has four packets at least: {packets}"
        );
        sent += packets;
        assert_eq!(
            unwrapped(),
            sent,
            "what was wrapped is what the guest unwrapped"
        );
    }
}

/// Geneve devices of Debian's kernel: one for a single network, which throws away what has options
/// that it must know, and one that takes every network and every option, as Open vSwitch has it.
const GENEVE: &str = r#"
/sbin/ip link add one address 52:54:00:00:00:07 type geneve id 7 remote 198.18.0.2
/sbin/ip link add any address 52:54:00:00:00:08 type geneve external dstport 6082
for device in one any; do
  echo 0 > /proc/sys/net/ipv4/conf/$device/rp_filter
  /sbin/ip link set $device up
done
cat > /www/cgi-bin/geneve <<'END'
#!/bin/sh
printf 'Content-Type: text/plain\r\n\r\n'
for device in one any; do
  cat /sys/class/net/$device/statistics/rx_packets /sys/class/net/$device/statistics/rx_errors
done
END
chmod +x /www/cgi-bin/geneve
"#;

#[test]
fn debians_kernel_unwraps_geneve_with_and_without_options_that_it_must_know() {
    let lan = Lan::new();
    let client = lan.host("client", 1);
    let balancer = lan.host("balancer", 2);
    for vip in [IPIP_VIP, GUE_VIP] {
        client.route_vip(vip, &balancer);
    }
    let port = Port {
        netns: lan.switch(),
        tap: &lan.tap(21),
        gateway: None,
    };
    let more = More {
        commands: GENEVE,
        ..More::default()
    };
    let vips = [IPIP_VIP, GUE_VIP];
    let vm = Vm::boot_at(&port, "198.18.0.21", 21, &vips, &more);
    wait::until("the guest's devices", || {
        get(&client, vm.address(), "/cgi-bin/geneve").ok()
    });
    let service = |name: &str, vip: &str, overlay: &str| {
        format!(
            "[[service]]\nname = \"{name}\"\naddress = \"{vip}\"\nport = 80\nprotocol = \"tcp\"\n\
             forward = \"geneve\"\noverlay = {{ {overlay} }}\n\
             [[service.backend]]\nname = \"vm\"\naddress = \"{}\"\n\
             overlay = {{ mac = \"52:54:00:00:00:{}\" }}\n",
            vm.address(),
            if name == "one" { "07" } else { "08" },
        )
    };
    let config = format!(
        "[[interface]]\nname = \"eth\"\n{}{}",
        service("one", IPIP_VIP, "vni = 7, options = \"0103010100000001\""),
        // OVN's: from logical port 1 to logical port 2.
        service(
            "all",
            GUE_VIP,
            "vni = 4097, port = 6082, options = \"0102800100010002\""
        ),
    );
    let weir = Weir::start(&balancer, &config);
    let mut sent = Vec::new();
    for (name, vip) in [("one", IPIP_VIP), ("all", GUE_VIP)] {
        weir.wait_serving(name);
        for _ in 0..5 {
            let answer = get(&client, vip, "/");
            assert_eq!(
                answer.unwrap_or_else(|error| panic!("{name}: {error}: {}", vm.console())),
                "vm"
            );
        }
        let packets = weir.backend(name, "vm", "packets").as_u64().unwrap();
        assert!(packets >= 20, "{packets}");
        sent.push(packets);
    }
    let counted = get(&client, vm.address(), "/cgi-bin/geneve").expect("the guest's counts");
    let counted: Vec<u64> = counted
        .split_whitespace()
        .map(|count| count.parse().expect("a count"))
        .collect();
    let [one, one_bad, any, any_bad] = counted[..] else {
        panic!("{counted:?}");
    };
    assert_eq!((one_bad, any_bad), (0, 0), "none was thrown away");
    for (received, sent) in [one, any].into_iter().zip(sent) {
        // The guest may take two segments for one (GRO).
        assert!((20..=sent).contains(&received), "{received} of {sent}");
    }
    weir.audit();
}

#[test]
fn packets_go_from_the_nic_straight_into_the_tap_of_a_vm_on_this_host() {
    let lan = Lan::new();
    let client = lan.host("client", 1);
    let balancer = lan.host("balancer", 2);
    client.route_vip(L2_VIP, &balancer);
    let host = &balancer.netns;
    host.ip("tuntap add dev tap0 mode tap");
    host.ip("link set tap0 up");
    host.ip("addr add 198.18.1.1/24 dev tap0");
    host.set("net/ipv4/ip_forward", "1");
    let port = Port {
        netns: host,
        tap: "tap0",
        gateway: Some("198.18.1.1"),
    };
    let vm = Vm::boot_at(&port, "198.18.1.21", 21, &[L2_VIP], &More::default());
    wait::until("the guest to serve", || {
        get(&balancer, vm.address(), "/")
            .ok()
            .filter(|name| name == "vm")
    });

    let config = format!(
        "[[interface]]\nname = \"eth\"\nmode = \"native\"\n\
         [[service]]\nname = \"web\"\naddress = \"{L2_VIP}\"\nport = 80\nprotocol = \"tcp\"\n\
         [[service.backend]]\nname = \"vm\"\naddress = \"{}\"\n",
        vm.address()
    );
    let weir = Weir::start(&balancer, &config);
    weir.wait_serving("web");
    for _ in 0..5 {
        let answer = get(&client, L2_VIP, "/");
        assert_eq!(
            answer.unwrap_or_else(|error| panic!("{error}: {}", vm.console())),
            "vm"
        );
    }
    let packets = weir.backend("web", "vm", "packets").as_u64().unwrap();
    assert!(
        packets >= 20,
        "a request has four packets at least: {packets}"
    );
    let explained = weir.json(&format!("explain 198.18.0.1:4000 {L2_VIP}:80"));
    assert_eq!(explained["verdict"], "redirect", "{explained:#}");
    weir.audit();
}
