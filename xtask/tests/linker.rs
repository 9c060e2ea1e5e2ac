//! What cargo links with, on machines with and without a C compiler. No machine is changed: `cc`,
//! `apt-get` and `id` are scripts in a directory that is all of the path.

use std::fs;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::PathBuf;
use std::process::{Command, Output};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// One at a time: a program that is still being written in one thread can't be run while another
/// one forks.
static ONE: Mutex<()> = Mutex::new(());

/// A directory with programs, until it is dropped.
struct Machine(
    PathBuf,
    #[expect(dead_code, reason = "held")] MutexGuard<'static, ()>,
);

impl Machine {
    /// Makes a machine without a C compiler, for a user.
    fn new(name: &str, user: &str) -> Self {
        let name = format!("weir-linker-{}-{name}", std::process::id());
        let one = ONE.lock().unwrap_or_else(PoisonError::into_inner);
        let machine = Self(std::env::temp_dir().join(name), one);
        fs::create_dir(&machine.0).unwrap();
        machine.program("id", &format!("echo {user}"));
        let flock = ["/usr/bin/flock", "/bin/flock"]
            .into_iter()
            .find(|flock| fs::exists(flock).unwrap());
        symlink(flock.unwrap(), machine.0.join("flock")).unwrap();
        machine
    }

    fn program(&self, name: &str, script: &str) {
        let path = self.0.join(name);
        fs::write(&path, format!("#!/bin/sh\n{script}\n")).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    }

    /// Adds an apt-get that writes down what it is asked for and, asked to install, does `install`.
    fn apt(&self, install: &str) {
        let here = self.0.display();
        let script = format!(
            "echo \"$@\" >>{here}/asked\ncase \"$*\" in *install*gcc*libc6-dev*)\n{install}\nesac"
        );
        self.program("apt-get", &script);
    }

    fn asked(&self) -> String {
        fs::read_to_string(self.0.join("asked")).unwrap_or_default()
    }

    fn command(&self) -> Command {
        let mut command = Command::new(concat!(env!("CARGO_MANIFEST_DIR"), "/linker"));
        command
            .env("PATH", &self.0)
            .args(["-o", "out file", "in.o"]);
        command
    }

    fn link(&self) -> (bool, String, String) {
        said(&self.command().output().unwrap())
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn said(output: &Output) -> (bool, String, String) {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim().to_owned();
    let (out, err) = (text(&output.stdout), text(&output.stderr));
    (output.status.success(), out, err)
}

/// A C compiler that says how it was called.
const CC: &str = "for word; do echo \"[$word]\"; done";
const CALLED: &str = "[-o]\n[out file]\n[in.o]";

#[test]
fn a_compiler_that_is_there_is_called_and_nothing_is_installed() {
    let machine = Machine::new("present", "0");
    machine.apt("");
    machine.program("cc", CC);
    assert_eq!(machine.link(), (true, CALLED.to_owned(), String::new()));
    assert_eq!(machine.asked(), "");
    machine.program("cc", "exit 7");
    assert_eq!(machine.command().status().unwrap().code(), Some(7));
}

#[test]
fn who_can_not_install_one_is_told_in_one_line() {
    let machine = Machine::new("user", "1000");
    machine.apt("");
    let (done, _, said) = machine.link();
    assert!(!done);
    assert!(said.contains("cc is missing") && said.contains("apt-get install gcc libc6-dev"));
    assert_eq!(said.lines().count(), 1, "{said}");
    assert_eq!(machine.asked(), "");
    drop(machine);
    assert!(!Machine::new("no-apt", "0").link().0);
}

#[test]
fn root_has_it_installed_once_however_many_programs_are_linked() {
    let machine = Machine::new("root", "0");
    let cc = machine.0.join("cc");
    let cc = cc.display();
    // Late and all at once, as packages are unpacked.
    machine.apt(&format!(
        "PATH=/usr/bin:/bin; sleep 0.3; printf '#!/bin/sh\\n%s\\n' '{CC}' >{cc}.new; chmod +x {cc}.new; mv {cc}.new {cc}"
    ));
    let links: Vec<_> = (0..4)
        .map(|_| {
            let mut command = machine.command();
            std::thread::spawn(move || said(&command.output().unwrap()))
        })
        .collect();
    let mut installers = 0;
    for link in links {
        let (done, called, said) = link.join().unwrap();
        assert!(done && called == CALLED, "{called}{said}");
        installers += said.matches("installing gcc and libc6-dev").count();
    }
    assert_eq!(installers, 1);
    let asked = machine.asked();
    let mut lines = asked.lines();
    assert!(lines.next().unwrap().ends_with("update"), "{asked}");
    assert!(lines.next().unwrap().contains("install --yes"), "{asked}");
    assert_eq!(lines.next(), None);
}

#[test]
fn an_installation_that_fails_is_told() {
    let machine = Machine::new("broken", "0");
    machine.apt("exit 100");
    let (done, _, said) = machine.link();
    assert!(
        !done && said.contains("gcc could not be installed"),
        "{said}"
    );
}
