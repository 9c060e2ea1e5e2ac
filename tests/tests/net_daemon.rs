//! The daemon and what surrounds it: signals, logs, systemd, the BPF file system.

use std::os::unix::net::UnixDatagram;
use std::path::Path;
use std::process::{Child, Stdio};
use std::time::Duration;

use lb_tests::lan::Lan;
use lb_tests::wait;
use lb_tests::weir::{Weir, binary};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

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
"#;

#[test]
fn sighup_puts_the_changed_file_in_force() {
    let lan = Lan::new();
    let host = lan.host("balancer", 2);
    let weir = Weir::start(&host, CONFIG);
    weir.wait_serving("web");
    weir.write_config(&(CONFIG.to_owned() + "weight = 7\n"));
    kill(Pid::from_raw(weir.pid()), Signal::SIGHUP).unwrap();
    wait::until("the new weight", || {
        (weir.backend("web", "vm1", "weight") == 7).then_some(())
    });
    assert!(weir.log().contains("configuration read again"));
    weir.audit();
}

#[test]
fn log_lines_are_json_objects_if_asked_for() {
    let lan = Lan::new();
    let host = lan.host("balancer", 2);
    let mut weir = Weir::new(&host, CONFIG);
    weir.run_with(|command| {
        command.args(["--log-format", "json"]);
    });
    weir.wait_serving("web");
    weir.end(Signal::SIGTERM);
    let log = weir.log();
    let lines: Vec<Value> = log
        .lines()
        .map(|line| serde_json::from_str(line).unwrap_or_else(|_| panic!("no JSON: {line}")))
        .collect();
    let backend = lines.iter().find(|line| line["fields"]["backend"] == "vm1");
    let backend = backend.unwrap_or_else(|| panic!("{log}"));
    assert_eq!(backend["level"], "INFO");
    assert_eq!(backend["fields"]["state"], "up");
    assert!(backend["timestamp"].is_string());
}

#[test]
fn systemd_is_told_when_the_daemon_is_ready_and_when_it_stops() {
    let lan = Lan::new();
    let host = lan.host("balancer", 2);
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("notify");
    let socket = UnixDatagram::bind(&path).unwrap();
    socket
        .set_read_timeout(Some(Duration::from_secs(20)))
        .unwrap();
    let told = || {
        let mut message = [0; 256];
        let len = socket.recv(&mut message).expect("a message");
        String::from_utf8(message[..len].to_vec()).unwrap()
    };
    let mut weir = Weir::new(&host, CONFIG);
    weir.run_with(|command| {
        command.env("NOTIFY_SOCKET", &path);
    });
    assert_eq!(told().trim(), "READY=1");
    weir.end(Signal::SIGTERM);
    assert_eq!(told().trim(), "STOPPING=1");
}

#[test]
fn counters_are_watched_as_tables_with_rates_and_as_json() {
    let lan = Lan::new();
    let host = lan.host("balancer", 2);
    let weir = Weir::start(&host, CONFIG);
    weir.wait_serving("web");
    let once = weir.cli("stats");
    let twice = weir.cli("stats --watch --count 2");
    assert_eq!(twice.matches("vm1").count(), 2, "{twice}");
    let rates = |text: &str| text.matches("PACKETS/S").count();
    assert_eq!((rates(&once), rates(&twice)), (0, 1), "{twice}");
    let lines = weir.cli("stats --watch --count 2 --json");
    let lines: Vec<Value> = lines
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    assert_eq!(lines.len(), 2);
    assert_eq!(lines[1]["services"][0]["backends"][0]["name"], "vm1");
}

/// A process that is gone when the test is.
struct Killed(Child);

impl Drop for Killed {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn the_bpf_file_system_is_mounted_where_it_is_missing() {
    let lan = Lan::new();
    let host = lan.host("balancer", 2);
    let weir = Weir::new(&host, CONFIG);
    let log = tempfile::NamedTempFile::new().unwrap();
    // In a mount namespace of its own, where nothing is mounted.
    let mut command = host.netns.command("unshare");
    let script = "umount --lazy --all-targets /sys/fs/bpf && exec \"$@\"";
    command.args(["--mount", "sh", "-c", script, "sh"]);
    command.arg(binary()).args(["run", "--config"]);
    command.arg(weir.config()).stdout(Stdio::null());
    command.stderr(log.reopen().unwrap());
    let mut daemon = Killed(command.spawn().unwrap());
    wait::until("the daemon to answer", || {
        let ended = daemon.0.try_wait().unwrap();
        let log = std::fs::read_to_string(log.path()).unwrap();
        assert_eq!(ended, None, "{log}");
        weir.try_cli("status").status.success().then_some(())
    });
    let process = Path::new("/proc").join(daemon.0.id().to_string());
    let mounts = std::fs::read_to_string(process.join("mounts")).unwrap();
    let mounted = mounts
        .lines()
        .filter(|line| line.contains(" /sys/fs/bpf bpf "));
    assert_eq!(mounted.count(), 1, "{mounts}");
    let pins = weir.pins().strip_prefix("/").unwrap();
    assert!(process.join("root").join(pins).join("links/eth").exists());
    assert!(!weir.pins().exists(), "not in everybody's");
    weir.audit();
}
