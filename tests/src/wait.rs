//! Waiting for something to become true.

use std::time::{Duration, Instant};

/// How long anything may take. Far more than it does: machines differ.
const LIMIT: Duration = Duration::from_secs(30);

/// Waits until `check` returns something.
#[track_caller]
pub fn until<T>(what: &str, mut check: impl FnMut() -> Option<T>) -> T {
    let end = Instant::now() + LIMIT;
    loop {
        if let Some(value) = check() {
            return value;
        }
        assert!(Instant::now() < end, "waited {LIMIT:?} in vain for {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}
