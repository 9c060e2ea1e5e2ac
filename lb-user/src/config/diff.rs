use std::fmt;

use crate::model::{
    Backend, Desired, Fragments, Guard, Icmp, ListKind, Prefixes, RateLimit, Service,
};
use crate::spec::{BackendSpec, HealthSpec, show_duration};

/// One change from one declaration to another, in one line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Difference(String);

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

/// Returns what changes from `old` to `new`.
pub fn diff(old: &Desired, new: &Desired) -> Vec<Difference> {
    let mut lines = Vec::new();
    if old.limits != new.limits {
        lines.push(
            "limits change: they are fixed while the maps live, see `weir detach --all`".to_owned(),
        );
    }
    if old.encap_source != new.encap_source {
        lines.push("encap: the source of outer headers changes".to_owned());
    }
    icmp(&old.icmp, &new.icmp, &mut lines);
    fragments(&old.fragments, &new.fragments, &mut lines);
    guards("guard", &old.guard, &new.guard, &mut lines);
    for name in old.interfaces.keys() {
        if !new.interfaces.contains_key(name) {
            lines.push(format!("interface \"{name}\" removed"));
        }
    }
    for (name, interface) in &new.interfaces {
        match old.interfaces.get(name) {
            None => lines.push(format!(
                "interface \"{name}\" added, mode {}",
                interface.mode.as_str()
            )),
            Some(before) if before != interface => lines.push(format!(
                "interface \"{name}\": mode {} -> {}",
                before.mode.as_str(),
                interface.mode.as_str()
            )),
            Some(_) => {}
        }
    }
    for (name, service) in &old.services {
        if !new.services.contains_key(name) {
            lines.push(format!("service \"{name}\" {} removed", service.vip));
        }
    }
    for (name, service) in &new.services {
        match old.services.get(name) {
            None => lines.push(format!(
                "service \"{name}\" {} added, {} backends",
                service.vip,
                service.backends.len()
            )),
            Some(before) if before == service => {}
            Some(before) => services(before, service, &mut lines),
        }
    }
    lines.into_iter().map(Difference).collect()
}

fn icmp(old: &Icmp, new: &Icmp, lines: &mut Vec<String>) {
    let mut field = |field: &str, old: String, new: String| {
        if old != new {
            lines.push(format!("icmp, {field}: {old} -> {new}"));
        }
    };
    field("echo", old.echo.to_string(), new.echo.to_string());
    let mut rate = |name: &str, old: u32, new: u32| field(name, old.to_string(), new.to_string());
    rate("echo_rate", old.echo_rate, new.echo_rate);
    rate("too_big_rate", old.too_big_rate, new.too_big_rate);
}

fn fragments(old: &Fragments, new: &Fragments, lines: &mut Vec<String>) {
    let mut field = |field: &str, old: &str, new: &str| {
        if old != new {
            lines.push(format!("fragments, {field}: {old} -> {new}"));
        }
    };
    let unknown = |fragments: &Fragments| {
        if fragments.drop_unknown {
            "drop"
        } else {
            "pass"
        }
    };
    field("unknown", unknown(old), unknown(new));
    let timeouts = (show_duration(old.timeout), show_duration(new.timeout));
    field("timeout", &timeouts.0, &timeouts.1);
}

fn services(old: &Service, new: &Service, lines: &mut Vec<String>) {
    let path = format!("service \"{}\"", new.name);
    let mut field = |field: &str, old: String, new: String| {
        if old != new {
            lines.push(format!("{path}, {field}: {old} -> {new}"));
        }
    };
    field("address", old.vip.to_string(), new.vip.to_string());
    field("forward", old.forward.to_string(), new.forward.to_string());
    field(
        "idle_timeout",
        show_duration(old.idle_timeout),
        show_duration(new.idle_timeout),
    );
    let health = |service: &Service| {
        let spec = service.health.as_ref().map(HealthSpec::from);
        let health = spec.and_then(|health| serde_json::to_string(&health).ok());
        health.unwrap_or_else(|| "none".to_owned())
    };
    field("health", health(old), health(new));
    guards(&format!("{path}, guard"), &old.guard, &new.guard, lines);
    for ((name, old), (_, new)) in old.rates.all().into_iter().zip(new.rates.all()) {
        if old != new {
            let (old, new) = (show_rate(old), show_rate(new));
            lines.push(format!("{path}, guard, {name}_per_second: {old} -> {new}"));
        }
    }
    for name in old.backends.keys() {
        if !new.backends.contains_key(name) {
            lines.push(format!("{path}, backend \"{name}\" removed"));
        }
    }
    for (name, backend) in &new.backends {
        match old.backends.get(name) {
            None => lines.push(format!(
                "{path}, backend \"{name}\" {} added, weight {}",
                backend.address,
                backend.weight.get()
            )),
            Some(before) => {
                let path = format!("{path}, backend \"{name}\"");
                let spec = BackendSpec::from_model(name, backend, new.forward);
                backends(&path, before, backend, &spec, lines);
            }
        }
    }
}

fn show_rate(limit: Option<RateLimit>) -> String {
    limit.map_or_else(
        || "none".to_owned(),
        |limit| format!("{} (burst {})", limit.per_second, limit.burst),
    )
}

fn guards(path: &str, old: &Guard, new: &Guard, lines: &mut Vec<String>) {
    let show = |list: Option<&Prefixes>| {
        list.map_or_else(
            || "none".to_owned(),
            |list| format!("{} prefixes", list.as_slice().len()),
        )
    };
    for kind in ListKind::ALL {
        let (old, new) = (old.list(kind), new.list(kind));
        if old != new {
            let kind = kind.as_str();
            lines.push(format!("{path}, {kind}: {} -> {}", show(old), show(new)));
        }
    }
}

fn backends(path: &str, old: &Backend, new: &Backend, spec: &BackendSpec, lines: &mut Vec<String>) {
    let mut field = |field: &str, old: String, new: String| {
        if old != new {
            lines.push(format!("{path}, {field}: {old} -> {new}"));
        }
    };
    field("address", old.address.to_string(), spec.address.clone());
    field(
        "weight",
        old.weight.get().to_string(),
        new.weight.get().to_string(),
    );
    field(
        "draining",
        old.draining.to_string(),
        new.draining.to_string(),
    );
    field("forward", old.forward.to_string(), new.forward.to_string());
    let port = |port: Option<std::num::NonZeroU16>| {
        port.map_or_else(|| "the service's".to_owned(), |port| port.to_string())
    };
    field("port", port(old.port), port(new.port));
    let text = |text: &Option<String>| text.clone().unwrap_or_else(|| "by route".to_owned());
    field("interface", text(&old.interface), text(&new.interface));
    let mac = |mac: Option<crate::model::Mac>| {
        mac.map_or_else(|| "by neighbour".to_owned(), |mac| mac.to_string())
    };
    field("mac", mac(old.mac), mac(new.mac));
}
