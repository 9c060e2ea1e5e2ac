use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use lb_common::decap::map_names::OUTCOMES;
use nix::sys::statfs::{BPF_FS_MAGIC, statfs};

use super::DecapError;
use crate::dataplane::{PinError, Pins};
use crate::spec::InterfaceSpec;

/// Where an interface's program is pinned: a directory of its name. Nothing but what is made here
/// is ever removed, and nothing at all outside a BPF file system.
#[derive(Debug)]
pub(super) struct Place {
    dir: PathBuf,
    interface: String,
    pins: Pins,
}

impl Place {
    /// Returns the place of an interface below `dir`; it need not exist.
    pub fn new(dir: &Path, interface: &str) -> Result<Self, DecapError> {
        let spec = InterfaceSpec {
            name: interface.to_owned(),
            mode: None,
        };
        spec.to_model().map_err(DecapError::Name)?;
        check(dir)?;
        Ok(Self {
            dir: dir.into(),
            interface: interface.to_owned(),
            pins: Pins::new(dir.join(interface)),
        })
    }

    /// Returns the pins.
    pub const fn pins(&self) -> &Pins {
        &self.pins
    }

    /// Returns whether the program is attached.
    pub fn is_attached(&self) -> bool {
        self.pins.link(&self.interface).exists()
    }

    /// Removes what is pinned, which detaches the program.
    pub fn clear(&self) -> Result<(), DecapError> {
        self.pins.remove_link(&self.interface)?;
        let counters = self.pins.map(OUTCOMES);
        match fs::remove_file(&counters) {
            Err(source) if source.kind() != io::ErrorKind::NotFound => {
                let path = counters;
                return Err(PinError::File { path, source }.into());
            }
            _ => {}
        }
        let links = self.pins.link("");
        for directory in [&links, self.pins.dir(), &self.dir] {
            // Whoever has something of his own in it keeps it; the last one takes it along.
            let _ = fs::remove_dir(directory);
        }
        Ok(())
    }
}

/// Refuses a directory that is there, and not in a BPF file system.
pub(super) fn check(dir: &Path) -> Result<(), PinError> {
    let elsewhere = statfs(dir).is_ok_and(|stat| stat.filesystem_type() != BPF_FS_MAGIC);
    if elsewhere {
        return Err(PinError::NotBpffs(dir.into()));
    }
    Ok(())
}
