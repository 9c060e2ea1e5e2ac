use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::check::Checker;
use crate::model::{GeneveOptions, Mac, Overlay, OverlayHeader, Vni};

/// How VMs in an overlay network are reached, with `forward` `vxlan` or `geneve`. A backend's stands
/// over its service's, field by field.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct OverlaySpec {
    /// The virtual network's identifier, 0 to 16,777,215.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vni: Option<i64>,
    /// The UDP port of tunnel ends; default 4789 for VXLAN, 6081 for Geneve.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub port: Option<i64>,
    /// The VM's Ethernet address in the overlay. A backend's only, and there required.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mac: Option<String>,
    /// The Ethernet address that VMs see frames come from; default: the sending interface's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source_mac: Option<String>,
    /// `geneve`: options as they lie in the header, in hexadecimal digits, at most 40 bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub options: Option<String>,
}

impl OverlaySpec {
    /// Checks it for a header; `base` is what stands where it says nothing.
    pub(super) fn check(
        &self,
        check: &mut Checker,
        header: OverlayHeader,
        base: Option<Overlay>,
    ) -> Option<Overlay> {
        check.within("overlay", |check| {
            let vni = match (self.vni, base) {
                (Some(vni), _) => check.number("vni", vni, 0..=Vni::MAX).and_then(Vni::new),
                (None, Some(base)) => Some(base.vni),
                (None, None) => {
                    check.error("vni", format!("is missing: allowed is 0 to {}", Vni::MAX));
                    None
                }
            };
            let port = match (self.port, base) {
                (Some(port), _) => check.port("port", port),
                (None, base) => Some(base.map_or(header.default_port(), |base| base.port)),
            };
            let mac = |check: &mut Checker, field: &str, text: &Option<String>, base| match text {
                Some(text) => check.parse::<Mac>(field, text).map(Some),
                None => Some(base),
            };
            let own = mac(check, "mac", &self.mac, base.and_then(|base| base.mac));
            let source = base.and_then(|base| base.source_mac);
            let source_mac = mac(check, "source_mac", &self.source_mac, source);
            let header = match (header, &self.options) {
                (OverlayHeader::Geneve(_), Some(options)) => check
                    .parse::<GeneveOptions>("options", options)
                    .map(OverlayHeader::Geneve),
                (OverlayHeader::Geneve(_), None) => Some(base.map_or(header, |base| base.header)),
                (OverlayHeader::Vxlan, None) => Some(header),
                (OverlayHeader::Vxlan, Some(options)) => {
                    let message = format!("\"{options}\" is only allowed with forward \"geneve\"");
                    check.error("options", message);
                    None
                }
            };
            Some(Overlay {
                header: header?,
                vni: vni?,
                port: port?,
                mac: own?,
                source_mac: source_mac?,
            })
        })
    }
}

impl From<&Overlay> for OverlaySpec {
    fn from(overlay: &Overlay) -> Self {
        Self {
            vni: Some(overlay.vni.get().into()),
            port: Some(overlay.port.get().into()),
            mac: overlay.mac.map(|mac| mac.to_string()),
            source_mac: overlay.source_mac.map(|mac| mac.to_string()),
            options: match overlay.header {
                OverlayHeader::Vxlan => None,
                OverlayHeader::Geneve(options) => Some(options.to_string()),
            },
        }
    }
}
