//! The kernel that test VMs run: Debian's own, for clouds.
//!
//! In `target/guest`: `vmlinuz`, and `modules` with the modules that the tests load and a file
//! `order` that lists them in the order in which they depend on each other.

use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail};

use crate::run::{output, run, workspace};

/// Modules by what they are for, each behind those that it needs. Some may be built in.
const MODULES: [&str; 14] = [
    // The NIC.
    "virtio_ring",
    "virtio",
    "virtio_pci_legacy_dev",
    "virtio_pci_modern_dev",
    "virtio_pci",
    "failover",
    "net_failover",
    "virtio_net",
    // IPIP.
    "tunnel4",
    "ip_tunnel",
    "ipip",
    // GUE.
    "udp_tunnel",
    "ip6_udp_tunnel",
    "fou",
];

fn directory() -> PathBuf {
    workspace().join("target/guest")
}

/// Returns whether it is there.
pub fn installed() -> bool {
    directory().join("modules/order").exists()
}

/// Fetches the newest kernel of Debian's package for clouds and unpacks what is needed.
pub fn install() -> Result<()> {
    let depends = output("apt-cache", &["depends", "linux-image-cloud-amd64"]).unwrap_or_default();
    let mut names = depends
        .lines()
        .filter_map(|line| line.trim().strip_prefix("Depends: "));
    let Some(package) = names.next() else {
        bail!("apt knows no linux-image-cloud-amd64: run `apt-get update` and try again");
    };
    let directory = directory();
    let unpacked = directory.join("unpacked");
    let modules = directory.join("modules");
    for fresh in [&unpacked, &modules] {
        if fresh.exists() {
            fs::remove_dir_all(fresh)?;
        }
        fs::create_dir_all(fresh)?;
    }
    // apt puts the package into its current directory.
    let download = format!(
        "cd '{}' && apt-get --quiet download {package}",
        unpacked.display()
    );
    run(Command::new("sh").args(["-c", &download]))
        .with_context(|| format!("{package} can't be had"))?;
    let archive = find(&unpacked, &|name| name.ends_with(".deb")).context("no package came")?;
    run(Command::new("dpkg").arg("-x").arg(archive).arg(&unpacked))?;

    let kernel = find(&unpacked.join("boot"), &|name| name.starts_with("vmlinuz"));
    fs::copy(
        kernel.context("the package has no kernel")?,
        directory.join("vmlinuz"),
    )?;
    let mut order = String::new();
    for module in MODULES {
        let file = format!("{module}.ko");
        if let Some(found) = find(&unpacked.join("lib"), &|name| name == file) {
            fs::copy(found, modules.join(&file))?;
            order += &format!("{module}\n");
        }
    }
    fs::remove_dir_all(&unpacked)?;
    // Last: it says that all is there.
    fs::write(modules.join("order"), order)?;
    Ok(())
}

/// Returns the first file below `directory` whose name fits.
fn find(directory: &Path, fits: &dyn Fn(&str) -> bool) -> Option<PathBuf> {
    for entry in fs::read_dir(directory).ok()?.flatten() {
        let path = entry.path();
        let found = if path.is_dir() {
            find(&path, fits)
        } else {
            let name = path.file_name().and_then(OsStr::to_str);
            name.is_some_and(fits).then_some(path)
        };
        if found.is_some() {
            return found;
        }
    }
    None
}
