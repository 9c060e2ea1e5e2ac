//! The running daemon's answers against the document that it serves.

use std::collections::BTreeSet;

use lb_tests::lan::Lan;
use lb_tests::schema::Document;
use lb_tests::weir::Weir;
use serde_json::{Value, json};

const CONFIG: &str = r#"
[[interface]]
name = "eth"
[[service]]
name = "web"
address = "198.18.9.10"
port = 80
protocol = "tcp"
[service.health]
type = "tcp"
[[service.backend]]
name = "vm1"
address = "198.18.0.11"
mac = "02:00:00:00:00:0b"
[[service]]
name = "any"
address = "2001:db8:9::10"
port = "any"
protocol = "udp"
"#;

const SERVICE: &str = "/v1/services/{service}";
const BACKENDS: &str = "/v1/services/{service}/backends";
const BACKEND: &str = "/v1/services/{service}/backends/{backend}";
const LOAD: &str = "/v1/guard/load";
const RESET: &str = "/v1/guard/reset";
const INTERFACE: &str = "/v1/interfaces/{interface}";

/// An operation, the names in its path, what it is asked, and the status that must come back.
type Question = (
    &'static str,
    &'static str,
    &'static [&'static str],
    Value,
    u16,
);

fn questions(same: &str) -> Vec<Question> {
    let shop = json!({"name": "shop", "address": "198.18.9.11", "port": 80, "protocol": "tcp"});
    let vm2 = json!({"name": "vm2", "address": "198.18.0.12", "mac": "02:00:00:00:00:0c"});
    let flow = json!({"source": "198.18.0.1:1", "destination": "198.18.9.10:80", "protocol": "tcp", "syn": true});
    let none = Value::Null;
    let list = |text: Value| json!({"list": "deny", "text": text, "file": "f"});
    // More than `guard_prefixes`.
    let many: String = (0..251_000_u32)
        .map(|n| format!("{}\n", std::net::Ipv4Addr::from_bits(0x6400_0000 + n)))
        .collect();
    vec![
        ("GET", "/v1/openapi.json", &[], none.clone(), 200),
        ("GET", "/v1/status", &[], none.clone(), 200),
        ("GET", "/v1/stats", &[], none.clone(), 200),
        ("GET", "/v1/audit", &[], none.clone(), 200),
        ("GET", "/v1/services", &[], none.clone(), 200),
        ("GET", SERVICE, &["web"], none.clone(), 200),
        ("GET", SERVICE, &["any"], none.clone(), 200),
        ("GET", SERVICE, &["%FF"], none.clone(), 400),
        ("GET", SERVICE, &["nonsense"], none.clone(), 404),
        ("POST", "/v1/explain", &[], flow, 200),
        ("POST", "/v1/explain", &[], json!({"source": 1}), 400),
        (
            "POST",
            "/v1/diff",
            &[],
            json!({"file": "f", "toml": same}),
            200,
        ),
        (
            "POST",
            "/v1/diff",
            &[],
            json!({"file": "f", "toml": "a b"}),
            400,
        ),
        (
            "POST",
            "/v1/diff",
            &[],
            json!({"file": "f", "toml": ""}),
            409,
        ),
        ("GET", "/v1/guard", &[], none.clone(), 200),
        ("POST", LOAD, &[], list(json!("198.19.0.0/24")), 200),
        ("POST", LOAD, &[], list(json!("nonsense")), 400),
        ("POST", LOAD, &[], list(json!(many)), 409),
        ("GET", "/v1/guard", &[], none.clone(), 200),
        (
            "POST",
            LOAD,
            &[],
            json!({"service": "shop", "list": "deny", "text": "", "file": "f"}),
            404,
        ),
        ("POST", RESET, &[], json!({"list": "none"}), 400),
        ("POST", RESET, &[], json!({"list": "deny"}), 200),
        ("POST", RESET, &[], json!({"list": "deny"}), 404),
        (
            "POST",
            "/v1/guard/test",
            &[],
            json!({"source": "198.19.0.1"}),
            200,
        ),
        ("POST", "/v1/guard/test", &[], json!({"source": "x"}), 400),
        ("POST", "/v1/services", &[], shop.clone(), 200),
        ("POST", "/v1/services", &[], shop, 409),
        ("POST", "/v1/services", &[], json!({"name": "shop"}), 400),
        ("POST", BACKENDS, &["web"], vm2.clone(), 200),
        ("POST", BACKENDS, &["web"], vm2.clone(), 409),
        ("POST", BACKENDS, &["nonsense"], vm2, 404),
        ("POST", BACKENDS, &["web"], none.clone(), 400),
        ("PATCH", BACKEND, &["web", "vm2"], json!({"weight": 7}), 200),
        (
            "PATCH",
            BACKEND,
            &["web", "vm2"],
            json!({"weight": -7}),
            400,
        ),
        (
            "PATCH",
            BACKEND,
            &["web", "vm9"],
            json!({"draining": true}),
            404,
        ),
        // With a backend that is leaving.
        ("DELETE", BACKEND, &["web", "vm2"], none.clone(), 200),
        ("GET", "/v1/status", &[], none.clone(), 200),
        ("DELETE", BACKEND, &["web", "vm2"], none.clone(), 404),
        ("DELETE", BACKEND, &["web", "a b"], none.clone(), 400),
        ("DELETE", SERVICE, &["shop"], none.clone(), 200),
        ("DELETE", SERVICE, &["shop"], none.clone(), 404),
        ("DELETE", SERVICE, &["%FF"], none.clone(), 400),
        (
            "POST",
            "/v1/interfaces",
            &[],
            json!({"name": "lo", "mode": "generic"}),
            200,
        ),
        (
            "POST",
            "/v1/interfaces",
            &[],
            json!({"name": "lo", "mode": "fast"}),
            400,
        ),
        (
            "POST",
            "/v1/interfaces",
            &[],
            json!({"name": "nonsense"}),
            409,
        ),
        ("GET", "/v1/status", &[], none.clone(), 200),
        ("DELETE", INTERFACE, &["lo"], none.clone(), 200),
        ("DELETE", INTERFACE, &["lo"], none.clone(), 404),
        ("DELETE", INTERFACE, &["%FF"], none.clone(), 400),
        ("POST", "/v1/reload", &[], none, 200),
    ]
}

/// Fills names into a path, written as a client would.
fn fill(path: &str, names: &[&str]) -> String {
    let mut names = names.iter();
    let segments = path.split('/').map(|segment| {
        if segment.starts_with('{') {
            names.next().unwrap().replace(' ', "%20")
        } else {
            segment.to_owned()
        }
    });
    segments.collect::<Vec<_>>().join("/")
}

#[test]
fn every_answer_is_as_the_document_says() {
    let lan = Lan::new();
    let host = lan.host("balancer", 2);
    let weir = Weir::start(&host, CONFIG);
    weir.wait_serving("web");
    let (_, document) = weir.http("GET", "/v1/openapi.json", b"");
    let document = Document::new(document);
    let mut seen = BTreeSet::new();
    let mut ask = |(method, path, names, body, status): Question| {
        let bytes = if body.is_null() {
            Vec::new()
        } else {
            body.to_string().into_bytes()
        };
        let filled = fill(path, names);
        let (found, answer) = weir.http(method, &filled, &bytes);
        assert_eq!(found, status, "{method} {filled} {body}: {answer:#}");
        let wrong = document.check(method, path, status, &answer);
        assert!(wrong.is_empty(), "{wrong:?} in {answer:#}");
        seen.insert((method.to_owned(), path.to_owned(), status));
    };
    questions(&weir.with_paths(CONFIG))
        .into_iter()
        .for_each(&mut ask);
    weir.write_config("nonsense");
    ask(("POST", "/v1/reload", &[], Value::Null, 400));
    std::fs::write(weir.config(), "").unwrap();
    ask(("POST", "/v1/reload", &[], Value::Null, 409));

    for (method, path, statuses) in document.operations() {
        // What should have worked and did not can't be had on demand.
        for status in statuses.into_iter().filter(|status| *status != 500) {
            let key = (method.clone(), path.clone(), status);
            assert!(seen.contains(&key), "{method} {path} never gave {status}");
        }
    }
}

#[test]
fn a_file_of_several_megabytes_can_be_compared() {
    let lan = Lan::new();
    let host = lan.host("balancer", 2);
    let weir = Weir::start(&host, CONFIG);
    let file = tempfile::NamedTempFile::new().unwrap();
    let remark = format!("# {}\n", "x".repeat(100)).repeat(80_000);
    std::fs::write(file.path(), weir.with_paths(CONFIG) + &remark).unwrap();
    let said = weir.cli(&format!("diff {}", file.path().display()));
    assert_eq!(said.trim(), "Nothing would change.");
}
