use std::collections::BTreeMap;
use std::fmt;
use std::fs::File;
use std::io::{self, Read as _, Write as _};
use std::net::TcpStream;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use lb_tests::lan::Host;
use nix::sched::{CloneFlags, setns};

use crate::site::VIP;

/// Clients that ask at the same time.
const CLIENTS: usize = 4;
/// Pause between two requests of a client.
const PAUSE: Duration = Duration::from_millis(10);
/// Size of the long download, in bytes; the servers send a sixth of it in a second.
pub const DOWNLOAD: usize = 12 << 20;

/// Who answered how often.
#[derive(Clone, Debug, Default)]
pub struct Results {
    answers: BTreeMap<String, u64>,
    /// Requests without a whole answer.
    pub failed: u64,
}

impl Results {
    /// Returns what came after `before`.
    pub fn since(&self, before: &Self) -> Self {
        let mut answers = self.answers.clone();
        for (name, count) in &mut answers {
            *count -= before.answers.get(name).copied().unwrap_or(0);
        }
        Self {
            answers,
            failed: self.failed - before.failed,
        }
    }

    /// Returns how many requests were answered.
    pub fn answered(&self) -> u64 {
        self.answers.values().sum()
    }

    /// Returns a VM's share of the answers.
    pub fn share(&self, vm: &str) -> f64 {
        let answers = self.answers.get(vm).copied().unwrap_or(0);
        answers as f64 / self.answered().max(1) as f64
    }
}

impl fmt::Display for Results {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} requests answered, {} failed:",
            self.answered(),
            self.failed
        )?;
        for (vm, answers) in &self.answers {
            write!(f, " {vm} {answers} ({:.0} %)", 100.0 * self.share(vm))?;
        }
        Ok(())
    }
}

/// Clients that ask all the time, each request on a connection of its own.
pub struct Load {
    stop: Arc<AtomicBool>,
    results: Arc<Mutex<Results>>,
    clients: Vec<JoinHandle<()>>,
}

impl Load {
    /// Starts the clients.
    pub fn start(from: &Host) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let results = Arc::new(Mutex::new(Results::default()));
        let clients = (0..CLIENTS)
            .map(|_| {
                let (stop, results) = (stop.clone(), results.clone());
                let namespace = File::open(from.netns.path()).expect("the client's namespace");
                std::thread::spawn(move || {
                    setns(namespace, CloneFlags::CLONE_NEWNET).expect("entering the namespace");
                    while !stop.load(Ordering::Relaxed) {
                        let answer = get("/");
                        let mut results = results.lock().expect("no client panicked with it");
                        match answer {
                            Ok(body) => *results.answers.entry(body).or_default() += 1,
                            Err(_) => results.failed += 1,
                        }
                        drop(results);
                        std::thread::sleep(PAUSE);
                    }
                })
            })
            .collect();
        Self {
            stop,
            results,
            clients,
        }
    }

    /// Returns what came of it so far.
    pub fn results(&self) -> Results {
        self.results
            .lock()
            .expect("no client panicked with it")
            .clone()
    }

    /// Ends the clients.
    pub fn stop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        for client in self.clients.drain(..) {
            let _ = client.join();
        }
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        self.stop();
    }
}

fn request(path: &str) -> io::Result<TcpStream> {
    let address = format!("{VIP}:80").parse().map_err(io::Error::other)?;
    let mut stream = TcpStream::connect_timeout(&address, Duration::from_secs(3))?;
    stream.set_read_timeout(Some(Duration::from_secs(3)))?;
    write!(stream, "GET {path} HTTP/1.0\r\nHost: {VIP}\r\n\r\n")?;
    Ok(stream)
}

/// Sends a request; returns the body of the answer.
fn get(path: &str) -> io::Result<String> {
    let mut answer = String::new();
    request(path)?.read_to_string(&mut answer)?;
    match answer.split_once("\r\n\r\n") {
        Some((head, body)) if head.starts_with("HTTP/1.1 200") => Ok(body.trim().to_owned()),
        _ => Err(io::Error::other("no answer")),
    }
}

/// A long download under way.
pub struct Download {
    vm: String,
    thread: JoinHandle<io::Result<Vec<u8>>>,
}

impl Download {
    /// Starts it, and waits for its first bytes: they say which VM sends it.
    pub fn start(from: &Host) -> Self {
        let mut stream = from.netns.enter(|| request("/big")).expect("a connection");
        let mut first = vec![0; 4096];
        stream.read_exact(&mut first).expect("the first bytes");
        let number = char::from(first[4095]);
        let thread = std::thread::spawn(move || {
            stream.read_to_end(&mut first)?;
            Ok(first)
        });
        Self {
            vm: format!("vm{number}"),
            thread,
        }
    }

    /// Returns the VM that sends it.
    pub fn vm(&self) -> &str {
        &self.vm
    }

    /// Returns whether it is over.
    pub fn ended(&self) -> bool {
        self.thread.is_finished()
    }

    /// Waits for its end. Returns how many bytes it had.
    pub fn finish(self) -> Result<usize> {
        let vm = self.vm;
        let answer = self.thread.join().expect("the download's thread")?;
        let head = answer
            .windows(4)
            .position(|bytes| bytes == b"\r\n\r\n")
            .context("no head")?;
        let body = &answer[head + 4..];
        ensure!(
            body.len() == DOWNLOAD,
            "it has {} bytes of {DOWNLOAD}",
            body.len()
        );
        let own = vm.as_bytes()[2];
        ensure!(
            body.iter().all(|byte| *byte == own),
            "it is not all from {vm}"
        );
        Ok(body.len())
    }
}
