use super::*;
use crate::config::Config;
use crate::model::{BackendId, Desired, Name, Weight};
use crate::plan::Segment;
use crate::spec::{BackendSpec, InterfaceSpec, ServiceSpec};

const FILE: &str = r#"
[[interface]]
name = "ens3"
[[service]]
name = "web"
address = "198.18.0.10"
port = 80
protocol = "tcp"
[[service.backend]]
name = "vm1"
address = "198.18.1.1"
weight = 50
[[service.backend]]
name = "vm2"
address = "198.18.1.2"
"#;

fn file() -> Desired {
    Config::parse(FILE, "weir.toml").unwrap().desired
}

fn name(text: &str) -> Name {
    text.parse().unwrap()
}

fn id(backend: &str) -> BackendId {
    BackendId {
        service: name("web"),
        backend: name(backend),
    }
}

fn weight(desired: &Desired, backend: &str) -> u16 {
    desired.services[&name("web")].backends[&name(backend)]
        .weight
        .get()
}

#[test]
fn a_weight_over_the_file_stays_until_it_is_the_files_again() {
    let file = file();
    let mut overrides = Overrides::default();
    overrides.set_weight(&file, &id("vm1"), Weight::new(70));
    let (desired, idle) = overrides.apply(&file);
    assert_eq!((weight(&desired, "vm1"), idle), (70, vec![]));
    assert_eq!(
        overrides.lines(),
        ["service \"web\", backend \"vm1\", weight: 70"]
    );
    overrides.set_weight(&file, &id("vm1"), Weight::new(50));
    assert_eq!(overrides, Overrides::default());
}

#[test]
fn a_change_of_what_the_file_lost_is_kept_and_said() {
    let file = file();
    let mut overrides = Overrides::default();
    overrides.set_weight(&file, &id("vm1"), Weight::new(70));
    overrides.set_draining(&file, &id("vm2"), true);
    let without = Config::parse(&FILE.replace("vm1", "vm9"), "weir.toml")
        .unwrap()
        .desired;
    let (desired, idle) = overrides.apply(&without);
    assert_eq!(
        idle,
        ["service \"web\", backend \"vm1\": changed, but it is not in the file"]
    );
    assert!(desired.services[&name("web")].backends[&name("vm2")].draining);
    assert_eq!(
        weight(&overrides.apply(&file).0, "vm1"),
        70,
        "it comes back with the backend"
    );
}

#[test]
fn added_and_removed_things_need_no_more_than_one_change() {
    let file = file();
    let mut overrides = Overrides::default();
    let spec: ServiceSpec = serde_json::from_str(
        r#"{"name": "dns", "address": "198.18.0.53", "port": 53, "protocol": "udp"}"#,
    )
    .unwrap();
    let dns = spec.to_model().unwrap();
    overrides.add_service(&file, &spec, &dns);
    let backend: BackendSpec =
        serde_json::from_str(r#"{"name": "ns1", "address": "198.18.1.9", "weight": 7}"#).unwrap();
    let model = backend.to_model(&dns).unwrap().1;
    overrides.add_backend(&file, &name("dns"), &backend, &model);
    let ns1 = BackendId {
        service: name("dns"),
        backend: name("ns1"),
    };
    overrides.set_weight(&file, &ns1, Weight::new(8));
    let (desired, idle) = overrides.apply(&file);
    assert_eq!(idle, [""; 0]);
    assert_eq!(
        desired.services[&name("dns")].backends[&name("ns1")]
            .weight
            .get(),
        8
    );
    overrides.set_weight(&file, &ns1, Weight::new(7));
    overrides.remove_backend(&file, &ns1);
    assert_eq!(overrides.lines(), ["service \"dns\" added"]);
    overrides.remove_service(&file, &name("dns"));
    assert_eq!(overrides, Overrides::default());

    overrides.remove_backend(&file, &id("vm2"));
    assert_eq!(
        overrides.apply(&file).0.services[&name("web")]
            .backends
            .len(),
        1
    );
    overrides.remove_service(&file, &name("web"));
    assert_eq!(overrides.lines(), ["service \"web\" removed"]);
    assert!(overrides.apply(&file).0.services.is_empty());
    let web = &file.services[&name("web")];
    overrides.add_service(&file, &ServiceSpec::from(web), web);
    assert_eq!(overrides, Overrides::default());
}

#[test]
fn where_both_declare_a_vip_the_file_wins_and_the_change_is_kept() {
    let mut overrides = Overrides::default();
    let spec: ServiceSpec = serde_json::from_str(
        r#"{"name": "other", "address": "198.18.0.10", "port": 80, "protocol": "tcp"}"#,
    )
    .unwrap();
    overrides.add_service(&Desired::default(), &spec, &spec.to_model().unwrap());
    let (desired, idle) = overrides.apply(&file());
    assert_eq!(desired, file());
    assert_eq!(idle.len(), 1);
    assert!(
        idle[0].contains("is served by service \"web\" already"),
        "{idle:?}"
    );
    assert_eq!(overrides.apply(&Desired::default()).0.services.len(), 1);
}

/// A service with a VIP on port 80, as an operator adds it.
fn added(service: &str, address: &str) -> (ServiceSpec, crate::model::Service) {
    let spec: ServiceSpec = serde_json::from_value(serde_json::json!({
        "name": service, "address": address, "port": 80, "protocol": "tcp",
    }))
    .unwrap();
    let service = spec.to_model().unwrap();
    (spec, service)
}

#[test]
fn a_removed_services_vip_can_be_given_to_another_one() {
    for other in ["a", "z"] {
        let mut overrides = Overrides::default();
        overrides.remove_service(&file(), &name("web"));
        let (spec, service) = added(other, "198.18.0.10");
        overrides.add_service(&file(), &spec, &service);
        let (desired, idle) = overrides.apply(&file());
        assert_eq!(idle, [""; 0]);
        let names: Vec<_> = desired.services.keys().map(Name::as_str).collect();
        assert_eq!(names, [other]);
    }
}

#[test]
fn services_of_the_file_can_swap_their_vips() {
    let two = FILE.to_owned()
        + "[[service]]\nname = \"shop\"\naddress = \"198.18.0.11\"\nport = 80\nprotocol = \"tcp\"\n";
    let file = Config::parse(&two, "weir.toml").unwrap().desired;
    let mut overrides = Overrides::default();
    for (service, address) in [("web", "198.18.0.11"), ("shop", "198.18.0.10")] {
        let (spec, service) = added(service, address);
        overrides.add_service(&file, &spec, &service);
    }
    let (desired, idle) = overrides.apply(&file);
    assert_eq!(idle, [""; 0]);
    let web = &desired.services[&name("web")];
    assert_eq!(web.vip.address.to_string(), "198.18.0.11");

    // One of the two can't be, so the file's own comes back where nobody took its place.
    let taken = two.clone()
        + "[[service]]\nname = \"late\"\naddress = \"198.18.0.12\"\nport = 80\nprotocol = \"tcp\"\n";
    let file = Config::parse(&taken, "weir.toml").unwrap().desired;
    let mut overrides = Overrides::default();
    let (spec, service) = added("web", "198.18.0.12");
    overrides.add_service(&file, &spec, &service);
    let (desired, idle) = overrides.apply(&file);
    assert_eq!((desired, idle.len()), (file, 1));
}

#[test]
fn interfaces_are_attached_and_detached_over_the_file() {
    let file = file();
    let mut overrides = Overrides::default();
    overrides.detach(&file, "ens3");
    assert!(overrides.apply(&file).0.interfaces.is_empty());
    let spec = InterfaceSpec {
        name: "ens4".to_owned(),
        mode: Some("generic".to_owned()),
    };
    overrides.attach(&file, &spec);
    assert_eq!(
        overrides.lines(),
        ["interface \"ens3\" detached", "interface \"ens4\" attached"]
    );
    overrides.detach(&file, "ens4");
    overrides.attach(
        &file,
        &InterfaceSpec {
            name: "ens3".to_owned(),
            mode: None,
        },
    );
    assert_eq!(overrides, Overrides::default());
}

#[test]
fn the_directory_keeps_everything_and_has_one_user() {
    let temporary = tempfile::tempdir().unwrap();
    let path = temporary.path().join("state");
    let directory = Directory::open(&path).unwrap();
    let error = Directory::open(&path).unwrap_err().to_string();
    assert!(
        error.contains(&format!("pid {}", std::process::id())),
        "{error}"
    );

    let secret = directory.secret().unwrap();
    assert!(secret.0.iter().any(|word| *word != 0));
    let mut overrides = Overrides::default();
    overrides.set_weight(&file(), &id("vm1"), Weight::new(70));
    directory.set_overrides(&overrides).unwrap();
    assert_eq!(directory.slots().unwrap(), None);
    let mut slots = Slots::default();
    let mut unused = slots.unused_services(10);
    slots
        .add_service(&name("web"), Segment { base: 0, len: 256 }, &mut unused)
        .unwrap();
    directory.set_slots(&slots).unwrap();
    drop(directory);

    let directory = Directory::open(&path).unwrap();
    assert_eq!(directory.secret().unwrap(), secret);
    assert_eq!(directory.overrides().unwrap(), overrides);
    assert_eq!(directory.slots().unwrap(), Some(slots));
}

#[test]
fn a_damaged_file_is_named_and_left_alone() {
    let temporary = tempfile::tempdir().unwrap();
    let directory = Directory::open(temporary.path()).unwrap();
    for (file, content) in [
        ("overrides.json", "{\"version\": 1, \"serv"),
        ("overrides.json", "{\"version\": 99}"),
        (
            "slots.json",
            "{\"version\": 1, \"services\": {\"a\": {\"slot\": 0, \"base\": 0, \"rows\": 3, \"backends\": {}}}}",
        ),
        ("secret", "short"),
    ] {
        let path = temporary.path().join(file);
        std::fs::write(&path, content).unwrap();
        let error = match file {
            "overrides.json" => directory.overrides().map(drop),
            "slots.json" => directory.slots().map(drop),
            _ => directory.secret().map(drop),
        };
        let error = error.unwrap_err().to_string();
        assert!(error.contains(file) && error.contains("damaged"), "{error}");
        assert_eq!(std::fs::read_to_string(&path).unwrap(), content);
    }
}

#[test]
fn places_are_kept_freed_and_limited() {
    let segment = Segment { base: 0, len: 256 };
    let mut slots = Slots::default();
    let mut unused = slots.unused_services(2);
    assert_eq!(slots.add_service(&name("a"), segment, &mut unused), Ok(0));
    assert_eq!(slots.add_service(&name("b"), segment, &mut unused), Ok(1));
    let error = slots
        .add_service(&name("c"), segment, &mut unused)
        .unwrap_err();
    assert!(
        error
            .to_string()
            .starts_with("limits.services: all 2 are in use"),
        "{error}"
    );
    let backends = [name("x"), name("y")];
    let add = |slots: &mut Slots, service: &str, backends: &[Name]| {
        let mut unused = slots.unused_backends(3);
        slots.add_backends(&name(service), backends.iter(), &mut unused)
    };
    add(&mut slots, "a", &backends).unwrap();
    add(&mut slots, "b", &backends[..1]).unwrap();
    assert!(add(&mut slots, "b", &backends).is_err());
    let y = BackendId {
        service: name("a"),
        backend: name("y"),
    };
    let place = slots.backend(&y).unwrap();
    slots.remove_backend(&y);
    add(&mut slots, "b", &backends).unwrap();
    let reused = BackendId {
        service: name("b"),
        ..y
    };
    assert_eq!(slots.backend(&reused), Some(place));
    slots.remove_service(&name("a"));
    let mut unused = slots.unused_services(2);
    assert_eq!(slots.add_service(&name("c"), segment, &mut unused), Ok(0));
}
