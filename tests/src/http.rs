//! The little of HTTP that asking a VM takes.

use std::io::{self, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use crate::lan::Host;

/// How long an answer may take: a VM runs emulated where there is no KVM.
const PATIENCE: Duration = Duration::from_secs(8);

/// Sends `GET path` to port 80 of an address. Returns the body.
pub fn get(from: &Host, address: &str, path: &str) -> io::Result<String> {
    let to: SocketAddr = format!("{address}:80").parse().unwrap();
    let mut stream = from
        .netns
        .enter(|| TcpStream::connect_timeout(&to, PATIENCE))?;
    stream.set_read_timeout(Some(PATIENCE))?;
    write!(stream, "GET {path} HTTP/1.0\r\n\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    let (_, body) = answer
        .split_once("\r\n\r\n")
        .ok_or(io::ErrorKind::InvalidData)?;
    Ok(body.trim().to_owned())
}
