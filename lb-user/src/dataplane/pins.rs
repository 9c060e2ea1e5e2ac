//! Pinned maps and links in a directory of the BPF file system: what outlives the daemon.

use std::fs;
use std::io;
use std::os::fd::AsFd as _;
use std::path::{Path, PathBuf};

use lb_common::decap::map_names as decap;
use lb_common::map_names as names;
use nix::mount::{MsFlags, mount};
use nix::sys::statfs::{BPF_FS_MAGIC, statfs};

use super::sys::{detach_link, open_pin};

/// Why pins could not be used.
#[derive(Debug, thiserror::Error)]
pub enum PinError {
    /// The directory is not in a BPF file system, and none could be mounted.
    #[error(
        "no BPF file system at {path}: mounting one there failed (try `mount -t bpf bpf {path}`)"
    )]
    Mount {
        /// Where one was wanted.
        path: PathBuf,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// The directory is elsewhere.
    #[error(
        "paths.pins: {0} is not in a BPF file system: allowed is a directory below /sys/fs/bpf, or below another mounted bpffs"
    )]
    NotBpffs(PathBuf),
    /// Somebody else's files are there.
    #[error(
        "paths.pins: {dir} holds {file}, which is not weir's: allowed is a directory of its own, as in /sys/fs/bpf/weir"
    )]
    Foreign {
        /// The directory.
        dir: PathBuf,
        /// One of the files.
        file: String,
    },
    /// A file operation failed.
    #[error("{path}")]
    File {
        /// The file or directory.
        path: PathBuf,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
}

/// The directory with an installation's pins.
#[derive(Clone, Debug)]
pub struct Pins {
    dir: PathBuf,
}

const BPFFS: &str = "/sys/fs/bpf";
const LINKS: &str = "links";

/// The maps that outlive the daemon: all but read-only data, the explanation and places of
/// packets under way.
pub(super) const MAPS: [&str; 30] = [
    names::ABI,
    names::SERVICES_V4,
    names::SERVICES_V6,
    names::NAT_SOURCES_V4,
    names::NAT_SOURCES_V6,
    names::VIP_FILTER,
    names::VIPS_V4,
    names::VIPS_V6,
    names::SETTINGS,
    names::RING,
    names::BACKENDS,
    names::DEVICES,
    names::BACKEND_STATS,
    names::SERVICE_STATS,
    names::REASONS,
    names::FLOWS_V4[0],
    names::FLOWS_V4[1],
    names::FLOWS_V4[2],
    names::FLOWS_V6[0],
    names::FLOWS_V6[1],
    names::FLOWS_V6[2],
    names::FRAGMENTS_V4,
    names::FRAGMENTS_V6,
    names::GUARD,
    names::PREFIXES_V4,
    names::PREFIXES_V6,
    names::NEAR,
    names::RATES,
    names::SERVICE_BUCKETS,
    names::SOURCE_BUCKETS,
];

/// The names of everything that is pinned in a directory of ours.
fn ours() -> impl Iterator<Item = &'static str> {
    MAPS.into_iter().chain([decap::OUTCOMES])
}

impl Pins {
    /// Returns the pins in `dir`, which need not exist.
    pub fn new(dir: impl Into<PathBuf>) -> Self {
        Self { dir: dir.into() }
    }

    /// Returns the directory.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Returns the path of a map.
    pub fn map(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    /// Returns the path of an interface's link.
    pub fn link(&self, interface: &str) -> PathBuf {
        self.links_dir().join(interface)
    }

    fn links_dir(&self) -> PathBuf {
        self.dir.join(LINKS)
    }

    /// Returns whether an installation's maps are pinned here.
    pub fn exist(&self) -> bool {
        self.map(names::ABI).exists()
    }

    /// Makes the directories, and mounts the BPF file system if its usual place is empty.
    pub fn prepare(&self) -> Result<(), PinError> {
        if self.dir.starts_with(BPFFS) && !is_bpffs(Path::new(BPFFS)) {
            mount(
                Some("bpf"),
                BPFFS,
                Some("bpf"),
                MsFlags::empty(),
                None::<&str>,
            )
            .map_err(|errno| PinError::Mount {
                path: BPFFS.into(),
                source: errno.into(),
            })?;
        }
        let links = self.links_dir();
        let parent = links
            .ancestors()
            .find(|path| path.exists())
            .unwrap_or(Path::new("/"));
        if !is_bpffs(parent) {
            return Err(PinError::NotBpffs(self.dir.clone()));
        }
        fs::create_dir_all(&links).map_err(|source| PinError::File {
            path: links,
            source,
        })
    }

    /// Returns the interfaces that have a link here.
    pub fn links(&self) -> Result<Vec<String>, PinError> {
        let dir = self.links_dir();
        let entries = match fs::read_dir(&dir) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(source) => return Err(PinError::File { path: dir, source }),
        };
        let mut names = Vec::new();
        for entry in entries {
            let entry = entry.map_err(|source| PinError::File {
                path: dir.clone(),
                source,
            })?;
            if let Ok(name) = entry.file_name().into_string() {
                names.push(name);
            }
        }
        names.sort();
        Ok(names)
    }

    /// Detaches an interface's program and removes the link. Returns whether there was one.
    pub fn remove_link(&self, interface: &str) -> Result<bool, PinError> {
        let path = self.link(interface);
        if let Ok(link) = open_pin(&path) {
            detach_link(link.as_fd()).map_err(|source| PinError::File {
                path: path.clone(),
                source,
            })?;
        }
        remove_file(&path)
    }

    /// Checks that nothing of anybody else is in the directory.
    pub fn check(&self) -> Result<(), PinError> {
        let Ok(entries) = fs::read_dir(&self.dir) else {
            return Ok(());
        };
        for entry in entries.flatten() {
            let file = entry.file_name();
            if file != LINKS && !ours().any(|name| file == name) {
                return Err(PinError::Foreign {
                    dir: self.dir.clone(),
                    file: file.to_string_lossy().into_owned(),
                });
            }
        }
        Ok(())
    }

    /// Removes everything of ours: links first, so that no program runs on maps that are going.
    pub fn remove_all(&self) -> Result<(), PinError> {
        for interface in self.links()? {
            self.remove_link(&interface)?;
        }
        remove_dir(&self.links_dir())?;
        for name in ours() {
            remove_file(&self.map(name))?;
        }
        remove_dir(&self.dir)
    }
}

fn remove_file(path: &Path) -> Result<bool, PinError> {
    match fs::remove_file(path) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(source) => Err(PinError::File {
            path: path.into(),
            source,
        }),
    }
}

/// Removes a directory, unless there is something of somebody else in it or it is a mount point.
fn remove_dir(path: &Path) -> Result<(), PinError> {
    match fs::remove_dir(path) {
        Ok(()) => Ok(()),
        Err(error)
            if matches!(
                error.kind(),
                io::ErrorKind::NotFound
                    | io::ErrorKind::DirectoryNotEmpty
                    | io::ErrorKind::ResourceBusy
            ) =>
        {
            Ok(())
        }
        Err(source) => Err(PinError::File {
            path: path.into(),
            source,
        }),
    }
}

fn is_bpffs(path: &Path) -> bool {
    statfs(path).is_ok_and(|stat| stat.filesystem_type() == BPF_FS_MAGIC)
}
