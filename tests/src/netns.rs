//! Network namespaces and pin directories that are gone when the test is.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::Once;

use lb_user::dataplane::Pins;
use nix::sched::{CloneFlags, setns};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::names;

/// Where `ip` keeps the files that stand for namespaces.
const NAMESPACES: &str = "/run/netns";
const PINS: &str = "/sys/fs/bpf";

/// A network namespace.
#[derive(Debug)]
pub struct Netns {
    name: String,
}

impl Netns {
    /// Makes a namespace with the loopback interface up.
    pub fn new(tag: &str) -> Self {
        assert!(
            nix::unistd::geteuid().is_root(),
            "this test makes network namespaces and needs root: run it by `sudo -E cargo xtask test`"
        );
        reap();
        let name = names::unique(tag);
        must(Command::new("ip").args(["netns", "add", &name]));
        let namespace = Self { name };
        namespace.ip("link set lo up");
        namespace
    }

    /// Returns the file that stands for it.
    pub fn path(&self) -> PathBuf {
        Path::new(NAMESPACES).join(&self.name)
    }

    /// Returns a command that runs in it. Unlike `ip netns exec` it leaves `/sys` alone, so pins
    /// are seen.
    pub fn command(&self, program: &str) -> Command {
        let mut command = Command::new("nsenter");
        command.arg(format!("--net={}", self.path().display()));
        command.args(["--", program]).stdin(Stdio::null());
        command
    }

    /// Runs `ip` in it; words are separated by blanks.
    pub fn ip(&self, arguments: &str) {
        must(self.command("ip").args(arguments.split_whitespace()));
    }

    /// Sets a parameter of its kernel: a path below /proc/sys, which shows a process those of its
    /// own namespace.
    #[track_caller]
    pub fn set(&self, parameter: &str, value: &str) {
        let path = PathBuf::from("/proc/sys").join(parameter);
        let written = self.enter(|| fs::write(&path, value));
        written.unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    }

    /// Runs a program in it, which must succeed; words are separated by blanks.
    pub fn run(&self, program: &str, arguments: &str) -> Output {
        must(self.command(program).args(arguments.split_whitespace()))
    }

    /// Runs `work` in it. Sockets that it opens stay there.
    pub fn enter<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        let path = self.path();
        std::thread::scope(|scope| {
            let inside = scope.spawn(move || {
                let file = File::open(path).expect("the namespace's file");
                setns(file, CloneFlags::CLONE_NEWNET).expect("entering the namespace");
                work()
            });
            inside
                .join()
                .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }

    /// Moves the calling thread into it, until the guard is dropped: for what can't leave its
    /// thread, as a loaded program.
    pub fn stay(&self) -> Stay {
        let home = File::open("/proc/thread-self/ns/net").expect("this thread's namespace");
        let file = File::open(self.path()).expect("the namespace's file");
        setns(file, CloneFlags::CLONE_NEWNET).expect("entering the namespace");
        Stay { home }
    }

    /// Returns the index of an interface in it.
    pub fn ifindex(&self, interface: &str) -> u32 {
        self.enter(|| nix::net::if_::if_nametoindex(interface).expect(interface))
    }
}

/// A thread's stay in another namespace than its own.
#[derive(Debug)]
pub struct Stay {
    home: File,
}

impl Drop for Stay {
    fn drop(&mut self) {
        let _ = setns(&self.home, CloneFlags::CLONE_NEWNET);
    }
}

impl Drop for Netns {
    fn drop(&mut self) {
        let _ = Command::new("ip")
            .args(["netns", "del", &self.name])
            .output();
    }
}

/// Runs a command that must succeed.
#[track_caller]
pub fn must(command: &mut Command) -> Output {
    let output = command.output().expect("running a command");
    assert!(
        output.status.success(),
        "{command:?}: {}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr),
    );
    output
}

/// Removes what tests left behind that were killed. Once is enough for a process.
fn reap() {
    static REAP: Once = Once::new();
    REAP.call_once(|| {
        for name in left_behind(NAMESPACES) {
            let pids = Command::new("ip").args(["netns", "pids", &name]).output();
            let pids = pids.map(|output| output.stdout).unwrap_or_default();
            for pid in String::from_utf8_lossy(&pids).split_whitespace() {
                if let Ok(pid) = pid.parse() {
                    let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
                }
            }
            let _ = Command::new("ip").args(["netns", "del", &name]).output();
        }
        for name in left_behind(PINS) {
            remove_pins(&Path::new(PINS).join(name));
        }
    });
}

fn left_behind(directory: &str) -> Vec<String> {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    let names = entries.filter_map(|entry| entry.file_name().into_string().ok());
    names.filter(|name| names::is_left_behind(name)).collect()
}

/// Removes a directory that [`pins`] returned, with all that is pinned in it or in directories
/// below it (`weir decap` has one for each interface). As with all cleaning, what can't be removed
/// stays.
pub fn remove_pins(directory: &Path) {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    for entry in entries {
        let is_directory = entry.file_type().is_ok_and(|kind| kind.is_dir());
        if is_directory && entry.file_name() != "links" {
            remove_pins(&entry.path());
        }
    }
    let _ = Pins::new(directory).remove_all();
}

/// Returns a directory of the BPF file system that nobody else has. What it will hold is removed
/// by the next run of any test or benchmark if this one is killed.
pub fn pins(tag: &str) -> PathBuf {
    reap();
    Path::new(PINS).join(names::unique(tag))
}
