//! The real daemon, and its command line.

use std::fs::{self, File};
use std::io::{Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output};

use serde_json::Value;
use tempfile::TempDir;

use crate::lan::Host;
use crate::netns::{must, pins};
use crate::wait;

/// An installation of weir on a host: its configuration, its state, its pins, and the daemon when
/// it runs.
#[derive(Debug)]
pub struct Weir<'a> {
    host: &'a Host,
    directory: TempDir,
    pins: PathBuf,
    daemon: Option<Child>,
}

/// Returns the binary under test.
pub fn binary() -> PathBuf {
    let path = std::env::var_os("WEIR_BIN").map(PathBuf::from);
    path.expect("WEIR_BIN is not set: run the tests by `cargo xtask test`, which builds `weir`")
}

impl<'a> Weir<'a> {
    /// Makes an installation on a host. `config` is its configuration without paths.
    pub fn new(host: &'a Host, config: &str) -> Self {
        let weir = Self {
            host,
            directory: tempfile::tempdir().expect("a directory"),
            pins: pins("pins"),
            daemon: None,
        };
        weir.write_config(config);
        weir
    }

    /// Makes an installation and starts its daemon.
    pub fn start(host: &'a Host, config: &str) -> Self {
        let mut weir = Self::new(host, config);
        weir.run();
        weir
    }

    /// Returns where its maps are pinned.
    pub fn pins(&self) -> &Path {
        &self.pins
    }

    /// Returns the path of its configuration.
    pub fn config(&self) -> PathBuf {
        self.directory.path().join("weir.toml")
    }

    /// Writes its configuration.
    pub fn write_config(&self, config: &str) {
        fs::write(self.config(), self.with_paths(config)).expect("the configuration");
    }

    /// Returns a configuration with the paths of this installation.
    pub fn with_paths(&self, config: &str) -> String {
        let directory = self.directory.path().display();
        format!(
            "[paths]\nstate = \"{directory}/state\"\nsocket = \"{}\"\npins = \"{}\"\n\
             [limits]\nservices = 64\nbackends = 256\nrows = 65536\nhalf_open_flows = 4096\nconfirmed_flows = 4096\nkept_flows = 4096\nguard_prefixes = 250000\n{config}",
            self.socket().display(),
            self.pins.display(),
        )
    }

    /// Returns the API's socket.
    pub fn socket(&self) -> PathBuf {
        self.directory.path().join("api.sock")
    }

    /// Returns a command line of weir on its host.
    pub fn command(&self) -> Command {
        let binary = binary();
        let mut command = self.host.netns.command(binary.to_str().expect("a path"));
        command.env("WEIR_SOCKET", self.socket());
        command
    }

    /// Returns the command line for a person to type, without its command.
    pub fn shown(&self) -> String {
        let (binary, namespace) = (binary(), self.host.netns.path());
        format!(
            "WEIR_SOCKET={} nsenter --net={} {} status",
            self.socket().display(),
            namespace.display(),
            binary.display()
        )
    }

    /// Starts the daemon and waits until it answers.
    pub fn run(&mut self) {
        self.run_with(|_| {});
    }

    /// Starts the daemon with more arguments, or another environment, and waits until it answers.
    pub fn run_with(&mut self, prepare: impl FnOnce(&mut Command)) {
        assert!(self.daemon.is_none(), "it runs already");
        let log = File::options()
            .append(true)
            .create(true)
            .open(self.log_path())
            .expect("a log");
        let mut command = self.command();
        command.args(["run", "--config"]).arg(self.config());
        command.stderr(log.try_clone().expect("a log")).stdout(log);
        // Ours before we wait: if it never answers, `drop` ends it.
        prepare(&mut command);
        self.daemon = Some(command.spawn().expect("starting the daemon"));
        wait::until("the daemon to answer", || {
            let daemon = self.daemon.as_mut().expect("it was started");
            if let Some(status) = daemon.try_wait().expect("the daemon") {
                panic!("the daemon ended ({status}): {}", self.log());
            }
            self.try_cli("status").status.success().then_some(())
        });
    }

    fn log_path(&self) -> PathBuf {
        self.directory.path().join("log")
    }

    /// Returns what the daemon logged.
    pub fn log(&self) -> String {
        fs::read_to_string(self.log_path()).unwrap_or_default()
    }

    /// Returns the daemon's process.
    pub fn pid(&self) -> i32 {
        let child = self.daemon.as_ref().expect("a running daemon");
        i32::try_from(child.id()).expect("a pid")
    }

    /// Sends the daemon a signal and waits for its end.
    pub fn end(&mut self, signal: nix::sys::signal::Signal) {
        let pid = nix::unistd::Pid::from_raw(self.pid());
        nix::sys::signal::kill(pid, signal).expect("a signal");
        if let Some(mut child) = self.daemon.take() {
            child.wait().expect("the daemon's end");
        }
    }

    /// Runs a command that may fail; words are separated by blanks.
    pub fn try_cli(&self, arguments: &str) -> Output {
        let mut command = self.command();
        command
            .args(arguments.split_whitespace())
            .output()
            .expect("running weir")
    }

    /// Runs a command that must succeed and returns its output.
    #[track_caller]
    pub fn cli(&self, arguments: &str) -> String {
        let output = must(self.command().args(arguments.split_whitespace()));
        String::from_utf8(output.stdout).expect("text")
    }

    /// Runs a command that must fail, and returns what it says.
    #[track_caller]
    pub fn refused(&self, arguments: &str) -> String {
        let output = self.try_cli(arguments);
        assert!(
            !output.status.success(),
            "weir {arguments}: should have been refused"
        );
        String::from_utf8_lossy(&output.stderr).into_owned()
    }

    /// Returns an answer as JSON.
    #[track_caller]
    pub fn json(&self, arguments: &str) -> Value {
        serde_json::from_str(&self.cli(&format!("{arguments} --json"))).expect("JSON")
    }

    /// Asks the API by plain HTTP, as any client of it would. Returns the status and the answer.
    #[track_caller]
    pub fn http(&self, method: &str, path: &str, body: &[u8]) -> (u16, Value) {
        let mut stream = UnixStream::connect(self.socket()).expect("the API's socket");
        let head = format!(
            "{method} {path} HTTP/1.1\r\nHost: weir\r\nConnection: close\r\n\
             Content-Type: application/json\r\nContent-Length: {}\r\n\r\n",
            body.len()
        );
        let mut answer = String::new();
        stream.write_all(head.as_bytes()).expect("a request");
        // It may be refused, and the connection closed, before all of it was read.
        let _ = stream.write_all(body);
        stream.read_to_string(&mut answer).expect("an answer");
        let (head, body) = answer.split_once("\r\n\r\n").expect("HTTP");
        let status = head
            .split(' ')
            .nth(1)
            .and_then(|status| status.parse().ok());
        let value = serde_json::from_str(body).unwrap_or_else(|_| panic!("no JSON: {answer}"));
        (status.expect("a status"), value)
    }

    /// Returns a service.
    #[track_caller]
    pub fn service(&self, name: &str) -> Value {
        self.json(&format!("service show {name}"))
    }

    /// Returns a field of a backend.
    #[track_caller]
    pub fn backend(&self, service: &str, name: &str, field: &str) -> Value {
        let service = self.service(service);
        let backends = service["backends"].as_array().expect("backends");
        let backend = backends.iter().find(|backend| backend["name"] == name);
        backend.unwrap_or_else(|| panic!("no backend {name} in {service:#}"))[field].clone()
    }

    /// Waits until a backend is in a state.
    #[track_caller]
    pub fn wait_for(&self, service: &str, backend: &str, state: &str) {
        wait::until(&format!("{backend} to be {state}: {}", self.log()), || {
            (self.backend(service, backend, "state") == state).then_some(())
        });
    }

    /// Waits until a service serves.
    #[track_caller]
    pub fn wait_serving(&self, service: &str) {
        wait::until(&format!("{service} to serve"), || {
            (self.service(service)["state"] == "serving").then_some(())
        });
    }

    /// Checks every map entry.
    #[track_caller]
    pub fn audit(&self) {
        let audit = self.cli("audit");
        assert!(audit.contains("are as they should be"), "{audit}");
    }
}

impl Drop for Weir<'_> {
    fn drop(&mut self) {
        if let Some(mut daemon) = self.daemon.take() {
            // It may have ended by itself, and a panic here would hide the one that led here.
            let _ = daemon.kill();
            let _ = daemon.wait();
        }
        if std::thread::panicking() {
            #[expect(clippy::print_stderr, reason = "why the test failed")]
            {
                eprintln!("the daemon's log:\n{}", self.log());
            }
        }
        let _ = lb_user::dataplane::Pins::new(&self.pins).remove_all();
    }
}
