//! The balancer on Debian's own kernel: a VM loads the programs, attaches them to its virtio NIC
//! and spreads a real client's connections.

use std::collections::BTreeSet;

use lb_tests::lan::Lan;
use lb_tests::server::{Server, ask_tcp};
use lb_tests::vm::{More, Port, Vm};
use lb_tests::wait;
use lb_tests::weir::binary;

const VIP: &str = "198.18.9.10";
const CONFIG: &str = r#"
[limits]
services = 16
backends = 64
rows = 4096
half_open_flows = 1024
confirmed_flows = 1024
kept_flows = 1024
[[interface]]
name = "eth0"
[[service]]
name = "web"
address = "198.18.9.10"
port = 80
protocol = "tcp"
[[service.backend]]
name = "vm1"
address = "198.18.0.11"
[[service.backend]]
name = "vm2"
address = "198.18.0.12"
"#;

#[test]
fn debians_kernel_runs_the_balancer() {
    let lan = Lan::new();
    let client = lan.host("client", 1);
    let vms = [lan.host("vm1", 11), lan.host("vm2", 12)];
    let mut servers = Vec::new();
    for (vm, name) in vms.iter().zip(["vm1", "vm2"]) {
        vm.serve_vip(VIP);
        servers.push(Server::start(vm, 80, name));
    }
    client
        .netns
        .ip(&format!("route add {VIP}/32 via 198.18.0.21"));
    let weir = binary();
    let tap = lan.tap(21);
    let port = Port {
        netns: lan.switch(),
        tap: &tap,
        gateway: None,
    };
    let more = More {
        programs: &[&weir],
        files: &[("/weir.toml", CONFIG)],
        commands: "uname -r\n(weir run --config /weir.toml 2>&1 | cat) &\n\
                   while ! weir service show web --json 2>/dev/null | grep -q serving; do sleep 0.2; done\n\
                   weir status; weir explain 198.18.0.1:4000 198.18.9.10:80 --syn; weir audit; echo THE END",
    };
    let vm = Vm::boot_at(&port, "198.18.0.21", 21, &[], &more);
    wait::until("the guest's daemon to serve", || {
        vm.console().contains("THE END").then_some(())
    });
    let console = vm.console();
    assert!(
        console.contains("interface eth0: attached in native mode"),
        "{console}"
    );
    assert!(console.contains("are as they should be"), "{console}");
    let mut answers = BTreeSet::new();
    for _ in 0..30 {
        let answer = ask_tcp(&client, &format!("{VIP}:80"));
        answers.insert(answer.unwrap_or_else(|error| panic!("{error}: {}", vm.console())));
    }
    assert_eq!(
        answers,
        BTreeSet::from(["vm1".to_owned(), "vm2".to_owned()])
    );
}
