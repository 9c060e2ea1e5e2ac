use std::num::NonZeroU16;
use std::time::Duration;

use super::ServicePort;

/// What a probe does.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Probe {
    /// Opens a TCP connection, and closes it.
    Tcp {
        /// The port.
        port: NonZeroU16,
    },
    /// Sends `GET path` over HTTP/1.1.
    Http {
        /// The port.
        port: NonZeroU16,
        /// The path, beginning with `/`.
        path: String,
        /// The `Host` header; the backend's address if there is none.
        host: Option<String>,
        /// The accepted status codes, both ends included; default 200 to 299.
        status: (u16, u16),
        /// A text that the first 64 KiB of the body must contain.
        body: Option<String>,
    },
    /// Sends a datagram. Any answer is good, or the expected one if there is one.
    Udp {
        /// The port.
        port: NonZeroU16,
        /// The payload to send.
        send: Vec<u8>,
        /// What the answer must begin with.
        expect: Option<Vec<u8>>,
    },
    /// Sends an ICMP or ICMPv6 echo request.
    Icmp,
}

/// How the backends of a service are probed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HealthCheck {
    /// What a probe does.
    pub probe: Probe,
    /// Time from one probe's start to the next: 100 ms ..= 1 h; default 1 s.
    pub interval: Duration,
    /// How long a probe may take: 10 ms ..= interval; default 500 ms.
    pub timeout: Duration,
    /// Successes in a row until a suspect or dead backend is up: 1 ..= 100; default 2.
    pub rise: u32,
    /// Failures in a row until an up backend is suspect: 1 ..= 100; default 3.
    pub fall: u32,
    /// How long a backend is suspect before it is given up as dead and its flows with it:
    /// 0 s ..= 24 h; default 30 s.
    pub dead_after: Duration,
}

impl HealthCheck {
    /// Returns the check for a backend of a service on port `service`: where that port would be
    /// probed, a backend that listens on a port of its own is probed there.
    pub fn of(&self, service: ServicePort, own: Option<NonZeroU16>) -> Self {
        let mut check = self.clone();
        let (Probe::Tcp { port } | Probe::Http { port, .. } | Probe::Udp { port, .. }) =
            &mut check.probe
        else {
            return check;
        };
        if let Some(own) = own.filter(|_| service == ServicePort::Exact(*port)) {
            *port = own;
        }
        check
    }
}

/// What health checks think of a backend.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum HealthState {
    /// Not probed enough yet to say. It takes new flows, as an up backend does.
    Unknown,
    /// Takes new flows.
    Up,
    /// Failed checks: takes no new flows, keeps its old ones.
    Suspect,
    /// Given up: its flows are lost.
    Dead,
}

impl HealthState {
    /// Returns the state's name, as listings show it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Unknown => "unknown",
            Self::Up => "up",
            Self::Suspect => "suspect",
            Self::Dead => "dead",
        }
    }
}
