//! Health checks on a host that lacks what they need.

use std::collections::BTreeMap;
use std::net::UdpSocket;
use std::time::Duration;

use lb_tests::netns::Netns;
use lb_user::health::{Checker, Target};
use lb_user::model::{BackendId, HealthCheck, HealthState, Probe};
use tokio::sync::mpsc;

#[test]
fn a_backend_is_not_suspected_while_this_host_has_no_port_to_probe_it_from() {
    let host = Netns::new("ports");
    host.set("net/ipv4/ip_local_port_range", "40000 40000");
    let id = BackendId {
        service: "dns".parse().unwrap(),
        backend: "vm".parse().unwrap(),
    };
    // Nobody listens there, which the kernel tells at once.
    let target = Target {
        address: "127.0.0.1".parse().unwrap(),
        check: HealthCheck {
            probe: Probe::Udp {
                port: 9.try_into().unwrap(),
                send: Vec::new(),
                expect: None,
            },
            interval: Duration::from_millis(20),
            timeout: Duration::from_millis(20),
            rise: 1,
            fall: 3,
            dead_after: Duration::from_secs(60),
        },
    };
    host.enter(move || {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        runtime.block_on(async {
            let taken = UdpSocket::bind("0.0.0.0:40000").unwrap();
            let (sender, mut reports) = mpsc::channel(1);
            let mut checker = Checker::new(sender);
            checker.set_targets(BTreeMap::from([(id, target)]), |_| HealthState::Up);
            let second = Duration::from_secs(1);
            let none = tokio::time::timeout(second, reports.recv()).await;
            assert!(none.is_err(), "{none:?}");
            drop(taken);
            let report = tokio::time::timeout(30 * second, reports.recv()).await;
            let report = report.unwrap().unwrap();
            assert_eq!(report.state, HealthState::Suspect);
            assert!(report.why.unwrap().contains("refused"));
        });
    });
}
