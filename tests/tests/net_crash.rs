//! The daemon is killed under traffic: the kernel goes on, and nothing is lost.

use std::collections::BTreeMap;
use std::time::Duration;

use lb_tests::lan::{Host, Lan};
use lb_tests::stream::{Sink, Stream};
use lb_tests::wait;
use lb_tests::weir::Weir;
use nix::sys::signal::Signal;

const VIP: &str = "198.18.9.10";
const PORTS: usize = 32;

#[test]
fn a_daemon_that_is_killed_and_started_again_under_traffic_loses_no_packet() {
    let lan = Lan::new();
    let client = lan.host("client", 1);
    let balancer = lan.host("balancer", 2);
    client.route_vip(VIP, &balancer);
    let vms: Vec<Host> = (1..=3)
        .map(|n| lan.host(&format!("vm{n}"), 10 + n))
        .collect();
    let mut config = format!(
        "[[interface]]\nname = \"eth\"\nmode = \"native\"\n[[service]]\nname = \"dns\"\naddress = \"{VIP}\"\nport = 53\nprotocol = \"udp\"\n"
    );
    for (n, vm) in (1..).zip(&vms) {
        vm.serve_vip(VIP);
        let address = vm.v4();
        config += &format!("[[service.backend]]\nname = \"vm{n}\"\naddress = \"{address}\"\n");
    }
    let mut weir = Weir::start(&balancer, &config);
    for vm in ["vm1", "vm2", "vm3"] {
        weir.wait_for("dns", vm, "up");
    }
    let sinks: Vec<Sink> = vms.iter().map(|vm| Sink::start(vm, 53)).collect();
    let stream = Stream::start(&client, &format!("{VIP}:53"), PORTS);

    let passed = |weir: &Weir<'_>| weir.service("dns")["packets"].as_u64().unwrap();
    wait::until("the stream to flow", || {
        (passed(&weir) > 1000).then_some(())
    });
    for _ in 0..3 {
        weir.end(Signal::SIGKILL);
        std::thread::sleep(Duration::from_millis(300));
        weir.run();
        let adopted = passed(&weir);
        assert!(adopted > 1000, "the counters were kept");
        wait::until("the stream to flow on", || {
            (passed(&weir) > adopted + 200).then_some(())
        });
    }
    let sent = stream.stop();

    let received: Vec<_> = sinks.into_iter().map(Sink::finish).collect();
    let mut homes = BTreeMap::new();
    let mut arrived = 0;
    for (n, numbers) in (1..).zip(&received) {
        for (number, senders) in numbers {
            assert_eq!(senders.len(), 1, "datagram {number} arrived {senders:?}");
            arrived += 1;
            let home = homes.entry(senders[0]).or_insert(n);
            assert_eq!(*home, n, "the flow of {} was moved", senders[0]);
        }
        let counted = weir.backend("dns", &format!("vm{n}"), "packets");
        assert_eq!(counted, numbers.len(), "vm{n}: counted and received");
    }
    assert_eq!(arrived, sent as usize, "received and sent");
    assert_eq!(homes.len(), PORTS);
    assert_eq!(weir.service("dns")["packets"], sent);
    assert_eq!(weir.service("dns")["dropped"], 0);
    weir.audit();
}
