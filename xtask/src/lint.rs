//! Formatting and clippy, for the host and for the BPF target.

use std::process::Command;

use anyhow::Result;

use crate::run;
use crate::setup;

/// Runs the checks, and stops at the first that finds something.
pub fn run() -> Result<()> {
    setup::run(false, setup::Purpose::Build)?;
    checks().iter_mut().try_for_each(run::run)
}

fn checks() -> [Command; 3] {
    let cargo = |arguments: &[&str]| {
        let mut command = Command::new("cargo");
        command.args(arguments);
        command
    };
    let format = cargo(&["fmt", "--all", "--check"]);
    let host = cargo(&[
        "clippy",
        "--workspace",
        "--exclude",
        "lb-ebpf",
        "--all-targets",
        "--",
        "-D",
        "warnings",
    ]);
    let mut bpf = cargo(&[
        "clippy",
        "--package",
        "lb-ebpf",
        "--target",
        "bpfel-unknown-none",
        "-Z",
        "build-std=core",
        "--",
        "-D",
        "warnings",
    ]);
    // Building `core` for the BPF target is an unstable option of the pinned, stable cargo.
    bpf.env("RUSTC_BOOTSTRAP", "1");
    [format, host, bpf]
}
