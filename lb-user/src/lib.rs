//! Weir's control plane: a library, and the one binary `weir`.
#![deny(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

pub mod api;
pub mod cli;
pub mod config;
pub mod daemon;
pub mod dataplane;
pub mod decap;
pub mod engine;
pub mod health;
pub mod model;
pub mod netlink;
pub mod plan;
pub mod ring;
pub mod spec;
pub mod state;
pub mod template;
pub mod translation;
