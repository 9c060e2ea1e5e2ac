//! Bad input to the command line, the API and the configuration: a clear error, and nothing
//! changed.

use lb_tests::lan::{Host, Lan};
use lb_tests::wait;
use lb_tests::weir::Weir;
use nix::sys::signal::Signal;

const CONFIG: &str = r#"
[[interface]]
name = "eth"
[[service]]
name = "web"
address = "198.18.9.10"
port = 80
protocol = "tcp"
[[service.backend]]
name = "vm1"
address = "198.18.0.11"
mac = "02:00:00:00:00:0b"
[[service.backend]]
name = "vm2"
address = "198.18.0.12"
mac = "02:00:00:00:00:0c"
"#;

fn host() -> (Lan, Host) {
    let lan = Lan::new();
    let host = lan.host("balancer", 2);
    (lan, host)
}

/// Everything that an operator can see, besides counters of what passes.
fn state(weir: &Weir<'_>) -> (serde_json::Value, String) {
    weir.audit();
    (weir.json("status"), weir.cli("audit"))
}

#[test]
fn refused_commands_name_the_field_and_what_is_allowed_and_change_nothing() {
    let (_lan, host) = host();
    let weir = Weir::start(&host, CONFIG);
    weir.wait_serving("web");
    let before = state(&weir);
    for (command, expected) in [
        (
            "backend set-weight web vm1 65536",
            "service \"web\", backend \"vm1\", weight: 65536 is out of range: allowed is 0 to 65535",
        ),
        ("backend set-weight web vm1 -1", "-1 is out of range"),
        (
            "backend set-weight web vm9 1",
            "service \"web\" has no backend \"vm9\"",
        ),
        (
            "backend set-weight shop vm1 1",
            "there is no service \"shop\"",
        ),
        ("backend drain web vm9", "has no backend \"vm9\""),
        ("backend add web vm1 198.18.0.99", "there is one already"),
        (
            "backend add web vm9 198.18.0.11",
            "198.18.0.11 is the address of backend \"vm1\" already",
        ),
        ("backend add web vm9 2001:db8::b", "different families"),
        (
            "backend add web vm9 nonsense",
            "address: \"nonsense\" is not an address",
        ),
        (
            "backend add web vm9 198.18.0.99 --gue-port 1",
            "gue_port: 1 is only allowed with forward \"gue\"",
        ),
        (
            "backend add web vm9 198.18.0.99 --mac 02:00",
            "is not an Ethernet address",
        ),
        (
            "service add web 198.18.9.99 80 tcp",
            "service \"web\": there is one already",
        ),
        (
            "service add shop 198.18.9.10 80 tcp",
            "198.18.9.10:80/tcp is served by service \"web\" already",
        ),
        (
            "service add shop 198.18.9.99 0 tcp",
            "port: 0 is out of range",
        ),
        (
            "service add shop 198.18.9.99 80 sctp",
            "\"sctp\" is not known: allowed is tcp, udp",
        ),
        ("service add shop 127.0.0.1 80 tcp", "loopback address"),
        ("service remove shop", "there is no service \"shop\""),
        ("service show a%20b", "is not a name"),
        ("attach nonsense", "interface \"nonsense\" does not exist"),
        (
            "attach lo --mode native",
            "interface \"lo\" has no native XDP",
        ),
        ("attach eth", "is attached already"),
        (
            "attach eth2 --mode fast",
            "\"fast\" is not known: allowed is native, generic, auto",
        ),
        ("detach lo", "interface \"lo\" is not attached"),
        ("detach --all", "a weir is running"),
        (
            "explain 198.18.0.1:1 2001:db8::1",
            "destination: \"2001:db8::1\" is no address and port",
        ),
        (
            "explain 198.18.0.1:1 [2001:db8::1]:1",
            "of different families",
        ),
        ("diff /nonexistent", "/nonexistent"),
    ] {
        let error = weir.refused(command);
        assert!(error.contains(expected), "weir {command}: {error}");
        assert_eq!(state(&weir), before, "weir {command} changed something");
    }
}

#[test]
fn a_bad_file_is_refused_by_reload_and_signal_and_what_was_stays() {
    let (_lan, host) = host();
    let weir = Weir::start(&host, CONFIG);
    weir.wait_serving("web");
    let before = state(&weir);
    let half = &CONFIG[..CONFIG.len() / 2];
    for (config, expected) in [
        (half.to_owned() + "\"", "weir.toml:"),
        (CONFIG.replace("port", "prot"), "did you mean `port`?"),
        (
            CONFIG.replace("\"tcp\"", "\"icmp\""),
            "\"icmp\" is not known",
        ),
        (
            CONFIG.to_owned() + "[[interface]]\nname = \"nonsense\"\n",
            "interface \"nonsense\" does not exist",
        ),
        (
            CONFIG.replace(
                "[[interface]]",
                "[encap]\nsource_v4 = \"1.2.3.4/99\"\n[[interface]]",
            ),
            "prefix length",
        ),
    ] {
        weir.write_config(&config);
        let error = weir.refused("reload");
        assert!(error.contains(expected), "{error}");
        assert_eq!(state(&weir), before, "{config}");
    }
    let limits = weir
        .with_paths(CONFIG)
        .replace("rows = 65536", "rows = 131072");
    std::fs::write(weir.config(), limits).unwrap();
    let error = weir.refused("reload");
    assert!(
        error.contains("limits") && error.contains("weir detach --all"),
        "{error}"
    );
    let pid = nix::unistd::Pid::from_raw(weir.pid());
    nix::sys::signal::kill(pid, Signal::SIGHUP).unwrap();
    wait::until("the refusal in the log", || {
        weir.log().contains("was not read again").then_some(())
    });
    assert_eq!(state(&weir), before);
    weir.write_config(CONFIG);
    assert_eq!(weir.cli("reload").trim(), "Nothing changed.");
}

/// The maps have room for two backends, and for one service of each family.
#[test]
fn what_does_not_fit_into_the_maps_is_refused_by_file_command_line_and_api() {
    let (_lan, host) = host();
    let mut weir = Weir::new(&host, CONFIG);
    let tight = |config: &str| {
        let text = weir.with_paths(config);
        let text = text.replace("services = 64", "services = 1");
        text.replace("backends = 256", "backends = 2")
    };
    let third = "[[service.backend]]\nname = \"vm3\"\naddress = \"198.18.0.13\"\n";
    let shop =
        "[[service]]\nname = \"shop\"\naddress = \"198.18.9.11\"\nport = 80\nprotocol = \"tcp\"\n";
    let (fits, backends, services) = (
        tight(CONFIG),
        tight(&(CONFIG.to_owned() + third)),
        tight(&(CONFIG.to_owned() + shop)),
    );
    let too_much = [
        (&backends, "limits.backends: 3 backends, allowed are 2"),
        (
            &services,
            "limits.services: 2 services on IPv4, allowed are 1",
        ),
    ];
    let path = weir.config().display().to_string();
    for (text, expected) in too_much {
        std::fs::write(&path, text).unwrap();
        for command in ["check ", "run --config "] {
            let error = weir.refused(&(command.to_owned() + &path));
            assert!(error.contains(expected), "{command}: {error}");
        }
        assert!(!weir.pins().exists(), "no pins");
    }

    std::fs::write(&path, fits).unwrap();
    weir.run();
    weir.wait_serving("web");
    let before = state(&weir);
    for (text, expected) in too_much {
        std::fs::write(&path, text).unwrap();
        for command in ["reload".to_owned(), format!("diff {path}")] {
            let error = weir.refused(&command);
            assert!(error.contains(expected), "{command}: {error}");
            assert_eq!(state(&weir), before, "{command}");
        }
    }
    for (command, path, body, expected) in [
        (
            "backend add web vm3 198.18.0.13",
            "/v1/services/web/backends",
            r#"{"name": "vm3", "address": "198.18.0.13"}"#,
            "limits.backends: all 2 are in use",
        ),
        (
            "service add shop 198.18.9.11 80 tcp",
            "/v1/services",
            r#"{"name": "shop", "address": "198.18.9.11", "port": 80, "protocol": "tcp"}"#,
            "limits.services: 2 services of one address family, allowed are 1",
        ),
    ] {
        let error = weir.refused(command);
        assert!(error.contains(expected), "{command}: {error}");
        let (status, answer) = weir.http("POST", path, body.as_bytes());
        assert_eq!(status, 409, "{answer}");
        let error = answer["errors"][0].as_str().unwrap();
        assert!(error.contains(expected), "{command}: {error}");
        assert_eq!(state(&weir), before, "{command}");
    }
}

#[test]
fn check_and_diff_say_what_a_file_would_do_and_do_nothing() {
    let (_lan, host) = host();
    let weir = Weir::start(&host, CONFIG);
    weir.wait_serving("web");
    let before = state(&weir);
    let file = tempfile::NamedTempFile::new().unwrap();
    let path = file.path().display();
    std::fs::write(
        file.path(),
        weir.with_paths(&CONFIG.replace("name = \"vm2\"\n", "name = \"vm2\"\nweight = 300\n")),
    )
    .unwrap();
    assert!(
        weir.cli(&format!("check {path}"))
            .contains("valid; 1 interfaces, 1 services, 2 backends")
    );
    let diff = weir.cli(&format!("diff {path}"));
    assert!(
        diff.contains("backend \"vm2\", weight: 100 -> 300"),
        "{diff}"
    );
    assert!(
        diff.contains("128 of 512 rows would move, 25.0 %"),
        "{diff}"
    );
    let other = weir.with_paths(CONFIG).replace("/api.sock", "/other.sock");
    std::fs::write(file.path(), other).unwrap();
    let error = weir.refused(&format!("diff {path}"));
    assert!(
        error.contains("paths.socket: ") && error.contains("/other.sock: paths can't change"),
        "{error}"
    );
    let nowhere = CONFIG.to_owned() + "[[interface]]\nname = \"nonsense\"\n";
    std::fs::write(file.path(), weir.with_paths(&nowhere)).unwrap();
    let error = weir.refused(&format!("diff {path}"));
    assert!(
        error.contains("interface \"nonsense\" does not exist"),
        "{error}"
    );
    std::fs::write(file.path(), "[[service]]\nname = 7\n").unwrap();
    assert!(weir.refused(&format!("check {path}")).contains(":2: "));
    assert!(weir.refused(&format!("diff {path}")).contains(":2: "));
    assert_eq!(state(&weir), before);
}

#[test]
fn a_second_daemon_is_refused_and_the_first_goes_on() {
    let (_lan, host) = host();
    let weir = Weir::start(&host, CONFIG);
    weir.wait_serving("web");
    let before = state(&weir);
    let config = weir.config();
    let run = |config: &std::path::Path| {
        let mut command = weir.command();
        let output = command
            .args(["run", "--config"])
            .arg(config)
            .output()
            .unwrap();
        assert!(!output.status.success());
        String::from_utf8(output.stderr).unwrap()
    };
    let error = run(&config);
    assert!(
        error.contains(&format!("used by another weir (pid {})", weir.pid())),
        "{error}"
    );
    let directory = tempfile::tempdir().unwrap();
    let other = directory.path().join("weir.toml");
    let text = std::fs::read_to_string(&config).unwrap();
    let own_state = text.replacen("/state\"", "/other\"", 1);
    std::fs::write(&other, &own_state).unwrap();
    let error = run(&other);
    assert!(error.contains("is in use by another process"), "{error}");
    // With a socket of its own as well it would write to the same maps.
    std::fs::write(
        &other,
        own_state.replacen("/api.sock\"", "/other.sock\"", 1),
    )
    .unwrap();
    let error = run(&other);
    assert!(
        error.contains("does not say for what") || error.contains("belong to another secret"),
        "{error}"
    );
    assert_eq!(state(&weir), before);
}

#[test]
fn a_removed_services_vip_is_another_ones_at_once() {
    let (_lan, host) = host();
    let weir = Weir::start(&host, CONFIG);
    weir.wait_serving("web");
    weir.cli("service remove web");
    weir.cli("service add shop 198.18.9.10 80 tcp");
    weir.cli("backend add shop vm1 198.18.0.11 --mac 02:00:00:00:00:0b");
    wait::until("vm1 to serve", || {
        (weir.backend("shop", "vm1", "state") == "up").then_some(())
    });
    weir.audit();
    let error = weir.refused("service add web 198.18.9.10 80 tcp");
    assert!(
        error.contains("is served by service \"shop\" already"),
        "{error}"
    );
    weir.cli("service remove shop");
    weir.cli("service add web 198.18.9.10 80 tcp");
    assert_eq!(weir.json("status")["ineffective"], serde_json::json!([]));
    weir.audit();
}

#[test]
fn a_daemon_that_served_nothing_starts_again() {
    let (_lan, host) = host();
    let mut weir = Weir::start(&host, "[[interface]]\nname = \"eth\"\n");
    for signal in [Signal::SIGTERM, Signal::SIGKILL] {
        weir.end(signal);
        weir.run();
    }
    weir.audit();
    weir.write_config(CONFIG);
    weir.cli("reload");
    weir.wait_serving("web");
}

#[test]
fn a_daemon_that_cannot_start_leaves_nothing_behind() {
    let (_lan, host) = host();
    let weir = Weir::new(&host, &CONFIG.replace("\"eth\"", "\"nonsense\""));
    let output = {
        let mut command = weir.command();
        command
            .args(["run", "--config"])
            .arg(weir.config())
            .output()
            .unwrap()
    };
    assert!(!output.status.success());
    let error = String::from_utf8(output.stderr).unwrap();
    assert!(
        error.contains("weir: interface \"nonsense\" does not exist"),
        "{error}"
    );
    assert!(!weir.pins().exists(), "no pins");
    assert!(weir.refused("status").contains("weir run"));
}

#[test]
fn a_command_whose_reader_has_gone_ends_without_a_word() {
    let (_lan, host) = host();
    let weir = Weir::start(&host, CONFIG);
    weir.wait_serving("web");
    let mut command = weir.command();
    command
        .arg("status")
        .stdout(std::process::Stdio::piped())
        .stderr(std::process::Stdio::piped());
    let mut child = command.spawn().unwrap();
    drop(child.stdout.take());
    let output = child.wait_with_output().unwrap();
    assert_eq!(String::from_utf8_lossy(&output.stderr), "");
}

#[test]
fn detach_all_leaves_the_maps_of_a_running_daemon_alone_wherever_its_socket_is() {
    let (_lan, host) = host();
    let mut weir = Weir::start(&host, CONFIG);
    weir.wait_serving("web");
    let before = state(&weir);
    let directory = tempfile::tempdir().unwrap();
    let nowhere = directory.path().join("none.sock");
    let all = |weir: &Weir<'_>, config: &std::path::Path| {
        let mut command = weir.command();
        command.env("WEIR_SOCKET", &nowhere);
        command.args(["detach", "--all", "--config"]).arg(config);
        let output = command.output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        (output.status.success(), said)
    };
    let (done, said) = all(&weir, &weir.config());
    assert!(!done && said.contains("a weir is running at"), "{said}");
    // Its socket may be gone, or have been another when it was started.
    let other = directory.path().join("weir.toml");
    let text = std::fs::read_to_string(weir.config()).unwrap();
    std::fs::write(&other, text.replace("/api.sock", "/other.sock")).unwrap();
    let (done, said) = all(&weir, &other);
    let expected = format!("a weir is running (pid {})", weir.pid());
    assert!(!done && said.contains(&expected), "{said}");
    assert_eq!(state(&weir), before);
    weir.end(Signal::SIGKILL);
    let (done, said) = all(&weir, &other);
    assert!(done, "{said}");
    assert!(!weir.pins().exists());
}
