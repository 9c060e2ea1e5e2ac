use std::path::Path;

use anyhow::{Context as _, Result};

use super::guest;
use crate::run::output;

/// The name under which Debian's compiler is linked; `lb-user/build.rs` knows it too.
pub const FALLBACK_TOOLCHAIN: &str = "weir-bpf";

/// Something that a machine must have.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Need {
    /// A Debian package.
    Package(Package),
    /// The source of `core`.
    RustSource,
    /// The linker of BPF objects.
    BpfLinker,
    /// The emulator.
    Qemu,
    /// A kernel for VMs.
    Guest,
}

/// A Debian package and what it is for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Package {
    name: String,
    purpose: &'static str,
}

impl Need {
    /// Returns what it is called.
    pub fn name(&self) -> &str {
        match self {
            Self::Package(package) => &package.name,
            Self::RustSource => "rust-src",
            Self::BpfLinker => "bpf-linker",
            Self::Qemu => "qemu-system-x86",
            Self::Guest => "a guest kernel",
        }
    }

    /// Returns what it is for.
    pub const fn purpose(&self) -> &'static str {
        match self {
            Self::Package(package) => package.purpose,
            Self::RustSource => "`core` is built from source for the BPF target",
            Self::BpfLinker => "links the XDP programs",
            Self::Qemu => "runs the VMs that tests send traffic to",
            Self::Guest => "Debian's kernel for these VMs, kept in target/guest",
        }
    }

    /// Returns whether only root can install it.
    pub const fn wants_root(&self) -> bool {
        match self {
            Self::Package(_) | Self::Qemu => true,
            Self::RustSource | Self::BpfLinker | Self::Guest => false,
        }
    }
}

/// Returns the names of the packages among `needs`.
pub fn packages(needs: &[Need]) -> Vec<&str> {
    let package = |need: &'_ Need| matches!(need, Need::Package(_));
    let needs = needs.iter().filter(|need| package(need));
    needs.map(Need::name).collect()
}

/// Returns what is missing on this machine.
pub fn missing(pinned: &str, llvm: &str, build_only: bool) -> Vec<Need> {
    let linker = Need::BpfLinker;
    let has_linker = output("bpf-linker", &["--version"])
        .is_some_and(|version| version.trim() == format!("bpf-linker {}", super::BPF_LINKER));
    // The linker has its LLVM inside: the packages are only for building it.
    let mut wanted = if has_linker {
        Vec::new()
    } else {
        linker_packages(llvm)
    };
    if !build_only {
        wanted.extend(test_packages());
    }
    let installed = installed_packages();
    let mut needs: Vec<Need> = wanted
        .into_iter()
        .filter(|package| !installed.contains(&package.name))
        .map(Need::Package)
        .collect();
    if !has_core_source(pinned) && !has_core_source(FALLBACK_TOOLCHAIN) {
        needs.push(Need::RustSource);
    }
    if !has_linker {
        needs.push(linker);
    }
    if !build_only {
        if output("qemu-system-x86_64", &["--version"]).is_none() {
            needs.push(Need::Qemu);
        }
        if !guest::installed() {
            needs.push(Need::Guest);
        }
    }
    needs
}

fn linker_packages(llvm: &str) -> Vec<Package> {
    let purpose = "bpf-linker is built against the compiler's own version of LLVM";
    [
        format!("llvm-{llvm}"),
        format!("llvm-{llvm}-dev"),
        format!("libpolly-{llvm}-dev"),
        "zlib1g-dev".to_owned(),
        "libzstd-dev".to_owned(),
        "g++".to_owned(),
    ]
    .map(|name| Package { name, purpose })
    .into()
}

fn test_packages() -> Vec<Package> {
    [
        ("iproute2", "tests make network namespaces with it"),
        ("ethtool", "turns off a veth's offloads, as on a real wire"),
        ("nginx-light", "the web servers of the demo"),
        ("busybox-static", "user space of the VMs"),
        ("cpio", "packs it"),
    ]
    .map(|(name, purpose)| Package {
        name: name.to_owned(),
        purpose,
    })
    .into()
}

fn installed_packages() -> Vec<String> {
    let format = "--showformat=${db:Status-Abbrev} ${Package}\n";
    let list = output("dpkg-query", &["--show", format]).unwrap_or_default();
    let lines = list.lines().filter_map(|line| line.strip_prefix("ii "));
    lines.map(|name| name.trim().to_owned()).collect()
}

fn has_core_source(toolchain: &str) -> bool {
    output("rustup", &["run", toolchain, "rustc", "--print", "sysroot"]).is_some_and(|sysroot| {
        Path::new(sysroot.trim())
            .join("lib/rustlib/src/rust/library/core")
            .exists()
    })
}

/// Adds bookworm-backports beside Debian's own suite, from the same mirror.
pub fn enable_backports() -> Result<()> {
    let target = "/etc/apt/sources.list.d/weir-backports.sources";
    let source = "/etc/apt/sources.list.d/debian.sources";
    let text = std::fs::read_to_string(source)
        .with_context(|| format!("{source}: can't see which mirror this machine uses"))?;
    let backports =
        backports_of(&text).with_context(|| format!("{source} has no suite bookworm"))?;
    std::fs::write(target, backports).with_context(|| format!("writing {target}"))
}

/// Returns the paragraph of `debian.sources` that names the suite bookworm, for its backports.
fn backports_of(sources: &str) -> Option<String> {
    let paragraph = sources.split("\n\n").find(|paragraph| {
        let mut lines = paragraph.lines();
        lines.any(|line| {
            line.strip_prefix("Suites:")
                .is_some_and(|suites| suites.split_whitespace().any(|suite| suite == "bookworm"))
        })
    })?;
    let lines = paragraph.lines().map(|line| {
        if line.starts_with("Suites:") {
            "Suites: bookworm-backports"
        } else {
            line
        }
    });
    Some(lines.collect::<Vec<_>>().join("\n") + "\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn backports_come_from_the_machines_own_mirror() {
        let sources = "\
Types: deb
URIs: http://mirror.example/security
Suites: bookworm-security
Components: main

Types: deb
URIs: http://mirror.example/debian
Suites: bookworm bookworm-updates
Components: main
";
        let expected = "\
Types: deb
URIs: http://mirror.example/debian
Suites: bookworm-backports
Components: main
";
        assert_eq!(backports_of(sources).as_deref(), Some(expected));
        assert_eq!(backports_of("Suites: trixie"), None);
    }

    #[test]
    fn only_packages_are_installed_by_the_package_manager() {
        let needs = [
            Need::RustSource,
            Need::Package(Package {
                name: "lz4".to_owned(),
                purpose: "",
            }),
            Need::BpfLinker,
        ];
        assert_eq!(packages(&needs), ["lz4"]);
        assert_eq!(needs.each_ref().map(Need::wants_root), [false, true, false]);
    }
}
