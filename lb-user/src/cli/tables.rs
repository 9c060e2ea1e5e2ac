//! Answers as people read them.

use std::collections::BTreeMap;

use comfy_table::{CellAlignment, Table, presets};

use crate::api::{
    Audit, BackendView, Diff, Done, Explained, FragmentsView, IcmpView, ServiceView, Stats, Status,
};

pub(super) fn table(head: &[&str], numbers: &[usize]) -> Table {
    let mut table = Table::new();
    table.load_style(presets::NOTHING);
    table.set_header(head.to_vec());
    for column in numbers {
        if let Some(column) = table.column_mut(*column) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    table
}

pub(super) fn finish(table: &Table) -> String {
    table.trim_fmt()
}

/// What was done.
pub fn done(done: &Done) -> String {
    if done.done.is_empty() {
        return "Nothing changed.".to_owned();
    }
    done.done.join("\n")
}

/// How everything is.
pub fn status(status: &Status) -> String {
    let mut text = format!(
        "weir {}, pid {}, {}\n",
        status.version, status.pid, status.config
    );
    if status.interfaces.is_empty() {
        text += "\nno interface: `weir attach IFACE`";
    }
    for interface in &status.interfaces {
        let attached = if interface.attached {
            ""
        } else {
            "NOT attached: "
        };
        text += &format!(
            "\ninterface {}: {attached}{}",
            interface.name, interface.note
        );
    }
    text += &format!("\n{}\n", icmp(&status.icmp));
    let FragmentsView { unknown, timeout } = &status.fragments;
    text += &format!("fragments: unknown {unknown}, timeout {timeout}\n");
    for view in &status.services {
        text += &format!("\n{}\n", service(view));
    }
    if status.services.is_empty() {
        text += "\nno service: `weir service add`, or write one in the file";
    }
    let mut list = |head: &str, lines: &[String]| {
        if !lines.is_empty() {
            text += &format!("\n{head}\n");
            for line in lines {
                text += &format!("  {line}\n");
            }
        }
    };
    list("changed over the file:", &status.overrides);
    list("changes without effect:", &status.ineffective);
    text.trim_end().to_owned()
}

fn icmp(icmp: &IcmpView) -> String {
    let echo = if icmp.echo {
        format!("echo answered, {} a second and CPU", icmp.echo_rate)
    } else {
        "echo passes to the host".to_owned()
    };
    let rate = icmp.too_big_rate;
    format!("icmp: {echo}; senders of too long packets told, {rate} a second and CPU")
}

/// The services, one a line.
pub fn services(services: &[ServiceView]) -> String {
    let head = [
        "SERVICE",
        "ADDRESS",
        "FORWARD",
        "STATE",
        "BACKENDS",
        "PACKETS",
        "NEW FLOWS",
        "DROPPED",
    ];
    let mut table = table(&head, &[4, 5, 6, 7]);
    for service in services {
        table.add_row([
            service.name.clone(),
            vip(service),
            service.forward.clone(),
            service.state.clone(),
            service.backends.len().to_string(),
            service.packets.to_string(),
            service.new_flows.to_string(),
            service.dropped.to_string(),
        ]);
    }
    finish(&table)
}

fn vip(service: &ServiceView) -> String {
    let address = match service.address.contains(':') {
        true => format!("[{}]", service.address),
        false => service.address.clone(),
    };
    let port = service.port.to_string();
    format!("{address}:{}/{}", port.trim_matches('"'), service.protocol)
}

/// Where a backend is: its address, and its port if it has one of its own.
fn place(backend: &BackendView) -> String {
    match (&backend.address, backend.port) {
        (None, _) => "-".to_owned(),
        (Some(address), None) => address.clone(),
        (Some(address), Some(port)) if address.contains(':') => format!("[{address}]:{port}"),
        (Some(address), Some(port)) => format!("{address}:{port}"),
    }
}

/// A service with its backends.
pub fn service(service: &ServiceView) -> String {
    let mut text = format!(
        "service {}  {}  {}  {}",
        service.name,
        vip(service),
        service.forward,
        service.state
    );
    if service.lookup_rows > 0 {
        text += &format!(
            "  {} of {} rows in transition ({} unsettled)",
            service.lookup_rows, service.rows, service.unsettled_rows
        );
    }
    text + "\n" + &backends(&service.backends)
}

/// Backends, one a line.
pub fn backends(backends: &[BackendView]) -> String {
    let head = [
        "BACKEND",
        "ADDRESS",
        "WEIGHT",
        "SHARE",
        "STATE",
        "PACKETS",
        "BYTES",
        "NEW FLOWS",
        "TRACKED",
        "",
    ];
    let mut table = table(&head, &[2, 3, 5, 6, 7, 8]);
    let rows: u64 = backends.iter().map(|backend| backend.rows).sum();
    for backend in backends {
        table.add_row([
            backend.name.clone(),
            place(backend),
            backend.weight.to_string(),
            share(backend.rows, rows),
            backend.state.clone(),
            backend.packets.to_string(),
            backend.bytes.to_string(),
            backend.new_flows.to_string(),
            backend.tracked_flows.to_string(),
            backend.why.clone().unwrap_or_default(),
        ]);
    }
    finish(&table)
}

fn share(part: u64, whole: u64) -> String {
    if whole == 0 {
        return "-".to_owned();
    }
    format!("{:.1} %", 100.0 * part as f64 / whole as f64)
}

/// Rates since an earlier reading.
pub struct Since<'a> {
    /// The earlier reading.
    pub stats: &'a Stats,
    /// How long ago, in seconds.
    pub seconds: f64,
}

/// Counters; with an earlier reading, rates as well.
pub fn stats(stats: &Stats, since: Option<&Since<'_>>) -> String {
    let head = [
        "SERVICE",
        "BACKEND",
        "STATE",
        "PACKETS",
        "BYTES",
        "NEW FLOWS",
        "PACKETS/S",
        "MBIT/S",
        "FLOWS/S",
        "SHARE",
    ];
    let columns = if since.is_some() { head.len() } else { 6 };
    let mut table = table(head.get(..columns).unwrap_or(&head), &[3, 4, 5, 6, 7, 8, 9]);
    let before: BTreeMap<(&str, &str), &BackendView> = since
        .into_iter()
        .flat_map(|since| &since.stats.services)
        .flat_map(|service| {
            let name = service.name.as_str();
            service
                .backends
                .iter()
                .map(move |backend| ((name, backend.name.as_str()), backend))
        })
        .collect();
    for service in &stats.services {
        let delta = |backend: &BackendView| {
            let before = before.get(&(service.name.as_str(), backend.name.as_str()));
            let part = |now: u64, then: Option<u64>| now.saturating_sub(then.unwrap_or(now));
            (
                part(backend.packets, before.map(|b| b.packets)),
                part(backend.bytes, before.map(|b| b.bytes)),
                part(backend.new_flows, before.map(|b| b.new_flows)),
            )
        };
        let total: u64 = service
            .backends
            .iter()
            .map(|backend| delta(backend).0)
            .sum();
        for backend in &service.backends {
            let mut row = vec![
                service.name.clone(),
                backend.name.clone(),
                backend.state.clone(),
                backend.packets.to_string(),
                backend.bytes.to_string(),
                backend.new_flows.to_string(),
            ];
            if let Some(since) = since {
                let (packets, bytes, flows) = delta(backend);
                row.extend([
                    format!("{:.0}", packets as f64 / since.seconds),
                    format!("{:.2}", bytes as f64 * 8e-6 / since.seconds),
                    format!("{:.0}", flows as f64 / since.seconds),
                    share(packets, total),
                ]);
            }
            table.add_row(row);
        }
    }
    let mut text = finish(&table);
    for service in &stats.services {
        if service.dropped + service.refused > 0 {
            text += &format!(
                "\n{}: {} packets dropped, {} flow table entries refused",
                service.name, service.dropped, service.refused
            );
        }
    }
    let reasons = stats.reasons.iter().filter(|(_, count)| **count > 0);
    let reasons: Vec<String> = reasons
        .map(|(name, count)| format!("{name} {count}"))
        .collect();
    if !reasons.is_empty() {
        text += &format!("\nnot sent: {}", reasons.join(", "));
    }
    text
}

/// What a file would change.
pub fn diff(diff: &Diff) -> String {
    if diff.changes.is_empty() {
        return "Nothing would change.".to_owned();
    }
    let mut text = diff.changes.join("\n");
    for moves in &diff.moves {
        if moves.moved_rows > 0 {
            text += &format!(
                "\nservice \"{}\": {} of {} rows would move, {} of its new flows; established flows stay",
                moves.service,
                moves.moved_rows,
                moves.rows,
                share(moves.moved_rows, moves.rows)
            );
        }
    }
    text
}

/// What the program does with a packet.
pub fn explained(explained: &Explained) -> String {
    let to = match &explained.backend {
        Some(backend) => format!("{} to {backend}", explained.verdict),
        None => explained.verdict.clone(),
    };
    let steps: Vec<String> = explained
        .steps
        .iter()
        .map(|step| format!("  {step}"))
        .collect();
    format!("{to}\n{}", steps.join("\n"))
}

/// What the maps hold against what they should.
pub fn audit(audit: &Audit) -> String {
    if audit.differences.is_empty() {
        return format!("{} map entries are as they should be.", audit.entries);
    }
    format!(
        "{}\n{} of {} map entries differ",
        audit.differences.join("\n"),
        audit.differences.len(),
        audit.entries
    )
}
