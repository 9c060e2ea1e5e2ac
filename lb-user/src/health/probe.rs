use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::AsRawFd as _;
use std::time::Duration;

use http_body_util::{BodyExt as _, Empty};
use hyper::body::Bytes;
use hyper_util::rt::TokioIo;
use nix::errno::Errno;
use nix::sys::socket::{AddressFamily, SockFlag, SockProtocol, SockType, socket};
use tokio::io::unix::AsyncFd;
use tokio::net::{TcpStream, UdpSocket};

use crate::model::Probe;

/// How much of a body is searched.
const BODY_MAX: usize = 64 * 1024;

/// Why a probe failed.
#[derive(Debug, thiserror::Error)]
pub enum ProbeError {
    /// No answer in time.
    #[error("no answer within {0:?}")]
    TimedOut(Duration),
    /// No connection, or it broke.
    #[error("{0}")]
    Io(#[from] io::Error),
    /// Not HTTP.
    #[error("HTTP: {0}")]
    Http(#[from] hyper::Error),
    /// The request could not be made.
    #[error("the request could not be made: {0}")]
    Request(#[from] hyper::http::Error),
    /// Another status.
    #[error("status {found}, allowed is {low} to {high}")]
    Status {
        /// The status.
        found: u16,
        /// The lowest that is allowed.
        low: u16,
        /// The highest that is allowed.
        high: u16,
    },
    /// The text is not in the body.
    #[error("the first 64 KiB of the body do not contain {0:?}")]
    Body(String),
    /// Another answer.
    #[error("the answer begins otherwise than expected")]
    Answer,
}

impl ProbeError {
    /// Returns whether this host lacked something that the probe needs: descriptors, memory,
    /// ports, permission. The backend was not asked then.
    pub fn is_local(&self) -> bool {
        let Self::Io(error) = self else {
            return false;
        };
        let errno = error.raw_os_error().map(Errno::from_raw);
        errno.is_some_and(|errno| LOCAL.contains(&errno))
    }
}

const LOCAL: [Errno; 8] = [
    Errno::EMFILE,
    Errno::ENFILE,
    Errno::ENOMEM,
    Errno::ENOBUFS,
    Errno::EADDRINUSE,
    Errno::EADDRNOTAVAIL,
    Errno::EPERM,
    Errno::EAGAIN,
];

/// Probes a backend once.
pub async fn probe(probe: &Probe, address: IpAddr, timeout: Duration) -> Result<(), ProbeError> {
    let result = tokio::time::timeout(timeout, run(probe, address)).await;
    result.unwrap_or(Err(ProbeError::TimedOut(timeout)))
}

async fn run(probe: &Probe, address: IpAddr) -> Result<(), ProbeError> {
    match probe {
        Probe::Tcp { port } => connect(SocketAddr::new(address, port.get()))
            .await
            .map(drop),
        Probe::Http {
            port,
            path,
            host,
            status,
            body,
        } => {
            let to = SocketAddr::new(address, port.get());
            http(to, path, host.as_deref(), *status, body.as_deref()).await
        }
        Probe::Udp { port, send, expect } => {
            let to = SocketAddr::new(address, port.get());
            udp(to, send, expect.as_deref()).await
        }
        Probe::Icmp => echo(address).await,
    }
}

/// A probe's connection ends by a reset, so that thousands of them leave no TIME_WAIT behind here.
async fn connect(to: SocketAddr) -> Result<TcpStream, ProbeError> {
    let stream = TcpStream::connect(to).await?;
    stream.set_zero_linger()?;
    Ok(stream)
}

async fn http(
    to: SocketAddr,
    path: &str,
    host: Option<&str>,
    (low, high): (u16, u16),
    text: Option<&str>,
) -> Result<(), ProbeError> {
    let stream = connect(to).await?;
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake::<_, Empty<Bytes>>(TokioIo::new(stream)).await?;
    let host = host.map_or_else(|| to.to_string(), str::to_owned);
    let request = hyper::Request::get(path)
        .header(hyper::header::HOST, host)
        .header(
            hyper::header::USER_AGENT,
            concat!("weir/", env!("CARGO_PKG_VERSION")),
        )
        .header(hyper::header::CONNECTION, "close")
        .body(Empty::new())?;
    let exchange = async {
        let mut response = sender.send_request(request).await?;
        let found = response.status().as_u16();
        if !(low..=high).contains(&found) {
            return Err(ProbeError::Status { found, low, high });
        }
        let Some(text) = text else {
            return Ok(());
        };
        let mut body = Vec::new();
        while body.len() < BODY_MAX {
            let Some(frame) = response.body_mut().frame().await else {
                break;
            };
            if let Ok(data) = frame?.into_data() {
                body.extend_from_slice(&data);
            }
        }
        body.truncate(BODY_MAX);
        let found = text.is_empty()
            || body
                .windows(text.len())
                .any(|window| window == text.as_bytes());
        found
            .then_some(())
            .ok_or_else(|| ProbeError::Body(text.to_owned()))
    };
    // The connection has to be driven as long as the exchange lasts, and no longer.
    tokio::pin!(connection);
    tokio::pin!(exchange);
    tokio::select! {
        biased;
        result = &mut exchange => result,
        result = &mut connection => {
            result?;
            exchange.await
        }
    }
}

async fn udp(to: SocketAddr, send: &[u8], expect: Option<&[u8]>) -> Result<(), ProbeError> {
    let socket = UdpSocket::bind(any(to.ip())).await?;
    // A connected socket hears of "port unreachable".
    socket.connect(to).await?;
    socket.send(send).await?;
    let mut answer = vec![0; BODY_MAX];
    let len = socket.recv(&mut answer).await?;
    answer.truncate(len);
    match expect {
        Some(expect) if !answer.starts_with(expect) => Err(ProbeError::Answer),
        _ => Ok(()),
    }
}

/// Sends an ICMP or ICMPv6 echo request (RFC 792, RFC 4443 §4.1) and waits for the answer.
async fn echo(address: IpAddr) -> Result<(), ProbeError> {
    let (family, protocol, request, reply) = match address {
        IpAddr::V4(_) => (AddressFamily::Inet, SockProtocol::Icmp, 8, 0),
        IpAddr::V6(_) => (AddressFamily::Inet6, SockProtocol::IcmpV6, 128, 129),
    };
    let flags = SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC;
    // A raw socket: the daemon is root, and the kernel's ping sockets may be closed to it
    // (net.ipv4.ping_group_range).
    let raw = socket(family, SockType::Raw, flags, protocol).map_err(io::Error::from)?;
    let to = nix::sys::socket::SockaddrStorage::from(SocketAddr::new(address, 0));
    nix::sys::socket::connect(raw.as_raw_fd(), &to).map_err(io::Error::from)?;
    // SAFETY: the owned descriptor stays open, and the same, as long as `AsyncFd` has it.
    let registered = unsafe { AsyncFd::register(raw) };
    let socket = registered.map_err(|error| error.into_parts().1)?;

    let mut token = [0; 12];
    getrandom::fill(&mut token).map_err(io::Error::other)?;
    let mut packet = vec![request, 0, 0, 0];
    packet.extend_from_slice(&token);
    if address.is_ipv4() {
        // The kernel computes the checksum of ICMPv6 itself.
        let sum = !lb_common::csum::fold(lb_common::csum::sum(&packet));
        packet.splice(2..4, sum.to_ne_bytes());
    }
    let send = |socket: &std::os::fd::OwnedFd| {
        nix::unistd::write(socket, &packet).map_err(io::Error::from)
    };
    socket.async_io(tokio::io::Interest::WRITABLE, send).await?;
    let mut buffer = [0; 256];
    loop {
        let len = socket
            .async_io(tokio::io::Interest::READABLE, |socket| {
                nix::unistd::read(socket, &mut buffer).map_err(io::Error::from)
            })
            .await?;
        let message = buffer.get(..len).unwrap_or_default();
        // Raw IPv4 sockets deliver the IP header too.
        let header = match (address, message.first()) {
            (IpAddr::V4(_), Some(first)) => usize::from(first & 0xf) * 4,
            _ => 0,
        };
        let message = message.get(header..).unwrap_or_default();
        if message.first() == Some(&reply) && message.get(4..16) == Some(token.as_slice()) {
            return Ok(());
        }
    }
}

fn any(like: IpAddr) -> SocketAddr {
    match like {
        IpAddr::V4(_) => SocketAddr::from((Ipv4Addr::UNSPECIFIED, 0)),
        IpAddr::V6(_) => SocketAddr::from((Ipv6Addr::UNSPECIFIED, 0)),
    }
}
