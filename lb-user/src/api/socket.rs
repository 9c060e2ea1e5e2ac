use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

use tokio::net::UnixListener;

/// Owner and group may read and write, nobody else.
const MODE: u32 = 0o660;

/// Why the API's socket can't be used.
#[derive(Debug, thiserror::Error)]
pub enum SocketError {
    /// Another process listens there.
    #[error("the socket {0} is in use by another process: stop it, or set another paths.socket")]
    InUse(PathBuf),
    /// There is something else.
    #[error("{0} is there already, and is no socket: move it away, or set another paths.socket")]
    NoSocket(PathBuf),
    /// The kernel refused.
    #[error("socket {path}")]
    Io {
        /// The socket.
        path: PathBuf,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
}

/// The API's listening socket. Its file goes when it is dropped.
#[derive(Debug)]
pub struct Socket {
    path: PathBuf,
    /// The socket.
    pub listener: Option<UnixListener>,
}

impl Socket {
    /// Listens at `path`; what a dead process left there is replaced.
    pub fn bind(path: &Path) -> Result<Self, SocketError> {
        let failed = |source| SocketError::Io {
            path: path.into(),
            source,
        };
        if let Some(directory) = path.parent().filter(|path| !path.as_os_str().is_empty()) {
            fs::create_dir_all(directory).map_err(failed)?;
        }
        match UnixStream::connect(path) {
            Ok(_) => return Err(SocketError::InUse(path.into())),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(_) => {
                use std::os::unix::fs::FileTypeExt as _;
                if !fs::symlink_metadata(path)
                    .map_err(failed)?
                    .file_type()
                    .is_socket()
                {
                    return Err(SocketError::NoSocket(path.into()));
                }
                fs::remove_file(path).map_err(failed)?;
            }
        }
        let listener = UnixListener::bind(path).map_err(failed)?;
        fs::set_permissions(path, fs::Permissions::from_mode(MODE)).map_err(failed)?;
        Ok(Self {
            path: path.into(),
            listener: Some(listener),
        })
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.path);
    }
}
