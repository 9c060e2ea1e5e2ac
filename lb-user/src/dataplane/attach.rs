//! Attaching the program to interfaces, by links that outlive the daemon.

use std::io;
use std::os::fd::AsFd as _;

use aya::programs::links::{FdLink, PinnedLink};
use aya::programs::{ProgramError, Xdp, xdp::XdpLink};

use super::link_mode::link_mode;
use super::pins::{PinError, Pins};
use super::sys::{open_pin, xdp_link_ifindex};
use crate::model::AttachMode;

/// The mode that the program runs in on an interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum XdpMode {
    /// In the driver.
    Native,
    /// In the kernel's generic path.
    Generic,
}

impl XdpMode {
    /// Returns the mode's name.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Native => "native",
            Self::Generic => "generic",
        }
    }
}

impl From<XdpMode> for AttachMode {
    fn from(mode: XdpMode) -> Self {
        match mode {
            XdpMode::Native => Self::Native,
            XdpMode::Generic => Self::Generic,
        }
    }
}

/// How the program came onto an interface.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Attached {
    /// The interface's index.
    pub ifindex: u32,
    /// The mode.
    pub mode: XdpMode,
    /// Why `auto` did not take native mode.
    pub fallback: Option<String>,
    /// The mode of the link that was there before. If it is the same, that link was taken over,
    /// without a gap.
    pub before: Option<XdpMode>,
}

impl Attached {
    /// Returns whether a link that was there was taken over, without a gap.
    pub fn taken_over(&self) -> bool {
        self.before == Some(self.mode)
    }
}

/// Why the program could not be attached.
#[derive(Debug, thiserror::Error)]
pub enum AttachError {
    /// There is no such interface.
    #[error("interface \"{0}\" does not exist")]
    NoInterface(String),
    /// The driver can't, and generic mode was not allowed.
    #[error(
        "interface \"{interface}\" has no native XDP ({reason}): allowed is --mode generic or auto"
    )]
    NoNative {
        /// The interface.
        interface: String,
        /// What the kernel said.
        reason: String,
    },
    /// Another program is there.
    #[error(
        "another XDP program is attached to \"{0}\": detach it first (`ip link set {0} xdp off`, or the program's own tool)"
    )]
    Busy(String),
    /// The kernel refused for another reason.
    #[error("attaching to \"{interface}\" in {mode} mode")]
    Kernel {
        /// The interface.
        interface: String,
        /// The mode.
        mode: &'static str,
        /// What the kernel said.
        #[source]
        source: ProgramError,
    },
    /// The kernel is older than the floor.
    #[error("the kernel has no BPF links for XDP: Linux 5.9 has them (aa8d3a716b59)")]
    NoLink,
    /// The link could not be pinned or read back.
    #[error("the link of \"{interface}\"")]
    Link {
        /// The interface.
        interface: String,
        /// What went wrong.
        #[source]
        source: io::Error,
    },
    /// The pin directory.
    #[error(transparent)]
    Pin(#[from] PinError),
}

/// Attaches `program`, or makes the link that is there run it. A link in another mode than `mode`
/// asks for is replaced, which takes a moment without a program; if that fails, it is put back.
pub fn attach(
    program: &mut Xdp,
    pins: &Pins,
    interface: &str,
    mode: AttachMode,
) -> Result<Attached, AttachError> {
    let ifindex = nix::net::if_::if_nametoindex(interface)
        .map_err(|_| AttachError::NoInterface(interface.to_owned()))?;
    let before = match pinned_link(pins, interface, ifindex)? {
        None => None,
        Some(link) => {
            let found = link_mode(ifindex).map_err(|source| AttachError::Link {
                interface: interface.to_owned(),
                source,
            })?;
            match found {
                Some(found) if mode == AttachMode::Auto || mode == found.into() => {
                    take_over(program, interface, link, found)?;
                    return Ok(Attached {
                        ifindex,
                        mode: found,
                        fallback: None,
                        before: Some(found),
                    });
                }
                found => found,
            }
        }
    };
    // Two modes can't be on one interface.
    pins.remove_link(interface)?;
    let result = attach_new(program, pins, interface, ifindex, mode);
    if let (Err(_), Some(before)) = (&result, before) {
        attach_new(program, pins, interface, ifindex, before.into())?;
    }
    let (mode, fallback) = result?;
    Ok(Attached {
        ifindex,
        mode,
        fallback,
        before,
    })
}

/// Returns the pinned link of an interface, unless it hangs on nothing because the interface was
/// deleted and made again.
fn pinned_link(pins: &Pins, interface: &str, ifindex: u32) -> Result<Option<FdLink>, AttachError> {
    let path = pins.link(interface);
    let Ok(link) = open_pin(&path) else {
        return Ok(None);
    };
    let failed = |source| AttachError::Link {
        interface: interface.to_owned(),
        source,
    };
    if xdp_link_ifindex(link.as_fd()).map_err(failed)? != ifindex {
        return Ok(None);
    }
    let pinned = PinnedLink::from_pin(path).map_err(|error| failed(io::Error::other(error)))?;
    Ok(Some(pinned.into()))
}

fn take_over(
    program: &mut Xdp,
    interface: &str,
    link: FdLink,
    mode: XdpMode,
) -> Result<(), AttachError> {
    let failed = |source| AttachError::Kernel {
        interface: interface.to_owned(),
        mode: mode.as_str(),
        source,
    };
    let link = XdpLink::try_from(link).map_err(|error| AttachError::Link {
        interface: interface.to_owned(),
        source: io::Error::other(error),
    })?;
    let id = program.attach_to_link(link).map_err(failed)?;
    // The pin alone holds the link, so that removing the pin detaches the program.
    drop(program.take_link(id).map_err(failed)?);
    Ok(())
}

/// Attaches where nothing is attached, and pins the link.
fn attach_new(
    program: &mut Xdp,
    pins: &Pins,
    interface: &str,
    ifindex: u32,
    mode: AttachMode,
) -> Result<(XdpMode, Option<String>), AttachError> {
    let (first, falls_back) = match mode {
        AttachMode::Native => (XdpMode::Native, false),
        AttachMode::Generic => (XdpMode::Generic, false),
        AttachMode::Auto => (XdpMode::Native, true),
    };
    let (link, mode, fallback) = match link(program, interface, ifindex, first) {
        Err(AttachError::NoNative { reason, .. }) if falls_back => {
            let generic = link(program, interface, ifindex, XdpMode::Generic)?;
            (generic, XdpMode::Generic, Some(reason))
        }
        result => (result?, first, None),
    };
    link.pin(pins.link(interface))
        .map_err(|error| AttachError::Link {
            interface: interface.to_owned(),
            source: io::Error::other(error),
        })?;
    Ok((mode, fallback))
}

fn link(
    program: &mut Xdp,
    interface: &str,
    ifindex: u32,
    mode: XdpMode,
) -> Result<FdLink, AttachError> {
    let kernel_mode = match mode {
        XdpMode::Native => aya::programs::XdpMode::Driver,
        XdpMode::Generic => aya::programs::XdpMode::Skb,
    };
    let id = program
        .attach_to_if_index(ifindex, kernel_mode)
        .map_err(|source| match (errno(&source), mode) {
            (Some(libc::EOPNOTSUPP | libc::EINVAL | libc::ERANGE), XdpMode::Native) => {
                AttachError::NoNative {
                    interface: interface.to_owned(),
                    reason: root_cause(&source),
                }
            }
            (Some(libc::EBUSY | libc::EEXIST), _) => AttachError::Busy(interface.to_owned()),
            _ => AttachError::Kernel {
                interface: interface.to_owned(),
                mode: mode.as_str(),
                source,
            },
        })?;
    let link = program
        .take_link(id)
        .map_err(|source| AttachError::Kernel {
            interface: interface.to_owned(),
            mode: mode.as_str(),
            source,
        })?;
    // Without a BPF link aya attaches by netlink, which could not be replaced atomically.
    FdLink::try_from(link).map_err(|_| AttachError::NoLink)
}

fn errno(error: &ProgramError) -> Option<i32> {
    let mut source: Option<&(dyn std::error::Error + 'static)> = Some(error);
    while let Some(error) = source {
        if let Some(errno) = error
            .downcast_ref::<io::Error>()
            .and_then(io::Error::raw_os_error)
        {
            return Some(errno);
        }
        source = error.source();
    }
    None
}

fn root_cause(error: &ProgramError) -> String {
    let mut error: &dyn std::error::Error = error;
    while let Some(source) = error.source() {
        error = source;
    }
    error.to_string()
}
