use std::time::Duration;

use proptest::prelude::*;

use super::*;
use crate::model::{Forward, Probe, ServicePort};

fn web() -> ServiceSpec {
    serde_json::from_str(
        r#"{"name": "web", "address": "198.18.0.10", "port": 80, "protocol": "tcp",
            "backends": [{"name": "vm1", "address": "198.18.1.1"}]}"#,
    )
    .unwrap()
}

/// Returns the only thing that is wrong.
fn error(spec: &ServiceSpec) -> String {
    let errors = spec.to_model().unwrap_err();
    assert_eq!(errors.len(), 1, "{errors:?}");
    errors[0].to_string()
}

#[test]
fn what_is_not_written_has_a_default() {
    let service = web().to_model().unwrap();
    assert_eq!(service.forward, Forward::L2);
    assert_eq!(service.idle_timeout, Duration::from_secs(900));
    assert_eq!(service.backends.values().next().unwrap().weight.get(), 100);
    let udp = ServiceSpec {
        protocol: "udp".to_owned(),
        ..web()
    };
    assert_eq!(
        udp.to_model().unwrap().idle_timeout,
        Duration::from_secs(30)
    );
}

/// Puts a service's VM into an overlay. Returns the service's part of it.
fn overlay<'a>(spec: &'a mut ServiceSpec, forward: &str) -> &'a mut OverlaySpec {
    spec.forward = Some(forward.to_owned());
    spec.backends[0].overlay = Some(OverlaySpec {
        mac: Some("52:54:00:12:34:56".to_owned()),
        ..OverlaySpec::default()
    });
    spec.overlay.insert(OverlaySpec {
        vni: Some(7),
        ..OverlaySpec::default()
    })
}

#[test]
fn a_backends_overlay_stands_over_its_services() {
    let mut spec = web();
    overlay(&mut spec, "geneve").options = Some("01020000".to_owned());
    let own = |text: &str| serde_json::from_str::<BackendSpec>(text).unwrap();
    spec.backends.extend([
        own(r#"{"name": "other", "address": "198.18.1.1", "overlay": {"mac": "52:54:00:12:34:57", "vni": 0, "port": 1, "options": "", "source_mac": "52:54:00:12:34:01"}}"#),
        own(r#"{"name": "vxlan", "address": "198.18.1.1", "forward": "vxlan", "overlay": {"mac": "52:54:00:12:34:56", "vni": 8}}"#),
    ]);
    let service = spec.to_model().unwrap();
    let shown = |name: &str| {
        let name: crate::model::Name = name.parse().unwrap();
        service.backends[&name].forward.to_string()
    };
    assert_eq!(
        shown("vm1"),
        "geneve(vni 7, port 6081, mac 52:54:00:12:34:56, options 01020000)"
    );
    assert_eq!(
        shown("other"),
        "geneve(vni 0, port 1, mac 52:54:00:12:34:57, source_mac 52:54:00:12:34:01)"
    );
    assert_eq!(
        shown("vxlan"),
        "vxlan(vni 8, port 4789, mac 52:54:00:12:34:56)"
    );
    assert_eq!(ServiceSpec::from(&service).to_model().unwrap(), service);

    // The same VM twice, and an address that only a VM can have.
    let twin = spec.backends[0].overlay.clone();
    spec.backends[1].overlay = twin;
    assert!(error(&spec).contains("198.18.1.1 is the address of backend"));
    spec.backends.truncate(1);
    spec.overlay.as_mut().unwrap().mac = Some("52:54:00:12:34:56".to_owned());
    assert!(error(&spec).contains("overlay, mac: is not allowed here"));
}

#[test]
fn every_field_says_what_is_allowed() {
    type Change = fn(&mut ServiceSpec);
    let cases: [(Change, &str); 26] = [
        (
            |s| s.name = "a b".into(),
            "service \"a b\", name: \"a b\" is not a name: allowed are",
        ),
        (
            |s| s.address = "nonsense".into(),
            "address: \"nonsense\" is not an address",
        ),
        (
            |s| s.address = "224.0.0.1".into(),
            "address: 224.0.0.1 is a multicast address",
        ),
        (
            |s| s.address = "127.0.0.1".into(),
            "address: 127.0.0.1 is a loopback address",
        ),
        (
            |s| s.port = NumberOrText::Number(70_000),
            "port: 70000 is out of range: allowed is 1 to 65535",
        ),
        (
            |s| s.port = NumberOrText::Text("http".into()),
            "port: \"http\" is not a port",
        ),
        (
            |s| s.protocol = "sctp".into(),
            "protocol: \"sctp\" is not known: allowed is tcp, udp",
        ),
        (
            |s| s.forward = Some("dsr".into()),
            "forward: \"dsr\" is not known: allowed is l2, ipip, gue, vxlan, geneve, nat",
        ),
        (
            |s| s.backends[0].port = Some(8080),
            "backend \"vm1\", port: 8080 is only allowed with forward \"nat\"",
        ),
        (
            |s| {
                s.forward = Some("nat".into());
                s.backends[0].port = Some(0);
            },
            "backend \"vm1\", port: 0 is out of range: allowed is 1 to 65535",
        ),
        (
            |s| {
                s.forward = Some("nat".into());
                s.port = NumberOrText::Text("any".into());
                s.backends[0].port = Some(80);
            },
            "port: 80: a service on any port keeps each packet's port: allowed is no port",
        ),
        (
            |s| {
                s.forward = Some("nat".into());
                s.backends[0].address = "2001:db8::1".into();
            },
            "different families, which \"nat\" can't bridge",
        ),
        (
            |s| s.gue_port = Some(6081),
            "gue_port: 6081 is only allowed with forward \"gue\"",
        ),
        (
            |s| s.overlay = Some(OverlaySpec::default()),
            "overlay: is only allowed with forward \"vxlan\" or \"geneve\"",
        ),
        (
            |s| overlay(s, "vxlan").vni = Some(1 << 24),
            "service \"web\", overlay, vni: 16777216 is out of range: allowed is 0 to 16777215",
        ),
        (
            |s| overlay(s, "vxlan").vni = None,
            "overlay, vni: is missing: allowed is 0 to 16777215",
        ),
        (
            |s| overlay(s, "geneve").port = Some(0),
            "overlay, port: 0 is out of range: allowed is 1 to 65535",
        ),
        (
            |s| overlay(s, "vxlan").options = Some("01020000".into()),
            "overlay, options: \"01020000\" is only allowed with forward \"geneve\"",
        ),
        (
            |s| overlay(s, "geneve").options = Some("0102".into()),
            "overlay, options: option 1 has 2 bytes, and should have 4",
        ),
        (
            |s| {
                overlay(s, "vxlan");
                s.backends[0].overlay = None;
            },
            "backend \"vm1\", overlay, mac: is missing: the VM's Ethernet address in the overlay",
        ),
        (
            |s| s.idle_timeout = Some("0s".into()),
            "idle_timeout: \"0s\" is out of range: allowed is 1s to 24h",
        ),
        (
            |s| s.idle_timeout = Some("15".into()),
            "idle_timeout: \"15\" is not a duration",
        ),
        (
            |s| s.backends[0].weight = Some(65_536),
            "backend \"vm1\", weight: 65536 is out of range: allowed is 0 to 65535",
        ),
        (
            |s| s.backends[0].weight = Some(-1),
            "weight: -1 is out of range",
        ),
        (
            |s| s.backends[0].address = "2001:db8::1".into(),
            "different families",
        ),
        (
            |s| s.backends[0].mac = Some("52:54".into()),
            "mac: \"52:54\" is not an Ethernet address",
        ),
    ];
    for (change, expected) in cases {
        let mut spec = web();
        change(&mut spec);
        let error = error(&spec);
        assert!(
            error.contains(expected),
            "{error:?} does not contain {expected:?}"
        );
    }
}

#[test]
fn all_that_is_wrong_is_said_at_once() {
    let mut spec = web();
    spec.port = NumberOrText::Number(0);
    spec.protocol = "ip".to_owned();
    spec.backends[0].weight = Some(1 << 20);
    assert_eq!(spec.to_model().unwrap_err().len(), 3);
}

#[test]
fn two_backends_may_not_share_a_name_or_an_address() {
    let mut spec = web();
    spec.backends.push(spec.backends[0].clone());
    assert!(error(&spec).contains("\"vm1\" is another backend's name already"));
    spec.backends[1].name = "vm2".to_owned();
    assert!(error(&spec).contains("198.18.1.1 is the address of backend \"vm1\" already"));
}

#[test]
fn a_tunnel_bridges_families() {
    let mut spec = web();
    spec.forward = Some("ipip".to_owned());
    spec.backends[0].address = "2001:db8::1".to_owned();
    spec.to_model().unwrap();
}

#[test]
fn a_probe_refuses_what_belongs_to_another() {
    let health = |json: &str| {
        let mut spec = web();
        spec.health = Some(serde_json::from_str(json).unwrap());
        spec
    };
    assert_eq!(
        error(&health(r#"{"type": "tcp", "path": "/"}"#)),
        "service \"web\", health, path: is not allowed with type \"tcp\""
    );
    assert!(error(&health(r#"{"type": "icmp", "port": 1}"#)).contains("port"));
    assert!(
        error(&health(r#"{"type": "http", "status": "2xx"}"#)).contains("\"2xx\" is not a status")
    );
    assert!(error(&health(r#"{"type": "udp", "send": "hex:0"}"#)).contains("not a payload"));
    assert!(
        error(&health(r#"{"type": "tcp", "timeout": "2s"}"#)).contains("allowed is 10ms to 1s")
    );
    let mut any = health(r#"{"type": "tcp"}"#);
    any.port = NumberOrText::Text("any".to_owned());
    assert!(error(&any).contains("port: is missing"));

    let service = health(r#"{"type": "udp", "send": "hex:00ff", "expect": "ok"}"#)
        .to_model()
        .unwrap();
    assert_eq!(
        service.health.unwrap().probe,
        Probe::Udp {
            port: 80.try_into().unwrap(),
            send: vec![0, 0xff],
            expect: Some(b"ok".to_vec()),
        }
    );
}

#[test]
fn an_unknown_field_is_refused() {
    let error =
        serde_json::from_str::<BackendSpec>(r#"{"name": "a", "address": "b", "wieght": 1}"#);
    assert!(error.unwrap_err().to_string().contains("wieght"));
}

#[test]
fn two_services_may_not_share_a_vip_or_a_name() {
    let web = web().to_model().unwrap();
    let mut other = web.clone();
    assert!(
        clashes([&web, &other])[0]
            .1
            .message
            .contains("another service's name")
    );
    other.name = "shop".parse().unwrap();
    let errors = clashes([&web, &other]);
    assert_eq!(
        errors[0].1.to_string(),
        "service \"shop\", address: 198.18.0.10:80/tcp is served by service \"web\" already"
    );
    other.vip.port = ServicePort::Any;
    assert!(clashes([&web, &other]).is_empty());
}

#[test]
fn an_interface_has_a_name_that_the_kernel_takes() {
    let spec = |name: &str, mode: Option<&str>| InterfaceSpec {
        name: name.to_owned(),
        mode: mode.map(str::to_owned),
    };
    assert!(spec("ens3", None).to_model().is_ok());
    for (name, mode) in [
        ("a/b", None),
        ("", None),
        ("far-too-long-name", None),
        ("a", Some("fast")),
    ] {
        assert!(spec(name, mode).to_model().is_err(), "{name}");
    }
}

proptest! {
    #[test]
    fn a_duration_reads_as_it_is_written(milliseconds in 0_u64..1 << 40) {
        let value = Duration::from_millis(milliseconds);
        prop_assert_eq!(duration(&show_duration(value)).unwrap(), value);
    }

    #[test]
    fn a_service_reads_as_it_is_written(
        port in 1_i64..65_536, weights in prop::collection::vec(0_i64..65_536, 0..5), udp: bool,
        forward in prop::sample::select(vec!["l2", "ipip", "gue"]), idle in 1_u64..86_400,
        health in prop::sample::select(vec![
            None, Some(r#"{"type": "tcp", "port": 8080}"#), Some(r#"{"type": "icmp", "dead_after": "0s"}"#),
            Some(r#"{"type": "http", "path": "/health", "status": 204, "body": "ok"}"#),
            Some(r#"{"type": "udp", "send": "hex:ff", "expect": "hex:68"}"#),
        ]),
    ) {
        let backends = (1..).zip(weights).map(|(number, weight)| {
            serde_json::json!({"name": format!("vm{number}"), "address": format!("198.18.1.{number}"), "weight": weight})
        });
        let spec: ServiceSpec = serde_json::from_value(serde_json::json!({
            "name": "web", "address": "198.18.0.10", "port": port, "forward": forward,
            "protocol": if udp { "udp" } else { "tcp" }, "idle_timeout": format!("{idle}s"),
            "health": health.map(|h| serde_json::from_str::<serde_json::Value>(h).unwrap()),
            "backends": backends.collect::<Vec<_>>(),
        })).unwrap();
        let service = spec.to_model().unwrap();
        prop_assert_eq!(ServiceSpec::from(&service).to_model().unwrap(), service);
    }
}
