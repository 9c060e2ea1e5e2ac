//! What the kernel must have, found out by trying: distributions carry features back to kernels
//! whose version doesn't tell, and leave others out.

use std::io;
use std::os::fd::AsFd as _;

use aya::maps::MapType;
use aya::programs::ProgramType;
use aya::sys::{BpfHelper, is_helper_supported, is_map_supported, is_program_supported};
use tracing::warn;

use super::sys;

/// The oldest kernel that has everything and is kept alive. Nothing newer is used in the packet's
/// way or by the daemon; the benchmark alone takes `bpf_xdp_get_buff_len` (5.18, 0165cc817075).
const FLOOR: (u32, u32) = (5, 15);

/// Something that the kernel must have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Feature {
    /// What it is.
    pub name: &'static str,
    /// The first version of Linux with it, and the commit.
    pub since: &'static str,
    /// What it is for.
    pub purpose: &'static str,
}

type Probe = fn() -> io::Result<bool>;

/// Everything that can be tried without an interface. Two more are named where they are missed:
/// BPF links for XDP (5.9) when attaching, and test runs with a context (5.14) by `weir explain`.
const FEATURES: [(Feature, Probe); 6] = [
    (
        Feature {
            name: "XDP programs",
            since: "4.8, 6a773a15a1e8",
            purpose: "packets are forwarded by one",
        },
        || is_program_supported(ProgramType::Xdp).map_err(io::Error::other),
    ),
    (
        Feature {
            name: "hashed device maps",
            since: "5.4, 6f9d451ab1a3",
            purpose: "packets are redirected to other interfaces by one",
        },
        || is_map_supported(MapType::DevMapHash).map_err(io::Error::other),
    ),
    (
        Feature {
            name: "memory-mapped arrays",
            since: "5.5, fc9702273e2e",
            purpose: "rows and backends are stored without system calls",
        },
        mapped_arrays,
    ),
    (
        Feature {
            name: "bpf_jiffies64 in XDP programs",
            since: "5.6, 5576b991e9c1",
            purpose: "flow table entries carry a time",
        },
        || {
            is_helper_supported(ProgramType::Xdp, BpfHelper::BPF_FUNC_jiffies64)
                .map_err(io::Error::other)
        },
    ),
    (
        Feature {
            name: "batched map reads",
            since: "5.6, 057996380a42",
            purpose: "flow tables are swept while packets change them",
        },
        batched_reads,
    ),
    (
        Feature {
            name: "batched writes of prefix tries",
            since: "5.13, f56387c534a1",
            purpose: "lists of sources are filled by them",
        },
        batched_tries,
    ),
];

/// Why the kernel won't do.
#[derive(Debug, thiserror::Error)]
pub enum FeatureError {
    /// It lacks something.
    #[error(
        "the kernel ({release}) has no {}: {}; Linux {} has it, and weir is meant for 5.15 and newer",
        .feature.name, .feature.purpose, .feature.since
    )]
    Missing {
        /// The feature.
        feature: Feature,
        /// The kernel's release.
        release: String,
    },
    /// It can't be asked.
    #[error("asking the kernel whether it has {}; weir needs root, or CAP_BPF and CAP_NET_ADMIN", .feature.name)]
    Unknown {
        /// The feature.
        feature: Feature,
        /// What it said.
        #[source]
        source: io::Error,
    },
}

/// Tries everything that weir needs of the kernel.
pub fn probe() -> Result<(), FeatureError> {
    let release = nix::sys::utsname::uname()
        .map(|name| name.release().to_string_lossy().into_owned())
        .unwrap_or_default();
    try_all(&FEATURES, &release)?;
    if older_than_floor(&release) {
        let (major, minor) = FLOOR;
        warn!(
            release,
            "the kernel has what weir needs, but is older than {major}.{minor}, for which weir is meant"
        );
    }
    if std::fs::read_to_string("/proc/sys/net/core/bpf_jit_enable").is_ok_and(|v| v.trim() == "0") {
        warn!(
            "the kernel interprets BPF programs, which is slow: sysctl net.core.bpf_jit_enable=1"
        );
    }
    Ok(())
}

fn try_all(features: &[(Feature, Probe)], release: &str) -> Result<(), FeatureError> {
    for (feature, probe) in features {
        let feature = *feature;
        match probe() {
            Ok(true) => {}
            Ok(false) => {
                return Err(FeatureError::Missing {
                    feature,
                    release: release.to_owned(),
                });
            }
            Err(source) => return Err(FeatureError::Unknown { feature, source }),
        }
    }
    Ok(())
}

/// A kernel that doesn't know a flag or a command says `EINVAL`.
fn supported<T>(result: io::Result<T>) -> io::Result<bool> {
    match result {
        Ok(_) => Ok(true),
        Err(error) if error.raw_os_error() == Some(libc::EINVAL) => Ok(false),
        Err(error) => Err(error),
    }
}

fn mapped_arrays() -> io::Result<bool> {
    supported(sys::create_map(sys::ARRAY, 8, sys::MMAPABLE))
}

fn batched_reads() -> io::Result<bool> {
    let map = sys::create_map(sys::HASH, 8, 0)?;
    let (mut keys, mut values) = ([0_u32; 1], [0_u64; 1]);
    supported(sys::lookup_batch(
        map.as_fd(),
        &mut None::<u32>,
        &mut keys,
        &mut values,
    ))
}

fn batched_tries() -> io::Result<bool> {
    let map = sys::create_trie()?;
    supported(sys::update_batch(map.as_fd(), &[[0_u32; 2]], &[0_u32]))
}

fn older_than_floor(release: &str) -> bool {
    let mut numbers = release
        .split(|c: char| !c.is_ascii_digit())
        .map_while(|number| number.parse::<u32>().ok());
    match (numbers.next(), numbers.next()) {
        (Some(major), Some(minor)) => (major, minor) < FLOOR,
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_missing_is_named_with_the_version_that_has_it() {
        let mut features = FEATURES;
        for (_, probe) in &mut features {
            *probe = || Ok(true);
        }
        try_all(&features, "5.15.0").unwrap();
        features[3].1 = || Ok(false);
        features[4].1 = || Err(io::Error::from_raw_os_error(libc::EPERM));
        assert_eq!(
            try_all(&features, "5.4.0").unwrap_err().to_string(),
            "the kernel (5.4.0) has no bpf_jiffies64 in XDP programs: flow table entries carry a \
             time; Linux 5.6, 5576b991e9c1 has it, and weir is meant for 5.15 and newer"
        );
        features[3].1 = || Ok(true);
        let error = try_all(&features, "5.4.0").unwrap_err().to_string();
        assert!(
            error.contains("batched map reads; weir needs root"),
            "{error}"
        );
    }

    #[test]
    fn an_unknown_flag_or_command_is_a_missing_feature_and_anything_else_an_error() {
        let fails = |errno| Err::<(), _>(io::Error::from_raw_os_error(errno));
        assert!(supported(Ok(())).unwrap());
        assert!(!supported(fails(libc::EINVAL)).unwrap());
        supported(fails(libc::EPERM)).unwrap_err();
    }

    #[test]
    fn an_old_kernel_is_known_by_its_release() {
        for old in ["5.14.21-generic", "4.19.0", "5.4.0-42"] {
            assert!(older_than_floor(old));
        }
        for new in ["5.15.0", "6.18.1+", "10.0", "unknown"] {
            assert!(!older_than_floor(new));
        }
    }
}
