//! Attaching the program to interfaces, by links that outlive the daemon.

use std::io;
use std::os::fd::AsFd as _;

use aya::programs::links::{FdLink, PinnedLink};
use aya::programs::{ProgramError, Xdp, xdp::XdpLink};

use super::pins::{PinError, Pins};
use super::sys::xdp_link_ifindex;
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

/// How the program came onto an interface.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Attached {
    /// The interface's index.
    pub ifindex: u32,
    /// The mode, if it is known: the link of an earlier daemon doesn't say.
    pub mode: Option<XdpMode>,
    /// Why `auto` did not take native mode.
    pub fallback: Option<String>,
    /// Whether an earlier daemon's link was taken over, without a gap.
    pub adopted: bool,
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

/// Attaches `program`, or makes an earlier daemon's link run it.
pub fn attach(
    program: &mut Xdp,
    pins: &Pins,
    interface: &str,
    mode: AttachMode,
) -> Result<Attached, AttachError> {
    let ifindex = nix::net::if_::if_nametoindex(interface)
        .map_err(|_| AttachError::NoInterface(interface.to_owned()))?;
    let other = |source| AttachError::Link {
        interface: interface.to_owned(),
        source,
    };
    if let Ok(pinned) = PinnedLink::from_pin(pins.link(interface)) {
        let link = FdLink::from(pinned);
        if link_ifindex(&link).map_err(other)? == ifindex {
            let link = XdpLink::try_from(link).map_err(|e| other(io::Error::other(e)))?;
            program
                .attach_to_link(link)
                .map_err(|source| AttachError::Kernel {
                    interface: interface.to_owned(),
                    mode: "the link's own",
                    source,
                })?;
            return Ok(Attached {
                ifindex,
                mode: None,
                fallback: None,
                adopted: true,
            });
        }
        // The interface was deleted and made again: the old link hangs on nothing.
        pins.remove_link(interface)?;
    }

    let (link, mode, fallback) = match mode {
        AttachMode::Native => (
            link(program, interface, ifindex, XdpMode::Native)?,
            XdpMode::Native,
            None,
        ),
        AttachMode::Generic => (
            link(program, interface, ifindex, XdpMode::Generic)?,
            XdpMode::Generic,
            None,
        ),
        AttachMode::Auto => match link(program, interface, ifindex, XdpMode::Native) {
            Ok(link) => (link, XdpMode::Native, None),
            Err(AttachError::NoNative { reason, .. }) => (
                link(program, interface, ifindex, XdpMode::Generic)?,
                XdpMode::Generic,
                Some(reason),
            ),
            Err(error) => return Err(error),
        },
    };
    link.pin(pins.link(interface))
        .map_err(|e| other(io::Error::other(e)))?;
    Ok(Attached {
        ifindex,
        mode: Some(mode),
        fallback,
        adopted: false,
    })
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

fn link_ifindex(link: &FdLink) -> io::Result<u32> {
    // aya gives out no descriptor of a link; its Debug form would, but is no interface.
    let info = link.info().map_err(io::Error::other)?;
    let fd = super::sys::link_fd_by_id(info.id())?;
    xdp_link_ifindex(fd.as_fd())
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
