//! Templates: the bytes in front of a packet that bring it to a backend, from what the operator
//! declared and what the kernel's routes and neighbours say.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use lb_common::{
    PROTO_IPIP, PROTO_IPV6, PROTO_UDP,
    backend::{ETH_MAX, OUTER_MAX, Template, TemplateKind},
    csum,
};

use crate::model::{Backend, EncapSource, Forward, NextHop};

const ETHERTYPE_IPV4: u16 = 0x0800;
const ETHERTYPE_IPV6: u16 = 0x86dd;
const ETHERTYPE_VLAN: u16 = 0x8100;
/// Time to live and hop limit of outer headers (the kernel's own default for tunnels).
const HOP_LIMIT: u8 = 64;

/// Why no template reaches a backend.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TemplateError {
    /// The outer header has no source address.
    #[error(
        "no source address for the outer {0} header: give the sending interface one, or set encap.{1}"
    )]
    NoSource(&'static str, &'static str),
}

/// Returns the template that brings packets for a service of `vip`'s family to `backend`.
pub fn build(
    vip: IpAddr,
    backend: &Backend,
    hop: &NextHop,
    source: &EncapSource,
) -> Result<Template, TemplateError> {
    let inner_proto = if vip.is_ipv4() {
        PROTO_IPIP
    } else {
        PROTO_IPV6
    };
    let template = match (backend.forward, backend.address) {
        (Forward::L2, _) => Outer {
            kind: TemplateKind::L2,
            ethertype: ethertype(vip),
            ..Outer::default()
        },
        (Forward::Ipip, IpAddr::V4(to)) => {
            Outer::ipv4(TemplateKind::Ipv4, source_v4(hop, source)?, to, inner_proto)
        }
        (Forward::Ipip, IpAddr::V6(to)) => {
            Outer::ipv6(TemplateKind::Ipv6, source_v6(hop, source)?, to, inner_proto)
        }
        (Forward::Gue(port), IpAddr::V4(to)) => {
            let mut outer = Outer::ipv4(
                TemplateKind::Ipv4Udp,
                source_v4(hop, source)?,
                to,
                PROTO_UDP,
            );
            put(&mut outer.bytes, 22, &port.get().to_be_bytes());
            outer
        }
        (Forward::Gue(port), IpAddr::V6(to)) => {
            let mut outer = Outer::ipv6(
                TemplateKind::Ipv6Udp,
                source_v6(hop, source)?,
                to,
                PROTO_UDP,
            );
            put(&mut outer.bytes, 42, &port.get().to_be_bytes());
            outer.csum += csum::sum(&[0, PROTO_UDP]) + csum::sum(&port.get().to_be_bytes());
            outer
        }
    };
    Ok(template.behind_ethernet(hop))
}

/// How many bytes a packet to `backend` grows by on the IP layer.
pub fn overhead(backend: &Backend) -> u32 {
    let ip = if backend.address.is_ipv4() { 20 } else { 40 };
    match backend.forward {
        Forward::L2 => 0,
        Forward::Ipip => ip,
        Forward::Gue(_) => ip + 8,
    }
}

/// The outer headers and what the program patches them with.
struct Outer {
    kind: TemplateKind,
    ethertype: u16,
    bytes: [u8; OUTER_MAX],
    csum: u64,
    entropy_mask: u32,
}

impl Default for Outer {
    fn default() -> Self {
        Self {
            kind: TemplateKind::Unreachable,
            ethertype: 0,
            bytes: [0; OUTER_MAX],
            csum: 0,
            entropy_mask: 0,
        }
    }
}

impl Outer {
    fn ipv4(kind: TemplateKind, (from, mask): (Ipv4Addr, u32), to: Ipv4Addr, proto: u8) -> Self {
        let mut outer = Self {
            kind,
            ethertype: ETHERTYPE_IPV4,
            entropy_mask: mask.to_be(),
            ..Self::default()
        };
        put(&mut outer.bytes, 0, &[0x45]);
        put(&mut outer.bytes, 8, &[HOP_LIMIT, proto]);
        put(&mut outer.bytes, 12, &from.octets());
        put(&mut outer.bytes, 16, &to.octets());
        outer.csum = csum::sum(outer.bytes.get(..20).unwrap_or_default());
        outer
    }

    fn ipv6(kind: TemplateKind, (from, mask): (Ipv6Addr, u32), to: Ipv6Addr, next: u8) -> Self {
        let mut outer = Self {
            kind,
            ethertype: ETHERTYPE_IPV6,
            entropy_mask: mask.to_be(),
            ..Self::default()
        };
        put(&mut outer.bytes, 0, &[0x60]);
        put(&mut outer.bytes, 6, &[next, HOP_LIMIT]);
        put(&mut outer.bytes, 8, &from.octets());
        put(&mut outer.bytes, 24, &to.octets());
        if matches!(kind, TemplateKind::Ipv6Udp) {
            outer.csum = csum::sum(&from.octets()) + csum::sum(&to.octets());
        }
        outer
    }

    fn behind_ethernet(self, hop: &NextHop) -> Template {
        let mut eth = [0; ETH_MAX];
        put(&mut eth, 0, &hop.destination_mac.0);
        put(&mut eth, 6, &hop.source_mac.0);
        let eth_len = match hop.vlan {
            None => {
                put(&mut eth, 12, &self.ethertype.to_be_bytes());
                14
            }
            Some(tag) => {
                put(&mut eth, 12, &ETHERTYPE_VLAN.to_be_bytes());
                put(&mut eth, 14, &tag.to_be_bytes());
                put(&mut eth, 16, &self.ethertype.to_be_bytes());
                18
            }
        };
        Template {
            kind: self.kind as u8,
            eth_len,
            ifindex: hop.ifindex,
            // The sum of at most 44 sixteen-bit words.
            csum: self.csum as u32,
            entropy_mask: self.entropy_mask,
            eth,
            outer: self.bytes,
            ..Template::UNREACHABLE
        }
    }
}

fn put(bytes: &mut [u8], at: usize, field: &[u8]) {
    for (to, from) in bytes.iter_mut().skip(at).zip(field) {
        *to = *from;
    }
}

fn ethertype(vip: IpAddr) -> u16 {
    if vip.is_ipv4() {
        ETHERTYPE_IPV4
    } else {
        ETHERTYPE_IPV6
    }
}

/// Returns the source address with its entropy bits zero, and the mask of those bits.
fn source_v4(hop: &NextHop, source: &EncapSource) -> Result<(Ipv4Addr, u32), TemplateError> {
    match (source.v4, hop.source_address) {
        (Some((address, prefix)), _) => {
            let mask = u32::MAX.checked_shr(prefix.into()).unwrap_or(0);
            Ok((Ipv4Addr::from_bits(address.to_bits() & !mask), mask))
        }
        (None, Some(IpAddr::V4(address))) => Ok((address, 0)),
        (None, _) => Err(TemplateError::NoSource("IPv4", "source_v4")),
    }
}

/// As [`source_v4`]; the mask covers the last 32 bits at most.
fn source_v6(hop: &NextHop, source: &EncapSource) -> Result<(Ipv6Addr, u32), TemplateError> {
    match (source.v6, hop.source_address) {
        (Some((address, prefix)), _) => {
            let mask = u128::MAX.checked_shr(prefix.into()).unwrap_or(0);
            // Bits that a hash does not fill stay zero, as the prefix has them.
            let address = Ipv6Addr::from_bits(address.to_bits() & !mask);
            Ok((address, mask as u32))
        }
        (None, Some(IpAddr::V6(address))) => Ok((address, 0)),
        (None, _) => Err(TemplateError::NoSource("IPv6", "source_v6")),
    }
}

#[cfg(test)]
mod tests {
    use std::num::NonZeroU16;

    use super::*;
    use crate::model::{Mac, Weight};

    fn hop(source: &str) -> NextHop {
        NextHop {
            ifindex: 7,
            vlan: None,
            source_mac: Mac([2, 0, 0, 0, 0, 1]),
            destination_mac: Mac([2, 0, 0, 0, 0, 2]),
            source_address: Some(source.parse().unwrap()),
            mtu: 1500,
        }
    }

    fn backend(address: &str, forward: Forward) -> Backend {
        Backend {
            address: address.parse().unwrap(),
            weight: Weight::DEFAULT,
            draining: false,
            forward,
            interface: None,
            mac: None,
        }
    }

    fn v4() -> IpAddr {
        "198.18.0.10".parse().unwrap()
    }

    fn v6() -> IpAddr {
        "2001:db8::10".parse().unwrap()
    }

    #[test]
    fn l2_is_an_ethernet_header_of_the_services_family() {
        for (vip, ethertype) in [(v4(), [8, 0]), (v6(), [0x86, 0xdd])] {
            let to = backend("198.18.1.1", Forward::L2);
            let template = build(vip, &to, &hop("198.18.1.9"), &EncapSource::default()).unwrap();
            assert_eq!(template.kind(), TemplateKind::L2);
            assert_eq!(template.ifindex, 7);
            assert_eq!(template.eth_len, 14);
            assert_eq!(template.eth[..6], [2, 0, 0, 0, 0, 2]);
            assert_eq!(template.eth[6..12], [2, 0, 0, 0, 0, 1]);
            assert_eq!(template.eth[12..14], ethertype);
            assert_eq!(template.outer, [0; OUTER_MAX]);
        }
    }

    #[test]
    fn a_vlan_puts_its_tag_before_the_ethertype() {
        let hop = NextHop {
            vlan: Some(0x123),
            ..hop("198.18.1.9")
        };
        let to = backend("198.18.1.1", Forward::L2);
        let template = build(v4(), &to, &hop, &EncapSource::default()).unwrap();
        assert_eq!(template.eth_len, 18);
        assert_eq!(template.eth[12..], [0x81, 0, 0x01, 0x23, 8, 0]);
    }

    #[test]
    fn ipip_names_what_is_inside_and_sums_what_is_constant() {
        for (vip, proto) in [(v4(), 4), (v6(), 41)] {
            let to = backend("198.18.1.1", Forward::Ipip);
            let template = build(vip, &to, &hop("198.18.1.9"), &EncapSource::default()).unwrap();
            assert_eq!(template.kind(), TemplateKind::Ipv4);
            assert_eq!(template.eth[12..14], [8, 0]);
            let expected = [
                0x45, 0, 0, 0, 0, 0, 0, 0, 64, proto, 0, 0, 198, 18, 1, 9, 198, 18, 1, 1,
            ];
            assert_eq!(template.outer[..20], expected);
            assert_eq!(u64::from(template.csum), csum::sum(&expected));
            assert_eq!(template.entropy_mask, 0);
        }
    }

    #[test]
    fn a_source_prefix_leaves_its_host_bits_to_the_hash() {
        let source = EncapSource {
            v4: Some(("198.19.5.77".parse().unwrap(), 20)),
            v6: Some(("2001:db8:5::77".parse().unwrap(), 64)),
        };
        let to = backend("198.18.1.1", Forward::Ipip);
        let template = build(v4(), &to, &hop("198.18.1.9"), &source).unwrap();
        assert_eq!(template.outer[12..16], [198, 19, 0, 0]);
        assert_eq!(template.entropy_mask.to_ne_bytes(), [0, 0, 0x0f, 0xff]);

        let to = backend("2001:db8::1", Forward::Ipip);
        let template = build(v4(), &to, &hop("198.18.1.9"), &source).unwrap();
        assert_eq!(template.outer[6..8], [4, 64]);
        assert_eq!(
            template.outer[8..24],
            "2001:db8:5::".parse::<Ipv6Addr>().unwrap().octets()
        );
        assert_eq!(template.entropy_mask, u32::MAX);
    }

    #[test]
    fn gue_over_ipv6_sums_its_pseudo_header() {
        let to = backend("2001:db8::1", Forward::Gue(NonZeroU16::new(6080).unwrap()));
        let template = build(v6(), &to, &hop("2001:db8::9"), &EncapSource::default()).unwrap();
        assert_eq!(template.kind(), TemplateKind::Ipv6Udp);
        assert_eq!(template.outer[6], 17);
        assert_eq!(template.outer[42..44], 6080_u16.to_be_bytes());
        let pseudo = csum::sum(&template.outer[8..40])
            + csum::sum(&[0, 17])
            + csum::sum(&6080_u16.to_be_bytes());
        assert_eq!(u64::from(template.csum), pseudo);
    }

    #[test]
    fn a_tunnel_without_a_source_address_says_what_to_do() {
        let to = backend("2001:db8::1", Forward::Ipip);
        let error = build(v4(), &to, &hop("198.18.1.9"), &EncapSource::default()).unwrap_err();
        assert!(error.to_string().contains("encap.source_v6"), "{error}");
    }

    #[test]
    fn a_full_prefix_means_a_fixed_source() {
        let source = EncapSource {
            v4: Some(("198.19.5.77".parse().unwrap(), 32)),
            v6: None,
        };
        let to = backend("198.18.1.1", Forward::Ipip);
        let template = build(v4(), &to, &hop("198.18.1.9"), &source).unwrap();
        assert_eq!(template.outer[12..16], [198, 19, 5, 77]);
        assert_eq!(template.entropy_mask, 0);
    }
}
