//! Installing what a fresh Debian 12 machine lacks.
//!
//! Each [`Need`] knows how to find out whether it is there, and which commands bring it. The
//! checks are cheap, so every other command runs the set-up first.

mod guest;
mod need;

use std::process::Command;

use anyhow::{Context as _, Result, bail};

use crate::run::{is_root, output, run as run_command, workspace};
use need::{Need, packages};

/// The version of bpf-linker that is known to work with the pinned compiler's LLVM.
const BPF_LINKER: &str = "0.13.0";

/// Installs what is missing; with `check` only reports it.
pub fn run(check: bool, build_only: bool) -> Result<()> {
    let pinned = pinned_toolchain()?;
    let llvm = llvm_major()?;
    let mut missing = need::missing(&pinned, &llvm, build_only);
    if missing.is_empty() {
        if check {
            println!("Nothing is missing.");
        }
        return Ok(());
    }
    for need in &missing {
        println!("setup: {} is missing ({})", need.name(), need.purpose());
    }
    if check {
        bail!("{} missing: `cargo xtask setup` installs it", missing.len());
    }
    if !is_root() && missing.iter().any(Need::wants_root) {
        bail!("installing packages needs root: run `sudo -E cargo xtask setup`");
    }

    let wanted = packages(&missing);
    if !wanted.is_empty() {
        apt(&["update"])?;
        apt_install(&wanted)?;
    }
    missing.retain(|need| !matches!(need, Need::Package(_)));
    for need in &missing {
        println!("setup: installing {}", need.name());
        install(need, &pinned, &llvm)?;
    }
    let left = need::missing(&pinned, &llvm, build_only);
    if let Some(need) = left.first() {
        bail!("{} is still missing after its installation", need.name());
    }
    Ok(())
}

fn install(need: &Need, pinned: &str, llvm: &str) -> Result<()> {
    match need {
        // Installed together, before.
        Need::Package(_) => Ok(()),
        Need::RustSource => rust_source(pinned),
        Need::BpfLinker => bpf_linker(pinned, llvm),
        Need::Qemu => qemu(),
        Need::Guest => guest::install(),
    }
}

/// The source of `core` for the pinned compiler, or Debian's compiler with its own.
fn rust_source(pinned: &str) -> Result<()> {
    let rustup = ["component", "add", "rust-src", "--toolchain", pinned];
    if run_command(Command::new("rustup").args(rustup)).is_ok() {
        return Ok(());
    }
    println!("setup: rustup can't fetch rust-src; taking Debian's compiler for the BPF target");
    apt_install(&["rustc-web", "cargo-web", "rust-web-src"]).context(
        "neither rustup's rust-src nor Debian's rust-web-src can be had: connect to one of them",
    )?;
    let link = ["toolchain", "link", need::FALLBACK_TOOLCHAIN, "/usr"];
    run_command(Command::new("rustup").args(link))
}

fn bpf_linker(pinned: &str, llvm: &str) -> Result<()> {
    let prefix = format!("/usr/lib/llvm-{llvm}");
    let path = std::env::var("PATH").unwrap_or_default();
    let mut cargo = Command::new("cargo");
    cargo.arg(format!("+{pinned}"));
    cargo.args(["install", "bpf-linker", "--version", BPF_LINKER, "--force"]);
    cargo.args(["--no-default-features", "--features"]);
    cargo.arg(format!("llvm-{llvm}"));
    cargo.env("LLVM_PREFIX", &prefix);
    cargo.env(format!("LLVM_SYS_{llvm}1_PREFIX"), &prefix);
    // Its build script asks the first llvm-config in the path.
    cargo.env("PATH", format!("{prefix}/bin:{path}"));
    // It is a tool, not a part of this build.
    cargo.env_remove("CARGO_TARGET_DIR").env_remove("RUSTFLAGS");
    run_command(&mut cargo)
        .context("bpf-linker could not be built: see its output above for what it lacks")
}

/// QEMU: some machines have newer libraries of it from backports, and then need all of it from
/// there.
fn qemu() -> Result<()> {
    if apt_install(&["qemu-system-x86"]).is_ok() {
        return Ok(());
    }
    println!("setup: qemu-system-x86 is not installable; trying bookworm-backports");
    need::enable_backports()?;
    apt(&["update"])?;
    apt(&[
        "install",
        "--yes",
        "--no-install-recommends",
        "--target-release",
        "bookworm-backports",
        "qemu-system-x86",
    ])
    .context("qemu-system-x86 can't be had: install it, or run `cargo xtask test --unprivileged`")
}

fn apt_install(packages: &[&str]) -> Result<()> {
    let mut arguments = vec!["install", "--yes", "--no-install-recommends"];
    arguments.extend(packages);
    apt(&arguments)
}

fn apt(arguments: &[&str]) -> Result<()> {
    let mut apt = Command::new("apt-get");
    apt.arg("--quiet").args(arguments);
    run_command(apt.env("DEBIAN_FRONTEND", "noninteractive"))
}

/// Returns the `channel` of `rust-toolchain.toml`.
fn pinned_toolchain() -> Result<String> {
    let file = workspace().join("rust-toolchain.toml");
    let text = std::fs::read_to_string(&file).with_context(|| file.display().to_string())?;
    text.lines()
        .find_map(|line| line.strip_prefix("channel = \"")?.strip_suffix('"'))
        .map(str::to_owned)
        .context("rust-toolchain.toml names no channel")
}

/// Returns the major version of LLVM that the pinned compiler carries: what it writes, only a
/// linker with the same LLVM reads.
fn llvm_major() -> Result<String> {
    let version = output("rustc", &["-vV"]).context("rustc does not run")?;
    version
        .lines()
        .find_map(|line| line.strip_prefix("LLVM version: "))
        .and_then(|version| version.split('.').next())
        .map(str::to_owned)
        .context("rustc names no LLVM version")
}
