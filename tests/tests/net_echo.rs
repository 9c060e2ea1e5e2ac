//! Pings to virtual addresses, by the client's kernel: answered by the balancer.

use lb_tests::lan::Lan;
use lb_tests::ping::ping;
use lb_tests::weir::Weir;

const VIP: &str = "198.18.9.10";
const VIP6: &str = "2001:db8:9::10";

const SERVICES: &str = r#"
[[interface]]
name = "eth"
mode = "native"
[[service]]
name = "web"
address = "198.18.9.10"
port = 80
protocol = "tcp"
[[service]]
name = "web6"
address = "2001:db8:9::10"
port = "any"
protocol = "udp"
"#;

#[test]
fn a_client_pings_the_virtual_addresses_until_a_reload_says_no() {
    let lan = Lan::new();
    let client = lan.host("client", 1);
    let balancer = lan.host("balancer", 2);
    for vip in [VIP, VIP6, "198.18.9.11", "2001:db8:9::11"] {
        client.route_vip(vip, &balancer);
    }
    let mut weir = Weir::start(&balancer, SERVICES);
    let answered = |weir: &Weir<'_>| weir.json("stats")["reasons"]["echo"].as_u64().unwrap();
    // Nobody has backends: the addresses are there all the same.
    for vip in [VIP, VIP6] {
        for bytes in [0, 56, 1400] {
            let payload: Vec<u8> = (0..bytes).map(|n| n as u8).collect();
            let answer = ping(&client, vip, bytes);
            assert_eq!(answer.expect("an answer"), payload, "{vip}");
        }
    }
    assert_eq!(answered(&weir), 6);
    for nobody in ["198.18.9.11", "2001:db8:9::11"] {
        assert!(ping(&client, nobody, 8).is_err(), "{nobody}");
    }
    assert!(
        weir.cli("status")
            .contains("icmp: echo answered, 1000 a second and CPU")
    );

    weir.write_config(&format!("[icmp]\necho = false\n{SERVICES}"));
    assert_eq!(weir.cli("reload").trim(), "icmp, echo: true -> false");
    for vip in [VIP, VIP6] {
        assert!(ping(&client, vip, 8).is_err(), "{vip}");
    }
    assert_eq!(answered(&weir), 6);
    assert!(weir.cli("status").contains("icmp: echo passes to the host"));
    weir.audit();

    // A restart takes over what is in force.
    weir.end(nix::sys::signal::Signal::SIGKILL);
    assert!(ping(&client, VIP, 8).is_err());
    weir.write_config(&format!("[icmp]\necho_rate = 1\n{SERVICES}"));
    weir.run();
    weir.audit();
    let many = (0..20).filter(|_| ping_fast(&client)).count();
    assert!((1..20).contains(&many), "{many} of 20 over the rate");
    let dropped = &weir.json("stats")["reasons"]["drop_echo_rate"];
    assert!(dropped.as_u64().unwrap() > 0, "{dropped}");
    weir.audit();

    weir.write_config(&format!("[icmp]\necho_rate = 0\n{SERVICES}"));
    let refused = weir.refused("reload");
    assert!(
        refused.contains("icmp, echo_rate: 0 is out of range: allowed is 1 to 1000000"),
        "{refused}"
    );
    weir.write_config("[[service]]\nname = \"other\"\naddress = \"198.18.9.11\"\nport = 80\nprotocol = \"tcp\"\n[[interface]]\nname = \"eth\"\n");
    weir.cli("reload");
    assert!(ping(&client, VIP, 8).is_err(), "its service was removed");
    ping(&client, "198.18.9.11", 8).expect("an answer of the new one");
    weir.audit();
}

/// Pings, and doesn't wait for long.
fn ping_fast(client: &lb_tests::lan::Host) -> bool {
    lb_tests::ping::ping_for(client, VIP, 8, std::time::Duration::from_millis(20)).is_ok()
}
