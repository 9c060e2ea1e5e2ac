use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Result, bail};

use super::arguments::CONFIG;
use crate::config::{Config, Paths};
use crate::dataplane::Pins;
use crate::state::{Directory, StateError};

/// Removes all links and maps from the kernel, unless a daemon uses them.
#[expect(clippy::print_stdout, reason = "the command's answer")]
pub fn all(socket: &Path, config: Option<&Path>, pins: Option<PathBuf>) -> Result<ExitCode> {
    let paths = paths(config)?;
    for socket in [socket, &paths.socket] {
        if UnixStream::connect(socket).is_ok() {
            bail!(
                "a weir is running at {}: stop it first, or detach single interfaces by `weir detach IFACE`",
                socket.display()
            );
        }
    }
    // Held until the end: no daemon starts meanwhile.
    let _lock = lock(&paths.state)?;
    let pins = Pins::new(pins.unwrap_or(paths.pins));
    if !pins.exist() && pins.links()?.is_empty() {
        println!("Nothing is pinned in {}.", pins.dir().display());
        return Ok(ExitCode::SUCCESS);
    }
    let links = pins.links()?;
    pins.remove_all()?;
    for interface in links {
        println!("detached from {interface}");
    }
    println!("removed the maps in {}", pins.dir().display());
    Ok(ExitCode::SUCCESS)
}

/// Returns the paths of the daemon with that configuration, as `weir run` would take it.
fn paths(config: Option<&Path>) -> Result<Paths> {
    let default = Path::new(CONFIG);
    match config {
        Some(config) => Ok(Config::load(config)?.paths),
        None if default.exists() => Ok(Config::load(default)?.paths),
        None => Ok(Paths::default()),
    }
}

/// Locks the state directory, if there is one.
fn lock(state: &Path) -> Result<Option<Directory>> {
    if !state.exists() {
        return Ok(None);
    }
    match Directory::open(state) {
        Ok(directory) => Ok(Some(directory)),
        Err(StateError::Locked { dir, pid }) => bail!(
            "a weir is running (pid {pid}) with the state directory {}: stop it first, or detach single interfaces by `weir detach IFACE`",
            dir.display()
        ),
        Err(error) => Err(error.into()),
    }
}
