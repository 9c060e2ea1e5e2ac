//! The harness of the suites that need a kernel, and root: namespaces, real servers and clients,
//! the real daemon.
#![expect(
    clippy::missing_panics_doc,
    reason = "a harness that can't do its work ends the test"
)]

pub mod bulk;
pub mod decap;
pub mod driver;
pub mod frame;
pub mod http;
pub mod lan;
pub mod names;
pub mod nat;
pub mod netns;
pub mod oracle;
pub mod pass;
pub mod pieces;
pub mod ping;
pub mod program;
pub mod rows;
pub mod schema;
pub mod server;
pub mod stream;
pub mod vm;
pub mod wait;
pub mod weir;
