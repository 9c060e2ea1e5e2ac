//! Real servers that say who they are, and clients that ask them.

use std::io::{self, BufRead as _, BufReader, Read as _, Write as _};
use std::net::{IpAddr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use crate::lan::Host;

/// How long a client waits.
const PATIENCE: Duration = Duration::from_secs(5);

/// A server in a host's namespace: answers every line of a TCP connection, and every datagram,
/// with its name. Stopping it leaves its host without anybody who listens.
#[derive(Debug)]
pub struct Server {
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

impl Server {
    /// Starts a server on a port, for TCP and UDP, IPv4 and IPv6.
    pub fn start(host: &Host, port: u16, name: &str) -> Self {
        let any = SocketAddr::new(IpAddr::V6(Ipv6Addr::UNSPECIFIED), port);
        let v4 = SocketAddr::from(([0, 0, 0, 0], port));
        let (listener, udp4, udp6) = host.netns.enter(|| {
            (
                TcpListener::bind(any).expect("a TCP port"),
                UdpSocket::bind(v4).expect("a UDP port"),
                v6_only(any),
            )
        });
        let stop = Arc::new(AtomicBool::new(false));
        let threads = vec![
            serve(listener, name, &stop),
            answer(udp4, name, &stop),
            answer(udp6, name, &stop),
        ];
        Self { stop, threads }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

fn v6_only(address: SocketAddr) -> UdpSocket {
    use nix::sys::socket::{
        AddressFamily, SockFlag, SockType, SockaddrStorage, bind, setsockopt, socket, sockopt,
    };
    let fd = socket(
        AddressFamily::Inet6,
        SockType::Datagram,
        SockFlag::SOCK_CLOEXEC,
        None,
    )
    .expect("a socket");
    setsockopt(&fd, sockopt::Ipv6V6Only, &true).expect("IPV6_V6ONLY");
    let address = SockaddrStorage::from(address);
    bind(std::os::fd::AsRawFd::as_raw_fd(&fd), &address).expect("a UDP port");
    fd.into()
}

fn serve(listener: TcpListener, name: &str, stop: &Arc<AtomicBool>) -> JoinHandle<()> {
    let (name, stop) = (name.to_owned(), stop.clone());
    listener.set_nonblocking(true).expect("a listener");
    std::thread::spawn(move || {
        while !stop.load(Ordering::Relaxed) {
            match listener.accept() {
                Ok((stream, _)) => {
                    let (name, stop) = (name.clone(), stop.clone());
                    std::thread::spawn(move || talk(&stream, &name, &stop));
                }
                Err(_) => std::thread::sleep(Duration::from_millis(2)),
            }
        }
    })
}

/// Answers every line with the name until the client or the server ends.
fn talk(stream: &TcpStream, name: &str, stop: &AtomicBool) -> Option<()> {
    stream.set_nonblocking(false).ok()?;
    stream
        .set_read_timeout(Some(Duration::from_millis(50)))
        .ok()?;
    let mut lines = BufReader::new(stream);
    let mut line = String::new();
    while !stop.load(Ordering::Relaxed) {
        match lines.read_line(&mut line) {
            Ok(0) => return None,
            Ok(_) => {
                writeln!(&mut &*stream, "{name}").ok()?;
                line.clear();
            }
            Err(error)
                if matches!(
                    error.kind(),
                    io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut
                ) => {}
            Err(_) => return None,
        }
    }
    None
}

fn answer(socket: UdpSocket, name: &str, stop: &Arc<AtomicBool>) -> JoinHandle<()> {
    let (name, stop) = (name.to_owned(), stop.clone());
    socket
        .set_read_timeout(Some(Duration::from_millis(50)))
        .expect("a socket");
    // The answer must come from the virtual address that was asked: learn it with each datagram.
    std::thread::spawn(move || {
        while !stop.load(Ordering::Relaxed) {
            let _ = udp::answer_one(&socket, &name);
        }
    })
}

/// A connection that stays open.
#[derive(Debug)]
pub struct Connection(BufReader<TcpStream>);

impl Connection {
    /// Connects from a host; fails like a client would.
    pub fn open(from: &Host, to: &str) -> io::Result<Self> {
        let to: SocketAddr = to.parse().expect("an address");
        let stream = from
            .netns
            .enter(|| TcpStream::connect_timeout(&to, PATIENCE))?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_nodelay(true)?;
        Ok(Self(BufReader::new(stream)))
    }

    /// Asks who is there.
    pub fn ask(&mut self) -> io::Result<String> {
        self.0.get_mut().write_all(b"who?\n")?;
        let mut line = String::new();
        if self.0.read_line(&mut line)? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        Ok(line.trim().to_owned())
    }

    /// Ends it politely, and waits for the other side's end.
    pub fn close(mut self) {
        let _ = self.0.get_mut().shutdown(std::net::Shutdown::Write);
        let _ = self.0.read_to_end(&mut Vec::new());
    }
}

/// Opens a connection, asks once and ends it.
pub fn ask_tcp(from: &Host, to: &str) -> io::Result<String> {
    let mut connection = Connection::open(from, to)?;
    let name = connection.ask()?;
    connection.close();
    Ok(name)
}

/// Sends a datagram from a new port and waits for the answer.
pub fn ask_udp(from: &Host, to: &str) -> io::Result<String> {
    let to: SocketAddr = to.parse().expect("an address");
    let any = if to.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
    let socket = from.netns.enter(|| UdpSocket::bind(any))?;
    socket.connect(to)?;
    socket.set_read_timeout(Some(PATIENCE))?;
    socket.send(b"who?")?;
    let mut answer = [0; 64];
    let len = socket.recv(&mut answer)?;
    Ok(String::from_utf8_lossy(&answer[..len]).into_owned())
}

mod udp {
    //! UDP answers that come from the address that was asked.

    use std::io::{self, IoSlice, IoSliceMut};
    use std::net::UdpSocket;
    use std::os::fd::AsRawFd as _;

    use nix::sys::socket::{
        ControlMessage, ControlMessageOwned, MsgFlags, SockaddrStorage, recvmsg, sendmsg,
        setsockopt, sockopt,
    };

    /// Answers one datagram with `name`.
    pub fn answer_one(socket: &UdpSocket, name: &str) -> io::Result<()> {
        let v6 = socket.local_addr()?.is_ipv6();
        if v6 {
            setsockopt(socket, sockopt::Ipv6RecvPacketInfo, &true)?;
        } else {
            setsockopt(socket, sockopt::Ipv4PacketInfo, &true)?;
        }
        let mut buffer = [0; 2048];
        let mut parts = [IoSliceMut::new(&mut buffer)];
        let mut control = nix::cmsg_space!(libc::in6_pktinfo);
        let fd = socket.as_raw_fd();
        let message =
            recvmsg::<SockaddrStorage>(fd, &mut parts, Some(&mut control), MsgFlags::empty())?;
        let from = message.address;
        let mut info4 = None;
        let mut info6 = None;
        for control in message.cmsgs()? {
            if let ControlMessageOwned::Ipv4PacketInfo(mut info) = control {
                info.ipi_spec_dst = info.ipi_addr;
                info.ipi_ifindex = 0;
                info4 = Some(info);
            } else if let ControlMessageOwned::Ipv6PacketInfo(mut info) = control {
                info.ipi6_ifindex = 0;
                info6 = Some(info);
            }
        }
        let control4 = info4.as_ref().map(ControlMessage::Ipv4PacketInfo);
        let control6 = info6.as_ref().map(ControlMessage::Ipv6PacketInfo);
        let control: Vec<ControlMessage<'_>> = control4.into_iter().chain(control6).collect();
        let answer = [IoSlice::new(name.as_bytes())];
        sendmsg(fd, &answer, &control, MsgFlags::empty(), from.as_ref())?;
        Ok(())
    }
}
