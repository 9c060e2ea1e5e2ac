use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::check::{Checker, SpecError};
use crate::model::{AttachMode, Interface};

/// An interface that the program is attached to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct InterfaceSpec {
    /// Its name.
    pub name: String,
    /// `native`, `generic` or `auto`; default `auto`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mode: Option<String>,
}

impl InterfaceSpec {
    /// Checks it. Whether the interface exists is only known when it is attached.
    pub fn to_model(&self) -> Result<(String, Interface), Vec<SpecError>> {
        let mut check = Checker::new(format!("interface \"{}\"", self.name));
        // IFNAMSIZ, and what the kernel refuses in a name (dev_valid_name).
        let valid = !matches!(self.name.as_str(), "" | "." | "..")
            && self.name.len() < 16
            && !self
                .name
                .contains(|c: char| c == '/' || c == ':' || c.is_whitespace());
        if !valid {
            let allowed = "allowed are 1 to 15 characters without '/', ':' and blanks";
            check.error(
                "name",
                format!(
                    "\"{}\" is not the name of an interface: {allowed}",
                    self.name
                ),
            );
        }
        let modes = [AttachMode::Native, AttachMode::Generic, AttachMode::Auto];
        let words = modes.map(|mode| (mode.as_str(), mode));
        let mode = match &self.mode {
            Some(mode) => check.word("mode", mode, &words),
            None => Some(AttachMode::Auto),
        };
        check.finish(mode.map(|mode| (self.name.clone(), Interface { mode })))
    }
}

impl From<(&String, &Interface)> for InterfaceSpec {
    fn from((name, interface): (&String, &Interface)) -> Self {
        Self {
            name: name.clone(),
            mode: Some(interface.mode.as_str().to_owned()),
        }
    }
}
