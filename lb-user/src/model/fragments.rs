use std::time::Duration;

/// How fragments are handled, for all services alike.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fragments {
    /// Whether later fragments to virtual addresses are dropped if no first one was seen; else they
    /// pass to the host.
    pub drop_unknown: bool,
    /// How long after a first fragment others may follow it: 1 s ..= 60 s (RFC 8200 §4.5).
    pub timeout: Duration,
}

impl Default for Fragments {
    fn default() -> Self {
        Self {
            drop_unknown: false,
            timeout: Duration::from_secs(30),
        }
    }
}
