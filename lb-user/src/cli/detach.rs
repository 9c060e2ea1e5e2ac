use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::ExitCode;

use anyhow::{Result, bail};

use crate::dataplane::Pins;

/// Removes all links and maps from the kernel.
#[expect(clippy::print_stdout, reason = "the command's answer")]
pub fn all(socket: &Path, pins: &Path) -> Result<ExitCode> {
    if UnixStream::connect(socket).is_ok() {
        bail!(
            "a weir is running at {}: stop it first, or detach single interfaces by `weir detach IFACE`",
            socket.display()
        );
    }
    let pins = Pins::new(pins);
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
