use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;
use tracing::warn;

use super::probe::ProbeError;

/// Between two lines about it.
const PAUSE: Duration = Duration::from_secs(60);

/// Probes that could not be made for want of something on this host. They say nothing of the
/// backends; that they failed is logged, once for all of them.
#[derive(Debug, Default)]
pub(super) struct Shortage(Mutex<Option<Instant>>);

impl Shortage {
    /// Notes one.
    pub fn note(&self, error: &ProbeError) {
        let now = Instant::now();
        let mut last = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if last.is_none_or(|last| last + PAUSE <= now) {
            *last = Some(now);
            warn!(
                %error,
                "health checks can't be made, for want of something on this host: backends keep their state; raise LimitNOFILE, memory or net.ipv4.ip_local_port_range"
            );
        }
    }
}
