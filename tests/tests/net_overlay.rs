//! VMs in a VXLAN overlay, behind the kernel's own VXLAN devices: real connections, whose packets the
//! device unwraps.

use std::collections::BTreeSet;

use lb_tests::lan::{Host, Lan};
use lb_tests::server::{Server, ask_tcp, ask_udp};
use lb_tests::weir::Weir;

const VIP: &str = "198.18.9.10";
const VIP6: &str = "2001:db8:9::10";

/// A VM of a virtual network: all that is seen of it is its VXLAN device, named like it.
fn join(host: &Host, name: &str, vni: u32, port: u16, local: &str) {
    host.netns.ip(&format!(
        "link add {name} address 52:54:00:00:00:{vni:02x} type vxlan id {vni} dstport {port} local {local} nolearning"
    ));
    host.netns
        .set(&format!("net/ipv4/conf/{name}/rp_filter"), "0");
    host.netns.ip(&format!("link set {name} up"));
}

fn received(host: &Host, device: &str) -> u64 {
    let output = host
        .netns
        .run("ip", &format!("-json -stats link show {device}"));
    let links: serde_json::Value = serde_json::from_slice(&output.stdout).expect("JSON");
    links[0]["stats64"]["rx"]["packets"]
        .as_u64()
        .expect("a count")
}

/// One service in VXLAN over one address family: two VMs of two virtual networks on one host.
fn through(vip: &str, outer_v4: bool) {
    let lan = Lan::new();
    let client = lan.host("client", 1);
    let balancer = lan.host("balancer", 2);
    let host = lan.host("host", 11);
    client.route_vip(vip, &balancer);
    host.serve_vip(vip);
    host.netns.set("net/ipv4/conf/all/rp_filter", "0");
    let local = if outer_v4 { host.v4() } else { host.v6() };
    join(&host, "red", 7, 4789, &local);
    join(&host, "blue", 8, 5000, &local);
    let _server = Server::start(&host, 80, "vm");
    let service = |name: &str, protocol: &str| {
        format!(
            "[[service]]\nname = \"{name}\"\naddress = \"{vip}\"\nport = 80\nprotocol = \"{protocol}\"\n\
             forward = \"vxlan\"\noverlay = {{ vni = 7 }}\n\
             [[service.backend]]\nname = \"red\"\naddress = \"{local}\"\n\
             overlay = {{ mac = \"52:54:00:00:00:07\" }}\n\
             [[service.backend]]\nname = \"blue\"\naddress = \"{local}\"\n\
             overlay = {{ mac = \"52:54:00:00:00:08\", vni = 8, port = 5000 }}\n"
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
    for _ in 0..20 {
        assert_eq!(ask_tcp(&client, &to).expect("an answer by TCP"), "vm");
        assert_eq!(ask_udp(&client, &to).expect("an answer by UDP"), "vm");
    }
    for vm in ["red", "blue"] {
        let sent = |service| weir.backend(service, vm, "packets").as_u64().unwrap();
        let sent = sent("web") + sent("dns");
        assert!(sent > 20, "{vm} has its share of the flows: {sent}");
        // Its device may take two segments for one (GRO).
        let received = received(&host, vm);
        assert!(
            (sent / 2..=sent).contains(&received),
            "{received} of {sent}"
        );
    }
    let explained = weir.json(&format!(
        "explain {}:4000 {to}",
        if vip.contains(':') {
            "[2001:db8::1]"
        } else {
            "198.18.0.1"
        }
    ));
    let steps = explained["steps"].to_string();
    assert!(steps.contains("overlay in IPv"), "{steps}");
    weir.audit();
}

#[test]
fn ipv4_in_vxlan_over_ipv4() {
    through(VIP, true);
}

#[test]
fn ipv6_in_vxlan_over_ipv4() {
    through(VIP6, true);
}

#[test]
fn ipv4_in_vxlan_over_ipv6() {
    through(VIP, false);
}

#[test]
fn ipv6_in_vxlan_over_ipv6() {
    through(VIP6, false);
}

#[test]
fn a_reload_takes_a_vm_to_another_network_and_a_restart_finds_it_there() {
    let lan = Lan::new();
    let client = lan.host("client", 1);
    let balancer = lan.host("balancer", 2);
    let host = lan.host("host", 11);
    client.route_vip(VIP, &balancer);
    host.serve_vip(VIP);
    host.netns.set("net/ipv4/conf/all/rp_filter", "0");
    join(&host, "red", 7, 4789, &host.v4());
    join(&host, "blue", 8, 4789, &host.v4());
    let _server = Server::start(&host, 80, "vm");
    let config = |vni: &str, mac: u8| {
        format!(
            "[[interface]]\nname = \"eth\"\n\
             [[service]]\nname = \"web\"\naddress = \"{VIP}\"\nport = 80\nprotocol = \"tcp\"\n\
             forward = \"vxlan\"\noverlay = {{ vni = {vni} }}\n\
             [[service.backend]]\nname = \"vm\"\naddress = \"{}\"\n\
             overlay = {{ mac = \"52:54:00:00:00:{mac:02x}\" }}\n",
            host.v4()
        )
    };
    let mut weir = Weir::start(&balancer, &config("7", 7));
    weir.wait_serving("web");
    let to = format!("{VIP}:80");
    let ask = || assert_eq!(ask_tcp(&client, &to).expect("an answer"), "vm");
    ask();
    assert!(received(&host, "red") > 0);

    weir.write_config(&config("16777216", 8));
    let error = weir.refused("reload");
    let expected =
        "service \"web\", overlay, vni: 16777216 is out of range: allowed is 0 to 16777215";
    assert!(error.contains(expected), "{error}");
    ask();

    weir.write_config(&config("8", 8));
    let said = weir.cli(&format!("diff {}", weir.config().display()));
    let expected = "backend \"vm\", forward: vxlan(vni 7, port 4789, mac 52:54:00:00:00:07) -> vxlan(vni 8, port 4789, mac 52:54:00:00:00:08)";
    assert!(said.contains(expected), "{said}");
    weir.cli("reload");
    // A template that was in force a moment ago is not written over at once.
    lb_tests::wait::until("packets in the other network", || {
        ask();
        (received(&host, "blue") > 0).then_some(())
    });
    let red = received(&host, "red");
    ask();
    assert_eq!(received(&host, "red"), red, "nothing more goes there");
    weir.audit();

    weir.end(nix::sys::signal::Signal::SIGKILL);
    weir.run();
    weir.wait_serving("web");
    ask();
    assert_eq!(received(&host, "red"), red);
    weir.audit();

    // A third VM, from the command line, and what it refuses.
    let error = weir.refused("backend add web other 198.18.0.11 --overlay {\"vni\":9}");
    assert!(error.contains("overlay, mac: is missing"), "{error}");
    weir.cli(
        "backend add web other 198.18.0.11 --overlay {\"mac\":\"52:54:00:00:00:09\",\"vni\":9}",
    );
    let names: BTreeSet<String> = weir.service("web")["backends"]
        .as_array()
        .unwrap()
        .iter()
        .map(|backend| backend["name"].as_str().unwrap().to_owned())
        .collect();
    assert_eq!(names, BTreeSet::from(["other".to_owned(), "vm".to_owned()]));
    weir.audit();
}
