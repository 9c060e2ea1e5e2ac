//! The kernel that test VMs run: Debian's own, for clouds.
//!
//! In `target/guest`: `vmlinuz`, and `modules` with the modules that the tests load and a file
//! `order` that lists them in the order in which they depend on each other (those that are built in
//! aside), and one `wanted` that lists what was asked for.

use std::fs;
use std::path::PathBuf;

use anyhow::{Context as _, Result, bail};

use super::apt::Apt;
use super::unpack::find;
use crate::run::{output, workspace};

/// Modules by what they are for, each behind those that it needs. Some may be built in.
const MODULES: [&str; 20] = [
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
    // Geneve.
    "geneve",
    // VLANs.
    "llc",
    "stp",
    "mrp",
    "garp",
    "8021q",
];

fn directory() -> PathBuf {
    workspace().join("target/guest")
}

/// Returns whether it is there, with all that is wanted of it by now.
pub fn installed() -> bool {
    let wanted = fs::read_to_string(directory().join("modules/wanted"));
    wanted.is_ok_and(|wanted| wanted == MODULES.join("\n"))
}

/// Fetches the newest kernel of Debian's package for clouds and unpacks what is needed.
pub fn install(apt: &mut Apt) -> Result<()> {
    apt.update()?;
    let depends = output("apt-cache", &["depends", "linux-image-cloud-amd64"]).unwrap_or_default();
    let mut names = depends
        .lines()
        .filter_map(|line| line.trim().strip_prefix("Depends: "));
    let Some(package) = names.next() else {
        bail!(
            "apt knows no linux-image-cloud-amd64 (the kernel of the VMs that tests send traffic to): it comes from Debian's main, which has to be among the sources in /etc/apt"
        );
    };
    let directory = directory();
    let unpacked = directory.join("unpacked");
    let modules = directory.join("modules");
    if modules.exists() {
        fs::remove_dir_all(&modules)?;
    }
    fs::create_dir_all(&modules)?;
    apt.unpack(package, &unpacked)?;

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
    fs::write(modules.join("order"), order)?;
    // Last: it says that all is there.
    fs::write(modules.join("wanted"), MODULES.join("\n"))?;
    Ok(())
}
