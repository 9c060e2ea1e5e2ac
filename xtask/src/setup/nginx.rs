//! The web server of the demo, in `target/nginx`.
//!
//! Its package, installed, would serve on all addresses of this machine from then on, and after
//! every start of it. The demo only wants the program.

use std::fs;
use std::path::PathBuf;

use anyhow::{Context as _, Result};

use super::apt::Apt;
use super::unpack::find;
use crate::run::workspace;

fn directory() -> PathBuf {
    workspace().join("target/nginx")
}

/// Returns whether it is there.
pub fn installed() -> bool {
    directory().join("nginx").exists()
}

/// Takes it out of its package.
pub fn install(apt: &mut Apt) -> Result<()> {
    let unpacked = directory().join("unpacked");
    apt.unpack("nginx", &unpacked)?;
    let program = find(&unpacked.join("usr/sbin"), &|name| name == "nginx");
    // Renamed last: it says that all is there.
    let program = program.context("the package nginx has no program of that name")?;
    fs::rename(program, directory().join("nginx"))?;
    fs::remove_dir_all(unpacked)?;
    Ok(())
}
