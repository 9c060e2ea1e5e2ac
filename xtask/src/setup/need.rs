use std::path::Path;

use super::{guest, nginx};
use crate::run::output;

/// The name under which Debian's compiler is linked; `lb-user/build.rs` knows it too.
pub const FALLBACK_TOOLCHAIN: &str = "weir-bpf";

const MAIN: &str = "Debian 12's main";
/// Where a compiler newer than Debian 12's comes from.
const SECURITY: &str = "bookworm-security";

/// Something that a machine must have.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Need {
    /// A Debian package.
    Package(Package),
    /// The source of `core`.
    RustSource,
    /// The linker of BPF objects.
    BpfLinker,
    /// The web server of the demo.
    Nginx,
    /// The emulator.
    Qemu,
    /// A kernel for VMs.
    Guest,
}

/// A Debian package and what it is for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Package {
    /// Its name.
    pub name: String,
    /// What it is for.
    pub purpose: &'static str,
    /// Where it comes from.
    pub from: &'static str,
}

/// What a machine is to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// Build weir, and run the tests that need no root.
    Build,
    /// Run the demo.
    Demo,
    /// Run all tests.
    Test,
}

impl Need {
    /// Returns what it is called.
    pub fn name(&self) -> &str {
        match self {
            Self::Package(package) => &package.name,
            Self::RustSource => "rust-src",
            Self::BpfLinker => "bpf-linker",
            Self::Nginx => "nginx",
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
            Self::Nginx => "the web server of the demo, kept in target/nginx and not installed",
            Self::Qemu => "runs the VMs that tests send traffic to",
            Self::Guest => "Debian's kernel for these VMs, kept in target/guest",
        }
    }

    /// Returns whether only root can install it.
    pub const fn wants_root(&self) -> bool {
        match self {
            Self::Package(_) | Self::Qemu => true,
            Self::RustSource | Self::BpfLinker | Self::Nginx | Self::Guest => false,
        }
    }
}

/// Returns the packages among `needs`.
pub fn packages(needs: &[Need]) -> Vec<&Package> {
    let packages = needs.iter().filter_map(|need| {
        if let Need::Package(package) = need {
            Some(package)
        } else {
            None
        }
    });
    packages.collect()
}

/// Returns what is missing on this machine.
pub fn missing(pinned: &str, llvm: &str, purpose: Purpose) -> Vec<Need> {
    let linker = Need::BpfLinker;
    let has_linker = output("bpf-linker", &["--version"])
        .is_some_and(|version| version.trim() == format!("bpf-linker {}", super::BPF_LINKER));
    // The linker has its LLVM inside: the packages are only for building it.
    let mut wanted = if has_linker {
        Vec::new()
    } else {
        linker_packages(llvm)
    };
    match purpose {
        Purpose::Build => {}
        Purpose::Demo => wanted.extend(demo_packages()),
        Purpose::Test => wanted.extend(demo_packages().into_iter().chain(test_packages())),
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
    if purpose != Purpose::Build && !nginx::installed() {
        needs.push(Need::Nginx);
    }
    if purpose == Purpose::Test {
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
    let package = |name, from| Package {
        name,
        purpose,
        from,
    };
    let of_llvm = [
        format!("llvm-{llvm}"),
        format!("llvm-{llvm}-dev"),
        format!("libpolly-{llvm}-dev"),
    ];
    let others = ["zlib1g-dev", "libzstd-dev", "g++"].map(str::to_owned);
    let of_llvm = of_llvm.map(|name| package(name, SECURITY));
    let others = others.map(|name| package(name, MAIN));
    of_llvm.into_iter().chain(others).collect()
}

fn demo_packages() -> Vec<Package> {
    main_packages(&[
        (
            "iproute2",
            "tests and the demo make network namespaces with it",
        ),
        ("ethtool", "turns off a veth's offloads, as on a real wire"),
        ("libssl3", "nginx, the web server of the demo, wants it"),
    ])
}

fn test_packages() -> Vec<Package> {
    main_packages(&[
        ("busybox-static", "user space of the VMs"),
        ("cpio", "packs it"),
    ])
}

fn main_packages(packages: &[(&str, &'static str)]) -> Vec<Package> {
    let packages = packages.iter().map(|(name, purpose)| Package {
        name: (*name).to_owned(),
        purpose,
        from: MAIN,
    });
    packages.collect()
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_packages_are_installed_by_the_package_manager() {
        let package = Package {
            name: "lz4".to_owned(),
            purpose: "",
            from: MAIN,
        };
        let needs = [
            Need::RustSource,
            Need::Package(package.clone()),
            Need::BpfLinker,
        ];
        assert_eq!(packages(&needs), [&package]);
        assert_eq!(needs.each_ref().map(Need::wants_root), [false, true, false]);
    }
}
