use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::ops::Range;
use std::path::PathBuf;
use std::time::Duration;

use serde::Deserialize;
use toml::Spanned;

use super::fit::misfits;
use super::{Config, Paths, Problem};
use crate::model::{Desired, EncapSource, Fragments, Icmp, Limits};
use crate::spec::{
    Checker, GuardSpec, InterfaceSpec, ServiceSpec, SpecError, clashes, read_list, show_duration,
};

/// The file as it is written.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    #[serde(default)]
    paths: PathsTable,
    limits: Option<Spanned<LimitsTable>>,
    encap: Option<Spanned<EncapTable>>,
    icmp: Option<Spanned<IcmpTable>>,
    fragments: Option<Spanned<FragmentsTable>>,
    guard: Option<Spanned<GuardSpec>>,
    #[serde(default)]
    interface: Vec<Spanned<InterfaceSpec>>,
    #[serde(default)]
    service: Vec<Spanned<ServiceSpec>>,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct PathsTable {
    state: Option<PathBuf>,
    socket: Option<PathBuf>,
    pins: Option<PathBuf>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct LimitsTable {
    services: Option<i64>,
    backends: Option<i64>,
    rows: Option<i64>,
    half_open_flows: Option<i64>,
    confirmed_flows: Option<i64>,
    kept_flows: Option<i64>,
    fragments: Option<i64>,
    guard_prefixes: Option<i64>,
    guard_sources: Option<i64>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct EncapTable {
    source_v4: Option<String>,
    source_v6: Option<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct IcmpTable {
    echo: Option<bool>,
    echo_rate: Option<i64>,
    too_big_rate: Option<i64>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct FragmentsTable {
    unknown: Option<String>,
    timeout: Option<String>,
}

/// Collects problems by the place in the text.
struct Report<'a> {
    text: &'a str,
    file: &'a str,
    problems: Vec<Problem>,
}

impl Report<'_> {
    fn add(&mut self, span: Range<usize>, message: String) {
        let before = self.text.get(..span.start).unwrap_or(self.text);
        self.problems.push(Problem {
            file: self.file.to_owned(),
            line: before.matches('\n').count() + 1,
            message,
        });
    }

    fn take<T>(&mut self, span: Range<usize>, result: Result<T, Vec<SpecError>>) -> Option<T> {
        match result {
            Ok(value) => Some(value),
            Err(errors) => {
                for error in errors {
                    self.add(span.clone(), error.to_string());
                }
                None
            }
        }
    }
}

pub(super) fn parse(text: &str, file: &str) -> Result<Config, Vec<Problem>> {
    let mut report = Report {
        text,
        file,
        problems: Vec::new(),
    };
    let parsed: File = match toml::from_str(text) {
        Ok(parsed) => parsed,
        Err(error) => {
            let span = error.span().unwrap_or(text.len()..text.len());
            report.add(span, explain(error.message()));
            return Err(report.problems);
        }
    };
    let mut desired = Desired::default();
    if let Some(table) = parsed.limits {
        let result = limits(table.get_ref());
        desired.limits = report.take(table.span(), result).unwrap_or_default();
    }
    if let Some(table) = parsed.encap {
        let result = encap(table.get_ref());
        desired.encap_source = report.take(table.span(), result).unwrap_or_default();
    }
    if let Some(table) = parsed.icmp {
        let result = icmp(table.get_ref());
        desired.icmp = report.take(table.span(), result).unwrap_or_default();
    }
    if let Some(table) = parsed.fragments {
        let result = fragments(table.get_ref());
        desired.fragments = report.take(table.span(), result).unwrap_or_default();
    }
    if let Some(spec) = parsed.guard {
        let mut check = Checker::new("guard");
        let guard = spec.get_ref().check(&mut check, None, &read_list);
        spec.get_ref().check_no_rates(&mut check);
        desired.guard = report
            .take(spec.span(), check.finish(Some(guard)))
            .unwrap_or_default();
    }
    for spec in parsed.interface {
        let Some((name, interface)) = report.take(spec.span(), spec.get_ref().to_model()) else {
            continue;
        };
        if desired.interfaces.contains_key(&name) {
            report.add(
                spec.span(),
                format!("interface \"{name}\" is written twice"),
            );
        }
        desired.interfaces.insert(name, interface);
    }
    let mut services = Vec::new();
    for spec in parsed.service {
        let service = report.take(spec.span(), spec.get_ref().to_model_with(&read_list));
        services.extend(service.map(|service| (spec.span(), service)));
    }
    // The last of that name is the later one, which is at fault.
    let spans: BTreeMap<_, _> = services
        .iter()
        .map(|(span, service)| (service.name.clone(), span.clone()))
        .collect();
    for (name, error) in clashes(services.iter().map(|(_, service)| service)) {
        let span = spans.get(&name).cloned().unwrap_or_default();
        report.add(span, error.to_string());
    }
    for (span, message) in misfits(&desired.limits, &services) {
        report.add(span, message);
    }
    desired.services = services
        .into_iter()
        .map(|(_, service)| (service.name.clone(), service))
        .collect();
    if !report.problems.is_empty() {
        return Err(report.problems);
    }
    let defaults = Paths::default();
    Ok(Config {
        paths: Paths {
            state: parsed.paths.state.unwrap_or(defaults.state),
            socket: parsed.paths.socket.unwrap_or(defaults.socket),
            pins: parsed.paths.pins.unwrap_or(defaults.pins),
        },
        desired,
    })
}

/// Adds the nearest valid name to the parser's message about an unknown key.
fn explain(message: &str) -> String {
    let message = message.trim_end();
    let mut names = message.split('`').skip(1).step_by(2);
    let nearest = match names.next() {
        Some(unknown) if message.starts_with("unknown field") => names
            .map(|name| (strsim::damerau_levenshtein(unknown, name), name))
            .min()
            .filter(|(distance, name)| *distance <= name.len().div_ceil(2))
            .map(|(_, name)| name),
        _ => None,
    };
    match nearest {
        Some(name) => format!("{message}; did you mean `{name}`?"),
        None => message.to_owned(),
    }
}

fn limits(table: &LimitsTable) -> Result<Limits, Vec<SpecError>> {
    let mut check = Checker::new("limits");
    let default = Limits::default();
    let mut size = |field: &str, value: Option<i64>, default: u32, low: u32, high: u32| {
        check.number(field, value.unwrap_or(default.into()), low..=high)
    };
    // A slot has 24 bits; slot 0 means "none".
    let services = size("services", table.services, default.services, 1, 1 << 20);
    let backends = size(
        "backends",
        table.backends,
        default.backends,
        1,
        (1 << 24) - 2,
    );
    let rows = size("rows", table.rows, default.rows, 256, 1 << 28);
    let flows = 1 << 26;
    let half_open = size(
        "half_open_flows",
        table.half_open_flows,
        default.half_open_flows,
        1,
        flows,
    );
    let confirmed = size(
        "confirmed_flows",
        table.confirmed_flows,
        default.confirmed_flows,
        1,
        flows,
    );
    let kept = size("kept_flows", table.kept_flows, default.kept_flows, 1, flows);
    // The kernel hands out an LRU map's entries to CPUs by the hundred.
    let fragments = size(
        "fragments",
        table.fragments,
        default.fragments,
        256,
        1 << 22,
    );
    let guard_prefixes = size(
        "guard_prefixes",
        table.guard_prefixes,
        default.guard_prefixes,
        1,
        flows,
    );
    let guard_sources = size(
        "guard_sources",
        table.guard_sources,
        default.guard_sources,
        256,
        1 << 22,
    );
    if let Some(places) = guard_sources.filter(|places| !places.is_power_of_two()) {
        check.error(
            "guard_sources",
            format!("{places} is not a power of two: allowed is 256, 512, 1024 and so on"),
        );
    }
    if let Some(rows) = rows.filter(|rows| !rows.is_power_of_two()) {
        check.error(
            "rows",
            format!("{rows} is not a power of two: allowed is 256, 512, 1024 and so on"),
        );
    }
    let limits = (|| {
        Some(Limits {
            services: services?,
            backends: backends?,
            rows: rows?,
            half_open_flows: half_open?,
            confirmed_flows: confirmed?,
            kept_flows: kept?,
            fragments: fragments?,
            guard_prefixes: guard_prefixes?,
            guard_sources: guard_sources?,
        })
    })();
    check.finish(limits)
}

fn encap(table: &EncapTable) -> Result<EncapSource, Vec<SpecError>> {
    let mut check = Checker::new("encap");
    let v4 = table.source_v4.as_deref().map(|text| {
        let prefix = prefix(&mut check, "source_v4", text, 8, 32);
        prefix.and_then(|(address, len)| match address {
            IpAddr::V4(address) => Some((address, len)),
            IpAddr::V6(_) => wrong_family(&mut check, "source_v4", text, "IPv4"),
        })
    });
    let v6 = table.source_v6.as_deref().map(|text| {
        let prefix = prefix(&mut check, "source_v6", text, 32, 128);
        prefix.and_then(|(address, len)| match address {
            IpAddr::V6(address) => Some((address, len)),
            IpAddr::V4(_) => wrong_family(&mut check, "source_v6", text, "IPv6"),
        })
    });
    let source = EncapSource {
        v4: v4.flatten(),
        v6: v6.flatten(),
    };
    check.finish(Some(source))
}

fn icmp(table: &IcmpTable) -> Result<Icmp, Vec<SpecError>> {
    let mut check = Checker::new("icmp");
    let default = Icmp::default();
    let mut rate = |field: &str, value: Option<i64>, default: u32, low: u32| {
        check.number(field, value.unwrap_or(default.into()), low..=1_000_000)
    };
    let echo_rate = rate("echo_rate", table.echo_rate, default.echo_rate, 1);
    let too_big_rate = rate("too_big_rate", table.too_big_rate, default.too_big_rate, 0);
    let icmp = echo_rate
        .zip(too_big_rate)
        .map(|(echo_rate, too_big_rate)| Icmp {
            echo: table.echo.unwrap_or(default.echo),
            echo_rate,
            too_big_rate,
        });
    check.finish(icmp)
}

fn fragments(table: &FragmentsTable) -> Result<Fragments, Vec<SpecError>> {
    let mut check = Checker::new("fragments");
    let default = Fragments::default();
    let drop_unknown = match &table.unknown {
        Some(word) => check.word("unknown", word, &[("pass", false), ("drop", true)]),
        None => Some(default.drop_unknown),
    };
    let (second, minute) = (Duration::from_secs(1), Duration::from_secs(60));
    let text = table.timeout.as_deref();
    let mut timeout = check.duration("timeout", text, default.timeout, second..=minute);
    if let Some(part) = timeout.filter(|timeout| timeout.subsec_nanos() != 0) {
        let part = show_duration(part);
        check.error(
            "timeout",
            format!("\"{part}\" is no whole number of seconds"),
        );
        timeout = None;
    }
    let fragments = drop_unknown
        .zip(timeout)
        .map(|(drop_unknown, timeout)| Fragments {
            drop_unknown,
            timeout,
        });
    check.finish(fragments)
}

fn wrong_family<T>(check: &mut Checker, field: &str, text: &str, family: &str) -> Option<T> {
    check.error(
        field,
        format!("\"{text}\" is of the other family: allowed is {family}"),
    );
    None
}

/// Reads an address with or without a prefix length.
fn prefix(check: &mut Checker, field: &str, text: &str, low: u8, high: u8) -> Option<(IpAddr, u8)> {
    let (address, len) = match text.split_once('/') {
        Some((address, len)) => (address, Some(len)),
        None => (text, None),
    };
    let address = check.address(field, address)?;
    let unicast = match address {
        IpAddr::V4(address) => unicast_v4(address),
        IpAddr::V6(address) => unicast_v6(address),
    };
    if !unicast {
        check.error(field, format!("{address} is not a unicast address"));
    }
    let full = if address.is_ipv4() { 32 } else { 128 };
    let len = match len {
        None => full,
        Some(len) => match len.parse::<u8>() {
            Ok(len) if (low..=high).contains(&len) => len,
            _ => {
                let allowed = format!("allowed is {low} to {high}");
                check.error(
                    field,
                    format!("\"{text}\" has the prefix length {len}: {allowed}"),
                );
                return None;
            }
        },
    };
    Some((address, len))
}

fn unicast_v4(address: Ipv4Addr) -> bool {
    !(address.is_unspecified() || address.is_multicast() || address.is_broadcast())
}

fn unicast_v6(address: Ipv6Addr) -> bool {
    !(address.is_unspecified() || address.is_multicast())
}
