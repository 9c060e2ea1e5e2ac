//! Downloads: a server that sends many bytes to whom connects, and its client.

use std::io::{self, Read as _, Write as _};
use std::net::{IpAddr, Ipv6Addr, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use crate::lan::Host;
use crate::netns::Netns;

/// How many bytes a download has: more than fits into a path's first packets.
pub const DOWNLOAD: usize = 200_000;

const PATIENCE: Duration = Duration::from_secs(10);

/// A server in a host's namespace, until it is dropped.
pub struct Bulk {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Bulk {
    /// Starts it on a port, for IPv4 and IPv6.
    pub fn start(host: &Host, port: u16) -> Self {
        let any = SocketAddr::new(IpAddr::V6(Ipv6Addr::UNSPECIFIED), port);
        let listener = host.netns.enter(|| TcpListener::bind(any).expect("a port"));
        listener.set_nonblocking(true).expect("a listener");
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let thread = std::thread::spawn(move || {
            while !stopped.load(Ordering::Relaxed) {
                let Ok((mut stream, _)) = listener.accept() else {
                    std::thread::sleep(Duration::from_millis(5));
                    continue;
                };
                let _ = stream.set_nonblocking(false);
                let _ = stream.set_write_timeout(Some(PATIENCE));
                let _ = stream.write_all(&[7; DOWNLOAD]);
            }
        });
        Self {
            stop,
            thread: Some(thread),
        }
    }
}

impl Drop for Bulk {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// Reads all that a server sends. Returns how many bytes that was.
pub fn download(client: &Netns, from: &str) -> io::Result<usize> {
    let to: SocketAddr = from.parse().unwrap();
    let mut stream = client.enter(|| TcpStream::connect_timeout(&to, PATIENCE))?;
    stream.set_read_timeout(Some(PATIENCE))?;
    let mut bytes = Vec::new();
    stream.read_to_end(&mut bytes)?;
    Ok(bytes.len())
}
