use std::num::NonZeroU16;

use super::*;
use crate::model::{
    L4Protocol, Mac, Overlay, OverlayHeader, ServicePort, TagProtocol, Vlan, VlanTag, Vni, Weight,
};
use lb_common::backend::OVERLAY_MAX;

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
        port: None,
        interface: None,
        mac: None,
    }
}

fn vip(address: &str) -> Vip {
    Vip {
        address: address.parse().unwrap(),
        port: ServicePort::Exact(NonZeroU16::new(80).unwrap()),
        protocol: L4Protocol::Tcp,
    }
}

fn v4() -> Vip {
    vip("198.18.0.10")
}

fn v6() -> Vip {
    vip("2001:db8::10")
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
        vlan: Some(Vlan::customer(0x123)),
        ..hop("198.18.1.9")
    };
    let to = backend("198.18.1.1", Forward::L2);
    let template = build(v4(), &to, &hop, &EncapSource::default()).unwrap();
    assert_eq!(template.eth_len, 18);
    assert_eq!(template.eth[12..], [0x81, 0, 0x01, 0x23, 8, 0]);
}

#[test]
fn two_tags_stand_in_the_order_in_which_they_are_on_the_wire() {
    let service = VlanTag {
        protocol: TagProtocol::Service,
        id: 100,
        priority: 3,
    };
    let hop = NextHop {
        vlan: Vlan::push(Some(Vlan::customer(7)), service),
        ..hop("198.18.1.9")
    };
    let to = backend("198.18.1.1", Forward::L2);
    let template = build(v6(), &to, &hop, &EncapSource::default()).unwrap();
    assert_eq!(template.eth_len, 22);
    assert_eq!(
        template.ethernet()[12..],
        [0x88, 0xa8, 0x60, 100, 0x81, 0, 0, 7, 0x86, 0xdd]
    );
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

fn overlay(header: OverlayHeader) -> Overlay {
    Overlay {
        header,
        vni: Vni::new(0x12_3456).unwrap(),
        port: header.default_port(),
        mac: Some(Mac([0x52, 0x54, 0, 0, 0, 5])),
        source_mac: None,
    }
}

#[test]
fn vxlan_ends_with_its_header_and_the_vms_ethernet_header() {
    for (vip, ethertype) in [(v4(), [8, 0]), (v6(), [0x86, 0xdd])] {
        let to = backend(
            "198.18.1.1",
            Forward::Overlay(overlay(OverlayHeader::Vxlan)),
        );
        let template = build(vip, &to, &hop("198.18.1.9"), &EncapSource::default()).unwrap();
        assert_eq!(template.kind(), TemplateKind::Ipv4Overlay);
        assert_eq!(template.eth[12..14], [8, 0], "the outer packet is IPv4");
        assert_eq!(template.outer[9], 17);
        assert_eq!(template.outer[22..24], 4789_u16.to_be_bytes());
        assert_eq!(template.overlay_len, 22);
        assert_eq!(overhead(&to), 20 + 8 + 8 + 14);
        let expected = [
            [0x08, 0, 0, 0, 0x12, 0x34, 0x56, 0].as_slice(),
            &[0x52, 0x54, 0, 0, 0, 5, 2, 0, 0, 0, 0, 1],
            &ethertype,
        ];
        assert_eq!(template.overlay[OVERLAY_MAX - 22..], expected.concat());
        assert_eq!(template.overlay[..OVERLAY_MAX - 22], [0; OVERLAY_MAX - 22]);
    }
}

#[test]
fn geneve_has_its_options_and_says_whether_one_is_critical() {
    let longest = format!("01030009{}", "11".repeat(36));
    for (options, flags) in [
        ("", 0),
        ("0102800100010002", 0x40),
        ("0102000100010002", 0),
        (longest.as_str(), 0),
    ] {
        let options = options.parse().unwrap();
        let geneve = Overlay {
            source_mac: Some(Mac([2, 9, 9, 9, 9, 9])),
            port: NonZeroU16::new(7777).unwrap(),
            ..overlay(OverlayHeader::Geneve(options))
        };
        let to = backend("2001:db8::1", Forward::Overlay(geneve));
        let template = build(v4(), &to, &hop("2001:db8::9"), &EncapSource::default()).unwrap();
        assert_eq!(template.kind(), TemplateKind::Ipv6Overlay);
        let len = 22 + options.as_bytes().len();
        assert_eq!(usize::from(template.overlay_len), len);
        assert_eq!(overhead(&to) as usize, 40 + 8 + len);
        let words = (options.as_bytes().len() / 4) as u8;
        let expected = [
            [words, flags, 0x65, 0x58, 0x12, 0x34, 0x56, 0].as_slice(),
            options.as_bytes(),
            &[0x52, 0x54, 0, 0, 0, 5, 2, 9, 9, 9, 9, 9, 8, 0],
        ]
        .concat();
        assert_eq!(template.overlay[OVERLAY_MAX - len..], expected);
        let pseudo = csum::sum(&template.outer[8..40])
            + csum::sum(&[0, 17])
            + csum::sum(&7777_u16.to_be_bytes());
        assert_eq!(
            csum::fold(u64::from(template.csum)),
            csum::fold(pseudo + csum::sum(&expected))
        );
    }
}

#[test]
fn the_longest_packet_is_what_the_ways_mtu_leaves() {
    let gue = Forward::Gue(NonZeroU16::new(6080).unwrap());
    let source = EncapSource {
        v4: Some(("198.19.5.77".parse().unwrap(), 32)),
        v6: Some(("2001:db8:5::77".parse().unwrap(), 128)),
    };
    let built = |to: &str, forward, mtu| {
        let hop = NextHop {
            mtu,
            ..hop("198.18.1.9")
        };
        build(v4(), &backend(to, forward), &hop, &source)
    };
    for (to, forward, overhead) in [
        ("198.18.1.1", Forward::L2, 0),
        ("198.18.1.1", Forward::Ipip, 20),
        ("2001:db8::1", Forward::Ipip, 40),
        ("198.18.1.1", gue, 28),
        ("2001:db8::1", gue, 48),
    ] {
        for mtu in [1280, 1500, 9000] {
            let max_len = built(to, forward, mtu).unwrap().max_len;
            assert_eq!(u32::from(max_len), mtu - overhead);
        }
        assert_eq!(
            built(to, forward, 65_536).unwrap().max_len,
            u16::MAX - (overhead as u16).saturating_sub(1)
        );
        assert_eq!(built(to, forward, 1 << 20).unwrap().max_len, u16::MAX);
        assert_eq!(built(to, forward, 68 + overhead).unwrap().max_len, 68);
        for mtu in [0, 20, 67 + overhead] {
            let error = built(to, forward, mtu).unwrap_err().to_string();
            let expected = format!(
                "an MTU of {mtu} bytes, of which outer headers take {overhead}: allowed is an MTU of {} or more",
                68 + overhead
            );
            assert!(error.ends_with(&expected), "{error}");
        }
    }
}

#[test]
fn nat_holds_the_vms_address_and_port_and_what_they_change() {
    let sum = |bytes: &[u8]| csum::fold(csum::sum(bytes));
    let cases: [(_, _, &[u8], &[u8]); 2] = [
        (v4(), "198.18.1.1", &[198, 18, 0, 10], &[198, 18, 1, 1]),
        (
            v6(),
            "2001:db8::1",
            &[0x20, 1, 0xd, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0x10],
            &[0x20, 1, 0xd, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1],
        ),
    ];
    for (vip, to, old, new) in cases {
        for port in [None, NonZeroU16::new(8080)] {
            let to = Backend {
                port,
                ..backend(to, Forward::Nat)
            };
            let hop = hop("198.18.1.9");
            let template = build(vip, &to, &hop, &EncapSource::default()).unwrap();
            assert_eq!(template.eth[6..12], hop.source_mac.0);
            let found = template.translation();
            let address: [u8; 16] = bytemuck::cast(found.address);
            assert_eq!(address[..new.len()], *new);
            assert_eq!(address[new.len()..], [0; 16][new.len()..]);
            assert_eq!(
                found.port.to_ne_bytes(),
                port.map_or([0; 2], |_| [0x1f, 0x90])
            );
            // What a checksum over the old bytes grows by is one over the new ones.
            let old_port: &[u8] = if port.is_some() { &[0, 80] } else { &[] };
            let new_port: &[u8] = if port.is_some() { &[0x1f, 0x90] } else { &[] };
            for (delta, old, new) in [
                (found.address_delta, old.to_vec(), new.to_vec()),
                (
                    found.delta,
                    [old, old_port].concat(),
                    [new, new_port].concat(),
                ),
            ] {
                let grown = csum::fold(u64::from(sum(&old)) + u64::from(delta));
                assert_eq!(grown, sum(&new));
            }
            let at = translation::at(&vip, &template);
            assert_eq!(at, Some(to.translated(&vip)));
        }
    }
}
