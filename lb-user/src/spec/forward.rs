use super::check::Checker;
use super::overlay::OverlaySpec;
use crate::model::{Forward, GeneveOptions, Overlay, OverlayHeader};

/// What was written about how packets are forwarded.
#[derive(Clone, Copy, Debug)]
pub(super) struct ForwardSpec<'a> {
    pub forward: Option<&'a str>,
    pub gue_port: Option<i64>,
    pub overlay: Option<&'a OverlaySpec>,
}

impl ForwardSpec<'_> {
    /// Reads a service's.
    pub(super) fn of_service(&self, check: &mut Checker) -> Option<Forward> {
        let forward = self.check(check, Forward::L2)?;
        if self.overlay.is_some_and(|overlay| overlay.mac.is_some()) {
            check.within("overlay", |check| {
                check.error("mac", "is not allowed here: each backend has its own");
            });
            return None;
        }
        Some(forward)
    }

    /// Reads a backend's, whose service forwards by `service`.
    pub(super) fn of_backend(&self, check: &mut Checker, service: Forward) -> Option<Forward> {
        let forward = self.check(check, service)?;
        match forward {
            Forward::Overlay(Overlay { mac: None, .. }) => {
                let message =
                    "is missing: the VM's Ethernet address in the overlay, as in 52:54:00:12:34:56";
                check.within("overlay", |check| check.error("mac", message));
                None
            }
            Forward::L2 | Forward::Ipip | Forward::Gue(_) | Forward::Nat | Forward::Overlay(_) => {
                Some(forward)
            }
        }
    }

    fn check(&self, check: &mut Checker, base: Forward) -> Option<Forward> {
        let words = [
            ("l2", Word::L2),
            ("ipip", Word::Ipip),
            ("gue", Word::Gue),
            ("vxlan", Word::Overlay(OverlayHeader::Vxlan)),
            (
                "geneve",
                Word::Overlay(OverlayHeader::Geneve(GeneveOptions::NONE)),
            ),
            ("nat", Word::Nat),
        ];
        let text = self.forward.unwrap_or(base.as_str());
        let word = check.word("forward", text, &words)?;
        let gue = matches!(word, Word::Gue);
        if let (false, Some(port)) = (gue, self.gue_port) {
            check.error(
                "gue_port",
                format!("{port} is only allowed with forward \"gue\""),
            );
            return None;
        }
        let overlay = matches!(word, Word::Overlay(_));
        if !overlay && self.overlay.is_some() {
            check.error(
                "overlay",
                "is only allowed with forward \"vxlan\" or \"geneve\"",
            );
            return None;
        }
        // What a backend doesn't say stands in its service, if that forwards in the same way.
        let base = Some(base).filter(|base| base.as_str() == text);
        match (word, base) {
            (Word::L2, _) => Some(Forward::L2),
            (Word::Ipip, _) => Some(Forward::Ipip),
            (Word::Nat, _) => Some(Forward::Nat),
            (Word::Gue, base) => match self.gue_port {
                Some(port) => check.port("gue_port", port).map(Forward::Gue),
                None => Some(base.unwrap_or(Forward::Gue(Forward::GUE_PORT))),
            },
            (Word::Overlay(header), base) => {
                let base = match base {
                    Some(Forward::Overlay(base)) => Some(base),
                    Some(Forward::L2 | Forward::Ipip | Forward::Gue(_) | Forward::Nat) | None => {
                        None
                    }
                };
                let nothing = OverlaySpec::default();
                let spec = self.overlay.unwrap_or(&nothing);
                spec.check(check, header, base).map(Forward::Overlay)
            }
        }
    }
}

/// What may be written.
#[derive(Clone, Copy)]
enum Word {
    L2,
    Ipip,
    Gue,
    Nat,
    Overlay(OverlayHeader),
}

/// Returns the port if it is worth writing.
pub(super) fn gue_port_of(forward: Forward) -> Option<i64> {
    match forward {
        Forward::Gue(port) => Some(port.get().into()),
        Forward::L2 | Forward::Ipip | Forward::Nat | Forward::Overlay(_) => None,
    }
}

/// Returns the overlay if there is one to write.
pub(super) fn overlay_of(forward: Forward) -> Option<OverlaySpec> {
    match forward {
        Forward::Overlay(overlay) => Some(OverlaySpec::from(&overlay)),
        Forward::L2 | Forward::Ipip | Forward::Gue(_) | Forward::Nat => None,
    }
}
