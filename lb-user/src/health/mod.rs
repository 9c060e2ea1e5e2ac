//! Health checks: probes of backends, and what follows from them.

mod checker;
mod descriptors;
mod machine;
mod probe;
mod shortage;

#[cfg(test)]
mod tests;

pub use checker::{Checker, Report, Target};
pub use machine::Machine;
pub use probe::{ProbeError, probe};
