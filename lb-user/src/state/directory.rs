use std::fs::{self, File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use lb_common::hash::HashKey;
use nix::fcntl::{Flock, FlockArg};
use serde::{Serialize, de::DeserializeOwned};

use super::{ListOwner, LoadedLists, Overrides, Slots, lists};
use crate::model::Prefixes;
use crate::spec::read_prefixes;

const SECRET_BYTES: usize = size_of::<HashKey>();

/// Why the state directory can't be used.
#[derive(Debug, thiserror::Error)]
pub enum StateError {
    /// Another daemon uses it.
    #[error(
        "the state directory {dir} is used by another weir (pid {pid}): stop that one, or give this one a paths.state of its own"
    )]
    Locked {
        /// The directory.
        dir: PathBuf,
        /// The other daemon.
        pid: String,
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
    /// A file is not what this version wrote.
    #[error(
        "{path} is damaged or from another version: {reason}. Nothing was changed; restore it, or move it away to begin without it"
    )]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
}

/// A state directory that is ours until dropped.
#[derive(Debug)]
pub struct Directory {
    path: PathBuf,
    _lock: Flock<File>,
}

impl Directory {
    /// Opens a state directory, which is made if it isn't there, and locks it.
    pub fn open(path: &Path) -> Result<Self, StateError> {
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(path)
            .map_err(file_error(path))?;
        let lock_path = path.join("lock");
        let mut file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(&lock_path)
            .map_err(file_error(&lock_path))?;
        let mut holder = String::new();
        let _ = file.read_to_string(&mut holder);
        let lock = Flock::lock(file, FlockArg::LockExclusiveNonblock).map_err(|(_, errno)| {
            if errno == nix::errno::Errno::EWOULDBLOCK {
                StateError::Locked {
                    dir: path.into(),
                    pid: holder.trim().to_owned(),
                }
            } else {
                file_error(&lock_path)(errno.into())
            }
        })?;
        let result = (|| {
            let mut file: &File = &lock;
            file.set_len(0)?;
            io::Seek::rewind(&mut file)?;
            writeln!(file, "{}", std::process::id())
        })();
        result.map_err(file_error(&lock_path))?;
        Ok(Self {
            path: path.into(),
            _lock: lock,
        })
    }

    /// Returns the directory.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Returns the key of the flow hash; the first call makes one.
    pub fn secret(&self) -> Result<HashKey, StateError> {
        let path = self.path.join("secret");
        let bytes = match fs::read(&path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let mut bytes = vec![0; SECRET_BYTES];
                getrandom::fill(&mut bytes)
                    .map_err(|error| file_error(&path)(io::Error::other(error)))?;
                self.write("secret", &bytes)?;
                bytes
            }
            Err(error) => return Err(file_error(&path)(error)),
        };
        let found = bytes.len();
        let bytes: [u8; SECRET_BYTES] = bytes.try_into().map_err(|_| StateError::Damaged {
            path,
            reason: format!("it has {found} bytes, a secret has {SECRET_BYTES}"),
        })?;
        let mut key = [0; 16];
        for (word, bytes) in key.iter_mut().zip(bytes.as_chunks::<8>().0) {
            *word = u64::from_le_bytes(*bytes);
        }
        Ok(HashKey(key))
    }

    /// Returns the operator's own changes.
    pub fn overrides(&self) -> Result<Overrides, StateError> {
        let overrides: Overrides = self.read("overrides.json")?.unwrap_or_default();
        overrides.check().map_err(|reason| StateError::Damaged {
            path: self.path.join("overrides.json"),
            reason,
        })?;
        Ok(overrides)
    }

    /// Stores the operator's own changes.
    pub fn set_overrides(&self, overrides: &Overrides) -> Result<(), StateError> {
        self.write_json("overrides.json", overrides)
    }

    /// Returns the places in the kernel's maps; nothing if none were ever stored.
    pub fn slots(&self) -> Result<Option<Slots>, StateError> {
        let slots: Option<Slots> = self.read("slots.json")?;
        if let Some(slots) = &slots {
            slots.check().map_err(|reason| StateError::Damaged {
                path: self.path.join("slots.json"),
                reason,
            })?;
        }
        Ok(slots)
    }

    /// Stores the places in the kernel's maps.
    pub fn set_slots(&self, slots: &Slots) -> Result<(), StateError> {
        self.write_json("slots.json", slots)
    }

    /// Returns the lists of sources that the operator loaded.
    pub fn lists(&self) -> Result<LoadedLists, StateError> {
        let mut loaded = LoadedLists::default();
        for entry in fs::read_dir(&self.path).map_err(file_error(&self.path))? {
            let entry = entry.map_err(file_error(&self.path))?;
            let Some(owner) = entry.file_name().to_str().and_then(lists::owner) else {
                continue;
            };
            let path = entry.path();
            let text = fs::read_to_string(&path).map_err(file_error(&path))?;
            let prefixes = read_prefixes(&text, &path.display().to_string());
            let prefixes = prefixes.map_err(|errors| StateError::Damaged {
                path,
                reason: errors.join("; "),
            })?;
            loaded.set(owner, Some(prefixes.into_iter().collect()));
        }
        Ok(loaded)
    }

    /// Stores a list of sources, or forgets it.
    pub fn set_list(
        &self,
        owner: &ListOwner,
        prefixes: Option<&Prefixes>,
    ) -> Result<(), StateError> {
        let name = lists::file_name(owner);
        if let Some(prefixes) = prefixes {
            return self.write(&name, lists::text(prefixes).as_bytes());
        }
        let path = self.path.join(name);
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            Ok(()) | Err(_) => File::open(&self.path).and_then(|dir| dir.sync_all()),
        }
        .map_err(file_error(&path))
    }

    fn read<T: DeserializeOwned>(&self, name: &str) -> Result<Option<T>, StateError> {
        let path = self.path.join(name);
        match fs::read(&path) {
            Ok(bytes) => {
                serde_json::from_slice(&bytes)
                    .map(Some)
                    .map_err(|error| StateError::Damaged {
                        path,
                        reason: error.to_string(),
                    })
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(file_error(&path)(error)),
        }
    }

    fn write_json(&self, name: &str, value: &impl Serialize) -> Result<(), StateError> {
        let bytes = serde_json::to_vec_pretty(value)
            .map_err(|error| file_error(&self.path.join(name))(io::Error::other(error)))?;
        self.write(name, &bytes)
    }

    /// Replaces a file: after a crash there is the old content or the new, whole.
    fn write(&self, name: &str, bytes: &[u8]) -> Result<(), StateError> {
        let path = self.path.join(name);
        let new = self.path.join(format!("{name}.new"));
        let result = (|| {
            let mut file = OpenOptions::new()
                .write(true)
                .create(true)
                .truncate(true)
                .mode(0o600)
                .open(&new)?;
            file.write_all(bytes)?;
            file.sync_all()?;
            fs::rename(&new, &path)?;
            File::open(&self.path)?.sync_all()
        })();
        result.map_err(file_error(&path))
    }
}

fn file_error(path: &Path) -> impl Fn(io::Error) -> StateError {
    move |source| StateError::File {
        path: path.into(),
        source,
    }
}
