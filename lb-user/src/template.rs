//! Templates: the bytes in front of a packet that bring it to a backend, from what the operator
//! declared and what the kernel's routes and neighbours say.

mod overlay;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::num::NonZeroU16;

use lb_common::{
    PROTO_IPIP, PROTO_IPV6, PROTO_UDP,
    backend::{ETH_MAX, OUTER_MAX, Template, TemplateKind},
    csum,
    nat::Translation,
};

use crate::model::{Backend, EncapSource, Forward, NextHop, Vip};
use crate::translation;
use overlay::Part;

const ETHERTYPE_IPV4: u16 = 0x0800;
const ETHERTYPE_IPV6: u16 = 0x86dd;
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
    /// A VM in an overlay has no Ethernet address.
    #[error("no Ethernet address of the VM in the overlay: set overlay.mac")]
    NoInnerMac,
    /// No packet fits.
    #[error(
        "the way to it has an MTU of {mtu} bytes, of which outer headers take {overhead}: allowed is an MTU of {} or more",
        LEAST + overhead
    )]
    TooNarrow {
        /// The MTU.
        mtu: u32,
        /// What is put in front of a packet.
        overhead: u32,
    },
}

/// What every IPv4 link carries (RFC 791 §3.2).
const LEAST: u32 = 68;

/// Returns the template that brings packets for `vip` to `backend`.
pub fn build(
    vip: Vip,
    backend: &Backend,
    hop: &NextHop,
    source: &EncapSource,
) -> Result<Template, TemplateError> {
    let inner_proto = if vip.address.is_ipv4() {
        PROTO_IPIP
    } else {
        PROTO_IPV6
    };
    let template = match (backend.forward, backend.address) {
        (Forward::L2, _) => Outer {
            kind: TemplateKind::L2,
            ethertype: ethertype(vip.address),
            ..Outer::default()
        },
        (Forward::Nat, _) => Outer::nat(vip, backend),
        (Forward::Ipip, IpAddr::V4(to)) => {
            Outer::ipv4(TemplateKind::Ipv4, source_v4(hop, source)?, to, inner_proto)
        }
        (Forward::Ipip, IpAddr::V6(to)) => {
            Outer::ipv6(TemplateKind::Ipv6, source_v6(hop, source)?, to, inner_proto)
        }
        (Forward::Gue(port), IpAddr::V4(to)) => {
            Outer::udp_v4(TemplateKind::Ipv4Udp, source_v4(hop, source)?, to, port)
        }
        (Forward::Gue(port), IpAddr::V6(to)) => {
            Outer::udp_v6(TemplateKind::Ipv6Udp, source_v6(hop, source)?, to, port)
        }
        (Forward::Overlay(overlay), to) => {
            let part = Part::new(&overlay, ethertype(vip.address), hop.source_mac)?;
            let outer = match to {
                IpAddr::V4(to) => {
                    let source = source_v4(hop, source)?;
                    Outer::udp_v4(TemplateKind::Ipv4Overlay, source, to, overlay.port)
                }
                IpAddr::V6(to) => {
                    let source = source_v6(hop, source)?;
                    let outer = Outer::udp_v6(TemplateKind::Ipv6Overlay, source, to, overlay.port);
                    let csum = outer.csum + part.sum();
                    Outer { csum, ..outer }
                }
            };
            Outer { part, ..outer }
        }
    };
    Ok(Template {
        max_len: max_len(hop.mtu, overhead(backend))?,
        ..template.behind_ethernet(hop)
    })
}

/// Returns the longest packet that fits a way with this MTU behind so many bytes of headers.
fn max_len(mtu: u32, overhead: u32) -> Result<u16, TemplateError> {
    let left = mtu.saturating_sub(overhead);
    if left < LEAST {
        return Err(TemplateError::TooNarrow { mtu, overhead });
    }
    // No packet is longer.
    Ok(u16::try_from(left).unwrap_or(u16::MAX))
}

/// How many bytes a packet to `backend` grows by on the IP layer.
pub fn overhead(backend: &Backend) -> u32 {
    let ip = if backend.address.is_ipv4() { 20 } else { 40 };
    match backend.forward {
        Forward::L2 | Forward::Nat => 0,
        Forward::Ipip => ip,
        Forward::Gue(_) => ip + 8,
        Forward::Overlay(overlay) => ip + 8 + overlay::part_len(&overlay) as u32,
    }
}

/// The outer headers and what the program patches them with.
struct Outer {
    kind: TemplateKind,
    ethertype: u16,
    bytes: [u8; OUTER_MAX],
    csum: u64,
    entropy_mask: u32,
    part: Part,
}

impl Default for Outer {
    fn default() -> Self {
        Self {
            kind: TemplateKind::Unreachable,
            ethertype: 0,
            bytes: [0; OUTER_MAX],
            csum: 0,
            entropy_mask: 0,
            part: Part::NONE,
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
        outer
    }

    fn udp_v4(kind: TemplateKind, from: (Ipv4Addr, u32), to: Ipv4Addr, port: NonZeroU16) -> Self {
        let mut outer = Self::ipv4(kind, from, to, PROTO_UDP);
        put(&mut outer.bytes, 22, &port.get().to_be_bytes());
        outer
    }

    fn udp_v6(kind: TemplateKind, from: (Ipv6Addr, u32), to: Ipv6Addr, port: NonZeroU16) -> Self {
        let mut outer = Self::ipv6(kind, from, to, PROTO_UDP);
        let port = port.get().to_be_bytes();
        put(&mut outer.bytes, 42, &port);
        outer.csum = csum::sum(&from.0.octets())
            + csum::sum(&to.octets())
            + csum::sum(&[0, PROTO_UDP])
            + csum::sum(&port);
        outer
    }

    /// Nothing outside: the packet's own address and port change.
    fn nat(vip: Vip, backend: &Backend) -> Self {
        let kind = if vip.address.is_ipv4() {
            TemplateKind::NatIpv4
        } else {
            TemplateKind::NatIpv6
        };
        let to = Translation::new(
            translation::end(&vip),
            translation::end(&backend.translated(&vip)),
        );
        let mut outer = Self {
            kind,
            ethertype: ethertype(vip.address),
            ..Self::default()
        };
        put(&mut outer.bytes, 0, bytemuck::bytes_of(&to));
        outer
    }

    fn behind_ethernet(self, hop: &NextHop) -> Template {
        let mut eth = [0; ETH_MAX];
        put(&mut eth, 0, &hop.destination_mac.0);
        put(&mut eth, 6, &hop.source_mac.0);
        let tags = hop.vlan.map(|vlan| [Some(vlan.outermost), vlan.inner]);
        let mut at = 12;
        for tag in tags.into_iter().flatten().flatten() {
            put(&mut eth, at, &tag.to_bytes());
            at += 4;
        }
        put(&mut eth, at, &self.ethertype.to_be_bytes());
        let template = Template {
            kind: self.kind as u8,
            ifindex: hop.ifindex,
            // The sum of at most 76 sixteen-bit words.
            csum: self.csum as u32,
            entropy_mask: self.entropy_mask,
            overlay_len: self.part.len(),
            outer: self.bytes,
            overlay: self.part.bytes(),
            ..Template::UNREACHABLE
        };
        template.with_ethernet(eth, at as u8 + 2)
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
mod tests;
