use std::net::SocketAddr;
use std::num::NonZeroU16;

use etherparse::PacketBuilder;
use lb_common::backend::{BackendSlot, Head, TemplateKind};
use lb_common::flow::Table;
use lb_common::row::Row;
use lb_common::stats::Reason;

use super::Daemon;
use crate::api::{Error, ExplainRequest, Explained};
use crate::dataplane::Dataplane as _;
use crate::model::{L4Protocol, Name, ServicePort, Vip};
use crate::translation;

/// In the order of [`lb_common::row::Choice`].
const CHOICES: [&str; 8] = [
    "to the backend of its entry",
    "to the backend of its half-open entry",
    "a new flow with the tuple of an earlier one that the row's owner has: to the owner",
    "to the row's owner",
    "to the row's owner, after a dead entry of an earlier flow is deleted",
    "a new flow of a moved row: to the owner and into the table of half-open flows; if that is full, to the backend that the row had",
    "an old flow of a moved row: to the backend that the row had, and into the table",
    "to the row's backend",
];

/// Reasons for which the guard drops packets, before their row is looked at.
const GUARD: [Reason; 6] = [
    Reason::DropDenied,
    Reason::DropNotAllowed,
    Reason::DropSourcePackets,
    Reason::DropSourceFlows,
    Reason::DropPackets,
    Reason::DropFlows,
];

impl Daemon {
    /// Runs the loaded program on a crafted packet. It leaves no trace.
    pub(super) fn explain(&mut self, request: &ExplainRequest) -> Result<Explained, Error> {
        let frame = craft(request).map_err(|reason| Error::Invalid(vec![reason]))?;
        let attached = self.interfaces.values().find_map(|a| a.as_ref().ok());
        let ingress = attached.map_or(0, |attached| attached.ifindex);
        let kernel = self.engine.dataplane_mut();
        // Some drivers register no receive queue that a test run could take: then by loopback.
        let explained = kernel
            .explain(&frame, ingress)
            .or_else(|_| kernel.explain(&frame, 0));
        let explained =
            explained.map_err(|error| Error::Internal(format!("running the program: {error}")))?;
        let record = explained.explanation;
        let reason = Reason::ALL.get(record.reason as usize).copied();
        let mut steps = Vec::new();
        let mut service = None;
        let mut backend = None;
        if record.has_service != 0 {
            let found = self.engine.service_in(record.service);
            let name = found.map(|(name, _)| name.to_string());
            let base = found.map_or(0, |(_, service)| service.segment.base);
            let reason = Reason::ALL.get(record.reason as usize);
            let kept_out = reason.is_some_and(|reason| GUARD.contains(reason));
            let row = Row::from_bits(record.row);
            let show = |slot: BackendSlot| self.backend_name(slot);
            steps.push(format!("service {}", name.as_deref().unwrap_or("?")));
            if !kept_out {
                steps.push(format!(
                    "hash {:#018x}: row {}",
                    record.hash,
                    record.row_index.wrapping_sub(base)
                ));
                steps.push(if row.lookup() {
                    format!(
                        "row: new flows to {}, older ones to {}, the flow table is asked",
                        show(row.owner()),
                        show(row.untracked())
                    )
                } else {
                    format!(
                        "row: settled on {}, the flow table is not asked",
                        show(row.owner())
                    )
                });
            }
            match record.table {
                0 => {}
                1 => steps.push("flow table: no entry".to_owned()),
                table => {
                    let table = Table::ALL
                        .get(table as usize - 2)
                        .map_or("?", |t| t.as_str());
                    steps.push(format!("flow table: an entry among the {table} flows"));
                }
            }
            if let Some(choice) = (record.choice as usize).checked_sub(1) {
                steps.push(CHOICES.get(choice).copied().unwrap_or("?").to_owned());
            }
            if let Some(slot) = BackendSlot::new(record.backend) {
                let head = Head::from_bits(record.head);
                let template = self
                    .engine
                    .dataplane()
                    .backend(slot)
                    .ok()
                    .and_then(|found| found.templates.get(usize::from(head.side())).copied());
                let kind = template.map_or_else(
                    || "?".to_owned(),
                    |template| match found.and_then(|(_, s)| translation::at(&s.vip, &template)) {
                        Some(at) => format!("NAT to {at}"),
                        None => show_kind(template.kind()).to_owned(),
                    },
                );
                let interface = interface_name(template.map_or(0, |template| template.ifindex));
                steps.push(format!(
                    "backend {}: {kind}, out of interface {interface}",
                    show(slot)
                ));
                backend = Some(show(slot));
            }
            service = name;
        }
        if let Some(reason) = reason
            && let Some((name, vip)) = self.answered_service(request)
            && let Some(step) = answer_step(reason, &vip)
        {
            steps.push(format!("an answer of service {name}: {step}"));
            service = Some(name.to_string());
        }
        let reason = reason.map_or("?", Reason::as_str);
        steps.push(format!("counted as {reason}"));
        Ok(Explained {
            verdict: match explained.verdict {
                1 => "drop",
                2 => "pass",
                3 => "tx",
                4 => "redirect",
                _ => "aborted",
            }
            .to_owned(),
            reason: reason.to_owned(),
            service,
            backend,
            steps,
            frame: explained
                .frame
                .iter()
                .map(|byte| format!("{byte:02x}"))
                .collect(),
        })
    }

    /// Returns the service whose answers come from the source of a request, and its VIP.
    fn answered_service(&self, request: &ExplainRequest) -> Option<(Name, Vip)> {
        let source: SocketAddr = request.source.parse().ok()?;
        let protocols = [L4Protocol::Tcp, L4Protocol::Udp];
        let at = Vip {
            address: source.ip(),
            port: ServicePort::Exact(NonZeroU16::new(source.port())?),
            protocol: protocols
                .into_iter()
                .find(|p| p.as_str() == request.protocol)?,
        };
        let (name, service) = self.engine.answers(&at)?;
        Some((name.clone(), service.vip))
    }

    fn backend_name(&self, slot: BackendSlot) -> String {
        let name: Option<&Name> = self.engine.backend_in(slot);
        name.map_or_else(|| "nobody".to_owned(), ToString::to_string)
    }
}

/// Says what is done with an answer.
fn answer_step(reason: Reason, vip: &Vip) -> Option<String> {
    match reason {
        Reason::Answer => Some(format!("translated to come from {vip}, and sent")),
        Reason::AnswerByHost => Some(format!(
            "translated to come from {vip}; this host's stack sends it, since XDP can't or doesn't know the next hop yet"
        )),
        Reason::PassFromVm => Some(
            "left as it is: it is for this host, or for nobody that it has a way to, or its size makes the host answer"
                .to_owned(),
        ),
        Reason::PassForwardingOff => {
            Some("left as it is: this host forwards nothing (ip_forward)".to_owned())
        }
        Reason::Sent
        | Reason::Redirected
        | Reason::PassNotIp
        | Reason::PassMalformed
        | Reason::PassProtocol
        | Reason::PassNoService
        | Reason::PassFragment
        | Reason::PassIcmp
        | Reason::DropNoBackend
        | Reason::DropUnreachable
        | Reason::DropNoRoom
        | Reason::IcmpError
        | Reason::Echo
        | Reason::DropEchoRate
        | Reason::TooBig
        | Reason::DropTooBigRate
        | Reason::DropTooLong
        | Reason::Fragment
        | Reason::DropFragment
        | Reason::DropDenied
        | Reason::DropNotAllowed
        | Reason::DropSourcePackets
        | Reason::DropSourceFlows
        | Reason::DropPackets
        | Reason::DropFlows => None,
    }
}

fn interface_name(ifindex: u32) -> String {
    let name = nix::net::if_::if_indextoname(ifindex).ok();
    let name = name.and_then(|name| name.into_string().ok());
    name.unwrap_or_else(|| ifindex.to_string())
}

const fn show_kind(kind: TemplateKind) -> &'static str {
    match kind {
        TemplateKind::Unreachable => "unreachable",
        TemplateKind::L2 => "new Ethernet header",
        TemplateKind::Ipv4 => "in IPv4",
        TemplateKind::Ipv6 => "in IPv6",
        TemplateKind::Ipv4Udp => "GUE in IPv4",
        TemplateKind::Ipv6Udp => "GUE in IPv6",
        TemplateKind::Ipv4Overlay => "overlay in IPv4",
        TemplateKind::Ipv6Overlay => "overlay in IPv6",
        TemplateKind::NatIpv4 | TemplateKind::NatIpv6 => "NAT",
    }
}

/// Builds the frame of a request.
fn craft(request: &ExplainRequest) -> Result<Vec<u8>, String> {
    let address = |field: &str, text: &str| {
        let allowed =
            "allowed is an address and a port, as in 198.19.0.1:40000 or [2001:db8::1]:40000";
        text.parse::<SocketAddr>()
            .map_err(|_| format!("{field}: \"{text}\" is no address and port: {allowed}"))
    };
    let source = address("source", &request.source)?;
    let destination = address("destination", &request.destination)?;
    let protocol = [L4Protocol::Tcp, L4Protocol::Udp]
        .into_iter()
        .find(|protocol| protocol.as_str() == request.protocol)
        .ok_or_else(|| {
            format!(
                "protocol: \"{}\" is not known: allowed is tcp, udp",
                request.protocol
            )
        })?;
    let builder = PacketBuilder::ethernet2([2, 0, 0, 0, 0, 1], [2, 0, 0, 0, 0, 2]);
    let builder = match (source, destination) {
        (SocketAddr::V4(from), SocketAddr::V4(to)) => {
            builder.ipv4(from.ip().octets(), to.ip().octets(), 64)
        }
        (SocketAddr::V6(from), SocketAddr::V6(to)) => {
            builder.ipv6(from.ip().octets(), to.ip().octets(), 64)
        }
        _ => return Err("source and destination are of different families".to_owned()),
    };
    let mut frame = Vec::new();
    let written = match (protocol, request.syn) {
        (L4Protocol::Udp, true) => return Err("syn: UDP has no opening packet".to_owned()),
        (L4Protocol::Udp, false) => builder
            .udp(source.port(), destination.port())
            .write(&mut frame, &[]),
        (L4Protocol::Tcp, true) => builder
            .tcp(source.port(), destination.port(), 1, 65_535)
            .syn()
            .write(&mut frame, &[]),
        (L4Protocol::Tcp, false) => builder
            .tcp(source.port(), destination.port(), 1, 65_535)
            .ack(1)
            .write(&mut frame, &[]),
    };
    written.map_err(|error| error.to_string())?;
    Ok(frame)
}
