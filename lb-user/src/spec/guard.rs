use std::path::Path;

use lb_common::bucket::Rate;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::check::Checker;
use crate::model::{Guard, ListKind, Prefix, Prefixes, RateLimit, RateLimits, Service};

/// How the prefixes in a file are got at, or what is wrong with them.
pub type ReadList<'a> = &'a dyn Fn(&Path) -> Result<Vec<Prefix>, Vec<String>>;

/// How many lines of a file are named that are wrong.
const NAMED: usize = 10;

/// Who is let in: to a service, or to all.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct GuardSpec {
    /// Prefixes of sources that are let in; all others are kept out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub allow: Option<Vec<String>>,
    /// More of them: the absolute path of a file with one a line. Only in the configuration file.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub allow_file: Option<String>,
    /// Prefixes of sources that are kept out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub deny: Option<Vec<String>>,
    /// More of them: the absolute path of a file with one a line. Only in the configuration file.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub deny_file: Option<String>,
    /// The most packets of a source, an IPv4 address or an IPv6 /64 in a second on each CPU, 1 to 10,000,000. Only for a service.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source_packets_per_second: Option<i64>,
    /// How many of them may come at once; default as many as in a second.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source_packets_burst: Option<i64>,
    /// The most opening packets (TCP SYN) of a source in a second on each CPU, 1 to 10,000,000. Only for a service.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source_new_flows_per_second: Option<i64>,
    /// How many of them may come at once; default as many as in a second.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source_new_flows_burst: Option<i64>,
    /// The most packets in a second on each CPU, 1 to 10,000,000. Only for a service.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub packets_per_second: Option<i64>,
    /// How many of them may come at once; default as many as in a second.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub packets_burst: Option<i64>,
    /// The most opening packets (TCP SYN) in a second on each CPU, 1 to 10,000,000. Only for a service.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub new_flows_per_second: Option<i64>,
    /// How many of them may come at once; default as many as in a second.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub new_flows_burst: Option<i64>,
    /// The most opening packets on rows in transition that may make a half-open entry in a second on each CPU, 1 to 10,000,000. Only for a service.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub half_open_per_second: Option<i64>,
    /// How many of them may come at once; default as many as in a second.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub half_open_burst: Option<i64>,
}

impl GuardSpec {
    /// Checks it. `v4` says of which family the sources are, if not of both.
    pub fn check(&self, check: &mut Checker, v4: Option<bool>, read: ReadList<'_>) -> Guard {
        let mut guard = Guard::default();
        for kind in ListKind::ALL {
            let (inline, file) = match kind {
                ListKind::Allow => (&self.allow, &self.allow_file),
                ListKind::Deny => (&self.deny, &self.deny_file),
            };
            if inline.is_none() && file.is_none() {
                continue;
            }
            let before = check.errors();
            let mut prefixes: Vec<Prefix> = inline
                .iter()
                .flatten()
                .filter_map(|text| check.parse(kind.as_str(), text))
                .collect();
            if let Some(file) = file {
                match read(Path::new(file)) {
                    Ok(more) => prefixes.extend(more),
                    Err(errors) => {
                        for error in errors {
                            check.error(&format!("{}_file", kind.as_str()), error);
                        }
                    }
                }
            }
            *guard.list_mut(kind) = Some(prefixes.into_iter().collect());
            if check.errors() == before
                && let Some(error) = shut(&guard, v4)
            {
                check.error(kind.as_str(), error);
            }
        }
        guard
    }

    /// Checks the rates of a service.
    pub fn check_rates(&self, check: &mut Checker) -> RateLimits {
        let [
            source_packets,
            source_new_flows,
            packets,
            new_flows,
            half_open,
        ] = self.rates().map(|(name, per_second, burst)| {
            let (rate, at_once) = (format!("{name}_per_second"), format!("{name}_burst"));
            let Some(per_second) = per_second else {
                if let Some(burst) = burst {
                    let message = format!("{burst} is only allowed with {rate}");
                    check.error(&at_once, message);
                }
                return None;
            };
            let allowed = 1..=Rate::MAX;
            Some(RateLimit {
                per_second: check.number(&rate, per_second, allowed.clone())?,
                burst: check.number(&at_once, burst.unwrap_or(per_second), allowed)?,
            })
        });
        RateLimits {
            source_packets,
            source_new_flows,
            packets,
            new_flows,
            half_open,
        }
    }

    /// Refuses rates where there are none.
    pub fn check_no_rates(&self, check: &mut Checker) {
        for (name, per_second, burst) in self.rates() {
            if per_second.or(burst).is_some() {
                check.error(
                    &format!("{name}_per_second"),
                    "is only allowed below a service",
                );
            }
        }
    }

    const fn rates(&self) -> [(&'static str, Option<i64>, Option<i64>); 5] {
        [
            (
                "source_packets",
                self.source_packets_per_second,
                self.source_packets_burst,
            ),
            (
                "source_new_flows",
                self.source_new_flows_per_second,
                self.source_new_flows_burst,
            ),
            ("packets", self.packets_per_second, self.packets_burst),
            ("new_flows", self.new_flows_per_second, self.new_flows_burst),
            ("half_open", self.half_open_per_second, self.half_open_burst),
        ]
    }

    /// Returns what is to be written for a service; nothing if there is nothing to say.
    pub fn of_service(service: &Service) -> Option<Self> {
        let texts = |list: &Prefixes| list.as_slice().iter().map(ToString::to_string).collect();
        let (guard, rates) = (&service.guard, &service.rates);
        let per_second = |limit: Option<RateLimit>| limit.map(|limit| limit.per_second.into());
        let burst = |limit: Option<RateLimit>| limit.map(|limit| limit.burst.into());
        let spec = Self {
            allow: guard.allow.as_ref().map(texts),
            deny: guard.deny.as_ref().map(texts),
            source_packets_per_second: per_second(rates.source_packets),
            source_packets_burst: burst(rates.source_packets),
            source_new_flows_per_second: per_second(rates.source_new_flows),
            source_new_flows_burst: burst(rates.source_new_flows),
            packets_per_second: per_second(rates.packets),
            packets_burst: burst(rates.packets),
            new_flows_per_second: per_second(rates.new_flows),
            new_flows_burst: burst(rates.new_flows),
            half_open_per_second: per_second(rates.half_open),
            half_open_burst: burst(rates.half_open),
            ..Self::default()
        };
        (spec != Self::default()).then_some(spec)
    }
}

/// Returns why an allow list is refused that lets nobody in.
pub fn shut(guard: &Guard, v4: Option<bool>) -> Option<String> {
    let of = match v4 {
        Some(true) => " of IPv4",
        Some(false) => " of IPv6",
        None => "",
    };
    guard.is_shut(v4).then(|| {
        format!("it has no prefix{of}, so nobody would be let in: leave it out to let everybody in")
    })
}

/// Reads a list: one prefix a line, `#` begins a remark. Errors call it `file`.
pub fn read_prefixes(text: &str, file: &str) -> Result<Vec<Prefix>, Vec<String>> {
    let mut prefixes = Vec::new();
    let mut errors = Vec::new();
    let mut more = 0;
    for (number, line) in (1..).zip(text.lines()) {
        let line = line.split('#').next().unwrap_or_default().trim();
        if line.is_empty() {
            continue;
        }
        match line.parse() {
            Ok(prefix) => prefixes.push(prefix),
            Err(error) if errors.len() < NAMED => {
                errors.push(format!("{file}:{number}: {error}"));
            }
            Err(_) => more += 1,
        }
    }
    if more > 0 {
        errors.push(format!("{file}: {more} more lines are wrong"));
    }
    if errors.is_empty() {
        Ok(prefixes)
    } else {
        Err(errors)
    }
}

/// Reads the prefixes in a file that a configuration names.
pub fn read_list(path: &Path) -> Result<Vec<Prefix>, Vec<String>> {
    let file = path.display().to_string();
    if !path.is_absolute() {
        let allowed = "allowed is an absolute path, as /etc/weir/deny.txt";
        return Err(vec![format!("\"{file}\" is not absolute: {allowed}")]);
    }
    match std::fs::read_to_string(path) {
        Ok(text) => read_prefixes(&text, &file),
        Err(error) => Err(vec![format!("{file}: {error}")]),
    }
}

/// Refuses files: whoever asks by the API sends prefixes, and does not make the daemon read.
pub fn no_list(path: &Path) -> Result<Vec<Prefix>, Vec<String>> {
    let allowed = "write the prefixes, or load them by `weir guard load`";
    Err(vec![format!(
        "\"{}\" is a file, which only the configuration file may name: {allowed}",
        path.display()
    )])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_has_remarks_and_empty_lines_and_names_the_lines_that_are_wrong() {
        let text = "# bad hosts\n198.18.0.0/15\n\n  2001:db8::1   # one\n198.18.0.0/15\r\n";
        assert_eq!(read_prefixes(text, "f").unwrap().len(), 3);
        assert_eq!(
            read_prefixes(
                "198.18.0.0/15\n\nnonsense # here\n198.18.0.1/40\n",
                "deny.txt"
            )
            .unwrap_err()
            .len(),
            2
        );
        let errors = read_prefixes("198.18.0.1/40", "deny.txt").unwrap_err();
        assert_eq!(
            errors,
            ["deny.txt:1: \"198.18.0.1/40\" has the prefix length 40: allowed is 0 to 32"]
        );
        let errors = read_prefixes(&"x\n".repeat(1000), "deny.txt").unwrap_err();
        assert_eq!(errors.len(), NAMED + 1);
        assert_eq!(errors[NAMED], "deny.txt: 990 more lines are wrong");
    }

    #[test]
    fn every_field_says_what_is_allowed() {
        let check = |json: &str, v4| {
            let spec: GuardSpec = serde_json::from_str(json).unwrap();
            let mut check = Checker::new("guard");
            let guard = spec.check(&mut check, v4, &no_list);
            match check.finish(Some(guard)) {
                Ok(guard) => format!("{guard:?}"),
                Err(errors) => errors[0].to_string(),
            }
        };
        for (json, v4, want) in [
            (
                r#"{"deny": ["x"]}"#,
                None,
                "guard, deny: \"x\" is not a prefix",
            ),
            (
                r#"{"allow": []}"#,
                None,
                "guard, allow: it has no prefix, so nobody would be let in",
            ),
            (
                r#"{"allow": ["198.18.0.0/15"]}"#,
                Some(false),
                "guard, allow: it has no prefix of IPv6, so nobody",
            ),
            (
                r#"{"deny_file": "/x"}"#,
                None,
                "guard, deny_file: \"/x\" is a file, which only the configuration file may name",
            ),
        ] {
            let found = check(json, v4);
            assert!(found.contains(want), "{json}: {found}");
        }
        for (json, want) in [
            (
                r#"{"packets_per_second": 0}"#,
                "guard, packets_per_second: 0 is out of range: allowed is 1 to 10000000",
            ),
            (
                r#"{"half_open_per_second": 5, "half_open_burst": -1}"#,
                "guard, half_open_burst: -1 is out of range",
            ),
            (
                r#"{"source_new_flows_burst": 7}"#,
                "guard, source_new_flows_burst: 7 is only allowed with source_new_flows_per_second",
            ),
        ] {
            let spec: GuardSpec = serde_json::from_str(json).unwrap();
            let mut check = Checker::new("guard");
            spec.check_rates(&mut check);
            let errors = check.finish(Some(())).unwrap_err();
            assert!(errors[0].to_string().contains(want), "{errors:?}");
        }
        assert!(check(r#"{"deny": []}"#, None).contains("deny: Some"));
        assert!(read_list(Path::new("deny.txt")).unwrap_err()[0].contains("is not absolute"));
    }
}
