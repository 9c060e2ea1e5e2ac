//! The HTTP/JSON API on a Unix socket.
//!
//! Requests become [`Command`]s for the daemon's event loop, which alone knows the state; the
//! handlers here only translate.

mod client;
mod extract;
mod operations;
mod refusals;
mod routes;
mod socket;
mod types;

#[cfg(test)]
mod tests;

pub use client::{Client, ClientError};
pub use routes::{openapi, router};
pub use socket::{Socket, SocketError};
pub use types::*;

use tokio::sync::oneshot;

use crate::model::{BackendId, Name};
use crate::spec::{BackendSpec, InterfaceSpec, ServiceSpec};

/// The largest body of a request, in bytes: a file with half a million backends fits.
pub const BODY_MAX: usize = 64 << 20;

/// What a client asks of the daemon.
#[derive(Debug)]
pub enum Command {
    /// How everything is.
    Status,
    /// All counters.
    Stats,
    /// Compare the maps with what they should hold.
    Audit,
    /// What would the loaded program do with a packet?
    Explain(ExplainRequest),
    /// What would a configuration change?
    Diff(DiffRequest),
    /// Which lists of sources there are.
    Guard,
    /// Who would be let in?
    GuardTest(GuardTest),
    /// Load a list of sources.
    LoadList(ListLoad),
    /// Put the file's list in force again.
    ResetList(ListReset),
    /// Read the configuration file again.
    Reload,
    /// Add a service.
    AddService(Box<ServiceSpec>),
    /// Remove a service.
    RemoveService(Name),
    /// Add a backend.
    AddBackend(Name, Box<BackendSpec>),
    /// Change a backend.
    PatchBackend(BackendId, BackendPatch),
    /// Remove a backend.
    RemoveBackend(BackendId, RemoveBackend),
    /// Attach the program to an interface.
    Attach(InterfaceSpec),
    /// Detach it.
    Detach(String),
}

/// Why a command was refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Error {
    /// Something in it is wrong.
    Invalid(Vec<String>),
    /// It names something that isn't there.
    NotFound(String),
    /// It can't be done as things are.
    Conflict(Vec<String>),
    /// It should work, and doesn't.
    Internal(String),
}

impl Error {
    /// Returns the reasons.
    pub fn reasons(&self) -> Vec<String> {
        match self {
            Self::Invalid(reasons) | Self::Conflict(reasons) => reasons.clone(),
            Self::NotFound(reason) | Self::Internal(reason) => vec![reason.clone()],
        }
    }
}

/// The daemon's answer: a value of the type that the route promises.
pub type Reply = Result<serde_json::Value, Error>;

/// A command, and where the answer goes.
#[derive(Debug)]
pub struct Request {
    /// What is asked.
    pub command: Command,
    /// Where the answer goes.
    pub reply: oneshot::Sender<Reply>,
}
