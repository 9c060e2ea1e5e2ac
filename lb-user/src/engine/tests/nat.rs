//! What the answers of VMs behind NAT come from.

use super::*;
use crate::dataplane::nat_filter_index;

fn nat(vip: &str, backends: &[(&str, Option<u16>)]) -> Desired {
    let mut text = format!(
        "[[service]]\nname = \"web\"\naddress = \"{vip}\"\nport = 80\nprotocol = \"tcp\"\nforward = \"nat\"\nidle_timeout = \"60s\"\n"
    );
    for (number, (address, port)) in (1..).zip(backends) {
        text += &format!("[[service.backend]]\nname = \"vm{number}\"\naddress = \"{address}\"\n");
        text += &port.map_or(String::new(), |port| format!("port = {port}\n"));
    }
    let mut desired = Config::parse(&text, "test").unwrap().desired;
    desired.limits = LIMITS;
    desired
}

impl World {
    /// Returns where answers come from, and as what they leave.
    fn answers(&self) -> Vec<(String, String)> {
        let sources = self.engine.dataplane.nat_sources().unwrap();
        let show = |(at, source): (Vip, NatSource)| {
            let bytes: [u8; 16] = bytemuck::cast(source.translation.address);
            let [a, b, c, d, ..] = bytes;
            let port = u16::from_be(source.translation.port);
            (at.to_string(), format!("{a}.{b}.{c}.{d}:{port}"))
        };
        sources.into_iter().map(show).collect()
    }
}

fn pair(at: &str, from: &str) -> (String, String) {
    (at.to_owned(), from.to_owned())
}

const VM1: (&str, Option<u16>) = ("198.18.1.1", None);
const VM2: (&str, Option<u16>) = ("198.18.1.2", Some(8080));

#[test]
fn answers_are_known_while_their_vm_may_have_flows() {
    let mut world = World::new();
    world.declare(nat("198.18.0.10", &[VM1, VM2]));
    assert_eq!(world.answers(), [], "nobody is reached yet");
    world.reach(2);
    // The port of the first one stays as it is.
    let one = pair("198.18.1.1:80/tcp", "198.18.0.10:0");
    let two = pair("198.18.1.2:8080/tcp", "198.18.0.10:80");
    assert_eq!(world.answers(), [one.clone(), two.clone()]);

    world.track(2, 0);
    world.declare(nat("198.18.0.10", &[VM1]));
    assert_eq!(
        world.answers(),
        [one.clone(), two.clone()],
        "one is leaving"
    );
    let mut world = world.restart();
    world.declare(nat("198.18.0.10", &[VM1]));
    world.reach(1);
    assert_eq!(
        world.answers(),
        [one.clone(), two],
        "also to the next daemon"
    );
    world.engine.dataplane.flows.clear();
    world.pass(Duration::from_secs(200));
    assert_eq!(world.answers(), [one]);
    let mut none = web(&[]);
    none.services.clear();
    world.declare(none);
    assert_eq!(world.answers(), []);
    let vm1 = Vip {
        address: "198.18.1.1".parse().unwrap(),
        port: crate::model::ServicePort::Any,
        protocol: crate::model::L4Protocol::Tcp,
    };
    assert_eq!(
        world
            .engine
            .dataplane
            .vip_filter(nat_filter_index(&vm1))
            .unwrap(),
        0
    );
}

#[test]
fn a_reload_changes_ports_vips_and_forwarding() {
    let mut world = World::new();
    world.declare(web(&[100, 100]));
    world.reach(2);
    assert_eq!(world.answers(), []);
    world.pass(GRACE);
    world.declare(nat("198.18.0.10", &[VM1, VM2]));
    assert_eq!(
        world.answers(),
        [
            pair("198.18.1.1:80/tcp", "198.18.0.10:0"),
            pair("198.18.1.2:8080/tcp", "198.18.0.10:80")
        ]
    );
    world.pass(GRACE);
    world.declare(nat("198.18.0.11", &[("198.18.1.1", Some(81)), VM2]));
    assert_eq!(
        world.answers(),
        [
            pair("198.18.1.1:81/tcp", "198.18.0.11:80"),
            pair("198.18.1.2:8080/tcp", "198.18.0.11:80")
        ]
    );
    world.pass(GRACE);
    world.declare(web(&[100, 100]));
    assert_eq!(world.answers(), []);
}

/// Also where no configuration file is checked: a backend that was added by the command line.
#[test]
fn what_could_not_be_told_apart_is_refused() {
    let mut world = World::new();
    let mut desired = nat("198.18.0.10", &[VM1]);
    let mut other = nat("198.18.0.11", &[VM1])
        .services
        .remove(&name("web"))
        .unwrap();
    other.name = name("other");
    desired.services.insert(name("other"), other);
    let error = world.engine.prepare(desired).unwrap_err().to_string();
    assert!(
        error.contains("service \"web\"") && error.contains("service \"other\""),
        "{error}"
    );
    world.declare(nat("198.18.0.10", &[VM1]));
}

#[test]
fn the_audit_finds_what_was_tampered_with() {
    let mut world = World::new();
    world.declare(nat("198.18.0.10", &[VM1, VM2]));
    world.reach(2);
    let sources = world.engine.dataplane.nat_sources().unwrap();
    let (at, mut source) = sources[0];
    source.service += 1;
    world.engine.dataplane.set_nat_source(&at, &source).unwrap();
    world
        .engine
        .dataplane
        .remove_nat_source(&sources[1].0)
        .unwrap();
    world
        .engine
        .dataplane
        .set_vip_filter(nat_filter_index(&at), 0)
        .unwrap();
    let (differences, _) = world.engine.audit().unwrap();
    assert_eq!(differences.len(), 3, "{differences:?}");
}
