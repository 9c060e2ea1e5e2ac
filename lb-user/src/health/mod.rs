//! Health checks: probes of backends, and what follows from them.

mod checker;
mod machine;
mod probe;

#[cfg(test)]
mod tests;

pub use checker::{Checker, Report, Target};
pub use machine::Machine;
pub use probe::{ProbeError, probe};
