//! Pinned maps: what a new daemon takes over, and what it refuses.

use lb_common::backend::Head;
use lb_common::hash::HashKey;
use lb_common::row::Row;
use lb_common::service::Service;
use lb_tests::netns::pins;
use lb_tests::program::slot;
use lb_user::dataplane::{Dataplane as _, LoadError, Pins, Settings, load};
use lb_user::model::{L4Protocol, Limits, ServicePort, Vip};

/// Removes pins when the test ends, whatever way.
struct Removed(Pins);

impl Drop for Removed {
    fn drop(&mut self) {
        let _ = self.0.remove_all();
    }
}

fn settings() -> (Settings, Removed) {
    assert!(
        nix::unistd::geteuid().is_root(),
        "this test loads BPF programs and needs root"
    );
    let pin_dir = pins("data");
    let limits = Limits {
        services: 4,
        backends: 4,
        rows: 256,
        half_open_flows: 16,
        confirmed_flows: 16,
        kept_flows: 16,
        fragments: 256,
        guard_prefixes: 16,
        guard_sources: 256,
    };
    let removed = Removed(Pins::new(&pin_dir));
    let hash_key = HashKey([7; 16]);
    (
        Settings {
            pin_dir,
            limits,
            hash_key,
        },
        removed,
    )
}

fn vip() -> Vip {
    Vip {
        address: [198, 18, 9, 10].into(),
        port: ServicePort::Any,
        protocol: L4Protocol::Tcp,
    }
}

#[test]
fn a_new_daemon_finds_every_entry_of_the_last_one() {
    let (settings, removed) = settings();
    let service = Service {
        ring_base: 0,
        ring_mask: 255,
        slot: 3,
        flags: 0,
        guard_list: 0,
        _pad: 0,
    };
    let row = Row::new(slot(2), slot(1), true);
    let head = Head::new(1, true, false, 9);
    let mut first = load(&settings).unwrap();
    assert!(!first.adopted());
    first.set_service(&vip(), &service).unwrap();
    first.set_row(200, row).unwrap();
    first.set_head(slot(4), head).unwrap();
    first.set_vip_filter(77, 3).unwrap();
    let addresses = ["198.18.9.10", "198.18.9.11", "2001:db8::1"].map(|a| a.parse().unwrap());
    for address in addresses {
        first.add_address(address).unwrap();
    }
    first.remove_address(addresses[1]).unwrap();
    first.remove_address(addresses[1]).unwrap();
    let answers = lb_common::settings::Settings {
        echo: 1,
        echo_rate: lb_common::rate::Rate::per_second(5),
        ..Default::default()
    };
    first.set_settings(&answers).unwrap();
    drop(first);

    let second = load(&settings).unwrap();
    assert!(second.adopted());
    assert_eq!(second.services().unwrap(), [(vip(), service)]);
    assert_eq!(second.row(200).unwrap(), row);
    assert_eq!(second.row(199).unwrap(), Row::EMPTY);
    assert_eq!(second.backend(slot(4)).unwrap().head, head.to_bits());
    assert_eq!(second.vip_filter(77).unwrap(), 3);
    assert_eq!(
        second.addresses().unwrap(),
        [addresses[0], addresses[2]].into()
    );
    assert_eq!(second.settings().unwrap(), answers);
    drop(second);
    removed.0.remove_all().unwrap();
    assert!(!settings.pin_dir.exists());
    assert!(!load(&settings).unwrap().adopted(), "everything was gone");
}

#[test]
fn files_of_others_are_left_alone() {
    let (settings, removed) = settings();
    drop(load(&settings).unwrap());
    // A map of somebody else, in a directory that is to be ours.
    let shared = Removed(Pins::new(pins("shared")));
    shared.0.prepare().unwrap();
    let foreign = shared.0.map("somebodys");
    std::fs::rename(removed.0.map("REASONS"), &foreign).unwrap();
    let other = Settings {
        pin_dir: shared.0.dir().into(),
        ..settings.clone()
    };
    let error = load(&other).err().expect("a refusal").to_string();
    assert!(
        error.starts_with("paths.pins: ")
            && error.contains("holds somebodys, which is not weir's: allowed is"),
        "{error}"
    );
    shared.0.remove_all().unwrap();
    assert!(foreign.exists());
    std::fs::remove_file(foreign).unwrap();
    assert!(!load(&other).unwrap().adopted());
}

#[test]
fn maps_of_another_secret_size_or_version_are_refused_and_left_alone() {
    let (settings, _removed) = settings();
    let mut first = load(&settings).unwrap();
    first.set_row(5, Row::settled(slot(1))).unwrap();
    let refused = |settings: &Settings| load(settings).err().expect("a refusal");
    let other = Settings {
        hash_key: HashKey([8; 16]),
        ..settings.clone()
    };
    assert!(matches!(refused(&other), LoadError::Secret { .. }));
    let mut other = settings.clone();
    other.limits.backends += 1;
    let error = refused(&other).to_string();
    assert!(
        error.contains("has 5 entries, the configuration says 6"),
        "{error}"
    );
    let path = Pins::new(&settings.pin_dir).map(lb_common::map_names::ABI);
    let data = aya::maps::MapData::from_pin(path).unwrap();
    let mut abi = aya::maps::Array::<_, u32>::try_from(aya::maps::Map::Array(data)).unwrap();
    abi.set(0, lb_common::ABI_VERSION + 1, 0).unwrap();
    let error = refused(&settings).to_string();
    let versions = format!(
        "have ABI version {}, this weir has {}",
        lb_common::ABI_VERSION + 1,
        lb_common::ABI_VERSION
    );
    assert!(
        error.contains(&versions) && error.contains("weir detach --all"),
        "{error}"
    );
    assert_eq!(first.row(5).unwrap(), Row::settled(slot(1)));
}

#[test]
fn what_does_not_fit_is_refused_by_name() {
    let (settings, _removed) = settings();
    let mut kernel = load(&settings).unwrap();
    let service = Service {
        ring_base: 0,
        ring_mask: 0,
        slot: 0,
        flags: 0,
        guard_list: 0,
        _pad: 0,
    };
    // One more than there may be services, for one that changes its VIP.
    for last in 0..5 {
        let vip = Vip {
            address: [198, 18, 9, last].into(),
            ..vip()
        };
        kernel.set_service(&vip, &service).unwrap();
    }
    let sixth = Vip {
        address: [198, 18, 9, 9].into(),
        ..vip()
    };
    let error = kernel
        .set_service(&sixth, &service)
        .unwrap_err()
        .to_string();
    assert_eq!(error, "the map SERVICES_V4 is full: it has 5 entries");
    let error = kernel.set_row(256, Row::EMPTY).unwrap_err().to_string();
    assert_eq!(
        error,
        "index 256 is outside of the map RING, which has 256 entries"
    );
    assert!(kernel.set_head(slot(5), Head::default()).is_err());
}

#[test]
fn a_directory_elsewhere_is_refused() {
    let (settings, _removed) = settings();
    let directory = tempfile::tempdir().unwrap();
    let other = Settings {
        pin_dir: directory.path().join("pins"),
        ..settings
    };
    let error = load(&other).err().expect("a refusal").to_string();
    assert!(error.contains("is not in a BPF file system"), "{error}");
}
