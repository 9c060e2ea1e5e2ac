//! Echo requests by the kernel's own ICMP sockets: it makes them, and takes only right answers.

use std::io;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::os::fd::{FromRawFd as _, OwnedFd};
use std::time::Duration;

use crate::lan::Host;

/// How long to wait for an answer.
const PATIENCE: Duration = Duration::from_secs(1);

/// Pings an address with so many bytes from a host. Returns the answer's payload.
pub fn ping(from: &Host, to: &str, bytes: usize) -> io::Result<Vec<u8>> {
    ping_for(from, to, bytes, PATIENCE)
}

/// Pings, and waits for so long.
pub fn ping_for(from: &Host, to: &str, bytes: usize, patience: Duration) -> io::Result<Vec<u8>> {
    let to: IpAddr = to.parse().expect("an address");
    from.netns.set("net/ipv4/ping_group_range", "0 0");
    let socket = from.netns.enter(|| icmp_socket(to.is_ipv4()))?;
    socket.set_read_timeout(Some(patience))?;
    socket.connect(SocketAddr::new(to, 0))?;
    // Type and code; the kernel fills in checksum and identifier.
    let mut request = vec![if to.is_ipv4() { 8 } else { 128 }, 0, 0, 0, 0, 0, 0, 1];
    request.extend((0..bytes).map(|n| n as u8));
    socket.send(&request)?;
    let mut answer = vec![0; 65_536];
    let len = socket.recv(&mut answer)?;
    answer.truncate(len);
    Ok(answer.split_off(8.min(len)))
}

fn icmp_socket(v4: bool) -> io::Result<UdpSocket> {
    let (family, protocol) = if v4 {
        (libc::AF_INET, libc::IPPROTO_ICMP)
    } else {
        (libc::AF_INET6, libc::IPPROTO_ICMPV6)
    };
    // SAFETY: numbers only.
    let fd = unsafe { libc::socket(family, libc::SOCK_DGRAM | libc::SOCK_CLOEXEC, protocol) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: a descriptor that the kernel just made for us.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) }.into())
}
