//! Installing what a fresh Debian 12 machine lacks.
//!
//! Each [`Need`] knows how to find out whether it is there, and which commands bring it. The
//! checks are cheap, so every other command runs the set-up first.

mod apt;
mod backports;
mod guest;
mod need;
mod nginx;
mod unpack;

use std::process::Command;

use anyhow::{Context as _, Result, bail};

use crate::run::{is_root, output, run as run_command, workspace};
use apt::Apt;
use need::{Need, Package, packages};

pub use need::Purpose;

/// The version of bpf-linker that is known to work with the pinned compiler's LLVM.
const BPF_LINKER: &str = "0.13.0";

/// Installs what is missing; with `check` only reports it.
pub fn run(check: bool, purpose: Purpose) -> Result<()> {
    let pinned = pinned_toolchain()?;
    let llvm = llvm_major()?;
    let mut missing = need::missing(&pinned, &llvm, purpose);
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
    let mut apt = Apt::default();
    if !wanted.is_empty() {
        apt.install(&wanted)?;
    }
    missing.retain(|need| !matches!(need, Need::Package(_)));
    for need in &missing {
        println!("setup: installing {}", need.name());
        install(need, &pinned, &llvm, &mut apt)?;
    }
    let left = need::missing(&pinned, &llvm, purpose);
    if let Some(need) = left.first() {
        bail!("{} is still missing after its installation", need.name());
    }
    Ok(())
}

fn install(need: &Need, pinned: &str, llvm: &str, apt: &mut Apt) -> Result<()> {
    match need {
        // Installed together, before.
        Need::Package(_) => Ok(()),
        Need::RustSource => rust_source(pinned, apt),
        Need::BpfLinker => bpf_linker(pinned, llvm),
        Need::Nginx => nginx::install(apt),
        Need::Qemu => qemu(apt),
        Need::Guest => guest::install(apt),
    }
}

/// The source of `core` for the pinned compiler, or Debian's compiler with its own.
fn rust_source(pinned: &str, apt: &mut Apt) -> Result<()> {
    let rustup = ["component", "add", "rust-src", "--toolchain", pinned];
    if run_command(Command::new("rustup").args(rustup)).is_ok() {
        return Ok(());
    }
    println!("setup: rustup can't fetch rust-src; taking Debian's compiler for the BPF target");
    if !is_root() {
        bail!(
            "rustup can't fetch rust-src, and Debian's compiler instead of it needs root: run `sudo -E cargo xtask setup`"
        );
    }
    let wanted = ["rustc-web", "cargo-web", "rust-web-src"].map(|name| Package {
        name: name.to_owned(),
        purpose: "Debian's compiler with the source of `core`, which rustup can't fetch",
        from: "bookworm-security",
    });
    apt.install(&wanted.each_ref())
        .context("neither rustup's rust-src nor Debian's can be had: connect to one of them")?;
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
fn qemu(apt: &mut Apt) -> Result<()> {
    let name = ["qemu-system-x86"];
    if apt.install_with(&[], &name).is_ok() {
        return Ok(());
    }
    println!("setup: qemu-system-x86 is not installable; trying bookworm-backports");
    backports::enable()?;
    apt.forget();
    apt.install_with(&["--target-release", "bookworm-backports"], &name)
        .context(
            "qemu-system-x86 can't be had (it runs the VMs that tests send traffic to): install it by hand, or run `cargo xtask test --unprivileged`",
        )
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
