//! The part of a template between the outer UDP header and the packet: the overlay's header, and the
//! Ethernet header that the VM sees.

use lb_common::{backend::OVERLAY_MAX, csum};

use super::{TemplateError, put};
use crate::model::{Mac, Overlay, OverlayHeader};

/// Length of the inner Ethernet header, in bytes.
const ETHERNET: usize = 14;
/// The first byte of a VXLAN header: the flag that says that there is a VNI (RFC 7348 §5).
const VXLAN_VNI_IS_VALID: u8 = 0x08;
/// The second byte of a Geneve header: the flag that some option is critical (RFC 8926 §3.4).
const GENEVE_CRITICAL: u8 = 0x40;
/// What is in a Geneve packet: an Ethernet frame ("transparent Ethernet bridging").
const ETHERTYPE_ETHERNET: u16 = 0x6558;

/// The part's bytes.
pub(super) struct Part {
    bytes: [u8; OVERLAY_MAX],
    len: usize,
}

impl Part {
    /// No overlay.
    pub(super) const NONE: Self = Self {
        bytes: [0; OVERLAY_MAX],
        len: 0,
    };

    /// Returns the part for packets of this type. VMs see them come from `source_mac`, if the
    /// overlay doesn't say otherwise.
    pub(super) fn new(
        overlay: &Overlay,
        ethertype: u16,
        source_mac: Mac,
    ) -> Result<Self, TemplateError> {
        let mac = overlay.mac.ok_or(TemplateError::NoInnerMac)?;
        let source_mac = overlay.source_mac.unwrap_or(source_mac);
        let [_, vni @ ..] = overlay.vni.get().to_be_bytes();
        let mut part = Self {
            len: part_len(overlay),
            ..Self::NONE
        };
        let start = OVERLAY_MAX.saturating_sub(part.len);
        match overlay.header {
            OverlayHeader::Vxlan => put(&mut part.bytes, start, &[VXLAN_VNI_IS_VALID]),
            OverlayHeader::Geneve(options) => {
                let words = (options.as_bytes().len() / 4) as u8;
                let flags = if options.critical() {
                    GENEVE_CRITICAL
                } else {
                    0
                };
                put(&mut part.bytes, start, &[words, flags]);
                put(
                    &mut part.bytes,
                    start + 2,
                    &ETHERTYPE_ETHERNET.to_be_bytes(),
                );
                put(&mut part.bytes, start + 8, options.as_bytes());
            }
        }
        put(&mut part.bytes, start + 4, &vni);
        let ethernet = OVERLAY_MAX - ETHERNET;
        put(&mut part.bytes, ethernet, &mac.0);
        put(&mut part.bytes, ethernet + 6, &source_mac.0);
        put(&mut part.bytes, ethernet + 12, &ethertype.to_be_bytes());
        Ok(part)
    }

    pub(super) const fn len(&self) -> u8 {
        self.len as u8
    }

    pub(super) const fn bytes(&self) -> [u8; OVERLAY_MAX] {
        self.bytes
    }

    /// Returns the one's-complement sum over the part, which has an even length.
    pub(super) fn sum(&self) -> u64 {
        csum::sum(&self.bytes)
    }
}

/// Returns the part's length in bytes: 22 for VXLAN, up to [`OVERLAY_MAX`] for Geneve.
pub(super) fn part_len(overlay: &Overlay) -> usize {
    overlay.header.header_len() + ETHERNET
}
