//! A SYN flood on the real daemon while rows are in transition: established connections lose
//! nothing, and new ones go on.

use std::os::fd::AsRawFd as _;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::Duration;

use lb_tests::frame::{Address, L4, Packet};
use lb_tests::lan::{Host, Lan};
use lb_tests::server::{Connection, Server, ask_tcp};
use lb_tests::wait;
use lb_tests::weir::Weir;
use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, SockaddrIn, sendto, socket,
};

const VIP: &str = "198.18.9.10";
/// How many half-open entries may be made in a second.
const RATE: u64 = 100;

/// Sends opening packets with the addresses of others until it is told to stop. Returns how many.
fn flood(from: &Host, stop: &AtomicBool, sent: &AtomicU32) {
    // Packets with their own IP headers, by the host's routes.
    let socket = from.netns.enter(|| {
        socket(
            AddressFamily::Inet,
            SockType::Raw,
            SockFlag::SOCK_CLOEXEC,
            SockProtocol::Raw,
        )
        .expect("a raw socket")
    });
    let to = SockaddrIn::new(198, 18, 9, 10, 0);
    for number in 0..500_000_u32 {
        if stop.load(Ordering::Relaxed) {
            break;
        }
        let [_, a, b, c] = number.wrapping_mul(0x9e37_79b1).to_be_bytes();
        let packet = Packet {
            source: Address::V4([198, 19, a, b]),
            payload: Vec::new(),
            ..Packet::v4(L4::Syn, 1024 + u16::from(c) * 200)
        };
        // What doesn't fit into a queue is lost before the balancer.
        if sendto(socket.as_raw_fd(), &packet.ip(), &to, MsgFlags::empty()).is_ok() {
            sent.fetch_add(1, Ordering::Relaxed);
        }
        std::thread::sleep(Duration::from_micros(100));
    }
}

#[test]
fn a_syn_flood_while_rows_move_harms_no_connection_and_new_ones_go_on() {
    let lan = Lan::new();
    let client = lan.host("client", 1);
    let attacker = lan.host("attacker", 3);
    let balancer = lan.host("balancer", 2);
    client.route_vip(VIP, &balancer);
    attacker.route_vip(VIP, &balancer);
    let vms: Vec<Host> = (1..=2)
        .map(|n| lan.host(&format!("vm{n}"), 10 + n))
        .collect();
    let mut config = format!(
        "[[interface]]\nname = \"eth\"\nmode = \"native\"\n[[service]]\nname = \"web\"\naddress = \"{VIP}\"\nport = 80\nprotocol = \"tcp\"\n\
         [service.guard]\nhalf_open_per_second = {RATE}\n"
    );
    for (n, vm) in (1..).zip(&vms) {
        vm.serve_vip(VIP);
        config += &format!(
            "[[service.backend]]\nname = \"vm{n}\"\naddress = \"{}\"\n",
            vm.v4()
        );
    }
    let _servers: Vec<Server> = (1..)
        .zip(&vms)
        .map(|(n, vm)| Server::start(vm, 80, &format!("vm{n}")))
        .collect();
    let weir = Weir::start(&balancer, &config);
    weir.wait_for("web", "vm1", "up");
    weir.wait_for("web", "vm2", "up");
    let vip = format!("{VIP}:80");
    let open = || Connection::open(&client, &vip).expect("a connection");
    let mut connections: Vec<(String, Connection)> = Vec::new();
    for _ in 0..40 {
        let mut connection = open();
        connections.push((connection.ask().expect("an answer"), connection));
    }
    assert_eq!(weir.service("web")["lookup_rows"], 0);

    // All rows of vm1 go to vm2.
    weir.cli("backend drain web vm1");
    assert!(weir.service("web")["lookup_rows"].as_u64().unwrap() > 0);
    let (stop, sent) = (AtomicBool::new(false), AtomicU32::new(0));
    std::thread::scope(|scope| {
        scope.spawn(|| flood(&attacker, &stop, &sent));
        wait::until("the flood to be beyond the rate", || {
            (weir.service("web")["refused"].as_u64().unwrap() > RATE).then_some(())
        });
        for _ in 0..5 {
            for (home, connection) in &mut connections {
                assert_eq!(connection.ask().expect("a connection unharmed"), *home);
            }
            for _ in 0..10 {
                ask_tcp(&client, &vip).expect("a new connection");
            }
        }
        stop.store(true, Ordering::Relaxed);
    });
    let sent = u64::from(sent.load(Ordering::Relaxed));
    let refused = weir.service("web")["refused"].as_u64().unwrap();
    assert!(sent > 1000 && refused < sent, "{refused} of {sent}");
    for (home, connection) in &mut connections {
        assert_eq!(connection.ask().expect("a connection unharmed"), *home);
    }
    weir.audit();
}

#[test]
fn rates_are_declared_shown_and_changed_while_weir_runs() {
    let lan = Lan::new();
    let client = lan.host("client", 1);
    let balancer = lan.host("balancer", 2);
    let vm = lan.host("vm1", 11);
    client.route_vip(VIP, &balancer);
    vm.serve_vip(VIP);
    let _server = Server::start(&vm, 80, "vm1");
    let config = |guard: &str| {
        format!(
            "[[interface]]\nname = \"eth\"\nmode = \"native\"\n[[service]]\nname = \"web\"\naddress = \"{VIP}\"\nport = 80\nprotocol = \"tcp\"\n\
             {guard}\n[[service.backend]]\nname = \"vm1\"\naddress = \"198.18.0.11\"\n"
        )
    };
    let limited = "[service.guard]\nsource_new_flows_per_second = 1\nsource_new_flows_burst = 3";
    let weir = Weir::start(&balancer, &config(limited));
    weir.wait_for("web", "vm1", "up");
    let vip = format!("{VIP}:80");
    // More at once than may be, on however many processors they come in.
    let connections: Vec<_> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..60)
            .map(|_| scope.spawn(|| Connection::open(&client, &vip)))
            .collect();
        threads.into_iter().map(|t| t.join().unwrap()).collect()
    });
    let dropped = weir.json("stats")["reasons"]["drop_source_flows"].clone();
    assert!(dropped.as_u64().unwrap() > 0);
    assert_eq!(weir.service("web")["dropped"], dropped);
    let mut open: Vec<Connection> = connections.into_iter().flatten().collect();
    assert!(open.len() >= 3, "{}", open.len());
    for connection in &mut open {
        assert_eq!(connection.ask().expect("open ones have no rate"), "vm1");
    }
    weir.audit();
    let rate = &weir.json("guard show")["rates"][0];
    assert_eq!(
        (&rate["rate"], &rate["burst"]),
        (&"source_new_flows".into(), &3.into())
    );

    weir.write_config(&config(""));
    let changes = weir.cli("reload");
    assert!(
        changes.contains("guard, source_new_flows_per_second: 1 (burst 3) -> none"),
        "{changes}"
    );
    let before = weir.service("web")["dropped"].clone();
    for _ in 0..20 {
        ask_tcp(&client, &vip).expect("an answer");
    }
    assert_eq!(weir.service("web")["dropped"], before);
    weir.write_config(&format!("[guard]\npackets_per_second = 5\n{}", config("")));
    let error = weir.refused("reload");
    assert!(
        error.contains("guard, packets_per_second: is only allowed below a service"),
        "{error}"
    );
    weir.audit();
}
