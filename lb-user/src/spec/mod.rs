//! What an operator writes: services, backends, health checks and interfaces as they stand in the
//! configuration file, in requests to the API and in the stored overrides.
//!
//! The types hold texts and numbers as written. [`ServiceSpec::to_model`] checks them and names
//! every field that is wrong, its value, and what is allowed.

mod backend;
mod check;
mod duration;
mod forward;
mod guard;
mod health;
mod interface;
mod overlay;
mod service;

#[cfg(test)]
mod tests;

pub use backend::BackendSpec;
pub use check::{Checker, SpecError};
pub use duration::{duration, show_duration};
pub use guard::{GuardSpec, ReadList, no_list, read_list, read_prefixes, shut};
pub use health::HealthSpec;
pub use interface::InterfaceSpec;
pub use overlay::OverlaySpec;
pub use service::{ServiceSpec, clashes};

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// A number, or a text that says more.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(untagged)]
pub enum NumberOrText {
    /// A number.
    Number(i64),
    /// A text.
    Text(String),
}

impl std::fmt::Display for NumberOrText {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Number(number) => write!(f, "{number}"),
            Self::Text(text) => write!(f, "\"{text}\""),
        }
    }
}
