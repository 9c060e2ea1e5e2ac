//! Addresses and ports as NAT templates hold them.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::num::NonZeroU16;

use lb_common::backend::{Template, TemplateKind};

use crate::model::{ServicePort, Vip};

/// Returns an address and a port as they lie in a packet; 0 for any port.
pub fn end(at: &Vip) -> ([u32; 4], u16) {
    let bytes = match at.address {
        IpAddr::V4(address) => {
            let [a, b, c, d] = address.octets();
            [a, b, c, d, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]
        }
        IpAddr::V6(address) => address.octets(),
    };
    let port = match at.port {
        ServicePort::Any => 0,
        ServicePort::Exact(port) => port.get().to_be(),
    };
    (bytemuck::cast(bytes), port)
}

/// Returns where a template of a NAT kind sends packets for a VIP.
pub fn at(vip: &Vip, template: &Template) -> Option<Vip> {
    let to = template.translation();
    let bytes: [u8; 16] = bytemuck::cast(to.address);
    let address = match template.kind() {
        TemplateKind::NatIpv4 => {
            let [a, b, c, d, ..] = bytes;
            IpAddr::from(Ipv4Addr::new(a, b, c, d))
        }
        TemplateKind::NatIpv6 => IpAddr::from(Ipv6Addr::from(bytes)),
        TemplateKind::Unreachable
        | TemplateKind::L2
        | TemplateKind::Ipv4
        | TemplateKind::Ipv6
        | TemplateKind::Ipv4Udp
        | TemplateKind::Ipv6Udp
        | TemplateKind::Ipv4Overlay
        | TemplateKind::Ipv6Overlay => return None,
    };
    let port = NonZeroU16::new(u16::from_be(to.port));
    Some(Vip {
        address,
        port: port.map_or(vip.port, ServicePort::Exact),
        protocol: vip.protocol,
    })
}
