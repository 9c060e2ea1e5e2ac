//! In which mode an interface runs its XDP program: what a BPF link doesn't say, but the route
//! netlink family does.

use std::io;
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd};

use netlink_packet_core::{NLM_F_REQUEST, NetlinkMessage, NetlinkPayload};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::link::{LinkAttribute, LinkMessage, LinkXdp, XdpAttached};

use super::XdpMode;

/// Room for one link's description.
const ANSWER: usize = 1 << 16;

/// Returns the mode, or nothing if no program is attached.
pub fn link_mode(ifindex: u32) -> io::Result<Option<XdpMode>> {
    let socket = open()?;
    let mut link = LinkMessage::default();
    link.header.index = ifindex;
    let mut request = NetlinkMessage::from(RouteNetlinkMessage::GetLink(link));
    request.header.flags = NLM_F_REQUEST;
    request.finalize();
    let mut bytes = vec![0; request.buffer_len()];
    request.serialize(&mut bytes);
    nix::sys::socket::send(
        socket.as_raw_fd(),
        &bytes,
        nix::sys::socket::MsgFlags::empty(),
    )?;
    let mut answer = vec![0; ANSWER];
    let length = nix::sys::socket::recv(
        socket.as_raw_fd(),
        &mut answer,
        nix::sys::socket::MsgFlags::empty(),
    )?;
    let answer = answer.get(..length).unwrap_or_default();
    let answer = NetlinkMessage::<RouteNetlinkMessage>::deserialize(answer);
    let answer = answer.map_err(io::Error::other)?.payload;
    if let NetlinkPayload::InnerMessage(RouteNetlinkMessage::NewLink(link)) = &answer {
        return Ok(mode_of(link));
    }
    if let NetlinkPayload::Error(error) = &answer {
        return Err(error.to_io());
    }
    Err(io::Error::other(format!(
        "an unexpected answer: {answer:?}"
    )))
}

fn open() -> io::Result<OwnedFd> {
    let kind = libc::SOCK_RAW | libc::SOCK_CLOEXEC;
    // SAFETY: a system call without pointers.
    let fd = unsafe { libc::socket(libc::AF_NETLINK, kind, libc::NETLINK_ROUTE) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: a descriptor that the kernel just made for us.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

fn mode_of(link: &LinkMessage) -> Option<XdpMode> {
    for attribute in &link.attributes {
        let LinkAttribute::Xdp(xdp) = attribute else {
            continue;
        };
        for part in xdp {
            if let LinkXdp::Attached(attached) = part {
                return match attached {
                    XdpAttached::None => None,
                    XdpAttached::SocketBuffer => Some(XdpMode::Generic),
                    // One in the card is beside one in the driver.
                    XdpAttached::Driver
                    | XdpAttached::Hardware
                    | XdpAttached::Multiple
                    | XdpAttached::Other(_)
                    | _ => Some(XdpMode::Native),
                };
            }
        }
    }
    None
}
