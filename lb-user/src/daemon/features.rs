//! What the kernel must have.

use tracing::warn;

/// The oldest kernel that has everything: `bpf_xdp_get_buff_len` aside, which only the benchmark
/// uses, that is memory-mapped arrays (5.5, fc9702273e2e), `bpf_jiffies64` and batched map reads
/// (5.6, 5576b991e9c1 and 057996380a42), BPF links for XDP (5.9, aa8d3a716b59), and a context for
/// test runs of XDP programs (5.14, 47316f4a3053). 5.15 is the first long-term one.
const FLOOR: (u32, u32) = (5, 15);

/// The kernel is too old.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FeatureError {
    /// Too old.
    #[error(
        "the kernel is {release}: weir needs Linux 5.15 or newer (it has BPF links for XDP, memory-mapped and batched maps, and test runs with a context)"
    )]
    TooOld {
        /// Its release.
        release: String,
    },
}

/// Checks the running kernel.
pub fn probe() -> Result<(), FeatureError> {
    let release = nix::sys::utsname::uname()
        .map(|name| name.release().to_string_lossy().into_owned())
        .unwrap_or_default();
    check(&release)?;
    if std::fs::read_to_string("/proc/sys/net/core/bpf_jit_enable").is_ok_and(|v| v.trim() == "0") {
        warn!(
            "the kernel interprets BPF programs, which is slow: sysctl net.core.bpf_jit_enable=1"
        );
    }
    Ok(())
}

fn check(release: &str) -> Result<(), FeatureError> {
    let mut numbers = release
        .split(|c: char| !c.is_ascii_digit())
        .map_while(|number| number.parse::<u32>().ok());
    match (numbers.next(), numbers.next()) {
        (Some(major), Some(minor)) if (major, minor) < FLOOR => Err(FeatureError::TooOld {
            release: release.to_owned(),
        }),
        // A release that can't be read is given the chance: what is missing is said by the kernel.
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_old_kernel_is_named() {
        for old in ["5.14.21-generic", "4.19.0", "5.4.0-42"] {
            assert!(check(old).unwrap_err().to_string().contains(old));
        }
        for new in ["5.15.0", "6.18.1+", "10.0", "unknown"] {
            check(new).unwrap();
        }
    }
}
