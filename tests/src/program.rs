//! The loaded program under `BPF_PROG_TEST_RUN`, with everything that it counts.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::num::NonZeroU16;

use lb_common::backend::{BackendSlot, Head, Template};
use lb_common::flow::Table;
use lb_common::hash::HashKey;
use lb_common::nat::{NatSource, Translation};
use lb_common::row::Row;
use lb_common::service::{Service, VIP_NAT_SOURCE};
use lb_common::stats::Reason;
use lb_user::dataplane::{
    Dataplane as _, Explained, FlowKey, Kernel, Pins, Settings, load, nat_filter_index,
    vip_filter_entries,
};
use lb_user::model::{
    Backend, EncapSource, Forward, L4Protocol, Limits, Mac, NextHop, ServicePort, TagProtocol, Vip,
    Vlan, VlanTag, Weight,
};

use lb_user::translation::end;

use crate::netns;

/// Dropped.
pub const XDP_DROP: u32 = 1;
/// Given to the host's stack.
pub const XDP_PASS: u32 = 2;
/// Sent out of the interface that it came in by.
pub const XDP_TX: u32 = 3;
/// Sent out of another interface.
pub const XDP_REDIRECT: u32 = 4;

/// The Ethernet address that templates send from.
pub const OWN: [u8; 6] = [2, 0, 0, 0, 0, 0xee];
/// The outer addresses of this host.
pub const SOURCE4: [u8; 4] = [198, 18, 0, 1];
/// The outer addresses of this host.
pub const SOURCE6: [u16; 8] = [0x2001, 0xdb8, 0, 0, 0, 0, 0, 1];

/// What backends there are: slots 1 to this.
const BACKENDS: u32 = 8;
const SERVICES: u32 = 8;
const HTTP: NonZeroU16 = NonZeroU16::new(80).expect("a port");

/// Returns a backend's slot.
#[must_use]
pub fn slot(number: u32) -> BackendSlot {
    BackendSlot::new(number).expect("a slot")
}

/// Returns a backend's Ethernet address.
#[must_use]
pub const fn mac(number: u32) -> [u8; 6] {
    [2, 0, 0, 0, 1, number as u8]
}

/// Returns a backend's address.
#[must_use]
pub fn address(number: u32, v4: bool) -> IpAddr {
    if v4 {
        IpAddr::from([198, 18, 1, number as u8])
    } else {
        IpAddr::from([0x2001, 0xdb8, 1, 0, 0, 0, 0, number as u16])
    }
}

/// A loaded program with maps of its own.
pub struct Program {
    /// The data plane.
    pub kernel: Kernel,
    pins: Pins,
    hash_key: HashKey,
    services: u32,
    rows: u32,
}

/// Everything that a packet may change: counters that are not zero, and flow table entries as
/// (backend, generation, flags).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Traces {
    /// Counters by name.
    pub counters: BTreeMap<String, u64>,
    /// Flow table entries.
    pub flows: BTreeMap<(Table, FlowKey), (u32, u16, u16)>,
}

impl Traces {
    /// Returns by how much each counter grew; those that did not are not there.
    #[must_use]
    pub fn since(&self, before: &Self) -> BTreeMap<String, u64> {
        let mut grown = BTreeMap::new();
        for (name, count) in &self.counters {
            let more = count - before.counters.get(name).copied().unwrap_or(0);
            if more > 0 {
                grown.insert(name.clone(), more);
            }
        }
        grown
    }
}

/// Returns counters as [`Traces::since`] does.
#[must_use]
pub fn grown(counters: &[(&str, u64)]) -> BTreeMap<String, u64> {
    let counters = counters.iter().filter(|(_, count)| *count > 0);
    counters
        .map(|(name, count)| ((*name).to_owned(), *count))
        .collect()
}

impl Default for Program {
    fn default() -> Self {
        Self::new(64)
    }
}

impl Program {
    /// Loads the program; each of its flow tables has room for `flows` entries.
    #[must_use]
    pub fn new(flows: u32) -> Self {
        Self::with_tables([flows; 3])
    }

    /// Loads the program; its tables of half-open, confirmed and kept flows have room for so many
    /// entries.
    #[must_use]
    pub fn with_tables([half_open_flows, confirmed_flows, kept_flows]: [u32; 3]) -> Self {
        assert!(
            nix::unistd::geteuid().is_root(),
            "this test loads BPF programs and needs root: run it by `sudo -E cargo xtask test`"
        );
        let directory = netns::pins("prog");
        let hash_key = HashKey(std::array::from_fn(|at| 0x9e37_79b9_7f4a_7c15 ^ at as u64));
        let settings = Settings {
            pin_dir: directory.clone(),
            limits: Limits {
                services: SERVICES,
                backends: BACKENDS,
                rows: 256,
                half_open_flows,
                confirmed_flows,
                kept_flows,
                fragments: 1024,
                guard_prefixes: 1 << 18,
                guard_sources: 256,
            },
            hash_key,
        };
        Self {
            kernel: load(&settings).expect("loading the program"),
            pins: Pins::new(directory),
            hash_key,
            services: 0,
            rows: 0,
        }
    }

    /// Returns where its maps are pinned.
    #[must_use]
    pub fn pins(&self) -> &Pins {
        &self.pins
    }

    /// Returns its secret.
    #[must_use]
    pub fn hash_key(&self) -> HashKey {
        self.hash_key
    }

    /// Takes all services and flow table entries away, so that others can be added. Counters stay.
    pub fn clear(&mut self) {
        let kernel = &mut self.kernel;
        for (vip, _) in kernel.services().expect("the services") {
            kernel.remove_service(&vip).expect("a service");
            for (index, _) in vip_filter_entries(&vip) {
                kernel.set_vip_filter(index, 0).expect("the filter");
            }
            kernel.remove_address(vip.address).expect("an address");
        }
        let mut flows = Vec::new();
        let mut visit = |table, key, _| flows.push((table, key));
        kernel.visit_flows(&mut visit).expect("the flow tables");
        for (table, key) in flows {
            kernel.remove_flow(table, &key).expect("an entry");
        }
        (self.services, self.rows) = (0, 0);
    }

    /// Adds a service with these rows, a power of two of them. Returns its slot and first row.
    pub fn service(
        &mut self,
        vip: IpAddr,
        port: u16,
        protocol: L4Protocol,
        rows: &[Row],
    ) -> (u32, u32) {
        let (service, base) = (self.services, self.rows);
        self.services += 1;
        self.rows += rows.len() as u32;
        for (index, row) in (base..).zip(rows) {
            self.kernel.set_row(index, *row).expect("a row");
        }
        let port = NonZeroU16::new(port).map_or(ServicePort::Any, ServicePort::Exact);
        let value = Service {
            ring_base: base,
            ring_mask: rows.len() as u32 - 1,
            slot: service,
            flags: 0,
            guard_list: 0,
            _pad: 0,
        };
        let vip = Vip {
            address: vip,
            port,
            protocol,
        };
        self.kernel.set_service(&vip, &value).expect("a service");
        for (index, kind) in vip_filter_entries(&vip) {
            let kinds = self.kernel.vip_filter(index).expect("the filter");
            self.kernel
                .set_vip_filter(index, kinds | kind)
                .expect("the filter");
        }
        self.kernel.add_address(vip.address).expect("an address");
        (service, base)
    }

    /// Changes the value of every service.
    pub fn change_services(&mut self, change: impl Fn(&mut Service)) {
        for (vip, mut service) in self.kernel.services().expect("the services") {
            change(&mut service);
            self.kernel.set_service(&vip, &service).expect("a service");
        }
    }

    /// Makes a backend of a service on port 80 reachable: out of `ifindex` (1 is where test runs come in by).
    pub fn backend(&mut self, number: u32, vip: IpAddr, how: &How) {
        self.backend_at(number, number, vip, how);
    }

    /// As [`Self::backend`], with the addresses of backend `place`.
    pub fn backend_at(&mut self, number: u32, place: u32, vip: IpAddr, how: &How) {
        let template = template(place, address(place, how.outer_v4), vip, how);
        self.template(number, &template);
    }

    /// Sets a backend's template and makes it live.
    pub fn template(&mut self, number: u32, template: &Template) {
        self.kernel
            .set_template(slot(number), 0, template)
            .expect("a template");
        self.head(number, Head::new(0, true, true, 0));
    }

    /// Sets a backend's head.
    pub fn head(&mut self, number: u32, head: Head) {
        self.kernel.set_head(slot(number), head).expect("a head");
    }

    /// Runs the program on a frame. Returns the verdict and the frame afterwards.
    pub fn run(&mut self, frame: &[u8]) -> (u32, Vec<u8>) {
        self.kernel.run(frame, 0).expect("a test run")
    }

    /// Runs the program on a frame that comes in by an interface of this network namespace.
    pub fn run_from(&mut self, frame: &[u8], ifindex: u32) -> (u32, Vec<u8>) {
        self.kernel.run(frame, ifindex).expect("a test run")
    }

    /// Makes the answers of backends reached by NAT come from a service. `vip` has its slot.
    pub fn nat_source(&mut self, number: u32, vip: Vip, service: u32, how: &How) {
        let at = Vip {
            address: address(number, vip.address.is_ipv4()),
            port: how.port.map_or(vip.port, ServicePort::Exact),
            ..vip
        };
        let source = NatSource {
            translation: Translation::new(end(&at), end(&vip)),
            service,
            _pad: 0,
        };
        self.kernel.set_nat_source(&at, &source).expect("a source");
        let index = nat_filter_index(&at);
        let kinds = self.kernel.vip_filter(index).expect("the filter");
        self.kernel
            .set_vip_filter(index, kinds | VIP_NAT_SOURCE)
            .expect("the filter");
    }

    /// Runs the explaining program on a frame.
    pub fn explain(&mut self, frame: &[u8]) -> Explained {
        self.kernel.explain(frame, 0).expect("a test run")
    }

    /// Returns everything that packets changed so far.
    #[must_use]
    pub fn traces(&self) -> Traces {
        let mut traces = Traces::default();
        let mut count = |name: String, count: u64| {
            if count > 0 {
                traces.counters.insert(name, count);
            }
        };
        for reason in Reason::ALL {
            count(
                reason.as_str().to_owned(),
                self.kernel.reason(reason).expect("a counter"),
            );
        }
        for number in 1..=BACKENDS {
            let stats = self.kernel.backend_stats(slot(number)).expect("counters");
            count(format!("backend {number} packets"), stats.packets);
            count(format!("backend {number} bytes"), stats.bytes);
            count(format!("backend {number} new flows"), stats.new_flows);
        }
        for service in 0..SERVICES {
            let stats = self.kernel.service_stats(service).expect("counters");
            count(format!("service {service} packets"), stats.packets);
            count(format!("service {service} bytes"), stats.bytes);
            count(format!("service {service} new flows"), stats.new_flows);
            count(format!("service {service} dropped"), stats.dropped);
            count(format!("service {service} refused"), stats.refused);
        }
        let flows = &mut traces.flows;
        self.kernel
            .visit_flows(&mut |table, key, entry| {
                flows.insert((table, key), (entry.backend, entry.generation, entry.flags));
            })
            .expect("the flow tables");
        traces
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        let _ = self.pins.remove_all();
    }
}

/// Returns the template that brings packets for port 80 of `vip` to a backend.
#[must_use]
pub fn template(number: u32, address: IpAddr, vip: IpAddr, how: &How) -> Template {
    let backend = Backend {
        address,
        weight: Weight::DEFAULT,
        draining: false,
        forward: how.forward,
        port: how.port,
        interface: None,
        mac: None,
    };
    let hop = NextHop {
        ifindex: how.ifindex,
        vlan: how.vlan(),
        source_mac: Mac(OWN),
        destination_mac: Mac(mac(number)),
        source_address: Some(if how.outer_v4 {
            IpAddr::from(SOURCE4)
        } else {
            IpAddr::from(SOURCE6)
        }),
        mtu: 1500,
    };
    let vip = Vip {
        address: vip,
        port: ServicePort::Exact(HTTP),
        protocol: L4Protocol::Tcp,
    };
    lb_user::template::build(vip, &backend, &hop, &how.source).expect("a template")
}

/// How a backend is reached.
#[derive(Clone, Copy, Debug)]
pub struct How {
    /// By which template.
    pub forward: Forward,
    /// Whether the outer header is IPv4.
    pub outer_v4: bool,
    /// The VLAN to tag frames with.
    pub vlan: Option<u16>,
    /// A provider's VLAN around that, with priority 3.
    pub around: Option<u16>,
    /// The interface to send from.
    pub ifindex: u32,
    /// The source addresses of outer headers.
    pub source: EncapSource,
    /// NAT: the VM's port, if it isn't the service's.
    pub port: Option<NonZeroU16>,
}

impl How {
    fn vlan(&self) -> Option<Vlan> {
        let vlan = self.vlan.map(Vlan::customer);
        let around = self.around.map(|id| VlanTag {
            protocol: TagProtocol::Service,
            id,
            priority: 3,
        });
        around.map_or(vlan, |tag| Vlan::push(vlan, tag))
    }

    /// Returns a way out of the interface that test runs come in by.
    #[must_use]
    pub const fn new(forward: Forward, outer_v4: bool) -> Self {
        Self {
            forward,
            outer_v4,
            vlan: None,
            around: None,
            ifindex: 1,
            source: EncapSource { v4: None, v6: None },
            port: None,
        }
    }
}
