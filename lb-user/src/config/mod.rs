//! The configuration file, `weir.toml`.
//!
//! A file is read whole or not at all: an unknown key, a wrong value or half a file is an error
//! that names the line, and changes nothing.

mod diff;
mod file;
mod fit;

#[cfg(test)]
mod tests;

use std::path::{Path, PathBuf};

pub use diff::{Difference, diff};

use crate::model::Desired;

/// Where the daemon keeps what it needs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Paths {
    /// The state directory.
    pub state: PathBuf,
    /// The API's socket.
    pub socket: PathBuf,
    /// The pinned maps and links, in a BPF file system.
    pub pins: PathBuf,
}

impl Default for Paths {
    fn default() -> Self {
        Self {
            state: "/var/lib/weir".into(),
            socket: "/run/weir/api.sock".into(),
            pins: "/sys/fs/bpf/weir".into(),
        }
    }
}

/// A valid configuration.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Config {
    /// Where the daemon keeps what it needs.
    pub paths: Paths,
    /// What the operator declares.
    pub desired: Desired,
}

/// Why there is no configuration.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file can't be read.
    #[error("{path}")]
    Read {
        /// The file.
        path: PathBuf,
        /// What the kernel said.
        #[source]
        source: std::io::Error,
    },
    /// It is wrong.
    #[error("{}", Problem::join(.0))]
    Invalid(Vec<Problem>),
}

/// One thing that is wrong with a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// The file.
    pub file: String,
    /// The line, from 1.
    pub line: usize,
    /// What is wrong.
    pub message: String,
}

impl std::fmt::Display for Problem {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}:{}: {}", self.file, self.line, self.message)
    }
}

impl Problem {
    fn join(problems: &[Self]) -> String {
        let lines: Vec<String> = problems.iter().map(Self::to_string).collect();
        lines.join("\n")
    }
}

impl Config {
    /// Reads a file.
    pub fn load(path: &Path) -> Result<Self, ConfigError> {
        let text = std::fs::read_to_string(path).map_err(|source| ConfigError::Read {
            path: path.into(),
            source,
        })?;
        Self::parse(&text, &path.display().to_string())
    }

    /// Reads a text; errors call it `file`.
    pub fn parse(text: &str, file: &str) -> Result<Self, ConfigError> {
        file::parse(text, file).map_err(ConfigError::Invalid)
    }
}
