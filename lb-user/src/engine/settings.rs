//! What the operator sets for all services, as packets read it.

use lb_common::rate::Rate;
use lb_common::settings::Settings;

use super::Engine;
use crate::dataplane::{Dataplane, MapError};
use crate::model::{Fragments, Icmp};

/// Returns what the settings map should hold, where a second has `hz` jiffies.
fn settings(icmp: &Icmp, fragments: &Fragments, hz: u64) -> Settings {
    let jiffies = fragments.timeout.as_secs().saturating_mul(hz);
    Settings {
        echo: u32::from(icmp.echo),
        drop_unknown_fragments: u32::from(fragments.drop_unknown),
        echo_rate: Rate::per_second(icmp.echo_rate),
        too_big_rate: Rate::per_second(icmp.too_big_rate),
        fragment_jiffies: u32::try_from(jiffies).unwrap_or(u32::MAX),
        _pad: 0,
    }
}

impl<D: Dataplane> Engine<D> {
    /// Brings the settings map to what is declared.
    pub(super) fn update_settings(&mut self) -> Result<(), MapError> {
        let declared = (self.desired.icmp, self.desired.fragments);
        if self.settings_of == Some(declared) {
            return Ok(());
        }
        let (icmp, fragments) = &declared;
        let wanted = settings(icmp, fragments, self.dataplane.clock()?.hz);
        if self.settings != wanted {
            self.dataplane.set_settings(&wanted)?;
            self.settings = wanted;
        }
        self.settings_of = Some(declared);
        Ok(())
    }
}
