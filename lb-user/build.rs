//! Builds the XDP programs from source, for embedding.

use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context as _, Result, bail};
use aya_build::{Package, Toolchain, build_ebpf};

/// The toolchain of `rust-toolchain.toml`.
const PINNED: &str = "1.95.0";
/// Debian's toolchain, linked by `cargo xtask setup` where rustup can't have `rust-src`.
const FALLBACK: &str = "weir-bpf";

fn main() -> Result<()> {
    println!("cargo:rerun-if-changed=build.rs");
    // The objects are built from these too, and cargo doesn't know.
    println!("cargo:rerun-if-changed=../lb-common/src");
    println!("cargo:rerun-if-changed=../Cargo.lock");

    let toolchain = if has_core_source(PINNED) {
        PINNED
    } else if has_core_source(FALLBACK) {
        FALLBACK
    } else {
        bail!("no toolchain with the source of `core`: run `cargo xtask setup`");
    };
    if Command::new("bpf-linker")
        .arg("--version")
        .output()
        .is_err()
    {
        bail!("bpf-linker is not installed: run `cargo xtask setup`");
    }
    // SAFETY: a build script's only thread. The pinned compiler is a stable one, and building
    // `core` for the BPF target is an unstable option of cargo's.
    unsafe { std::env::set_var("RUSTC_BOOTSTRAP", "1") };

    let root = PathBuf::from(std::env::var("CARGO_MANIFEST_DIR")?).join("../lb-ebpf");
    let root = root.to_str().context("the path of lb-ebpf is not UTF-8")?;
    let features: &[&str] = if std::env::var_os("CARGO_FEATURE_LOG").is_some() {
        &["log"]
    } else {
        &[]
    };
    build_ebpf(
        [Package {
            name: "lb-ebpf",
            root_dir: root,
            features,
            ..Package::default()
        }],
        Toolchain::Custom(toolchain),
    )
}

fn has_core_source(toolchain: &str) -> bool {
    let Ok(output) = Command::new("rustup")
        .args(["run", toolchain, "rustc", "--print", "sysroot"])
        .output()
    else {
        return false;
    };
    output.status.success()
        && std::str::from_utf8(&output.stdout).is_ok_and(|sysroot| {
            PathBuf::from(sysroot.trim())
                .join("lib/rustlib/src/rust/library/core")
                .exists()
        })
}
