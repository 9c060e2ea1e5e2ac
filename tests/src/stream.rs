//! A stream of numbered datagrams, to find out what became of each one.

use std::collections::BTreeMap;
use std::io;
use std::net::{SocketAddr, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use nix::sys::socket::{setsockopt, sockopt};

use crate::lan::Host;

/// Between two datagrams: slower than any queue on the way, whatever else the machine does.
const PAUSE: Duration = Duration::from_micros(250);
/// The most that is sent, should nobody stop it: two minutes.
const MOST: u32 = 480_000;
/// What a sink may have waiting: more than the stream has within seconds.
const WAITING: usize = 16 << 20;

/// Datagrams from several ports, each with a number of its own, until it is stopped.
#[derive(Debug)]
pub struct Stream {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<u32>,
}

impl Stream {
    /// Starts sending from so many ports of a host, in turn.
    pub fn start(from: &Host, to: &str, ports: usize) -> Self {
        let to: SocketAddr = to.parse().expect("an address");
        let sockets: Vec<UdpSocket> = from.netns.enter(|| {
            let bind = || UdpSocket::bind("0.0.0.0:0").expect("a UDP port");
            (0..ports).map(|_| bind()).collect()
        });
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = stop.clone();
        let thread = std::thread::spawn(move || {
            let mut sent = 0;
            for socket in sockets.iter().cycle() {
                if sent == MOST || stopped.load(Ordering::Relaxed) {
                    break;
                }
                socket.send_to(&u32::to_be_bytes(sent), to).expect("a send");
                sent += 1;
                std::thread::sleep(PAUSE);
            }
            sent
        });
        Self { stop, thread }
    }

    /// Stops it. Returns how many datagrams there were: numbers 0 to this, exclusive.
    pub fn stop(self) -> u32 {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().expect("the stream's thread")
    }
}

/// What arrives at a host of a [`Stream`].
#[derive(Debug)]
pub struct Sink {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<BTreeMap<u32, Vec<SocketAddr>>>,
}

impl Sink {
    /// Starts receiving on a port of a host.
    pub fn start(host: &Host, port: u16) -> Self {
        let socket = host
            .netns
            .enter(|| UdpSocket::bind(("0.0.0.0", port)).expect("a UDP port"));
        setsockopt(&socket, sockopt::RcvBufForce, &WAITING).expect("a large buffer");
        let patience = Some(Duration::from_millis(200));
        socket.set_read_timeout(patience).expect("a time-out");
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = stop.clone();
        let thread = std::thread::spawn(move || {
            let mut received: BTreeMap<u32, Vec<SocketAddr>> = BTreeMap::new();
            loop {
                let mut number = [0; 4];
                match socket.recv_from(&mut number) {
                    Ok((_, from)) => received
                        .entry(u32::from_be_bytes(number))
                        .or_default()
                        .push(from),
                    // Only then is nothing waiting any more.
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                        if stopped.load(Ordering::Relaxed) {
                            return received;
                        }
                    }
                    Err(error) => panic!("receiving: {error}"),
                }
            }
        });
        Self { stop, thread }
    }

    /// Takes what is still waiting, and ends. Returns the senders by the datagrams' numbers.
    pub fn finish(self) -> BTreeMap<u32, Vec<SocketAddr>> {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().expect("the sink's thread")
    }
}
