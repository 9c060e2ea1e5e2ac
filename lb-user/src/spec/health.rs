use std::time::Duration;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::NumberOrText;
use super::check::Checker;
use super::duration::show_duration;
use crate::model::{HealthCheck, Probe, ServicePort};

const DEFAULT_STATUS: (u16, u16) = (200, 299);

/// How the backends of a service are probed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct HealthSpec {
    /// `tcp` (connects), `http` (GET), `udp` (sends a datagram) or `icmp` (echo).
    pub r#type: String,
    /// The port; default: the service's. Where a backend has a port of its own, that one stands
    /// for the service's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub port: Option<i64>,
    /// `http`: the path; default `/`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path: Option<String>,
    /// `http`: the Host header; default: the backend's address.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host: Option<String>,
    /// `http`: accepted status codes, as `200` or `"200-399"`; default `"200-299"`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub status: Option<NumberOrText>,
    /// `http`: a text that the first 64 KiB of the body must contain.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub body: Option<String>,
    /// `udp`: what to send, as text or as `hex:00ff…`; default: an empty datagram.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub send: Option<String>,
    /// `udp`: what the answer must begin with; default: any answer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expect: Option<String>,
    /// From one probe to the next, 100ms to 1h; default `1s`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub interval: Option<String>,
    /// For one probe, 10ms to the interval; default `500ms`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeout: Option<String>,
    /// Successes in a row until a backend is up again, 1 to 100; default 2.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rise: Option<i64>,
    /// Failures in a row until a backend is suspect, 1 to 100; default 3.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fall: Option<i64>,
    /// How long it is suspect before its flows are given up, 0s to 24h; default `30s`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dead_after: Option<String>,
}

impl HealthSpec {
    pub(super) fn check(&self, check: &mut Checker, service: ServicePort) -> Option<HealthCheck> {
        check.within("health", |check| {
            let probe = self.probe(check, service);
            let second = Duration::from_secs(1);
            let interval = check.duration(
                "interval",
                self.interval.as_deref(),
                second,
                Duration::from_millis(100)..=3600 * second,
            );
            let longest = interval.unwrap_or(second);
            let timeout = check.duration(
                "timeout",
                self.timeout.as_deref(),
                Duration::from_millis(500).min(longest),
                Duration::from_millis(10)..=longest,
            );
            let rise = check.number("rise", self.rise.unwrap_or(2), 1_u32..=100);
            let fall = check.number("fall", self.fall.unwrap_or(3), 1_u32..=100);
            let dead_after = check.duration(
                "dead_after",
                self.dead_after.as_deref(),
                30 * second,
                Duration::ZERO..=24 * 3600 * second,
            );
            Some(HealthCheck {
                probe: probe?,
                interval: interval?,
                timeout: timeout?,
                rise: rise?,
                fall: fall?,
                dead_after: dead_after?,
            })
        })
    }

    fn probe(&self, check: &mut Checker, service: ServicePort) -> Option<Probe> {
        #[derive(Clone, Copy)]
        enum Kind {
            Tcp,
            Http,
            Udp,
            Icmp,
        }
        let words = [
            ("tcp", Kind::Tcp),
            ("http", Kind::Http),
            ("udp", Kind::Udp),
            ("icmp", Kind::Icmp),
        ];
        let kind = check.word("type", &self.r#type, &words)?;
        self.check_fields(check);
        let port = match (kind, self.port, service) {
            (Kind::Icmp, _, _) => None,
            (_, Some(port), _) => Some(check.port("port", port)?),
            (_, None, ServicePort::Exact(port)) => Some(port),
            (_, None, ServicePort::Any) => {
                check.error(
                    "port",
                    "is missing: a service on any port doesn't say which to probe",
                );
                return None;
            }
        };
        match (kind, port) {
            (Kind::Icmp, _) | (_, None) => Some(Probe::Icmp),
            (Kind::Tcp, Some(port)) => Some(Probe::Tcp { port }),
            (Kind::Http, Some(port)) => {
                let path = self.path.clone().unwrap_or_else(|| "/".to_owned());
                if !path.starts_with('/')
                    || path.contains(|c: char| c.is_whitespace() || c.is_control())
                {
                    let allowed = "allowed is a path that begins with '/', without blanks";
                    check.error("path", format!("\"{path}\" is not a path: {allowed}"));
                }
                if let Some(host) = self.host.as_deref()
                    && (host.is_empty() || !host.chars().all(|c| c.is_ascii_graphic()))
                {
                    check.error("host", format!("\"{host}\" is not a host name"));
                }
                Some(Probe::Http {
                    port,
                    path,
                    host: self.host.clone(),
                    status: status(check, self.status.as_ref())?,
                    body: self.body.clone(),
                })
            }
            (Kind::Udp, Some(port)) => Some(Probe::Udp {
                port,
                send: payload(check, "send", self.send.as_deref().unwrap_or(""))?,
                expect: match self.expect.as_deref() {
                    Some(text) => Some(payload(check, "expect", text)?),
                    None => None,
                },
            }),
        }
    }

    /// Refuses fields that another type of probe has: they would be ignored in silence.
    fn check_fields(&self, check: &mut Checker) {
        let http = [
            ("path", self.path.is_some()),
            ("host", self.host.is_some()),
            ("status", self.status.is_some()),
            ("body", self.body.is_some()),
        ];
        let udp = [
            ("send", self.send.is_some()),
            ("expect", self.expect.is_some()),
        ];
        let port = [("port", self.port.is_some() && self.r#type == "icmp")];
        let strange = http
            .iter()
            .filter(|_| self.r#type != "http")
            .chain(udp.iter().filter(|_| self.r#type != "udp"))
            .chain(&port);
        for (field, _) in strange.filter(|(_, given)| *given) {
            check.error(
                field,
                format!("is not allowed with type \"{}\"", self.r#type),
            );
        }
    }
}

fn status(check: &mut Checker, status: Option<&NumberOrText>) -> Option<(u16, u16)> {
    let code = |text: &str| {
        text.parse::<u16>()
            .ok()
            .filter(|code| (100..=599).contains(code))
    };
    let range = match status {
        None => Some(DEFAULT_STATUS),
        Some(NumberOrText::Number(number)) => code(&number.to_string()).map(|code| (code, code)),
        Some(NumberOrText::Text(text)) => {
            let (low, high) = text.split_once('-').unwrap_or((text, text));
            code(low).zip(code(high)).filter(|(low, high)| low <= high)
        }
    };
    if let (None, Some(status)) = (range, status) {
        let allowed = "allowed is a code or a range of codes from 100 to 599, as in \"200-399\"";
        check.error("status", format!("{status} is not a status: {allowed}"));
    }
    range
}

/// Reads `hex:00ff` as bytes, anything else as text. At most what fits a datagram everywhere.
fn payload(check: &mut Checker, field: &str, text: &str) -> Option<Vec<u8>> {
    let bytes = match text.strip_prefix("hex:") {
        None => Some(text.as_bytes().to_vec()),
        Some(digits) if digits.len().is_multiple_of(2) && digits.is_ascii() => (0..digits.len())
            .step_by(2)
            .map(|at| u8::from_str_radix(digits.get(at..at + 2)?, 16).ok())
            .collect(),
        Some(_) => None,
    };
    let bytes = bytes.filter(|bytes| bytes.len() <= 1200);
    if bytes.is_none() {
        let allowed = "allowed is a text or hex: and pairs of digits, at most 1200 bytes";
        check.error(field, format!("\"{text}\" is not a payload: {allowed}"));
    }
    bytes
}

fn show_payload(bytes: &[u8]) -> String {
    match std::str::from_utf8(bytes) {
        Ok(text) if !text.starts_with("hex:") => text.to_owned(),
        _ => bytes
            .iter()
            .fold("hex:".to_owned(), |text, byte| format!("{text}{byte:02x}")),
    }
}

impl From<&HealthCheck> for HealthSpec {
    fn from(check: &HealthCheck) -> Self {
        let mut spec = Self {
            r#type: String::new(),
            port: None,
            path: None,
            host: None,
            status: None,
            body: None,
            send: None,
            expect: None,
            interval: Some(show_duration(check.interval)),
            timeout: Some(show_duration(check.timeout)),
            rise: Some(check.rise.into()),
            fall: Some(check.fall.into()),
            dead_after: Some(show_duration(check.dead_after)),
        };
        match &check.probe {
            Probe::Tcp { port } => {
                spec.r#type = "tcp".to_owned();
                spec.port = Some(port.get().into());
            }
            Probe::Http {
                port,
                path,
                host,
                status: (low, high),
                body,
            } => {
                spec.r#type = "http".to_owned();
                spec.port = Some(port.get().into());
                spec.path = Some(path.clone());
                spec.host.clone_from(host);
                spec.status = Some(NumberOrText::Text(format!("{low}-{high}")));
                spec.body.clone_from(body);
            }
            Probe::Udp { port, send, expect } => {
                spec.r#type = "udp".to_owned();
                spec.port = Some(port.get().into());
                spec.send = Some(show_payload(send));
                spec.expect = expect.as_deref().map(show_payload);
            }
            Probe::Icmp => spec.r#type = "icmp".to_owned(),
        }
        spec
    }
}
