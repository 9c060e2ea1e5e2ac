//! The guard of the real daemon, with real clients: who is let in, and lists that change under
//! load, over reloads, restarts and kills.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::net::{SocketAddr, TcpStream, UdpSocket};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use lb_tests::lan::{Host, Lan};
use lb_tests::server::{Connection, Server, ask_tcp, ask_udp};
use lb_tests::wait;
use lb_tests::weir::Weir;
use nix::sys::signal::Signal;
use tempfile::TempDir;

const VIP: &str = "198.18.9.10";
const VIP6: &str = "2001:db8:9::10";

/// Two clients, the balancer's host, and a VM that serves the VIPs.
struct World {
    good: Host,
    bad: Host,
    balancer: Host,
    files: TempDir,
    _vm: Host,
    _server: Server,
    _lan: Lan,
}

impl World {
    fn new() -> Self {
        let lan = Lan::new();
        let good = lan.host("good", 1);
        let bad = lan.host("bad", 3);
        let balancer = lan.host("balancer", 2);
        let vm = lan.host("vm1", 11);
        for vip in [VIP, VIP6] {
            good.route_vip(vip, &balancer);
            bad.route_vip(vip, &balancer);
            vm.serve_vip(vip);
        }
        Self {
            good,
            bad,
            balancer,
            files: tempfile::tempdir().unwrap(),
            _server: Server::start(&vm, 80, "vm1"),
            _vm: vm,
            _lan: lan,
        }
    }

    /// A configuration: `guard` stands for itself, `web` in the service of IPv4.
    fn config(guard: &str, web: &str) -> String {
        format!(
            "{guard}\n[[interface]]\nname = \"eth\"\nmode = \"native\"\n\
             [[service]]\nname = \"web\"\naddress = \"{VIP}\"\nport = 80\nprotocol = \"tcp\"\n{web}\n\
             [[service.backend]]\nname = \"vm1\"\naddress = \"198.18.0.11\"\n\
             [[service]]\nname = \"web6\"\naddress = \"{VIP6}\"\nport = 80\nprotocol = \"tcp\"\n\
             [[service.backend]]\nname = \"vm1\"\naddress = \"2001:db8::b\"\n\
             [[service]]\nname = \"dns\"\naddress = \"{VIP}\"\nport = 80\nprotocol = \"udp\"\n\
             [[service.backend]]\nname = \"vm1\"\naddress = \"198.18.0.11\"\n"
        )
    }

    fn weir(&self, guard: &str, web: &str) -> Weir<'_> {
        let weir = Weir::start(&self.balancer, &Self::config(guard, web));
        for service in ["web", "web6", "dns"] {
            weir.wait_for(service, "vm1", "up");
        }
        weir
    }

    fn file(&self, name: &str, text: &str) -> PathBuf {
        let path = self.files.path().join(name);
        std::fs::write(&path, text).unwrap();
        path
    }
}

/// Connects as a client that has little patience.
fn is_let_in(host: &Host, vip: &str) -> bool {
    let to: SocketAddr = vip.parse().unwrap();
    let patience = Duration::from_millis(700);
    let connected = host
        .netns
        .enter(|| TcpStream::connect_timeout(&to, patience));
    match connected {
        Ok(_) => true,
        Err(error) => {
            assert_eq!(error.kind(), std::io::ErrorKind::TimedOut);
            false
        }
    }
}

fn web() -> String {
    format!("{VIP}:80")
}

fn web6() -> String {
    format!("[{VIP6}]:80")
}

fn reason(weir: &Weir<'_>, name: &str) -> u64 {
    weir.json("stats")["reasons"][name].as_u64().unwrap()
}

#[test]
fn a_denied_client_waits_in_vain_and_another_is_served() {
    let world = World::new();
    let weir = world.weir(
        "[guard]\ndeny = [\"2001:db8::3\"]",
        "[service.guard]\nallow = [\"198.18.0.0/24\"]\ndeny = [\"198.18.0.3\"]",
    );
    for (vip, service, reason_name) in [
        (web(), "web", "drop_denied"),
        (web6(), "web6", "drop_denied"),
    ] {
        assert_eq!(ask_tcp(&world.good, &vip).unwrap(), "vm1");
        let before = reason(&weir, reason_name);
        assert!(!is_let_in(&world.bad, &vip));
        let dropped = weir.service(service)["dropped"].as_u64().unwrap();
        assert!(dropped >= 1);
        assert_eq!(reason(&weir, reason_name) - before, dropped);
    }
    // The lists are the service's own, and the global one's of the other family.
    assert_eq!(ask_udp(&world.bad, &web()).unwrap(), "vm1");
    weir.audit();

    let explained = weir.cli("explain 198.18.0.3:1 198.18.9.10:80 --syn");
    assert!(explained.contains("counted as drop_denied"), "{explained}");
    assert!(!explained.contains("row"), "{explained}");
    let tested = weir.cli("guard test 198.18.0.3");
    assert!(
        tested.contains("dropped  the service's list denies 198.18.0.3/32"),
        "{tested}"
    );
    assert!(
        tested.contains("let in   no list says otherwise"),
        "{tested}"
    );
    let tested = weir.cli("guard test 198.18.0.1");
    assert!(
        tested.contains("the service's list allows 198.18.0.0/24"),
        "{tested}"
    );
    let tested = weir.cli("guard test 2001:db8::3");
    assert!(
        tested.contains("the global list denies 2001:db8::3/128"),
        "{tested}"
    );
    let lists = weir.json("guard show")["lists"].clone();
    assert_eq!(lists.as_array().unwrap().len(), 3);
}

#[test]
fn established_connections_end_when_their_client_is_denied_and_go_on_when_it_is_not() {
    let world = World::new();
    let weir = world.weir("", "");
    let mut good = Connection::open(&world.good, &web()).unwrap();
    let mut bad = Connection::open(&world.bad, &web()).unwrap();
    assert_eq!(
        (good.ask().unwrap(), bad.ask().unwrap()),
        ("vm1".into(), "vm1".into())
    );
    let deny = world.file("deny.txt", "198.18.0.3 # the bad one\n");
    weir.cli(&format!("guard load deny {}", deny.display()));
    let before = weir.service("web")["dropped"].as_u64().unwrap();
    assert_eq!(good.ask().unwrap(), "vm1");
    std::thread::scope(|scope| {
        // Its question comes again and again, until it is let in once more.
        let answer = scope.spawn(|| bad.ask());
        wait::until("its packets to be dropped", || {
            (weir.service("web")["dropped"].as_u64().unwrap() > before).then_some(())
        });
        weir.cli("guard reset deny");
        assert_eq!(answer.join().unwrap().unwrap(), "vm1");
    });
}

#[test]
fn a_list_is_replaced_under_load_and_no_packet_sees_an_empty_one() {
    let world = World::new();
    // Everybody is kept out but the good client, and that explicitly too.
    let lists = [1, 2].map(|number| {
        let mut text = "198.18.0.1\n".to_owned();
        for other in 0..3000 {
            let (high, low) = (other / 200 + number * 20, other % 200);
            writeln!(text, "198.19.{high}.{low}").unwrap();
        }
        world.file(&format!("allow{number}.txt"), &text)
    });
    let weir = world.weir("", "");
    for service in ["web", "dns"] {
        weir.cli(&format!(
            "guard load allow {} --service {service}",
            lists[0].display()
        ));
    }
    let before = weir.service("dns")["packets"].clone();
    let (stop, sent) = (AtomicBool::new(false), AtomicU64::new(0));
    let [good, bad] = [&world.good, &world.bad].map(|host| {
        let socket = host.netns.enter(|| UdpSocket::bind("0.0.0.0:0")).unwrap();
        socket.connect(web()).unwrap();
        socket
    });
    std::thread::scope(|scope| {
        for (socket, count) in [(&good, true), (&bad, false)] {
            let (stop, sent) = (&stop, &sent);
            scope.spawn(move || {
                while !stop.load(Ordering::Relaxed) {
                    // A full queue on the way is not the balancer's.
                    if socket.send(b"x").is_ok() && count {
                        sent.fetch_add(1, Ordering::Relaxed);
                    }
                    std::thread::sleep(Duration::from_micros(200));
                }
            });
        }
        for round in 0..20 {
            let list = lists[(round + 1) % 2].display();
            for service in ["web", "dns"] {
                weir.cli(&format!("guard load allow {list} --service {service}"));
            }
            if round % 5 == 0 {
                assert_eq!(ask_tcp(&world.good, &web()).unwrap(), "vm1");
            }
        }
        stop.store(true, Ordering::Relaxed);
    });
    let sent = sent.load(Ordering::Relaxed);
    let before = before.as_u64().unwrap();
    // All of the good client's packets, and none of the bad one's.
    wait::until("the last packets", || {
        (weir.service("dns")["packets"].as_u64().unwrap() >= before + sent).then_some(())
    });
    assert_eq!(weir.service("dns")["packets"], before + sent);
    assert!(sent > 500, "{sent}");
    assert!(reason(&weir, "drop_not_allowed") > 500);
    assert_eq!(weir.service("web")["dropped"], 0);
    weir.audit();
}

#[test]
fn loaded_lists_outlive_the_daemon_and_what_a_kill_leaves_behind_is_cleaned_up() {
    let world = World::new();
    let deny = world.file("deny.txt", "198.18.0.3\n");
    let mut weir = world.weir("", "");
    weir.cli(&format!("guard load deny {} --service web", deny.display()));
    assert!(
        weir.cli("status")
            .contains("service \"web\", guard, deny: loaded, 1 prefixes")
    );
    for signal in [Signal::SIGTERM, Signal::SIGKILL] {
        weir.end(signal);
        assert!(!is_let_in(&world.bad, &web()), "the kernel goes on");
        weir.run();
        assert!(!is_let_in(&world.bad, &web()));
        weir.audit();
    }
    // Killed while it fills lists, at some place or other.
    let mut many = "198.18.0.3\n".to_owned();
    for number in 0..40_000_u32 {
        writeln!(many, "198.19.{}.{}", number / 200, number % 200).unwrap();
    }
    let many = world.file("many.txt", &many);
    for pause in [20, 60, 120] {
        std::thread::scope(|scope| {
            let load = format!("guard load deny {} --service web", many.display());
            let mut command = weir.command();
            command.args(load.split(' '));
            scope.spawn(move || command.output());
            std::thread::sleep(Duration::from_millis(pause));
        });
        weir.end(Signal::SIGKILL);
        weir.run();
        assert!(!is_let_in(&world.bad, &web()));
        assert!(is_let_in(&world.good, &web()));
        wait::until("old lists to be emptied", || {
            weir.try_cli("audit").status.success().then_some(())
        });
        weir.cli(&format!("guard load deny {} --service web", deny.display()));
    }
    assert_eq!(weir.json("guard show")["lists"][0]["ipv4"], 1);
    weir.cli("guard reset deny --service web");
    assert!(is_let_in(&world.bad, &web()));
    assert!(
        weir.refused("guard reset deny --service web")
            .contains("no deny list was loaded")
    );
}

#[test]
fn a_reload_replaces_lists_and_a_broken_line_changes_nothing() {
    let world = World::new();
    let deny = world.file("deny.txt", "198.18.0.3\n");
    let guard = format!(
        "[guard]\ndeny_file = \"{}\"\ndeny = [\"198.19.9.0/24\"]",
        deny.display()
    );
    let weir = world.weir(&guard, "");
    assert!(!is_let_in(&world.bad, &web()));
    for (text, want) in [
        (
            "198.18.0.0/33",
            "deny.txt:3: \"198.18.0.0/33\" has the prefix length 33",
        ),
        ("nonsense", "deny.txt:3: \"nonsense\" is not a prefix"),
        (
            "198.18.0.1/24",
            "deny.txt:3: \"198.18.0.1/24\" has bits behind",
        ),
    ] {
        world.file("deny.txt", &format!("# bad\n198.18.0.1\n{text}\n"));
        let error = weir.refused("reload");
        assert!(error.contains(want), "{error}");
        assert!(error.contains("weir.toml:"), "{error}");
        assert!(is_let_in(&world.good, &web()) && !is_let_in(&world.bad, &web()));
        weir.audit();
    }
    world.file("deny.txt", "198.18.0.1\n");
    assert!(
        weir.cli("reload")
            .contains("guard, deny: 2 prefixes -> 2 prefixes")
    );
    assert!(!is_let_in(&world.good, &web()) && is_let_in(&world.bad, &web()));
    weir.write_config(&World::config(
        "",
        "[service.guard]\nallow = [\"198.18.0.1\"]",
    ));
    weir.cli("reload");
    assert!(is_let_in(&world.good, &web()) && !is_let_in(&world.bad, &web()));

    let empty = world.file("empty.txt", "# nobody\n");
    for (command, want) in [
        (
            format!("guard load allow {}", empty.display()),
            "so nobody would be let in",
        ),
        ("guard load deny /nonexistent".to_owned(), "/nonexistent"),
        (
            format!("guard load none {}", empty.display()),
            "\"none\" is not known: allowed is allow, deny",
        ),
        (
            format!("guard load deny {} --service x", empty.display()),
            "there is no service \"x\"",
        ),
        (
            "guard test nonsense".to_owned(),
            "source: \"nonsense\" is not an address",
        ),
    ] {
        let error = weir.refused(&command);
        assert!(error.contains(want), "{command}: {error}");
    }
    weir.audit();
}

#[test]
fn a_hundred_thousand_prefixes_of_both_families_are_loaded_and_replaced() {
    let world = World::new();
    let mut text = "198.18.0.3\n2001:db8::3\n".to_owned();
    for number in 0..100_000_u32 {
        let [_, a, b, c] = number.to_be_bytes();
        writeln!(text, "100.{a}.{b}.{c}\n2001:db8:10{a:x}:{b:x}{c:02x}::/64").unwrap();
    }
    let first = world.file("first.txt", &text);
    let second = world.file("second.txt", &text.replace("\n100.", "\n101."));
    let weir = world.weir("", "");
    let mut took = BTreeMap::new();
    for (name, file) in [("first", &first), ("second", &second)] {
        let start = Instant::now();
        weir.cli(&format!("guard load deny {}", file.display()));
        took.insert(name, start.elapsed());
        for vip in [web(), web6()] {
            assert!(is_let_in(&world.good, &vip), "{vip}");
            assert!(!is_let_in(&world.bad, &vip), "{vip}");
        }
        weir.audit();
        let list = weir.json("guard show")["lists"][0].clone();
        assert_eq!(
            (&list["ipv4"], &list["loaded"]),
            (&100_001.into(), &true.into())
        );
    }
    // A second at most, on a machine of its own.
    assert!(
        took.values().all(|took| *took < Duration::from_secs(15)),
        "{took:?}"
    );
}
