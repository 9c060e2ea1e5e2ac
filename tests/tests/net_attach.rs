//! Interfaces: attaching, detaching, taking over, changing modes. What fails changes nothing.

use lb_tests::lan::{Host, Lan};
use lb_tests::wait;
use lb_tests::weir::Weir;
use nix::sys::signal::Signal;

const SERVICE: &str = "[[service]]\nname = \"web\"\naddress = \"198.18.9.10\"\nport = 80\nprotocol = \"tcp\"\n\
     [[service.backend]]\nname = \"vm1\"\naddress = \"198.18.0.11\"\nmac = \"02:00:00:00:00:0b\"\n";

fn host() -> (Lan, Host) {
    let lan = Lan::new();
    let host = lan.host("balancer", 2);
    (lan, host)
}

fn config(interfaces: &[(&str, &str)]) -> String {
    let interfaces = interfaces
        .iter()
        .map(|(name, mode)| format!("[[interface]]\nname = \"{name}\"\nmode = \"{mode}\"\n"));
    interfaces.collect::<String>() + SERVICE
}

/// In which mode a program is on an interface, as `ip` shows it.
fn mode(host: &Host, interface: &str) -> Option<&'static str> {
    let output = host.netns.run("ip", &format!("link show {interface}"));
    let text = String::from_utf8(output.stdout).unwrap();
    if text.contains(" xdpgeneric ") {
        Some("generic")
    } else {
        text.contains(" xdp ").then_some("native")
    }
}

#[test]
fn what_was_taken_over_can_be_detached_and_attached_in_another_mode() {
    let (_lan, host) = host();
    let mut weir = Weir::start(&host, &config(&[("eth", "native")]));
    weir.wait_serving("web");
    weir.end(Signal::SIGKILL);
    weir.run();
    assert!(
        weir.cli("status")
            .contains("interface eth: attached in native mode, taken over without a gap")
    );
    weir.cli("attach eth --mode generic");
    assert_eq!(mode(&host, "eth"), Some("generic"));
    weir.cli("detach eth");
    assert_eq!(mode(&host, "eth"), None);
    weir.cli("attach eth --mode native");
    assert_eq!(mode(&host, "eth"), Some("native"));
    weir.end(Signal::SIGKILL);
    assert_eq!(mode(&host, "eth"), Some("native"), "without a daemon");
}

#[test]
fn a_new_daemon_brings_interfaces_to_the_modes_of_the_file() {
    let (_lan, host) = host();
    let mut weir = Weir::start(&host, &config(&[("eth", "generic")]));
    weir.end(Signal::SIGTERM);
    for (wanted, is) in [
        ("auto", "generic"),
        ("native", "native"),
        ("auto", "native"),
        ("generic", "generic"),
    ] {
        weir.write_config(&config(&[("eth", wanted)]));
        weir.run();
        assert_eq!(mode(&host, "eth"), Some(is), "{wanted}");
        let status = weir.cli("status");
        assert!(
            status.contains(&format!("attached in {is} mode")),
            "{status}"
        );
        weir.end(Signal::SIGTERM);
    }
}

#[test]
fn a_start_that_is_refused_leaves_what_forwards_as_it_is() {
    let (_lan, host) = host();
    for (before, file) in [("native", "native"), ("native", "generic")] {
        let mut weir = Weir::start(&host, &config(&[("eth", before)]));
        weir.wait_serving("web");
        weir.end(Signal::SIGTERM);
        weir.write_config(&config(&[("eth", file), ("nonsense", "auto")]));
        let output = weir
            .command()
            .args(["run", "--config"])
            .arg(weir.config())
            .output()
            .unwrap();
        let error = String::from_utf8(output.stderr).unwrap();
        assert!(!output.status.success());
        assert!(
            error.contains("interface \"nonsense\" does not exist"),
            "{error}"
        );
        assert_eq!(mode(&host, "eth"), Some(before), "{before} -> {file}");
        weir.write_config(&config(&[("eth", before)]));
        weir.run();
        weir.audit();
        weir.cli("detach eth");
    }
}

#[test]
fn a_reload_that_is_refused_leaves_every_interface_in_its_mode() {
    let (_lan, host) = host();
    let weir = Weir::start(&host, &config(&[("eth", "native"), ("lo", "auto")]));
    // The first could change, the second can't.
    weir.write_config(&config(&[("eth", "generic"), ("lo", "native")]));
    assert!(weir.refused("reload").contains("\"lo\" has no native XDP"));
    assert_eq!(mode(&host, "eth"), Some("native"));
    assert_eq!(mode(&host, "lo"), Some("generic"));
    let status = weir.cli("status");
    assert!(
        status.contains("interface eth: attached in native mode"),
        "{status}"
    );
}

#[test]
fn detach_takes_the_program_off_and_detach_all_removes_everything() {
    let (_lan, host) = host();
    let mut weir = Weir::start(&host, &config(&[("eth", "auto")]));
    weir.wait_serving("web");
    let attached = || {
        let output = host.netns.run("ip", "link show eth");
        String::from_utf8(output.stdout).unwrap().contains("xdp")
    };
    assert!(attached());
    assert_eq!(weir.cli("detach eth").trim(), "interface \"eth\" removed");
    assert!(!attached());
    assert_eq!(
        weir.cli("attach eth --mode generic").trim(),
        "interface \"eth\" added, mode generic"
    );
    assert!(attached());
    assert!(weir.cli("status").contains("attached in generic mode"));
    weir.cli("attach lo --mode auto");
    assert!(
        weir.cli("status")
            .contains("interface lo: attached in generic mode: the driver can't do native XDP")
    );
    weir.end(Signal::SIGTERM);
    assert!(attached(), "the kernel goes on without the daemon");
    let pins = weir.pins().display().to_string();
    let all = format!("detach --all --config {}", weir.config().display());
    assert_eq!(
        weir.cli(&all),
        format!("detached from eth\ndetached from lo\nremoved the maps in {pins}\n")
    );
    assert!(!attached() && !weir.pins().exists());
    assert!(weir.cli(&all).contains("Nothing is pinned"));
}

#[test]
fn an_interface_that_comes_back_is_attached_again() {
    let (_lan, host) = host();
    host.netns.ip("link add late type veth peer name far");
    let weir = Weir::start(&host, &config(&[("eth", "auto"), ("late", "auto")]));
    host.netns.ip("link del late");
    wait::until("the loss to be noticed", || {
        weir.cli("status").contains("NOT attached").then_some(())
    });
    assert!(
        weir.refused("attach late")
            .contains("interface \"late\" does not exist")
    );
    host.netns.ip("link add late type veth peer name far");
    wait::until("the program to be back", || {
        (!weir.cli("status").contains("NOT attached")).then_some(())
    });
    let output = host.netns.run("ip", "link show late");
    assert!(String::from_utf8(output.stdout).unwrap().contains("xdp"));
}
