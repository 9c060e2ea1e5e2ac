//! What the operator sets for all services, as packets read it.

use lb_common::rate::Rate;
use lb_common::settings::Settings;

use super::Engine;
use crate::dataplane::{Dataplane, MapError};
use crate::model::Desired;

/// Returns what the settings map should hold.
fn wanted(desired: &Desired) -> Settings {
    let icmp = &desired.icmp;
    Settings {
        echo: u32::from(icmp.echo),
        _pad: 0,
        echo_rate: Rate::per_second(icmp.echo_rate),
        too_big_rate: Rate::per_second(icmp.too_big_rate),
    }
}

impl<D: Dataplane> Engine<D> {
    /// Brings the settings map to what is declared.
    pub(super) fn update_settings(&mut self) -> Result<(), MapError> {
        let wanted = wanted(&self.desired);
        if self.settings != wanted {
            self.dataplane.set_settings(&wanted)?;
            self.settings = wanted;
        }
        Ok(())
    }
}
