use std::path::Path;

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
        }
    }

    /// Returns what it is for.
    pub const fn purpose(&self) -> &'static str {
        match self {
            Self::Package(package) => package.purpose,
            Self::RustSource => "`core` is built from source for the BPF target",
            Self::BpfLinker => "links the XDP programs",
        }
    }

    /// Returns whether only root can install it.
    pub const fn wants_root(&self) -> bool {
        match self {
            Self::Package(_) => true,
            Self::RustSource | Self::BpfLinker => false,
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

#[cfg(test)]
mod tests {
    use super::*;

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
