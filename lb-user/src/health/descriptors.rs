use nix::sys::resource::{Resource, getrlimit, setrlimit};

/// What everything but probes needs: maps, netlink, clients of the API.
const OTHERS: u64 = 256;
/// More probes at the same time than this are of no use: it is 10,000 backends that are all down,
/// with the default interval and time-out, and some more.
const MOST: u64 = 8192;
/// What probes get where descriptors are as scarce as that.
const LEAST: u64 = 64;

/// Raises the number of descriptors that this process may have to what its environment allows.
/// Returns how many of them probes may take.
pub(super) fn raise() -> usize {
    let Ok((soft, hard)) = getrlimit(Resource::RLIMIT_NOFILE) else {
        return LEAST as usize;
    };
    let raised = soft < hard && setrlimit(Resource::RLIMIT_NOFILE, hard, hard).is_ok();
    for_probes(if raised { hard } else { soft })
}

fn for_probes(limit: u64) -> usize {
    limit.saturating_sub(OTHERS).clamp(LEAST, MOST) as usize
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn probes_leave_something_to_the_others() {
        assert_eq!(for_probes(1024), 768);
        assert_eq!(for_probes(u64::MAX), 8192);
        assert_eq!(for_probes(20), 64);
    }

    #[test]
    fn the_limit_is_raised_to_what_is_allowed() {
        raise();
        let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
        assert_eq!(soft, hard);
    }
}
