//! Building and running the project's own programs.

use std::path::PathBuf;
use std::process::Command;

use anyhow::Result;

use crate::run::{run, workspace};
use crate::setup;

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
    setup::run(false, false)?;
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
    // It measures a daemon in a namespace as well, as the tests have them.
    setup::run(false, false)?;
    let weir = weir(true)?;
    let mut cargo = Command::new("cargo");
    cargo.args(["run", "--quiet", "--release", "--package", "lb-tests"]);
    cargo.args(["--bin", "weir-bench", "--"]).args(arguments);
    run(cargo.env("WEIR_BIN", weir))
}
