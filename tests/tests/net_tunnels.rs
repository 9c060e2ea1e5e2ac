//! Tunnels of every kind, over the real daemon and veth: wrapped by `weir`, unwrapped by
//! `weir decap`, answered directly.

use lb_tests::decap::Decap;
use lb_tests::lan::Lan;
use lb_tests::netns::pins;
use lb_tests::server::{Connection, Server, ask_tcp, ask_udp};
use lb_tests::weir::{Weir, binary};

const VIP: &str = "198.18.9.10";
const VIP6: &str = "2001:db8:9::10";

/// One service over one kind of tunnel: (service address, backend family, forward, counter).
fn through(vip: &str, outer_v4: bool, forward: &str, counter: &str) {
    let lan = Lan::new();
    let client = lan.host("client", 1);
    let balancer = lan.host("balancer", 2);
    let vm = lan.host("vm", 11);
    client.route_vip(vip, &balancer);
    vm.serve_vip(vip);
    let _server = Server::start(&vm, 80, "vm");
    let decap = Decap::attach(&vm);
    let address = if outer_v4 { vm.v4() } else { vm.v6() };
    let service = |name: &str, protocol: &str| {
        format!(
            "[[service]]\nname = \"{name}\"\naddress = \"{vip}\"\nport = 80\nprotocol = \"{protocol}\"\nforward = \"{forward}\"\n\
             [[service.backend]]\nname = \"vm\"\naddress = \"{address}\"\n"
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
    assert_eq!(ask_tcp(&client, &to).expect("an answer by TCP"), "vm");
    for _ in 0..5 {
        assert_eq!(ask_udp(&client, &to).expect("an answer by UDP"), "vm");
    }
    let mut connection = Connection::open(&client, &to).expect("a connection");
    assert_eq!(connection.ask().expect("an answer"), "vm");
    connection.close();

    let sent = weir.backend("web", "vm", "packets").as_u64().unwrap()
        + weir.backend("dns", "vm", "packets").as_u64().unwrap();
    let counters = decap.counters();
    assert_eq!(
        counters[counter], sent,
        "what was wrapped is what was unwrapped: {counters:?}"
    );
    for (name, count) in counters {
        let tunnel = name != "pass_other" && name != counter;
        assert!(!tunnel || count == 0, "{name}: {count}");
    }
    weir.audit();
}

#[test]
fn ipv4_in_ipv4() {
    through(VIP, true, "ipip", "ipv4_in_ipv4");
}

#[test]
fn ipv6_in_ipv4() {
    through(VIP6, true, "ipip", "ipv6_in_ipv4");
}

#[test]
fn ipv4_in_ipv6() {
    through(VIP, false, "ipip", "ipv4_in_ipv6");
}

#[test]
fn ipv6_in_ipv6() {
    through(VIP6, false, "ipip", "ipv6_in_ipv6");
}

#[test]
fn ipv4_in_gue_over_ipv4() {
    through(VIP, true, "gue", "gue_over_ipv4");
}

#[test]
fn ipv6_in_gue_over_ipv4() {
    through(VIP6, true, "gue", "gue_over_ipv4");
}

#[test]
fn ipv4_in_gue_over_ipv6() {
    through(VIP, false, "gue", "gue_over_ipv6");
}

#[test]
fn ipv6_in_gue_over_ipv6() {
    through(VIP6, false, "gue", "gue_over_ipv6");
}

#[test]
fn decap_says_what_is_wrong() {
    let lan = Lan::new();
    let vm = lan.host("vm", 11);
    let decap = Decap::attach(&vm);
    let refused = |verb: &str, arguments: &[&str]| {
        let output = decap.command(verb).args(arguments).output().unwrap();
        assert!(
            !output.status.success(),
            "{verb} {arguments:?} should have been refused"
        );
        String::from_utf8(output.stderr).unwrap()
    };
    assert!(refused("attach", &["eth"]).contains("has it already"));
    vm.netns.ip("link add bare type veth peer name other");
    assert!(refused("attach", &["bare"]).contains("interface \"bare\" has no address"));
    for address in [[].as_slice(), &["--address", "198.18.0.11"]] {
        let missing = refused("attach", &[&["nonsense"], address].concat());
        let expected = "interface \"nonsense\" does not exist";
        assert!(missing.contains(expected), "{missing}");
    }
    assert!(refused("attach", &["eth", "--mode", "fast"]).contains("\"fast\" is not known"));
    assert!(refused("detach", &["lo"]).contains("nothing was attached"));
    assert_eq!(
        std::fs::read_dir(&decap.pins).unwrap().count(),
        1,
        "failures leave nothing"
    );
}

#[test]
fn decap_removes_nothing_but_its_own_and_nothing_outside_a_bpf_file_system() {
    let lan = Lan::new();
    let vm = lan.host("vm", 11);
    let run = |arguments: &[&str]| {
        let mut command = vm.netns.command(binary().to_str().unwrap());
        let output = command.arg("decap").args(arguments).output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        (output.status.success(), said)
    };
    let precious = tempfile::tempdir().unwrap();
    let directory = precious.path().to_str().unwrap();
    let file = precious.path().join("eth/precious");
    std::fs::create_dir(precious.path().join("eth")).unwrap();
    std::fs::write(&file, "precious").unwrap();
    for arguments in [
        ["attach", "eth", "--pins", directory].as_slice(),
        &["detach", "eth", "--pins", directory],
        &["status", "--pins", directory],
    ] {
        let (done, said) = run(arguments);
        assert!(!done && said.contains("not in a BPF file system"), "{said}");
    }
    assert_eq!(std::fs::read_to_string(&file).unwrap(), "precious");

    let pins = pins("decap");
    let directory = pins.to_str().unwrap();
    for name in ["../weir", "", "..", "eth/links"] {
        for verb in ["attach", "detach"] {
            let (done, said) = run(&[verb, name, "--pins", directory]);
            assert!(
                !done && said.contains("is not the name of an interface"),
                "{said}"
            );
        }
    }
    let (done, said) = run(&["attach", "nonsense", "--pins", directory]);
    assert!(!done, "attached to nonsense");
    assert_eq!(said.trim(), "weir: interface \"nonsense\" does not exist");
    assert!(!pins.exists());

    let own = pins.join("eth/own");
    std::fs::create_dir_all(pins.join("eth")).unwrap();
    std::os::unix::fs::symlink("elsewhere", &own).unwrap();
    let (done, said) = run(&["attach", "eth", "--pins", directory]);
    assert!(done, "{said}");
    let (done, said) = run(&["detach", "eth", "--pins", directory]);
    assert!(done, "{said}");
    assert!(own.is_symlink(), "what weir did not make stays");
    std::fs::remove_file(own).unwrap();
    std::fs::remove_dir(pins.join("eth")).unwrap();
    std::fs::remove_dir(pins).unwrap();
}
