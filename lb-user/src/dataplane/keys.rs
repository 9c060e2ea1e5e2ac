//! VIPs as keys of the service maps.

use std::net::IpAddr;
use std::num::NonZeroU16;

use lb_common::service::{
    ServiceKey4, ServiceKey6, VIP_ADDRESS, VIP_ANY_PORT, VIP_EXACT, vip_filter_index,
};

use crate::model::{L4Protocol, ServicePort, Vip};

/// A VIP as a key of its family's service map.
pub(super) enum ServiceKey {
    V4(ServiceKey4),
    V6(ServiceKey6),
}

impl From<&Vip> for ServiceKey {
    fn from(vip: &Vip) -> Self {
        let port = match vip.port {
            ServicePort::Any => [0, 0],
            ServicePort::Exact(port) => port.get().to_be_bytes(),
        };
        let proto = vip.protocol.number();
        match vip.address {
            IpAddr::V4(address) => Self::V4(ServiceKey4 {
                vip: address.octets(),
                port,
                proto,
                _pad: 0,
            }),
            IpAddr::V6(address) => Self::V6(ServiceKey6 {
                vip: address.octets(),
                port,
                proto,
                _pad: 0,
            }),
        }
    }
}

/// Returns the VIP that a service map key stands for; nothing if the key is none of ours.
pub(super) fn vip(address: IpAddr, port: [u8; 2], proto: u8) -> Option<Vip> {
    let port = match NonZeroU16::new(u16::from_be_bytes(port)) {
        None => ServicePort::Any,
        Some(port) => ServicePort::Exact(port),
    };
    let protocol = match proto {
        lb_common::PROTO_TCP => L4Protocol::Tcp,
        lb_common::PROTO_UDP => L4Protocol::Udp,
        _ => return None,
    };
    Some(Vip {
        address,
        port,
        protocol,
    })
}

/// Returns the entry of the VIP filter that a VM's address has, whose answers are translated.
pub fn nat_filter_index(at: &Vip) -> u32 {
    vip_filter_index(u32::from_ne_bytes(last_four(at.address)), 0)
}

fn last_four(address: IpAddr) -> [u8; 4] {
    match address {
        IpAddr::V4(address) => address.octets(),
        IpAddr::V6(address) => {
            let [.., a, b, c, d] = address.octets();
            [a, b, c, d]
        }
    }
}

/// Returns the entries of the VIP filter that a VIP has, and the bits that it sets in there.
pub fn vip_filter_entries(vip: &Vip) -> [(u32, u8); 2] {
    let last = last_four(vip.address);
    let (port, kind) = match vip.port {
        ServicePort::Any => (0, VIP_ANY_PORT),
        ServicePort::Exact(port) => (port.get().to_be(), VIP_EXACT),
    };
    let index = |port| vip_filter_index(u32::from_ne_bytes(last), port);
    [(index(port), kind), (index(0), VIP_ADDRESS)]
}
