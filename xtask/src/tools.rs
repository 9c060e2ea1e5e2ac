//! Building and running the project's own programs.

use std::path::PathBuf;
use std::process::Command;

use anyhow::{Result, bail};

use crate::run::{is_root, run, workspace};
use crate::setup::{self, Purpose};

/// Builds the binary `weir` and returns its path.
pub fn weir(release: bool) -> Result<PathBuf> {
    let mut cargo = Command::new("cargo");
    cargo.args(["build", "--package", "lb-user", "--bin", "weir"]);
    if release {
        cargo.arg("--release");
    }
    run(&mut cargo)?;
    let target = std::env::var_os("CARGO_TARGET_DIR")
        .map_or_else(|| workspace().join("target"), PathBuf::from);
    let profile = if release { "release" } else { "debug" };
    Ok(workspace().join(target).join(profile).join("weir"))
}

/// Runs the demo.
pub fn demo(keep: bool) -> Result<()> {
    if !is_root() {
        bail!(
            "the demo loads BPF programs and makes network namespaces, which needs root: run `sudo -E cargo xtask demo`"
        );
    }
    setup::run(false, Purpose::Demo)?;
    let weir = weir(false)?;
    let mut cargo = Command::new("cargo");
    cargo.args([
        "run",
        "--quiet",
        "--package",
        "lb-tests",
        "--bin",
        "weir-demo",
    ]);
    if keep {
        cargo.args(["--", "--keep"]);
    }
    run(cargo.env("WEIR_BIN", weir))
}

/// Runs the benchmark.
pub fn bench(arguments: &[String]) -> Result<()> {
    let help = |argument: &String| argument == "--help" || argument == "-h";
    if !is_root() && !arguments.iter().any(help) {
        bail!(
            "the benchmark loads BPF programs, which needs root: run `sudo -E cargo xtask bench`"
        );
    }
    // It measures a daemon in a namespace as well.
    setup::run(false, Purpose::Demo)?;
    let weir = weir(true)?;
    let mut cargo = Command::new("cargo");
    cargo.args(["run", "--quiet", "--release", "--package", "lb-tests"]);
    cargo.args(["--bin", "weir-bench", "--"]).args(arguments);
    run(cargo.env("WEIR_BIN", weir))
}

/// Runs the fuzzer.
pub fn fuzz(arguments: &[String]) -> Result<()> {
    let help = |argument: &String| argument == "--help" || argument == "-h";
    if !is_root() && !arguments.iter().any(help) {
        bail!("the fuzzer loads BPF programs, which needs root: run `sudo -E cargo xtask fuzz`");
    }
    setup::run(false, Purpose::Test)?;
    let mut cargo = Command::new("cargo");
    cargo.args(["run", "--quiet", "--package", "lb-tests"]);
    run(cargo.args(["--bin", "weir-fuzz", "--"]).args(arguments))
}
