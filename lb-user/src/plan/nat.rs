use lb_common::nat::{NatSource, Translation};

use super::InstalledService;
use crate::model::{Name, Vip};
use crate::translation;

impl InstalledService {
    /// Returns what the answers of its backends come from, by the address and port that each one
    /// gets its packets at: also of those that are leaving, and have flows left.
    pub fn nat_sources(&self) -> impl Iterator<Item = (&Name, Vip, NatSource)> {
        let backends = self.backends.iter();
        backends.filter_map(|(name, backend)| {
            let at = translation::at(&self.vip, &backend.template)?;
            let source = NatSource {
                translation: Translation::new(translation::end(&at), translation::end(&self.vip)),
                service: self.slot,
                _pad: 0,
            };
            Some((name, at, source))
        })
    }
}
