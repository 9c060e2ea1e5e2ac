use super::*;
use crate::model::{AttachMode, Forward, Fragments, Icmp, Limits};

const EXAMPLE: &str = include_str!("../../../docs/weir.example.toml");

fn problems(text: &str) -> Vec<String> {
    match Config::parse(text, "weir.toml") {
        Err(ConfigError::Invalid(problems)) => problems.iter().map(Problem::to_string).collect(),
        other => panic!("expected problems, not {other:?}"),
    }
}

#[test]
fn the_example_is_valid_and_says_the_defaults() {
    let config = Config::parse(EXAMPLE, "weir.example.toml").unwrap();
    assert_eq!(config.paths, Paths::default());
    assert_eq!(config.desired.limits, Limits::default());
    assert_eq!(config.desired.icmp, Icmp::default());
    assert_eq!(config.desired.fragments, Fragments::default());
    assert_eq!(config.desired.interfaces["ens3"].mode, AttachMode::Auto);
    assert_eq!(
        config.desired.encap_source.v4,
        Some(("198.18.4.0".parse().unwrap(), 24))
    );
    let dns = &config.desired.services[&"dns".parse().unwrap()];
    assert_eq!(dns.forward, Forward::Gue(Forward::GUE_PORT));
    assert_eq!(dns.backends[&"ns1".parse().unwrap()].forward, Forward::Ipip);
}

#[test]
fn an_empty_file_is_a_valid_configuration() {
    assert_eq!(Config::parse("", "weir.toml").unwrap(), Config::default());
}

#[test]
fn an_unknown_key_is_refused_with_its_line_and_the_nearest_name() {
    let text = EXAMPLE.replace("weight = 50", "wieght = 50");
    let line = 1 + text
        .lines()
        .position(|line| line.starts_with("wieght"))
        .unwrap();
    let problems = problems(&text);
    assert_eq!(problems.len(), 1);
    assert!(
        problems[0].starts_with(&format!("weir.toml:{line}: unknown field `wieght`")),
        "{problems:?}"
    );
    assert!(
        problems[0].ends_with("did you mean `weight`?"),
        "{problems:?}"
    );
}

#[test]
fn a_file_cut_anywhere_is_valid_or_an_error_with_a_line() {
    for end in (0..EXAMPLE.len()).filter(|end| EXAMPLE.is_char_boundary(*end)) {
        if let Err(error) = Config::parse(&EXAMPLE[..end], "weir.toml") {
            assert!(error.to_string().starts_with("weir.toml:"), "{error}");
        }
    }
    let cut = problems(&EXAMPLE[..EXAMPLE.find("\"198.18.1.2\"").unwrap() + 5]);
    assert_eq!(cut.len(), 1, "{cut:?}");
}

#[test]
fn all_values_that_are_wrong_are_named_with_their_lines() {
    let text = "\
[limits]
rows = 1000
services = 0
[encap]
source_v4 = \"198.18.4.0/33\"
source_v6 = \"198.18.4.0\"
[icmp]
echo_rate = 1000001
too_big_rate = -1
[fragments]
unknown = \"keep\"
timeout = \"61s\"
[[interface]]
name = \"ens3\"
mode = \"fast\"
[[service]]
name = \"web\"
address = \"198.18.0.10\"
port = 80
protocol = \"tcp\"
[[service]]
name = \"shop\"
address = \"198.18.0.10\"
port = 80
protocol = \"tcp\"
";
    let problems = problems(text);
    let expected = [
        "weir.toml:1: limits, services: 0 is out of range: allowed is 1 to 1048576",
        "weir.toml:1: limits, rows: 1000 is not a power of two: allowed is 256, 512, 1024 and so on",
        "weir.toml:4: encap, source_v4: \"198.18.4.0/33\" has the prefix length 33: allowed is 8 to 32",
        "weir.toml:4: encap, source_v6: \"198.18.4.0\" is of the other family: allowed is IPv6",
        "weir.toml:7: icmp, echo_rate: 1000001 is out of range: allowed is 1 to 1000000",
        "weir.toml:7: icmp, too_big_rate: -1 is out of range: allowed is 0 to 1000000",
        "weir.toml:10: fragments, unknown: \"keep\" is not known: allowed is pass, drop",
        "weir.toml:10: fragments, timeout: \"61s\" is out of range: allowed is 1s to 1m",
        "weir.toml:13: interface \"ens3\", mode: \"fast\" is not known: allowed is native, generic, auto",
        "weir.toml:21: service \"shop\", address: 198.18.0.10:80/tcp is served by service \"web\" already",
    ];
    assert_eq!(problems, expected);
}

#[test]
fn more_than_the_limits_allow_is_refused_where_it_begins() {
    let service = |name: &str, address: &str| {
        format!(
            "[[service]]\nname = \"{name}\"\naddress = \"{address}\"\nport = 80\nprotocol = \"tcp\"\n"
        )
    };
    let backend = |name: &str, address: &str| {
        format!("[[service.backend]]\nname = \"{name}\"\naddress = \"{address}\"\n")
    };
    let text = [
        "[limits]\nservices = 1\nbackends = 1\nrows = 256\n".to_owned(),
        service("a", "198.18.0.10"),
        backend("vm1", "198.18.1.1"),
        service("b", "198.18.0.11"),
        backend("vm1", "198.18.1.1"),
    ];
    assert_eq!(
        problems(&text.concat()),
        [
            "weir.toml:13: limits.services: 2 services on IPv4, allowed are 1",
            "weir.toml:13: limits.backends: 2 backends, allowed are 1",
            "weir.toml:13: limits.rows: 2 services need 256 rows each at the least, 512 together, allowed are 256",
        ]
    );
    assert!(Config::parse(&text[..3].concat(), "weir.toml").is_ok());
    let both = [
        &text[0].replace("256", "512"),
        &text[1],
        &service("c", "2001:db8::1"),
    ];
    let both: String = both.into_iter().map(String::as_str).collect();
    assert!(
        Config::parse(&both, "weir.toml").is_ok(),
        "each family has a map"
    );
}

#[test]
fn a_missing_file_is_named() {
    let error = Config::load(Path::new("/nonexistent/weir.toml")).unwrap_err();
    assert_eq!(error.to_string(), "/nonexistent/weir.toml");
}

#[test]
fn a_difference_names_what_was_and_what_will_be() {
    let old = Config::parse(EXAMPLE, "old").unwrap().desired;
    assert_eq!(diff(&old, &old), []);
    let text = EXAMPLE
        .replace("weight = 50", "weight = 70")
        .replace("name = \"ns1\"", "name = \"ns2\"")
        .replace("mode = \"auto\"", "mode = \"native\"")
        .replace("\"15m\"", "\"90s\"")
        .replace("echo = true", "echo = false")
        .replace("echo_rate = 1000", "echo_rate = 1")
        .replace("too_big_rate = 1000", "too_big_rate = 0")
        .replace("unknown = \"pass\"", "unknown = \"drop\"")
        .replace("timeout = \"30s\"   ", "timeout = \"2s\"   ");
    let new = Config::parse(&text, "new").unwrap().desired;
    let lines: Vec<String> = diff(&old, &new).iter().map(Difference::to_string).collect();
    let expected = [
        "icmp, echo: true -> false",
        "icmp, echo_rate: 1000 -> 1",
        "icmp, too_big_rate: 1000 -> 0",
        "fragments, unknown: pass -> drop",
        "fragments, timeout: 30s -> 2s",
        "interface \"ens3\": mode auto -> native",
        "service \"dns\", backend \"ns1\" removed",
        "service \"dns\", backend \"ns2\" 198.18.1.3 added, weight 100",
        "service \"web\", idle_timeout: 15m -> 90s",
        "service \"web\", backend \"vm2\", weight: 50 -> 70",
    ];
    assert_eq!(lines, expected);
}

#[test]
fn a_timeout_of_fragments_is_whole_seconds() {
    let found = problems("[fragments]\ntimeout = \"1500ms\"\n");
    let expected = "weir.toml:1: fragments, timeout: \"1500ms\" is no whole number of seconds";
    assert_eq!(found, [expected]);
}
